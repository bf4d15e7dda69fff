//! An agent as the SDKs make them: asks, reads the answer as it comes, shows a refusal's words instead of asking again.
//!
//! One connection, kept alive between requests. No retries: a test wants to see what happened the first time.
use std::path::PathBuf;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use clap::ValueEnum;
use http::{HeaderMap, Request, Uri, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::clock::mono_ns;
use crate::encoding::{Decoder, Encoding};
use crate::provider::sha256_hex;
use crate::sse::Reader;

/// Whose client it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
#[allow(missing_docs, reason = "the providers' names")]
pub enum Provider {
    #[default]
    Claude,
    Codex,
}

/// Which API it speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[allow(missing_docs, reason = "the APIs' names")]
pub enum Api {
    Messages,
    Chat,
    Responses,
}

/// How it reaches the provider.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// At `ANTHROPIC_BASE_URL` or `OPENAI_BASE_URL`.
    #[default]
    Gateway,
    /// At the provider's own name, through `HTTPS_PROXY`, trusting `SSL_CERT_FILE`.
    Connect,
}

/// What to ask, and how.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Options {
    /// Whose client to be.
    #[arg(long, value_enum, default_value = "claude")]
    pub provider: Provider,
    /// API; by default the provider's own: messages, responses.
    #[arg(long, value_enum)]
    pub api: Option<Api>,
    /// Way to the provider.
    #[arg(long, value_enum, default_value = "gateway")]
    pub mode: Mode,
    /// Ask for a stream.
    #[arg(long)]
    pub stream: bool,
    /// Ask a chat stream for its usage.
    #[arg(long)]
    pub include_usage: bool,
    /// Accept gzip.
    #[arg(long)]
    pub gzip: bool,
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

/// How an answer came to its end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ended {
    /// As HTTP says.
    Complete,
    /// In the middle; why.
    Broken(String),
}

/// What came back for one request.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Answer {
    /// Status.
    pub status: u16,
    /// Response headers, names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body as received: content-coded, without chunk framing.
    #[serde(skip)]
    pub body: Vec<u8>,
    /// Its length.
    pub body_bytes: usize,
    /// Its SHA-256, in hex: to compare with the provider's record.
    pub body_sha256: String,
    /// The text the model said.
    pub text: String,
    /// Events of a stream.
    pub events: usize,
    /// The last usage the answer told, raw.
    pub usage: Option<Value>,
    /// Its end.
    pub ended: Ended,
    /// Message of an error answer.
    pub error: Option<String>,
    /// When the last bytes came (or the end did), on the monotonic clock.
    pub last_ns: u64,
    /// Which connection of this agent carried it, from 1.
    pub connection: usize,
}

impl Answer {
    /// The message when the answer is a refusal that clients do not retry: 402 or 429.
    #[must_use]
    pub fn refusal(&self) -> Option<&str> {
        let refused = matches!(self.status, 402 | 429);
        refused.then(|| self.error.as_deref().unwrap_or("refused without a message"))
    }

    /// Value of a response header.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }
}

/// An agent with its connection.
pub struct Agent {
    options: Options,
    way: Way,
    sender: Option<SendRequest<Full<Bytes>>>,
    connections: usize,
}

/// Where to dial and what to say there.
struct Way {
    first_hop: String,
    /// Authority to CONNECT to.
    connect: Option<String>,
    /// Name to check the certificate against.
    tls_name: Option<String>,
    host_header: String,
    path: String,
}

impl Agent {
    /// Not yet connected.
    ///
    /// # Errors
    /// The options do not say where to go, or not in a form that can be read.
    pub fn new(options: Options) -> anyhow::Result<Self> {
        let way = match options.mode {
            Mode::Gateway => gateway(&options)?,
            Mode::Connect => through_proxy(&options)?,
        };
        Ok(Self { options, way, sender: None, connections: 0 })
    }

