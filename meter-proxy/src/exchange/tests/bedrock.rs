//! Bedrock: `invoke` and Converse, JSON and the binary event stream.
use aws_smithy_types::base64;

use super::*;
use crate::event_stream::tests::frame;

const SHAPE: Shape = Shape::Bedrock;
const KIND: &str = "application/vnd.amazon.eventstream";
const METRICS: &str = r#""amazon-bedrock-invocationMetrics":{"inputTokenCount":12,"outputTokenCount":250,"invocationLatency":900,"firstByteLatency":300,"cacheReadInputTokenCount":4000,"cacheWriteInputTokenCount":300}"#;
const USAGE: &str = r#"{"inputTokens":12,"outputTokens":250,"totalTokens":4562,"cacheReadInputTokens":4000,"cacheWriteInputTokens":300,"cacheDetails":[{"inputTokens":200,"ttl":"1h"},{"inputTokens":100,"ttl":"5m"}]}"#;

/// An event of `invoke`: a model's own event in base64.
fn chunk(event: &str) -> Vec<u8> {
    frame("event", "chunk", format!(r#"{{"bytes":"{}","p":"abc"}}"#, base64::encode(event)).as_bytes())
}

fn streamed(frames: &[Vec<u8>], ending: Ending) -> (Figures, Vec<Step>) {
    let mut exchange = Exchange::new(SHAPE, facts(true));
    exchange.head(200, KIND, "");
    assert!(exchange.is_stream());
    let steps = frames.iter().map(|frame| exchange.feed(frame)).collect();
    (exchange.end(ending), steps)
}

#[test]
fn a_claude_stream_is_charged_by_its_metrics() {
    let frames = [
        chunk(
            r#"{"type":"message_start","message":{"model":"claude-x","usage":{"input_tokens":12,"cache_read_input_tokens":4000,"output_tokens":1}}}"#,
        ),
        chunk(r#"{"type":"content_block_delta","delta":{"type":"text_delta","text":"Hello"}}"#),
        chunk(r#"{"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":250}}"#),
        chunk(&format!(r#"{{"type":"message_stop",{METRICS}}}"#)),
    ];
    let (figures, steps) = streamed(&frames, Ending::Completed);
    assert_reported(&figures, tokens(12, 300, 4_000, 250, 0));
    assert_eq!(figures.model.as_deref(), Some("claude-x"));
    let held: Vec<bool> = steps.iter().map(|step| step.hold).collect();
    assert_eq!(held, [false, false, true, true]);
    assert!(steps[3].terminal && !steps[2].terminal);
    let (broken, _) = streamed(&frames[..2], Ending::Completed);
    assert_partial(&broken, Ending::UpstreamBroke, tokens(12, 0, 4_000, 3, 0));
}

#[test]
fn other_models_are_charged_by_their_metrics_and_counted_by_their_text() {
    for text in [
        r#"{"generation":"twelve bytes","stop_reason":null}"#,
        r#"{"outputText":"twelve bytes","index":0}"#,
        r#"{"outputs":[{"text":"twelve bytes","stop_reason":null}]}"#,
        r#"{"contentBlockDelta":{"delta":{"text":"twelve bytes"},"contentBlockIndex":0}}"#,
        r#"{"choices":[{"delta":{"content":"twelve bytes"},"finish_reason":null}]}"#,
    ] {
        let mut frames = vec![chunk(text); 5];
        let (broken, _) = streamed(&frames, Ending::Cut);
        assert_estimated(&broken, Ending::Cut, ESTIMATE, 20);
        frames.push(chunk(&format!("{{{METRICS}}}")));
        let (figures, steps) = streamed(&frames, Ending::Completed);
        assert_reported(&figures, tokens(12, 300, 4_000, 250, 0));
        assert!(steps[5].terminal && steps[5].hold && !steps[4].hold, "{text}");
    }
}

#[test]
fn converse_streams_end_with_their_usage() {
    let frames = [
        frame("event", "messageStart", br#"{"role":"assistant"}"#),
        frame("event", "contentBlockDelta", br#"{"delta":{"text":"twelve bytes"},"contentBlockIndex":0}"#),
        frame("event", "contentBlockDelta", br#"{"delta":{"toolUse":{"input":"twelve bytes"}}}"#),
        frame("event", "contentBlockDelta", br#"{"delta":{"reasoningContent":{"text":"twelve bytes"}}}"#),
        frame("event", "contentBlockDelta", br#"{"delta":{"reasoningContent":{"signature":"AAAAAAAA"}}}"#),
        frame("event", "messageStop", br#"{"stopReason":"end_turn"}"#),
        frame("event", "metadata", format!(r#"{{"usage":{USAGE},"metrics":{{"latencyMs":9}}}}"#).as_bytes()),
    ];
    let (figures, steps) = streamed(&frames, Ending::Completed);
    let expected = Tokens { cache_write_5m: 100, cache_write_1h: 200, ..tokens(12, 300, 4_000, 250, 0) };
    assert_reported(&figures, expected);
    assert_eq!(figures.raw.as_deref(), Some(USAGE));
    assert!(steps[5].hold && !steps[4].hold && steps[6].terminal && !steps[5].terminal);
    let (silent, _) = streamed(&frames[..6], Ending::Completed);
    assert_estimated(&silent, Ending::Completed, ESTIMATE, 12);
    assert_eq!(silent.alarm.as_deref(), Some("a successful answer without usage"));
    let (broken, _) = streamed(&frames[..5], Ending::Completed);
    assert_estimated(&broken, Ending::UpstreamBroke, ESTIMATE, 12);
}

#[test]
fn an_exception_breaks_off_and_what_is_no_event_stream_is_estimated() {
    let text = chunk(r#"{"generation":"twelve bytes"}"#);
    let exception = frame("exception", "modelStreamErrorException", br#"{"message":"died"}"#);
    let (figures, steps) = streamed(&[text.clone(), exception], Ending::Completed);
    assert_estimated(&figures, Ending::UpstreamBroke, ESTIMATE, 4);
    assert!(steps[1].terminal);
    let mut damaged = text.clone();
    damaged[20] ^= 1;
    let (figures, _) = streamed(&[text, damaged.clone(), damaged.clone()], Ending::Completed);
    assert_estimated(&figures, Ending::Completed, ESTIMATE, (12 + damaged.len() as u64).div_ceil(3));
    assert!(figures.alarm.unwrap().contains("event stream is corrupt"));
}

#[test]
fn json_is_charged_by_its_head_or_its_body() {
    let head = |name: &'static str| match name {
        "x-amzn-bedrock-input-token-count" => Some("12"),
        "x-amzn-bedrock-output-token-count" => Some("250"),
        "x-amzn-bedrock-cache-read-input-token-count" => Some("4000"),
        "x-amzn-bedrock-cache-write-input-token-count" => Some("300"),
        _ => None,
    };
    let nothing = |_: &'static str| None;
    let bodies = [
        r#"{"generation":"Hello","prompt_token_count":12}"#,
        r#"{"usage":{"input_tokens":12,"cache_creation_input_tokens":300,"cache_read_input_tokens":4000,"output_tokens":250}}"#,
        r#"{"usage":{"inputTokens":12,"outputTokens":250,"cacheReadInputTokens":4000,"cacheWriteInputTokens":300}}"#,
        r#"{"usage":{"prompt_tokens":4312,"completion_tokens":250,"prompt_tokens_details":{"cached_tokens":4000,"cache_write_tokens":300}}}"#,
    ];
    for (index, body) in bodies.into_iter().enumerate() {
        for stated in [true, false] {
            let mut exchange = started(SHAPE, "application/json", "");
            exchange.counts_in_head(if stated { &head } else { &nothing });
            exchange.feed(body.as_bytes());
            let figures = exchange.end(Ending::Completed);
            if stated || index > 0 {
                assert_eq!(figures.tokens, tokens(12, 300, 4_000, 250, 0), "{body}");
                assert_eq!(figures.provenance, Provenance::Reported, "{body}");
                assert!(figures.raw.is_some(), "{body}");
            } else {
                assert_estimated(&figures, Ending::Completed, ESTIMATE, ALLOWANCE);
            }
        }
    }
}
