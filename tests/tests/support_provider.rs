//! The mock provider held to the wire: shapes, codings, breaks, hang-ups, TLS, and a bill that adds up.
#![allow(clippy::unwrap_used, reason = "a failed expectation should stop the test where it stands")]
use std::io::{Read as _, Write as _};
use std::time::Duration;

use serde_json::Value;
use support::agent::{self, Agent, Answer, Api, Ended, Mode, Options};
use support::clock::mono_ns;
use support::provider::{Billed, End, Finish, Framing, Provider, Record, Reply, Script};

const SOON: Duration = Duration::from_secs(5);
const APIS: [Api; 3] = [Api::Messages, Api::Chat, Api::Responses];

fn options(provider: &Provider, api: Api) -> Options {
    let claude = api == Api::Messages;
    Options {
        provider: if claude { agent::Provider::Claude } else { agent::Provider::Codex },
        api: Some(api),
        stream: true,
        base_url: Some(if claude { provider.http_url() } else { format!("{}/v1", provider.http_url()) }),
        prompt: "hello".into(),
        ..Options::default()
    }
}

/// Asks once; the answer and the data of its events.
fn ask(options: Options) -> (Answer, Vec<String>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut events = Vec::new();
    let mut agent = Agent::new(options).unwrap();
    let answer = runtime.block_on(agent.ask(|event| events.push(event.to_owned()))).unwrap();
    (answer, events)
}

fn only_record(provider: &Provider) -> Record {
    let records = provider.wait_for(|records| records.iter().all(|record| record.end.is_some()), SOON);
    assert_eq!(records.len(), 1, "{records:#?}");
    records[0].clone()
}

fn header(name: &str, value: &str) -> (String, String) {
    (name.to_owned(), value.to_owned())
}

