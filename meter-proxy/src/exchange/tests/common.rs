//! What holds for every dialect: statuses, unlisted endpoints, unreadable bodies, any cut of any stream.
use proptest::prelude::*;

use super::*;
use crate::decode::tests::encode;
use crate::event_stream::tests::frame;

const ANTHROPIC: &str = "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"model\":\"m\",\"usage\":{\"input_tokens\":10,\"cache_read_input_tokens\":5,\"output_tokens\":1}}}\n\nevent: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"delta\":{\"type\":\"text_delta\",\"text\":\"Grüße, \\u4e16\\u754c\"}}\n\nevent: message_delta\ndata: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"end_turn\"},\"usage\":{\"output_tokens\":20}}\n\nevent: message_stop\ndata: {\"type\":\"message_stop\"}\n\n";
const CHAT: &str = "\u{feff}: warm-up\r\n\r\ndata:{\"model\":\"m\",\"choices\":[{\"delta\":{\"content\":\"hello\"},\"finish_reason\":null}]}\r\n\r\ndata: {\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}]}\r\n\r\ndata: {\"choices\":[],\r\ndata: \"usage\":{\"prompt_tokens\":15,\"completion_tokens\":20,\"prompt_tokens_details\":{\"cached_tokens\":5}}}\r\n\r\ndata: [DONE]\r\n\r\n";
const RESPONSES: &str = "data: {\"type\":\"response.created\",\"response\":{\"model\":\"m\",\"usage\":null}}\r\rdata: {\"type\":\"response.output_text.delta\",\"delta\":\"hello\"}\r\rdata: {\"type\":\"response.completed\",\"response\":{\"usage\":{\"input_tokens\":15,\"input_tokens_details\":{\"cached_tokens\":5},\"output_tokens\":20}}}\r\r";
const GEMINI: &str = "data: {\"candidates\":[{\"content\":{\"parts\":[{\"text\":\"hello\"}]}}],\"usageMetadata\":{\"promptTokenCount\":15,\"cachedContentTokenCount\":5},\"modelVersion\":\"m\"}\n\ndata: {\"candidates\":[{\"finishReason\":\"STOP\"}],\"usageMetadata\":{\"promptTokenCount\":15,\"cachedContentTokenCount\":5,\"candidatesTokenCount\":20}}\n\n";
const STREAMS: [(Shape, &str); 4] = [
    (Shape::AnthropicMessages, ANTHROPIC),
    (Shape::OpenaiChat, CHAT),
    (Shape::OpenaiResponses, RESPONSES),
    (Shape::Gemini, GEMINI),
];