    /// Asks once and reads the answer to its end; `on_event` sees each stream event's data as it comes.
    ///
    /// # Errors
    /// Nothing was answered: no connection, no TLS, a refused CONNECT. What broke later is in [`Answer::ended`].
    pub async fn ask(&mut self, mut on_event: impl FnMut(&str)) -> anyhow::Result<Answer> {
        let request = self.request()?;
        let sender = self.connected().await?;
        let response = sender.send_request(request).await.context("no answer to the request")?;
        let connection = self.connections;
        let answer = receive(response, connection, &mut on_event).await?;
        if answer.ended != Ended::Complete {
            self.sender = None;
        }
        Ok(answer)
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
            Provider::Codex => request.header(header::AUTHORIZATION, "Bearer sk-test"),
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
            Api::Messages => json!({"model": "claude-mock-1", "max_tokens": 4096, "messages": messages}),
            Api::Chat => json!({"model": "gpt-mock-1", "messages": messages}),
            Api::Responses => json!({"model": "gpt-mock-1", "input": prompt}),
        };
        question["stream"] = json!(stream);
        if self.options.include_usage {
            question["stream_options"] = json!({"include_usage": true});
        }
        question
    }

    async fn connected(&mut self) -> anyhow::Result<&mut SendRequest<Full<Bytes>>> {
        let kept = match self.sender.take() {
            Some(mut sender) => sender.ready().await.is_ok().then_some(sender),
            None => None,
        };
        let sender = match kept {
            Some(sender) => sender,
            None => {
                self.connections += 1;
                self.dial().await?
            }
        };
        Ok(self.sender.insert(sender))
    }

    async fn dial(&self) -> anyhow::Result<SendRequest<Full<Bytes>>> {
        let hop = &self.way.first_hop;
        let mut stream = TcpStream::connect(hop).await.with_context(|| format!("cannot connect to {hop}"))?;
        stream.set_nodelay(true)?;
        if let Some(authority) = &self.way.connect {
            ask_connect(&mut stream, authority).await?;
        }
        let Some(name) = &self.way.tls_name else {
            return speak_http(stream).await;
        };
        let ca_file = self.options.ca_file.as_deref().context("TLS needs --ca-file or SSL_CERT_FILE")?;
        let connector = tokio_rustls::TlsConnector::from(crate::tls::client_trusting(ca_file)?);
        let name = ServerName::try_from(name.clone())?;
        speak_http(connector.connect(name, stream).await.context("TLS handshake")?).await
    }
}

fn api_of(options: &Options) -> Api {
    options.api.unwrap_or(match options.provider {
        Provider::Claude => Api::Messages,
        Provider::Codex => Api::Responses,
    })
}

/// Path of the API below `/v1`.
fn endpoint(api: Api) -> &'static str {
    match api {
        Api::Messages => "/messages",
        Api::Chat => "/chat/completions",
        Api::Responses => "/responses",
    }
}

/// Anthropic's base URL lacks the `/v1`, OpenAI's has it.
fn gateway(options: &Options) -> anyhow::Result<Way> {
    let (variable, version) = match options.provider {
        Provider::Claude => ("ANTHROPIC_BASE_URL", "/v1"),
        Provider::Codex => ("OPENAI_BASE_URL", ""),
    };
    let base = match &options.base_url {
        Some(base) => base.clone(),
        None => std::env::var(variable).with_context(|| format!("gateway mode needs {variable}"))?,
    };
    let base: Uri = base.parse().with_context(|| format!("{base} is no URL"))?;
    let authority = base.authority().with_context(|| format!("{base} names no host"))?;
    let tls = base.scheme_str() == Some("https");
    let port = authority.port_u16().unwrap_or(if tls { 443 } else { 80 });
    Ok(Way {
        first_hop: format!("{}:{port}", authority.host()),
        connect: None,
        tls_name: tls.then(|| authority.host().trim_matches(['[', ']']).to_owned()),
        host_header: authority.to_string(),
        path: format!("{}{version}{}", base.path().trim_end_matches('/'), endpoint(api_of(options))),
    })
}

fn through_proxy(options: &Options) -> anyhow::Result<Way> {
    let proxy = options.proxy.as_deref().context("connect mode needs --proxy or HTTPS_PROXY")?;
    let proxy: Uri = proxy.parse().with_context(|| format!("{proxy} is no URL"))?;
    let hop = proxy.authority().with_context(|| format!("{proxy} names no host"))?;
    let own = match options.provider {
        Provider::Claude => "api.anthropic.com",
        Provider::Codex => "api.openai.com",
    };
    let asked = options.authority.as_deref().unwrap_or(own);
    let asked: http::uri::Authority = asked.parse().with_context(|| format!("{asked} is no host"))?;
    Ok(Way {
        first_hop: format!("{}:{}", hop.host(), hop.port_u16().unwrap_or(80)),
        connect: Some(format!("{}:{}", asked.host(), asked.port_u16().unwrap_or(443))),
        tls_name: Some(asked.host().trim_matches(['[', ']']).to_owned()),
        host_header: asked.to_string(),
        path: format!("/v1{}", endpoint(api_of(options))),
    })
}

