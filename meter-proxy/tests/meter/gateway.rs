//! Requests at a gateway path, their answers and settlements.
use std::io::Write;
use std::net::TcpListener;

use meter_proxy::protocol::{Dialect, Refusal, ToController, ToMeter, Upstream as Towards};
use meter_proxy::tokens::{Ending, Provenance};

use crate::rig::{Answer, BOTTLE, Rig, Upstream, chunk, config, json_answer, post};
use crate::words::{ASK, JSON, MESSAGES, STREAM_HEAD, is_settle};

#[test]
fn root_a_json_answer_arrives_byte_for_byte_and_is_settled_as_reported() {
    let upstream = Upstream::saying(json_answer("200 OK", JSON));
    let rig = Rig::start(config(upstream.address));
    let request = post(&format!("{MESSAGES}?beta=true"), ASK).replace(
        "Host: meter\r\n",
        "Host: meter\r\nAccept-Encoding: gzip\r\nx-api-key: k\r\nProxy-Authorization: Basic x\r\nConnection: x-mine\r\nX-Mine: 1\r\n",
    );
    let answer = rig.ask(&request);
    assert_eq!((answer.status(), answer.body.as_slice()), (200, JSON.as_bytes()));
    let head = upstream.heads().remove(0).to_lowercase();
    assert!(head.starts_with("post /v1/messages?beta=true http/1.1"), "{head}");
    assert!(head.contains(&format!("host: {}\r\n", upstream.address)), "{head}");
    assert!(head.contains("accept-encoding: gzip\r\n") && head.contains("x-api-key: k\r\n"), "{head}");
    assert!(!head.contains("proxy-authorization") && !head.contains("x-mine"), "{head}");
    let settle = rig.settlement();
    assert_eq!((settle.tokens.input, settle.tokens.output), (10, 5));
    assert_eq!((settle.provenance, settle.ending), (Provenance::Reported, Ending::Completed));
    assert_eq!((settle.http_status, settle.model.as_deref()), (Some(200), Some("claude-x")));
    let reserve = rig.reservation();
    assert_eq!((reserve.provider.as_str(), reserve.endpoint.as_str()), ("claude", "/v1/messages"));
    assert_eq!((reserve.bottle, reserve.exchange), (BOTTLE, settle.exchange));
    assert!(reserve.tokens >= 100, "{reserve:?}");
}

#[test]
fn root_an_answer_without_a_body_is_settled_too() {
    let upstream = Upstream::saying("HTTP/1.1 500 Oh\r\ncontent-length: 0\r\n\r\n");
    let rig = Rig::start(config(upstream.address));
    assert_eq!(rig.ask(&post(MESSAGES, ASK)).status(), 500);
    assert_eq!(rig.settlement().ending, Ending::UpstreamError);

    let mut settings = config(upstream.address);
    settings.settle_timeout_ms = 100;
    let rig = Rig::start(settings);
    rig.manner(|manner| manner.settles = false);
    let answer = rig.ask(&post(MESSAGES, ASK));
    assert_eq!(answer.status(), 402, "what is not durable is not delivered");
    assert!(answer.json()["error"]["message"].as_str().unwrap().contains("recorded"));
}

#[test]
fn root_refusals_come_in_the_shape_of_the_provider() {
    let upstream = Upstream::saying(json_answer("200 OK", JSON));
    let rig = Rig::start(config(upstream.address));
    rig.manner(|manner| {
        manner.refusal = Some(Refusal::Budget {
            bottle: "b1".into(),
            provider: "claude".into(),
            scope: "bottle".into(),
            owner: "b1".into(),
            limit: 10,
            used: 11,
            reserved: 0,
            window: "total".into(),
            rule: "nearest".into(),
        });
    });
    let claude = rig.ask(&post(MESSAGES, ASK));
    assert_eq!((claude.status(), claude.header("x-should-retry")), (402, Some("false")));
    assert_eq!(claude.json()["error"]["type"], "billing_error");
    let codex = rig.ask(&post("/codex/v1/responses", "{}"));
    assert_eq!((codex.status(), codex.header("x-should-retry")), (429, Some("false")));
    assert_eq!(codex.json()["error"]["type"], "usage_limit_reached");
    assert!(codex.header("x-codex-promo-message").unwrap().contains("11 of 10"));
    assert_eq!(codex.header("retry-after"), None);
    assert!(upstream.heads().is_empty(), "nothing refused may leave");
    assert_eq!(rig.count(is_settle), 0);
}

#[test]
fn root_an_upstream_that_is_down_costs_nothing() {
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let rig = Rig::start(config(nobody));
    let answer = rig.ask(&post(MESSAGES, ASK));
    assert_eq!((answer.status(), answer.header("x-should-retry")), (502, None));
    assert_eq!(answer.json()["error"]["type"], "api_error");
    let settle = rig.settlement();
    assert_eq!((settle.ending, settle.tokens.total()), (Ending::Unsent, 0));
}

