//! OpenAI Chat Completions and compatible servers.
use super::*;

const SHAPE: Shape = Shape::OpenaiChat;

const ROLE: &str = r#"{"id":"c1","object":"chat.completion.chunk","model":"gpt-x","choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}],"usage":null}"#;
/// Sixty bytes of text: twelve tokens by the running count.
const TEXT: &str = r#"{"id":"c1","object":"chat.completion.chunk","model":"gpt-x","choices":[{"index":0,"delta":{"content":"Sixty bytes of text: to the running count these are twelve.\n"},"finish_reason":null}],"usage":null}"#;
const FINISH: &str = r#"{"id":"c1","object":"chat.completion.chunk","model":"gpt-x","choices":[{"index":0,"delta":{},"finish_reason":"stop"}],"usage":null}"#;
const USAGE: &str = r#"{"id":"c1","object":"chat.completion.chunk","model":"gpt-x","choices":[],"usage":{"prompt_tokens":1000,"completion_tokens":250,"total_tokens":1250,"prompt_tokens_details":{"cached_tokens":600,"audio_tokens":0},"completion_tokens_details":{"reasoning_tokens":50}}}"#;
const DONE: &str = "[DONE]";

/// A chunk of a compatible server that repeats its usage.
fn chatty(output: u64, finish: &str) -> String {
    format!(
        r#"{{"choices":[{{"index":0,"delta":{{"content":"x"}},"finish_reason":{finish}}}],"usage":{{"prompt_tokens":40,"completion_tokens":{output},"total_tokens":{}}}}}"#,
        40 + output
    )
}

