//! The mock's sockets and routes: accepts, reads a request whole, lets the script choose, sends the answer.
use std::borrow::Cow;
use std::convert::Infallible;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, Method, Request, Response, StatusCode, header, request};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;

use super::body::{AnswerBody, Note, Piece, Step, Steps, Wire};
use super::record::{Billed, Book};
use super::script::{Reply, Script};
use super::{anthropic, bedrock, gemini, openai, websocket};
use crate::encoding::{Decoder, Encoder, Encoding};

/// A way of asking that bills.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Api {
    Messages,
    Chat,
    Responses,
    Embeddings,
    Gemini,
    Invoke,
    Converse,
}

/// Whose shapes an answer has.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shape {
    Anthropic,
    OpenAi,
    Google,
    Aws,
}

impl Api {
    fn shape(self) -> Shape {
        match self {
            Self::Messages => Shape::Anthropic,
            Self::Chat | Self::Responses | Self::Embeddings => Shape::OpenAi,
            Self::Gemini => Shape::Google,
            Self::Invoke | Self::Converse => Shape::Aws,
        }
    }
}

/// What a request asks for, as far as the mock cares.
struct Call {
    api: Api,
    model: String,
    stream: bool,
    include_usage: bool,
    wire: Wire,
}

pub(super) struct Server {
    pub script: Script,
    pub book: Arc<Book>,
}

impl Server {
    pub fn new(script: Script, book: Arc<Book>) -> Arc<Self> {
        Arc::new(Self { script, book })
    }

    /// Accepts on `listener` for ever, in a task of the current runtime.
    pub fn serve(self: &Arc<Self>, listener: TcpListener, tls: Option<TlsAcceptor>) {
        listener.set_nonblocking(true).expect("a socket can be made non-blocking");
        let listener = tokio::net::TcpListener::from_std(listener).expect("a listener for this runtime");
        let server = Arc::clone(self);
        tokio::spawn(async move {
            loop {
                match listener.accept().await {
                    Ok((stream, _)) => drop(tokio::spawn(Arc::clone(&server).handshake(stream, tls.clone()))),
                    // out of descriptors: a moment later there may be some
                    Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
                }
            }
        });
    }

    async fn handshake(self: Arc<Self>, stream: TcpStream, tls: Option<TlsAcceptor>) {
        stream.set_nodelay(true).expect("a TCP socket takes TCP_NODELAY");
        match tls {
            None => self.connection(stream, false, false).await,
            Some(tls) => match tls.accept(stream).await {
                Ok(stream) => {
                    let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
                    self.connection(stream, true, http2).await;
                }
                Err(error) => eprintln!("mock provider: TLS handshake: {error}"),
            },
        }
    }

    /// Serves one connection. Its errors are its client's hang-ups and scripted breaks: the book has them.
    async fn connection(
        self: Arc<Self>,
        io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        tls: bool,
        http2: bool,
    ) {
        let service = service_fn(|request| {
            let server = Arc::clone(&self);
            async move { Ok::<_, Infallible>(server.answer(request, tls).await) }
        });
        let io = TokioIo::new(io);
        let served = if http2 {
            let mut http = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            http.timer(TokioTimer::new()).serve_connection(io, service).await
        } else {
            let mut http = hyper::server::conn::http1::Builder::new();
            http.timer(TokioTimer::new()).serve_connection(io, service).with_upgrades().await
        };
        drop(served);
    }

    async fn answer(self: Arc<Self>, request: Request<Incoming>, tls: bool) -> Response<AnswerBody> {
        if websocket::is_asked_for(&request) {
            return websocket::accept(self, request, tls);
        }
        let (head, body) = request.into_parts();
        if head.uri.path() == "/__bill" {
            return with_json(StatusCode::OK, &self.bill(), None);
        }
        let id = self.book.open(&head, tls, self.script.forget_bodies);
        let note = Note { book: Arc::clone(&self.book), id };
        let body = match body.collect().await {
            Ok(body) => body.to_bytes(),
            // the client is gone already; the note says so
            Err(_) => return with_json(StatusCode::BAD_REQUEST, &Value::Null, None),
        };
        let api = billing_api(&head.method, head.uri.path());
        self.book.received_body(id, &body, api.is_some());
        match api {
            Some(api) => self.infer(api, &head, &plain(&head.headers, &body), note).await,
            None => self.free(&head, note),
        }
    }

    /// An inference request: the script's reply, at its pace.
    async fn infer(&self, api: Api, head: &request::Parts, body: &[u8], note: Note) -> Response<AnswerBody> {
        let shape = api.shape();
        let Some(call) = Call::read(api, &head.uri, body) else {
            return self.refuse(shape, 400, note);
        };
        let chosen = self.script.reply(head.uri.path(), &call.model, call.stream);
        let reply = match chosen.wanted_by(&head.headers) {
            Ok(reply) => reply,
            Err(header) => {
                eprintln!("mock provider: cannot do {header}");
                return self.refuse(shape, 400, note);
            }
        };
        if reply.status < 400 {
            self.book.answering(note.id, 0, reply.bill_at_head());
        }
        tokio::time::sleep(reply.head_delay).await;
        if reply.status >= 400 {
            return self.refuse(shape, reply.status, note);
        }
        let billed = if call.stream { reply.bill_at_head() } else { reply.bill() };
        self.book.answering(note.id, reply.status, billed);
        respond(&call, reply, &head.headers, note)
    }

