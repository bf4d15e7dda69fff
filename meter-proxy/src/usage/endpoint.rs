//! The tables of endpoints: which cost tokens, which are free, which cannot be metered.
use super::{Shape, path};
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
    /// Servers differ over which path it is, so no table can tell.
    Ambiguous,
}

const BATCH: &str = "a batch reports its usage hours later, where no budget can stop it";

/// Looks up the endpoint. `path` has no query, and no gateway prefix.
#[must_use]
pub fn endpoint(dialect: Dialect, method: &str, path: &str) -> Endpoint {
    let Some(path) = path::canonical(path) else { return Endpoint::Ambiguous };
    let segments: Vec<&str> = path.split('/').filter(|segment| !segment.is_empty()).collect();
    match dialect {
        Dialect::Anthropic => anthropic(method, &segments),
        Dialect::Openai => openai(method, &segments),
        Dialect::OpenaiChat => openai_chat(method, &segments),
    }
}

/// What bills does so below any prefix and comes first; what is free is listed path by path.
fn anthropic(method: &str, path: &[&str]) -> Endpoint {
    match (method, path) {
        ("POST", [.., "v1", "messages"]) => Endpoint::Billing(Shape::AnthropicMessages),
        ("POST", [.., "v1", "messages", "batches"]) => Endpoint::Refused(BATCH),
        ("POST", ["v1", "messages", "count_tokens"] | ["v1", "messages", "batches", _, "cancel"])
        | ("GET", ["v1", "messages", "batches", _, "results"] | ["v1", "messages", "batches"])
        | ("GET" | "DELETE", ["v1", "messages", "batches", _])
        | ("GET", ["v1", "models"] | ["v1", "models", _]) => Endpoint::Free,
        _ if is_stored_file(method, path) || is_claude_code(method, path) || is_login(method, path) => {
            Endpoint::Free
        }
        _ => Endpoint::Unlisted,
    }
}

/// What Claude Code asks beside messages: telemetry, settings, the account.
fn is_claude_code(method: &str, path: &[&str]) -> bool {
    matches!(
        (method, path),
        ("POST", ["api", "event_logging", "batch"] | ["api", "event_logging", "v2", "batch"])
            | ("POST", ["api", "claude_code", "metrics"])
            | ("GET", ["api", "claude_code", "settings" | "policy_limits"])
            | ("GET", ["api", "claude_code", "organizations", "metrics_enabled"])
            | ("GET", ["api", "hello"] | ["api", "claude_cli", "bootstrap"])
            | ("GET", ["api", "oauth", "profile" | "usage"] | ["api", "oauth", "account", "settings"])
            | ("GET", ["api", "oauth", "claude_cli", "roles" | "client_data"])
            | ("POST", ["api", "oauth", "claude_cli", "create_api_key"])
    )
}

fn is_login(method: &str, path: &[&str]) -> bool {
    matches!(
        (method, path),
        ("POST", ["oauth", "token"] | ["v1", "oauth", "token"])
            | ("GET", ["oauth", "authorize"])
            | ("GET", [".well-known", "oauth-authorization-server" | "openid-configuration" | "jwks.json"])
    )
}

fn is_stored_file(method: &str, path: &[&str]) -> bool {
    matches!(
        (method, path),
        ("GET" | "POST", ["v1", "files"])
            | ("GET" | "DELETE", ["v1", "files", _])
            | ("GET", ["v1", "files", _, "content"])
    )
}

fn openai(method: &str, path: &[&str]) -> Endpoint {
    match (method, path) {
        ("POST", ["v1", rest @ ..] | ["backend-api", "codex", rest @ ..])
            if matches!(rest, ["responses"] | ["responses", "compact"]) =>
        {
            Endpoint::Billing(Shape::OpenaiResponses)
        }
        // reading a stored answer repeats usage that was charged when it was made
        ("GET" | "DELETE", ["v1", "responses", _])
        | ("GET", ["v1", "responses", _, "input_items"])
        | ("POST", ["v1", "responses", "input_tokens"] | ["v1", "responses", _, "cancel"]) => Endpoint::Free,
        _ if is_codex(method, path) || is_login(method, path) => Endpoint::Free,
        _ => openai_chat(method, path),
    }
}

