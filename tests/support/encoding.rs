//! Content codings, both ways and in steps: every piece is flushed, as streaming servers do.
//!
//! Only what the tests send and read; says nothing of HTTP headers but the coding's name.
use std::io::{self, Write};

/// A content coding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// `gzip`
    Gzip,
    /// `gzip`, every piece a member of its own
    GzipMembers,
    /// `deflate`, with zlib's header
    Deflate,
    /// `br`
    Brotli,
    /// `zstd`
    Zstd,
}

impl Encoding {
    /// By its name in `Content-Encoding`; `gzip-members` is a name of the tests' own.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        match name.trim() {
            "gzip" => Some(Self::Gzip),
            "gzip-members" => Some(Self::GzipMembers),
            "deflate" => Some(Self::Deflate),
            "br" => Some(Self::Brotli),
            "zstd" => Some(Self::Zstd),
            _ => None,
        }
    }

    /// Its name in `Content-Encoding`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Gzip | Self::GzipMembers => "gzip",
            Self::Deflate => "deflate",
            Self::Brotli => "br",
            Self::Zstd => "zstd",
        }
    }

    /// Whether an `Accept-Encoding` value lists it (quality 0 refuses).
    #[must_use]
    pub fn accepted_by(self, accept_encoding: &str) -> bool {
        accept_encoding.split(',').any(|entry| {
            let mut parts = entry.split(';').map(str::trim);
            let named = parts.next() == Some(self.name());
            let refused =
                parts.filter_map(|part| part.strip_prefix("q=")?.parse::<f32>().ok()).any(|q| q <= 0.0);
            named && !refused
        })
    }
}

/// Encodes a body piece by piece; each piece can be decoded as soon as it arrives.
pub enum Encoder {
    /// Passes bytes on.
    Identity,
    /// `gzip`
    Gzip(flate2::write::GzEncoder<Vec<u8>>),
    /// `gzip`, a member a piece
    GzipMembers,
    /// `deflate`
    Deflate(flate2::write::ZlibEncoder<Vec<u8>>),
    /// `br`
    Brotli(Box<brotli::CompressorWriter<Vec<u8>>>),
    /// `zstd`
    Zstd(zstd::stream::write::Encoder<'static, Vec<u8>>),
}

impl Encoder {
    /// For a coding; `None` passes bytes on.
    #[must_use]
    pub fn new(encoding: Option<Encoding>) -> Self {
        match encoding {
            None => Self::Identity,
            Some(Encoding::Gzip) => {
                Self::Gzip(flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast()))
            }
            Some(Encoding::GzipMembers) => Self::GzipMembers,
            Some(Encoding::Deflate) => {
                Self::Deflate(flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast()))
            }
            Some(Encoding::Brotli) => {
                Self::Brotli(Box::new(brotli::CompressorWriter::new(Vec::new(), 4096, 4, 20)))
            }
            Some(Encoding::Zstd) => {
                Self::Zstd(zstd::stream::write::Encoder::new(Vec::new(), 1).expect("level 1 exists"))
            }
        }
    }

    /// The coded bytes of one piece, flushed.
    ///
    /// # Errors
    /// Those of the coder.
    pub fn piece(&mut self, plain: &[u8]) -> io::Result<Vec<u8>> {
        match self {
            Self::Identity => return Ok(plain.to_vec()),
            Self::GzipMembers => {
                let mut member = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                member.write_all(plain)?;
                return member.finish();
            }
            Self::Gzip(coder) => write_flushed(coder, plain)?,
            Self::Deflate(coder) => write_flushed(coder, plain)?,
            Self::Brotli(coder) => write_flushed(coder.as_mut(), plain)?,
            Self::Zstd(coder) => write_flushed(coder, plain)?,
        }
        Ok(match self {
            Self::Identity | Self::GzipMembers => Vec::new(),
            Self::Gzip(coder) => std::mem::take(coder.get_mut()),
            Self::Deflate(coder) => std::mem::take(coder.get_mut()),
            Self::Brotli(coder) => std::mem::take(coder.get_mut()),
            Self::Zstd(coder) => std::mem::take(coder.get_mut()),
        })
    }

    /// The bytes that end the coding.
    ///
    /// # Errors
    /// Those of the coder.
    pub fn finish(self) -> io::Result<Vec<u8>> {
        match self {
            Self::Identity | Self::GzipMembers => Ok(Vec::new()),
            Self::Gzip(coder) => coder.finish(),
            Self::Deflate(coder) => coder.finish(),
            Self::Brotli(coder) => Ok(coder.into_inner()),
            Self::Zstd(coder) => coder.finish(),
        }
    }
}

