//! Anthropic Messages.
use super::*;

const SHAPE: Shape = Shape::AnthropicMessages;

const START: &str = r#"{"type":"message_start","message":{"id":"msg_1","type":"message","role":"assistant","model":"claude-x-1","content":[],"stop_reason":null,"usage":{"input_tokens":12,"cache_creation_input_tokens":300,"cache_read_input_tokens":4000,"cache_creation":{"ephemeral_5m_input_tokens":100,"ephemeral_1h_input_tokens":200},"output_tokens":1,"service_tier":"standard"}}}"#;
const BLOCK: &str = r#"{"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}"#;
const PING: &str = r#"{"type":"ping"}"#;
/// Sixty bytes of text: twelve tokens by the running count.
const TEXT: &str = r#"{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"Sixty bytes of text: to the running count these are twelve.\n"}}"#;
const TOOL: &str = r#"{"type":"content_block_delta","index":1,"delta":{"type":"input_json_delta","partial_json":"{\"path\": \"src/main.rs\", \"n\": 1}"}}"#;
const THINKING: &str =
    r#"{"type":"content_block_delta","index":0,"delta":{"type":"thinking_delta","thinking":"Twelve bytes"}}"#;
const SIGNATURE: &str = r#"{"type":"content_block_delta","index":0,"delta":{"type":"signature_delta","signature":"EqoBCkgIARABGAIiQL4kbg9pP0yPZ4lNw7QxhYc2rT1vE5sD8mXj"}}"#;
const DELTA: &str = r#"{"type":"message_delta","delta":{"stop_reason":"end_turn","stop_sequence":null},"usage":{"output_tokens":250}}"#;
const STOP: &str = r#"{"type":"message_stop"}"#;
const ERROR: &str = r#"{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}"#;

/// What [`START`] says of caches, with other figures.
fn cached(input: u64, output: u64) -> Tokens {
    Tokens { cache_write_5m: 100, cache_write_1h: 200, ..tokens(input, 300, 4_000, output, 0) }
}

#[test]
fn json_classes_are_kept_apart() {
    let table = [
        (
            "caches are beside the input, and their breakdown is not added",
            r#"{"input_tokens":12,"cache_creation_input_tokens":300,"cache_read_input_tokens":4000,"cache_creation":{"ephemeral_5m_input_tokens":100,"ephemeral_1h_input_tokens":200},"output_tokens":250}"#,
            cached(12, 250),
        ),
        (
            "a breakdown alone is what was written",
            r#"{"input_tokens":12,"cache_creation":{"ephemeral_5m_input_tokens":100,"ephemeral_1h_input_tokens":200},"output_tokens":250}"#,
            Tokens { cache_read: 0, ..cached(12, 250) },
        ),
        (
            "server tools are requests, not tokens",
            r#"{"input_tokens":12,"output_tokens":250,"server_tool_use":{"web_search_requests":7}}"#,
            tokens(12, 0, 0, 250, 0),
        ),
        (
            "any field may be null",
            r#"{"input_tokens":12,"cache_creation_input_tokens":null,"cache_read_input_tokens":null,"cache_creation":null,"server_tool_use":null,"iterations":null,"output_tokens":250}"#,
            tokens(12, 0, 0, 250, 0),
        ),
        (
            "compactions are added, messages are inside",
            r#"{"input_tokens":12,"output_tokens":250,"iterations":[{"type":"compaction","input_tokens":1000,"cache_read_input_tokens":30,"output_tokens":40},{"type":"message","input_tokens":12,"output_tokens":250},{"type":"compaction","input_tokens":1,"cache_creation_input_tokens":5,"output_tokens":null}]}"#,
            tokens(1_013, 5, 30, 290, 0),
        ),
    ];
    for (name, usage, expected) in table {
        let body = format!(
            r#"{{"id":"msg_1","type":"message","model":"claude-x-1","content":[{{"type":"text","text":"\"usage\":{{}}"}}],"usage":{usage}}}"#
        );
        let figures = json(SHAPE, &body);
        println!("{name}");
        assert_reported(&figures, expected);
        assert_eq!(figures.model.as_deref(), Some("claude-x-1"));
        assert_eq!(figures.raw.as_deref(), Some(usage));
    }
}

