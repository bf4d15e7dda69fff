//! Every answer that the meter or the refusal lane gives itself: the one file where status codes and bodies are chosen.
//!
//! The shapes are those that the providers' own clients show and do not retry; measured with Claude Code,
//! Codex and the SDKs. Not here: when something is refused.
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use http::{Response, StatusCode};
use http_body_util::Full;
use serde_json::{Value, json};

use crate::protocol::{Dialect, Refusal};
use crate::text::printable;

const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");
/// What AWS's clients tell errors by.
const AWS_ERROR: HeaderName = HeaderName::from_static("x-amzn-errortype");
const CODEX_PROMO: HeaderName = HeaderName::from_static("x-codex-promo-message");
/// Longest message in a header, bytes.
const MAX_HEADER_MESSAGE_BYTES: usize = 512;

/// Why the meter answers itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The controller said no, or the bottle is cut.
    Refusal(Box<Refusal>),
    /// The request cannot be understood.
    Malformed(&'static str),
    /// The request's body did not come in time.
    Slow,
    /// The request's body broke off: its client takes it back.
    BrokenOff,
    /// The bottle has as many requests under way as it may.
    Busy,
    /// The endpoint bills without reporting usage.
    Unmeterable(&'static str),
    /// The destination is one that the meter does not connect to.
    Forbidden(String),
    /// No provider is meant.
    NoProvider(String),
    /// The names in the request do not agree.
    Misdirected,
    /// The provider cannot be reached, or broke off before it answered.
    Upstream(String),
}

impl From<Refusal> for Reason {
    fn from(refusal: Refusal) -> Self {
        Self::Refusal(Box::new(refusal))
    }
}

/// An answer of the meter's own, in the shape of a provider when one is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Why.
    pub reason: Reason,
    /// Whose clients read it.
    pub dialect: Option<Dialect>,
}

impl Refused {
    /// An answer to whom the controller refuses.
    #[must_use]
    pub fn by_controller(refusal: Refusal, dialect: Option<Dialect>) -> Self {
        Self { reason: refusal.into(), dialect }
    }

    /// An answer in place of one whose settlement is not durable.
    #[must_use]
    pub fn not_durable(dialect: Option<Dialect>) -> Self {
        let reason = "what the last one used could not be recorded in time".to_owned();
        Self::by_controller(Refusal::Closed { reason }, dialect)
    }

    /// An answer in no provider's shape.
    #[must_use]
    pub fn plain(reason: Reason) -> Self {
        Self { reason, dialect: None }
    }

    /// An answer to the clients of `dialect`.
    #[must_use]
    pub fn shaped(reason: Reason, dialect: Dialect) -> Self {
        Self { reason, dialect: Some(dialect) }
    }

    /// The answer.
    #[must_use]
    pub fn response(&self) -> Response<Full<Bytes>> {
        let message = printable(&self.message());
        let body = match self.dialect {
            Some(Dialect::Anthropic) => {
                json!({"type": "error", "error": {"type": self.anthropic_type(), "message": message}})
            }
            Some(Dialect::Openai | Dialect::OpenaiChat) => {
                json!({"error": {"message": message, "type": self.openai_type(), "param": null, "code": null}})
            }
            Some(Dialect::Gemini) => {
                let (code, status) = (self.status().as_u16(), self.google_status());
                json!({"error": {"code": code, "message": message, "status": status}})
            }
            Some(Dialect::Bedrock) => json!({"message": message}),
            None => json!({"error": {"type": self.plain_type(), "message": message}}),
        };
        let mut response = json_response(self.status(), &body);
        if !matches!(self.reason, Reason::Upstream(_) | Reason::Busy) {
            response.headers_mut().insert(SHOULD_RETRY, HeaderValue::from_static("false"));
        }
        if self.is_usage_limit() {
            response.headers_mut().insert(CODEX_PROMO, promo(&message));
        }
        if self.dialect == Some(Dialect::Bedrock) {
            response.headers_mut().insert(AWS_ERROR, HeaderValue::from_static(self.aws_type()));
        }
        response
    }

    /// The answer to a request on an open WebSocket, of OpenAI Responses, in the `lane` that it named.
    #[must_use]
    pub fn event(&self, lane: Option<&str>) -> String {
        let message = printable(&self.message());
        let error = json!({"type": self.openai_type(), "message": message});
        let mut event = json!({"type": "error", "status": self.status().as_u16(), "error": error});
        if self.is_usage_limit() {
            let text = promo(&message);
            event["headers"] = json!({"x-codex-promo-message": text.to_str().unwrap_or_default()});
        }
        in_lane(event, lane)
    }

    /// The last event of a response of OpenAI Responses that is ended in its middle, under way in `lane` as
    /// `response`. The code is one that clients do not ask again after.
    #[must_use]
    pub fn failure(&self, lane: Option<&str>, response: Option<&str>) -> String {
        let error = json!({"code": "invalid_prompt", "message": printable(&self.message())});
        let response = json!({
            "id": response.unwrap_or_default(), "object": "response", "status": "failed", "error": error,
            "output": [], "usage": null,
        });
        in_lane(json!({"type": "response.failed", "response": response}), lane)
    }

