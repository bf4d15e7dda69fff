//! Bedrock's wire shapes: `invoke` of a Claude model and Converse, as JSON and as a binary event stream, errors.
//!
//! Shapes as the public API documentation gives them. No sockets, no bills.
use aws_smithy_eventstream::frame::write_message_to;
use aws_smithy_types::base64;
use aws_smithy_types::event_stream::{Header, HeaderValue, Message};
use serde_json::{Value, json};

use super::anthropic;
use super::body::Piece;
use super::script::{Finish, Reply};

type Pieces = Box<dyn Iterator<Item = Piece> + Send>;

/// The name of the event that ends a stream with an error.
pub(super) const EXCEPTION: &str = "modelStreamErrorException";

/// One event as the wire has it.
pub(super) fn frame(name: &str, payload: &str) -> Vec<u8> {
    let (kind, message_type) =
        if name == EXCEPTION { (":exception-type", "exception") } else { (":event-type", "event") };
    let text = |text: &str| HeaderValue::String(text.to_owned().into());
    let message = Message::new(payload.as_bytes().to_vec())
        .add_header(Header::new(kind, text(name)))
        .add_header(Header::new(":content-type", text("application/json")))
        .add_header(Header::new(":message-type", text(message_type)));
    let mut bytes = Vec::new();
    write_message_to(&message, &mut bytes).expect("an event of the mock's own making");
    bytes
}

/// The events of `invoke-with-response-stream`: the model's own, in base64.
pub(super) fn invoke_stream(reply: Reply, id: usize, model: &str) -> Pieces {
    let metrics = json!({
        "inputTokenCount": reply.input,
        "outputTokenCount": reply.output_after(reply.deltas),
        "cacheReadInputTokenCount": reply.cache_read,
        "cacheWriteInputTokenCount": reply.cache_write,
        "invocationLatency": 10,
        "firstByteLatency": 1,
    });
    let omit_usage = reply.omit_usage;
    Box::new(anthropic::stream(reply, id, model).map(move |piece| match piece.name {
        Some("error") => {
            Piece { name: Some(EXCEPTION), data: json!({"message": "The model died"}).to_string(), ..piece }
        }
        name => {
            let mut data = piece.data;
            if name == Some("message_stop") && !omit_usage {
                data =
                    json!({"type": "message_stop", "amazon-bedrock-invocationMetrics": metrics}).to_string();
            }
            let data = json!({"bytes": base64::encode(data), "p": "abcd"}).to_string();
            Piece { name: Some("chunk"), data, ..piece }
        }
    }))
}

/// The events of `converse-stream`.
pub(super) fn converse_stream(reply: Reply) -> Pieces {
    let (at_head, at_end) = (reply.bill_at_head().output, reply.output_after(reply.deltas));
    let piece =
        |name, data: Value, output, paced| Piece { name: Some(name), data: data.to_string(), output, paced };
    let head = piece("messageStart", json!({"role": "assistant", "p": "ab"}), at_head, false);
    let mut tail = if reply.finish == Finish::Failed {
        vec![piece(EXCEPTION, json!({"message": "The model died"}), at_end, false)]
    } else {
        vec![
            piece("contentBlockStop", json!({"contentBlockIndex": 0}), at_end, false),
            piece("messageStop", json!({"stopReason": stop_reason(&reply)}), at_end, false),
        ]
    };
    if reply.finish != Finish::Failed && !reply.omit_usage {
        let metadata = json!({"usage": converse_usage(&reply), "metrics": {"latencyMs": 10}});
        tail.push(piece("metadata", metadata, at_end, false));
    }
    let deltas = (0..reply.deltas).map(move |index| {
        let data = json!({"contentBlockIndex": 0, "delta": {"text": reply.delta_text(index)}});
        piece("contentBlockDelta", data, reply.output_after(index + 1), true)
    });
    Box::new(std::iter::once(head).chain(deltas).chain(tail))
}

/// The JSON answer of Converse.
pub(super) fn converse_whole(reply: &Reply) -> Value {
    let message = json!({"role": "assistant", "content": [{"text": reply.text()}]});
    let mut answer = json!({
        "output": {"message": message},
        "stopReason": stop_reason(reply),
        "metrics": {"latencyMs": 10},
    });
    if !reply.omit_usage {
        answer["usage"] = converse_usage(reply);
    }
    answer
}

/// The headers of a JSON answer of `invoke`.
pub(super) fn counts_in_head(reply: &Reply) -> Vec<(&'static str, u64)> {
    let counts = vec![
        ("x-amzn-bedrock-input-token-count", reply.input),
        ("x-amzn-bedrock-output-token-count", reply.output_after(reply.deltas)),
        ("x-amzn-bedrock-cache-read-input-token-count", reply.cache_read),
        ("x-amzn-bedrock-cache-write-input-token-count", reply.cache_write),
    ];
    if reply.omit_usage { Vec::new() } else { counts }
}

fn converse_usage(reply: &Reply) -> Value {
    let bill = Reply::bill(reply);
    json!({
        "inputTokens": bill.input,
        "outputTokens": bill.output,
        "totalTokens": bill.total(),
        "cacheReadInputTokens": bill.cache_read,
        "cacheWriteInputTokens": bill.cache_write,
        "cacheDetails": [{"inputTokens": bill.cache_write, "ttl": "5m"}],
    })
}

fn stop_reason(reply: &Reply) -> &'static str {
    match reply.finish {
        Finish::Length => "max_tokens",
        Finish::Stop | Finish::Failed => "end_turn",
    }
}

/// The error of a status.
pub(super) fn error(status: u16) -> Value {
    json!({"message": format!("the mock answers {status}")})
}
