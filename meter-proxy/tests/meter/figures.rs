//! Figures of the meter's process, printed; run by name, in release.
use std::time::Instant;

use bytes::Bytes;

use crate::rig::http2::{Asked, Client, Provider, read, soon};
use crate::rig::{Answer, Rig, Upstream, chunk, config, post};
use crate::words::{ASK_STREAM, DELTA, MESSAGES, START, STOP, STREAM_HEAD, WORDS};

/// Words of one answer: with its beginning and its end 200 events, 33 KB.
const WORDS_EACH: usize = 197;
const ANSWERS: usize = 2_000;

fn events() -> impl Iterator<Item = &'static str> {
    [START].into_iter().chain(std::iter::repeat_n(WORDS, WORDS_EACH)).chain([DELTA, STOP])
}

async fn tell(mut asked: Asked) -> Result<(), h2::Error> {
    asked.read().await?;
    let mut answer = asked.answer("text/event-stream");
    for event in events() {
        answer.send_data(Bytes::from_static(event.as_bytes()), false)?;
    }
    answer.send_data(Bytes::new(), true)
}

/// CPU time of the meter so far, microseconds: user and system, proc_pid_stat(5).
fn cpu_us(rig: &Rig) -> u64 {
    let ticks: u64 =
        rig.stat().split_whitespace().skip(11).take(2).map(|ticks| ticks.parse::<u64>().unwrap()).sum();
    ticks * 10_000
}

fn print(what: &str, rig: &Rig, since: (u64, Instant)) {
    let each = |us: u64| us / u64::try_from(ANSWERS).unwrap();
    let took = u64::try_from(since.1.elapsed().as_micros()).unwrap();
    println!("{what}: {} us of CPU an answer, {} us each", each(cpu_us(rig) - since.0), each(took));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "prints figures; run by name, in release"]
async fn root_cpu_of_a_streamed_answer() {
    use std::io::Write as _;
    let chunks: String = events().map(chunk).collect();
    let by_http1 = Upstream::saying(format!("{STREAM_HEAD}{chunks}0\r\n\r\n"));
    let by_http2 = Provider::start(tell);
    for (upstream, settings) in
        [("HTTP/1.1", config(by_http1.address)), ("TLS and HTTP/2", by_http2.config())]
    {
        let rig = Rig::start(settings);
        let mut stream = rig.connect();
        let since = (cpu_us(&rig), Instant::now());
        for _ in 0..ANSWERS {
            stream.write_all(post(MESSAGES, ASK_STREAM).as_bytes()).unwrap();
            assert!(Answer::read(&mut stream).unwrap().body.ends_with(STOP.as_bytes()));
        }
        print(&format!("HTTP/1.1 from {upstream}"), &rig, since);
        for (way, client) in [
            ("HTTP/2", Client::at_gateway(&rig).await),
            ("TLS and HTTP/2", Client::through_tunnel(&rig).await),
        ] {
            let since = (cpu_us(&rig), Instant::now());
            for _ in 0..ANSWERS {
                let answer = soon(client.ask(ASK_STREAM).await).await.unwrap();
                assert!(read(&mut answer.into_body()).await.unwrap().0.ends_with(STOP.as_bytes()));
            }
            print(&format!("{way} from {upstream}"), &rig, since);
        }
    }
}
