//! One request of the control API to one call of the controller, and back to JSON.
//!
//! Every answer but the event stream is one JSON document; every refusal is an [`Problem`] whose exit
//! code chooses the HTTP status. No decisions about bottles here.
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use http_body_util::channel::{Channel, Sender};
use http_body_util::{BodyExt, Either, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::sync::broadcast::error::RecvError;
use tokio_util::sync::CancellationToken;

use super::api::{AddTokens, BudgetScope, Problem};
use super::{AUDIT_LIMIT_MAX, Controller, Event};
use crate::core::{BudgetOrder, BudgetVerb};
use crate::error::{Exit, Failure};
use crate::ledger::UsageQuery;

/// Longest request body, bytes.
pub const MAX_BODY_BYTES: usize = 64 * 1024;
/// Longest wait for a request's body.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// A silent event stream says something this often, so that a dead reader is noticed.
const EVENTS_IDLE: Duration = Duration::from_secs(15);
/// Audit rows in an answer when the request names no limit.
const AUDIT_LIMIT_DEFAULT: u32 = 1_000;

/// Body of an answer: a document, or the event stream.
pub type Body = Either<Full<Bytes>, Channel<Bytes>>;

/// Who asks.
#[derive(Clone, Debug)]
pub struct Caller {
    /// User, when the kernel told.
    pub uid: Option<u32>,
    /// Process that connected; 0 when it is not in our process namespace.
    pub pid: i32,
    /// Whether uid and groups let it ask.
    pub permitted: bool,
}

/// A refusal with its HTTP status.
struct Refused(StatusCode, Problem);

impl From<Problem> for Refused {
    fn from(problem: Problem) -> Self {
        Self(status_of(&problem), problem)
    }
}

impl Refused {
    fn new(status: StatusCode, exit: Exit, error: impl Into<String>) -> Self {
        Self(status, Failure::new(exit, error).into())
    }
}

/// The HTTP status that says what the exit code says.
fn status_of(problem: &Problem) -> StatusCode {
    match Exit::from_code(problem.exit_code) {
        Exit::Usage => StatusCode::BAD_REQUEST,
        Exit::NoDaemon => StatusCode::SERVICE_UNAVAILABLE,
        Exit::Refused => StatusCode::FORBIDDEN,
        Exit::Unsupported => StatusCode::NOT_IMPLEMENTED,
        Exit::Done | Exit::Failed | Exit::NotStarted => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// Answers one request.
pub async fn answer<C: Controller>(
    controller: Arc<C>,
    caller: Caller,
    request: Request<Incoming>,
    shutdown: CancellationToken,
) -> Response<Body> {
    let answered = match admit(&*controller, &caller).await {
        Ok(by) => route(&controller, &by, request, shutdown).await,
        Err(refused) => Err(refused),
    };
    answered.unwrap_or_else(|Refused(status, problem)| document(status, &problem))
}

/// Lets the caller in, as the audit will name it. Asked at each request: a connection may be older than the
/// attachment of its process.
async fn admit<C: Controller>(controller: &C, caller: &Caller) -> Result<String, Refused> {
    let refuse = |why| Refused::new(StatusCode::FORBIDDEN, Exit::Refused, why);
    let (Some(uid), true) = (caller.uid, caller.permitted) else {
        return Err(refuse("the control socket serves root and its own group only"));
    };
    if caller.pid <= 0 {
        return Err(refuse("the calling process cannot be seen from here, so it may sit in a bottle"));
    }
    if controller.holds_process(caller.pid).await {
        return Err(refuse("the calling process sits in a bottle, or that cannot be ruled out"));
    }
    Ok(format!("uid:{uid}"))
}

async fn route<C: Controller>(
    controller: &Arc<C>,
    by: &str,
    request: Request<Incoming>,
    shutdown: CancellationToken,
) -> Result<Response<Body>, Refused> {
    let (head, body) = request.into_parts();
    let path = head.uri.path().to_owned();
    let segments: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    match (&head.method, segments.as_slice()) {
        (&Method::GET, ["v1", "status"]) => Ok(done(&controller.status().await)),
        (&Method::GET, ["v1", "bottles"]) => Ok(done(&controller.status().await.bottles)),
        (&Method::POST, ["v1", "bottles"]) => {
            let attached = controller.attach(required(body).await?, by).await?;
            Ok(document(StatusCode::CREATED, &attached))
        }
        (method, ["v1", "bottles", name, verb @ ..]) => {
            one_bottle(&**controller, by, method, name, verb, &head.uri, body).await
        }
        (&Method::POST, ["v1", "cut"]) => Ok(done(&controller.cut_all(optional(body).await?, by).await?)),
        (&Method::GET, ["v1", "usage"]) => Ok(done(&controller.usage(usage_query(&head.uri)?).await?)),
        (&Method::GET, ["v1", "flows"]) => Ok(done(&controller.flows(usage_query(&head.uri)?).await?)),
        (&Method::GET, ["v1", "audit"]) => {
            let page: Page = query(&head.uri)?;
            let limit = page.limit.unwrap_or(AUDIT_LIMIT_DEFAULT).min(AUDIT_LIMIT_MAX);
            Ok(done(&controller.audit(page.after, limit).await?))
        }
        (&Method::POST, ["v1", "settings", "reload"]) => {
            let Nothing {} = optional(body).await?;
            Ok(done(&controller.reload(by).await?))
        }
        (&Method::GET, ["v1", "events"]) => Ok(events(&**controller, shutdown)),
        (&Method::GET, ["v1", "budgets"]) => Ok(done(&controller.budgets().await?)),
        (method, ["v1", "budgets", scope, provider]) => {
            one_budget(&**controller, by, method, scope, provider, body).await
        }
        (_, ["metrics"]) => Err(not_yet(&path)),
        (method, _) => Err(unknown(method, &path)),
    }
}

/// Everything under `/v1/bottles/NAME`.
async fn one_bottle<C: Controller>(
    controller: &C,
    by: &str,
    method: &Method,
    name: &str,
    verb: &[&str],
    uri: &Uri,
    body: Incoming,
) -> Result<Response<Body>, Refused> {
    crate::settings::check_name(name)
        .map_err(|error| Refused::new(StatusCode::BAD_REQUEST, Exit::Usage, error.to_string()))?;
    let answered = match (method, verb) {
        (&Method::GET, []) => controller.bottle(name).await.map(|bottle| done(&bottle)),
        (&Method::DELETE, []) => {
            let force = query::<Detach>(uri)?.force;
            controller.detach(name, force, by).await.map(|detached| match detached.warnings.as_slice() {
                [] => empty(),
                _ => done(&detached),
            })
        }
        (&Method::POST, ["cut"]) => {
            controller.cut(name, optional(body).await?, by).await.map(|bottle| done(&bottle))
        }
        (&Method::POST, ["restore"]) => {
            controller.restore(name, optional(body).await?, by).await.map(|bottle| done(&bottle))
        }
        (&Method::POST, ["freeze"]) => {
            controller.freeze(name, optional(body).await?, by).await.map(|bottle| done(&bottle))
        }
        (&Method::POST, ["thaw"]) => {
            let Nothing {} = optional(body).await?;
            controller.thaw(name, by).await.map(|bottle| done(&bottle))
        }
        (&Method::POST, ["kill"]) => {
            controller.kill(name, optional(body).await?, by).await.map(|bottle| done(&bottle))
        }
        (&Method::GET, ["env"]) => controller.environment(name).await.map(|env| done(&env)),
        _ => return Err(unknown(method, uri.path())),
    };
    match answered {
        Ok(response) => Ok(response),
        // a refusal about a bottle that is not there is a 404, whatever its exit code
        Err(problem) if controller.bottle(name).await.is_err() => {
            Err(Refused(StatusCode::NOT_FOUND, problem))
        }
        Err(problem) => Err(problem.into()),
    }
}

/// Everything under `/v1/budgets/SCOPE/PROVIDER`.
async fn one_budget<C: Controller>(
    controller: &C,
    by: &str,
    method: &Method,
    scope: &str,
    provider: &str,
    body: Incoming,
) -> Result<Response<Body>, Refused> {
    let scope: BudgetScope =
        scope.parse().map_err(|error: String| Refused::new(StatusCode::BAD_REQUEST, Exit::Usage, error))?;
    let verb = match *method {
        Method::PUT => BudgetVerb::Set(required(body).await?),
        Method::POST => BudgetVerb::Add(required::<AddTokens>(body).await?.tokens),
        Method::DELETE => BudgetVerb::Clear,
        _ => return Err(unknown(method, &format!("/v1/budgets/{scope}/{provider}"))),
    };
    let order = BudgetOrder { scope, provider: provider.to_owned(), verb };
    let stands = controller.state_budget(order, by).await?;
    Ok(stands.map_or_else(empty, |budget| done(&budget)))
}

fn not_yet(path: &str) -> Refused {
    Refused(StatusCode::NOT_IMPLEMENTED, Failure::not_yet(path).into())
}

fn unknown(method: &Method, path: &str) -> Refused {
    Refused::new(StatusCode::NOT_FOUND, Exit::Usage, format!("the control API has no {method} {path}"))
}

/// A body that says nothing.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Nothing {}

/// Query of `DELETE /v1/bottles/NAME`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Detach {
    #[serde(default)]
    force: bool,
}

/// Query of `GET /v1/audit`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Page {
    #[serde(default)]
    after: i64,
    limit: Option<u32>,
}

fn query<T: DeserializeOwned>(uri: &Uri) -> Result<T, Refused> {
    serde_urlencoded::from_str(uri.query().unwrap_or_default())
        .map_err(|error| Refused::new(StatusCode::BAD_REQUEST, Exit::Usage, format!("the query: {error}")))
}

/// The usage query; a key that it does not know would silently widen it, so it is refused.
fn usage_query(uri: &Uri) -> Result<UsageQuery, Refused> {
    for (key, _) in query::<Vec<(String, String)>>(uri)? {
        if !["bottle", "agent", "provider", "since", "by"].contains(&key.as_str()) {
            let error = format!("the query: unknown key {key}");
            return Err(Refused::new(StatusCode::BAD_REQUEST, Exit::Usage, error));
        }
    }
    query(uri)
}

/// A body that must be there.
async fn required<T: DeserializeOwned>(body: Incoming) -> Result<T, Refused> {
    parse(&read(body).await?)
}

/// A body that may be left out.
async fn optional<T: DeserializeOwned + Default>(body: Incoming) -> Result<T, Refused> {
    let bytes = read(body).await?;
    if bytes.is_empty() { Ok(T::default()) } else { parse(&bytes) }
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Refused> {
    serde_json::from_slice(bytes)
        .map_err(|error| Refused::new(StatusCode::BAD_REQUEST, Exit::Usage, format!("the body: {error}")))
}

async fn read(body: Incoming) -> Result<Bytes, Refused> {
    let collected = tokio::time::timeout(BODY_TIMEOUT, Limited::new(body, MAX_BODY_BYTES).collect()).await;
    match collected {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            let words = format!("the body is longer than {MAX_BODY_BYTES} bytes");
            Err(Refused::new(StatusCode::PAYLOAD_TOO_LARGE, Exit::Usage, words))
        }
        Ok(Err(error)) => {
            Err(Refused::new(StatusCode::BAD_REQUEST, Exit::Failed, format!("the body broke off: {error}")))
        }
        Err(_) => {
            Err(Refused::new(StatusCode::REQUEST_TIMEOUT, Exit::Failed, "the body did not arrive in time"))
        }
    }
}

fn done(value: &impl Serialize) -> Response<Body> {
    document(StatusCode::OK, value)
}

fn empty() -> Response<Body> {
    let mut response = Response::new(Either::Left(Full::default()));
    *response.status_mut() = StatusCode::NO_CONTENT;
    response
}

fn document(status: StatusCode, value: &impl Serialize) -> Response<Body> {
    let (status, json) = match serde_json::to_vec(value) {
        Ok(json) => (status, json),
        Err(error) => {
            tracing::error!(%error, "an answer of the control API cannot be written as JSON");
            (StatusCode::INTERNAL_SERVER_ERROR, Vec::new())
        }
    };
    let mut response = Response::new(Either::Left(Full::new(json.into())));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// The event stream: server-sent events until the reader or the daemon goes.
fn events<C: Controller>(controller: &C, shutdown: CancellationToken) -> Response<Body> {
    let mut events = controller.subscribe();
    let (mut sender, channel) = Channel::new(16);
    tokio::spawn(async move {
        loop {
            let next = tokio::time::timeout(EVENTS_IDLE, events.recv());
            let line = match shutdown.run_until_cancelled(next).await {
                None | Some(Ok(Err(RecvError::Closed))) => return,
                Some(Ok(Ok(event))) => server_sent(&event),
                Some(Ok(Err(RecvError::Lagged(missed)))) => server_sent(&Event::Lagged(missed)),
                Some(Err(_)) => Bytes::from_static(b": idle\n\n"),
            };
            if !deliver(&mut sender, line, &shutdown).await {
                return;
            }
        }
    });
    let mut response = Response::new(Either::Right(channel));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    response
}

/// Hands one event to the connection; `false` when reader or daemon is gone.
async fn deliver(sender: &mut Sender<Bytes>, line: Bytes, shutdown: &CancellationToken) -> bool {
    matches!(shutdown.run_until_cancelled(sender.send_data(line)).await, Some(Ok(())))
}

/// One event as `event:` and `data:` lines (WHATWG server-sent events; JSON holds no line end).
fn server_sent(event: &Event) -> Bytes {
    let written = match event {
        Event::State(bottle) => ("state", serde_json::to_string(bottle)),
        Event::Usage(row) => ("usage", serde_json::to_string(row)),
        Event::Audit(row) => ("audit", serde_json::to_string(row)),
        Event::Drop(dropped) => ("drop", serde_json::to_string(dropped)),
        Event::Lagged(missed) => ("lagged", serde_json::to_string(missed)),
    };
    match written {
        (name, Ok(data)) => Bytes::from(format!("event: {name}\ndata: {data}\n\n")),
        (name, Err(error)) => {
            tracing::error!(%error, name, "an event cannot be written as JSON");
            Bytes::from_static(b": an event was lost\n\n")
        }
    }
}
