//! An agent as the SDKs make them: asks, reads the answer as it comes, shows a refusal's words instead of asking again.
//!
//! One connection, kept alive between requests. No retries: a test wants to see what happened the first time.
mod answer;
mod way;

use std::path::PathBuf;

use anyhow::Context as _;
use bytes::Bytes;
use clap::ValueEnum;
use http::{Request, header};
use http_body_util::Full;
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use answer::receive;
pub use answer::{Answer, Ended, text_in};
use way::{Way, api_of, ask_connect};

use crate::clock::mono_ns;

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
    /// At the provider's own name, at `--address`, knowing of no proxy.
    Direct,
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
    sender: Option<SendRequest<Full<Bytes>>>,
    connections: usize,
}

impl Agent {
    /// Not yet connected.
    ///
    /// # Errors
    /// The options do not say where to go, or not in a form that can be read.
    pub fn new(options: Options) -> anyhow::Result<Self> {
        let way = Way::new(&options)?;
        Ok(Self { options, way, sender: None, connections: 0 })
    }

    /// Asks once and reads the answer to its end; `on_event` sees each stream event's data as it comes.
    ///
    /// # Errors
    /// Nothing was answered: no connection, no TLS, a refused CONNECT. What broke later is in [`Answer::ended`].
    pub async fn ask(&mut self, mut on_event: impl FnMut(&str)) -> anyhow::Result<Answer> {
        let asked_ns = mono_ns();
        let request = self.request()?;
        let sender = self.connected().await?;
        let response = sender.send_request(request).await.context("no answer to the request")?;
        let connection = self.connections;
        let answer = receive(response, connection, asked_ns, &mut on_event).await?;
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

async fn speak_http<S>(stream: S) -> anyhow::Result<SendRequest<Full<Bytes>>>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    // its errors come out of the request or the body that they break
    drop(tokio::spawn(connection));
    Ok(sender)
}
