//! Whether something still moves: a count that one side raises, and a wait for it to rest.
//!
//! Not here: how long a rest may be.
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// How often something has moved.
#[derive(Clone, Debug, Default)]
pub struct Activity(Arc<AtomicU64>);

impl Activity {
    /// Something moved.
    pub fn note(&self) {
        self.0.fetch_add(1, Ordering::Release);
    }

    /// Whether anything has moved at all.
    #[must_use]
    pub fn has_begun(&self) -> bool {
        self.0.load(Ordering::Acquire) > 0
    }

    /// Completes when nothing has moved for at least `bound`, and at most twice as long.
    pub async fn rested(&self, bound: Duration) {
        loop {
            let before = self.0.load(Ordering::Acquire);
            tokio::time::sleep(bound).await;
            if self.0.load(Ordering::Acquire) == before {
                return;
            }
        }
    }
}

/// A stream that notes what moves through it, either way; its end is nothing that moves.
pub struct Watched<S> {
    /// The stream.
    pub stream: S,
    /// What is noted.
    pub activity: Activity,
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = ready!(Pin::new(&mut self.stream).poll_read(cx, buffer));
        if buffer.filled().len() > before {
            self.activity.note();
        }
        Poll::Ready(read)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write(cx, bytes));
        self.activity.note();
        Poll::Ready(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, pieces));
        self.activity.note();
        Poll::Ready(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    const BOUND: Duration = Duration::from_millis(40);

    #[tokio::test]
    async fn what_moves_does_not_rest() {
        let (ours, mut theirs) = tokio::io::duplex(64);
        let activity = Activity::default();
        let mut watched = Watched { stream: ours, activity: activity.clone() };
        let moving = async {
            loop {
                theirs.write_all(b"x").await.unwrap();
                watched.read_exact(&mut [0]).await.unwrap();
                tokio::time::sleep(BOUND / 8).await;
            }
        };
        assert!(
            tokio::time::timeout(BOUND * 6, async {
                tokio::select! { () = activity.rested(BOUND) => {}, () = moving => {} }
            })
            .await
            .is_err()
        );
        activity.rested(BOUND).await;
        assert!(activity.has_begun());
    }
}
