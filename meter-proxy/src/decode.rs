//! Content decoding of a copy, piece by piece, in bounded memory.
//!
//! Output is handed on in pieces of at most 16 KiB and never collected here; windows are limited (gzip and
//! deflate 32 KiB by format, br 16 MiB without its large-window extension, zstd 8 MiB as RFC 9659 asks).
//! Not here: the original bytes, which nobody touches.
use brotli_decompressor::{BrotliDecompressStream, BrotliResult, BrotliState, StandardAlloc};
use flate2::{Decompress, FlushDecompress, Status};
use zstd::stream::raw::{DParameter, Decoder as ZstdDecoder, InBuffer, Operation, OutBuffer};

mod gzip;

/// Most encodings applied one over the other.
const MAX_ENCODINGS: usize = 2;
/// Base-2 logarithm of the largest zstd window.
const ZSTD_WINDOW_LOG: u32 = 23;
/// Bytes of one piece of output.
const PIECE_BYTES: usize = 16 * 1024;

/// Why a body cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The encoding is none of gzip, deflate, br, zstd, identity.
    #[error("the content encoding is not known")]
    Unknown,
    /// More encodings over each other than are undone.
    #[error("there are more than {MAX_ENCODINGS} content encodings")]
    TooMany,
    /// The bytes are not what the encoding says, or need a larger window than allowed.
    #[error("the encoded body is corrupt")]
    Corrupt,
}

/// Undoes the content encodings of one body.
pub struct Decoder {
    /// Outermost (last applied) first.
    codecs: Vec<Codec>,
}

impl Decoder {
    /// A decoder for the value of a `Content-Encoding` header; empty means identity.
    ///
    /// # Errors
    /// When the header names an unknown encoding, or too many.
    pub fn new(content_encoding: &str) -> Result<Self, DecodeError> {
        let mut codecs = Vec::new();
        for name in content_encoding.split(',').rev().map(str::trim) {
            codecs.extend(Codec::of(name)?);
        }
        if codecs.len() > MAX_ENCODINGS {
            return Err(DecodeError::TooMany);
        }
        Ok(Self { codecs })
    }

    /// Decodes the next bytes; `sink` gets all that they make readable, in order.
    ///
    /// # Errors
    /// When the bytes are corrupt; what was readable of earlier calls has gone to `sink`, and of this one perhaps some.
    pub fn feed(&mut self, bytes: &[u8], sink: &mut dyn FnMut(&[u8])) -> Result<(), DecodeError> {
        run(&mut self.codecs, bytes, sink)
    }
}

fn run(codecs: &mut [Codec], mut input: &[u8], sink: &mut dyn FnMut(&[u8])) -> Result<(), DecodeError> {
    let Some((codec, inner)) = codecs.split_first_mut() else {
        sink(input);
        return Ok(());
    };
    let mut piece = [0; PIECE_BYTES];
    loop {
        let moved = codec.step(input, &mut piece)?;
        input = &input[moved.read..];
        if moved.written > 0 {
            run(inner, &piece[..moved.written], sink)?;
        }
        let output_may_wait = moved.written == piece.len();
        if moved.read == 0 && moved.written == 0 {
            // neither side moved: what is left follows the end of the encoded body
            return if input.is_empty() { Ok(()) } else { Err(DecodeError::Corrupt) };
        }
        if input.is_empty() && !output_may_wait {
            return Ok(());
        }
    }
}

/// How far one step came, in bytes.
struct Moved {
    read: usize,
    written: usize,
}

enum Codec {
    Gzip(Box<gzip::Gzip>),
    /// zlib, or bare deflate as some servers send; decided by the first byte.
    Deflate(Option<Decompress>),
    Brotli(Box<BrotliState<StandardAlloc, StandardAlloc, StandardAlloc>>),
    Zstd {
        decoder: Box<ZstdDecoder<'static>>,
        frame_ended: bool,
    },
}

