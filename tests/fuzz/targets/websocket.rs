//! One direction of a WebSocket, compressed or not: messages are the same by any cut, no byte is lost, memory is
//! bounded, and what messages say is read or unclear.
#![no_main]
use enforcer_fuzz::{Input, memory};
use libfuzzer_sys::fuzz_target;
use meter_proxy::events::Event;
use meter_proxy::fuzzing::{Asked, Deflate, Heard, Part, Reader, Sender, Unreadable};

const DEFLATES: [Option<Deflate>; 3] = [
    None,
    Some(Deflate { client_takeover: true, server_takeover: true }),
    Some(Deflate { client_takeover: false, server_takeover: false }),
];
/// Most that a reader and one of its messages take, bytes: an inflater of 40 KiB, a client's message of 4 KiB, and room
/// for the input itself.
const MAX_MEMORY_BYTES: usize = 256 * 1024;

fuzz_target!(|data: &[u8]| {
    let Some(mut input) = Input::read(data) else { return };
    let sender = input.choose([Sender::Client, Sender::Server]);
    let deflate = input.choose(DEFLATES);
    let (whole, memory_bytes) = memory::most_while(|| read(sender, deflate, [input.bytes].into_iter()));
    let cut = read(sender, deflate, input.pieces());
    assert!(memory_bytes < MAX_MEMORY_BYTES + 16 * input.bytes.len(), "{memory_bytes} bytes");
    assert_eq!(cut.end, whole.end);
    assert_eq!(cut.messages, whole.messages);
    assert!(input.bytes.starts_with(&cut.passed) && input.bytes.starts_with(&whole.passed));
    assert_eq!(cut.controls, whole.controls);
    if cut.end.is_none() {
        assert_eq!(cut.passed.len() + cut.waiting_bytes, input.bytes.len(), "what has not passed waits");
        assert_eq!(whole.passed.len() + whole.waiting_bytes, input.bytes.len());
    }
});

/// How a direction was read.
#[derive(Default)]
struct Direction {
    /// Whole messages, or both ends of them.
    messages: Vec<(Vec<u8>, Vec<u8>)>,
    controls: usize,
    passed: Vec<u8>,
    waiting_bytes: usize,
    end: Option<Unreadable>,
}

fn read<'a>(sender: Sender, deflate: Option<Deflate>, pieces: impl Iterator<Item = &'a [u8]>) -> Direction {
    let mut reader = Reader::new(sender, deflate);
    let mut read = Direction::default();
    for piece in pieces {
        reader.buffer().extend_from_slice(piece);
        loop {
            match reader.next() {
                Ok(None) => break,
                Ok(Some(passing)) => {
                    read.passed.extend_from_slice(&passing.wire);
                    read.take(sender, passing.part, reader.message());
                }
                Err(end) => {
                    read.end = Some(end);
                    return read;
                }
            }
        }
        assert!(reader.is_amid() || reader.buffer().is_empty(), "between messages nothing waits");
    }
    read.waiting_bytes = reader.buffer().len();
    read
}

impl Direction {
    fn take(&mut self, sender: Sender, part: Part, message: Event<'_>) {
        match part {
            Part::Control { .. } => self.controls += 1,
            Part::Data { ends: false, .. } => {}
            Part::Data { ends: true, .. } => {
                match sender {
                    Sender::Client => drop(Asked::read(message)),
                    Sender::Server => drop(Heard::read(message)),
                }
                self.messages.push(match message {
                    Event::Data(text) | Event::Named { data: text, .. } => (text.to_vec(), Vec::new()),
                    Event::Oversized { start, end } => (start.to_vec(), end.to_vec()),
                });
            }
        }
    }
}
