//! Small writes that follow each other closely leave as one: a write waits for a turn of the scheduler, and again for
//! as long as more comes in each.
//!
//! For HTTP/1.1, where an answer whose events come faster than they can be sent one by one would else cost a system
//! call each; HTTP/2 waits for each frame itself, so nothing could gather. Not here: who writes. Hyper keeps what is not taken
//! and offers it again, with what came since, and flushes before it shuts down, so nothing is kept here.
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// From here on a write waits for nothing more, bytes: what a TLS record holds.
const ENOUGH_BYTES: usize = 16 * 1024;

/// A stream whose writes are gathered.
pub struct Gathered<S> {
    stream: S,
    /// What was offered when the write last waited, bytes.
    offered_bytes: usize,
}

impl<S> Gathered<S> {
    /// Gathers what is written to a stream.
    pub fn new(stream: S) -> Self {
        Self { stream, offered_bytes: 0 }
    }

    /// Whether this much is more than before and may become more still.
    fn poll_gathered(&mut self, bytes: usize, cx: &Context<'_>) -> Poll<()> {
        if bytes <= self.offered_bytes || bytes >= ENOUGH_BYTES {
            return Poll::Ready(());
        }
        self.offered_bytes = bytes;
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Gathered<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Gathered<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let bytes = pieces.iter().map(|piece| piece.len()).sum();
        ready!(self.poll_gathered(bytes, cx));
        let written = ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, pieces))?;
        // what is left has waited already
        self.offered_bytes = bytes - written;
        Poll::Ready(Ok(written))
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
    use std::task::Waker;
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// Takes so many bytes of each write, and counts the writes.
    struct Takes {
        at_most: usize,
        writes: usize,
    }

    impl AsyncWrite for Takes {
        fn poll_write(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            self.writes += 1;
            Poll::Ready(Ok(bytes.len().min(self.at_most)))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    /// What becomes of each offer in turn: how much of it is written, or that it waits.
    fn offered<const N: usize>(at_most: usize, bytes: [usize; N]) -> [Option<usize>; N] {
        let mut stream = Gathered::new(Takes { at_most, writes: 0 });
        bytes.map(|bytes| {
            let mut cx = Context::from_waker(Waker::noop());
            match Pin::new(&mut stream).poll_write(&mut cx, &vec![0; bytes]) {
                Poll::Ready(written) => Some(written.unwrap()),
                Poll::Pending => None,
            }
        })
    }

    #[test]
    fn a_write_waits_while_more_comes() {
        assert_eq!(offered(100, [10, 20, 30, 30]), [None, None, None, Some(30)]);
        assert_eq!(offered(100, [10, 10, 10, 10]), [None, Some(10), None, Some(10)]);
    }

    #[test]
    fn what_is_enough_waits_for_nothing() {
        assert_eq!(offered(ENOUGH_BYTES, [ENOUGH_BYTES, 10]), [Some(ENOUGH_BYTES), None]);
    }

    #[test]
    fn what_was_not_taken_waits_no_longer() {
        assert_eq!(offered(6, [10, 10, 4, 4]), [None, Some(6), Some(4), None]);
    }

    #[tokio::test]
    async fn a_write_that_waits_is_woken() {
        let (ours, mut theirs) = tokio::io::duplex(64);
        let mut stream = Gathered::new(ours);
        tokio::select! {
            biased;
            // first, for the alarm would wake the write too
            () = tokio::time::sleep(Duration::from_secs(2)) => panic!("nobody woke it"),
            written = stream.write_all(b"one event") => written.unwrap(),
        }
        let mut read = [0; 9];
        theirs.read_exact(&mut read).await.unwrap();
        assert_eq!(&read, b"one event");
    }

    #[tokio::test]
    async fn a_burst_leaves_as_one_write() {
        let mut stream = Gathered::new(Takes { at_most: ENOUGH_BYTES, writes: 0 });
        let (mut buffer, mut events) = (Vec::new(), 5);
        let write = std::future::poll_fn(|cx| {
            if events > 0 {
                events -= 1;
                buffer.extend([0; 10]);
            }
            Pin::new(&mut stream).poll_write(cx, &buffer)
        });
        let written = tokio::time::timeout(Duration::from_secs(2), write).await.unwrap().unwrap();
        assert_eq!((written, stream.stream.writes), (50, 1));
    }
}