impl Codec {
    fn of(name: &str) -> Result<Option<Self>, DecodeError> {
        Ok(Some(match name.to_ascii_lowercase().as_str() {
            "" | "identity" => return Ok(None),
            "gzip" | "x-gzip" => Self::Gzip(Box::default()),
            "deflate" => Self::Deflate(None),
            "br" => {
                let alloc = StandardAlloc::default;
                Self::Brotli(Box::new(BrotliState::new_strict(alloc(), alloc(), alloc())))
            }
            "zstd" => Self::Zstd { decoder: Box::new(zstd_decoder()?), frame_ended: false },
            _ => return Err(DecodeError::Unknown),
        }))
    }

    fn step(&mut self, input: &[u8], output: &mut [u8]) -> Result<Moved, DecodeError> {
        match self {
            Self::Gzip(gzip) => gzip.step(input, output),
            Self::Deflate(inflate) => {
                let Some(&first) = input.first() else {
                    return inflate.as_mut().map_or(Ok(Moved { read: 0, written: 0 }), |inflate| {
                        inflate_step(inflate, input, output).map(|(moved, _)| moved)
                    });
                };
                let inflate = inflate.get_or_insert_with(|| Decompress::new(is_zlib(first)));
                inflate_step(inflate, input, output).map(|(moved, _)| moved)
            }
            Self::Brotli(state) => brotli_step(state, input, output),
            Self::Zstd { decoder, frame_ended } => zstd_step(decoder, frame_ended, input, output),
        }
    }
}

/// Whether a deflate body has zlib's header: method 8 and a window of at most 32 KiB. Bare deflate cannot
/// begin so unless it pads a stored block with ones, which no encoder does.
fn is_zlib(first: u8) -> bool {
    first & 0x0f == 8 && first >> 4 <= 7
}

fn inflate_step(
    inflate: &mut Decompress,
    input: &[u8],
    output: &mut [u8],
) -> Result<(Moved, Status), DecodeError> {
    let (read_before, written_before) = (inflate.total_in(), inflate.total_out());
    let status =
        inflate.decompress(input, output, FlushDecompress::None).map_err(|_| DecodeError::Corrupt)?;
    let length = |after: u64, before: u64| usize::try_from(after - before).map_err(|_| DecodeError::Corrupt);
    let moved = Moved {
        read: length(inflate.total_in(), read_before)?,
        written: length(inflate.total_out(), written_before)?,
    };
    Ok((moved, status))
}

fn brotli_step(
    state: &mut BrotliState<StandardAlloc, StandardAlloc, StandardAlloc>,
    input: &[u8],
    output: &mut [u8],
) -> Result<Moved, DecodeError> {
    let (mut input_left, mut read) = (input.len(), 0);
    let (mut output_left, mut written, mut total) = (output.len(), 0, 0);
    let result = BrotliDecompressStream(
        &mut input_left,
        &mut read,
        input,
        &mut output_left,
        &mut written,
        output,
        &mut total,
        state,
    );
    match result {
        BrotliResult::ResultFailure => Err(DecodeError::Corrupt),
        _ => Ok(Moved { read, written }),
    }
}

fn zstd_decoder() -> Result<ZstdDecoder<'static>, DecodeError> {
    let mut decoder = ZstdDecoder::new().map_err(|_| DecodeError::Unknown)?;
    decoder.set_parameter(DParameter::WindowLogMax(ZSTD_WINDOW_LOG)).map_err(|_| DecodeError::Unknown)?;
    Ok(decoder)
}

fn zstd_step(
    decoder: &mut ZstdDecoder<'static>,
    frame_ended: &mut bool,
    input: &[u8],
    output: &mut [u8],
) -> Result<Moved, DecodeError> {
    if *frame_ended {
        if input.is_empty() {
            return Ok(Moved { read: 0, written: 0 });
        }
        decoder.reinit().map_err(|_| DecodeError::Corrupt)?;
        *frame_ended = false;
    }
    let mut from = InBuffer::around(input);
    let mut to = OutBuffer::around(output);
    let missing = decoder.run(&mut from, &mut to).map_err(|_| DecodeError::Corrupt)?;
    *frame_ended = missing == 0;
    Ok(Moved { read: from.pos(), written: to.pos() })
}

#[cfg(test)]
pub(crate) mod tests;
