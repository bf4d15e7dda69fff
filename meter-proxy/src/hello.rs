//! The first bytes of a tunnel that is not opened: which name does its TLS ask for?
//!
//! A tunnel to an address, or to another name for it, may still mean a metered host. Not here: what follows
//! from the name. A name that the client encrypted (ECH) is not seen.
use std::io;
use std::time::Duration;

use rustls::server::Acceptor;
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::hosts::Host;

/// Longest wait for the first TLS message.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Longest first TLS message, bytes; real ones are below 4 KiB.
const MAX_BYTES: usize = 32 * 1024;
/// First byte of a TLS handshake record, RFC 8446, 5.1.
const HANDSHAKE: u8 = 0x16;

/// What a client began with.
pub struct Opening {
    /// All bytes that were read, to be passed on.
    pub bytes: Vec<u8>,
    /// The name its TLS asks for, if it speaks TLS and names one.
    pub name: Option<Host>,
}

/// Reads a client's first message.
///
/// # Errors
/// When the client ends or is silent, or its TLS cannot be read.
pub async fn read(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Opening> {
    tokio::time::timeout(TIMEOUT, read_hello(stream))
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

async fn read_hello(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Opening> {
    let mut acceptor = Acceptor::default();
    let mut bytes = Vec::new();
    let mut piece = [0; 2048];
    while bytes.len() < MAX_BYTES {
        let read = stream.read(&mut piece).await?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        bytes.extend_from_slice(&piece[..read]);
        if bytes.first() != Some(&HANDSHAKE) {
            return Ok(Opening { bytes, name: None });
        }
        let mut unread = &piece[..read];
        while !unread.is_empty() {
            acceptor.read_tls(&mut unread)?;
            let accepted = acceptor.accept().map_err(|(error, _)| io::Error::other(error))?;
            if let Some(accepted) = accepted {
                let name = accepted.client_hello().server_name().and_then(|name| name.parse().ok());
                return Ok(Opening { bytes, name });
            }
        }
    }
    Err(io::ErrorKind::InvalidData.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_no_tls_has_no_name() {
        let opening = read(&mut &b"SSH-2.0-x\r\n"[..]).await.unwrap();
        assert_eq!((opening.bytes.as_slice(), opening.name), (&b"SSH-2.0-x\r\n"[..], None));
    }

    #[tokio::test]
    async fn tls_that_cannot_be_read_is_an_error() {
        for bad in [&[0x16, 3, 1, 0, 4, 9, 9, 9, 9][..], &[0x16, 3, 1], &[]] {
            assert!(read(&mut &bad[..]).await.is_err(), "{bad:?}");
        }
    }
}
