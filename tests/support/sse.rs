//! Server-sent events as a client reads them: enough for what the mock sends, whatever the line ends.
//!
//! Written apart from the product's own reader.

/// One event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Its `event:` field; empty without one.
    pub name: String,
    /// Its `data:` lines, joined by line feeds.
    pub data: String,
}

/// Collects bytes and gives events as they become complete.
#[derive(Default)]
pub struct Reader {
    line: Vec<u8>,
    name: String,
    data: Vec<String>,
    after_cr: bool,
    bom_seen: bool,
}

impl Reader {
    /// Events that these bytes complete.
    pub fn feed(&mut self, bytes: &[u8]) -> Vec<Event> {
        let mut events = Vec::new();
        for &byte in bytes {
            let second_half_of_crlf = byte == b'\n' && self.after_cr;
            self.after_cr = byte == b'\r';
            match byte {
                _ if second_half_of_crlf => {}
                b'\n' | b'\r' => events.extend(self.end_line()),
                _ => self.line.push(byte),
            }
        }
        events
    }

    fn end_line(&mut self) -> Option<Event> {
        let line = String::from_utf8_lossy(&std::mem::take(&mut self.line)).into_owned();
        let line = if self.bom_seen { line.as_str() } else { line.trim_start_matches('\u{feff}') };
        self.bom_seen = true;
        if line.is_empty() {
            return self.end_event();
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => value.clone_into(&mut self.name),
            "data" => self.data.push(value.to_owned()),
            _ => {}
        }
        None
    }

    fn end_event(&mut self) -> Option<Event> {
        let name = std::mem::take(&mut self.name);
        let data = std::mem::take(&mut self.data);
        (!data.is_empty()).then(|| Event { name, data: data.join("\n") })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_ends_comments_and_splits_do_not_matter() {
        let text = "\u{feff}event: a\r\ndata: 1\r\n\r\n: odd\n\ndata:2\ndata: 3\n\nevent: c\rdata: 4\r\r";
        let expected = [("a", "1"), ("", "2\n3"), ("c", "4")];
        for size in 1..text.len() {
            let mut reader = Reader::default();
            let events: Vec<_> = text.as_bytes().chunks(size).flat_map(|part| reader.feed(part)).collect();
            let seen: Vec<_> = events.iter().map(|e| (e.name.as_str(), e.data.as_str())).collect();
            assert_eq!(seen, expected, "split every {size} bytes");
        }
    }
}