async fn ask_connect(stream: &mut TcpStream, authority: &str) -> anyhow::Result<()> {
    const LONGEST_HEAD_BYTES: usize = 8192;
    stream.write_all(format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n").as_bytes()).await?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") && head.len() < LONGEST_HEAD_BYTES {
        head.push(stream.read_u8().await.context("the proxy closed instead of answering CONNECT")?);
    }
    let head = String::from_utf8_lossy(&head);
    let status_line = head.lines().next().unwrap_or_default();
    if status_line.split(' ').nth(1) != Some("200") {
        bail!("the proxy refused CONNECT {authority}: {status_line}");
    }
    Ok(())
}

async fn speak_http<S>(stream: S) -> anyhow::Result<SendRequest<Full<Bytes>>>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    // its errors come out of the request or the body that they break
    drop(tokio::spawn(connection));
    Ok(sender)
}

async fn receive(
    response: http::Response<Incoming>,
    connection: usize,
    on_event: &mut impl FnMut(&str),
) -> anyhow::Result<Answer> {
    let (head, mut incoming) = response.into_parts();
    let mut reading = Reading::new(&head.headers);
    let mut last_ns = mono_ns();
    let ended = loop {
        let frame = incoming.frame().await;
        last_ns = mono_ns().max(last_ns);
        match frame {
            None => break Ended::Complete,
            Some(Err(error)) => break Ended::Broken(format!("{:#}", anyhow::Error::from(error))),
            Some(Ok(frame)) => {
                if let Ok(bytes) = frame.into_data() {
                    reading.take(&bytes, on_event)?;
                }
            }
        }
    };
    let Reading { body, text, events, usage, error, .. } = reading.finished();
    let headers = head.headers.iter();
    let headers = headers.map(|(n, v)| (n.to_string(), String::from_utf8_lossy(v.as_bytes()).into_owned()));
    Ok(Answer {
        status: head.status.as_u16(),
        headers: headers.collect(),
        body_bytes: body.len(),
        body_sha256: sha256_hex(&body),
        body,
        text,
        events,
        usage,
        ended,
        error,
        last_ns,
        connection,
    })
}

/// An answer while it comes in.
struct Reading {
    decoder: Decoder,
    stream: Option<Reader>,
    plain: Vec<u8>,
    body: Vec<u8>,
    text: String,
    events: usize,
    usage: Option<Value>,
    error: Option<String>,
}

impl Reading {
    fn new(headers: &HeaderMap) -> Self {
        let value = |name| headers.get(name).and_then(|v: &http::HeaderValue| v.to_str().ok()).unwrap_or("");
        Self {
            decoder: Decoder::new(Encoding::from_name(value(header::CONTENT_ENCODING))),
            stream: value(header::CONTENT_TYPE).starts_with("text/event-stream").then(Reader::default),
            plain: Vec::new(),
            body: Vec::new(),
            text: String::new(),
            events: 0,
            usage: None,
            error: None,
        }
    }

    fn take(&mut self, bytes: &[u8], on_event: &mut impl FnMut(&str)) -> anyhow::Result<()> {
        self.body.extend_from_slice(bytes);
        let plain = self.decoder.piece(bytes).context("the body is not of its content coding")?;
        let Some(reader) = &mut self.stream else {
            self.plain.extend(plain);
            return Ok(());
        };
        for event in reader.feed(&plain) {
            self.events += 1;
            on_event(&event.data);
            if let Ok(value) = serde_json::from_str(&event.data) {
                self.note(&value);
            }
        }
        Ok(())
    }

    fn finished(mut self) -> Self {
        if let Ok(value) = serde_json::from_slice(&std::mem::take(&mut self.plain)) {
            self.note(&value);
        }
        self
    }

    fn note(&mut self, value: &Value) {
        self.text.push_str(text_in(value));
        let usages = ["/usage", "/message/usage", "/response/usage"];
        if let Some(usage) = usages.iter().filter_map(|at| value.pointer(at)).find(|usage| usage.is_object())
        {
            self.usage = Some(usage.clone());
        }
        let errors = ["/error/message", "/response/error/message"];
        if let Some(message) = errors.iter().find_map(|at| value.pointer(at)?.as_str()) {
            self.error = Some(message.to_owned());
        }
    }
}

/// The model's words in an event or a JSON answer of any of the three APIs.
#[must_use]
pub fn text_in(value: &Value) -> &str {
    let delta_event = value["type"] == "response.output_text.delta";
    let places: &[&str] = if delta_event {
        &["/delta"]
    } else {
        &[
            "/delta/text",
            "/choices/0/delta/content",
            "/content/0/text",
            "/choices/0/message/content",
            "/output/0/content/0/text",
        ]
    };
    places.iter().find_map(|at| value.pointer(at)?.as_str()).unwrap_or("")
}
