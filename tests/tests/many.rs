//! Many bottles in one controller, through its API: attached over one connection, shown, cut, taken over, detached.
#![allow(clippy::unwrap_used, reason = "a failed expectation should stop the test where it stands")]
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::cgroup::TestCgroup;
use support::enforcer::Daemon;

/// More than this a bottle costs only where each looks at all the others.
const EACH: Duration = Duration::from_millis(100);

/// One connection to the control socket.
struct Api(BufReader<UnixStream>);

impl Api {
    fn new(daemon: &Daemon) -> Self {
        Self(BufReader::new(UnixStream::connect(daemon.socket()).unwrap()))
    }

    /// Asks and has the document of the answer (null for none), which must be a success.
    fn ask(&mut self, method: &str, path: &str, body: &Value) -> Value {
        let body = body.to_string();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: enforcer\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n",
            body.len()
        );
        self.0.get_mut().write_all(format!("{head}{body}").as_bytes()).unwrap();
        let (mut status, mut length) = (String::new(), 0);
        self.0.read_line(&mut status).unwrap();
        loop {
            let mut line = String::new();
            self.0.read_line(&mut line).unwrap();
            match line.trim_end().to_ascii_lowercase().split_once(": ") {
                Some(("content-length", bytes)) => length = bytes.parse().unwrap(),
                Some(_) => {}
                None => break,
            }
        }
        let mut document = vec![0; length];
        self.0.read_exact(&mut document).unwrap();
        assert!(status.starts_with("HTTP/1.1 20"), "{status}{}", String::from_utf8_lossy(&document));
        if document.is_empty() { Value::Null } else { serde_json::from_slice(&document).unwrap() }
    }
}

/// `ENFORCER_TEST_FULL=1`: 1,000 bottles instead of 100.
#[test]
fn root_many_bottles_are_attached_shown_cut_and_taken_over() {
    let many = if std::env::var_os("ENFORCER_TEST_FULL").is_some() { 1_000 } else { 100 };
    let mut daemon = Daemon::start("");
    let top = TestCgroup::new("many");
    let cgroups: Vec<TestCgroup> = (0..many).map(|number| top.child(&number.to_string())).collect();
    let mut api = Api::new(&daemon);
    let started = Instant::now();
    for (number, cgroup) in cgroups.iter().enumerate() {
        let attach = json!({ "name": format!("many-{number}"), "cgroup": cgroup.path() });
        let attached = api.ask("POST", "/v1/bottles", &attach);
        assert_eq!(attached["bottle"]["state"], "open", "{attached}");
    }
    let took = started.elapsed();
    println!("{many} bottles attached through the API over one connection: {took:?}");
    assert!(took < EACH * u32::try_from(many).unwrap(), "{took:?}");

    api.ask("POST", "/v1/bottles/many-7/cut", &json!({}));
    let count = |daemon: &Daemon, state: &str| {
        let status = daemon.json(&["status"]);
        status["bottles"].as_array().unwrap().iter().filter(|bottle| bottle["state"] == state).count()
    };
    assert_eq!((count(&daemon, "open"), count(&daemon, "cut")), (many - 1, 1));
    let started = Instant::now();
    daemon.restart();
    println!("a controller ends and the next takes over {many} bottles: {:?}", started.elapsed());
    assert_eq!((count(&daemon, "open"), count(&daemon, "cut")), (many - 1, 1));
    let mut api = Api::new(&daemon);
    api.ask("POST", "/v1/cut", &json!({}));
    assert_eq!(count(&daemon, "cut"), many);
    for number in 0..many {
        api.ask("DELETE", &format!("/v1/bottles/many-{number}?force=true"), &json!({}));
    }
    assert_eq!(daemon.json(&["status"])["bottles"], json!([]));
}
