//! Splits a byte stream into server-sent events, however it is cut into chunks.
//!
//! Follows the event stream format of the HTML standard: LF, CR and CRLF line ends, a leading BOM, comments,
//! several `data` lines an event. Other fields than `data` are not kept: every dialect repeats the event's
//! name inside its JSON. Not here: what an event means.
use memchr::memchr2;

use crate::events::{Ends, Event, KEPT_BUFFER_BYTES, MAX_EVENT_BYTES};

/// How a line of data begins; the space may be missing.
const FIELD: &[u8] = b"data: ";

const BOM: &[u8] = b"\xef\xbb\xbf";

/// The state between two chunks.
#[derive(Debug, Default)]
pub struct Parser {
    /// How many bytes of the BOM were seen; beyond its length: the start of the stream is behind us.
    bom_seen: usize,
    /// The last byte was a CR: an LF that follows belongs to it.
    after_cr: bool,
    /// The event grew too long: no more than this is kept until its blank line.
    ends: Option<Ends>,
    /// The beginning of a line whose end has not come. Of an event that grew too long: no more than [`FIELD`].
    line: Vec<u8>,
    /// Data lines of the event under way.
    data: Vec<u8>,
    /// At least one data line came.
    has_data: bool,
}

impl Parser {
    /// A parser at the start of a stream.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next bytes and calls `on_event` for each event that they complete.
    pub fn feed(&mut self, bytes: &[u8], mut on_event: impl FnMut(Event<'_>)) {
        let mut rest = self.after_bom(bytes);
        while let Some(&first) = rest.first() {
            if std::mem::take(&mut self.after_cr) && first == b'\n' {
                rest = &rest[1..];
                continue;
            }
            let Some(end) = memchr2(b'\n', b'\r', rest) else {
                self.keep(rest);
                return;
            };
            self.after_cr = rest[end] == b'\r';
            self.end_line(&rest[..end], &mut on_event);
            rest = &rest[end + 1..];
        }
    }

    /// The stream is over: a last event without its blank line is dispatched.
    pub fn end(&mut self, mut on_event: impl FnMut(Event<'_>)) {
        if !self.line.is_empty() {
            self.end_line(b"", &mut on_event);
        }
        self.dispatch(&mut on_event);
    }

    /// Skips the BOM, whole or in parts. Bytes that only began like one are the line's.
    fn after_bom<'a>(&mut self, mut bytes: &'a [u8]) -> &'a [u8] {
        while self.bom_seen < BOM.len() {
            match bytes.split_first() {
                None => break,
                Some((byte, rest)) if *byte == BOM[self.bom_seen] => {
                    self.bom_seen += 1;
                    bytes = rest;
                }
                Some(_) => {
                    self.line.extend_from_slice(&BOM[..self.bom_seen]);
                    self.bom_seen = BOM.len();
                }
            }
        }
        bytes
    }

    /// Keeps the beginning of a line for later.
    fn keep(&mut self, part: &[u8]) {
        if self.ends.is_none() && self.line.len() + part.len() > MAX_EVENT_BYTES {
            let mut line = std::mem::take(&mut self.line);
            self.keep_ends_only(&line);
            line.truncate(FIELD.len());
            line.shrink_to_fit();
            self.line = line;
        }
        if self.ends.is_some() { self.pass(part) } else { self.line.extend_from_slice(part) }
    }

    /// Takes a part of a line of an event that grew too long.
    fn pass(&mut self, part: &[u8]) {
        let Some(ends) = &mut self.ends else { return };
        let missing = FIELD.len().saturating_sub(self.line.len()).min(part.len());
        let (name, value) = part.split_at(missing);
        self.line.extend_from_slice(name);
        if self.line.len() < FIELD.len() {
            return;
        }
        let Some(begun) = data_value(&self.line) else { return };
        if missing > 0 {
            ends.push(begun);
        }
        ends.push(value);
    }

