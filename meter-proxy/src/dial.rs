//! Connections to the outside: names resolved, each address judged, then dialled; TLS where it is asked for.
//!
//! The address that was judged is the one that is dialled, so a name cannot change its mind in between. Not
//! here: who may ask, and connections that are kept (`forward`).
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::hosts::{Authority, Host};
use crate::peers::watch_server;
use crate::refuse::Reason;
use crate::settings::Settings;

/// Longest wait for a name, a connection or a TLS handshake, each.
const STEP_TIMEOUT: Duration = Duration::from_secs(10);
/// Most names that one bottle looks up at a time.
const MAX_LOOKUPS: usize = 16;

/// Why there is no connection. Nothing of a request has left then.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// Every address of the host is one that clients may not reach.
    #[error("{0} leads to an address that the meter does not connect to")]
    Forbidden(Host),
    /// The host was found where a metered host is, and it is not that one.
    #[error("{host} leads to an address of {metered}, which is metered: ask for it by that name")]
    Metered {
        /// What was asked for.
        host: Host,
        /// What else is there.
        metered: Host,
    },
    /// The address of the request names no host.
    #[error("no host: {0}")]
    NoHost(String),
    /// A step failed or took too long.
    #[error("{authority}: {step}: {error}")]
    Failed {
        /// Whom.
        authority: Authority,
        /// What was tried.
        step: &'static str,
        /// What came of it.
        error: io::Error,
    },
}

/// The answer to a client that asked for it.
impl From<&DialError> for Reason {
    fn from(error: &DialError) -> Self {
        match error {
            DialError::Forbidden(_) | DialError::Metered { .. } => Self::Forbidden(error.to_string()),
            DialError::NoHost(_) | DialError::Failed { .. } => Self::Upstream(error.to_string()),
        }
    }
}

/// Who chose the host that is dialled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chosen {
    /// The settings: it may be private.
    BySettings,
    /// A client: it may not, unless allowed.
    ByClient,
}

/// The name lookups of one bottle. Each blocks a thread, all bottles share those, and one that is given up goes
/// on: its place is free when it has really ended.
#[derive(Clone)]
pub struct Lookups(Arc<Semaphore>);

impl Default for Lookups {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(MAX_LOOKUPS)))
    }
}

impl Lookups {
    async fn find(&self, name: String, port: u16) -> io::Result<Vec<SocketAddr>> {
        let place = Arc::clone(&self.0).acquire_owned().await.map_err(io::Error::other)?;
        let lookup = tokio::spawn(async move {
            let found = tokio::net::lookup_host((name, port)).await.map(Vec::from_iter);
            drop(place);
            found
        });
        lookup.await.map_err(io::Error::other)?
    }
}

/// Connects to `authority`, trying its addresses in the resolver's order. `lookups` are those of its bottle.
///
/// # Errors
/// When no address may be dialled, or none answers.
pub async fn connect(
    authority: &Authority,
    chosen: Chosen,
    settings: &Settings,
    lookups: &Lookups,
) -> Result<TcpStream, DialError> {
    let mut last = DialError::Forbidden(authority.host.clone());
    for address in resolve(authority, settings, lookups).await? {
        match dial(address, authority, chosen, settings).await {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Connects to one address of `authority`, once it is judged.
async fn dial(
    address: SocketAddr,
    authority: &Authority,
    chosen: Chosen,
    settings: &Settings,
) -> Result<TcpStream, DialError> {
    match chosen {
        Chosen::BySettings if settings.addresses.is_own(address) => {
            return Err(DialError::Forbidden(authority.host.clone()));
        }
        Chosen::BySettings => {}
        Chosen::ByClient => judge(address, &authority.host, settings).await?,
    }
    let stream = within(TcpStream::connect(address)).await;
    let stream = stream.and_then(|stream| watch_server(&stream).map(|()| stream));
    stream.map_err(|error| failed(authority, "connect", error))
}

/// Whether `address` may be dialled for a host that a client chose. Addresses of metered hosts may for metered
/// hosts alone: by another name, or by the bare address, their requests would not be seen.
async fn judge(address: SocketAddr, host: &Host, settings: &Settings) -> Result<(), DialError> {
    if !settings.addresses.allows(address) {
        return Err(DialError::Forbidden(host.clone()));
    }
    let is_metered = |host: &Host| settings.provider_at(host).is_some();
    if is_metered(host) {
        return Ok(());
    }
    settings.metered_addresses.resolved_once().await;
    match settings.metered_addresses.host_at(address.ip(), is_metered) {
        Some(metered) => Err(DialError::Metered { host: host.clone(), metered }),
        None => Ok(()),
    }
}

/// Speaks TLS on a connection to `authority`, whose name the certificate must carry.
///
/// # Errors
/// When the handshake fails.
pub async fn secure(
    stream: TcpStream,
    authority: &Authority,
    settings: &Settings,
) -> Result<TlsStream<TcpStream>, DialError> {
    secure_by(&settings.tls, stream, authority).await
}

/// The same by a configuration of one's own.
///
/// # Errors
/// When the handshake fails.
pub async fn secure_by(
    tls: &Arc<ClientConfig>,
    stream: TcpStream,
    authority: &Authority,
) -> Result<TlsStream<TcpStream>, DialError> {
    let name = match &authority.host {
        Host::Name(name) => ServerName::try_from(name.clone())
            .map_err(|error| failed(authority, "TLS", io::Error::other(error)))?,
        Host::Address(address) => ServerName::IpAddress((*address).into()),
    };
    let connector = TlsConnector::from(Arc::clone(tls));
    within(connector.connect(name, stream)).await.map_err(|error| failed(authority, "TLS", error))
}

/// All addresses of the host; at least one. Those of metered hosts are remembered.
///
/// # Errors
/// When there are none, or not in time.
pub async fn resolve(
    authority: &Authority,
    settings: &Settings,
    lookups: &Lookups,
) -> Result<Vec<SocketAddr>, DialError> {
    let name = match &authority.host {
        Host::Address(address) => return Ok(vec![SocketAddr::new(IpAddr::clone(address), authority.port)]),
        Host::Name(name) => name,
    };
    let found = within(lookups.find(name.clone(), authority.port))
        .await
        .map_err(|error| failed(authority, "name resolution", error))?;
    if found.is_empty() {
        return Err(failed(authority, "name resolution", io::ErrorKind::NotFound.into()));
    }
    if settings.provider_at(&authority.host).is_some() {
        settings.metered_addresses.learn(&authority.host, &found);
    }
    Ok(found)
}

async fn within<T>(step: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    tokio::time::timeout(STEP_TIMEOUT, step).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

fn failed(authority: &Authority, step: &'static str, error: io::Error) -> DialError {
    DialError::Failed { authority: authority.clone(), step, error }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_bottle_looks_up_so_many_names_and_no_more() {
        let lookups = Lookups::default();
        let all = u32::try_from(MAX_LOOKUPS).unwrap();
        let under_way = lookups.0.acquire_many(all).await.unwrap();
        let find = || tokio::time::timeout(Duration::from_millis(50), lookups.find("localhost".into(), 1));
        assert!(find().await.is_err(), "one more waits");
        drop(under_way);
        let found = lookups.find("localhost".into(), 1).await.unwrap();
        assert!(found.iter().all(|address| address.ip().is_loopback() && address.port() == 1), "{found:?}");
        assert_eq!(lookups.0.available_permits(), MAX_LOOKUPS);
    }
}
