//! The first words of a connection: TLS, and for which name; plain HTTP; or something else?
//!
//! Not here: what follows from it. Of a name that the client encrypted (ECH) only that there may be one is seen.
use std::fmt;
use std::io;
use std::time::Duration;

use rustls::server::Acceptor;
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::extensions::hides_a_name;
use crate::hosts::Host;

/// Longest wait for the rest of the first words, once they have begun.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Longest TLS hello that is read, bytes; real ones are below 4 KiB.
const MAX_BYTES: usize = 32 * 1024;
/// Most that is read at once, bytes.
const PIECE_BYTES: usize = 2 * 1024;
/// First byte of a TLS handshake record, RFC 8446, 5.1.
const HANDSHAKE: u8 = 0x16;
/// The fatal TLS alert "access denied", RFC 8446, 6: the last words to a client whose TLS is not gone along with.
pub const ACCESS_DENIED: [u8; 7] = [0x15, 3, 3, 0, 2, 2, 49];
/// What plain HTTP/1 begins with: RFC 9110, 9.3, and RFC 5789.
const METHODS: [&[u8]; 9] =
    [b"GET ", b"HEAD ", b"POST ", b"PUT ", b"DELETE ", b"CONNECT ", b"OPTIONS ", b"TRACE ", b"PATCH "];

/// What a client began with.
pub struct Opening {
    /// All bytes that were read, to be passed on.
    pub bytes: Vec<u8>,
    /// What they are.
    pub speech: Speech,
}

/// What a client speaks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Speech {
    /// TLS.
    Tls {
        /// The name that it asks for, if it is one.
        name: Option<Host>,
        /// Whether it may ask for another one that is encrypted.
        hides: bool,
    },
    /// What begins as TLS and cannot be read.
    BrokenTls,
    /// HTTP/1 without TLS.
    Http,
    /// Anything else.
    Other,
}

impl Speech {
    /// The name that it asks for in the open.
    #[must_use]
    pub fn name(&self) -> Option<&Host> {
        match self {
            Self::Tls { name, .. } => name.as_ref(),
            Self::BrokenTls | Self::Http | Self::Other => None,
        }
    }
}

impl fmt::Display for Speech {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tls { name: Some(name), hides: false } => write!(f, "TLS for {name}"),
            Self::Tls { name: Some(name), hides: true } => write!(f, "TLS for {name} or a hidden name"),
            Self::Tls { name: None, hides: false } => f.write_str("TLS for no name"),
            Self::Tls { name: None, hides: true } => f.write_str("TLS for a hidden name"),
            Self::BrokenTls => f.write_str("TLS that cannot be read"),
            Self::Http => f.write_str("plain HTTP"),
            Self::Other => f.write_str("another protocol"),
        }
    }
}