/// One stream of each shape and framing: what its answer is called, and its bytes.
fn framings() -> Vec<(Shape, &'static str, Vec<u8>)> {
    let chunk = |event: &str| {
        let payload = format!(r#"{{"bytes":"{}"}}"#, aws_smithy_types::base64::encode(event));
        frame("event", "chunk", payload.as_bytes())
    };
    let invoke = [
        chunk(r#"{"type":"message_start","message":{"model":"m","usage":{"input_tokens":10}}}"#),
        chunk(r#"{"type":"content_block_delta","delta":{"type":"text_delta","text":"hello"}}"#),
        chunk(
            r#"{"type":"message_stop","amazon-bedrock-invocationMetrics":{"inputTokenCount":10,"outputTokenCount":20,"cacheReadInputTokenCount":5}}"#,
        ),
    ];
    let converse = [
        frame("event", "contentBlockDelta", br#"{"delta":{"text":"hello"}}"#),
        frame(
            "event",
            "metadata",
            br#"{"usage":{"inputTokens":10,"outputTokens":20,"cacheReadInputTokens":5}}"#,
        ),
    ];
    let array = GEMINI.replace("data: {", ",{").replacen(',', "[", 1) + "]";
    let mut all: Vec<_> =
        STREAMS.iter().map(|(shape, text)| (*shape, "text/event-stream", text.as_bytes().to_vec())).collect();
    all.push((Shape::Gemini, "application/json", array.into_bytes()));
    all.push((Shape::Bedrock, "application/vnd.amazon.eventstream", invoke.concat()));
    all.push((Shape::Bedrock, "application/vnd.amazon.eventstream", converse.concat()));
    all
}

/// An exchange whose answer is one of these.
fn streaming(shape: Shape, kind: &str, encoding: &str) -> Exchange {
    let mut exchange = Exchange::new(shape, facts(true));
    exchange.head(200, kind, encoding);
    exchange
}
/// What each of the streams has used.
const USED: Tokens = Tokens {
    input: 10,
    cache_write: 0,
    cache_read: 5,
    output: 20,
    reasoning: 0,
    cache_write_5m: 0,
    cache_write_1h: 0,
    tool_prompt: 0,
};

#[test]
fn other_statuses_charge_what_they_report() {
    for status in [302, 400, 401, 429, 500, 529] {
        for ending in [Ending::Completed, Ending::UpstreamBroke] {
            let mut exchange = Exchange::new(Shape::AnthropicMessages, facts(true));
            exchange.head(status, "application/json", "");
            exchange.feed(br#"{"type":"error","error":{"type":"overloaded_error","message":"no"}}"#);
            let figures = exchange.end(ending);
            assert_eq!(figures.tokens, Tokens::default());
            assert_eq!((figures.provenance, figures.ending), (Provenance::Reported, Ending::UpstreamError));
            assert_eq!(figures.alarm, None);
        }
    }
    let mut exchange = Exchange::new(Shape::OpenaiChat, facts(false));
    exchange.head(500, "application/json", "");
    exchange.feed(br#"{"error":{},"usage":{"prompt_tokens":9,"completion_tokens":1}}"#);
    assert_eq!(exchange.end(Ending::Completed).tokens, tokens(9, 0, 0, 1, 0));
}

#[test]
fn an_unsent_request_costs_nothing() {
    let figures = Exchange::new(Shape::OpenaiChat, facts(false)).end(Ending::Unsent);
    assert_eq!((figures.tokens, figures.provenance), (Tokens::default(), Provenance::Reported));
    assert_eq!(figures.ending, Ending::Unsent);
}

#[test]
fn without_evidence_of_output_the_reservation_is_charged() {
    for ending in [Ending::ClientGone, Ending::UpstreamBroke, Ending::Cut] {
        let silent = Exchange::new(Shape::AnthropicMessages, facts(false)).end(ending);
        assert_estimated(&silent, ending, ESTIMATE, ALLOWANCE);
        let mut exchange = started(Shape::AnthropicMessages, "application/json", "");
        exchange.feed(br#"{"id":"msg_1","content":[{"type":"text","text":"half an ans"#);
        assert_estimated(&exchange.end(ending), ending, ESTIMATE, ALLOWANCE);
        let stream = Exchange::new(Shape::AnthropicMessages, facts(true)).end(ending);
        assert_estimated(&stream, ending, ESTIMATE, 0);
    }
}

/// What was generated behind a silence of this length, as it is charged.
fn hidden(seconds: u64) -> u64 {
    let mut exchange = Exchange::new(Shape::OpenaiChat, facts(true));
    exchange.at(Duration::from_secs(seconds));
    exchange.end(Ending::ClientGone).tokens.output
}

#[test]
fn who_leaves_before_the_figures_pays_for_what_was_not_shown() {
    assert!((1_000..10_000).contains(&hidden(20)), "{}", hidden(20));
    for (shape, text) in STREAMS {
        let ending = [Ending::ClientGone, Ending::Cut, Ending::UpstreamBroke];
        for (ending, limit) in ending.into_iter().flat_map(|ending| [(ending, None), (ending, Some(700))]) {
            let mut exchange = Exchange::new(shape, Facts { output_limit: limit, ..facts(true) });
            exchange.head(200, "text/event-stream", "");
            let last = [
                "event: message_delta",
                "data: {\"choices\":[],",
                "data: {\"type\":\"response.completed",
                "data: {\"candidates\":[{\"finish",
            ];
            let until = last.iter().find_map(|last| text.find(last)).unwrap();
            exchange.at(Duration::from_secs(20));
            exchange.feed(&text.as_bytes()[..until]);
            assert!(exchange.tokens().output < 10, "no agent is cut for a guess");
            exchange.at(Duration::from_secs(21));
            let figures = exchange.end(ending);
            assert_ne!(figures.provenance, Provenance::Reported);
            // Anthropic's first event tells the output so far
            let is_told = shape == Shape::AnthropicMessages;
            let expected = if is_told {
                0..10
            } else {
                limit.unwrap_or(hidden(20))..limit.unwrap_or(hidden(20) + 10) + 1
            };
            assert!(expected.contains(&figures.tokens.output), "{shape:?} {limit:?}: {figures:?}");
        }
        // whose figures came pays what they say, however long it took
        let mut exchange = started(shape, "text/event-stream", "");
        exchange.at(Duration::from_secs(500));
        exchange.feed(text.as_bytes());
        exchange.at(Duration::from_secs(900));
        assert_reported(&exchange.end(Ending::Completed), USED);
    }
}

#[test]
fn a_document_nobody_waited_for_costs_what_its_time_was_worth() {
    let output = |limit| {
        let facts = Facts { output_limit: limit, ..facts(false) };
        let mut exchange = Exchange::new(Shape::OpenaiResponses, facts);
        exchange.at(Duration::from_secs(20));
        exchange.end(Ending::ClientGone).tokens.output
    };
    assert_eq!((output(None), output(Some(600)), output(Some(100))), (hidden(20), 600, ALLOWANCE));
}

#[test]
fn what_was_read_to_its_end_hid_nothing() {
    let spoken = "data: {\"choices\":[{\"delta\":{\"content\":\"hello\"},\"finish_reason\":\"stop\"}]}\n\n";
    let document = r#"{"choices":[{"message":{"content":"hello"}}]}"#;
    let output = |kind: &str, parts: [&str; 2], seconds, ending| {
        let mut exchange = started(Shape::OpenaiChat, kind, "");
        for part in parts {
            exchange.at(Duration::from_secs(seconds));
            exchange.feed(part.as_bytes());
        }
        let figures = exchange.end(ending);
        assert_eq!((figures.provenance, figures.ending), (Provenance::Estimated, ending));
        figures.tokens.output
    };
    for (kind, parts) in
        [("text/event-stream", [spoken, "data: [DONE]\n\n"]), ("application/json", [document, ""])]
    {
        let at_once = output(kind, parts, 0, Ending::Completed);
        assert_eq!(output(kind, parts, 20, Ending::Completed), at_once, "{kind}");
        assert!(output(kind, parts, 20, Ending::ClientGone) >= hidden(20), "{kind}");
    }
    // what could not be read may have hidden anything
    let mut unreadable = started(Shape::OpenaiChat, "text/event-stream", "secret");
    unreadable.at(Duration::from_secs(20));
    assert_eq!(unreadable.end(Ending::Completed).tokens.output, hidden(20));
}

#[test]
fn a_provider_that_never_answers_has_generated_nothing() {
    for streamed in [true, false] {
        let mut exchange = Exchange::new(Shape::OpenaiChat, facts(streamed));
        exchange.at(Duration::from_secs(600));
        let expected = if streamed { 0 } else { ALLOWANCE };
        assert_estimated(&exchange.end(Ending::UpstreamBroke), Ending::UpstreamBroke, ESTIMATE, expected);
    }
}

#[test]
fn a_stream_that_cannot_be_decoded_is_not_silent() {
    let output = |step_seconds| {
        let mut exchange = started(Shape::OpenaiChat, "text/event-stream", "secret");
        for second in 1..=60_u64 {
            exchange.at(Duration::from_secs(second * step_seconds));
            exchange.feed(b"0123456789");
        }
        exchange.end(Ending::ClientGone).tokens.output
    };
    assert_eq!(output(1), output(0));
}

#[test]
fn embeddings_without_usage_are_charged_for_their_input_alone() {
    let body = format!(r#"{{"embedding":{{"values":[{}0.5]}}}}"#, "-0.0123456789,".repeat(3_000));
    for shape in [Shape::Gemini, Shape::OpenaiChat] {
        let mut exchange = Exchange::new(shape, facts(false).without_output());
        exchange.head(200, "application/json", "");
        exchange.feed(body.as_bytes());
        let figures = exchange.end(Ending::Completed);
        assert_estimated(&figures, Ending::Completed, ESTIMATE, 0);
        assert!(figures.alarm.unwrap().contains("without usage"));
    }
}

#[test]
fn a_whole_document_counts_though_its_reader_left() {
    let mut exchange = started(Shape::OpenaiChat, "application/json", "");
    exchange.feed(br#"{"usage":{"prompt_tokens":9,"completion_tokens":1}}"#);
    let figures = exchange.end(Ending::ClientGone);
    assert_eq!((figures.provenance, figures.ending), (Provenance::Reported, Ending::ClientGone));
    assert_eq!(figures.tokens, tokens(9, 0, 0, 1, 0));
}

#[test]
fn a_success_without_usage_is_never_zero() {
    let zeros = r#"{"usage":{"input_tokens":0,"output_tokens":0,"prompt_tokens":0,"completion_tokens":0}}"#;
    for (shape, _) in STREAMS {
        for body in
            ["{}", r#"{"usage":null}"#, r#"{"usage":{}}"#, r#"{"usage":7}"#, "", "<html>", "[]", "{", zeros]
        {
            let figures = json(shape, body);
            assert_estimated(&figures, Ending::Completed, ESTIMATE, ALLOWANCE);
            assert!(figures.alarm.unwrap().contains("without usage"), "{shape:?} {body}");
        }
    }
}

#[test]
fn unlisted_endpoints_are_charged_when_they_report() {
    for (_, text) in STREAMS {
        let mut exchange = Exchange::new(Shape::Any, Facts::default());
        exchange.head(200, "text/event-stream; charset=utf-8", "");
        assert!(exchange.feed(text.as_bytes()).hold);
        assert_reported(&exchange.end(Ending::Completed), USED);
    }
    for usage in [
        r#"{"input_tokens":10,"cache_read_input_tokens":5,"output_tokens":20}"#,
        r#"{"prompt_tokens":15,"prompt_tokens_details":{"cached_tokens":5},"completion_tokens":20}"#,
        r#"{"input_tokens":15,"input_tokens_details":{"cached_tokens":5},"output_tokens":20,"total_tokens":35}"#,
    ] {
        assert_reported(&json(Shape::Any, &format!(r#"{{"usage":{usage}}}"#)), USED);
    }
}

#[test]
fn usage_in_events_of_an_unknown_kind_is_charged() {
    let usage = r#""usage":{"input_tokens":15,"input_tokens_details":{"cached_tokens":5},"output_tokens":20,"total_tokens":35}"#;
    let partial = framed(r#"{"type":"image_generation.partial_image","b64_json":"AAAA"}"#);
    let last = framed(&format!(r#"{{"type":"image_generation.completed","b64_json":"AAAA",{usage}}}"#));
    let mut exchange = started(Shape::Any, "text/event-stream", "");
    let holds = [&partial, &last, &partial, &last].map(|event| {
        let step = exchange.feed(event.as_bytes());
        (step.hold, step.terminal)
    });
    assert_eq!(holds, [(false, false), (true, false), (false, false), (true, false)]);
    assert_reported(&exchange.end(Ending::Completed), USED);
    let picture = "A".repeat(crate::events::MAX_EVENT_BYTES);
    let long = framed(&format!(r#"{{"type":"image_generation.completed","b64_json":"{picture}",{usage}}}"#));
    let mut exchange = started(Shape::Any, "text/event-stream", "");
    assert!(exchange.feed(long.as_bytes()).hold);
    assert_reported(&exchange.end(Ending::Completed), USED);
    let mut left = started(Shape::Any, "text/event-stream", "");
    left.feed(last.as_bytes());
    let figures = left.end(Ending::ClientGone);
    assert_eq!((figures.tokens, figures.provenance), (USED, Provenance::Partial));
    let mut other = started(Shape::Any, "text/event-stream", "");
    other.feed(
        framed(r#"{"type":"transcript.text.done","usage":{"type":"duration","seconds":9}}"#).as_bytes(),
    );
    assert_eq!(other.end(Ending::Completed).tokens, Tokens::default());
}

#[test]
fn unlisted_endpoints_without_usage_are_left_alone() {
    for (content_type, body) in [
        ("application/json", "{\"data\":[]}"),
        ("application/json", "{\"usage\":null}"),
        ("application/json", "not json"),
        ("text/html", "<html>"),
        ("", "\x00\x01"),
        ("text/event-stream", "data: hello\n\ndata: {\"type\":\"tick\"}\n\n"),
    ] {
        for ending in [Ending::Completed, Ending::ClientGone] {
            let mut exchange = Exchange::new(Shape::Any, Facts { input_estimate: 50, ..Facts::default() });
            exchange.head(200, content_type, "");
            assert_eq!(exchange.feed(body.as_bytes()), Step::default());
            let figures = exchange.end(ending);
            assert_eq!(
                (figures.tokens, figures.ending, figures.alarm),
                (Tokens::default(), ending, None),
                "{body}"
            );
        }
    }
}

#[test]
fn an_unlisted_endpoint_that_generated_is_never_free() {
    let facts = || Facts::of_unlisted(Some(200));
    for (shape_tells, text) in [
        (
            r#"{"type":"message_start","message":{"model":"m"}}"#,
            r#"{"type":"content_block_delta","delta":{"type":"text_delta","text":"thirty bytes of text, at least"}}"#,
        ),
        (
            r#"{"type":"response.created","response":{}}"#,
            r#"{"type":"response.output_text.delta","delta":"thirty bytes of text, at least"}"#,
        ),
        (r#"{"choices":[]}"#, r#"{"choices":[{"delta":{"content":"thirty bytes of text, at least"}}]}"#),
    ] {
        for ending in [Ending::Completed, Ending::ClientGone, Ending::Cut] {
            let mut exchange = Exchange::new(Shape::Any, facts());
            exchange.head(200, "text/event-stream", "");
            exchange.feed(framed(shape_tells).as_bytes());
            exchange.feed(framed(text).as_bytes());
            let figures = exchange.end(ending);
            assert_eq!(figures.tokens, tokens(50, 0, 0, 10, 0), "{text}");
            assert_eq!(figures.provenance, Provenance::Estimated);
        }
    }
    let mut exchange = Exchange::new(Shape::Any, facts());
    exchange.head(200, "application/json", "");
    exchange.feed(br#"{"usage":{"requests":3}}"#);
    assert_eq!(exchange.end(Ending::Completed).tokens, Tokens::default(), "usage of something else");
}

#[test]
fn what_cannot_be_decoded_is_estimated_and_said() {
    for encoding in ["secret", "gzip"] {
        let mut exchange = started(Shape::AnthropicMessages, "text/event-stream", encoding);
        assert_eq!(exchange.feed(&[b'x'; 600]), Step::default());
        assert_eq!(exchange.feed(&[b'x'; 600]), Step::default());
        let figures = exchange.end(Ending::Completed);
        let output = if encoding == "secret" { 400 } else { 200 };
        assert_estimated(&figures, Ending::Completed, ESTIMATE, output);
        assert!(figures.alarm.is_some());
        let mut exchange = started(Shape::AnthropicMessages, "application/json", encoding);
        exchange.feed(b"xxxx");
        assert_estimated(&exchange.end(Ending::Completed), Ending::Completed, ESTIMATE, ALLOWANCE);
    }
}

#[test]
fn half_a_document_costs_at_least_its_length() {
    for ending in [Ending::ClientGone, Ending::UpstreamBroke, Ending::Cut, Ending::Completed] {
        let mut exchange = started(Shape::OpenaiChat, "application/json", "");
        exchange.feed(format!(r#"{{"choices":[{{"message":{{"content":"{}"#, "x".repeat(60_000)).as_bytes());
        let figures = exchange.end(ending);
        assert!(figures.tokens.output > 20_000, "{figures:?}");
    }
}

/// A document with `padding` of text before its usage.
fn long_document(padding: usize, usage: &str) -> String {
    let text = r#"a \"usage\":{\"input_tokens\":1} "#.repeat(padding / 32);
    format!(
        r#"{{"model":"m","content":[{{"text":"{text}","input":{{"usage":{{"input_tokens":1,"output_tokens":1}}}}}}]{usage},"metadata":{{}}}}"#
    )
}

#[test]
fn the_usage_of_a_long_document_is_read_from_its_end() {
    const USAGE: &str = r#","usage":{"input_tokens":10,"cache_read_input_tokens":5,"output_tokens":20}"#;
    for encoding in ["", "gzip"] {
        let mut exchange = started(Shape::AnthropicMessages, "application/json", encoding);
        let sent = encode(encoding, long_document(3 * document::MAX_WHOLE_BYTES, USAGE).as_bytes());
        for piece in sent.chunks(4_000) {
            exchange.feed(piece);
        }
        let Body::Document(document) = &exchange.body else { unreachable!() };
        assert!(document.kept().len() < 256 * 1024, "memory stays bounded");
        assert_reported(&exchange.end(Ending::Completed), USED);
    }
}

#[test]
fn too_long_bodies_are_charged_by_their_length_and_said() {
    let text = long_document(2 * document::MAX_WHOLE_BYTES, "");
    let mut exchange = started(Shape::AnthropicMessages, "application/json", "gzip");
    exchange.feed(&encode("gzip", text.as_bytes()));
    let figures = exchange.end(Ending::Completed);
    let output = Text::of_length(text.len() as u64).charged_tokens();
    assert_estimated(&figures, Ending::Completed, ESTIMATE, output);
    assert!(figures.alarm.unwrap().contains("too long"));
}

#[test]
fn an_event_too_long_to_read_may_have_hidden_the_figures() {
    let long = format!("data: {}\n\n", "x".repeat(crate::events::MAX_EVENT_BYTES));
    let mut hidden_last = started(Shape::OpenaiResponses, "text/event-stream", "");
    hidden_last.feed(long.as_bytes());
    let figures = hidden_last.end(Ending::Completed);
    assert_estimated(&figures, Ending::Completed, ESTIMATE, 0);
    assert!(figures.alarm.unwrap().contains("too long"));
    let (start, end) = ANTHROPIC.split_at(ANTHROPIC.rfind("event: message_stop").unwrap());
    let mut hidden_delta = started(Shape::AnthropicMessages, "text/event-stream", "");
    hidden_delta.feed([start, &long, end].concat().as_bytes());
    let figures = hidden_delta.end(Ending::Completed);
    assert_partial(&figures, Ending::Completed, USED);
    let mut figures_follow = started(Shape::OpenaiResponses, "text/event-stream", "");
    figures_follow.feed([&long, RESPONSES, &long].concat().as_bytes());
    let figures = figures_follow.end(Ending::Completed);
    assert_eq!((figures.provenance, figures.tokens), (Provenance::Reported, USED));
}

#[test]
fn what_is_read_of_a_long_answer_does_not_depend_on_how_it_is_cut() {
    // the usage stands where some cuts left it in the end that is kept, and others did not
    let after = "y".repeat(80 * 1024);
    let usage = r#""usage":{"input_tokens":10,"output_tokens":20}"#;
    let long =
        |length| format!(r#"{{"type":"message_delta","x":"{}",{usage},"z":"{after}"}}"#, "x".repeat(length));
    for (kind, answer) in [
        ("application/json", long(document::MAX_WHOLE_BYTES)),
        ("text/event-stream", framed(&long(crate::events::MAX_EVENT_BYTES))),
    ] {
        let figures = |piece_bytes: usize| {
            let mut exchange = started(Shape::AnthropicMessages, kind, "");
            answer.as_bytes().chunks(piece_bytes).for_each(|piece| {
                exchange.feed(piece);
            });
            exchange.end(Ending::Completed)
        };
        let whole = figures(answer.len());
        for piece_bytes in [1_000, 40_000, 70_000, 100_000] {
            assert_eq!(figures(piece_bytes), whole, "{kind} in pieces of {piece_bytes}");
        }
    }
}

#[test]
fn the_figures_of_an_event_too_long_to_keep_are_found_at_its_end() {
    let text = r#"a \"usage\":{} "#.repeat(crate::events::MAX_EVENT_BYTES / 12);
    let usage =
        r#""usage":{"input_tokens":15,"input_tokens_details":{"cached_tokens":5},"output_tokens":20}"#;
    for (kind, terminal) in [("completed", true), ("incomplete", true), ("output_item.done", false)] {
        for shape in [Shape::OpenaiResponses, Shape::Any] {
            let event = format!(
                r#"{{"type":"response.{kind}","response":{{"output":[{{"text":"{text}","x":{{"usage":{{}}}}}}],{usage},"user":null}},"n":1}}"#
            );
            let mut exchange = started(shape, "text/event-stream", "");
            let mut step = Step::default();
            for piece in framed(&event).as_bytes().chunks(30_000) {
                step = exchange.feed(piece);
            }
            assert_eq!((step.hold, step.terminal), (terminal, terminal), "{kind}");
            if terminal {
                assert_reported(&exchange.end(Ending::Completed), USED);
            }
        }
    }
    let bare = format!(r#"{{"type":"response.completed","response":{{"output":["{text}"]}}}}"#);
    let mut exchange = started(Shape::OpenaiResponses, "text/event-stream", "");
    let step = exchange.feed(framed(&bare).as_bytes());
    assert!(step.hold && step.terminal, "held though the figures are not found");
    let figures = exchange.end(Ending::Completed);
    assert_estimated(&figures, Ending::Completed, ESTIMATE, 0);
    assert!(figures.alarm.unwrap().contains("too long"));
    let chat = format!(
        r#"{{"choices":[],"note":"{text}","usage":{{"prompt_tokens":15,"prompt_tokens_details":{{"cached_tokens":5}},"completion_tokens":20}}}}"#
    );
    let mut exchange = started(Shape::OpenaiChat, "text/event-stream", "");
    assert!(exchange.feed(framed(&chat).as_bytes()).hold);
    exchange.feed(b"data: [DONE]\n\n");
    assert_reported(&exchange.end(Ending::Completed), USED);
}

#[test]
fn a_mislabelled_stream_is_read_as_one() {
    let mut exchange = Exchange::new(Shape::OpenaiChat, facts(true));
    exchange.head(200, "", "");
    assert!(exchange.is_stream());
    exchange.feed(CHAT.as_bytes());
    assert_reported(&exchange.end(Ending::Completed), USED);
}

#[test]
fn raw_usage_is_bounded() {
    let huge = format!(r#"{{"input_tokens":1,"output_tokens":2,"note":"{}"}}"#, "x".repeat(40_000));
    assert_eq!(json(Shape::AnthropicMessages, &format!(r#"{{"usage":{huge}}}"#)).raw, None);
    let long = format!(r#"{{"input_tokens":1,"output_tokens":2,"note":"{}"}}"#, "x".repeat(32_000));
    let start = format!(r#"{{"type":"message_start","message":{{"usage":{long}}}}}"#);
    let delta = format!(r#"{{"type":"message_delta","usage":{}}}"#, long.replace('x', "y"));
    let raw = stream(Shape::AnthropicMessages, &[&start, &delta], Ending::Cut).figures.raw.unwrap();
    assert!(raw.len() > 64_000 && raw.len() <= crate::protocol::MAX_RAW_BYTES);
    assert!(raw.starts_with(r#"[{"input_tokens":1,"output_tokens":2,"note":"yy"#));
}

#[test]
fn nothing_is_held_before_the_last_byte_of_the_event() {
    for (shape, text) in STREAMS {
        let mut exchange = started(shape, "text/event-stream", "");
        let held_at = text.bytes().position(|byte| exchange.feed(&[byte]).hold).unwrap();
        let seen = &text[..=held_at];
        assert!(seen.ends_with(['\n', '\r']), "{shape:?}");
        let ends = ["\"stop_reason\"", "\"usage\":{", "\"finishReason\""];
        assert!(ends.iter().any(|end| seen.contains(end)), "{shape:?}");
        assert!(!seen.contains("message_stop") && !seen.contains("[DONE]"), "{shape:?}");
    }
}

/// Cumulative statements of each shape in their order, and the event that ends the stream.
fn statements() -> Vec<(Shape, Vec<String>, &'static str)> {
    let anthropic = |output: u64, input: &str| {
        format!(r#"{{"type":"message_delta","delta":{{}},"usage":{{{input}"output_tokens":{output}}}}}"#)
    };
    let start = r#"{"type":"message_start","message":{"usage":{"input_tokens":3,"cache_read_input_tokens":5,"output_tokens":1}}}"#;
    let chat = |output: u64| {
        format!(
            r#"{{"choices":[{{"finish_reason":"stop"}}],"usage":{{"prompt_tokens":15,"prompt_tokens_details":{{"cached_tokens":5}},"completion_tokens":{output}}}}}"#
        )
    };
    let gemini = |output: u64| {
        format!(
            r#"{{"candidates":[{{"finishReason":"STOP"}}],"usageMetadata":{{"promptTokenCount":15,"cachedContentTokenCount":5,"candidatesTokenCount":{output}}}}}"#
        )
    };
    let deltas =
        [anthropic(4, ""), anthropic(9, r#""input_tokens":7,"#), anthropic(20, r#""input_tokens":10,"#)];
    vec![
        (Shape::AnthropicMessages, [&[start.to_owned()][..], &deltas].concat(), r#"{"type":"message_stop"}"#),
        (Shape::OpenaiChat, [0, 4, 9, 20].map(chat).to_vec(), "[DONE]"),
        (Shape::Gemini, [0, 4, 9, 20].map(gemini).to_vec(), r#"{"candidates":[{"finishReason":"STOP"}]}"#),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10_000))]
    #[test]
    fn late_repeated_and_shuffled_usage_settles_once_at_the_highest(
        (shape, events, end) in prop::sample::select(statements()).prop_flat_map(|(shape, events, end)| {
            let repeated = proptest::collection::vec(prop::sample::select(events.clone()), 0..4);
            let shuffled = repeated.prop_flat_map(move |more| Just([&events[..], &more].concat()).prop_shuffle());
            (Just(shape), shuffled, Just(end))
        }),
    ) {
        let events: Vec<&str> = events.iter().map(String::as_str).chain([end]).collect();
        let streamed = stream(shape, &events, Ending::Completed);
        prop_assert_eq!(streamed.figures.tokens, USED);
        prop_assert_eq!(streamed.figures.provenance, Provenance::Reported);
        prop_assert!(streamed.terminal_at.len() <= 1);
    }
}

proptest! {
    #[test]
    fn any_cut_through_any_encoding_gives_the_same(
        (shape, kind, stream) in prop::sample::select(framings()),
        encoding in prop::sample::select(vec!["", "gzip", "deflate", "br", "zstd", "gzip, br"]),
        cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..30),
    ) {
        let sent = encode(encoding, &stream);
        let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(sent.len() + 1)).collect();
        at.extend([0, sent.len()]);
        at.sort_unstable();
        let mut exchange = streaming(shape, kind, encoding);
        let (mut terminals, mut held) = (0, false);
        for pair in at.windows(2) {
            let step = exchange.feed(&sent[pair[0]..pair[1]]);
            prop_assert!(step.hold || !held);
            held = step.hold;
            terminals += u32::from(step.terminal);
        }
        prop_assert!(held);
        prop_assert_eq!(terminals, u32::from(shape != Shape::Gemini), "nothing ends a stream of Gemini's");
        let figures = exchange.end(Ending::Completed);
        prop_assert_eq!(figures.tokens, USED);
        prop_assert_eq!(figures.provenance, Provenance::Reported);
        prop_assert!(figures.model.as_deref() == Some("m") || stream == framings().pop().unwrap().2);
        prop_assert_eq!(figures.alarm, None);
    }

    #[test]
    fn a_stream_broken_anywhere_never_costs_more_than_whole(
        (shape, kind, stream) in prop::sample::select(framings()),
        at in any::<prop::sample::Index>(),
    ) {
        let mut exchange = streaming(shape, kind, "");
        exchange.feed(&stream[..at.index(stream.len())]);
        let running = exchange.tokens();
        prop_assert!(running.total() <= USED.total());
        let figures = exchange.end(Ending::Cut);
        prop_assert!(figures.tokens.output >= running.output && figures.tokens.output <= USED.output);
        prop_assert!(figures.tokens.input >= 10, "input is never nothing");
    }

    #[test]
    fn garbage_never_panics(
        (_, _, stream) in prop::sample::select(framings()),
        shape in prop::sample::select(vec![
            Shape::AnthropicMessages, Shape::OpenaiChat, Shape::OpenaiResponses, Shape::Gemini, Shape::Bedrock,
            Shape::Any]),
        content_type in prop::sample::select(vec![
            "text/event-stream", "application/json", "application/vnd.amazon.eventstream", "x"]),
        edits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..12),
        tail in proptest::collection::vec(any::<u8>(), 0..200),
        size in 1_usize..300,
    ) {
        let mut bytes = stream;
        for (at, byte) in edits {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        bytes.extend(tail);
        let mut exchange = streaming(shape, content_type, "");
        for chunk in bytes.chunks(size) {
            exchange.feed(chunk);
        }
        let figures = exchange.end(Ending::Completed);
        prop_assert!(shape == Shape::Any || figures.tokens.total() > 0, "never silently zero");
    }
}