#[test]
fn root_free_endpoints_need_no_permit_but_an_open_bottle() {
    let upstream = Upstream::saying(json_answer("200 OK", "{}"));
    let rig = Rig::start(config(upstream.address));
    let models = "GET /claude/v1/models HTTP/1.1\r\nHost: m\r\n\r\n";
    assert_eq!(rig.ask(models).status(), 200);
    assert_eq!(rig.count(|message| matches!(message, ToController::Reserve(_))), 0);
    let mut client = rig.connect();
    client.write_all(models.as_bytes()).unwrap();
    assert_eq!(Answer::read(&mut client).unwrap().status(), 200);
    rig.send(&ToMeter::Cut { bottle: BOTTLE, upstream: Towards::Close });
    rig.taken_in();
    client.write_all(models.as_bytes()).unwrap();
    assert_eq!(Answer::read(&mut client).unwrap().status(), 402);
    rig.send(&ToMeter::Open { bottle: BOTTLE });
    rig.taken_in();
    client.write_all(models.as_bytes()).unwrap();
    let again = Answer::read(&mut client).unwrap();
    assert_eq!(again.status(), 200, "an idle connection serves the next request after a restore");
}

#[test]
fn root_an_unlisted_endpoint_passes_is_tailed_and_noticed_once() {
    let upstream = Upstream::saying(json_answer("200 OK", JSON));
    let rig = Rig::start(config(upstream.address));
    for _ in 0..2 {
        assert_eq!(rig.ask(&post("/claude/v9/surprise", ASK)).body, JSON.as_bytes());
    }
    assert_eq!(rig.reservation().tokens, 0);
    assert_eq!(rig.count(is_settle), 2);
    let is_notice = |message: &ToController| matches!(message, ToController::Notice(notice) if notice.detail.contains("/v9/surprise"));
    rig.heard(is_notice);
    assert_eq!(rig.count(is_notice), 1);
}

