//! The way to the provider: its gateway's base URL, its own name through a proxy's CONNECT, or straight at an address.
use anyhow::{Context as _, bail};
use http::Uri;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::{Api, Mode, Options, Provider};

/// Where to dial and what to say there.
pub(super) struct Way {
    /// Address and port to dial.
    pub first_hop: String,
    /// Authority to CONNECT to.
    pub connect: Option<String>,
    /// Name to check the certificate against.
    pub tls_name: Option<String>,
    /// The `Host` header.
    pub host_header: String,
    /// The request's path.
    pub path: String,
}

impl Way {
    /// As the options and the environment say.
    pub fn new(options: &Options) -> anyhow::Result<Self> {
        match options.mode {
            Mode::Gateway => gateway(options),
            Mode::Connect => through_proxy(options),
            Mode::Direct => straight(options),
        }
    }
}

/// The API asked for, or the provider's own.
pub(super) fn api_of(options: &Options) -> Api {
    options.api.unwrap_or(match options.provider {
        Provider::Claude => Api::Messages,
        Provider::Codex => Api::Responses,
        Provider::Gemini => Api::GenerateContent,
        Provider::Bedrock => Api::Invoke,
    })
}

/// Path of the API at the provider's own host, or below a base URL that has its version.
fn endpoint(options: &Options, versioned_base: bool) -> String {
    const BEDROCK: &str = "/model/anthropic.claude-mock-v1%3A0";
    const ON_VERTEX: &str = "/v1/projects/p/locations/l/publishers/anthropic/models/claude-mock-1";
    let version = if versioned_base { "" } else { "/v1" };
    match (api_of(options), options.stream) {
        (Api::Messages, _) => format!("{version}/messages"),
        (Api::Chat, _) => format!("{version}/chat/completions"),
        (Api::Responses, _) => format!("{version}/responses"),
        (Api::Compact, _) => format!("{version}/responses/compact"),
        (Api::Embeddings, _) => format!("{version}/embeddings"),
        (Api::RawPredict, false) => format!("{ON_VERTEX}:rawPredict"),
        (Api::RawPredict, true) => format!("{ON_VERTEX}:streamRawPredict"),
        (Api::GenerateContent | Api::GenerateArray, false) => {
            "/v1beta/models/gemini-mock-1:generateContent".to_owned()
        }
        (Api::GenerateContent, true) => {
            "/v1beta/models/gemini-mock-1:streamGenerateContent?alt=sse".to_owned()
        }
        (Api::GenerateArray, true) => "/v1beta/models/gemini-mock-1:streamGenerateContent".to_owned(),
        (Api::Invoke, false) => format!("{BEDROCK}/invoke"),
        (Api::Invoke, true) => format!("{BEDROCK}/invoke-with-response-stream"),
        (Api::Converse, false) => format!("{BEDROCK}/converse"),
        (Api::Converse, true) => format!("{BEDROCK}/converse-stream"),
    }
}

/// Anthropic's base URL lacks the `/v1`, OpenAI's has it; where a client has no variable, Anthropic's tells the meter.
fn gateway(options: &Options) -> anyhow::Result<Way> {
    let (variable, provider) = match options.provider {
        Provider::Claude => ("ANTHROPIC_BASE_URL", "claude"),
        Provider::Codex => ("OPENAI_BASE_URL", "codex"),
        Provider::Gemini => ("ANTHROPIC_BASE_URL", "gemini"),
        Provider::Bedrock => ("ANTHROPIC_BASE_URL", "bedrock"),
    };
    let base = match &options.base_url {
        Some(base) => base.clone(),
        None => std::env::var(variable)
            .with_context(|| format!("gateway mode needs {variable}"))?
            .replace("/claude", &format!("/{provider}")),
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
        path: format!(
            "{}{}",
            base.path().trim_end_matches('/'),
            endpoint(options, options.provider == Provider::Codex)
        ),
    })
}

/// Host (and port) asked for: the option's, or the provider's own.
fn asked_host(options: &Options) -> anyhow::Result<http::uri::Authority> {
    let own = match options.provider {
        Provider::Claude => "api.anthropic.com",
        Provider::Codex => "api.openai.com",
        Provider::Gemini => "generativelanguage.googleapis.com",
        Provider::Bedrock => "bedrock-runtime.us-east-1.amazonaws.com",
    };
    let asked = options.authority.as_deref().unwrap_or(own);
    asked.parse().with_context(|| format!("{asked} is no host"))
}

/// As a client that knows of no proxy: TLS to where its resolver says that the provider is.
fn straight(options: &Options) -> anyhow::Result<Way> {
    let asked = asked_host(options)?;
    let address = options.address.context("direct mode needs --address")?;
    Ok(Way {
        first_hop: address.to_string(),
        connect: None,
        tls_name: Some(asked.host().to_owned()),
        host_header: asked.to_string(),
        path: endpoint(options, false),
    })
}

fn through_proxy(options: &Options) -> anyhow::Result<Way> {
    let proxy = options.proxy.as_deref().context("connect mode needs --proxy or HTTPS_PROXY")?;
    let proxy: Uri = proxy.parse().with_context(|| format!("{proxy} is no URL"))?;
    let hop = proxy.authority().with_context(|| format!("{proxy} names no host"))?;
    let asked = asked_host(options)?;
    Ok(Way {
        first_hop: format!("{}:{}", hop.host(), hop.port_u16().unwrap_or(80)),
        connect: Some(format!("{}:{}", asked.host(), asked.port_u16().unwrap_or(443))),
        tls_name: Some(asked.host().trim_matches(['[', ']']).to_owned()),
        host_header: asked.to_string(),
        path: endpoint(options, false),
    })
}

/// Asks the proxy at the other end of `stream` for a way to `authority`.
pub(super) async fn ask_connect(stream: &mut TcpStream, authority: &str) -> anyhow::Result<()> {
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
