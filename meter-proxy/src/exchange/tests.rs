//! Whole exchanges: realistic answers in, figures out. One file a dialect, and what holds for all.
mod anthropic;
mod bad_input;
mod bedrock;
mod common;
mod gemini;
mod openai_chat;
mod openai_responses;

use super::*;

/// Input estimate of every test's request, tokens.
const ESTIMATE: u64 = 77;
/// Output allowance of every test's request that is not streamed, tokens.
const ALLOWANCE: u64 = 500;

fn facts(streamed: bool) -> Facts {
    let output_allowance = if streamed { 0 } else { ALLOWANCE };
    Facts { streamed, input_estimate: ESTIMATE, output_allowance, ..Facts::default() }
}

/// An exchange with a good head.
fn started(shape: Shape, content_type: &str, content_encoding: &str) -> Exchange {
    let mut exchange = Exchange::new(shape, facts(content_type == "text/event-stream"));
    exchange.head(200, content_type, content_encoding);
    exchange
}

/// How an event stream went, one event a chunk.
struct Streamed {
    figures: Figures,
    /// Index of the first event that was held back.
    held_from: Option<usize>,
    /// Indices of the events that were called terminal.
    terminal_at: Vec<usize>,
    /// The figures after each event.
    progress: Vec<Tokens>,
}

/// Feeds events, given as their data, and ends.
fn stream(shape: Shape, events: &[&str], ending: Ending) -> Streamed {
    let mut exchange = started(shape, "text/event-stream", "");
    let (mut held_from, mut terminal_at, mut progress) = (None, Vec::new(), Vec::new());
    for (index, event) in events.iter().enumerate() {
        let before = exchange.tokens();
        let step = exchange.feed(framed(event).as_bytes());
        assert_eq!(step.changed, exchange.tokens() != before, "event {index}");
        if step.hold {
            held_from.get_or_insert(index);
        }
        assert_eq!(step.hold, held_from.is_some(), "a hold is for good");
        if step.terminal {
            terminal_at.push(index);
        }
        progress.push(exchange.tokens());
    }
    Streamed { figures: exchange.end(ending), held_from, terminal_at, progress }
}

/// An event as servers of both kinds write it: named when its JSON has a type.
fn framed(data: &str) -> String {
    match data.strip_prefix(r#"{"type":""#).and_then(|rest| rest.split('"').next()) {
        Some(name) => format!("event: {name}\ndata: {data}\n\n"),
        None => format!("data: {data}\n\n"),
    }
}

/// Feeds a JSON answer and ends well.
fn json(shape: Shape, body: &str) -> Figures {
    let mut exchange = started(shape, "application/json; charset=utf-8", "");
    let step = exchange.feed(body.as_bytes());
    assert_eq!(step, Step::default(), "JSON is judged at its end");
    exchange.end(Ending::Completed)
}

/// Tokens in the order of their fields.
fn tokens(input: u64, cache_write: u64, cache_read: u64, output: u64, reasoning: u64) -> Tokens {
    Tokens { input, cache_write, cache_read, output, reasoning, ..Tokens::default() }
}

/// The figures are the provider's own.
#[track_caller]
fn assert_reported(figures: &Figures, expected: Tokens) {
    assert_eq!((figures.provenance, figures.tokens), (Provenance::Reported, expected), "{figures:?}");
    assert_eq!(figures.ending, Ending::Completed);
    assert_eq!(figures.alarm, None);
}

/// The figures are the provider's as far as they go.
#[track_caller]
fn assert_partial(figures: &Figures, ending: Ending, expected: Tokens) {
    assert_eq!(
        (figures.provenance, figures.ending, figures.tokens),
        (Provenance::Partial, ending, expected),
        "{figures:?}"
    );
}

/// The figures are our own.
#[track_caller]
fn assert_estimated(figures: &Figures, ending: Ending, input: u64, output: u64) {
    assert_eq!(
        (figures.provenance, figures.ending, figures.tokens),
        (Provenance::Estimated, ending, tokens(input, 0, 0, output, 0)),
        "{figures:?}"
    );
}