    /// Everything that does not bill.
    fn free(&self, head: &request::Parts, note: Note) -> Response<AnswerBody> {
        let shape =
            if head.headers.contains_key("anthropic-version") { Shape::Anthropic } else { Shape::OpenAi };
        let answer = match (head.method.as_str(), head.uri.path(), shape) {
            ("POST", "/v1/messages/count_tokens", _) => {
                let Ok(reply) = Reply::default().wanted_by(&head.headers) else {
                    return self.refuse(Shape::Anthropic, 400, note);
                };
                anthropic::count(&reply)
            }
            ("GET", "/v1/models", Shape::Anthropic) => anthropic::models(),
            ("GET", "/v1/models", _) => openai::models(),
            ("GET", "/backend-api/wham/accounts/check", _) => openai::account(&head.headers),
            _ => return self.refuse(shape, 404, note),
        };
        self.book.answering(note.id, 200, Billed::default());
        with_json(StatusCode::OK, &answer, Some(note))
    }

    fn refuse(&self, shape: Shape, status: u16, note: Note) -> Response<AnswerBody> {
        self.book.answering(note.id, status, Billed::default());
        let error = match shape {
            Shape::Anthropic => anthropic::error(status),
            Shape::OpenAi => openai::error(status),
            Shape::Google => gemini::error(status),
            Shape::Aws => bedrock::error(status),
        };
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        with_json(status, &error, Some(note))
    }

    /// The record as `GET /__bill` shows it.
    fn bill(&self) -> Value {
        let billed = self.book.billed_total();
        let (open, records) = (self.book.open_count(), self.book.records());
        json!({"billed": billed, "total": billed.total(), "open_streams": open, "records": records})
    }
}

/// A request's body without its content coding; what cannot be decoded is empty, and so no request.
fn plain<'b>(headers: &HeaderMap, body: &'b [u8]) -> Cow<'b, [u8]> {
    let Some(coding) = headers.get(header::CONTENT_ENCODING) else { return Cow::Borrowed(body) };
    let decoder = coding.to_str().ok().and_then(Encoding::from_name).map(|coding| Decoder::new(Some(coding)));
    let decoded = decoder.and_then(|mut decoder| decoder.piece(body).ok());
    Cow::Owned(decoded.unwrap_or_default())
}

fn billing_api(method: &Method, path: &str) -> Option<Api> {
    match path {
        _ if method != Method::POST => None,
        "/v1/messages" => Some(Api::Messages),
        "/v1/chat/completions" => Some(Api::Chat),
        "/v1/responses" | "/v1/responses/compact" | "/backend-api/codex/responses" => Some(Api::Responses),
        "/v1/embeddings" => Some(Api::Embeddings),
        _ => match path.rsplit(['/', ':']).next()? {
            "generateContent" | "streamGenerateContent" => Some(Api::Gemini),
            "invoke" | "invoke-with-response-stream" => Some(Api::Invoke),
            "converse" | "converse-stream" => Some(Api::Converse),
            "rawPredict" | "streamRawPredict" => Some(Api::Messages),
            _ => None,
        },
    }
}

impl Call {
    /// `None`: no JSON object, or one without a model where that is not in the path.
    fn read(api: Api, uri: &http::Uri, body: &[u8]) -> Option<Self> {
        let body: Value = serde_json::from_slice(body).ok()?;
        let path = uri.path();
        let in_path = path.contains("stream");
        let (model, stream, wire) = match api {
            Api::Messages | Api::Chat | Api::Responses | Api::Embeddings => {
                (body["model"].as_str()?, body["stream"] == true, Wire::Events)
            }
            Api::Gemini => {
                let events = uri.query().is_some_and(|query| query.contains("alt=sse"));
                let model = path.rsplit('/').next()?.split(':').next()?;
                (model, in_path, if events { Wire::Events } else { Wire::Bare })
            }
            Api::Invoke | Api::Converse => (path.split('/').nth(2)?, in_path, Wire::EventStream),
        };
        let include_usage = body["stream_options"]["include_usage"] == true;
        Some(Self { api, model: model.to_owned(), stream, include_usage, wire })
    }

