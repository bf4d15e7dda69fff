//! Gemini: JSON, server-sent events, and a JSON array that grows.
use super::*;

const SHAPE: Shape = Shape::Gemini;

fn chunk(text: &str, usage: &str, finish: &str) -> String {
    format!(
        r#"{{"candidates":[{{"content":{{"parts":[{{"text":"{text}"}}],"role":"model"}}{finish},"index":0}}],"usageMetadata":{usage},"modelVersion":"gemini-x","responseId":"r1"}}"#
    )
}

const EARLY: &str = r#"{"promptTokenCount":1000,"totalTokenCount":1040,"cachedContentTokenCount":600,"thoughtsTokenCount":40}"#;
const LAST: &str = r#"{"promptTokenCount":1000,"candidatesTokenCount":250,"totalTokenCount":1355,"cachedContentTokenCount":600,"toolUsePromptTokenCount":5,"thoughtsTokenCount":100}"#;
const STOP: &str = r#","finishReason":"STOP""#;

fn used() -> Tokens {
    Tokens { tool_prompt: 5, ..tokens(405, 0, 600, 350, 100) }
}

fn chunks() -> [String; 3] {
    [chunk("Hello", EARLY, ""), chunk("Hello", r#"{"promptTokenCount":1000}"#, ""), chunk("", LAST, STOP)]
}

#[test]
fn json_classes_are_taken_apart() {
    let table = [
        ("thoughts are beside candidates, tools beside the prompt", LAST, used()),
        (
            "what is zero is not written",
            r#"{"promptTokenCount":7,"totalTokenCount":7}"#,
            tokens(7, 0, 0, 0, 0),
        ),
        ("a cache that was made states its total alone", r#"{"totalTokenCount":9}"#, tokens(9, 0, 0, 0, 0)),
    ];
    for (name, usage, expected) in table {
        println!("{name}");
        let figures = json(SHAPE, &chunk("Hello", usage, STOP));
        assert_reported(&figures, expected);
        assert_eq!(figures.model.as_deref(), Some("gemini-x"));
        assert_eq!(figures.raw.as_deref(), Some(usage));
        let wrapped = format!(r#"{{"response":{},"traceId":"t"}}"#, chunk("Hello", usage, STOP));
        assert_reported(&json(SHAPE, &wrapped), expected);
    }
    let blocked = r#"{"promptFeedback":{"blockReason":"SAFETY"},"usageMetadata":{"promptTokenCount":7}}"#;
    assert_reported(&json(SHAPE, blocked), tokens(7, 0, 0, 0, 0));
}

#[test]
fn a_stream_ends_well_after_a_reason_to_finish() {
    let all = chunks();
    let [first, second, last] = &all;
    let mut exchange = started(SHAPE, "text/event-stream", "");
    assert_eq!(exchange.feed(framed(first).as_bytes()), Step { changed: true, ..Step::default() });
    assert!(!exchange.feed(framed(second).as_bytes()).hold);
    assert_eq!(exchange.feed(framed(last).as_bytes()), Step { changed: true, hold: true, terminal: false });
    assert_reported(&exchange.end(Ending::Completed), used());
    for (events, ending, judged) in [
        (&all[..2], Ending::Completed, Ending::UpstreamBroke),
        (&all[..], Ending::UpstreamBroke, Ending::UpstreamBroke),
        (&all[..], Ending::ClientGone, Ending::ClientGone),
    ] {
        let mut exchange = started(SHAPE, "text/event-stream", "");
        for event in events {
            exchange.feed(framed(event).as_bytes());
        }
        let figures = exchange.end(ending);
        assert_eq!((figures.provenance, figures.ending), (Provenance::Partial, judged));
    }
}

#[test]
fn an_end_without_figures_is_estimated_and_said() {
    let bare = r#"{"candidates":[{"content":{"parts":[{"text":"twelve bytes"}]},"finishReason":"STOP"}]}"#;
    let figures = stream(SHAPE, &[bare], Ending::Completed).figures;
    assert_estimated(&figures, Ending::Completed, ESTIMATE, 4);
    assert_eq!(figures.alarm.as_deref(), Some("a successful answer without usage"));
}

#[test]
fn a_reason_on_every_chunk_holds_only_the_last() {
    let mut exchange = started(SHAPE, "text/event-stream", "");
    for text in ["one", "two"] {
        assert!(exchange.feed(framed(&chunk(text, EARLY, STOP)).as_bytes()).hold);
    }
    assert!(!exchange.feed(framed(&chunk("three", EARLY, "")).as_bytes()).hold, "more follows");
    assert!(exchange.feed(framed(&chunk("", LAST, STOP)).as_bytes()).hold);
    assert_reported(&exchange.end(Ending::Completed), used());
}

#[test]
fn an_array_is_a_stream() {
    let body = format!("[{}]", chunks().join("\n,\r\n"));
    for size in [1, 7, body.len()] {
        let mut exchange = Exchange::new(SHAPE, facts(true));
        exchange.head(200, "application/json; charset=UTF-8", "");
        assert!(exchange.is_stream());
        let steps: Vec<Step> = body.as_bytes().chunks(size).map(|bytes| exchange.feed(bytes)).collect();
        assert!(steps.last().unwrap().hold, "chunks of {size}");
        assert_reported(&exchange.end(Ending::Completed), used());
    }
    let mut refused = Exchange::new(SHAPE, facts(true));
    refused.head(429, "application/json", "");
    refused.feed(br#"{"error":{"code":429,"message":"no","status":"RESOURCE_EXHAUSTED"}}"#);
    let figures = refused.end(Ending::Completed);
    assert_eq!((figures.tokens, figures.ending), (Tokens::default(), Ending::UpstreamError));
}

#[test]
fn an_error_in_the_stream_is_partial() {
    let error = r#"{"error":{"code":503,"message":"overloaded","status":"UNAVAILABLE"}}"#;
    let streamed = stream(SHAPE, &[&chunks()[0], error], Ending::Completed);
    assert_partial(&streamed.figures, Ending::UpstreamBroke, tokens(400, 0, 600, 40, 40));
    assert_eq!(streamed.terminal_at, [1]);
    // what settles is held back, whatever follows it in the same bytes
    let mut exchange = started(SHAPE, "text/event-stream", "");
    let step = exchange.feed([framed(error), framed(&chunk("more", EARLY, ""))].concat().as_bytes());
    assert!(step.terminal && step.hold, "{step:?}");
}

#[test]
fn the_running_count_takes_every_kind_of_text() {
    for (part, tokens) in [
        (r#"{"text":"twelve bytes"}"#, 12),
        (r#"{"text":"twelve bytes","thought":true}"#, 12),
        (r#"{"functionCall":{"name":"f","args":{}}}"#, 22),
        (r#"{"executableCode":{"code":"1"}}"#, 12),
        (r#"{"inlineData":{"mimeType":"image/png","data":"AAAAAAAAAAAA"}}"#, 0),
        (r#"{"thoughtSignature":"AAAAAAAAAAAA"}"#, 0),
    ] {
        let event = framed(&format!(r#"{{"candidates":[{{"content":{{"parts":[{part}]}}}}]}}"#));
        let mut exchange = started(SHAPE, "text/event-stream", "");
        for _ in 0..5 {
            exchange.feed(event.as_bytes());
        }
        assert_eq!(exchange.tokens().output, tokens, "{part}");
    }
}