#[test]
fn root_an_unlisted_stream_is_charged_what_its_last_event_says() {
    let usage = r#"{"input_tokens":7,"output_tokens":900,"total_tokens":907}"#;
    let body = format!(
        "data: {{\"type\":\"image_generation.partial_image\"}}\n\ndata: {{\"type\":\"image_generation.completed\",\"usage\":{usage}}}\n\n"
    );
    let upstream = Upstream::saying(format!("{STREAM_HEAD}{}0\r\n\r\n", chunk(&body)));
    let rig = Rig::start(config(upstream.address));
    assert_eq!(rig.ask(&post("/codex/v1/images/generations", r#"{"stream":true}"#)).body, body.as_bytes());
    let settle = rig.settlement();
    assert_eq!((settle.tokens.total(), settle.provenance), (907, Provenance::Reported));
}

#[test]
fn root_an_embedding_reserves_and_costs_its_input_alone() {
    let upstream = Upstream::saying(json_answer("200 OK", r#"{"data":[{"embedding":[0.25,0.5,0.125]}]}"#));
    let rig = Rig::start(config(upstream.address));
    assert_eq!(rig.ask(&post("/codex/v1/embeddings", r#"{"input":"twelve bytes"}"#)).status(), 200);
    assert!(rig.reservation().tokens < 10);
    let tokens = rig.settlement().tokens;
    assert!(tokens.input > 0 && tokens.output == 0, "{tokens:?}");
}

#[test]
fn root_an_offer_of_another_protocol_is_not_taken_up() {
    let upstream = Upstream::saying(json_answer("200 OK", JSON));
    let rig = Rig::start(config(upstream.address));
    let offer = "Host: meter\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: x";
    assert_eq!(rig.ask(&post(MESSAGES, ASK).replace("Host: meter", offer)).body, JSON.as_bytes());
    assert!(!upstream.heads()[0].to_lowercase().contains("upgrade"));
}

#[test]
fn root_a_long_path_is_told_in_short_and_harmless() {
    let upstream = Upstream::saying(json_answer("200 OK", JSON));
    let rig = Rig::start(config(upstream.address));
    let path = format!("/claude/v9/\u{202e}{}", "x".repeat(8_000));
    rig.ask(&post(&path, ASK));
    let told = rig.reservation().endpoint;
    assert!(told.chars().count() == 256 && !told.contains('\u{202e}'), "{told}");
}

#[test]
fn root_a_background_response_is_refused() {
    let upstream = Upstream::saying(json_answer("200 OK", JSON));
    let rig = Rig::start(config(upstream.address));
    let zipped =
        post("/codex/v1/responses", "{}").replace("Host: meter", "Host: meter\r\nContent-Encoding: secret");
    for request in [post("/codex/v1/responses", r#"{"background":true,"input":"hi"}"#), zipped] {
        let answer = rig.ask(&request);
        assert_eq!((answer.status(), answer.header("x-should-retry")), (400, Some("false")));
        let error = &answer.json()["error"];
        assert_eq!(error["type"], "invalid_request_error");
        assert!(error["message"].as_str().unwrap().contains("background"), "{error}");
    }
    assert!(upstream.heads().is_empty());
    let large = format!(r#"{{"input":"{}"}}"#, "x ".repeat(3 * 1024 * 1024));
    assert_eq!(rig.ask(&post("/codex/v1/responses", &large)).status(), 200, "long ones are read whole");
}

#[test]
fn root_what_is_asked_for_in_a_form_that_is_not_read_is_refused() {
    let upstream = Upstream::saying(json_answer("200 OK", JSON));
    let mut settings = config(upstream.address);
    settings.providers[0].dialect = Dialect::Gemini;
    let rig = Rig::start(settings);
    let generate = "/claude/v1beta/models/gemini-x:generateContent";
    let typed = |path, kind: &str| post(path, "x").replace("Host: meter", &format!("Host: meter\r\n{kind}"));
    for (request, words) in [
        (post(&format!("{generate}?fields=candidates"), ASK), "parameters"),
        (typed(generate, "X-Goog-FieldMask: candidates"), "parameters"),
        (typed(generate, "X-HTTP-Method-Override: GET"), "method"),
        (typed("/claude/v1beta/models", "x-http-method-override: POST"), "method"),
        (typed("/codex/v1/models", "X-HTTP-Method: POST"), "method"),
        (
            post("/claude/v1beta/cachedContents", "")
                .replace("POST", "GET")
                .replace(" HTTP", "?$httpMethod=POST HTTP"),
            "method",
        ),
        (post("/claude/v1beta/models?%24httpmethod=POST", ""), "method"),
        (post("/claude/v1beta/models?%68ttpMethod=POST", ""), "method"),
        (post("/claude/v1beta/models?$httpHeaders=x", ""), "method"),
        (typed("/claude/anything", "Content-Type: application/gRPC+proto"), "gRPC"),
        (typed("/codex/xai_api.Chat/GetCompletion", "Content-Type: application/grpc"), "gRPC"),
        (typed(generate, "Content-Type: application/x-protobuf"), "protobuf"),
        (post("/claude/google.ai.generativelanguage.v1beta.GenerativeService/GenerateContent", ASK), "form"),
    ] {
        let answer = rig.ask(&request);
        assert_eq!(answer.status(), 400, "{request}");
        let error = &answer.json()["error"];
        assert!(error["message"].as_str().unwrap().contains(words), "{request}: {error}");
    }
    assert!(upstream.heads().is_empty());
    assert_eq!(rig.ask(&post(&format!("{generate}?key=k&alt=json"), ASK)).status(), 200);
}

#[test]
fn root_a_chat_stream_that_may_not_report_usage_is_refused() {
    let upstream = Upstream::saying(json_answer("200 OK", JSON));
    let rig = Rig::start(config(upstream.address));
    let chat = "/codex/v1/chat/completions";
    let digest = post(chat, r#"{"stream":true}"#).replace("Host: meter", "Host: meter\r\nContent-Digest: x");
    let too_long = format!(r#"{{"stream":true,"x":"{}"}}"#, "x".repeat(16 * 1024 * 1024));
    for request in [
        post(chat, r#"{"stream":false,"stream":true}"#),
        post(chat, r#"{"stream":1}"#),
        post(chat, r#"{"stream":true,"stream_options":{"include_usage":0}}"#),
        digest,
        post(chat, &too_long),
    ] {
        let answer = rig.ask(&request);
        assert_eq!((answer.status(), answer.header("x-should-retry")), (400, Some("false")));
        let error = &answer.json()["error"];
        assert!(error["message"].as_str().unwrap().contains("usage"), "{error}");
    }
    assert!(upstream.heads().is_empty());
    assert_eq!(rig.ask(&post(chat, r#"{"stream":false}"#)).status(), 200);
}

#[test]
fn root_an_encoded_path_is_metered_as_what_it_means() {
    let upstream = Upstream::saying(json_answer("200 OK", JSON));
    let rig = Rig::start(config(upstream.address));
    assert_eq!(rig.ask(&post("/claude/v1/%6dessages", ASK)).body, JSON.as_bytes());
    assert!(rig.reservation().tokens >= 100);
    assert!(upstream.heads()[0].starts_with("POST /v1/%6dessages "), "what passes is untouched");
}
