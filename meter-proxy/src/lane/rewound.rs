//! A stream into which what was read too far is put back.
//!
//! Not here: who reads too far (`hello`, and the HTTP of a CONNECT).
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The stream, and what comes before it.
pub struct Rewound<S> {
    before: Vec<u8>,
    stream: S,
}

impl<S> Rewound<S> {
    /// The stream as it is.
    #[must_use]
    pub fn new(stream: S) -> Self {
        Self { before: Vec::new(), stream }
    }

    /// Puts bytes back, in front of all that is there.
    pub fn put_back(&mut self, bytes: &[u8]) {
        self.before.splice(..0, bytes.iter().copied());
    }

    /// The stream without what was put back.
    #[must_use]
    pub fn into_inner(self) -> S {
        self.stream
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Rewound<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.before.is_empty() {
            return Pin::new(&mut self.stream).poll_read(context, buffer);
        }
        let now = self.before.len().min(buffer.remaining());
        buffer.put_slice(&self.before[..now]);
        self.before.drain(..now);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Rewound<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;

    #[tokio::test]
    async fn what_was_put_back_comes_first() {
        let mut stream = Rewound::new(&b"cd"[..]);
        stream.put_back(b"b");
        stream.put_back(b"a");
        let mut first = [0; 1];
        stream.read_exact(&mut first).await.unwrap();
        assert_eq!(&first, b"a");
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest, b"bcd");
    }
}
