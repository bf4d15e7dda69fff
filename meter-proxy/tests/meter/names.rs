//! Names that disagree: where a connection leads × TLS name × Host, by CONNECT and by redirect.
//!
//! Whatever is said, each provider sees what was metered for it and nothing else.
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;

use meter_proxy::protocol::ToController;
use rustls::{ClientConnection, ServerConfig, ServerConnection, StreamOwned};

use crate::rig::{Answer, Rig, Upstream, careless_tls, json_answer, loopback_is_open, post};
use crate::words::{ASK, JSON};

/// A name that somebody may say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Said {
    Claude,
    Codex,
    Other,
    Nothing,
}

use Said::{Claude, Codex, Nothing, Other};

const ALL: [Said; 4] = [Claude, Codex, Other, Nothing];

impl Said {
    fn name(self) -> Option<&'static str> {
        match self {
            Claude => Some("api.anthropic.com"),
            Codex => Some("api.openai.com"),
            Other => Some("other.test"),
            Nothing => None,
        }
    }

    fn is_metered(self) -> bool {
        matches!(self, Claude | Codex)
    }

    /// A request for this host, which its answer tells apart by provider.
    fn request(self) -> String {
        let host = self.name().map_or_else(String::new, |name| format!("Host: {name}\r\n"));
        let path = if self == Codex { "/v1/responses" } else { "/v1/messages" };
        post(path, ASK).replace("Host: meter\r\n", &host)
    }
}

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// Its provider answers, metered.
    Metered(Said),
    /// It arrives where the connection was going, unread.
    Passed,
    /// The meter answers with this status.
    Answered(u16),
    /// The connection is closed.
    Closed,
}

/// The two providers, a server that is neither, and the meter between.
struct Stage {
    rig: Rig,
    providers: [Upstream; 2],
    other: SocketAddr,
}

const PASSED: &str = "passed";

impl Stage {
    fn new() -> Self {
        let providers = [(); 2].map(|()| Upstream::saying(json_answer("200 OK", JSON)));
        let mut settings = loopback_is_open(providers[0].address);
        settings.providers[1].upstream = Some(format!("http://{}", providers[1].address));
        Self { rig: Rig::start(settings), providers, other: other_server() }
    }

    fn seen(&self) -> [usize; 2] {
        [self.providers[0].heads().len(), self.providers[1].heads().len()]
    }

    /// Sends the request, and says what became of it by who has seen it and what came back.
    fn outcome(&self, stream: &mut (impl Read + Write), request: &str) -> Outcome {
        let before = self.seen();
        let answer = stream.write_all(request.as_bytes()).and_then(|()| Answer::read(stream));
        let after = self.seen();
        let seen = [Claude, Codex].into_iter().zip(before.iter().zip(&after)).filter(|(_, (b, a))| a > b);
        let by: Vec<Said> = seen.map(|(provider, _)| provider).collect();
        match (answer, by.as_slice()) {
            (Ok(answer), [provider]) if answer.body == JSON.as_bytes() => Outcome::Metered(*provider),
            (Ok(answer), []) if answer.body == PASSED.as_bytes() => Outcome::Passed,
            (Ok(answer), []) => Outcome::Answered(answer.status()),
            (Err(_), []) => Outcome::Closed,
            (answer, by) => panic!("{by:?} saw it, and the answer was {answer:?}"),
        }
    }

    /// The request by TLS with this name, from a client that takes any certificate.
    fn by_tls(&self, sni: Said, stream: TcpStream, host: Said) -> Outcome {
        let mut tls = careless_tls();
        tls.enable_sni = sni != Nothing;
        let name = sni.name().unwrap_or("nobody.test").try_into().unwrap();
        let session = ClientConnection::new(Arc::new(tls), name).unwrap();
        self.outcome(&mut StreamOwned::new(session, stream), &host.request())
    }

    /// Each request that a provider saw was permitted and settled, and nothing else was.
    fn all_is_metered(&self, expected: [usize; 2]) {
        self.rig.taken_in();
        assert_eq!(self.seen(), expected);
        let metered = |name: &str| {
            self.rig
                .count(|message| matches!(message, ToController::Reserve(asked) if asked.provider == name))
        };
        assert_eq!([metered("claude"), metered("codex")], expected);
        let settled = self.rig.count(|message| matches!(message, ToController::Settle(_)));
        assert_eq!(settled, expected.iter().sum::<usize>());
    }
}

/// A server that is no provider, and answers anything, by TLS or without.
fn other_server() -> SocketAddr {
    let key = rcgen::generate_simple_self_signed(vec!["other.test".to_owned()]).unwrap();
    let signing = key.signing_key.serialize_der().try_into().unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder =
        ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let tls = builder.with_no_client_auth().with_single_cert(vec![key.cert.der().clone()], signing).unwrap();
    let tls = Arc::new(tls);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, tls) = (stream.unwrap(), Arc::clone(&tls));
            std::thread::spawn(move || {
                let mut first = [0];
                // Who is refused says nothing.
                if stream.peek(&mut first).is_ok_and(|said| said == 1) {
                    match first {
                        [0x16] => serve(&mut StreamOwned::new(ServerConnection::new(tls).unwrap(), stream)),
                        _ => serve(&mut stream),
                    }
                }
            });
        }
    });
    address
}

