//! Takes out of a chat stream what is in it because the meter asked for usage: the chunk with the figures, and the
//! `"usage":null` of every chunk before it. All other bytes pass as they are.
use memchr::memmem;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::ask::{place, stated};
use crate::events::Event;
use crate::limits::limit;
use crate::sse::Parser;
use crate::usage::read::{Raw, list, object};

/// Longest event that is looked into, bytes; a longer one passes. The one with the figures is short.
const MAX_LOOKED_INTO: usize = limit(256 * 1024, 512);

#[derive(Deserialize)]
struct Chunk<'a> {
    #[serde(borrow)]
    choices: Raw<'a>,
    #[serde(borrow, default, deserialize_with = "stated")]
    usage: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Choice<'a> {
    #[serde(borrow)]
    finish_reason: Raw<'a>,
}

/// The state between two pieces of a stream.
#[derive(Debug)]
pub struct Hiding {
    /// The event under way.
    event: Vec<u8>,
    line_is_empty: bool,
    after_cr: bool,
    /// The event is too long: it passes.
    passes: bool,
    /// The last event was taken out, and so is what still belongs to its end.
    is_hidden: bool,
    /// A choice has come to its end.
    finished: bool,
    /// The chunk with the figures was taken out: there is no second one.
    done: bool,
}

impl Default for Hiding {
    fn default() -> Self {
        Self {
            event: Vec::new(),
            line_is_empty: true,
            after_cr: false,
            passes: false,
            is_hidden: false,
            finished: false,
            done: false,
        }
    }
}

impl Hiding {
    /// Takes the next bytes; what of them, and of earlier ones, may pass.
    pub fn feed(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut passing = Vec::with_capacity(bytes.len());
        for &byte in bytes {
            let ends_crlf = std::mem::take(&mut self.after_cr) && byte == b'\n';
            if ends_crlf && self.event.is_empty() && !self.passes {
                // the second half of the line end that ended the event
                if !self.is_hidden {
                    passing.push(byte);
                }
                continue;
            }
            self.event.push(byte);
            let ends_line = matches!(byte, b'\r' | b'\n') && !ends_crlf;
            self.after_cr = byte == b'\r';
            if ends_line && self.line_is_empty {
                self.end_event(&mut passing);
            }
            self.line_is_empty = ends_line || ends_crlf;
            self.passes |= self.event.len() > MAX_LOOKED_INTO;
            if self.passes {
                passing.append(&mut self.event);
            }
        }
        passing
    }

    /// The stream is over: what is left of it.
    pub fn end(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.event)
    }

    fn end_event(&mut self, passing: &mut Vec<u8>) {
        if !std::mem::take(&mut self.passes) {
            self.is_hidden = self.look_into();
        }
        if !self.is_hidden {
            passing.append(&mut self.event);
        }
        self.event.clear();
    }

    /// Looks into a whole event and takes out of it what is not the client's; whether all of it is.
    fn look_into(&mut self) -> bool {
        let mut data = Vec::new();
        Parser::new().feed(&self.event, |event| {
            if let Event::Data(bytes) = event {
                data = bytes.to_vec();
            }
        });
        let Some(chunk) = object::<Chunk<'_>>(&data) else { return false };
        self.finished |= list::<Choice<'_>>(chunk.choices).any(|choice| choice.finish_reason.is_some());
        let Some(usage) = chunk.usage else { return false };
        if usage.get() == "null" {
            self.take_out_null(&data, place(&data, usage).start);
            return false;
        }
        let without_choices = chunk.choices.is_some_and(|choices| is_empty_list(choices.get()));
        let is_ours = without_choices && usage.get().starts_with('{') && self.finished && !self.done;
        self.done |= is_ours;
        is_ours
    }

    /// Takes the member whose value is the null at `null` in `data` out of the event, and one comma with it.
    fn take_out_null(&mut self, data: &[u8], null: usize) {
        const KEY: &[u8] = b"\"usage\"";
        let before = data[..null].trim_ascii_end().strip_suffix(b":").map(<[u8]>::trim_ascii_end);
        let Some(before) = before.and_then(|before| before.strip_suffix(KEY)) else { return };
        let after = &data[null + b"null".len()..];
        let (kept_before, kept_after) = match before.trim_ascii_end().strip_suffix(b",") {
            Some(kept) => (kept, after),
            None => (before, after.trim_ascii_start().strip_prefix(b",").unwrap_or(after)),
        };
        // data of several lines stands nowhere in the event as one
        let Some(at) = memmem::find(&self.event, data) else { return };
        let rest = &self.event[at + data.len()..];
        self.event = [&self.event[..at], kept_before, kept_after, rest].concat();
    }
}

