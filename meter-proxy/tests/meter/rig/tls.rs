//! A certificate authority of the test's own, and clients that trust it, nobody, or everybody.
use std::sync::Arc;

use meter_proxy::protocol::Leaf;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{EchConfig, EchGreaseConfig, EchMode};
use rustls::crypto::CryptoProvider;
use rustls::crypto::hpke::{
    EncapsulatedSecret, Hpke, HpkeOpener, HpkePrivateKey, HpkePublicKey, HpkeSealer, HpkeSuite,
};
use rustls::internal::msgs::enums::{HpkeAead, HpkeKdf, HpkeKem};
use rustls::internal::msgs::handshake::HpkeSymmetricCipherSuite;
use rustls::{ClientConfig, DigitallySignedStruct, Error, RootCertStore, SupportedProtocolVersion};
use rustls_pki_types::{CertificateDer, EchConfigListBytes, ServerName, UnixTime};

/// A certificate authority of the test's own.
pub struct Authority {
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
    pub certificate: CertificateDer<'static>,
    pub certificate_pem: String,
}

impl Authority {
    pub fn new() -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut parameters = rcgen::CertificateParams::default();
        parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        // Another name than leaves have: what is signed by its own name is taken for self-signed.
        parameters.distinguished_name.push(rcgen::DnType::CommonName, "authority of the tests");
        let signed = parameters.self_signed(&key).unwrap();
        let (certificate, certificate_pem) = (signed.der().clone(), signed.pem());
        Self { issuer: rcgen::Issuer::new(parameters, key), certificate, certificate_pem }
    }

    pub fn sign(&self, host: &str) -> Leaf {
        let key = rcgen::KeyPair::generate().unwrap();
        let parameters = rcgen::CertificateParams::new(vec![host.to_owned()]).unwrap();
        let certificate = parameters.signed_by(&key, &self.issuer).unwrap();
        Leaf { chain: vec![certificate.der().to_vec()], key: key.serialize_der() }
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn store(roots: Vec<CertificateDer<'static>>) -> RootCertStore {
    let mut store = RootCertStore::empty();
    store.add_parsable_certificates(roots);
    store
}

/// TLS towards a server that one of `roots` signed.
pub fn client_tls(roots: Vec<CertificateDer<'static>>) -> Arc<ClientConfig> {
    client_tls_of(roots, rustls::ALL_VERSIONS)
}

/// The same in some versions alone.
pub fn client_tls_of(
    roots: Vec<CertificateDer<'static>>,
    versions: &[&'static SupportedProtocolVersion],
) -> Arc<ClientConfig> {
    let builder = ClientConfig::builder_with_provider(provider());
    let builder = builder.with_protocol_versions(versions).unwrap();
    Arc::new(builder.with_root_certificates(store(roots)).with_no_client_auth())
}

/// TLS of a client that takes any certificate, for any name.
pub fn careless_tls() -> ClientConfig {
    let builder = ClientConfig::builder_with_provider(provider());
    let builder = builder.with_safe_default_protocol_versions().unwrap();
    builder.dangerous().with_custom_certificate_verifier(Arc::new(Careless)).with_no_client_auth()
}

/// TLS of a client that puts noise where a hidden name could stand (GREASE), as browsers do everywhere.
pub fn greasing_tls(roots: Vec<CertificateDer<'static>>) -> Arc<ClientConfig> {
    let noise = EchGreaseConfig::new(&NoKey, HpkePublicKey(vec![9; 32]));
    hiding_tls(EchMode::Grease(noise), roots)
}

/// TLS of a client that hides the name it asks for behind `front`.
pub fn hidden_behind(front: &str) -> Arc<ClientConfig> {
    let key = [&[7, 0, 0x20, 0, 32][..], &[9; 32], &[0, 4, 0, 1, 0, 1]].concat();
    let name = [&[0, u8::try_from(front.len()).unwrap()][..], front.as_bytes(), &[0, 0]].concat();
    let contents = vector(&[key, name].concat());
    let list = vector(&[&[0xfe, 0x0d][..], &contents].concat());
    let config = EchConfig::new(EchConfigListBytes::from(list), &[&NoKey]).unwrap();
    hiding_tls(EchMode::Enable(config), Vec::new())
}

/// The bytes behind their length.
fn vector(bytes: &[u8]) -> Vec<u8> {
    [&u16::try_from(bytes.len()).unwrap().to_be_bytes()[..], bytes].concat()
}

fn hiding_tls(mode: EchMode, roots: Vec<CertificateDer<'static>>) -> Arc<ClientConfig> {
    let builder = ClientConfig::builder_with_provider(provider()).with_ech(mode).unwrap();
    Arc::new(builder.with_root_certificates(store(roots)).with_no_client_auth())
}

#[derive(Debug)]
struct Careless;

impl ServerCertVerifier for Careless {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

/// Encryption to a key that nobody has: what is sealed is noise of the right length.
#[derive(Debug)]
struct NoKey;

impl Hpke for NoKey {
    fn seal(
        &self,
        _: &[u8],
        _: &[u8],
        _: &[u8],
        _: &HpkePublicKey,
    ) -> Result<(EncapsulatedSecret, Vec<u8>), Error> {
        unreachable!("a client sets up a sealer")
    }

    fn setup_sealer(
        &self,
        _: &[u8],
        _: &HpkePublicKey,
    ) -> Result<(EncapsulatedSecret, Box<dyn HpkeSealer>), Error> {
        Ok((EncapsulatedSecret(vec![5; 32]), Box::new(Noise)))
    }

    fn open(
        &self,
        _: &EncapsulatedSecret,
        _: &[u8],
        _: &[u8],
        _: &[u8],
        _: &HpkePrivateKey,
    ) -> Result<Vec<u8>, Error> {
        unreachable!("a client opens nothing")
    }

    fn setup_opener(
        &self,
        _: &EncapsulatedSecret,
        _: &[u8],
        _: &HpkePrivateKey,
    ) -> Result<Box<dyn HpkeOpener>, Error> {
        unreachable!("a client opens nothing")
    }

    fn generate_key_pair(&self) -> Result<(HpkePublicKey, HpkePrivateKey), Error> {
        unreachable!("a client has no key of its own")
    }

    fn suite(&self) -> HpkeSuite {
        let sym = HpkeSymmetricCipherSuite { kdf_id: HpkeKdf::HKDF_SHA256, aead_id: HpkeAead::AES_128_GCM };
        HpkeSuite { kem: HpkeKem::DHKEM_X25519_HKDF_SHA256, sym }
    }
}

#[derive(Debug)]
struct Noise;

impl HpkeSealer for Noise {
    fn seal(&mut self, _: &[u8], plaintext: &[u8]) -> Result<Vec<u8>, Error> {
        Ok(vec![3; plaintext.len() + 16])
    }
}