fn serve(stream: &mut (impl Read + Write)) {
    if Answer::read_head(stream).is_ok() {
        stream.write_all(json_answer("200 OK", PASSED).as_bytes()).unwrap();
    }
}

/// What becomes of a request in TLS with the name `sni` that `led` to a metered host.
fn opened(led: Said, sni: Said, host: Said) -> Outcome {
    match host {
        Nothing => Outcome::Answered(400),
        _ if host == led && (sni == led || sni == Nothing) => Outcome::Metered(led),
        _ => Outcome::Answered(421),
    }
}

#[test]
fn root_by_connect_every_name_agrees_or_nothing_reaches_a_provider() {
    let stage = Stage::new();
    let mut expected = [0; 2];
    for (led, sni, host) in ALL
        .iter()
        .flat_map(|led| ALL.iter().flat_map(move |sni| ALL.iter().map(move |host| (*led, *sni, *host))))
    {
        let target = match led {
            Other => stage.other.to_string(),
            _ => format!("{}:443", led.name().unwrap_or("")),
        };
        let mut stream = stage.rig.connect();
        write!(stream, "CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n").unwrap();
        let status = Answer::read_head(&mut stream).unwrap().status();
        if led == Nothing {
            assert_eq!(status, 400);
            continue;
        }
        assert_eq!(status, 200, "{target}");
        let wanted = match led {
            Other if sni.is_metered() => Outcome::Closed,
            Other => Outcome::Passed,
            _ => opened(led, sni, host),
        };
        assert_eq!(stage.by_tls(sni, stream, host), wanted, "CONNECT {led:?}, TLS {sni:?}, Host {host:?}");
        match wanted {
            Outcome::Metered(Claude) => expected[0] += 1,
            Outcome::Metered(_) => expected[1] += 1,
            _ => {}
        }
    }
    assert_eq!(expected, [2, 2], "with the name in TLS, and with none");
    stage.all_is_metered(expected);
}

#[test]
fn root_by_redirect_every_name_agrees_or_nothing_reaches_a_provider() {
    let stage = Stage::new();
    let mut expected = [0; 2];
    for (sni, host) in ALL.iter().flat_map(|sni| ALL.iter().map(move |host| (*sni, *host))) {
        // A metered name is opened for the port of https alone.
        let original = if sni.is_metered() { SocketAddr::new(stage.other.ip(), 443) } else { stage.other };
        let wanted = if sni.is_metered() { opened(sni, sni, host) } else { Outcome::Passed };
        let stream = stage.rig.redirected(original);
        assert_eq!(stage.by_tls(sni, stream, host), wanted, "TLS {sni:?}, Host {host:?}");
        if let Outcome::Metered(provider) = wanted {
            expected[usize::from(provider == Codex)] += 1;
        }
    }
    for host in ALL {
        let wanted = match host {
            Nothing => Outcome::Answered(400),
            Other => Outcome::Passed,
            metered => Outcome::Metered(metered),
        };
        let mut stream = stage.rig.redirected(stage.other);
        assert_eq!(stage.outcome(&mut stream, &host.request()), wanted, "plain, Host {host:?}");
        if let Outcome::Metered(provider) = wanted {
            expected[usize::from(provider == Codex)] += 1;
        }
    }
    stage.rig.manner(|manner| manner.original = None);
    assert_eq!(expected, [2, 2], "by TLS and without");
    stage.all_is_metered(expected);
}

#[test]
fn root_by_absolute_form_both_names_agree_or_nothing_reaches_a_provider() {
    let stage = Stage::new();
    let mut expected = [0; 2];
    for (asked, host) in
        [Claude, Codex, Other].iter().flat_map(|asked| ALL.iter().map(move |host| (*asked, *host)))
    {
        let wanted = match (asked, host) {
            (_, Nothing) => Outcome::Answered(400),
            (Other, Other) => Outcome::Answered(502),
            _ if asked == host => Outcome::Metered(asked),
            _ => Outcome::Answered(421),
        };
        let absolute = format!("POST http://{}/v1/", asked.name().unwrap());
        let request = host.request().replace("POST /v1/", &absolute);
        assert_eq!(stage.outcome(&mut stage.rig.connect(), &request), wanted, "{asked:?}, Host {host:?}");
        if let Outcome::Metered(provider) = wanted {
            expected[usize::from(provider == Codex)] += 1;
        }
    }
    assert_eq!(expected, [1, 1]);
    stage.all_is_metered(expected);
}
