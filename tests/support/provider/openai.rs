//! OpenAI's wire shapes: Chat Completions and Responses, as JSON and as streams, models, errors.
//!
//! Shapes as the public API documentation gives them. No sockets, no bills.
use http::HeaderMap;
use serde_json::{Value, json};

use super::body::Piece;
use super::script::{Finish, Reply};

/// Seconds since 1970 in every `created`: a fixed one, so that answers repeat.
const CREATED: u64 = 1_767_225_600;

type Pieces = Box<dyn Iterator<Item = Piece> + Send>;

/// The chunks of a streamed chat completion; usage only when it was asked for.
pub(super) fn chat_stream(reply: Reply, id: usize, model: &str, include_usage: bool) -> Pieces {
    let include_usage = include_usage && !reply.omit_usage;
    let at_head = reply.bill_at_head().output;
    let at_end = reply.output_after(reply.deltas);
    let tail = chat_tail(&reply, id, model, include_usage);
    let model = model.to_owned();
    let first = chunk(id, &model, json!({"role": "assistant", "content": ""}), None, include_usage);
    let first = unnamed(first.to_string(), at_head, false);
    let deltas = (0..reply.deltas).map(move |index| {
        let event = chunk(id, &model, json!({"content": reply.delta_text(index)}), None, include_usage);
        unnamed(event.to_string(), reply.output_after(index + 1), true)
    });
    let tail = tail.into_iter().map(move |data| unnamed(data, at_end, false));
    Box::new(std::iter::once(first).chain(deltas).chain(tail))
}

fn chat_tail(reply: &Reply, id: usize, model: &str, include_usage: bool) -> Vec<String> {
    if reply.finish == Finish::Failed {
        return vec![error(500).to_string()];
    }
    let mut tail = vec![chunk(id, model, json!({}), Some(finish_reason(reply)), include_usage).to_string()];
    if include_usage {
        let mut last = chunk(id, model, json!({}), None, true);
        last["choices"] = json!([]);
        last["usage"] = chat_usage(reply);
        tail.push(last.to_string());
    }
    tail.push("[DONE]".to_owned());
    tail
}

fn chunk(id: usize, model: &str, delta: Value, finish: Option<&str>, include_usage: bool) -> Value {
    let mut chunk = json!({
        "id": format!("chatcmpl-mock{id:020}"),
        "object": "chat.completion.chunk",
        "created": CREATED,
        "model": model,
        "system_fingerprint": "fp_mock",
        "choices": [{"index": 0, "delta": delta, "logprobs": null, "finish_reason": finish}],
    });
    if include_usage {
        chunk["usage"] = Value::Null;
    }
    chunk
}

/// The JSON answer of a chat completion.
pub(super) fn chat_whole(reply: &Reply, id: usize, model: &str) -> Value {
    let message = json!({"role": "assistant", "content": reply.text(), "refusal": null});
    let mut answer = json!({
        "id": format!("chatcmpl-mock{id:020}"),
        "object": "chat.completion",
        "created": CREATED,
        "model": model,
        "choices": [{"index": 0, "message": message, "logprobs": null, "finish_reason": finish_reason(reply)}],
    });
    if !reply.omit_usage {
        answer["usage"] = chat_usage(reply);
    }
    answer
}

/// The answer of `/v1/embeddings`: input alone is billed.
pub(super) fn embeddings(reply: &Reply, model: &str) -> Value {
    let mut answer = json!({
        "object": "list",
        "model": model,
        "data": [{"object": "embedding", "index": 0, "embedding": [0.25, -0.5]}],
    });
    if !reply.omit_usage {
        let billed = reply.bill();
        answer["usage"] = json!({"prompt_tokens": billed.total(), "total_tokens": billed.total()});
    }
    answer
}

