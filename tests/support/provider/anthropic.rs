//! Anthropic's wire shapes: Messages as JSON and as a stream, token counts, models, errors.
//!
//! Shapes as the public API documentation gives them. No sockets, no bills.
use serde_json::{Value, json};

use super::body::Piece;
use super::script::{Finish, Reply};

/// The events of a streamed message.
pub(super) fn stream(reply: Reply, id: usize, model: &str) -> Box<dyn Iterator<Item = Piece> + Send> {
    let at_head = reply.bill_at_head().output;
    let head = [message_start(&reply, id, model), block_start(), json!({"type": "ping"})];
    let tail = tail(&reply, id);
    let at_end = reply.output_after(reply.deltas);
    let head = head.into_iter().map(move |event| piece(&event, at_head, false));
    let deltas = (0..reply.deltas).map(move |index| {
        let delta = json!({"type": "text_delta", "text": reply.delta_text(index)});
        piece(
            &json!({"type": "content_block_delta", "index": 0, "delta": delta}),
            reply.output_after(index + 1),
            true,
        )
    });
    let tail = tail.into_iter().map(move |event| piece(&event, at_end, false));
    Box::new(head.chain(deltas).chain(tail))
}

fn message_start(reply: &Reply, id: usize, model: &str) -> Value {
    let mut message = message(id, model, json!([]), Value::Null);
    if !reply.omit_usage {
        message["usage"] = usage(reply, reply.bill_at_head().output);
    }
    json!({"type": "message_start", "message": message})
}

fn block_start() -> Value {
    json!({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}})
}

fn tail(reply: &Reply, id: usize) -> Vec<Value> {
    if reply.finish == Finish::Failed {
        return vec![error(529)];
    }
    let delta = json!({"stop_reason": stop_reason(reply), "stop_sequence": null});
    let mut message_delta = json!({"type": "message_delta", "delta": delta});
    if !reply.omit_usage {
        message_delta["usage"] = json!({
            "input_tokens": reply.input,
            "cache_creation_input_tokens": reply.cache_write,
            "cache_read_input_tokens": reply.cache_read,
            "output_tokens": reply.output_after(reply.deltas),
        });
    }
    let mut tail = vec![json!({"type": "content_block_stop", "index": 0})];
    if let Some(call) = tool_use(reply, id) {
        tail.push(json!({"type": "content_block_start", "index": 1, "content_block": call}));
        tail.push(json!({"type": "content_block_stop", "index": 1}));
    }
    tail.extend([message_delta, json!({"type": "message_stop"})]);
    tail
}

/// The call of a tool, if there is one.
fn tool_use(reply: &Reply, id: usize) -> Option<Value> {
    let name = reply.call?;
    Some(json!({"type": "tool_use", "id": format!("toolu_mock{id:020}"), "name": name, "input": {}}))
}

/// The JSON answer.
pub(super) fn whole(reply: &Reply, id: usize, model: &str) -> Value {
    let text = json!({"type": "text", "text": reply.text()});
    let content: Vec<Value> = std::iter::once(text).chain(tool_use(reply, id)).collect();
    let mut message = message(id, model, json!(content), json!(stop_reason(reply)));
    if !reply.omit_usage {
        message["usage"] = usage(reply, reply.output_after(reply.deltas));
    }
    message
}

fn message(id: usize, model: &str, content: Value, stop_reason: Value) -> Value {
    json!({
        "id": format!("msg_mock{id:020}"),
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": content,
        "stop_reason": stop_reason,
        "stop_sequence": null,
    })
}

fn usage(reply: &Reply, output: u64) -> Value {
    json!({
        "input_tokens": reply.input,
        "cache_creation_input_tokens": reply.cache_write,
        "cache_read_input_tokens": reply.cache_read,
        "cache_creation": {"ephemeral_5m_input_tokens": reply.cache_write, "ephemeral_1h_input_tokens": 0},
        "output_tokens": output,
        "service_tier": "standard",
    })
}

fn stop_reason(reply: &Reply) -> &'static str {
    match reply.finish {
        Finish::Length => "max_tokens",
        Finish::Stop if reply.call.is_some() => "tool_use",
        Finish::Stop | Finish::Failed => "end_turn",
    }
}

/// The answer of `/v1/messages/count_tokens`.
pub(super) fn count(reply: &Reply) -> Value {
    json!({"input_tokens": reply.input + reply.cache_write + reply.cache_read})
}

/// The answer of `/v1/models`.
pub(super) fn models() -> Value {
    let model = json!({
        "type": "model",
        "id": "claude-mock-1",
        "display_name": "Claude Mock 1",
        "created_at": "2026-01-01T00:00:00Z",
    });
    json!({"data": [model], "has_more": false, "first_id": "claude-mock-1", "last_id": "claude-mock-1"})
}

/// The error of a status.
pub(super) fn error(status: u16) -> Value {
    let (kind, message) = match status {
        400 => ("invalid_request_error", "the mock cannot read this request"),
        401 => ("authentication_error", "invalid x-api-key"),
        404 => ("not_found_error", "Not found"),
        429 => ("rate_limit_error", "This request would exceed your rate limit"),
        529 => ("overloaded_error", "Overloaded"),
        _ => ("api_error", "Internal server error"),
    };
    json!({"type": "error", "error": {"type": kind, "message": message}})
}

fn piece(event: &Value, output: u64, paced: bool) -> Piece {
    Piece { name: event["type"].as_str().map(event_name), data: event.to_string(), output, paced }
}

/// The event's name is its data's type.
fn event_name(kind: &str) -> &'static str {
    const NAMES: [&str; 8] = [
        "message_start",
        "content_block_start",
        "ping",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
        "error",
    ];
    NAMES.into_iter().find(|name| *name == kind).expect("every event of the mock is in the list")
}