fn write_flushed(coder: &mut impl Write, plain: &[u8]) -> io::Result<()> {
    coder.write_all(plain)?;
    coder.flush()
}

/// Decodes a body piece by piece.
pub enum Decoder {
    /// Passes bytes on.
    Identity,
    /// `gzip`
    Gzip(Box<flate2::write::MultiGzDecoder<Vec<u8>>>),
    /// `deflate`
    Deflate(Box<flate2::write::ZlibDecoder<Vec<u8>>>),
    /// `br`
    Brotli(Box<brotli::DecompressorWriter<Vec<u8>>>),
    /// `zstd`
    Zstd(Box<zstd::stream::write::Decoder<'static, Vec<u8>>>),
}

impl Decoder {
    /// For a coding; `None` passes bytes on.
    #[must_use]
    pub fn new(encoding: Option<Encoding>) -> Self {
        match encoding {
            None => Self::Identity,
            Some(Encoding::Gzip | Encoding::GzipMembers) => {
                Self::Gzip(Box::new(flate2::write::MultiGzDecoder::new(Vec::new())))
            }
            Some(Encoding::Deflate) => Self::Deflate(Box::new(flate2::write::ZlibDecoder::new(Vec::new()))),
            Some(Encoding::Brotli) => {
                Self::Brotli(Box::new(brotli::DecompressorWriter::new(Vec::new(), 4096)))
            }
            Some(Encoding::Zstd) => Self::Zstd(Box::new(
                zstd::stream::write::Decoder::new(Vec::new()).expect("a decoder needs no input"),
            )),
        }
    }

    /// What the coded bytes so far say, beyond what was returned before.
    ///
    /// # Errors
    /// The bytes are not of this coding.
    pub fn piece(&mut self, coded: &[u8]) -> io::Result<Vec<u8>> {
        match self {
            Self::Identity => return Ok(coded.to_vec()),
            Self::Gzip(coder) => write_flushed(coder.as_mut(), coded)?,
            Self::Deflate(coder) => write_flushed(coder.as_mut(), coded)?,
            Self::Brotli(coder) => write_flushed(coder.as_mut(), coded)?,
            Self::Zstd(coder) => write_flushed(coder.as_mut(), coded)?,
        }
        Ok(match self {
            Self::Identity => Vec::new(),
            Self::Gzip(coder) => std::mem::take(coder.get_mut()),
            Self::Deflate(coder) => std::mem::take(coder.get_mut()),
            Self::Brotli(coder) => std::mem::take(coder.get_mut()),
            Self::Zstd(coder) => std::mem::take(coder.get_mut()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_piece_can_be_read_when_it_arrives() {
        use Encoding::{Brotli, Deflate, Gzip, GzipMembers, Zstd};
        let codings = [Gzip, GzipMembers, Deflate, Brotli, Zstd].map(Some);
        for encoding in codings.into_iter().chain([None]) {
            let (mut encoder, mut decoder) = (Encoder::new(encoding), Decoder::new(encoding));
            for text in ["one\n", "two\n", "three\n"] {
                let coded = encoder.piece(text.as_bytes()).unwrap();
                assert_eq!(decoder.piece(&coded).unwrap(), text.as_bytes(), "{encoding:?}");
            }
            let end = encoder.finish().unwrap();
            assert_eq!(decoder.piece(&end).unwrap(), b"", "{encoding:?}");
        }
    }

    #[test]
    fn accept_encoding_is_read_with_qualities() {
        assert!(Encoding::Gzip.accepted_by("br, gzip;q=0.5"));
        assert!(!Encoding::Gzip.accepted_by("br, gzip;q=0"));
        assert!(!Encoding::Gzip.accepted_by("identity"));
        assert!(!Encoding::Brotli.accepted_by(""));
    }
}
