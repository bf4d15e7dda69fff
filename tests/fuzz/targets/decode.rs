//! Content decoding: any bytes are read or corrupt, the same by any cut and in bounded memory; what was encoded comes
//! out as it was.
#![no_main]
use std::io::Write as _;

use enforcer_fuzz::{Input, memory};
use libfuzzer_sys::fuzz_target;
use meter_proxy::decode::{DecodeError, Decoder};

const ENCODINGS: [&str; 7] = ["gzip", "deflate", "br", "zstd", "gzip, br", "zstd, gzip", "identity"];
/// Most of a decoded piece, bytes; as `decode` says.
const MAX_PIECE_BYTES: usize = 16 * 1024;
/// Most that decoding takes, bytes: a window of 16 MiB with its slack and tables, and one of deflate.
const MAX_MEMORY_BYTES: usize = 40 * 1024 * 1024;
/// A bomb is looked at so far, bytes.
const ENOUGH_BYTES: usize = 1024 * 1024;

fuzz_target!(|data: &[u8]| {
    let Some(mut input) = Input::read(data) else { return };
    let encoding = input.choose(ENCODINGS);
    if input.choose([true, false]) {
        any_bytes(encoding, &input);
    } else {
        there_and_back(encoding, &input);
    }
});

fn any_bytes(encoding: &str, input: &Input<'_>) {
    let whole = decoded(encoding, [input.bytes].into_iter());
    let (cut, memory_bytes) = memory::most_while(|| decoded(encoding, input.pieces()));
    assert!(memory_bytes < MAX_MEMORY_BYTES, "{memory_bytes} bytes to decode {encoding}");
    let corrupt = cut.end.is_err() || whole.end.is_err();
    // br's decoder looks for a block longer than it said only where its input or room ends, and so by chance
    assert!(
        cut.end == whole.end || corrupt && encoding.contains("br"),
        "{encoding}: {:?}, {:?}",
        cut.end,
        whole.end
    );
    if corrupt {
        // what came in one piece with what is corrupt is lost with it
        assert!(cut.bytes.starts_with(&whole.bytes) || whole.bytes.starts_with(&cut.bytes), "{encoding}");
    } else {
        assert!(cut.bytes == whole.bytes, "{encoding}: the cut matters");
    }
}

fn there_and_back(encoding: &str, input: &Input<'_>) {
    let mut body = input.bytes.to_vec();
    for name in encoding.split(", ") {
        body = encoded(name, &body);
    }
    let read = decoded(encoding, body.chunks(input.piece_bytes));
    assert_eq!(read, Decoded { end: Ok(()), bytes: input.bytes.to_vec() }, "{encoding}");
}

#[derive(Debug, PartialEq, Eq)]
struct Decoded {
    end: Result<(), DecodeError>,
    /// The first of what was readable.
    bytes: Vec<u8>,
}

fn decoded<'a>(encoding: &str, pieces: impl Iterator<Item = &'a [u8]>) -> Decoded {
    let mut decoder = Decoder::new(encoding).expect("it is known");
    let mut bytes = Vec::new();
    let identity = encoding == "identity";
    let mut keep = |piece: &[u8]| {
        assert!(identity || piece.len() <= MAX_PIECE_BYTES);
        let room = ENOUGH_BYTES.saturating_sub(bytes.len()).min(piece.len());
        bytes.extend_from_slice(&piece[..room]);
    };
    let mut end = Ok(());
    for piece in pieces {
        end = decoder.feed(piece, &mut keep);
        if end.is_err() {
            break;
        }
    }
    Decoded { end, bytes }
}

/// Two members or frames of each encoding that can have several.
fn encoded(encoding: &str, body: &[u8]) -> Vec<u8> {
    let halves = body.split_at(body.len() / 2);
    let both = |one: &dyn Fn(&[u8]) -> Vec<u8>| [one(halves.0), one(halves.1)].concat();
    let level = flate2::Compression::fast();
    match encoding {
        "gzip" => both(&|half| {
            let mut to =
                flate2::GzBuilder::new().filename("x").comment("y").extra([1]).write(Vec::new(), level);
            to.write_all(half).and_then(|()| to.finish()).expect("memory takes all")
        }),
        "deflate" => {
            let mut to = flate2::write::ZlibEncoder::new(Vec::new(), level);
            to.write_all(body).and_then(|()| to.finish()).expect("memory takes all")
        }
        "br" => {
            let mut to = Vec::new();
            let mut writer = brotli::CompressorWriter::new(&mut to, 4096, 1, 16);
            writer.write_all(body).expect("memory takes all");
            drop(writer);
            to
        }
        "zstd" => both(&|half| zstd::bulk::compress(half, 1).expect("memory takes all")),
        _ => body.to_vec(),
    }
}
