//! Client of the control API over its Unix socket: one connection a request, for the CLI and the dashboard.
//!
//! Knows the paths and the documents; prints nothing and retries nothing.
use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use tokio::net::UnixStream;

use super::api::{self, BudgetScope, Problem};
use crate::audit;
use crate::error::{Exit, Failure};
use crate::ledger::{FlowRow, UsageQuery, UsageRow};

/// Longest wait for an answer. An attach probes the guard, so this is not tight.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// Why there is no answer to use.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nothing listens on the socket.
    #[error("no daemon answers on {0}")]
    NoDaemon(PathBuf),
    /// The socket is not for this user.
    #[error("the control socket {0} is open to root and its group only")]
    Denied(PathBuf),
    /// The daemon said no.
    #[error("{}", .0.error)]
    Refused(Problem),
    /// The connection failed, or what came is no answer of this API.
    #[error("the daemon on {path} gave no usable answer: {what}")]
    Broken {
        /// The socket.
        path: PathBuf,
        /// What happened.
        what: String,
    },
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        let message = error.to_string();
        match error {
            ClientError::NoDaemon(_) => Self::new(Exit::NoDaemon, message)
                .hint("start one with `sudo enforcer daemon`, or name its socket with --socket"),
            ClientError::Denied(_) => {
                Self::new(Exit::Refused, message).hint("use sudo, or join the socket's group")
            }
            ClientError::Refused(problem) => problem.into(),
            ClientError::Broken { .. } => Self::new(Exit::Failed, message),
        }
    }
}

