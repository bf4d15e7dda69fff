//! The gzip container (RFC 1952) around deflate, member after member.
//!
//! Checks each member's CRC-32; the length field repeats what the CRC already says and is skipped.
use flate2::{Crc, Decompress, Status};

use super::{DecodeError, Moved, inflate_step};

const FLAG_HEADER_CRC: u8 = 1 << 1;
const FLAG_EXTRA: u8 = 1 << 2;
const FLAG_NAME: u8 = 1 << 3;
const FLAG_COMMENT: u8 = 1 << 4;
/// Bytes of the header's fixed part.
const FIXED_BYTES: usize = 10;
/// Bytes of CRC-32 and length after the deflate stream.
const TRAILER_BYTES: usize = 8;

/// Where in a member the next byte belongs.
#[derive(Clone, Copy)]
enum Part {
    /// The fixed header; how many of its bytes were read.
    Fixed(usize),
    /// The length of the extra field, low byte first.
    ExtraLength { read: usize, length: usize },
    /// So many bytes of the extra field are left.
    Extra(usize),
    /// A zero-terminated file name.
    Name,
    /// A zero-terminated comment.
    Comment,
    /// So many bytes of the header's own CRC are left.
    HeaderCrc(usize),
    /// The deflate stream.
    Body,
    /// The trailer; how many of its bytes were read, and the CRC so far.
    Trailer { read: usize, crc: u32 },
}

/// Decodes one gzip body.
pub(super) struct Gzip {
    part: Part,
    flags: u8,
    inflate: Decompress,
    crc: Crc,
}

impl Default for Gzip {
    fn default() -> Self {
        Self { part: Part::Fixed(0), flags: 0, inflate: Decompress::new(false), crc: Crc::new() }
    }
}

impl Gzip {
    pub(super) fn step(&mut self, input: &[u8], output: &mut [u8]) -> Result<Moved, DecodeError> {
        let mut read = 0;
        while !matches!(self.part, Part::Body) {
            let Some(&byte) = input.get(read) else { return Ok(Moved { read, written: 0 }) };
            self.part = self.frame_byte(byte)?;
            read += 1;
        }
        let (moved, status) = inflate_step(&mut self.inflate, &input[read..], output)?;
        self.crc.update(&output[..moved.written]);
        if status == Status::StreamEnd {
            self.part = Part::Trailer { read: 0, crc: 0 };
        }
        Ok(Moved { read: read + moved.read, written: moved.written })
    }

    /// Takes one byte of header or trailer and tells the part that the next byte belongs to.
    fn frame_byte(&mut self, byte: u8) -> Result<Part, DecodeError> {
        Ok(match self.part {
            Part::Fixed(read) => {
                let expected = [0x1f, 0x8b, 8];
                if expected.get(read).is_some_and(|expected| *expected != byte) {
                    return Err(DecodeError::Corrupt);
                }
                if read == expected.len() {
                    self.flags = byte;
                }
                if read + 1 < FIXED_BYTES { Part::Fixed(read + 1) } else { self.after_fixed() }
            }
            Part::ExtraLength { read: 0, .. } => Part::ExtraLength { read: 1, length: usize::from(byte) },
            Part::ExtraLength { length, .. } => match length | usize::from(byte) << 8 {
                0 => self.after_extra(),
                length => Part::Extra(length),
            },
            Part::Extra(1) => self.after_extra(),
            Part::Extra(left) => Part::Extra(left - 1),
            Part::Name if byte == 0 => self.after_name(),
            Part::Comment if byte == 0 => self.after_comment(),
            Part::Name | Part::Comment | Part::Body => self.part,
            Part::HeaderCrc(left) if left > 1 => Part::HeaderCrc(left - 1),
            Part::HeaderCrc(_) => Part::Body,
            Part::Trailer { read, crc } => self.trailer_byte(read, crc, byte)?,
        })
    }

    fn after_fixed(&self) -> Part {
        if self.flags & FLAG_EXTRA != 0 {
            Part::ExtraLength { read: 0, length: 0 }
        } else {
            self.after_extra()
        }
    }

    fn after_extra(&self) -> Part {
        if self.flags & FLAG_NAME != 0 { Part::Name } else { self.after_name() }
    }

    fn after_name(&self) -> Part {
        if self.flags & FLAG_COMMENT != 0 { Part::Comment } else { self.after_comment() }
    }

    fn after_comment(&self) -> Part {
        if self.flags & FLAG_HEADER_CRC != 0 { Part::HeaderCrc(2) } else { Part::Body }
    }

    fn trailer_byte(&mut self, read: usize, crc: u32, byte: u8) -> Result<Part, DecodeError> {
        let crc = if read < 4 { crc | u32::from(byte) << (8 * read) } else { crc };
        if read + 1 < TRAILER_BYTES {
            return Ok(Part::Trailer { read: read + 1, crc });
        }
        if crc != self.crc.sum() {
            return Err(DecodeError::Corrupt);
        }
        self.inflate.reset(false);
        self.crc.reset();
        Ok(Part::Fixed(0))
    }
}
