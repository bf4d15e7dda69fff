//! The first words of a connection: recognised the same by any cut, with no byte changed and none beyond the bound.
#![no_main]
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use enforcer_fuzz::Input;
use libfuzzer_sys::fuzz_target;
use meter_proxy::fuzzing::{Speech, read_hello};
use tokio::io::{AsyncRead, ReadBuf};

/// Most that is read before it is known what is spoken, bytes; as `hello` says: a hello, and what came with its last
/// piece.
const MAX_BYTES: usize = 34 * 1024;

fuzz_target!(|data: &[u8]| {
    let Some(input) = Input::read(data) else { return };
    let whole = heard(input.bytes, usize::MAX);
    let cut = heard(input.bytes, input.piece_bytes);
    assert_eq!(cut, whole);
    if let Some(name) = whole.name() {
        assert_eq!(name.to_string().parse().as_ref(), Ok(name));
    }
});

fn heard(bytes: &[u8], piece_bytes: usize) -> Speech {
    let mut saying = Saying { bytes, piece_bytes };
    let opening = RUNTIME.with(|runtime| runtime.block_on(read_hello(&mut saying))).expect("nothing breaks");
    assert!(bytes.starts_with(&opening.bytes) && opening.bytes.len() <= MAX_BYTES);
    assert_eq!(opening.bytes.len() + saying.bytes.len(), bytes.len(), "what was not read is still there");
    opening.speech
}

thread_local! {
    static RUNTIME: tokio::runtime::Runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .expect("there are threads and memory");
}

/// A client that says so many bytes at a time, and ends.
struct Saying<'a> {
    bytes: &'a [u8],
    piece_bytes: usize,
}

impl AsyncRead for Saying<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let said = self.piece_bytes.min(self.bytes.len()).min(into.remaining());
        let (now, later) = self.bytes.split_at(said);
        into.put_slice(now);
        self.bytes = later;
        Poll::Ready(Ok(()))
    }
}
