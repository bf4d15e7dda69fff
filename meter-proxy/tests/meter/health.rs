//! A provider that is there and does not live: asked by PING, given up, and dialled anew.
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use h2::Reason;
use meter_proxy::protocol::Config;
use meter_proxy::tokens::{Ending, Provenance};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::rig::frames::{DATA, END_HEADERS, HEADERS, SETTINGS, frame};
use crate::rig::http2::{Client, next, server_tls, soon};
use crate::rig::{Rig, config, nowhere};
use crate::words::{ASK_STREAM, START};

/// A provider that begins one answer and then falls silent, to questions whether it lives too.
fn falling_silent() -> (Config, Arc<AtomicUsize>) {
    let (tls, root_pem) = server_tls();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    listener.set_nonblocking(true).unwrap();
    let listener = TcpListener::from_std(listener).unwrap();
    let connections = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&connections);
    tokio::spawn(async move {
        loop {
            let mut stream = tls.accept(listener.accept().await.unwrap().0).await.unwrap();
            counted.fetch_add(1, Ordering::SeqCst);
            tokio::spawn(async move {
                // `:status: 200`, and `content-type` by its index: RFC 7541, appendix A
                let event_stream = b"text/event-stream";
                let length = u8::try_from(event_stream.len()).unwrap();
                let head = [&[0x88, 0x0f, 0x10, length][..], event_stream].concat();
                let said = [
                    frame(SETTINGS, 0, 0, &[]),
                    frame(HEADERS, END_HEADERS, 1, &head),
                    frame(DATA, 0, 1, START.as_bytes()),
                ];
                // the preface, settings and the head of the request come before the answer
                let mut heard = vec![0; 4_096];
                while !heard.windows(ASK_STREAM.len()).any(|words| words == ASK_STREAM.as_bytes()) {
                    let read = stream.read(&mut heard).await.unwrap();
                    assert!(read > 0, "a request should have come");
                }
                stream.write_all(&said.concat()).await.unwrap();
                while stream.read(&mut heard).await.is_ok_and(|read| read > 0) {}
            });
        }
    });
    let mut settings = config(nowhere());
    settings.providers[0].upstream = Some(format!("https://localhost:{port}"));
    settings.extra_roots_pem = root_pem;
    (settings, connections)
}

#[tokio::test(flavor = "multi_thread")]
async fn root_a_provider_that_does_not_live_is_given_up() {
    let (settings, connections) = falling_silent();
    let rig = Rig::start(settings);
    let client = Client::through_tunnel(&rig).await;
    let mut body = soon(client.ask(ASK_STREAM).await).await.unwrap().into_body();
    assert_eq!(next(&mut body).await.unwrap().unwrap(), START);
    let since = Instant::now();
    let broken = tokio::time::timeout(Duration::from_secs(60), body.data()).await;
    assert_eq!(broken.unwrap().unwrap().unwrap_err().reason(), Some(Reason::INTERNAL_ERROR));
    assert!(since.elapsed() > Duration::from_secs(20), "it was asked first");
    let (_, settle) = rig.exchanges(1).remove(0);
    assert_eq!((settle.ending, settle.provenance), (Ending::UpstreamBroke, Provenance::Partial));
    let again = soon(client.ask(ASK_STREAM).await).await.unwrap();
    assert_eq!((again.status(), connections.load(Ordering::SeqCst)), (http::StatusCode::OK, 2));
}