/// The control API of one daemon.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// A client of the daemon on `socket`; connects at each request.
    #[must_use]
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self { socket: socket.into() }
    }

    /// The socket's path.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// `GET /v1/status`.
    ///
    /// # Errors
    /// See [`ClientError`], here and below.
    pub async fn status(&self) -> Result<api::Status, ClientError> {
        self.get("/v1/status").await
    }

    /// `GET /v1/bottles/NAME`.
    pub async fn bottle(&self, name: &str) -> Result<api::Bottle, ClientError> {
        self.get(&format!("/v1/bottles/{name}")).await
    }

    /// `POST /v1/bottles`.
    pub async fn attach(&self, attach: &api::Attach) -> Result<api::Attached, ClientError> {
        self.post("/v1/bottles", attach).await
    }

    /// `DELETE /v1/bottles/NAME`.
    pub async fn detach(&self, name: &str, force: bool) -> Result<api::Detached, ClientError> {
        let path = format!("/v1/bottles/{name}?force={force}");
        let answer = self.exchange(Method::DELETE, &path, Bytes::new()).await?;
        if answer.is_empty() { Ok(api::Detached::default()) } else { self.read(&answer) }
    }

    /// `POST /v1/bottles/NAME/cut`.
    pub async fn cut(&self, name: &str, cut: &api::Cut) -> Result<api::Bottle, ClientError> {
        self.post(&format!("/v1/bottles/{name}/cut"), cut).await
    }

    /// `POST /v1/cut`: every attached bottle.
    pub async fn cut_all(&self, cut: &api::Cut) -> Result<Vec<api::Bottle>, ClientError> {
        self.post("/v1/cut", cut).await
    }

    /// `POST /v1/bottles/NAME/restore`.
    pub async fn restore(&self, name: &str, restore: &api::Restore) -> Result<api::Bottle, ClientError> {
        self.post(&format!("/v1/bottles/{name}/restore"), restore).await
    }

    /// `POST /v1/bottles/NAME/freeze`.
    pub async fn freeze(&self, name: &str, reason: &api::Reason) -> Result<api::Bottle, ClientError> {
        self.post(&format!("/v1/bottles/{name}/freeze"), reason).await
    }

    /// `POST /v1/bottles/NAME/thaw`.
    pub async fn thaw(&self, name: &str) -> Result<api::Bottle, ClientError> {
        self.post(&format!("/v1/bottles/{name}/thaw"), &serde_json::json!({})).await
    }

    /// `POST /v1/bottles/NAME/kill`.
    pub async fn kill(&self, name: &str, reason: &api::Reason) -> Result<api::Bottle, ClientError> {
        self.post(&format!("/v1/bottles/{name}/kill"), reason).await
    }

    /// `POST /v1/settings/reload`.
    pub async fn reload(&self) -> Result<api::Reloaded, ClientError> {
        self.post("/v1/settings/reload", &serde_json::json!({})).await
    }

    /// `GET /v1/budgets`.
    pub async fn budgets(&self) -> Result<Vec<api::BudgetRow>, ClientError> {
        self.get("/v1/budgets").await
    }

    /// `PUT /v1/budgets/SCOPE/PROVIDER`.
    pub async fn set_budget(
        &self,
        scope: &BudgetScope,
        provider: &str,
        budget: &api::SetBudget,
    ) -> Result<api::BudgetRow, ClientError> {
        let body = self.body(budget)?;
        let answer = self.exchange(Method::PUT, &format!("/v1/budgets/{scope}/{provider}"), body).await?;
        self.read(&answer)
    }

    /// `POST /v1/budgets/SCOPE/PROVIDER`.
    pub async fn add_to_budget(
        &self,
        scope: &BudgetScope,
        provider: &str,
        add: &api::AddTokens,
    ) -> Result<api::BudgetRow, ClientError> {
        self.post(&format!("/v1/budgets/{scope}/{provider}"), add).await
    }

    /// `DELETE /v1/budgets/SCOPE/PROVIDER`: what stands then, if anything does.
    pub async fn clear_budget(
        &self,
        scope: &BudgetScope,
        provider: &str,
    ) -> Result<Option<api::BudgetRow>, ClientError> {
        let path = format!("/v1/budgets/{scope}/{provider}");
        let answer = self.exchange(Method::DELETE, &path, Bytes::new()).await?;
        if answer.is_empty() { Ok(None) } else { self.read(&answer).map(Some) }
    }

    /// `GET /v1/bottles/NAME/env`.
    pub async fn environment(&self, name: &str) -> Result<api::Environment, ClientError> {
        self.get(&format!("/v1/bottles/{name}/env")).await
    }

    /// `GET /v1/usage`.
    pub async fn usage(&self, query: &UsageQuery) -> Result<Vec<UsageRow>, ClientError> {
        self.get(&self.with_query("/v1/usage", query)?).await
    }

    /// `GET /v1/flows`.
    pub async fn flows(&self, query: &UsageQuery) -> Result<Vec<FlowRow>, ClientError> {
        self.get(&self.with_query("/v1/flows", query)?).await
    }

    /// `GET /v1/audit`: rows with an id above `after`, oldest first, at most `limit`.
    pub async fn audit(&self, after: i64, limit: u32) -> Result<Vec<audit::Row>, ClientError> {
        self.get(&format!("/v1/audit?after={after}&limit={limit}")).await
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        let body = self.exchange(Method::GET, path, Bytes::new()).await?;
        self.read(&body)
    }

    async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, ClientError> {
        let answer = self.exchange(Method::POST, path, self.body(body)?).await?;
        self.read(&answer)
    }

    fn body(&self, document: &impl Serialize) -> Result<Bytes, ClientError> {
        serde_json::to_vec(document).map(Bytes::from).map_err(|error| self.broken(error))
    }

    fn with_query(&self, path: &str, query: &UsageQuery) -> Result<String, ClientError> {
        let query = serde_urlencoded::to_string(query).map_err(|error| self.broken(error))?;
        Ok(format!("{path}?{query}"))
    }

    fn read<T: DeserializeOwned>(&self, body: &[u8]) -> Result<T, ClientError> {
        serde_json::from_slice(body).map_err(|error| self.broken(error))
    }

    fn broken(&self, what: impl std::fmt::Display) -> ClientError {
        ClientError::Broken { path: self.socket.clone(), what: what.to_string() }
    }

    /// One request and the body of its answer; a refusal is an error.
    async fn exchange(&self, method: Method, path: &str, body: Bytes) -> Result<Bytes, ClientError> {
        let answer = async {
            let response = self.send(method, path, body).await?;
            let status = response.status();
            let body = response.into_body().collect().await.map_err(|error| self.broken(error))?.to_bytes();
            self.check(status, body)
        };
        tokio::time::timeout(ANSWER_TIMEOUT, answer)
            .await
            .unwrap_or_else(|_| Err(self.broken("it took too long")))
    }

    fn check(&self, status: StatusCode, body: Bytes) -> Result<Bytes, ClientError> {
        if status.is_success() {
            return Ok(body);
        }
        let problem: Problem =
            serde_json::from_slice(&body).map_err(|_| self.broken(format!("HTTP status {status}")))?;
        Err(ClientError::Refused(problem))
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<http::Response<Incoming>, ClientError> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "enforcer")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(|error| self.broken(error))?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(self.connect().await?))
                .await
                .map_err(|error| self.broken(error))?;
        // its end is seen by the request that rides on it
        tokio::spawn(connection);
        sender.send_request(request).await.map_err(|error| self.broken(error))
    }

    async fn connect(&self) -> Result<UnixStream, ClientError> {
        UnixStream::connect(&self.socket).await.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                ClientError::NoDaemon(self.socket.clone())
            }
            io::ErrorKind::PermissionDenied => ClientError::Denied(self.socket.clone()),
            _ => self.broken(error),
        })
    }
}

/// The same client for code that waits: one small runtime on the calling thread.
#[derive(Debug)]
pub struct Blocking {
    client: Client,
    runtime: tokio::runtime::Runtime,
}

impl Blocking {
    /// # Errors
    /// When the process cannot have one more descriptor.
    pub fn new(client: Client) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(Self { client, runtime })
    }

    /// The client, for [`Blocking::wait`].
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Waits for an answer: `control.wait(control.client().status())`.
    ///
    /// # Errors
    /// The request's own.
    pub fn wait<T>(&self, answer: impl Future<Output = Result<T, ClientError>>) -> Result<T, ClientError> {
        self.runtime.block_on(answer)
    }
}
