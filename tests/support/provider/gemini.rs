//! Gemini's wire shapes: `generateContent` as JSON, as server-sent events and as a JSON array, errors.
//!
//! Shapes as the public API documentation gives them. No sockets, no bills.
use serde_json::{Value, json};

use super::body::Piece;
use super::script::{Finish, Reply};

/// The chunks of a streamed answer; as elements of an array, brackets and commas come with them.
pub(super) fn stream(
    reply: Reply,
    id: usize,
    model: &str,
    array: bool,
) -> Box<dyn Iterator<Item = Piece> + Send> {
    let last = if reply.finish == Finish::Failed {
        error(503)
    } else {
        chunk(&reply, id, model, "", reply.deltas, true)
    };
    let at_end = reply.output_after(reply.deltas);
    let model = model.to_owned();
    let deltas = (0..reply.deltas).map(move |index| {
        let data = chunk(&reply, id, &model, &reply.delta_text(index), index + 1, false);
        Piece { name: None, data: data.to_string(), output: reply.output_after(index + 1), paced: true }
    });
    let last = Piece { name: None, data: last.to_string(), output: at_end, paced: false };
    let pieces = deltas.chain(std::iter::once(last));
    if !array {
        return Box::new(pieces);
    }
    let opened = pieces.enumerate().map(|(index, piece)| {
        let before = if index == 0 { "[" } else { ",\r\n" };
        Piece { data: format!("{before}{}", piece.data), ..piece }
    });
    let closing = Piece { name: None, data: "\n]".to_owned(), output: at_end, paced: false };
    Box::new(opened.chain(std::iter::once(closing)))
}

fn chunk(reply: &Reply, id: usize, model: &str, text: &str, deltas_sent: usize, ended: bool) -> Value {
    let mut candidate = json!({"content": {"parts": [{"text": text}], "role": "model"}, "index": 0});
    if ended {
        candidate["finishReason"] = json!(finish_reason(reply));
    }
    let mut chunk = json!({
        "candidates": [candidate],
        "modelVersion": model,
        "responseId": format!("mock{id:020}"),
    });
    if !reply.omit_usage {
        chunk["usageMetadata"] = usage(reply, reply.output_after(deltas_sent));
    }
    chunk
}

/// The JSON answer.
pub(super) fn whole(reply: &Reply, id: usize, model: &str) -> Value {
    chunk(reply, id, model, &reply.text(), reply.deltas, true)
}

/// What is zero is not written.
fn usage(reply: &Reply, output: u64) -> Value {
    let prompt = reply.input + reply.cache_read;
    let counts = [
        ("promptTokenCount", prompt),
        ("candidatesTokenCount", output - reply.reasoning),
        ("totalTokenCount", prompt + output),
        ("cachedContentTokenCount", reply.cache_read),
        ("thoughtsTokenCount", reply.reasoning),
    ];
    counts
        .into_iter()
        .filter(|(_, count)| *count > 0)
        .map(|(name, count)| (name.to_owned(), json!(count)))
        .collect()
}

fn finish_reason(reply: &Reply) -> &'static str {
    match reply.finish {
        Finish::Length => "MAX_TOKENS",
        Finish::Stop | Finish::Failed => "STOP",
    }
}

/// The error of a status.
pub(super) fn error(status: u16) -> Value {
    let (name, message) = match status {
        400 => ("INVALID_ARGUMENT", "the mock cannot read this request"),
        401 => ("UNAUTHENTICATED", "API key not valid"),
        404 => ("NOT_FOUND", "Not found"),
        429 => ("RESOURCE_EXHAUSTED", "You exceeded your current quota"),
        503 => ("UNAVAILABLE", "The model is overloaded"),
        _ => ("INTERNAL", "An internal error has occurred"),
    };
    json!({"error": {"code": status, "message": message, "status": name}})
}
