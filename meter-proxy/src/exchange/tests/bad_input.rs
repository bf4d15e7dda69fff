//! What no provider should send: metered on the safe side, never a panic, never more memory than is bounded.
use aws_smithy_types::base64;

use super::*;
use crate::decode::tests::encode;
use crate::event_stream::tests::frame;

const EVENTS: &str = "text/event-stream";
const FRAMES: &str = "application/vnd.amazon.eventstream";

/// What should be counts, and is none.
const STRANGE: [&str; 12] = [
    "-5",
    "-0",
    "1.5",
    "1e3",
    "1e999",
    "18446744073709551616",
    "1000000000001",
    "\"300\"",
    "[300]",
    "{}",
    "true",
    "\"\\u0000\"",
];

/// The last words of a stream of each shape, and its only word on output.
fn last_words(shape: Shape, output: &str) -> Vec<u8> {
    let event = |data: String| format!("data: {data}\n\n").into_bytes();
    match shape {
        Shape::AnthropicMessages => [
            event(r#"{"type":"message_start","message":{"usage":{"input_tokens":10}}}"#.to_owned()),
            event(format!(r#"{{"type":"message_delta","delta":{{"stop_reason":"end_turn"}},"usage":{{"output_tokens":{output}}}}}"#)),
            event(r#"{"type":"message_stop"}"#.to_owned()),
        ]
        .concat(),
        Shape::OpenaiChat => [
            event(r#"{"choices":[{"finish_reason":"stop"}]}"#.to_owned()),
            event(format!(r#"{{"choices":[],"usage":{{"prompt_tokens":10,"completion_tokens":{output}}}}}"#)),
            event("[DONE]".to_owned()),
        ]
        .concat(),
        Shape::OpenaiResponses => event(format!(
            r#"{{"type":"response.completed","response":{{"usage":{{"input_tokens":10,"output_tokens":{output}}}}}}}"#
        )),
        Shape::Gemini => event(format!(
            r#"{{"candidates":[{{"finishReason":"STOP"}}],"usageMetadata":{{"promptTokenCount":10,"candidatesTokenCount":{output}}}}}"#
        )),
        Shape::Bedrock | Shape::Any => [
            frame("event", "messageStop", b"{}"),
            frame("event", "metadata", format!(r#"{{"usage":{{"inputTokens":10,"outputTokens":{output}}}}}"#).as_bytes()),
        ]
        .concat(),
    }
}

const SHAPES: [Shape; 5] =
    [Shape::AnthropicMessages, Shape::OpenaiChat, Shape::OpenaiResponses, Shape::Gemini, Shape::Bedrock];

fn kind(shape: Shape) -> &'static str {
    if shape == Shape::Bedrock { FRAMES } else { EVENTS }
}

/// A whole stream of this shape, through this encoding.
fn ended(shape: Shape, kind: &str, encoding: &str, body: &[u8]) -> Figures {
    let mut exchange = Exchange::new(shape, facts(true));
    exchange.head(200, kind, encoding);
    for piece in body.chunks(97) {
        exchange.feed(piece);
    }
    exchange.end(Ending::Completed)
}

#[test]
fn strange_counts_are_never_taken_for_the_last_word() {
    for shape in SHAPES {
        assert_reported(&ended(shape, kind(shape), "", &last_words(shape, "7")), tokens(10, 0, 0, 7, 0));
        for strange in STRANGE {
            let figures = ended(shape, kind(shape), "", &last_words(shape, strange));
            assert_ne!(figures.provenance, Provenance::Reported, "{shape:?} {strange}");
            assert_eq!(figures.tokens.input, 10, "{shape:?} {strange}");
            assert!(figures.alarm.unwrap().contains("is not a count"), "{shape:?} {strange}");
        }
    }
}

#[test]
fn the_largest_counts_do_not_overflow() {
    let most = "1000000000000";
    for shape in SHAPES {
        let figures = ended(shape, kind(shape), "", &last_words(shape, most));
        assert_eq!(figures.tokens.output, 1_000_000_000_000, "{shape:?}");
    }
    let iteration = format!(r#"{{"type":"compaction","input_tokens":{most},"output_tokens":{most}}}"#);
    let many = vec![iteration; 1_000].join(",");
    let body =
        format!(r#"{{"usage":{{"input_tokens":{most},"output_tokens":{most},"iterations":[{many}]}}}}"#);
    let tokens = json(Shape::AnthropicMessages, &body).tokens;
    assert_eq!([tokens.input, tokens.output], [1_000_000_000_000; 2], "sums are bounded too");
}

#[test]
fn what_cannot_be_read_is_estimated_and_said() {
    let half = |shape| {
        let words = last_words(shape, "7");
        words[..words.len() / 2].to_vec()
    };
    for shape in SHAPES {
        let words = last_words(shape, "7");
        let no_utf8 = [&b"data: {\"type\":\"\xff\xfe\"}\n\n"[..], &[0xc0; 40]].concat();
        let table: [(&str, &str, Vec<u8>); 9] = [
            ("half of it", "", half(shape)),
            ("nothing", "", Vec::new()),
            ("NULs", "", vec![0; 5_000]),
            ("no UTF-8", "", no_utf8),
            ("not encoded", "gzip", words.clone()),
            ("encoded by something unknown", "secret", words.clone()),
            ("cut in its encoding", "gzip", encode("gzip", &words)[..20].to_vec()),
            ("encoded otherwise", "br", encode("zstd", &words)),
            ("encoded and not said", "", encode("gzip", &words)),
        ];
        for (what, encoding, body) in table {
            let figures = ended(shape, kind(shape), encoding, &body);
            assert_ne!(figures.provenance, Provenance::Reported, "{shape:?}: {what}");
            assert!(figures.tokens.input > 0, "{shape:?}: {what}: never nothing: {figures:?}");
            let is_said = figures.alarm.is_some() || figures.ending == Ending::UpstreamBroke;
            assert!(is_said, "{shape:?}: {what}: {figures:?}");
        }
    }
}

#[test]
fn a_wrong_content_type_hides_no_figures_silently() {
    for shape in SHAPES {
        let words = last_words(shape, "7");
        for wrong in ["", "text/plain", "application/json", EVENTS, FRAMES, "application/octet-stream\0", "é"]
        {
            let figures = ended(shape, wrong, "", &words);
            let is_read =
                figures.provenance == Provenance::Reported && figures.tokens == tokens(10, 0, 0, 7, 0);
            let is_said = figures.alarm.is_some() || figures.ending == Ending::UpstreamBroke;
            assert!(is_read || is_said && figures.tokens.total() > 0, "{shape:?} as {wrong:?}: {figures:?}");
        }
    }
}

#[test]
fn nested_and_repeated_json_costs_only_itself() {
    let deep = format!("{}1{}", "[".repeat(200_000), "]".repeat(200_000));
    for shape in SHAPES {
        for strange in [
            format!(r#"{{"type":{deep},"usage":{deep}}}"#),
            r#"{"usage":{},"usage":{}}"#.to_owned(),
            r#"{"choices":7,"candidates":{},"usage":[],"usageMetadata":"x","delta":5,"response":[],"message":1}"#
                .to_owned(),
        ] {
            let body = match shape {
                Shape::Bedrock => {
                    let payload = format!(r#"{{"bytes":"{}"}}"#, base64::encode(&strange));
                    [frame("event", "chunk", payload.as_bytes()), last_words(shape, "7")].concat()
                }
                _ => [format!("data: {strange}\n\n").as_bytes(), &last_words(shape, "7")].concat(),
            };
            let figures = ended(shape, kind(shape), "", &body);
            assert_eq!(figures.tokens, tokens(10, 0, 0, 7, 0), "{shape:?} {figures:?}");
        }
    }
}

#[test]
fn half_a_frame_is_no_event_and_a_damaged_one_ends_the_reading() {
    let words = last_words(Shape::Bedrock, "7");
    for cut in 0..words.len() {
        let figures = ended(Shape::Bedrock, FRAMES, "", &words[..cut]);
        assert_ne!(figures.provenance, Provenance::Reported, "{cut} bytes of {}", words.len());
    }
    for damaged in 0..words.len() {
        let mut bytes = words.clone();
        bytes[damaged] ^= 0x40;
        let figures = ended(Shape::Bedrock, FRAMES, "", &bytes);
        assert_ne!(figures.provenance, Provenance::Reported, "byte {damaged}");
    }
}
