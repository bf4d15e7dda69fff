//! One request of the control API to one call of the controller, and back to JSON.
//!
//! Every answer but the event stream is one JSON document; every refusal is an [`Problem`] whose exit
//! code chooses the HTTP status. No decisions about bottles here.
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use http_body_util::channel::Channel;
use http_body_util::{BodyExt, Either, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio_util::sync::CancellationToken;

use super::api::{self, AddTokens, BudgetScope, Problem};
use super::table::{self, BottleCall, BudgetCall, Call, Parts};
use super::{AUDIT_LIMIT_MAX, Controller, stream};
use crate::core::{BudgetOrder, BudgetVerb};
use crate::error::{Exit, Failure};
use crate::ledger::UsageQuery;

/// What the API is, in OpenAPI 3.1.
const DESCRIPTION: &[u8] = include_bytes!("../../openapi.json");
/// Longest request body, bytes.
pub const MAX_BODY_BYTES: usize = 64 * 1024;
/// Longest wait for a request's body.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
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
        Ok(by) => route(&*controller, &by, request, shutdown).await,
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
    controller: &C,
    by: &str,
    request: Request<Incoming>,
    shutdown: CancellationToken,
) -> Result<Response<Body>, Refused> {
    let (head, body) = request.into_parts();
    let (uri, path) = (&head.uri, head.uri.path());
    let (call, parts) = table::find(&head.method, path).ok_or_else(|| unknown(&head.method, path))?;
    match call {
        Call::Description => Ok(json(StatusCode::OK, Bytes::from_static(DESCRIPTION))),
        Call::Status => Ok(done(&controller.status().await)),
        Call::Bottles => Ok(done(&controller.status().await.bottles)),
        Call::Attach => {
            let attached = controller.attach(required(body).await?, by).await?;
            Ok(document(StatusCode::CREATED, &attached))
        }
        Call::Bottle(call) => one_bottle(controller, by, call, parts, uri, body).await,
        Call::CutAll => Ok(done(&controller.cut_all(optional(body).await?, by).await?)),
        Call::Budgets => Ok(done(&controller.budgets().await?)),
        Call::Budget(call) => one_budget(controller, by, call, parts, body).await,
        Call::Usage => Ok(done(&controller.usage(usage_query(uri)?).await?)),
        Call::Flows => Ok(done(&controller.flows(usage_query(uri)?).await?)),
        Call::Audit => {
            let page: Page = query(uri)?;
            let limit = page.limit.unwrap_or(AUDIT_LIMIT_DEFAULT).min(AUDIT_LIMIT_MAX);
            Ok(done(&controller.audit(page.after, limit).await?))
        }
        Call::Events => Ok(stream::of(controller.subscribe(), shutdown)),
        Call::Reload => {
            let Nothing {} = optional(body).await?;
            Ok(done(&controller.reload(by).await?))
        }
        Call::Metrics => Err(Refused(StatusCode::NOT_IMPLEMENTED, Failure::not_yet(path).into())),
    }
}

/// Everything under `/v1/bottles/{name}`.
async fn one_bottle<C: Controller>(
    controller: &C,
    by: &str,
    call: BottleCall,
    [name, _]: Parts<'_>,
    uri: &Uri,
    body: Incoming,
) -> Result<Response<Body>, Refused> {
    crate::settings::check_name(name)
        .map_err(|error| Refused::new(StatusCode::BAD_REQUEST, Exit::Usage, error.to_string()))?;
    let shown = |bottle: api::Bottle| done(&bottle);
    let answered = match call {
        BottleCall::Show => controller.bottle(name).await.map(shown),
        BottleCall::Detach => {
            let force = query::<Detach>(uri)?.force;
            controller.detach(name, force, by).await.map(|detached| match detached.warnings.as_slice() {
                [] => empty(),
                _ => done(&detached),
            })
        }
        BottleCall::Cut => controller.cut(name, optional(body).await?, by).await.map(shown),
        BottleCall::Restore => controller.restore(name, optional(body).await?, by).await.map(shown),
        BottleCall::Freeze => controller.freeze(name, optional(body).await?, by).await.map(shown),
        BottleCall::Thaw => {
            let Nothing {} = optional(body).await?;
            controller.thaw(name, by).await.map(shown)
        }
        BottleCall::Kill => controller.kill(name, optional(body).await?, by).await.map(shown),
        BottleCall::Environment => controller.environment(name).await.map(|environment| done(&environment)),
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

/// Everything under `/v1/budgets/{scope}/{provider}`.
async fn one_budget<C: Controller>(
    controller: &C,
    by: &str,
    call: BudgetCall,
    [scope, provider]: Parts<'_>,
    body: Incoming,
) -> Result<Response<Body>, Refused> {
    let scope: BudgetScope =
        scope.parse().map_err(|error: String| Refused::new(StatusCode::BAD_REQUEST, Exit::Usage, error))?;
    let verb = match call {
        BudgetCall::Set => BudgetVerb::Set(required(body).await?),
        BudgetCall::Add => BudgetVerb::Add(required::<AddTokens>(body).await?.tokens),
        BudgetCall::Clear => BudgetVerb::Clear,
    };
    let order = BudgetOrder { scope, provider: provider.to_owned(), verb };
    let stands = controller.state_budget(order, by).await?;
    Ok(stands.map_or_else(empty, |budget| done(&budget)))
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
    match serde_json::to_vec(value) {
        Ok(document) => json(status, document.into()),
        Err(error) => {
            tracing::error!(%error, "an answer of the control API cannot be written as JSON");
            json(StatusCode::INTERNAL_SERVER_ERROR, Bytes::new())
        }
    }
}

fn json(status: StatusCode, document: Bytes) -> Response<Body> {
    let mut response = Response::new(Either::Left(Full::new(document)));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
