//! A provider of chat streams made from an input: it answers each request as OpenAI does, with usage for who asks.
use serde_json::{Value, json};

/// Longest text of a chunk, characters: an event that is too long is not looked into.
const MAX_TEXT_CHARS: usize = 50;
/// Longest text of a request, characters of at most 6 bytes when they are escaped: a request that is too long is not read.
const MAX_REQUEST_CHARS: usize = 500;

/// How an answer goes.
pub struct Answer {
    /// Text of each chunk.
    texts: Vec<String>,
    /// Line end of the stream.
    line_end: &'static str,
    /// Whether the usage stands first in each chunk.
    usage_first: bool,
    /// Spaces around it.
    spaces: bool,
}

/// Makes a request and how it is answered: the first line is what the request has besides its stream, the others are
/// the texts.
#[must_use]
pub fn conversation(bytes: &[u8]) -> (Vec<u8>, Answer) {
    let text = String::from_utf8_lossy(bytes);
    let mut lines = text.split('\n');
    let first = lines.next().unwrap_or_default();
    let choices = first.as_bytes().first().copied().unwrap_or_default();
    let answer = Answer {
        texts: lines.map(|line| line.chars().take(MAX_TEXT_CHARS).collect()).collect(),
        line_end: ["\n", "\r\n", "\r"][usize::from(choices) % 3],
        usage_first: choices & 4 != 0,
        spaces: choices & 8 != 0,
    };
    let extra = Value::from(first.chars().take(MAX_REQUEST_CHARS).collect::<String>());
    let options = ["", r#","stream_options":null"#, r#","stream_options":{}"#][usize::from(choices >> 4) % 3];
    (format!(r#"{{"model":{extra},"stream":true{options}}}"#).into_bytes(), answer)
}

/// The bytes of the answer to this request.
#[must_use]
pub fn stream(request: &[u8], answer: &Answer) -> Vec<u8> {
    let request: Value = serde_json::from_slice(request).expect("a request is JSON");
    let asked = request["stream_options"]["include_usage"] == true;
    let mut stream = String::new();
    let mut send = |data: &str| {
        let end = answer.line_end;
        stream.extend(["data: ", data, end, end]);
    };
    for text in &answer.texts {
        send(&answer.chunk(&json!([{"index": 0, "delta": {"content": text}, "finish_reason": null}]), asked));
    }
    send(&answer.chunk(&json!([{"index": 0, "delta": {}, "finish_reason": "stop"}]), asked));
    if asked {
        send(r#"{"id":"c","choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2}}"#);
    }
    send("[DONE]");
    stream.into_bytes()
}

impl Answer {
    fn chunk(&self, choices: &Value, asked: bool) -> String {
        let usage = if self.spaces { "\"usage\" : null" } else { "\"usage\":null" };
        let choices = format!(r#""choices":{choices}"#);
        match (asked, self.usage_first) {
            (false, _) => format!("{{{choices}}}"),
            (true, true) => format!("{{{usage},{choices}}}"),
            (true, false) => format!("{{{choices},{usage}}}"),
        }
    }
}