fn is_empty_list(json: &str) -> bool {
    json.strip_prefix('[').is_some_and(|rest| rest.trim_ascii_start() == "]")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn hidden(stream: &str, size: usize) -> String {
        let mut hiding = Hiding::default();
        let mut passed: Vec<u8> =
            stream.as_bytes().chunks(size).flat_map(|piece| hiding.feed(piece)).collect();
        passed.extend(hiding.end());
        String::from_utf8(passed).unwrap()
    }

    /// As OpenAI sends it to who asks for usage, and to who does not.
    fn streams(end: &str) -> (String, String) {
        let asked = [
            r#"{"id":"c","choices":[{"delta":{"content":"a \"usage\":null b"},"finish_reason":null}],"usage":null,"obfuscation":"x"}"#,
            r#"{"usage" : null , "choices":[{"delta":{},"finish_reason":"stop"}]}"#,
            r#"{"id":"c","choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2}}"#,
            "[DONE]",
        ];
        let unasked = [
            r#"{"id":"c","choices":[{"delta":{"content":"a \"usage\":null b"},"finish_reason":null}],"obfuscation":"x"}"#,
            r#"{ "choices":[{"delta":{},"finish_reason":"stop"}]}"#,
            "[DONE]",
        ];
        let framed = |events: &[&str]| -> String {
            let comment = format!("\u{feff}: hello{end}{end}");
            events.iter().fold(comment, |text, data| format!("{text}data: {data}{end}{end}"))
        };
        (framed(&asked), framed(&unasked))
    }

    #[test]
    fn the_client_sees_what_it_asked_for() {
        for end in ["\n", "\r\n", "\r"] {
            let (asked, unasked) = streams(end);
            for size in [1, 3, 64, asked.len()] {
                assert_eq!(hidden(&asked, size), unasked, "{end:?} in pieces of {size}");
            }
            assert_eq!(hidden(&unasked, 7), unasked, "nothing else is touched");
        }
    }

    #[test]
    fn only_the_chunk_that_was_asked_for_goes() {
        let figures = r#""usage":{"prompt_tokens":1}"#;
        for stays in [
            format!("data: {{\"choices\":[{{\"delta\":{{}},\"finish_reason\":\"stop\"}}],{figures}}}\n\n"),
            format!("data: {{\"choices\":[],{figures}}}\n\n"),
            "data: {\"choices\":[],\"prompt_filter_results\":[]}\n\n".to_owned(),
            "data: {\"choices\":[],\ndata: \"usage\":null}\n\n".to_owned(),
            "data: {\"usage\":\n\nid: 5\n\n\n\nhalf an ev".to_owned(),
        ] {
            assert_eq!(hidden(&stays, 5), stays);
        }
        let end = "data: {\"choices\":[{\"finish_reason\":\"stop\"}]}\n\n";
        let one = format!("data: {{\"choices\":[ ],{figures}}}\n\n");
        assert_eq!(
            hidden(&format!("{end}{one}{one}"), 9),
            format!("{end}{one}"),
            "the second is the server's"
        );
    }

    #[test]
    fn a_long_event_passes_as_it_comes() {
        let long = format!("data: {}\n\ndata: {{\"usage\":null}}\n\n", "x".repeat(MAX_LOOKED_INTO + 9));
        let mut hiding = Hiding::default();
        hiding.feed(&long.as_bytes()[..MAX_LOOKED_INTO + 4]);
        assert!(hiding.event.is_empty(), "memory stays bounded");
        let short = long.replace("\"usage\":null", "");
        assert_eq!(hidden(&long, 1000), short);
    }

    proptest! {
        #[test]
        fn any_cut_gives_the_same_and_anything_else_passes(
            noise in proptest::collection::vec(
                prop::sample::select(vec!["\r", "\n", "data: {}", "data:", ": x", "\u{feff}", "\n\n"]), 0..30),
            size in 1_usize..40,
        ) {
            let noise = noise.concat();
            prop_assert_eq!(hidden(&noise, size), &noise[..]);
            let (asked, unasked) = streams("\n");
            prop_assert_eq!(hidden(&asked, size), unasked);
        }
    }
}
