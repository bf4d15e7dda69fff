//! An agent as the SDKs make them: asks, reads the answer as it comes, shows a refusal's words instead of asking again.
//!
//! One connection, kept alive between requests. No retries: a test wants to see what happened the first time.
mod answer;
mod way;
mod websocket;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use clap::ValueEnum;
use http::{Request, Response, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls_pki_types::ServerName;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use answer::receive;
pub use answer::{Answer, Ended, text_in};
use way::{Way, api_of, ask_connect};
use websocket::Socket;

use crate::clock::mono_ns;
use crate::tls;

/// Whose client it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
#[allow(missing_docs, reason = "the providers' names")]
pub enum Provider {
    #[default]
    Claude,
    Codex,
    Gemini,
    Bedrock,
}

/// Which API it speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[allow(missing_docs, reason = "the APIs' names")]
pub enum Api {
    Messages,
    Chat,
    Responses,
    Compact,
    Embeddings,
    GenerateContent,
    GenerateArray,
    RawPredict,
    Invoke,
    Converse,
}

/// How it reaches the provider.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// At `ANTHROPIC_BASE_URL` or `OPENAI_BASE_URL`.
    #[default]
    Gateway,
    /// At the provider's own name, through `HTTPS_PROXY`, trusting `SSL_CERT_FILE`.
    Connect,
    /// At the provider's own name, at `--address`, knowing of no proxy.
    Direct,
}

/// What to ask, and how.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Options {
    /// Whose client to be.
    #[arg(long, value_enum, default_value = "claude")]
    pub provider: Provider,
    /// API; by default the provider's own: messages, responses, generate-content, invoke.
    #[arg(long, value_enum)]
    pub api: Option<Api>,
    /// Way to the provider.
    #[arg(long, value_enum, default_value = "gateway")]
    pub mode: Mode,
    /// Ask for a stream.
    #[arg(long)]
    pub stream: bool,
    /// Ask over one WebSocket (responses only).
    #[arg(long)]
    pub websocket: bool,
    /// Ask a chat stream for its usage.
    #[arg(long)]
    pub include_usage: bool,
    /// Accept gzip.
    #[arg(long)]
    pub gzip: bool,
    /// Speak HTTP/2: as agreed in TLS, without TLS unasked.
    #[arg(long)]
    pub http2: bool,
    /// Extra request header, `name=value`; may be repeated.
    #[arg(long = "header", value_parser = header_pair)]
    pub headers: Vec<(String, String)>,
    /// Gateway's base URL; by default from ANTHROPIC_BASE_URL or OPENAI_BASE_URL.
    #[arg(long)]
    pub base_url: Option<String>,
    /// Proxy for CONNECT.
    #[arg(long, env = "HTTPS_PROXY")]
    pub proxy: Option<String>,
    /// CA certificates to trust, PEM.
    #[arg(long, env = "SSL_CERT_FILE")]
    pub ca_file: Option<PathBuf>,
    /// Host (and port) asked for through CONNECT; by default the provider's own.
    #[arg(long)]
    pub authority: Option<String>,
    /// Where the provider is, in direct mode.
    #[arg(long)]
    pub address: Option<std::net::SocketAddr>,
    /// What to say.
    #[arg(long, default_value = "Say something long.")]
    pub prompt: String,
    /// Say this many bytes instead.
    #[arg(long)]
    pub prompt_bytes: Option<usize>,
}

fn header_pair(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("a header is name=value")?;
    Ok((name.to_owned(), value.to_owned()))
}

/// An agent with its connection.
pub struct Agent {
    options: Options,
    way: Way,
    sender: Option<Sender>,
    socket: Option<Socket>,
    connections: usize,
}

/// A connection, with TLS or without.
trait Wire: AsyncRead + AsyncWrite + Unpin + Send + Sync {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send + Sync> Wire for S {}

impl Agent {
    /// Not yet connected.
    ///
    /// # Errors
    /// The options do not say where to go, or not in a form that can be read.
    pub fn new(options: Options) -> anyhow::Result<Self> {
        let way = Way::new(&options)?;
        Ok(Self { options, way, sender: None, socket: None, connections: 0 })
    }

