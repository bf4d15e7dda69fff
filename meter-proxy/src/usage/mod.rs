//! How providers report usage: which endpoints bill, and in which shape the figures come.
use crate::protocol::Dialect;

/// The form of an answer and of the usage figures in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// Anthropic Messages, JSON and SSE.
    AnthropicMessages,
    /// OpenAI Chat Completions (and the older Completions, and Embeddings), JSON and SSE.
    OpenaiChat,
    /// OpenAI Responses, JSON and SSE.
    OpenaiResponses,
    /// An unlisted endpoint: tailed for any usage that is known.
    Any,
}

/// What a request to a metered host is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// Costs tokens; the answer has this shape.
    Billing(Shape),
    /// Costs none: login, telemetry, models, counting.
    Free,
    /// In no table: passes, tailed as [`Shape::Any`], audited.
    Unlisted,
    /// Costs tokens that its answer does not report; the reason in words.
    Refused(&'static str),
}

/// Looks up the endpoint. `path` has no query, and no gateway prefix.
#[must_use]
pub fn endpoint(dialect: Dialect, method: &str, path: &str) -> Endpoint {
    match (dialect, method, path) {
        (Dialect::Anthropic, "POST", "/v1/messages") => Endpoint::Billing(Shape::AnthropicMessages),
        _ => Endpoint::Unlisted,
    }
}