fn types(events: &[String]) -> Vec<String> {
    let types = events.iter().map(|event| serde_json::from_str::<Value>(event).unwrap()["type"].clone());
    types.map(|kind| kind.as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_streamed_message_has_the_events_of_the_wire() {
    let reply = Reply { cache_read: 7, cache_write: 3, ..Reply::paced(2, 8, Duration::ZERO) };
    let provider = Provider::start(reply.clone());
    let (answer, events) = ask(options(&provider, Api::Messages));
    let expected = [
        "message_start",
        "content_block_start",
        "ping",
        "content_block_delta",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ];
    assert_eq!(types(&events), expected);
    assert_eq!(answer.text, reply.text());
    assert_eq!(answer.text.len(), 2 * 8 * 4, "four bytes of text for each billed token");
    let start: Value = serde_json::from_str(&events[0]).unwrap();
    assert_eq!(start["message"]["usage"]["output_tokens"], 1);
    let usage = answer.usage.unwrap();
    assert_eq!([&usage["input_tokens"], &usage["output_tokens"]], [25, 16]);
    assert_eq!([&usage["cache_read_input_tokens"], &usage["cache_creation_input_tokens"]], [7, 3]);
    let bill = Billed { input: 25, cache_write: 3, cache_read: 7, output: 16, reasoning: 0 };
    assert_eq!(provider.billed_total(), bill);
}

#[test]
fn a_chat_stream_tells_usage_only_when_asked() {
    let reply = Reply { cache_read: 10, reasoning: 6, ..Reply::default() };
    for include_usage in [false, true] {
        let provider = Provider::start(reply.clone());
        let (answer, events) = ask(Options { include_usage, ..options(&provider, Api::Chat) });
        assert_eq!(events.last().unwrap(), "[DONE]");
        assert_eq!(answer.text, reply.text());
        assert_eq!(
            events.iter().filter(|event| event.contains("\"choices\":[]")).count(),
            usize::from(include_usage)
        );
        assert_eq!(events.iter().any(|event| event.contains("\"usage\"")), include_usage);
        if include_usage {
            let usage = answer.usage.unwrap();
            assert_eq!([&usage["prompt_tokens"], &usage["completion_tokens"]], [35, 46]);
            assert_eq!(usage["prompt_tokens_details"]["cached_tokens"], 10);
        }
        assert_eq!(provider.billed_total().total(), 25 + 10 + 46);
    }
}

#[test]
fn a_responses_stream_ends_in_one_of_three_ways() {
    let ends = [
        (Finish::Stop, "response.completed"),
        (Finish::Length, "response.incomplete"),
        (Finish::Failed, "response.failed"),
    ];
    for (finish, name) in ends {
        let provider = Provider::start(Reply { finish, ..Reply::default() });
        let (answer, events) = ask(options(&provider, Api::Responses));
        let types = types(&events);
        assert_eq!((types[0].as_str(), types.last().unwrap().as_str()), ("response.created", name));
        assert_eq!(types.iter().filter(|kind| *kind == "response.output_text.delta").count(), 5);
        let numbers: Vec<u64> = events
            .iter()
            .map(|event| serde_json::from_str::<Value>(event).unwrap()["sequence_number"].as_u64().unwrap())
            .collect();
        assert!(numbers.iter().copied().eq(0..numbers.len() as u64), "{numbers:?}");
        assert_eq!(answer.usage.unwrap()["output_tokens"], 40);
    }
}

#[test]
fn json_answers_tell_what_is_billed() {
    for api in APIS {
        let provider = Provider::start(Reply::default());
        let (answer, _) = ask(Options { stream: false, ..options(&provider, api) });
        let usage = answer.usage.clone().unwrap();
        let output = usage.get("output_tokens").or(usage.get("completion_tokens")).unwrap();
        assert_eq!(output, 40, "{api:?}");
        assert_eq!(answer.text, Reply::default().text(), "{api:?}");
        assert_eq!(answer.header("content-length").unwrap(), answer.body_bytes.to_string());
        assert_eq!(only_record(&provider).billed, Reply::default().bill());
    }
}

#[test]
fn what_is_received_is_what_is_recorded_in_every_coding_and_framing() {
    let framings = ["crlf", "comments,tight", "bom,split=3", "swap-length", "swap-length,split=7,crlf"];
    for api in APIS {
        for stream in [true, false] {
            for encoding in ["", "gzip", "br", "zstd"] {
                for framing in framings {
                    let provider = Provider::start(Reply::default());
                    let mut headers = vec![header("x-mock-framing", framing)];
                    if !encoding.is_empty() {
                        headers.extend([
                            header("x-mock-encoding", encoding),
                            header("accept-encoding", encoding),
                        ]);
                    }
                    let (answer, _) = ask(Options { stream, headers, ..options(&provider, api) });
                    let what = format!("{api:?} stream {stream} {encoding} {framing}");
                    assert_eq!(answer.ended, Ended::Complete, "{what}");
                    assert_eq!(answer.header("content-encoding").unwrap_or(""), encoding, "{what}");
                    assert_eq!(answer.text, Reply::default().text(), "{what}");
                    let known = answer.header("content-length").is_some();
                    assert_eq!(known, stream == framing.contains("swap-length"), "{what}");
                    let record = only_record(&provider);
                    assert_eq!(record.end, Some(End::Completed), "{what}");
                    assert_eq!(record.response_sha256, answer.body_sha256, "{what}");
                    assert_eq!(record.response_body, answer.body, "{what}");
                }
            }
        }
    }
}

#[test]
fn a_coding_that_was_not_asked_for_is_not_used() {
    let provider =
        Provider::start(Reply { encoding: Some(support::encoding::Encoding::Gzip), ..Reply::default() });
    let (plain, _) = ask(options(&provider, Api::Messages));
    let (coded, _) = ask(Options { gzip: true, ..options(&provider, Api::Messages) });
    assert_eq!(plain.header("content-encoding"), None);
    assert_eq!(coded.header("content-encoding"), Some("gzip"));
    assert_eq!(plain.text, coded.text);
    assert_ne!(plain.body, coded.body);
}

#[test]
fn a_broken_stream_is_billed_up_to_where_it_broke() {
    for api in APIS {
        for framing in [Framing::default(), Framing { swap_length: true, ..Framing::default() }] {
            let provider = Provider::start(Reply { break_after: Some(6), framing, ..Reply::default() });
            let (answer, events) = ask(options(&provider, api));
            assert!(matches!(answer.ended, Ended::Broken(_)), "{api:?} {:?}", answer.ended);
            assert_eq!(events.len(), 6, "{api:?}: every event before the break arrives");
            let record = only_record(&provider);
            assert_eq!(record.end, Some(End::Broken), "{api:?}");
            let tokens_received = answer.text.len() as u64 / 4;
            assert_eq!(
                record.billed,
                Billed { output: tokens_received, ..Reply::default().bill() },
                "{api:?}"
            );
        }
    }
}

#[test]
fn a_broken_json_answer_is_billed_whole() {
    let provider = Provider::start(Reply { break_after: Some(0), ..Reply::default() });
    let (answer, _) = ask(Options { stream: false, ..options(&provider, Api::Messages) });
    assert!(matches!(answer.ended, Ended::Broken(_)));
    let record = only_record(&provider);
    assert_eq!((record.end, record.billed), (Some(End::Broken), Reply::default().bill()));
}

#[test]
fn a_hang_up_is_noticed_at_once_and_stops_the_bill() {
    let provider = Provider::start(Reply::paced(1000, 8, Duration::from_millis(10)));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut agent = Agent::new(options(&provider, Api::Messages)).unwrap();
    let hung_up = runtime.block_on(async {
        let asking = agent.ask(|_| ());
        tokio::time::timeout(Duration::from_millis(200), asking).await
    });
    assert!(hung_up.is_err(), "the stream is longer than that");
    assert_eq!(provider.open_streams(), 1);
    let hung_up_ns = mono_ns();
    drop(agent);
    drop(runtime);
    let record = only_record(&provider);
    assert_eq!((record.end, provider.open_streams()), (Some(End::ClientGone), 0));
    let noticed_after = Duration::from_nanos(record.ended_ns.unwrap().saturating_sub(hung_up_ns));
    assert!(noticed_after < Duration::from_millis(500), "{noticed_after:?}");
    assert!((8..8000).contains(&record.billed.output), "{record:#?}");
}

#[test]
fn usage_can_be_left_out_and_is_billed_all_the_same() {
    for api in APIS {
        for stream in [true, false] {
            let provider = Provider::start(Reply { omit_usage: true, ..Reply::default() });
            let (answer, _) = ask(Options { stream, include_usage: true, ..options(&provider, api) });
            assert_eq!(answer.usage, None, "{api:?}");
            assert_eq!(provider.billed_total(), Reply::default().bill(), "{api:?}");
        }
    }
}

#[test]
fn errors_have_the_provider_s_shape_and_bill_nothing() {
    let provider =
        Provider::start(Script::sequence(vec![Reply::error(529), Reply::error(500), Reply::default()]));
    let (overloaded, _) = ask(options(&provider, Api::Messages));
    let (failed, _) = ask(options(&provider, Api::Chat));
    let (fine, _) = ask(options(&provider, Api::Messages));
    let body: Value = serde_json::from_slice(&overloaded.body).unwrap();
    assert_eq!([&body["type"], &body["error"]["type"]], ["error", "overloaded_error"]);
    let body: Value = serde_json::from_slice(&failed.body).unwrap();
    assert_eq!((failed.status, &body["error"]["type"]), (500, &Value::from("server_error")));
    assert_eq!(fine.status, 200);
    assert_eq!(provider.billed_total(), Reply::default().bill(), "only the third one");
    let records = provider.records();
    assert_eq!(records.iter().map(|record| record.status).collect::<Vec<_>>(), [529, 500, 200]);
}

#[test]
fn a_misspelt_mock_header_is_an_error() {
    let provider = Provider::start(Reply::default());
    let headers = vec![header("x-mock-pace", "3")];
    let (answer, _) = ask(Options { headers, ..options(&provider, Api::Messages) });
    assert_eq!(answer.status, 400);
}

#[test]
fn requests_are_recorded_as_they_came() {
    let provider = Provider::start(Reply::default());
    ask(options(&provider, Api::Messages));
    let record = only_record(&provider);
    assert_eq!((record.method.as_str(), record.path.as_str()), ("POST", "/v1/messages"));
    assert_eq!(record.host.as_deref(), Some(provider.addresses().http.to_string().as_str()));
    assert_eq!(record.header("x-api-key"), Some("sk-test"));
    assert_eq!(record.header("content-length").unwrap(), record.request_bytes.to_string());
    assert!(record.billable && !record.tls);
    assert_eq!(record.request_sha256.len(), 64);
}

#[test]
fn tls_works_with_its_ca_and_with_no_other() {
    let provider = Provider::start(Reply::default());
    let other = Provider::start(Reply::default());
    let to_tls = |ca_file| Options {
        base_url: Some(provider.https_url()),
        ca_file: Some(ca_file),
        ..options(&provider, Api::Messages)
    };
    let (answer, _) = ask(to_tls(provider.ca_file()));
    assert_eq!(answer.text, Reply::default().text());
    assert!(only_record(&provider).tls);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let refused = runtime.block_on(Agent::new(to_tls(other.ca_file())).unwrap().ask(|_| ()));
    assert!(format!("{:#}", refused.unwrap_err()).contains("TLS handshake"));
}

#[test]
fn an_idle_connection_serves_the_next_request() {
    let provider = Provider::start(Reply::default());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut agent = Agent::new(options(&provider, Api::Responses)).unwrap();
    runtime.block_on(async {
        for _ in 0..2 {
            let answer = agent.ask(|_| ()).await.unwrap();
            assert_eq!(answer.connection, 1);
        }
    });
    assert_eq!(provider.billing_records().len(), 2);
}

#[test]
fn streams_can_fail_inside_a_200() {
    for api in [Api::Messages, Api::Chat] {
        let provider = Provider::start(Reply { finish: Finish::Failed, ..Reply::default() });
        let (answer, events) = ask(options(&provider, api));
        let last: Value = serde_json::from_str(events.last().unwrap()).unwrap();
        assert!(last.pointer("/error/type").is_some(), "{last}");
        assert_eq!((answer.status, &answer.ended), (200, &Ended::Complete));
        assert_eq!(answer.text, Reply::default().text());
        assert!(answer.error.is_some());
    }
}

/// A proxy for one CONNECT that leads to the provider, whatever was asked for; gives what was asked for.
fn tunnel_once(to: std::net::SocketAddr) -> (String, std::thread::JoinHandle<String>) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let tunnel = std::thread::spawn(move || {
        let (mut inner, _) = listener.accept().unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            inner.read_exact(&mut byte).unwrap();
            head.extend(byte);
        }
        inner.write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
        let mut outer = std::net::TcpStream::connect(to).unwrap();
        let (mut from_inner, mut to_outer) = (inner.try_clone().unwrap(), outer.try_clone().unwrap());
        let upwards = std::thread::spawn(move || {
            std::io::copy(&mut from_inner, &mut to_outer).unwrap();
            to_outer.shutdown(std::net::Shutdown::Write).unwrap();
        });
        std::io::copy(&mut outer, &mut inner).unwrap();
        upwards.join().unwrap();
        String::from_utf8(head).unwrap().lines().next().unwrap().to_owned()
    });
    (url, tunnel)
}

#[test]
fn connect_mode_reaches_the_provider_by_its_own_name() {
    for (api, name) in [(Api::Messages, "api.anthropic.com"), (Api::Responses, "api.openai.com")] {
        let provider = Provider::start(Reply::default());
        let (proxy, tunnel) = tunnel_once(provider.addresses().https);
        let (answer, _) = ask(Options {
            mode: Mode::Connect,
            proxy: Some(proxy),
            ca_file: Some(provider.ca_file()),
            ..options(&provider, api)
        });
        assert_eq!(answer.text, Reply::default().text());
        assert_eq!(tunnel.join().unwrap(), format!("CONNECT {name}:443 HTTP/1.1"));
        let record = only_record(&provider);
        assert_eq!((record.host.as_deref(), record.tls), (Some(name), true));
    }
}

#[test]
fn connect_mode_needs_a_proxy() {
    let options = Options { mode: Mode::Connect, ..Options::default() };
    assert!(Agent::new(options).is_err());
}