    fn status(&self) -> StatusCode {
        match (&self.reason, self.dialect) {
            (Reason::Forbidden(_), _) => StatusCode::FORBIDDEN,
            (Reason::Refusal(refusal), _) if **refusal == Refusal::Unattached => StatusCode::FORBIDDEN,
            // AWS's clients ask again after a 429, and Claude Code up to eight times after Bedrock's 400
            (Reason::Refusal(_), Some(Dialect::Anthropic | Dialect::Bedrock)) => StatusCode::PAYMENT_REQUIRED,
            // Google's clients ask again after a 429
            (Reason::Refusal(_), Some(Dialect::Gemini)) => StatusCode::BAD_REQUEST,
            (Reason::Refusal(_), Some(_)) => StatusCode::TOO_MANY_REQUESTS,
            (Reason::Refusal(_), None) => StatusCode::FORBIDDEN,
            (Reason::Malformed(_) | Reason::BrokenOff | Reason::Unmeterable(_), _) => StatusCode::BAD_REQUEST,
            (Reason::Slow, _) => StatusCode::REQUEST_TIMEOUT,
            (Reason::Busy, _) => StatusCode::SERVICE_UNAVAILABLE,
            (Reason::NoProvider(_), _) => StatusCode::NOT_FOUND,
            (Reason::Misdirected, _) => StatusCode::MISDIRECTED_REQUEST,
            (Reason::Upstream(_), _) => StatusCode::BAD_GATEWAY,
        }
    }

    fn message(&self) -> String {
        match &self.reason {
            Reason::Refusal(refusal) => refusal.to_string(),
            Reason::Malformed(what) => format!("Enforcer: {what}."),
            Reason::Slow => "Enforcer: the request's body did not come in time.".to_owned(),
            Reason::BrokenOff => "Enforcer: the request's body broke off.".to_owned(),
            Reason::Busy => "Enforcer: this bottle has as many requests under way as it may.".to_owned(),
            Reason::Unmeterable(why) => format!("Enforcer: this request is not forwarded: {why}."),
            Reason::Forbidden(what) => format!("Enforcer: {what}."),
            Reason::NoProvider(name) => {
                format!("Enforcer: there is no provider {name:?} at the start of the path.")
            }
            Reason::Misdirected => "Enforcer: the host names of this request do not agree.".to_owned(),
            Reason::Upstream(what) => format!("Enforcer: the provider did not answer: {what}."),
        }
    }

    /// Whether the client is to read that its tokens are used up.
    fn is_usage_limit(&self) -> bool {
        self.status() == StatusCode::TOO_MANY_REQUESTS
    }

    fn anthropic_type(&self) -> &'static str {
        match (&self.reason, self.status()) {
            (_, StatusCode::PAYMENT_REQUIRED) => "billing_error",
            (_, StatusCode::FORBIDDEN) => "permission_error",
            (_, StatusCode::NOT_FOUND) => "not_found_error",
            (Reason::Upstream(_) | Reason::Busy, _) => "api_error",
            _ => "invalid_request_error",
        }
    }

    fn openai_type(&self) -> &'static str {
        match &self.reason {
            _ if self.is_usage_limit() => "usage_limit_reached",
            Reason::Upstream(_) | Reason::Busy => "server_error",
            _ => "invalid_request_error",
        }
    }

    /// A canonical code of Google's APIs; that of a refusal is the one they use where billing is not in order.
    fn google_status(&self) -> &'static str {
        match (&self.reason, self.status()) {
            (_, StatusCode::FORBIDDEN) => "PERMISSION_DENIED",
            (Reason::Refusal(_), _) => "FAILED_PRECONDITION",
            (_, StatusCode::NOT_FOUND) => "NOT_FOUND",
            (Reason::Upstream(_), _) => "UNAVAILABLE",
            _ => "INVALID_ARGUMENT",
        }
    }

    /// An error that Bedrock's runtime documents; none of them is one that clients take for throttling.
    fn aws_type(&self) -> &'static str {
        match (&self.reason, self.status()) {
            (_, StatusCode::FORBIDDEN) => "AccessDeniedException",
            (Reason::Refusal(_), _) => "ServiceQuotaExceededException",
            (_, StatusCode::NOT_FOUND) => "ResourceNotFoundException",
            (Reason::Upstream(_), _) => "InternalServerException",
            _ => "ValidationException",
        }
    }

    fn plain_type(&self) -> &'static str {
        match &self.reason {
            Reason::Refusal(_) | Reason::Forbidden(_) => "forbidden",
            Reason::NoProvider(_) => "not_found",
            Reason::Upstream(_) => "upstream_error",
            Reason::Busy => "busy",
            _ => "invalid_request",
        }
    }
}

/// An event's text; the provider names the lane where the request did.
fn in_lane(mut event: Value, lane: Option<&str>) -> String {
    if let Some(lane) = lane {
        event["stream_id"] = json!(lane);
    }
    event.to_string()
}

/// The answer to a CONNECT that is accepted.
#[must_use]
pub fn tunnel_open() -> Response<Full<Bytes>> {
    Response::new(Full::default())
}