fn chat_usage(reply: &Reply) -> Value {
    let bill = reply.bill();
    let mut details = json!({"cached_tokens": bill.cache_read, "audio_tokens": 0});
    if bill.cache_write > 0 {
        details["cache_write_tokens"] = json!(bill.cache_write);
    }
    json!({
        "prompt_tokens": bill.total() - bill.output,
        "completion_tokens": bill.output,
        "total_tokens": bill.total(),
        "prompt_tokens_details": details,
        "completion_tokens_details": {"reasoning_tokens": bill.reasoning, "audio_tokens": 0},
    })
}

fn finish_reason(reply: &Reply) -> &'static str {
    match reply.finish {
        Finish::Length => "length",
        Finish::Stop | Finish::Failed => "stop",
    }
}

/// The events of a streamed response.
pub(super) fn responses_stream(reply: Reply, id: usize, model: &str) -> Pieces {
    let at_head = reply.bill_at_head().output;
    let at_end = reply.output_after(reply.deltas);
    let item = format!("msg_mock{id:020}");
    let head = responses_head(&reply, id, model, &item);
    let tail = responses_tail(&reply, id, model, &item);
    let tail_first = head.len() + reply.deltas;
    let deltas_first = head.len();
    let head =
        head.into_iter().enumerate().map(move |(n, (name, event))| named(name, event, n, at_head, false));
    let deltas = (0..reply.deltas).map(move |index| {
        let name = "response.output_text.delta";
        let event = json!({
            "item_id": item, "output_index": 0, "content_index": 0, "delta": reply.delta_text(index),
            "logprobs": [],
        });
        named(name, event, deltas_first + index, reply.output_after(index + 1), true)
    });
    let tail = tail.into_iter().enumerate();
    let tail = tail.map(move |(n, (name, event))| named(name, event, tail_first + n, at_end, false));
    Box::new(head.chain(deltas).chain(tail))
}

type Named = (&'static str, Value);

fn responses_head(reply: &Reply, id: usize, model: &str, item: &str) -> Vec<Named> {
    let response = response(reply, id, model, "in_progress", json!([]), false);
    let empty =
        json!({"id": item, "type": "message", "status": "in_progress", "role": "assistant", "content": []});
    let part = json!({"type": "output_text", "text": "", "annotations": []});
    vec![
        ("response.created", json!({"response": response})),
        ("response.in_progress", json!({"response": response})),
        ("response.output_item.added", json!({"output_index": 0, "item": empty})),
        (
            "response.content_part.added",
            json!({"item_id": item, "output_index": 0, "content_index": 0, "part": part}),
        ),
    ]
}

fn responses_tail(reply: &Reply, id: usize, model: &str, item: &str) -> Vec<Named> {
    let status = response_status(reply);
    let name = match reply.finish {
        Finish::Stop => "response.completed",
        Finish::Length => "response.incomplete",
        Finish::Failed => "response.failed",
    };
    let output = output_item(reply, item, status);
    let call = function_call(reply, id);
    let whole: Vec<&Value> = std::iter::once(&output).chain(&call).collect();
    let last = json!({"response": response(reply, id, model, status, json!(whole), true)});
    if reply.finish == Finish::Failed {
        return vec![(name, last)];
    }
    let part = &output["content"][0];
    let at = json!({"item_id": item, "output_index": 0, "content_index": 0});
    let (mut text_done, mut part_done) = (at.clone(), at);
    text_done["text"] = part["text"].clone();
    part_done["part"] = part.clone();
    let mut tail = vec![
        ("response.output_text.done", text_done),
        ("response.content_part.done", part_done),
        ("response.output_item.done", json!({"output_index": 0, "item": output})),
    ];
    if let Some(call) = call {
        tail.push(("response.output_item.added", json!({"output_index": 1, "item": call})));
        tail.push(("response.output_item.done", json!({"output_index": 1, "item": call})));
    }
    tail.push((name, last));
    tail
}

/// The JSON answer of a response.
pub(super) fn responses_whole(reply: &Reply, id: usize, model: &str) -> Value {
    let status = response_status(reply);
    let output = output_item(reply, &format!("msg_mock{id:020}"), status);
    let whole: Vec<Value> = std::iter::once(output).chain(function_call(reply, id)).collect();
    response(reply, id, model, status, json!(whole), true)
}

fn response(reply: &Reply, id: usize, model: &str, status: &str, output: Value, ended: bool) -> Value {
    let length = ended && reply.finish == Finish::Length;
    let failed = ended && reply.finish == Finish::Failed;
    json!({
        "id": format!("resp_mock{id:020}"),
        "object": "response",
        "created_at": CREATED,
        "status": status,
        "background": false,
        "error": if failed { json!({"code": "server_error", "message": "The server had an error"}) } else { Value::Null },
        "incomplete_details": if length { json!({"reason": "max_output_tokens"}) } else { Value::Null },
        "model": model,
        "output": output,
        "usage": if ended && !reply.omit_usage { responses_usage(reply) } else { Value::Null },
    })
}

fn output_item(reply: &Reply, item: &str, status: &str) -> Value {
    let content = json!([{"type": "output_text", "text": reply.text(), "annotations": []}]);
    json!({"id": item, "type": "message", "status": status, "role": "assistant", "content": content})
}

/// The call of a tool, if there is one.
fn function_call(reply: &Reply, id: usize) -> Option<Value> {
    let name = reply.call?;
    Some(json!({
        "id": format!("fc_mock{id:020}"),
        "type": "function_call",
        "status": "completed",
        "call_id": format!("call_mock{id:020}"),
        "name": name,
        "arguments": "{}",
    }))
}

fn response_status(reply: &Reply) -> &'static str {
    match reply.finish {
        Finish::Stop => "completed",
        Finish::Length => "incomplete",
        Finish::Failed => "failed",
    }
}

