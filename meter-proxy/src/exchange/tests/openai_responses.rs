//! OpenAI Responses.
use super::*;

const SHAPE: Shape = Shape::OpenaiResponses;

const CREATED: &str = r#"{"type":"response.created","sequence_number":0,"response":{"id":"resp_1","object":"response","status":"in_progress","model":"gpt-x-codex","output":[],"usage":null}}"#;
/// Sixty bytes of text: twelve tokens by the running count.
const TEXT: &str = r#"{"type":"response.output_text.delta","sequence_number":4,"item_id":"msg_1","output_index":0,"delta":"Sixty bytes of text: to the running count these are twelve.\n"}"#;
const TEXT_DONE: &str = r#"{"type":"response.output_text.done","sequence_number":9,"text":"Sixty bytes of text: to the running count these are twelve.\n"}"#;
const USAGE: &str = r#"{"input_tokens":1000,"input_tokens_details":{"cached_tokens":600},"output_tokens":250,"output_tokens_details":{"reasoning_tokens":50},"total_tokens":1250}"#;

fn last(kind: &str, usage: &str) -> String {
    format!(
        r#"{{"type":"response.{kind}","sequence_number":10,"response":{{"id":"resp_1","object":"response","status":"{kind}","model":"gpt-x-codex","output":[{{"type":"message","content":[{{"type":"output_text","text":"Hi"}}]}}],"usage":{usage}}}}}"#
    )
}

#[test]
fn json_classes_are_taken_apart() {
    let table = [
        ("cached input is inside the input", USAGE, tokens(400, 0, 600, 250, 50)),
        (
            "details may be missing",
            r#"{"input_tokens":1000,"output_tokens":250}"#,
            tokens(1_000, 0, 0, 250, 0),
        ),
        (
            "or null",
            r#"{"input_tokens":1000,"input_tokens_details":null,"output_tokens":250,"output_tokens_details":{"reasoning_tokens":null}}"#,
            tokens(1_000, 0, 0, 250, 0),
        ),
        (
            "cache writes are inside the input",
            r#"{"input_tokens":1000,"input_tokens_details":{"cached_tokens":600,"cache_write_tokens":100},"output_tokens":250}"#,
            tokens(300, 100, 600, 250, 0),
        ),
    ];
    for (name, usage, expected) in table {
        println!("{name}");
        let body = format!(
            r#"{{"id":"resp_1","object":"response","status":"completed","model":"gpt-x","usage":{usage}}}"#
        );
        let figures = json(SHAPE, &body);
        assert_reported(&figures, expected);
        assert_eq!(figures.raw.as_deref(), Some(usage));
    }
}

#[test]
fn every_terminal_event_has_the_figures() {
    for kind in ["completed", "incomplete", "failed"] {
        let events = [CREATED, TEXT, TEXT_DONE, &last(kind, USAGE)];
        let streamed = stream(SHAPE, &events, Ending::Completed);
        assert_reported(&streamed.figures, tokens(400, 0, 600, 250, 50));
        assert_eq!(streamed.figures.model.as_deref(), Some("gpt-x-codex"));
        assert_eq!(streamed.figures.raw.as_deref(), Some(USAGE));
        assert_eq!(streamed.held_from, Some(3), "{kind}");
        assert_eq!(streamed.terminal_at, [3], "{kind}");
    }
}

#[test]
fn null_usage_is_estimated_and_said() {
    for kind in ["completed", "incomplete", "failed"] {
        let streamed = stream(SHAPE, &[CREATED, TEXT, &last(kind, "null")], Ending::Completed);
        assert_estimated(&streamed.figures, Ending::Completed, ESTIMATE, 20);
        assert!(streamed.figures.alarm.is_some(), "{kind}");
        assert_eq!(streamed.terminal_at, [2], "{kind}");
    }
}

#[test]
fn what_the_provider_keeps_is_input_too() {
    let facts = Facts { has_stored_input: true, ..facts(true) };
    let mut exchange = Exchange::new(SHAPE, facts);
    exchange.head(200, "text/event-stream", "");
    exchange.feed(framed(TEXT).as_bytes());
    let figures = exchange.end(Ending::Cut);
    assert_estimated(&figures, Ending::Cut, crate::estimate::MAX_UNREAD_INPUT, 20);
}

#[test]
fn a_broken_stream_names_its_model_and_is_counted() {
    for (ending, judged) in
        [(Ending::Completed, Ending::UpstreamBroke), (Ending::ClientGone, Ending::ClientGone)]
    {
        let streamed = stream(SHAPE, &[CREATED, TEXT, TEXT, TEXT_DONE], ending);
        assert_estimated(&streamed.figures, judged, ESTIMATE, 40);
        assert_eq!(streamed.figures.model.as_deref(), Some("gpt-x-codex"));
    }
}

#[test]
fn an_error_event_breaks_off() {
    let error = r#"{"type":"error","code":"server_error","message":"died"}"#;
    let streamed = stream(SHAPE, &[CREATED, TEXT, error], Ending::Completed);
    assert_estimated(&streamed.figures, Ending::UpstreamBroke, ESTIMATE, 20);
    assert_eq!(streamed.held_from, Some(2));
}

#[test]
fn the_running_count_takes_text_deltas_only() {
    let table = [
        ("response.output_text.delta", 12),
        ("response.refusal.delta", 12),
        ("response.function_call_arguments.delta", 12),
        ("response.custom_tool_call_input.delta", 12),
        ("response.reasoning_text.delta", 12),
        ("response.reasoning_summary_text.delta", 12),
        ("response.audio.delta", 0),
        ("response.output_audio.delta", 0),
        ("response.output_text.done", 0),
        ("response.image_generation_call.partial_image", 0),
    ];
    for (kind, bytes) in table {
        let mut exchange = started(SHAPE, "text/event-stream", "");
        for _ in 0..5 {
            exchange.feed(framed(&format!(r#"{{"type":"{kind}","delta":"twelve bytes"}}"#)).as_bytes());
        }
        assert_eq!(exchange.tokens().output, bytes, "{kind}");
    }
}