fn json_response(status: StatusCode, body: &Value) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body.to_string())));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// What Codex shows, which makes it the middle of a sentence of its own.
fn promo(message: &str) -> HeaderValue {
    header_text(message.trim_end_matches('.'))
}

/// The message as a header can carry it: printable ASCII, cut at [`MAX_HEADER_MESSAGE_BYTES`].
fn header_text(message: &str) -> HeaderValue {
    let ascii: String = message
        .chars()
        .take(MAX_HEADER_MESSAGE_BYTES)
        .map(|c| if c.is_ascii_graphic() || c == ' ' { c } else { '?' })
        .collect();
    HeaderValue::from_str(&ascii).unwrap_or_else(|_| HeaderValue::from_static("Enforcer: refused"))
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    fn budget(bottle: &str) -> Reason {
        Reason::from(Refusal::Budget {
            bottle: bottle.into(),
            provider: "claude".into(),
            scope: "bottle".into(),
            owner: bottle.into(),
            limit: 10,
            used: 12,
            reserved: 0,
            window: "total".into(),
            rule: "nearest".into(),
        })
    }

    async fn read(refused: Refused) -> (StatusCode, http::HeaderMap, Value) {
        let (head, body) = refused.response().into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        (head.status, head.headers, serde_json::from_slice(&bytes).unwrap())
    }

    #[tokio::test]
    async fn each_dialect_hears_of_a_budget_in_its_own_shape() {
        let (status, headers, body) = read(Refused::shaped(budget("b1"), Dialect::Anthropic)).await;
        assert_eq!(status, 402);
        assert_eq!(headers["x-should-retry"], "false");
        assert_eq!(body["error"]["type"], "billing_error");
        assert_eq!(body["type"], "error");
        assert!(body["error"]["message"].as_str().unwrap().contains("12 of 10 claude tokens"));

        let (status, headers, body) = read(Refused::shaped(budget("b1"), Dialect::Openai)).await;
        assert_eq!(status, 429);
        assert_eq!(headers["x-should-retry"], "false");
        assert!(!headers.contains_key("retry-after"));
        assert_eq!(body["error"]["type"], "usage_limit_reached");
        let message = body["error"]["message"].as_str().unwrap();
        assert_eq!(headers["x-codex-promo-message"], message.strip_suffix('.').unwrap());

        let (status, headers, body) = read(Refused::shaped(budget("b1"), Dialect::Gemini)).await;
        assert_eq!((status.as_u16(), &body["error"]["code"]), (400, &json!(400)));
        assert_eq!(body["error"]["status"], "FAILED_PRECONDITION");
        assert!(
            body["error"]["message"].as_str().unwrap().contains("b1") && !headers.contains_key("retry-after")
        );

        let (status, headers, body) = read(Refused::shaped(budget("b1"), Dialect::Bedrock)).await;
        assert_eq!(
            (status.as_u16(), &headers["x-amzn-errortype"]),
            (402, &HeaderValue::from_static("ServiceQuotaExceededException"))
        );
        assert!(body["message"].as_str().unwrap().contains("12 of 10 claude tokens"));
    }

    #[test]
    fn an_open_websocket_hears_the_same_as_an_event() {
        let refused = Refused::shaped(budget("b1"), Dialect::Openai);
        let event: Value = serde_json::from_str(&refused.event(Some("lane-1"))).unwrap();
        assert_eq!((&event["type"], &event["status"]), (&json!("error"), &json!(429)));
        assert_eq!(
            (&event["error"]["type"], &event["stream_id"]),
            (&json!("usage_limit_reached"), &json!("lane-1"))
        );
        let message = event["error"]["message"].as_str().unwrap();
        assert_eq!(event["headers"]["x-codex-promo-message"], message.strip_suffix('.').unwrap());
    }

    #[tokio::test]
    async fn no_control_character_of_a_name_gets_through() {
        let (_, headers, body) =
            read(Refused::shaped(budget("b\u{1b}]52\r\nx: y\u{202e}"), Dialect::Openai)).await;
        let message = body["error"]["message"].as_str().unwrap();
        assert!(!message.chars().any(|c| c.is_control() || c == '\u{202e}'), "{message:?}");
        assert!(headers["x-codex-promo-message"].to_str().unwrap().contains("b?]52??x: y?"));
    }

    #[tokio::test]
    async fn an_unreachable_provider_may_be_asked_again() {
        let (status, headers, body) =
            read(Refused::shaped(Reason::Upstream("x".into()), Dialect::Anthropic)).await;
        assert_eq!((status.as_u16(), &body["error"]["type"]), (502, &json!("api_error")));
        assert!(!headers.contains_key("x-should-retry"));
    }

    #[tokio::test]
    async fn a_peer_of_no_bottle_is_forbidden_whatever_it_speaks() {
        for dialect in [
            None,
            Some(Dialect::Anthropic),
            Some(Dialect::Openai),
            Some(Dialect::Gemini),
            Some(Dialect::Bedrock),
        ] {
            let refused = Refused::by_controller(Refusal::Unattached, dialect);
            assert_eq!(read(refused).await.0, 403);
        }
    }
}