    /// Asks once and reads the answer to its end; `on_event` sees each stream event's data as it comes.
    ///
    /// # Errors
    /// Nothing was answered: no connection, no TLS, a refused CONNECT. What broke later is in [`Answer::ended`].
    pub async fn ask(&mut self, mut on_event: impl FnMut(&str)) -> anyhow::Result<Answer> {
        let asked_ns = mono_ns();
        let answer = if self.options.websocket {
            self.ask_over_websocket(&mut on_event).await
        } else {
            self.ask_over_http(&mut on_event).await
        };
        Ok(Answer { asked_ns, ..answer? })
    }

    async fn ask_over_http(&mut self, on_event: &mut impl FnMut(&str)) -> anyhow::Result<Answer> {
        let request = self.request()?;
        let origin = self.origin();
        let sender = self.connected().await?;
        let response = sender.send(request, &origin).await.context("no answer to the request")?;
        let connection = self.connections;
        let answer = receive(response, connection, on_event).await?;
        if answer.ended != Ended::Complete {
            self.sender = None;
        }
        Ok(answer)
    }

    /// Asks so many times at once, on one connection of HTTP/2. With `take_back_after` every other question is taken back
    /// when it is not answered by then: `None` in its place.
    ///
    /// # Errors
    /// There is no such connection, or a question gets no answer.
    pub async fn ask_together(
        &mut self,
        many: usize,
        take_back_after: Option<Duration>,
    ) -> anyhow::Result<Vec<Option<Answer>>> {
        let origin = self.origin();
        let requests: Vec<_> = (0..many).map(|_| self.request()).collect::<anyhow::Result<_>>()?;
        let Sender::Http2(sender) = self.connected().await? else { anyhow::bail!("this is not HTTP/2") };
        let sender = sender.clone();
        let ask = |(nth, request): (usize, Request<Full<Bytes>>)| {
            let (mut sender, origin) = (Sender::Http2(sender.clone()), origin.clone());
            let patience = take_back_after.filter(|_| nth % 2 == 1).unwrap_or(Duration::MAX);
            let answer =
                async move { receive(sender.send(request, &origin).await?, 1, &mut |_: &str| ()).await };
            tokio::spawn(tokio::time::timeout(patience, answer))
        };
        let under_way: Vec<_> = requests.into_iter().enumerate().map(ask).collect();
        let mut answers = Vec::new();
        for answer in under_way {
            answers.push(answer.await?.ok().transpose()?);
        }
        Ok(answers)
    }

    /// Scheme and authority of what is asked.
    fn origin(&self) -> String {
        let scheme = if self.way.tls_name.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.way.host_header)
    }

    fn api(&self) -> Api {
        api_of(&self.options)
    }

