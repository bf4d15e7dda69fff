//! Frames as tests send them, right and wrong ones.
use flate2::{Compress, Compression, FlushCompress};

/// One frame; by default a whole text without a mask.
#[derive(Clone, Copy)]
pub struct Frame<'a> {
    pub opcode: u8,
    pub is_final: bool,
    /// Of 0x40, 0x20 and 0x10.
    pub reserved: u8,
    pub mask: Option<[u8; 4]>,
    pub payload: &'a [u8],
}

impl<'a> Frame<'a> {
    pub fn of(payload: &'a [u8]) -> Self {
        Self { opcode: 1, is_final: true, reserved: 0, mask: None, payload }
    }
}

/// The bytes of a frame.
pub fn frame(frame: &Frame<'_>) -> Vec<u8> {
    let mut wire = vec![frame.opcode | frame.reserved | if frame.is_final { 0x80 } else { 0 }];
    let masked = if frame.mask.is_some() { 0x80 } else { 0 };
    match frame.payload.len() {
        length @ 0..126 => wire.push(masked | u8::try_from(length).unwrap()),
        length @ 126..0x1_0000 => {
            wire.push(masked | 126);
            wire.extend(u16::try_from(length).unwrap().to_be_bytes());
        }
        length => {
            wire.push(masked | 127);
            wire.extend((length as u64).to_be_bytes());
        }
    }
    wire.extend(frame.mask.iter().flatten());
    let mask = frame.mask.unwrap_or_default();
    wire.extend(frame.payload.iter().zip(mask.iter().cycle()).map(|(byte, key)| byte ^ key));
    wire
}

/// Compresses messages as permessage-deflate does.
pub struct Deflater(Compress);

impl Deflater {
    pub fn new() -> Self {
        Self(Compress::new(Compression::default(), false))
    }

    /// One message; without `takeover` the next one starts anew.
    pub fn message(&mut self, text: &[u8], takeover: bool) -> Vec<u8> {
        if text.is_empty() {
            return vec![0];
        }
        let mut out = Vec::with_capacity(text.len() + 1_024);
        self.0.compress_vec(text, &mut out, FlushCompress::Sync).unwrap();
        assert!(out.ends_with(&[0, 0, 0xff, 0xff]));
        out.truncate(out.len() - 4);
        if !takeover {
            self.0.reset();
        }
        out
    }
}
