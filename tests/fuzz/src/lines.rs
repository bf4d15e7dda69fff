//! Server-sent events read the simple way, of a whole text at once: what the meter's parser is compared with.
use meter_proxy::events::{Event, MAX_EVENT_BYTES};
use meter_proxy::sse::Parser;

use crate::Input;

/// Reads the same bytes by both, when no event in them can be too long to be kept.
pub fn check(data: &[u8]) {
    let Some(input) = Input::read(data).filter(|input| input.bytes.len() <= MAX_EVENT_BYTES) else { return };
    let mut parser = Parser::new();
    let mut events: Vec<Vec<u8>> = Vec::new();
    let mut keep = |event: Event<'_>| match event {
        Event::Data(data) => events.push(data.to_vec()),
        other => panic!("{other:?} of a short stream"),
    };
    input.pieces().for_each(|piece| parser.feed(piece, &mut keep));
    parser.end(&mut keep);
    assert_eq!(events, events_of(input.bytes));
}

/// By the words of the HTML standard, 9.2.5 and 9.2.6, but for the last event, which need not be followed by a blank
/// line.
fn events_of(stream: &[u8]) -> Vec<Vec<u8>> {
    let stream = stream.strip_prefix(b"\xef\xbb\xbf").unwrap_or(stream);
    let mut events = Vec::new();
    let mut data: Vec<&[u8]> = Vec::new();
    for line in lines(stream).into_iter().chain([&b""[..]]) {
        match line.strip_prefix(b"data") {
            _ if line.is_empty() => events.push(std::mem::take(&mut data).join(&b'\n')),
            Some(b"") => data.push(b""),
            Some(value) if value[0] == b':' => {
                data.push(value[1..].strip_prefix(b" ").unwrap_or(&value[1..]))
            }
            _ => {}
        }
    }
    events.retain(|event| !event.is_empty());
    events
}

fn lines(stream: &[u8]) -> Vec<&[u8]> {
    let mut lines = Vec::new();
    let mut rest = stream;
    while let Some(end) = rest.iter().position(|byte| matches!(byte, b'\r' | b'\n')) {
        lines.push(&rest[..end]);
        let after = &rest[end + 1..];
        rest = if rest[end] == b'\r' { after.strip_prefix(b"\n").unwrap_or(after) } else { after };
    }
    lines.push(rest);
    lines
}
