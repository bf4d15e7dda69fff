//! A certificate authority made for one test, server certificates signed by it, and clients that trust a CA file.
use std::path::Path;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

/// Protocols to offer (ALPN): HTTP/1.1 alone.
pub const HTTP1: &[&[u8]] = &[b"http/1.1"];
/// HTTP/2, else HTTP/1.1.
pub const ANY_HTTP: &[&[u8]] = &[b"h2", b"http/1.1"];

/// A certificate authority.
pub struct TestCa {
    issuer: Issuer<'static, KeyPair>,
    certificate_pem: String,
}

impl TestCa {
    /// A new one, with a new key.
    #[must_use]
    pub fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::CommonName, "mock provider test CA");
        let key = KeyPair::generate().expect("a key pair");
        let certificate_pem = params.self_signed(&key).expect("a CA certificate").pem();
        Self { issuer: Issuer::new(params, key), certificate_pem }
    }

    /// Its certificate.
    #[must_use]
    pub fn pem(&self) -> &str {
        &self.certificate_pem
    }

    /// A server with one certificate for all of `names` (host names and IP addresses), speaking `protocols`.
    #[must_use]
    pub fn server_config(&self, names: &[&str], protocols: &[&[u8]]) -> Arc<ServerConfig> {
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let key = KeyPair::generate().expect("a key pair");
        let params = CertificateParams::new(names).expect("names for a certificate");
        let leaf = params.signed_by(&key, &self.issuer).expect("a leaf certificate");
        let key_der = PrivateKeyDer::try_from(key.serialize_der()).expect("rcgen's own key");
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .expect("default TLS versions")
            .with_no_client_auth()
            .with_single_cert(vec![leaf.der().clone()], key_der)
            .expect("certificate and key belong together");
        config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
        Arc::new(config)
    }
}

impl Default for TestCa {
    fn default() -> Self {
        Self::new()
    }
}

/// A client that trusts the certificates in a PEM file and nothing else, and offers `protocols`.
///
/// # Errors
/// The file cannot be read, or holds no certificate.
pub fn client_trusting(ca_file: &Path, protocols: &[&[u8]]) -> anyhow::Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(ca_file)? {
        roots.add(certificate?)?;
    }
    anyhow::ensure!(!roots.is_empty(), "{} holds no certificate", ca_file.display());
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
    Ok(Arc::new(config))
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}