    fn request(&self) -> anyhow::Result<Request<Full<Bytes>>> {
        let mut request = Request::post(&self.way.path)
            .header(header::HOST, &self.way.host_header)
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::USER_AGENT, "demo-agent");
        request = match self.options.provider {
            Provider::Claude => {
                request.header("x-api-key", "sk-test").header("anthropic-version", "2023-06-01")
            }
            Provider::Codex | Provider::Bedrock => request.header(header::AUTHORIZATION, "Bearer sk-test"),
            Provider::Gemini => request.header("x-goog-api-key", "test"),
        };
        if self.options.gzip {
            request = request.header(header::ACCEPT_ENCODING, "gzip");
        }
        for (name, value) in &self.options.headers {
            request = request.header(name, value);
        }
        Ok(request.body(Full::new(self.question().to_string().into()))?)
    }

    fn question(&self) -> Value {
        let prompt =
            self.options.prompt_bytes.map_or_else(|| self.options.prompt.clone(), |bytes| "x".repeat(bytes));
        let messages = json!([{"role": "user", "content": prompt}]);
        let stream = self.options.stream;
        let mut question = match self.api() {
            Api::Messages | Api::RawPredict => {
                json!({"model": "claude-mock-1", "max_tokens": 4096, "messages": messages})
            }
            Api::Chat => json!({"model": "gpt-mock-1", "messages": messages}),
            Api::Responses => json!({"model": "gpt-mock-1", "input": prompt}),
            Api::Compact | Api::Embeddings => return json!({"model": "gpt-mock-1", "input": prompt}),
            Api::GenerateContent | Api::GenerateArray => {
                return json!({"contents": [{"role": "user", "parts": [{"text": prompt}]}]});
            }
            Api::Invoke => {
                return json!({"anthropic_version": "bedrock-2023-05-31", "max_tokens": 4096, "messages": messages});
            }
            Api::Converse => {
                return json!({"messages": [{"role": "user", "content": [{"text": prompt}]}]});
            }
        };
        question["stream"] = json!(stream);
        if self.options.include_usage {
            question["stream_options"] = json!({"include_usage": true});
        }
        question
    }

    async fn connected(&mut self) -> anyhow::Result<&mut Sender> {
        let kept = match self.sender.take() {
            Some(mut sender) => sender.ready().await.is_ok().then_some(sender),
            None => None,
        };
        let sender = match kept {
            Some(sender) => sender,
            None => {
                self.connections += 1;
                let (stream, http2) = self.dial().await?;
                Sender::over(stream, http2).await?
            }
        };
        Ok(self.sender.insert(sender))
    }

    /// A connection, and whether HTTP/2 is spoken on it.
    async fn dial(&self) -> anyhow::Result<(Box<dyn Wire>, bool)> {
        let hop = &self.way.first_hop;
        let mut stream = TcpStream::connect(hop).await.with_context(|| format!("cannot connect to {hop}"))?;
        stream.set_nodelay(true)?;
        if let Some(authority) = &self.way.connect {
            ask_connect(&mut stream, authority).await?;
        }
        let Some(name) = &self.way.tls_name else {
            return Ok((Box::new(stream), self.options.http2));
        };
        let ca_file = self.options.ca_file.as_deref().context("TLS needs --ca-file or SSL_CERT_FILE")?;
        let protocols =
            if self.options.http2 && !self.options.websocket { tls::ANY_HTTP } else { tls::HTTP1 };
        let connector = tokio_rustls::TlsConnector::from(tls::client_trusting(ca_file, protocols)?);
        let name = ServerName::try_from(name.clone())?;
        let stream = connector.connect(name, stream).await.context("TLS handshake")?;
        let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        Ok((Box::new(stream), http2))
    }
}

/// A connection in either protocol.
enum Sender {
    Http1(http1::SendRequest<Full<Bytes>>),
    Http2(http2::SendRequest<Full<Bytes>>),
}

impl Sender {
    /// Begins on a stream. Its errors come out of the request or the body that they break.
    async fn over(stream: Box<dyn Wire>, http2: bool) -> anyhow::Result<Self> {
        let stream = TokioIo::new(stream);
        Ok(if http2 {
            let (sender, connection) = http2::handshake(TokioExecutor::new(), stream).await?;
            drop(tokio::spawn(connection));
            Self::Http2(sender)
        } else {
            let (sender, connection) = http1::handshake(stream).await?;
            drop(tokio::spawn(connection));
            Self::Http1(sender)
        })
    }

    /// Waits until one more request may be sent.
    async fn ready(&mut self) -> hyper::Result<()> {
        match self {
            Self::Http1(sender) => sender.ready().await,
            Self::Http2(sender) => sender.ready().await,
        }
    }

    /// Sends a request whose address is a path, and whose `Host` says the rest, to `origin`.
    async fn send(
        &mut self,
        mut request: Request<Full<Bytes>>,
        origin: &str,
    ) -> anyhow::Result<Response<Incoming>> {
        Ok(match self {
            Self::Http1(sender) => sender.send_request(request).await?,
            Self::Http2(sender) => {
                *request.uri_mut() = format!("{origin}{}", request.uri()).parse()?;
                request.headers_mut().remove(header::HOST);
                sender.send_request(request).await?
            }
        })
    }
}