    fn content_type(&self) -> &'static str {
        match self.wire {
            Wire::Events if self.stream => "text/event-stream; charset=utf-8",
            Wire::EventStream if self.stream => "application/vnd.amazon.eventstream",
            _ => "application/json",
        }
    }

    fn events(&self, reply: Reply, id: usize) -> Box<dyn Iterator<Item = Piece> + Send> {
        match self.api {
            Api::Messages => anthropic::stream(reply, id, &self.model),
            Api::Chat => openai::chat_stream(reply, id, &self.model, self.include_usage),
            Api::Responses => openai::responses_stream(reply, id, &self.model),
            Api::Embeddings => Box::new(std::iter::empty()),
            Api::Gemini => gemini::stream(reply, id, &self.model, self.wire == Wire::Bare),
            Api::Invoke => bedrock::invoke_stream(reply, id, &self.model),
            Api::Converse => bedrock::converse_stream(reply),
        }
    }

    fn whole(&self, reply: &Reply, id: usize) -> Value {
        match self.api {
            Api::Messages | Api::Invoke => anthropic::whole(reply, id, &self.model),
            Api::Gemini => gemini::whole(reply, id, &self.model),
            Api::Converse => bedrock::converse_whole(reply),
            Api::Chat => openai::chat_whole(reply, id, &self.model),
            Api::Responses => openai::responses_whole(reply, id, &self.model),
            Api::Embeddings => openai::embeddings(reply, &self.model),
        }
    }
}

fn respond(call: &Call, reply: Reply, asked: &HeaderMap, note: Note) -> Response<AnswerBody> {
    let accepted = asked.get(header::ACCEPT_ENCODING).and_then(|value| value.to_str().ok()).unwrap_or("");
    let encoding = reply.encoding.filter(|encoding| encoding.accepted_by(accepted));
    let (framing, breaks) = (reply.framing, reply.break_after.is_some());
    let mut response = Response::builder()
        .status(reply.status)
        .header(header::CONTENT_TYPE, call.content_type())
        .header(request_id(call.api), format!("req_mock{:020}", note.id));
    if call.api == Api::Invoke && !call.stream {
        for (name, count) in bedrock::counts_in_head(&reply) {
            response = response.header(name, count);
        }
    }
    if let Some(encoding) = encoding {
        response = response.header(header::CONTENT_ENCODING, encoding.name());
    }
    let steps = if call.stream { streamed(call, reply, note.id) } else { whole(call, &reply, note.id) };
    let encoder = Encoder::new(encoding);
    let body = if call.stream == framing.swap_length {
        let (coded, length) = coded_ahead(steps, encoder);
        // a JSON answer that breaks lacks its second half, a stream lacks its tail: more is announced than comes
        let missing = if breaks { length.max(1) } else { 0 };
        response = response.header(header::CONTENT_LENGTH, length + missing);
        AnswerBody::new(coded, Encoder::new(None), framing, breaks, Some(note))
    } else {
        AnswerBody::new(steps, encoder, framing, breaks, Some(note))
    };
    response.body(body).expect("headers of the mock's own making")
}

/// Name of the header with the provider's id of a request.
fn request_id(api: Api) -> &'static str {
    match api.shape() {
        Shape::Anthropic => "request-id",
        Shape::OpenAi | Shape::Google => "x-request-id",
        Shape::Aws => "x-amzn-requestid",
    }
}

fn streamed(call: &Call, reply: Reply, id: usize) -> Steps {
    let (pace, framing) = (reply.pace, reply.framing);
    let limit = reply.break_after.or(reply.stop_after).unwrap_or(usize::MAX);
    let wire = call.wire;
    let events = call.events(reply, id).take(limit).enumerate();
    Box::new(events.map(move |(n, piece)| Step {
        pause: if piece.paced { pace } else { Duration::ZERO },
        bytes: piece.framed(wire, framing, n == 0),
        output: piece.output,
    }))
}

/// The JSON answer in one step; only its first half when it is to break, or to stop.
fn whole(call: &Call, reply: &Reply, id: usize) -> Steps {
    let mut bytes = call.whole(reply, id).to_string().into_bytes();
    if reply.break_after.or(reply.stop_after).is_some() {
        bytes.truncate(bytes.len() / 2);
    }
    Box::new(std::iter::once(Step { pause: Duration::ZERO, bytes, output: 0 }))
}

/// The same steps with their bytes coded, and their length: a `Content-Length` must be known before.
fn coded_ahead(steps: Steps, mut encoder: Encoder) -> (Steps, usize) {
    let mut coded: Vec<Step> = steps
        .map(|step| Step { bytes: encoder.piece(&step.bytes).expect("coding into memory"), ..step })
        .collect();
    if let Some(last) = coded.last_mut() {
        last.bytes.extend(encoder.finish().expect("coding into memory"));
    }
    let length = coded.iter().map(|step| step.bytes.len()).sum();
    (Box::new(coded.into_iter()), length)
}

fn with_json(status: StatusCode, body: &Value, note: Option<Note>) -> Response<AnswerBody> {
    let body = body.to_string().into_bytes();
    Response::builder()
        .status(status)
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::CONTENT_LENGTH, body.len())
        .body(AnswerBody::whole(body, note))
        .expect("headers of the mock's own making")
}
