//! The tables of endpoints: which cost tokens, which are free, which cannot be metered.
use super::Shape;
use crate::protocol::Dialect;

/// What a request to a metered host is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// Costs tokens; the answer has this shape.
    Billing(Shape),
    /// Costs none: login, telemetry, models, counting, stored answers.
    Free,
    /// In no table: passes, tailed as [`Shape::Any`], audited.
    Unlisted,
    /// Costs tokens that its answer does not report; the reason in words.
    Refused(&'static str),
}

const BATCH: &str = "a batch reports its usage hours later, where no budget can stop it";

/// Looks up the endpoint. `path` has no query, and no gateway prefix.
#[must_use]
pub fn endpoint(dialect: Dialect, method: &str, path: &str) -> Endpoint {
    // a path that a server may read as another one is in no table
    if path.contains(['%', '\\', ';']) || path.split('/').any(|segment| matches!(segment, "." | "..")) {
        return Endpoint::Unlisted;
    }
    let segments: Vec<&str> = path.split('/').filter(|segment| !segment.is_empty()).collect();
    match dialect {
        Dialect::Anthropic => anthropic(method, &segments),
        Dialect::Openai => openai(method, &segments),
        Dialect::OpenaiChat => openai_chat(method, &segments),
    }
}

fn anthropic(method: &str, path: &[&str]) -> Endpoint {
    match (method, path) {
        ("POST", ["v1", "messages"]) => Endpoint::Billing(Shape::AnthropicMessages),
        ("POST", ["v1", "messages", "count_tokens"]) => Endpoint::Free,
        ("POST", ["v1", "messages", "batches"]) => Endpoint::Refused(BATCH),
        (
            _,
            ["v1", "messages", "batches", ..] | ["v1", "models" | "files" | "organizations" | "oauth", ..],
        ) => Endpoint::Free,
        (_, ["api" | "oauth" | ".well-known", ..]) => Endpoint::Free,
        _ => Endpoint::Unlisted,
    }
}

fn openai(method: &str, path: &[&str]) -> Endpoint {
    match (method, path) {
        ("POST", ["v1", rest @ ..] | ["backend-api", "codex", rest @ ..])
            if matches!(rest, ["responses"] | ["responses", "compact"]) =>
        {
            Endpoint::Billing(Shape::OpenaiResponses)
        }
        // reading a stored answer repeats usage that was charged when it was made
        ("GET" | "DELETE", ["v1", "responses", _, ..]) | ("POST", ["v1", "responses", _, "cancel"]) => {
            Endpoint::Free
        }
        ("POST", ["v1", "responses", "input_tokens"]) => Endpoint::Free,
        (_, ["backend-api", "codex", "responses", ..]) => Endpoint::Unlisted,
        (_, ["backend-api" | "oauth" | ".well-known", ..]) => Endpoint::Free,
        _ => openai_chat(method, path),
    }
}

/// Compatible servers put the same endpoints below prefixes of their own.
fn openai_chat(method: &str, path: &[&str]) -> Endpoint {
    match (method, path) {
        ("POST", [.., "completions" | "embeddings"]) => Endpoint::Billing(Shape::OpenaiChat),
        ("POST", [.., "batches"]) => Endpoint::Refused(BATCH),
        ("GET", [.., "batches"] | [.., "batches", _] | [.., "models"] | [.., "models", _]) => Endpoint::Free,
        (_, ["v1", "files" | "uploads" | "moderations", ..]) => Endpoint::Free,
        _ => Endpoint::Unlisted,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_by_dialect() {
        use Dialect::{Anthropic, Openai, OpenaiChat as Compatible};
        use Endpoint::{Billing, Free, Refused, Unlisted};
        use Shape::{AnthropicMessages, OpenaiChat, OpenaiResponses};
        let table = [
            (Anthropic, "POST", "/v1/messages", Billing(AnthropicMessages)),
            (Anthropic, "POST", "/v1//messages/", Billing(AnthropicMessages)),
            (Anthropic, "GET", "/v1/messages", Unlisted),
            (Anthropic, "POST", "/v1/messages/count_tokens", Free),
            (Anthropic, "POST", "/v1/messages/batches", Refused(BATCH)),
            (Anthropic, "GET", "/v1/messages/batches/b1/results", Free),
            (Anthropic, "GET", "/v1/models", Free),
            (Anthropic, "POST", "/api/event_logging/batch", Free),
            (Anthropic, "POST", "/api/../v1/messages", Unlisted),
            (Anthropic, "POST", "/api/%2e%2e/v1/messages", Unlisted),
            (Anthropic, "POST", "/v1/complete", Unlisted),
            (Openai, "POST", "/v1/responses", Billing(OpenaiResponses)),
            (Openai, "POST", "/v1/responses/compact", Billing(OpenaiResponses)),
            (Openai, "POST", "/v1/responses/input_tokens", Free),
            (Openai, "GET", "/v1/responses/resp_1", Free),
            (Openai, "GET", "/v1/responses", Unlisted),
            (Openai, "POST", "/backend-api/codex/responses", Billing(OpenaiResponses)),
            (Openai, "POST", "/backend-api/codex/responses/other", Unlisted),
            (Openai, "GET", "/backend-api/wham/usage", Free),
            (Openai, "POST", "/v1/chat/completions", Billing(OpenaiChat)),
            (Openai, "POST", "/v1/completions", Billing(OpenaiChat)),
            (Openai, "POST", "/v1/embeddings", Billing(OpenaiChat)),
            (Openai, "GET", "/v1/chat/completions", Unlisted),
            (Openai, "POST", "/v1/images/generations", Unlisted),
            (Openai, "POST", "/v1/batches", Refused(BATCH)),
            (Openai, "GET", "/v1/models/gpt-x", Free),
            (Openai, "POST", "/v1/moderations", Free),
            (Compatible, "POST", "/openai/v1/chat/completions", Billing(OpenaiChat)),
            (Compatible, "POST", "/v1/responses", Unlisted),
            (Compatible, "GET", "/api/v1/models", Free),
            (Compatible, "POST", "", Unlisted),
        ];
        for (dialect, method, path, expected) in table {
            assert_eq!(endpoint(dialect, method, path), expected, "{method} {path}");
        }
    }
}
