//! Leaf certificates for metered hosts: asked of the controller once for each host, kept for a while.
//!
//! The authority's key never comes here. Not here: which hosts are metered.
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use lru::LruCache;
use rustls::ServerConfig;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::sync::OnceCell;
use tokio::time::Instant;

use crate::link::ControllerError;
use crate::lock::lock;
use crate::protocol::Leaf;

/// Most hosts whose certificates are kept.
const MAX_HOSTS: NonZeroUsize = NonZeroUsize::new(256).expect("not zero");
/// How long a certificate is used before a new one is asked for: the authority may have changed.
const MAX_AGE: Duration = Duration::from_secs(3_600);

/// Why there is no TLS towards a client.
#[derive(Debug, thiserror::Error)]
pub enum CertError {
    /// The controller gave none.
    #[error(transparent)]
    Controller(#[from] ControllerError),
    /// What it gave cannot be used.
    #[error("the certificate cannot be used: {0}")]
    Unusable(String),
}

/// One host's certificate: there, or being asked for by the first that needs it.
struct Kept {
    since: Instant,
    config: Arc<OnceCell<Arc<ServerConfig>>>,
}

/// The certificates that are kept.
pub struct Certs {
    kept: Mutex<LruCache<String, Kept>>,
    protocols: &'static [&'static [u8]],
}

impl Certs {
    /// Begins with none; clients are offered these protocols (ALPN), the best one first.
    #[must_use]
    pub fn offering(protocols: &'static [&'static [u8]]) -> Self {
        Self { kept: Mutex::new(LruCache::new(MAX_HOSTS)), protocols }
    }

    /// TLS towards clients that mean `host`, a metered name in lower case. `signed` asks the controller for its
    /// leaf, and is not awaited where there is one.
    ///
    /// # Errors
    /// When the controller signs none.
    pub async fn for_host(
        &self,
        host: &str,
        signed: impl Future<Output = Result<Leaf, ControllerError>>,
    ) -> Result<Arc<ServerConfig>, CertError> {
        let cell = self.cell(host);
        let config =
            cell.get_or_try_init(|| async { server_config(signed.await?, self.protocols).map(Arc::new) });
        config.await.map(Arc::clone)
    }

    /// Forgets all: the authority may be another.
    pub fn forget(&self) {
        lock(&self.kept).clear();
    }

    /// The host's place, made anew when it is too old.
    fn cell(&self, host: &str) -> Arc<OnceCell<Arc<ServerConfig>>> {
        let mut kept = lock(&self.kept);
        if kept.peek(host).is_some_and(|kept| kept.since.elapsed() > MAX_AGE) {
            kept.pop(host);
        }
        let fresh = || Kept { since: Instant::now(), config: Arc::default() };
        Arc::clone(&kept.get_or_insert(host.to_owned(), fresh).config)
    }
}

/// TLS 1.2 and 1.3 with this leaf.
fn server_config(leaf: Leaf, protocols: &[&[u8]]) -> Result<ServerConfig, CertError> {
    let unusable = |error: rustls::Error| CertError::Unusable(error.to_string());
    let chain = leaf.chain.into_iter().map(CertificateDer::from).collect();
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(leaf.key));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(unusable)?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(unusable)?;
    config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
    Ok(config)
}