#[test]
fn a_stream_is_charged_as_its_last_delta_says() {
    let events = [START, BLOCK, PING, TEXT, TEXT, DELTA, STOP];
    let streamed = stream(SHAPE, &events, Ending::Completed);
    assert_reported(&streamed.figures, cached(12, 250));
    assert_eq!(streamed.figures.model.as_deref(), Some("claude-x-1"));
    assert!(streamed.figures.raw.unwrap().starts_with(r#"[{"output_tokens":250},{"input_tokens":12,"#));
    assert_eq!(streamed.held_from, Some(5), "from the stop reason");
    assert_eq!(streamed.terminal_at, [6]);
}

#[test]
fn deltas_are_cumulative_and_may_restate_input() {
    let restated = r#"{"type":"message_delta","delta":{"stop_reason":null},"usage":{"input_tokens":2679,"cache_read_input_tokens":null,"output_tokens":100}}"#;
    let last = r#"{"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"input_tokens":10682,"output_tokens":510,"server_tool_use":{"web_search_requests":1}}}"#;
    let streamed = stream(SHAPE, &[START, restated, TEXT, last, STOP], Ending::Completed);
    assert_reported(&streamed.figures, cached(10_682, 510));
    assert_eq!(streamed.held_from, Some(3), "not from a delta without stop reason");
}

#[test]
fn a_gateway_that_starts_with_zeros_is_believed_at_the_end() {
    let zeros =
        r#"{"type":"message_start","message":{"model":"m","usage":{"input_tokens":0,"output_tokens":0}}}"#;
    let last = r#"{"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"input_tokens":15,"output_tokens":25}}"#;
    assert_reported(
        &stream(SHAPE, &[zeros, TEXT, last, STOP], Ending::Completed).figures,
        tokens(15, 0, 0, 25, 0),
    );
    // broken off, zero input is not believed
    let broken = stream(SHAPE, &[zeros, TEXT], Ending::UpstreamBroke).figures;
    assert_estimated(&broken, Ending::UpstreamBroke, ESTIMATE, 20);
}

#[test]
fn an_error_after_200_keeps_what_is_known() {
    let streamed = stream(SHAPE, &[START, TEXT, TEXT, ERROR], Ending::Completed);
    // the first statement's one, and what was seen since
    assert_partial(&streamed.figures, Ending::UpstreamBroke, cached(12, 41));
    assert!(streamed.figures.alarm.unwrap().contains("error event"));
    assert_eq!(streamed.held_from, Some(3));
    assert_eq!(streamed.terminal_at, [3]);
    let unfinished = r#"{"type":"message_delta","delta":{},"usage":{"output_tokens":90}}"#;
    let late = stream(SHAPE, &[START, TEXT, unfinished, ERROR], Ending::Completed);
    assert_partial(&late.figures, Ending::UpstreamBroke, cached(12, 90));
    let later = stream(SHAPE, &[START, TEXT, unfinished, TEXT, unfinished, TEXT], Ending::Completed);
    assert_partial(&later.figures, Ending::UpstreamBroke, cached(12, 90 + 40));
}

#[test]
fn a_stream_that_breaks_is_partial_however_it_breaks() {
    for (ending, judged) in [
        (Ending::Completed, Ending::UpstreamBroke),
        (Ending::UpstreamBroke, Ending::UpstreamBroke),
        (Ending::ClientGone, Ending::ClientGone),
        (Ending::Cut, Ending::Cut),
    ] {
        for (events, output) in [(&[START, TEXT, TEXT][..], 41), (&[START, TEXT, DELTA], 250), (&[START], 1)]
        {
            let streamed = stream(SHAPE, events, ending);
            assert_partial(&streamed.figures, judged, cached(12, output));
        }
    }
}

#[test]
fn who_leaves_after_the_last_event_changes_nothing() {
    for ending in [Ending::ClientGone, Ending::Cut, Ending::UpstreamBroke] {
        let figures = stream(SHAPE, &[START, TEXT, DELTA, STOP], ending).figures;
        assert_eq!((figures.provenance, figures.ending), (Provenance::Reported, ending));
        assert_eq!(figures.tokens, cached(12, 250));
    }
}

#[test]
fn a_message_that_stops_without_final_usage_is_partial() {
    let bare = r#"{"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":null}"#;
    for events in [&[START, TEXT, STOP][..], &[START, TEXT, bare, STOP]] {
        let figures = stream(SHAPE, events, Ending::Completed).figures;
        assert_partial(&figures, Ending::Completed, cached(12, 21));
        assert_eq!(figures.alarm.as_deref(), Some("a successful answer without its final usage"));
    }
}

#[test]
fn the_running_count_takes_text_only() {
    let events = [START, BLOCK, TEXT, TOOL, THINKING, SIGNATURE, PING];
    let streamed = stream(SHAPE, &events, Ending::Cut);
    let output: Vec<u64> = streamed.progress.iter().map(|tokens| tokens.output).collect();
    // 60 bytes of text, 32 of tool input, 12 of thinking
    assert_eq!(output, [1, 1, 12, 18, 20, 20, 20]);
    assert!(streamed.progress.iter().all(|tokens| tokens.input == 12));
}

#[test]
fn strange_counts_cost_only_themselves() {
    for strange in ["-5", "1.5", "\"300\"", "1e99", "99999999999999999999", "[]", "true"] {
        let body = format!(
            r#"{{"usage":{{"input_tokens":12,"cache_read_input_tokens":{strange},"output_tokens":250}}}}"#
        );
        let figures = json(SHAPE, &body);
        assert_eq!(figures.tokens, tokens(12, 0, 0, 250, 0), "{strange}");
        assert!(figures.alarm.unwrap().contains("cache_read_input_tokens"), "{strange}");
    }
    // the output itself: charged as reserved, and not called reported
    let figures = json(SHAPE, r#"{"usage":{"input_tokens":12,"output_tokens":"many"}}"#);
    assert_partial(&figures, Ending::Completed, tokens(12, 0, 0, ALLOWANCE, 0));
}