/// What Codex asks beside responses: models, telemetry, the account, plugins and what they let it call.
fn is_codex(method: &str, path: &[&str]) -> bool {
    matches!(
        (method, path),
        ("GET", ["backend-api", "codex", "models"] | ["backend-api", "wham", "usage"])
            | ("GET", ["backend-api", "wham", "config", "requirements"])
            | ("GET", ["backend-api", "wham", "accounts", "check"])
            | ("GET", ["backend-api", "wham", "settings", "user"])
            | ("GET", ["backend-api", "plugins", "featured"])
            | ("GET", ["backend-api", "plugins", "export", "curated"])
            | ("GET", ["backend-api", "ps", "plugins", ..])
            | ("POST", ["backend-api", "ps", "mcp"])
            | ("POST", ["backend-api", "codex", "analytics-events", "events"])
    )
}

/// Compatible servers put the same endpoints below prefixes of their own.
fn openai_chat(method: &str, path: &[&str]) -> Endpoint {
    match (method, path) {
        ("POST", [.., "completions" | "embeddings"]) => Endpoint::Billing(Shape::OpenaiChat),
        ("POST", [.., "batches"]) => Endpoint::Refused(BATCH),
        ("GET", [.., "batches"] | [.., "batches", _] | [.., "models"] | [.., "models", _])
        | ("POST", ["v1", "moderations"] | ["v1", "uploads"])
        | ("POST", ["v1", "uploads", _, "parts" | "complete" | "cancel"]) => Endpoint::Free,
        _ if is_stored_file(method, path) => Endpoint::Free,
        _ => Endpoint::Unlisted,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_by_dialect() {
        use Dialect::{Anthropic, Openai, OpenaiChat as Compatible};
        use Endpoint::{Ambiguous, Billing, Free, Refused, Unlisted};
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
            (Anthropic, "POST", "/api/../v1/messages", Ambiguous),
            (Anthropic, "POST", "/api/%2e%2e/v1/messages", Ambiguous),
            (Anthropic, "POST", "/v1/%6dessages", Billing(AnthropicMessages)),
            (Anthropic, "POST", "/api/anthropic/v1/messages", Billing(AnthropicMessages)),
            (Anthropic, "POST", "/api/v1/messages/batches", Refused(BATCH)),
            (Anthropic, "POST", "/v1/models", Unlisted),
            (Anthropic, "POST", "/api/organizations/o/chat_conversations/c/completion", Unlisted),
            (Anthropic, "POST", "/.well-known/x", Unlisted),
            (Anthropic, "POST", "/v1/complete", Unlisted),
            (Openai, "POST", "/v1/responses", Billing(OpenaiResponses)),
            (Openai, "POST", "/v1/responses/compact", Billing(OpenaiResponses)),
            (Openai, "POST", "/v1/responses/input_tokens", Free),
            (Openai, "GET", "/v1/responses/resp_1", Free),
            (Openai, "GET", "/v1/responses", Unlisted),
            (Openai, "POST", "/backend-api/codex/responses", Billing(OpenaiResponses)),
            (Openai, "POST", "/backend-api/codex/responses/other", Unlisted),
            (Openai, "GET", "/backend-api/wham/usage", Free),
            (Openai, "POST", "/backend-api/wham/tasks", Unlisted),
            (Openai, "GET", "/backend-api/plugins/export/curated", Free),
            (Openai, "GET", "/backend-api/ps/plugins/suggested/codex", Free),
            (Openai, "POST", "/backend-api/ps/mcp", Free),
            (Openai, "POST", "/backend-api/conversation", Unlisted),
            (Openai, "POST", "/v1/chat%2Fcompletions", Ambiguous),
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
