//! The certificate authority of one state directory: its key, the leaves it signs for metered hosts, and the
//! certificate that bottles are to trust. The key never leaves this process; which host is metered, it does
//! not know.
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use meter_proxy::protocol::Leaf;
use nix::fcntl::OFlag;
use nix::unistd::Uid;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use time::{Duration, OffsetDateTime};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::settings::is_dns_name;
use crate::state::StateDir;

/// The private key in the state directory, PKCS#8 PEM.
pub const KEY_FILE: &str = "ca.key";
/// The certificate, in the state directory and where it is published, PEM.
pub const CERTIFICATE_FILE: &str = "ca.pem";
/// The system's roots and the certificate, where it is published, PEM.
pub const BUNDLE_FILE: &str = "ca-bundle.pem";

const CA_LIFETIME: Duration = Duration::days(3650);
const LEAF_LIFETIME: Duration = Duration::days(30);
/// How far a bottle's clock may lag behind.
const CLOCK_SKEW: Duration = Duration::hours(1);
/// Longest key or certificate that is read, bytes.
const MAX_PEM_BYTES: u64 = 64 * 1024;
/// Where distributions keep the system's roots; the first that is there counts.
const SYSTEM_BUNDLES: [&str; 5] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// What can go wrong with keys and certificates; one line each.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// The stored key or certificate is not what it should be.
    #[error("{}: {what}", path.display())]
    Unusable {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        what: String,
        /// What to do.
        hint: String,
    },
    /// A file cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// Something is no host name, so it gets no certificate.
    #[error("{0:?} is neither a host name nor an address")]
    NoHost(String),
    /// The library refused.
    #[error("a certificate cannot be made: {0}")]
    Signing(#[from] rcgen::Error),
}

/// A certificate authority, ready to sign.
pub struct Ca {
    issuer: Issuer<'static, KeyPair>,
    certificate_pem: String,
    certificate: CertificateDer<'static>,
    not_after: OffsetDateTime,
}

impl Ca {
    /// Loads the authority of a state directory, or makes it: ECDSA P-256, ten years.
    ///
    /// # Errors
    /// When a file is a link, somebody else's or open to others, is damaged, or does not belong to the other,
    /// or when the certificate has run out.
    pub fn load_or_create(state: &StateDir) -> Result<Self, CaError> {
        let (key_path, certificate_path) = (state.file(KEY_FILE), state.file(CERTIFICATE_FILE));
        let key = match read_own(&key_path, 0o077)? {
            Some(pem) => KeyPair::from_pem(&pem)
                .map_err(|error| unusable(&key_path, format!("it is no private key: {error}")))?,
            None if exists(&certificate_path)? => {
                return Err(unusable(&key_path, "it is gone, but its certificate is there".to_owned()));
            }
            None => create_key(&key_path)?,
        };
        let certificate_pem = match read_own(&certificate_path, 0o022)? {
            Some(pem) => pem,
            // made just now, or the maker died between the two files
            None => create_certificate(&key, &certificate_path)?,
        };
        Self::of(key, certificate_pem, &certificate_path)
    }

    fn of(key: KeyPair, certificate_pem: String, path: &Path) -> Result<Self, CaError> {
        let damaged = |what: String| unusable(path, format!("it is no certificate: {what}"));
        let certificate = CertificateDer::from_pem_slice(certificate_pem.as_bytes())
            .map_err(|error| damaged(error.to_string()))?;
        let (_, parsed) =
            X509Certificate::from_der(&certificate).map_err(|error| damaged(error.to_string()))?;
        if parsed.public_key().raw != rcgen::PublicKeyData::subject_public_key_info(&key) {
            return Err(unusable(path, format!("it does not belong to {KEY_FILE} beside it")));
        }
        let not_after = parsed.validity().not_after.to_datetime();
        if not_after <= OffsetDateTime::now_utc() {
            return Err(unusable(path, format!("it ran out on {}", not_after.date())));
        }
        let issuer = Issuer::from_ca_cert_der(&certificate, key)?;
        Ok(Self { issuer, certificate_pem, certificate, not_after })
    }

