//! Splits a JSON array into its elements as it grows, however it is cut into chunks: how Gemini streams without SSE.
//!
//! A body that is one object (an error, say) is one element. Nothing is validated: an element is what balances. Not
//! here: what an element means.
use memchr::{memchr, memchr2};

use crate::events::{Ends, Event, KEPT_BUFFER_BYTES, MAX_EVENT_BYTES};

/// The state between two chunks.
#[derive(Debug, Default)]
pub struct Elements {
    /// Braces and brackets that are open inside the element.
    depth: u64,
    in_string: bool,
    /// The last byte was a backslash in a string.
    escaped: bool,
    element: Vec<u8>,
    /// The element grew too long: no more than this is kept.
    ends: Option<Ends>,
}

impl Elements {
    /// Takes the next bytes and calls `on_event` for each element that they complete.
    pub fn feed(&mut self, bytes: &[u8], mut on_event: impl FnMut(Event<'_>)) {
        let mut rest = bytes;
        while !rest.is_empty() {
            if self.depth == 0 {
                let Some(opened) = memchr(b'{', rest) else { return };
                rest = &rest[opened..];
            }
            let taken = if self.in_string { self.string(rest) } else { self.structure(rest) };
            let (part, after) = rest.split_at(taken);
            self.keep(part);
            if self.depth == 0 {
                self.dispatch(&mut on_event);
            }
            rest = after;
        }
    }

    /// Takes bytes of a string, to its closing quote; bytes taken.
    fn string(&mut self, bytes: &[u8]) -> usize {
        if std::mem::take(&mut self.escaped) {
            return 1;
        }
        match memchr2(b'"', b'\\', bytes) {
            None => bytes.len(),
            Some(at) => {
                self.escaped = bytes[at] == b'\\';
                self.in_string = self.escaped;
                at + 1
            }
        }
    }

    /// Takes bytes outside strings, to the next quote or to the end of the element; bytes taken.
    fn structure(&mut self, bytes: &[u8]) -> usize {
        for (at, byte) in bytes.iter().enumerate() {
            match byte {
                b'"' => self.in_string = true,
                b'{' | b'[' => self.depth += 1,
                b'}' | b']' => self.depth -= 1,
                _ => continue,
            }
            if self.in_string || self.depth == 0 {
                return at + 1;
            }
        }
        bytes.len()
    }

    fn keep(&mut self, part: &[u8]) {
        if self.ends.is_none() && self.element.len() + part.len() > MAX_EVENT_BYTES {
            let mut ends = Ends::default();
            ends.push(&self.element);
            self.element = Vec::new();
            self.ends = Some(ends);
        }
        match &mut self.ends {
            Some(ends) => ends.push(part),
            None => self.element.extend_from_slice(part),
        }
    }

    fn dispatch(&mut self, on_event: &mut impl FnMut(Event<'_>)) {
        if let Some(ends) = self.ends.take() {
            on_event(ends.event());
        } else if !self.element.is_empty() {
            on_event(Event::Data(&self.element));
        }
        self.element.clear();
        self.element.shrink_to(KEPT_BUFFER_BYTES);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn elements_of(chunks: &[&[u8]]) -> Vec<String> {
        let mut elements = Elements::default();
        let mut seen = Vec::new();
        for chunk in chunks {
            elements.feed(chunk, |event| {
                seen.push(match event {
                    Event::Data(data) | Event::Named { data, .. } => {
                        String::from_utf8_lossy(data).into_owned()
                    }
                    Event::Oversized { start, end } => format!("<{} and {}>", start.len(), end.len()),
                });
            });
        }
        seen
    }

    #[test]
    fn every_element_is_found() {
        let table: &[(&str, &[&str])] = &[
            ("[{\"a\":1}\n,\r\n{\"b\":[{},{}]}\n]", &["{\"a\":1}", "{\"b\":[{},{}]}"]),
            ("{\"error\":{}}", &["{\"error\":{}}"]),
            (r#"[{"a":"}]{[\"\\"},{"b":"\\\"}"}]"#, &[r#"{"a":"}]{[\"\\"}"#, r#"{"b":"\\\"}"}"#]),
            ("[]", &[]),
            ("", &[]),
            ("[{\"a\":", &[]),
            ("]}]}[{}]", &["{}"]),
        ];
        for (body, expected) in table {
            assert_eq!(elements_of(&[body.as_bytes()]), *expected, "{body}");
            let bytes: Vec<&[u8]> = body.as_bytes().chunks(1).collect();
            assert_eq!(elements_of(&bytes), *expected, "{body}, byte by byte");
        }
    }

    #[test]
    fn a_long_element_is_not_kept_whole() {
        let body = format!("[{{\"a\":\"{}\"}},{{\"b\":1}}]", "x".repeat(MAX_EVENT_BYTES));
        let seen = elements_of(&body.as_bytes().chunks(10_000).collect::<Vec<_>>());
        assert_eq!(seen.len(), 2);
        assert!(seen[0].starts_with("<256 and ") && seen[1] == "{\"b\":1}", "{}", seen[0]);
    }

    proptest! {
        #[test]
        fn the_cut_does_not_matter(
            parts in proptest::collection::vec(
                prop::sample::select(vec!["[", "]", "{", "}", "\"", "\\", ",", "x", "{\"a\":1}"]), 0..40),
            size in 1_usize..9,
        ) {
            let body = parts.concat();
            let chunks: Vec<&[u8]> = body.as_bytes().chunks(size).collect();
            prop_assert_eq!(elements_of(&chunks), elements_of(&[body.as_bytes()]));
        }
    }
}