fn responses_usage(reply: &Reply) -> Value {
    let bill = reply.bill();
    let mut details = json!({"cached_tokens": bill.cache_read});
    if bill.cache_write > 0 {
        details["cache_write_tokens"] = json!(bill.cache_write);
    }
    json!({
        "input_tokens": bill.total() - bill.output,
        "input_tokens_details": details,
        "output_tokens": bill.output,
        "output_tokens_details": {"reasoning_tokens": bill.reasoning},
        "total_tokens": bill.total(),
    })
}

/// The answer of `/v1/models`.
pub(super) fn models() -> Value {
    json!({"object": "list", "data": [{"id": "gpt-mock-1", "object": "model", "created": CREATED, "owned_by": "mock"}]})
}

/// The answer of `/backend-api/wham/accounts/check`: the account that asks is at home on this host.
pub(super) fn account(asked: &HeaderMap) -> Value {
    let id = asked.get("chatgpt-account-id").and_then(|id| id.to_str().ok()).unwrap_or_default();
    let anywhere = "NO_CONSTRAINT";
    let account = json!({
        "id": id, "structure": "personal", "plan_type": "pro",
        "workspace_backend_origin": anywhere, "account_routing_override": anywhere,
    });
    json!({"accounts": [account], "account_ordering": [id], "default_account_id": id})
}

/// The error of a status.
pub(super) fn error(status: u16) -> Value {
    let (kind, code, message) = match status {
        400 => ("invalid_request_error", Value::Null, "the mock cannot read this request"),
        401 => ("invalid_request_error", json!("invalid_api_key"), "Incorrect API key provided"),
        404 => ("invalid_request_error", Value::Null, "Not found"),
        429 => ("requests", json!("rate_limit_exceeded"), "Rate limit reached"),
        _ => ("server_error", Value::Null, "The server had an error while processing your request"),
    };
    json!({"error": {"message": message, "type": kind, "param": null, "code": code}})
}

fn unnamed(data: String, output: u64, paced: bool) -> Piece {
    Piece { name: None, data, output, paced }
}

fn named(name: &'static str, mut event: Value, sequence_number: usize, output: u64, paced: bool) -> Piece {
    event["type"] = json!(name);
    event["sequence_number"] = json!(sequence_number);
    Piece { name: Some(name), data: event.to_string(), output, paced }
}