#[test]
fn json_classes_are_taken_apart() {
    let table = [
        (
            "cached input is inside the prompt",
            r#"{"prompt_tokens":1000,"completion_tokens":250,"total_tokens":1250,"prompt_tokens_details":{"cached_tokens":600},"completion_tokens_details":{"reasoning_tokens":50}}"#,
            tokens(400, 0, 600, 250, 50),
        ),
        (
            "cache writes are inside the prompt too",
            r#"{"prompt_tokens":1000,"completion_tokens":250,"total_tokens":1250,"prompt_tokens_details":{"cached_tokens":600,"cache_write_tokens":300}}"#,
            tokens(100, 300, 600, 250, 0),
        ),
        (
            "details may be null",
            r#"{"prompt_tokens":1000,"completion_tokens":250,"total_tokens":1250,"prompt_tokens_details":null,"completion_tokens_details":{"reasoning_tokens":null}}"#,
            tokens(1_000, 0, 0, 250, 0),
        ),
        (
            "reasoning is a part of output, never more",
            r#"{"prompt_tokens":10,"completion_tokens":5,"completion_tokens_details":{"reasoning_tokens":9}}"#,
            tokens(10, 0, 0, 5, 5),
        ),
        ("embeddings have no output", r#"{"prompt_tokens":8,"total_tokens":8}"#, tokens(8, 0, 0, 0, 0)),
        (
            "a cache larger than its prompt takes nothing below zero",
            r#"{"prompt_tokens":10,"completion_tokens":5,"prompt_tokens_details":{"cached_tokens":12}}"#,
            tokens(0, 0, 12, 5, 0),
        ),
    ];
    for (name, usage, expected) in table {
        println!("{name}");
        let body = format!(r#"{{"object":"chat.completion","model":"gpt-x","choices":[],"usage":{usage}}}"#);
        assert_reported(&json(SHAPE, &body), expected);
    }
}

#[test]
fn the_last_chunk_has_the_figures() {
    let streamed = stream(SHAPE, &[ROLE, TEXT, FINISH, USAGE, DONE], Ending::Completed);
    assert_reported(&streamed.figures, tokens(400, 0, 600, 250, 50));
    assert_eq!(streamed.figures.model.as_deref(), Some("gpt-x"));
    assert_eq!(streamed.held_from, Some(3));
    assert_eq!(streamed.terminal_at, [3]);
}

#[test]
fn without_usage_the_answer_is_estimated_and_said() {
    let streamed = stream(SHAPE, &[ROLE, TEXT, TEXT, FINISH, DONE], Ending::Completed);
    assert_estimated(&streamed.figures, Ending::Completed, ESTIMATE, 40);
    assert_eq!(streamed.figures.alarm.as_deref(), Some("a successful answer without usage"));
    assert_eq!(streamed.held_from, Some(4));
    assert_eq!(streamed.terminal_at, [4]);
}

#[test]
fn repeated_cumulative_usage_holds_only_the_end() {
    let chunks = [chatty(1, "null"), chatty(2, "null"), chatty(3, "\"stop\"")];
    let events = [&chunks[0], &chunks[1], &chunks[2], DONE];
    let streamed = stream(SHAPE, &events, Ending::Completed);
    assert_reported(&streamed.figures, tokens(40, 0, 0, 3, 0));
    assert_eq!(streamed.held_from, Some(2));
    assert_eq!(streamed.terminal_at, [3]);
    // figures of a second choice may still follow the first one's end
    let events = [&chunks[0], &chunks[2], &chatty(9, "\"stop\""), DONE];
    assert_reported(&stream(SHAPE, &events, Ending::Completed).figures, tokens(40, 0, 0, 9, 0));
}

#[test]
fn a_server_without_done_has_ended_well_when_it_said_all() {
    let streamed = stream(SHAPE, &[&chatty(1, "null"), &chatty(3, "\"stop\"")], Ending::Completed);
    assert_reported(&streamed.figures, tokens(40, 0, 0, 3, 0));
    let gone = stream(SHAPE, &[&chatty(1, "null"), &chatty(3, "\"stop\"")], Ending::ClientGone);
    assert_partial(&gone.figures, Ending::ClientGone, tokens(40, 0, 0, 3, 0));
}

#[test]
fn a_broken_stream_is_counted() {
    let broken = stream(SHAPE, &[ROLE, TEXT, TEXT, TEXT], Ending::Completed);
    assert_estimated(&broken.figures, Ending::UpstreamBroke, ESTIMATE, 60);
    let chatty = stream(SHAPE, &[&chatty(1, "null"), TEXT], Ending::Cut);
    assert_partial(&chatty.figures, Ending::Cut, tokens(40, 0, 0, 21, 0));
}

#[test]
fn an_error_in_the_stream_is_partial() {
    let error = r#"{"error":{"message":"upstream died","code":502},"choices":[]}"#;
    let streamed = stream(SHAPE, &[ROLE, &chatty(7, "null"), error, DONE], Ending::Completed);
    assert_partial(&streamed.figures, Ending::UpstreamBroke, tokens(40, 0, 0, 7, 0));
    assert_eq!(streamed.held_from, Some(2));
}

#[test]
fn the_running_count_takes_every_kind_of_text_once() {
    let table = [
        (r#"{"content":"twelve bytes"}"#, 12),
        (r#"{"refusal":"twelve bytes"}"#, 12),
        (r#"{"reasoning_content":"twelve bytes","reasoning":"twelve bytes"}"#, 12),
        (r#"{"tool_calls":[{"index":0,"function":{"name":"f","arguments":"{\"a\":1}"}},{"index":1}]}"#, 7),
        (r#"{"function_call":{"arguments":"{\"a\":1}"}}"#, 7),
        (r#"{"content":[{"type":"image_url","image_url":"data:image/png;base64,AAAA"}]}"#, 0),
        (r#"{"content":null,"audio":{"data":"AAAAAAAAAAAA"}}"#, 0),
        ("null", 0),
    ];
    for (delta, bytes) in table {
        let mut exchange = started(SHAPE, "text/event-stream", "");
        let event = framed(&format!(r#"{{"choices":[{{"index":0,"delta":{delta}}}]}}"#));
        for _ in 0..5 {
            exchange.feed(event.as_bytes());
        }
        assert_eq!(exchange.tokens().output, bytes, "{delta}");
        assert_eq!(exchange.end(Ending::Cut).alarm, None, "{delta}");
    }
}
