//! A provider and clients that speak HTTP/2, by TLS and without.
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream, client, server};
use http::{HeaderMap, Request, Response};
use meter_proxy::protocol::Config;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use super::{Rig, SOON, client_tls, config, nowhere};

/// What a test does with one request.
type Serving = Pin<Box<dyn Future<Output = Result<(), h2::Error>> + Send>>;

/// A request as a provider sees it.
pub struct Asked {
    pub request: Request<RecvStream>,
    pub respond: server::SendResponse<Bytes>,
    /// Ends the connection: in order, or at once with a reason.
    pub end: mpsc::UnboundedSender<Option<Reason>>,
}

impl Asked {
    /// Begins the answer.
    pub fn answer(&mut self, content_type: &str) -> SendStream<Bytes> {
        let head = Response::builder().header("content-type", content_type).body(()).unwrap();
        self.respond.send_response(head, false).unwrap()
    }

    /// Reads the body to its end, and what follows it.
    pub async fn read(&mut self) -> Result<(Vec<u8>, Option<HeaderMap>), h2::Error> {
        read(self.request.body_mut()).await
    }
}

/// A provider by TLS at `localhost` that offers HTTP/2 first.
pub struct Provider {
    pub address: SocketAddr,
    root_pem: String,
    seen: Arc<Seen>,
}

#[derive(Default)]
struct Seen {
    connections: AtomicUsize,
    heads: Mutex<Vec<Request<()>>>,
    failed: Mutex<Vec<h2::Error>>,
}

impl Provider {
    /// Serves every request with `serve`, each by a task of its own of the test's runtime.
    pub fn start<F>(serve: impl Fn(Asked) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<(), h2::Error>> + Send + 'static,
    {
        let serve: Arc<dyn Fn(Asked) -> Serving + Send + Sync> =
            Arc::new(move |asked| Box::pin(serve(asked)));
        let (tls, root_pem) = server_tls();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        listener.set_nonblocking(true).unwrap();
        let listener = TcpListener::from_std(listener).unwrap();
        let seen = Arc::new(Seen::default());
        let kept = Arc::clone(&seen);
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                stream.set_nodelay(true).unwrap();
                seen.connections.fetch_add(1, Ordering::SeqCst);
                let (tls, serve, seen) = (tls.clone(), Arc::clone(&serve), Arc::clone(&seen));
                // A client that trusts nobody here ends the handshake.
                tokio::spawn(async move {
                    if let Ok(stream) = tls.accept(stream).await {
                        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
                        connection(stream, &serve, &seen).await;
                    }
                });
            }
        });
        Self { address, root_pem, seen: kept }
    }

    /// A configuration in which it is the upstream of `claude`.
    pub fn config(&self) -> Config {
        let mut settings = config(nowhere());
        settings.providers[0].upstream = Some(format!("https://localhost:{}", self.address.port()));
        settings.extra_roots_pem.clone_from(&self.root_pem);
        settings
    }

    /// Connections so far.
    pub fn connections(&self) -> usize {
        self.seen.connections.load(Ordering::SeqCst)
    }

    /// Heads of the requests so far.
    pub fn heads(&self) -> Vec<Request<()>> {
        self.seen.heads.lock().unwrap().clone()
    }

    /// How many requests ended with this reason of the other side's.
    pub fn failed_by(&self, reason: Reason) -> usize {
        self.seen.failed.lock().unwrap().iter().filter(|error| error.reason() == Some(reason)).count()
    }
}

/// Serves one connection until it ends, or is told to.
async fn connection(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    serve: &Arc<dyn Fn(Asked) -> Serving + Send + Sync>,
    seen: &Arc<Seen>,
) {
    let Ok(mut connection) = server::handshake(stream).await else { return };
    let (end, mut ends) = mpsc::unbounded_channel();
    loop {
        tokio::select! {
            asked = connection.accept() => match asked {
                Some(Ok((request, respond))) => {
                    let mut head = Request::new(());
                    *head.method_mut() = request.method().clone();
                    *head.uri_mut() = request.uri().clone();
                    *head.headers_mut() = request.headers().clone();
                    seen.heads.lock().unwrap().push(head);
                    let serving = serve(Asked { request, respond, end: end.clone() });
                    let seen = Arc::clone(seen);
                    tokio::spawn(async move {
                        if let Err(error) = serving.await {
                            seen.failed.lock().unwrap().push(error);
                        }
                    });
                }
                Some(Err(_)) | None => return,
            },
            Some(how) = ends.recv() => match how {
                None => connection.graceful_shutdown(),
                Some(reason) => connection.abrupt_shutdown(reason),
            },
        }
    }
}

