//! TLS towards a client as the metered host that it asked for, and why a client did not take it.
//!
//! Not here: whose certificate it is (`certs`), and what is asked inside (`accept`).
use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use rustls::server::Acceptor;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;

/// Longest wait for a client's TLS handshake, and for it to leave again when it does not trust what it saw.
pub const TIMEOUT: Duration = Duration::from_secs(10);

/// Why there is no TLS with a client.
#[derive(Debug, thiserror::Error)]
pub enum NoTls {
    /// It answered our certificate by an alert: it pins another, or does not trust our authority.
    #[error("refused the meter's certificate ({0:?})")]
    Refused(rustls::AlertDescription),
    /// It was sent our certificate and left without a word.
    #[error("hung up on the meter's certificate")]
    HungUp,
    /// There is no version, cipher or key exchange that both know, or it speaks something else.
    #[error("could not agree with the meter ({0})")]
    Disagreed(rustls::Error),
    /// The connection broke before the certificate was sent, or nothing more came for too long.
    #[error("a connection broke: {0}")]
    Broke(io::Error),
}

impl NoTls {
    /// What `error` means, before or after our certificate was sent.
    fn of(error: io::Error, was_sent: bool) -> Self {
        match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            Some(rustls::Error::AlertReceived(alert)) => Self::Refused(*alert),
            Some(other) => Self::Disagreed(other.clone()),
            None if was_sent && is_end(error.kind()) => Self::HungUp,
            None => Self::Broke(error),
        }
    }
}

fn is_end(kind: io::ErrorKind) -> bool {
    matches!(kind, io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe)
}

/// Speaks TLS with a client.
///
/// # Errors
/// When it does not come about in [`TIMEOUT`].
pub async fn handshake<S>(stream: S, tls: Arc<ServerConfig>) -> Result<TlsStream<S>, NoTls>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let both_halves = async {
        let begun = LazyConfigAcceptor::new(Acceptor::default(), stream).await;
        let begun = begun.map_err(|error| NoTls::of(error, false))?;
        begun.into_stream(tls).await.map_err(|error| NoTls::of(error, true))
    };
    let in_time = tokio::time::timeout(TIMEOUT, both_halves).await;
    in_time.unwrap_or_else(|_| Err(NoTls::Broke(io::ErrorKind::TimedOut.into())))
}
