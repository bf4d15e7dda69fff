//! A mock provider: answers in the wire shapes of Anthropic, OpenAI, Gemini and Bedrock over real sockets, and keeps its own bill.
//!
//! Runs on threads of its own, so that plain tests can use it. What it bills is what the product must find out.
mod anthropic;
mod bedrock;
mod body;
mod frames;
mod gemini;
mod openai;
mod record;
mod script;
mod server;
mod websocket;

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tempfile::TempDir;

pub use record::{Billed, End, Record, sha256_hex};
pub use script::{Asked, Finish, Framing, Reply, Script};

use crate::clock::wait_until;
use crate::tls::{self, TestCa};
use record::Book;

/// Names that the provider's TLS certificate is good for.
pub const TLS_NAMES: [&str; 8] = [
    "api.anthropic.com",
    "api.openai.com",
    "chatgpt.com",
    "generativelanguage.googleapis.com",
    "bedrock-runtime.us-east-1.amazonaws.com",
    "localhost",
    "127.0.0.1",
    "::1",
];

/// Where a provider listens; the line that `mock-provider` prints.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Addresses {
    /// HTTP on 127.0.0.1.
    pub http: SocketAddr,
    /// TLS on 127.0.0.1.
    pub https: SocketAddr,
    /// HTTP on ::1; `None` on a host without IPv6.
    pub http_v6: Option<SocketAddr>,
    /// TLS on ::1.
    pub https_v6: Option<SocketAddr>,
}

/// A running mock provider; stops when dropped.
pub struct Provider {
    addresses: Addresses,
    book: Arc<Book>,
    server: Arc<server::Server>,
    acceptor: tokio_rustls::TlsAcceptor,
    ca_dir: TempDir,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Provider {
    /// Starts one that answers by `script`. Panics when it cannot listen on 127.0.0.1.
    #[must_use]
    pub fn start(script: impl Into<Script>) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("mock-provider")
            .enable_all()
            .build()
            .expect("a runtime for the mock provider");
        let ca = TestCa::new();
        let ca_dir =
            tempfile::Builder::new().prefix("mock-provider-").tempdir().expect("a directory for the CA file");
        std::fs::write(ca_dir.path().join("ca.pem"), ca.pem()).expect("the CA file can be written");
        let script = script.into();
        let protocols = if script.http2 { tls::ANY_HTTP } else { tls::HTTP1 };
        let acceptor = tokio_rustls::TlsAcceptor::from(ca.server_config(&TLS_NAMES, protocols));
        let book = Arc::new(Book::default());
        let server = server::Server::new(script, Arc::clone(&book));

        let entered = runtime.enter();
        let open = |ip: std::net::IpAddr, tls: Option<&tokio_rustls::TlsAcceptor>| {
            let listener = TcpListener::bind((ip, 0)).ok()?;
            let address = listener.local_addr().expect("a bound socket has an address");
            server.serve(listener, tls.cloned());
            Some(address)
        };
        let addresses = Addresses {
            http: open(Ipv4Addr::LOCALHOST.into(), None).expect("a port on 127.0.0.1"),
            https: open(Ipv4Addr::LOCALHOST.into(), Some(&acceptor)).expect("a port on 127.0.0.1"),
            http_v6: open(Ipv6Addr::LOCALHOST.into(), None),
            https_v6: open(Ipv6Addr::LOCALHOST.into(), Some(&acceptor)),
        };
        drop(entered);
        Self { addresses, book, server, acceptor, ca_dir, runtime: Some(runtime) }
    }

    /// Serves TLS at this address, too. Panics when it is taken.
    pub fn serve_tls_at(&self, address: SocketAddr) {
        let listener = TcpListener::bind(address).expect("an address of the test's own");
        let _entered = self.runtime.as_ref().expect("a provider that runs").enter();
        self.server.serve(listener, Some(self.acceptor.clone()));
    }

    /// Where it listens.
    #[must_use]
    pub fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    /// `http://127.0.0.1:PORT`.
    #[must_use]
    pub fn http_url(&self) -> String {
        format!("http://{}", self.addresses.http)
    }

    /// `https://127.0.0.1:PORT`.
    #[must_use]
    pub fn https_url(&self) -> String {
        format!("https://{}", self.addresses.https)
    }

    /// The PEM file with the CA to trust.
    #[must_use]
    pub fn ca_file(&self) -> std::path::PathBuf {
        self.ca_dir.path().join("ca.pem")
    }

    /// Directory of the CA file, to put other files of the test beside it.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.ca_dir.path()
    }

    /// Every request so far, in the order of arrival.
    #[must_use]
    pub fn records(&self) -> Vec<Record> {
        self.book.records()
    }

    /// The requests that bill (inference, whatever their status), in the order of arrival.
    #[must_use]
    pub fn billing_records(&self) -> Vec<Record> {
        self.book.records().into_iter().filter(|record| record.billable).collect()
    }

    /// What all requests together were billed.
    #[must_use]
    pub fn billed_total(&self) -> Billed {
        self.book.billed_total()
    }

    /// Answers that are being sent.
    #[must_use]
    pub fn open_streams(&self) -> usize {
        self.book.open_count()
    }

    /// Waits until the records satisfy `wanted` and gives them; panics with the records after `timeout`.
    pub fn wait_for(&self, wanted: impl Fn(&[Record]) -> bool, timeout: Duration) -> Vec<Record> {
        let found = wait_until(timeout, || Some(self.records()).filter(|records| wanted(records)));
        found.unwrap_or_else(|| panic!("not within {timeout:?}; the provider saw {:#?}", self.records()))
    }
}

impl Drop for Provider {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