/// A server at `localhost` that offers HTTP/2, and the certificate that clients need to trust it.
pub fn server_tls() -> (tokio_rustls::TlsAcceptor, String) {
    let key = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ServerConfig::builder_with_provider(provider);
    let builder = builder.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
    let signing = key.signing_key.serialize_der().try_into().unwrap();
    let mut tls = builder.with_single_cert(vec![key.cert.der().clone()], signing).unwrap();
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    (Arc::new(tls).into(), key.cert.pem())
}

/// A client's connection; clones share it.
#[derive(Clone)]
pub struct Client {
    send: client::SendRequest<Bytes>,
    authority: &'static str,
    scheme: &'static str,
}

impl Client {
    /// Inside a tunnel to `api.anthropic.com`.
    pub async fn through_tunnel(rig: &Rig) -> Self {
        const NAME: &str = "api.anthropic.com";
        let mut stream = connect(rig).await;
        let connect = format!("CONNECT {NAME}:443 HTTP/1.1\r\nHost: {NAME}:443\r\n\r\n");
        stream.write_all(connect.as_bytes()).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        assert!(head.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&head));
        Self::by_tls(rig, stream, NAME).await
    }

    /// By TLS, HTTP/2 being agreed on.
    pub async fn by_tls(rig: &Rig, stream: TcpStream, name: &'static str) -> Self {
        let mut tls = (*client_tls(rig.roots())).clone();
        tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let connector = tokio_rustls::TlsConnector::from(Arc::new(tls));
        let stream = connector.connect(ServerName::try_from(name).unwrap(), stream).await.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
        Self::on(stream, name, "https").await
    }

    /// At the meter's own address, without TLS.
    pub async fn at_gateway(rig: &Rig) -> Self {
        let stream = connect(rig).await;
        Self::on(stream, Box::leak(rig.address.to_string().into_boxed_str()), "http").await
    }

    async fn on(
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        authority: &'static str,
        scheme: &'static str,
    ) -> Self {
        // many small frames may wait here to be looked at
        let mut builder = client::Builder::new();
        builder.initial_connection_window_size(16 * 1024 * 1024);
        let (send, connection) = builder.handshake(stream).await.unwrap();
        // How it ends is told to its streams.
        tokio::spawn(async move { drop(connection.await) });
        Self { send, authority, scheme }
    }

    /// The connection, when it takes one more request.
    pub async fn ready(&self) -> client::SendRequest<Bytes> {
        soon(self.send.clone().ready()).await.unwrap()
    }

    /// A request to this path, to be completed.
    pub fn request(&self, method: &str, path: &str) -> http::request::Builder {
        Request::builder().method(method).uri(format!("{}://{}{path}", self.scheme, self.authority))
    }

    /// Sends a request with this body.
    pub async fn send(
        &self,
        request: http::request::Builder,
        body: &str,
    ) -> (client::ResponseFuture, SendStream<Bytes>) {
        let (answer, mut sending) =
            self.ready().await.send_request(request.body(()).unwrap(), body.is_empty()).unwrap();
        if !body.is_empty()
            && let Err(error) = sending.send_data(Bytes::from(body.to_owned()), true)
        {
            // one that has been answered already may be closed; its answer is what counts
            eprintln!("a request's body was not taken: {error}");
        }
        (answer, sending)
    }

    /// Asks for an answer to a message.
    pub async fn ask(&self, body: &str) -> client::ResponseFuture {
        let path = if self.scheme == "http" { "/claude/v1/messages" } else { "/v1/messages" };
        self.send(self.request("POST", path), body).await.0
    }
}

async fn connect(rig: &Rig) -> TcpStream {
    let stream = TcpStream::connect(rig.address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// Reads a body to its end, and what follows it.
///
/// # Errors
/// When the stream does not come to its end.
pub async fn read(body: &mut RecvStream) -> Result<(Vec<u8>, Option<HeaderMap>), h2::Error> {
    let mut bytes = Vec::new();
    while let Some(piece) = next(body).await? {
        bytes.extend_from_slice(&piece);
    }
    Ok((bytes, soon(body.trailers()).await?))
}

/// The next piece of a body; `None` at its end.
///
/// # Errors
/// When the stream breaks.
pub async fn next(body: &mut RecvStream) -> Result<Option<Bytes>, h2::Error> {
    let piece = soon(body.data()).await.transpose()?;
    if let Some(piece) = &piece {
        body.flow_control().release_capacity(piece.len())?;
    }
    Ok(piece)
}

/// What must come soon.
pub async fn soon<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(SOON, work).await.expect("it should have come by now")
}

/// Does all of these at the same time.
pub async fn together<F>(works: impl Iterator<Item = F>) -> Vec<F::Output>
where
    F: Future<Output: Send> + Send + 'static,
{
    let under_way: Vec<_> = works.map(tokio::spawn).collect();
    let mut done = Vec::new();
    for work in under_way {
        done.push(work.await.unwrap());
    }
    done
}