    /// Takes a line's last part, its end excluded.
    fn end_line(&mut self, part: &[u8], on_event: &mut impl FnMut(Event<'_>)) {
        let blank = self.line.is_empty() && part.is_empty();
        if blank || self.line.is_empty() && self.ends.is_none() {
            self.take_line(part, on_event);
            return;
        }
        self.keep(part);
        let mut line = std::mem::take(&mut self.line);
        if self.ends.is_none() {
            self.take_line(&line, on_event);
        }
        line.clear();
        line.shrink_to(KEPT_BUFFER_BYTES);
        self.line = line;
    }

    fn take_line(&mut self, line: &[u8], on_event: &mut impl FnMut(Event<'_>)) {
        if line.is_empty() {
            self.dispatch(on_event);
        } else if self.data.len() + line.len() > MAX_EVENT_BYTES {
            self.keep_ends_only(line);
        } else if let Some(value) = data_value(line) {
            if self.has_data {
                self.data.push(b'\n');
            }
            self.has_data = true;
            self.data.extend_from_slice(value);
        }
    }

    fn dispatch(&mut self, on_event: &mut impl FnMut(Event<'_>)) {
        if let Some(ends) = self.ends.take() {
            on_event(ends.event());
        } else if !self.data.is_empty() {
            on_event(Event::Data(&self.data));
        }
        self.forget_data();
    }

    /// The event has grown too long with `line`, or what has come of it.
    fn keep_ends_only(&mut self, line: &[u8]) {
        let mut ends = Ends::default();
        ends.push(&self.data);
        ends.push(data_value(line).unwrap_or_default());
        self.ends = Some(ends);
        self.forget_data();
    }

    fn forget_data(&mut self) {
        self.has_data = false;
        self.data.clear();
        self.data.shrink_to(KEPT_BUFFER_BYTES);
    }
}

/// The value of a `data` line; `None` for comments and other fields.
fn data_value(line: &[u8]) -> Option<&[u8]> {
    let after_name = line.strip_prefix(b"data")?;
    if after_name.is_empty() {
        return Some(after_name);
    }
    let value = after_name.strip_prefix(b":")?;
    Some(value.strip_prefix(b" ").unwrap_or(value))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::events::{END_BYTES, START_BYTES};

    fn record(into: &mut Vec<String>, event: Event<'_>) {
        into.push(match event {
            Event::Data(data) | Event::Named { data, .. } => String::from_utf8_lossy(data).into_owned(),
            Event::Oversized { start, end } => {
                assert!(start.len() == START_BYTES && (END_BYTES..=2 * END_BYTES).contains(&end.len()));
                let ends =
                    (String::from_utf8_lossy(&start[..3]), String::from_utf8_lossy(&end[end.len() - 3..]));
                format!("<{}…{}>", ends.0, ends.1)
            }
        });
    }

    fn events_of(chunks: &[&[u8]]) -> Vec<String> {
        let mut parser = Parser::new();
        let mut seen = Vec::new();
        for chunk in chunks {
            parser.feed(chunk, |event| record(&mut seen, event));
        }
        parser.end(|event| record(&mut seen, event));
        seen
    }

    #[test]
    fn every_framing_gives_its_events() {
        let table: &[(&str, &[u8], &[&str])] = &[
            ("LF", b"data: a\n\ndata: b\n\n", &["a", "b"]),
            ("CRLF", b"data: a\r\n\r\ndata: b\r\n\r\n", &["a", "b"]),
            ("lone CR", b"data: a\r\rdata: b\r\r", &["a", "b"]),
            ("mixed ends", b"data: a\r\n\ndata: b\n\r\n", &["a", "b"]),
            ("no space", b"data:a\n\n", &["a"]),
            ("only the first space goes", b"data:  a\n\n", &[" a"]),
            ("several data lines", b"data: a\ndata:b\ndata\n\n", &["a\nb\n"]),
            ("BOM", b"\xef\xbb\xbfdata: a\n\n", &["a"]),
            ("a BOM only at the start", b"data: a\n\n\xef\xbb\xbfdata: b\n\n", &["a"]),
            ("half a BOM is a line", b"\xef\xbbdata: a\n\ndata: b\n\n", &["b"]),
            ("comments", b": ping\n\n:\ndata: a\n: more\n\n", &["a"]),
            ("other fields", b"event: x\nid: 1\nretry: 5\ndatas: n\ndata: a\n\n", &["a"]),
            ("no data", b"event: x\n\ndata:\n\n", &[]),
            ("no last blank line", b"data: a\n\ndata: b\n", &["a", "b"]),
            ("no last line end", b"data: a\n\ndata: b", &["a", "b"]),
            ("empty", b"", &[]),
        ];
        for (name, stream, expected) in table {
            assert_eq!(events_of(&[stream]), *expected, "{name}");
            let bytes: Vec<&[u8]> = stream.chunks(1).collect();
            assert_eq!(events_of(&bytes), *expected, "{name}, byte by byte");
        }
    }

    #[test]
    fn an_event_is_dispatched_by_its_last_byte_and_not_later() {
        for stream in [&b"data: a\n\n"[..], b"data: a\r\r", b"data: a\r\n\r"] {
            let mut parser = Parser::new();
            let mut seen = Vec::new();
            let (last, before) = stream.split_last().unwrap();
            parser.feed(before, |event| record(&mut seen, event));
            assert!(seen.is_empty(), "{stream:?}");
            parser.feed(&[*last], |event| record(&mut seen, event));
            assert_eq!(seen, ["a"], "{stream:?}");
        }
    }

    #[test]
    fn both_ends_of_an_oversized_event_are_kept() {
        let long = vec![b'x'; MAX_EVENT_BYTES];
        let one_line = [b"data: one", &long[..], b"end\n\ndata: next\n\n"].concat();
        let half = &long[..MAX_EVENT_BYTES / 2];
        let three_lines = [
            b"data: one",
            half,
            b"\ndata:",
            half,
            b"\n: no\nid: 7\ndata: ",
            half,
            b"\ndata:end\nx\n\ndata: next\n\n",
        ]
        .concat();
        for stream in [one_line, three_lines] {
            for size in [stream.len(), 65_536, 4_099, 61] {
                let chunks: Vec<&[u8]> = stream.chunks(size).collect();
                assert_eq!(events_of(&chunks), ["<one…end>", "next"], "chunks of {size}");
            }
        }
    }

    #[test]
    fn buffers_are_given_back_after_a_long_event() {
        let mut parser = Parser::new();
        parser.feed(b"data: ", |_| {});
        parser.feed(&vec![b'x'; 1_000_000], |_| {});
        parser.feed(b"\n\n", |_| {});
        assert!(parser.line.capacity() + parser.data.capacity() <= 2 * KEPT_BUFFER_BYTES);
    }

    #[test]
    fn a_line_of_a_gigabyte_is_not_kept() {
        let piece = vec![b'x'; 1024 * 1024];
        let mut parser = Parser::new();
        let mut seen = Vec::new();
        parser.feed(b"data: one", |_| {});
        for _ in 0..1024 {
            parser.feed(&piece, |event| record(&mut seen, event));
            let kept = parser.line.capacity() + parser.data.capacity();
            assert!(kept <= 2 * MAX_EVENT_BYTES, "{kept} bytes");
        }
        parser.feed(b"end\n\ndata: next\n\n", |event| record(&mut seen, event));
        assert_eq!(seen, ["<one…end>", "next"]);
    }

    const PARTS: &[&[u8]] =
        &[b"data: x", b"\n", b"\r", b":c", b"\xef\xbb\xbf", b"data", b":", b" ", b"event: e", b"\n\n"];

    proptest! {
        #[test]
        fn the_cut_does_not_matter(
            stream in proptest::collection::vec(prop::sample::select(PARTS), 0..40),
            cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..20),
        ) {
            let stream = stream.concat();
            let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(stream.len() + 1)).collect();
            at.extend([0, stream.len()]);
            at.sort_unstable();
            let chunks: Vec<&[u8]> = at.windows(2).map(|pair| &stream[pair[0]..pair[1]]).collect();
            prop_assert_eq!(events_of(&chunks), events_of(&[&stream]));
        }
    }
}