/// Reads a client's first words. Waits as long as it takes for the first byte; a client that ends has said what
/// it said.
///
/// # Errors
/// When the connection breaks, or the client stops in the middle.
pub async fn read(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Opening> {
    let mut bytes = Vec::new();
    more(stream, &mut bytes).await?;
    let recognised = tokio::time::timeout(TIMEOUT, recognise(stream, &mut bytes));
    let speech = recognised.await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
    Ok(Opening { bytes, speech })
}

/// Reads on for as long as it may still be TLS or HTTP.
async fn recognise(stream: &mut (impl AsyncRead + Unpin), bytes: &mut Vec<u8>) -> io::Result<Speech> {
    if bytes.first() == Some(&HANDSHAKE) {
        return read_hello(stream, bytes).await;
    }
    while METHODS.iter().any(|method| method.len() > bytes.len() && method.starts_with(bytes)) {
        if !more(stream, bytes).await? {
            break;
        }
    }
    let is_http = METHODS.iter().any(|method| bytes.starts_with(method));
    Ok(if is_http { Speech::Http } else { Speech::Other })
}

/// Reads a TLS hello, in however many records and pieces it comes.
async fn read_hello(stream: &mut (impl AsyncRead + Unpin), bytes: &mut Vec<u8>) -> io::Result<Speech> {
    let mut acceptor = Acceptor::default();
    let mut taken = 0;
    loop {
        while let Some(mut untaken) = bytes.get(taken..).filter(|untaken| !untaken.is_empty()) {
            let Ok(read) = acceptor.read_tls(&mut untaken) else { return Ok(Speech::BrokenTls) };
            taken += read;
            match acceptor.accept() {
                Ok(None) => {}
                Ok(Some(accepted)) => {
                    let name = accepted.client_hello().server_name().and_then(|name| name.parse().ok());
                    let hides = hides_a_name(&bytes[..taken]);
                    return Ok(Speech::Tls { name, hides });
                }
                Err(_) => return Ok(Speech::BrokenTls),
            }
        }
        if bytes.len() >= MAX_BYTES || !more(stream, bytes).await? {
            return Ok(Speech::BrokenTls);
        }
    }
}

/// Reads at least one byte more; false at the end.
async fn more(stream: &mut (impl AsyncRead + Unpin), bytes: &mut Vec<u8>) -> io::Result<bool> {
    let mut piece = [0; PIECE_BYTES];
    let read = stream.read(&mut piece).await?;
    bytes.extend_from_slice(&piece[..read]);
    Ok(read > 0)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::io::AsyncWriteExt;

    use super::*;

    /// What rustls begins with, asking for `name`, or for none.
    fn hello(name: &str, named: bool) -> Vec<u8> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider);
        let builder = builder.with_safe_default_protocol_versions().unwrap();
        let mut config = builder.with_root_certificates(rustls::RootCertStore::empty()).with_no_client_auth();
        config.enable_sni = named;
        let name = rustls_pki_types::ServerName::try_from(name.to_owned()).unwrap();
        let mut client = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes).unwrap();
        bytes
    }

    async fn heard(bytes: &[u8]) -> Speech {
        let opening = read(&mut &*bytes).await.unwrap();
        assert!(bytes.starts_with(&opening.bytes), "nothing is changed");
        opening.speech
    }

    #[tokio::test]
    async fn tls_asks_for_a_name_or_for_none() {
        let tls =
            |name: Option<&str>| Speech::Tls { name: name.map(|name| name.parse().unwrap()), hides: false };
        assert_eq!(heard(&hello("API.test", true)).await, tls(Some("api.test")));
        assert_eq!(heard(&hello("api.test", false)).await, tls(None));
        assert_eq!(heard(&hello("192.0.2.1", true)).await, tls(None));
    }

    #[tokio::test]
    async fn first_words_may_come_in_any_pieces() {
        for (words, speech) in [
            (hello("api.test", true), Speech::Tls { name: "api.test".parse().ok(), hides: false }),
            (b"OPTIONS * HTTP/1.1\r\n".to_vec(), Speech::Http),
            (b"POSTAL".to_vec(), Speech::Other),
        ] {
            let (mut client, mut meter) = tokio::io::duplex(1);
            let says = words.clone();
            let saying = tokio::spawn(async move { client.write_all(&says).await });
            let opening = read(&mut meter).await.unwrap();
            assert!(words.starts_with(&opening.bytes));
            assert_eq!(opening.speech, speech);
            drop(meter);
            // The end may come before all was said.
            drop(saying.await.unwrap());
        }
    }

    #[tokio::test]
    async fn what_is_neither_tls_nor_http_is_told_apart_at_once() {
        for other in ["SSH-2.0-x\r\n", "GETAWAY", "get / HTTP/1.1", "PRI * HTTP/2.0", "\0", "\u{15}"] {
            assert_eq!(heard(other.as_bytes()).await, Speech::Other, "{other}");
        }
        assert_eq!(heard(b"GET / HTTP/1.1\r\n\r\n").await, Speech::Http);
    }

    #[tokio::test]
    async fn tls_that_cannot_be_read_is_told_apart() {
        assert_eq!(heard(&[0x16, 3, 1, 0, 4, 9, 9, 9, 9]).await, Speech::BrokenTls);
        let mut endless = [&[0x16, 3, 1, 0x40, 0][..], &[1, 0, 0xff, 0xff], &[0; 0x3ffc]].concat();
        endless.extend([&[0x16, 3, 1, 0x40, 0][..], &[0; 0x4000]].concat());
        endless.extend([&[0x16, 3, 1, 0x40, 0][..], &[0; 0x4000]].concat());
        assert_eq!(heard(&endless).await, Speech::BrokenTls);
    }

    #[tokio::test]
    async fn who_ends_in_the_middle_has_said_what_it_said() {
        for (begun, speech) in
            [(&[0x16, 3, 1][..], Speech::BrokenTls), (b"GE", Speech::Other), (b"", Speech::Other)]
        {
            assert_eq!(heard(begun).await, speech, "{begun:?}");
        }
    }
}