    /// The certificate, PEM.
    #[must_use]
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// SHA-256 of the certificate's DER, in upper-case hex pairs with colons between.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        let digest = ring::digest::digest(&ring::digest::SHA256, &self.certificate);
        let pairs: Vec<String> = digest.as_ref().iter().map(|byte| format!("{byte:02X}")).collect();
        pairs.join(":")
    }

    /// Writes what bottles need where they can read it: [`CERTIFICATE_FILE`], whose path is returned, and beside
    /// it [`BUNDLE_FILE`] for programs whose setting (`SSL_CERT_FILE`) replaces the system's roots.
    ///
    /// # Errors
    /// When a file cannot be written, or the system's roots cannot be read.
    pub fn publish(&self, run_dir: &Path) -> Result<PathBuf, CaError> {
        let path = run_dir.join(CERTIFICATE_FILE);
        write_whole(&path, self.certificate_pem.as_bytes(), 0o644)?;
        let mut bundle = system_roots()?;
        if !bundle.is_empty() && !bundle.ends_with(b"\n") {
            bundle.push(b'\n');
        }
        bundle.extend_from_slice(self.certificate_pem.as_bytes());
        write_whole(&run_dir.join(BUNDLE_FILE), &bundle, 0o644)?;
        Ok(path)
    }

    /// Makes a key and signs a certificate for one host: a lower-case DNS name, or an address. From an hour ago
    /// for 30 days, or to the authority's own end.
    ///
    /// # Errors
    /// When it is no host, or the library refuses.
    pub fn leaf(&self, host: &str) -> Result<Leaf, CaError> {
        let name = match host.parse::<IpAddr>() {
            Ok(address) => SanType::IpAddress(address),
            Err(_) if is_dns_name(host) => SanType::DnsName(host.try_into()?),
            Err(_) => return Err(CaError::NoHost(host.to_owned())),
        };
        let now = OffsetDateTime::now_utc();
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![name];
        params.distinguished_name = common_name("Enforcer leaf");
        params.not_before = now - CLOCK_SKEW;
        params.not_after = self.not_after.min(now + LEAF_LIFETIME);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(Leaf { chain: vec![certificate.der().to_vec()], key: key.serialize_der() })
    }
}

fn common_name(name: &str) -> DistinguishedName {
    let mut names = DistinguishedName::new();
    names.push(DnType::CommonName, name);
    names
}

fn create_key(path: &Path) -> Result<KeyPair, CaError> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    write_whole(path, key.serialize_pem().as_bytes(), 0o600)?;
    Ok(key)
}

fn create_certificate(key: &KeyPair, path: &Path) -> Result<String, CaError> {
    let now = OffsetDateTime::now_utc();
    // two authorities on one host must not look alike to a program that trusts both
    let id = ring::digest::digest(&ring::digest::SHA256, rcgen::PublicKeyData::der_bytes(key));
    let id: String = id.as_ref().iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    let mut params = CertificateParams::default();
    params.distinguished_name = common_name(&format!("Enforcer CA {id}"));
    params.not_before = now - CLOCK_SKEW;
    params.not_after = now + CA_LIFETIME;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let pem = params.self_signed(key)?.pem();
    write_whole(path, pem.as_bytes(), 0o600)?;
    Ok(pem)
}

fn exists(path: &Path) -> Result<bool, CaError> {
    match fs::symlink_metadata(path) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(CaError::Io { path: path.to_owned(), source }),
    }
}

/// Reads a file of this user's that is no link and has none of the forbidden mode bits; `None` when there is none.
fn read_own(path: &Path, forbidden: u32) -> Result<Option<String>, CaError> {
    if !exists(path)? {
        return Ok(None);
    }
    if path.is_symlink() {
        return Err(unusable(path, "it is a symbolic link".to_owned()));
    }
    let io = |source| CaError::Io { path: path.to_owned(), source };
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
    let file = OpenOptions::new().read(true).custom_flags(flags.bits()).open(path).map_err(io)?;
    let about = file.metadata().map_err(io)?;
    let mode = about.mode() & 0o7777;
    if !about.is_file() || about.uid() != Uid::effective().as_raw() || mode & forbidden != 0 {
        let what = format!("it is not a file of this user's alone (uid {}, mode {mode:04o})", about.uid());
        return Err(unusable(path, what));
    }
    let mut text = String::new();
    file.take(MAX_PEM_BYTES).read_to_string(&mut text).map_err(io)?;
    Ok(Some(text))
}

/// Writes a file whole or not at all, with exactly this mode: beside its place first, then over it.
fn write_whole(path: &Path, bytes: &[u8], mode: u32) -> Result<(), CaError> {
    let io = |source| CaError::Io { path: path.to_owned(), source };
    let fresh = path.with_extension("new");
    match fs::remove_file(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io(error)),
        // there was none, or one that a writer left when it died
        _ => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .custom_flags(OFlag::O_NOFOLLOW.bits())
        .open(&fresh)
        .map_err(io)?;
    file.set_permissions(fs::Permissions::from_mode(mode)).map_err(io)?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(io)?;
    fs::rename(&fresh, path).map_err(io)?;
    let dir = path.parent().unwrap_or(Path::new("/"));
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(io)
}

/// The system's roots, PEM; nothing where it keeps none in one file.
fn system_roots() -> Result<Vec<u8>, CaError> {
    for path in SYSTEM_BUNDLES.map(Path::new) {
        match fs::read(path) {
            Ok(bytes) => return Ok(bytes),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(CaError::Io { path: path.to_owned(), source }),
        }
    }
    Ok(Vec::new())
}

fn unusable(path: &Path, what: String) -> CaError {
    let hint = format!(
        "move {KEY_FILE} and {CERTIFICATE_FILE} away to make a new authority; bottles must then trust it"
    );
    CaError::Unusable { path: path.to_owned(), what, hint }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::sync::Arc;

    use rustls::client::WebPkiServerVerifier;
    use rustls::client::danger::ServerCertVerifier;
    use rustls::crypto::ring::default_provider;
    use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
    use rustls::{RootCertStore, ServerConfig};
    use tempfile::TempDir;

    use super::*;

    struct Fixture {
        _temp: TempDir,
        state: StateDir,
    }

    impl Fixture {
        fn new() -> Self {
            let temp = TempDir::new().unwrap();
            let state = StateDir::open(Some(&temp.path().join("state"))).unwrap();
            Self { _temp: temp, state }
        }

        fn ca(&self) -> Ca {
            Ca::load_or_create(&self.state).unwrap()
        }

        fn refused(&self) -> String {
            match Ca::load_or_create(&self.state) {
                Err(error) => error.to_string(),
                Ok(_) => panic!("taken"),
            }
        }
    }

    /// What a TLS client that trusts `roots` says of the leaf, so many days from now.
    fn verdict(roots: &[&[u8]], leaf: &Leaf, host: &str, days: i64) -> Result<(), rustls::Error> {
        let mut store = RootCertStore::empty();
        for root in roots {
            store.add(CertificateDer::from_slice(root)).unwrap();
        }
        let provider = Arc::new(default_provider());
        let verifier =
            WebPkiServerVerifier::builder_with_provider(Arc::new(store), provider).build().unwrap();
        let then = OffsetDateTime::now_utc() + Duration::days(days);
        let since_epoch = std::time::Duration::from_secs(then.unix_timestamp().unsigned_abs());
        let name = ServerName::try_from(host.to_owned()).unwrap();
        let end = CertificateDer::from_slice(&leaf.chain[0]);
        verifier.verify_server_cert(&end, &[], &name, &[], UnixTime::since_unix_epoch(since_epoch)).map(drop)
    }

    #[test]
    fn a_client_that_trusts_the_authority_trusts_its_leaves() {
        let (fixture, stranger) = (Fixture::new(), Fixture::new());
        let ca = fixture.ca();
        let stranger = stranger.ca();
        for host in ["api.anthropic.com", "localhost", "127.0.0.1", "::1"] {
            let leaf = ca.leaf(host).unwrap();
            verdict(&[&ca.certificate], &leaf, host, 0).unwrap();
            verdict(&[&ca.certificate], &leaf, host, 29).unwrap();
            verdict(&[&ca.certificate], &leaf, "api.openai.com", 0).unwrap_err();
            verdict(&[&ca.certificate], &leaf, host, 31).unwrap_err();
            verdict(&[&ca.certificate], &leaf, host, -1).unwrap_err();
            verdict(&[&stranger.certificate], &leaf, host, 0).unwrap_err();
        }
    }

    #[test]
    fn a_server_can_use_the_leaf_and_its_key() {
        let leaf = Fixture::new().ca().leaf("chatgpt.com").unwrap();
        let chain = leaf.chain.iter().map(|der| CertificateDer::from(der.clone())).collect();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(leaf.key));
        // rustls refuses a key that does not belong to the certificate
        ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
    }

    #[test]
    fn what_is_no_host_gets_no_certificate() {
        let ca = Fixture::new().ca();
        let long = format!("{}.com", "a".repeat(250));
        for host in [
            "",
            ".",
            "a..b",
            "*.example.com",
            "-a.com",
            "UPPER.com",
            "a b",
            "a/b",
            "x\0.com",
            "1.2.3",
            "ü.de",
            &long,
        ] {
            assert!(matches!(ca.leaf(host), Err(CaError::NoHost(_))), "{host:?}");
        }
    }

    #[test]
    fn a_second_start_finds_the_same_authority() {
        let fixture = Fixture::new();
        let first = fixture.ca();
        let again = fixture.ca();
        assert_eq!(first.fingerprint(), again.fingerprint());
        assert_eq!(first.fingerprint().len(), 32 * 3 - 1);
        verdict(&[&first.certificate], &again.leaf("a.example").unwrap(), "a.example", 0).unwrap();
        let key = fs::metadata(fixture.state.file(KEY_FILE)).unwrap();
        assert_eq!(key.mode() & 0o7777, 0o600);
        assert!(!fixture.state.file("ca.new").exists());
    }

    #[test]
    fn a_maker_that_died_between_the_files_is_carried_on() {
        let fixture = Fixture::new();
        fixture.ca();
        fs::remove_file(fixture.state.file(CERTIFICATE_FILE)).unwrap();
        fs::write(fixture.state.file("ca.new"), "half a").unwrap();
        let ca = fixture.ca();
        verdict(&[&ca.certificate], &ca.leaf("a.example").unwrap(), "a.example", 0).unwrap();
    }

    #[test]
    fn stored_files_that_are_not_ours_alone_or_no_pair_are_refused() {
        type Change<'a> = &'a dyn Fn(&Path, &Path);
        let other = Fixture::new();
        other.ca();
        let chmod = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        let cases: [(&str, Change<'_>); 7] = [
            ("mode 0640", &|key, _| chmod(key, 0o640)),
            ("mode 0622", &|_, certificate| chmod(certificate, 0o622)),
            ("symbolic link", &|key, _| {
                fs::remove_file(key).unwrap();
                symlink(other.state.file(KEY_FILE), key).unwrap();
            }),
            ("it is gone, but its certificate", &|key, _| fs::remove_file(key).unwrap()),
            ("does not belong to ca.key", &|key, _| {
                fs::copy(other.state.file(KEY_FILE), key).map(drop).unwrap();
            }),
            ("no private key", &|key, _| fs::write(key, "nonsense").unwrap()),
            ("no certificate", &|_, certificate| fs::write(certificate, "").unwrap()),
        ];
        for (words, change) in cases {
            let fixture = Fixture::new();
            fixture.ca();
            change(&fixture.state.file(KEY_FILE), &fixture.state.file(CERTIFICATE_FILE));
            let refused = fixture.refused();
            assert!(refused.contains(words), "{words}: {refused}");
        }
    }

    #[test]
    fn what_is_published_can_be_read_by_all_and_holds_the_certificate() {
        let fixture = Fixture::new();
        let ca = fixture.ca();
        let run_dir = TempDir::new().unwrap();
        let path = ca.publish(run_dir.path()).unwrap();
        assert_eq!(path, ca.publish(run_dir.path()).unwrap());
        assert_eq!(fs::read_to_string(&path).unwrap(), ca.certificate_pem());
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o644);
        let bundle = fs::read(run_dir.path().join(BUNDLE_FILE)).unwrap();
        let certificates = CertificateDer::pem_slice_iter(&bundle).collect::<Result<Vec<_>, _>>().unwrap();
        let roots = CertificateDer::pem_slice_iter(&system_roots().unwrap()).count();
        assert_eq!(certificates.len(), roots + 1);
        assert_eq!(certificates.last(), Some(&ca.certificate));
    }
}
