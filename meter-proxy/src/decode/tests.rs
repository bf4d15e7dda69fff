//! Bodies as real encoders make them, whole, cut, damaged and hostile.
use std::io::Write;

use proptest::prelude::*;

use super::*;

/// Encodes a body as a `Content-Encoding` header with this value says.
pub(crate) fn encode(content_encoding: &str, body: &[u8]) -> Vec<u8> {
    let level = flate2::Compression::default();
    content_encoding.split(',').map(str::trim).fold(body.to_vec(), |body, name| match name {
        "gzip" => finish(flate2::write::GzEncoder::new(Vec::new(), level), &body, |e| e.finish().unwrap()),
        "deflate" => {
            finish(flate2::write::ZlibEncoder::new(Vec::new(), level), &body, |e| e.finish().unwrap())
        }
        "bare deflate" => {
            finish(flate2::write::DeflateEncoder::new(Vec::new(), level), &body, |e| e.finish().unwrap())
        }
        "br" => finish(
            brotli::CompressorWriter::new(Vec::new(), 4096, 5, 22),
            &body,
            brotli::CompressorWriter::into_inner,
        ),
        "zstd" => zstd::encode_all(&body[..], 3).unwrap(),
        _ => body,
    })
}

fn finish<E: Write>(mut encoder: E, body: &[u8], end: impl FnOnce(E) -> Vec<u8>) -> Vec<u8> {
    encoder.write_all(body).unwrap();
    end(encoder)
}

fn decode(content_encoding: &str, chunks: &[&[u8]]) -> Result<Vec<u8>, DecodeError> {
    let mut decoder = Decoder::new(content_encoding)?;
    let mut decoded = Vec::new();
    for chunk in chunks {
        decoder.feed(chunk, &mut |piece| {
            assert!(chunk.len() >= piece.len() || piece.len() <= PIECE_BYTES);
            decoded.extend_from_slice(piece);
        })?;
    }
    Ok(decoded)
}

const ENCODINGS: [&str; 10] = [
    "",
    "identity",
    "gzip",
    "deflate",
    "br",
    "zstd",
    "gzip, br",
    "zstd,gzip",
    "br, deflate",
    "identity, gzip",
];

fn sample() -> Vec<u8> {
    let lines: Vec<String> =
        (0..4_000).map(|n| format!("data: {{\"n\":{}}}\n\n", n * 7_919 % 1_000)).collect();
    lines.concat().into_bytes()
}

#[test]
fn every_encoding_is_undone() {
    let body = sample();
    for encoding in ENCODINGS {
        assert_eq!(decode(encoding, &[&encode(encoding, &body)]).unwrap(), body, "{encoding:?}");
    }
    assert_eq!(decode(" X-GZIP ", &[&encode("gzip", &body)]).unwrap(), body);
    assert_eq!(decode("deflate", &[&encode("bare deflate", &body)]).unwrap(), body);
}

#[test]
fn what_was_flushed_is_readable_at_once() {
    let event = b"data: {\"type\":\"message_stop\"}\n\n";
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    gzip.write_all(event).unwrap();
    gzip.flush().unwrap();
    let mut zstd = zstd::stream::write::Encoder::new(Vec::new(), 3).unwrap();
    zstd.write_all(event).unwrap();
    zstd.flush().unwrap();
    let mut br = brotli::CompressorWriter::new(Vec::new(), 4096, 5, 22);
    br.write_all(event).unwrap();
    br.flush().unwrap();
    for (encoding, sent) in [("gzip", gzip.get_ref()), ("zstd", zstd.get_ref()), ("br", br.get_ref())] {
        assert_eq!(decode(encoding, &[sent]).unwrap(), event, "{encoding}");
    }
}

#[test]
fn several_members_and_frames_are_one_body() {
    for encoding in ["gzip", "zstd"] {
        let two = [encode(encoding, b"first "), encode(encoding, b"second")].concat();
        assert_eq!(decode(encoding, &[&two]).unwrap(), b"first second", "{encoding}");
        let bytes: Vec<&[u8]> = two.chunks(1).collect();
        assert_eq!(decode(encoding, &bytes).unwrap(), b"first second", "{encoding}, byte by byte");
    }
}

#[test]
fn gzip_headers_with_every_field_are_read() {
    let plain = encode("gzip", b"text");
    let fields: &[(u8, &[u8])] = &[
        (FLAG_ALL, b"\x03\x00abcname\0comment\0\x12\x34"),
        (1 << 2, b"\x00\x00"),
        (1 << 3, b"name\0"),
        (1 << 4, b"\0"),
    ];
    const FLAG_ALL: u8 = 0b1_1110;
    for (flags, field) in fields {
        let mut body = plain.clone();
        body[3] = *flags;
        body.splice(10..10, field.iter().copied());
        let bytes: Vec<&[u8]> = body.chunks(1).collect();
        assert_eq!(decode("gzip", &bytes).unwrap(), b"text", "flags {flags:#b}");
    }
}

#[test]
fn unknown_encodings_are_refused() {
    assert_eq!(Decoder::new("compress").err(), Some(DecodeError::Unknown));
    assert_eq!(Decoder::new("gzip, secret").err(), Some(DecodeError::Unknown));
    assert_eq!(Decoder::new("gzip, br, zstd").err(), Some(DecodeError::TooMany));
}

#[test]
fn damage_is_seen() {
    let body = sample();
    for encoding in ["gzip", "deflate", "br", "zstd"] {
        let sent = encode(encoding, &body);
        assert_eq!(
            decode(encoding, &[&sent, b"!!!!"]),
            Err(DecodeError::Corrupt),
            "{encoding}: trailing bytes"
        );
    }
    // bare deflate has no mark: nearly anything may be it
    for encoding in ["gzip", "br", "zstd"] {
        assert_eq!(
            decode(encoding, &[b"{\"usage\":{}}"]),
            Err(DecodeError::Corrupt),
            "{encoding}: not encoded"
        );
    }
    let mut sent = encode("gzip", &body);
    let crc = sent.len() - 8;
    sent[crc] ^= 1;
    assert_eq!(decode("gzip", &[&sent]), Err(DecodeError::Corrupt), "CRC");
}

#[test]
fn what_was_never_sent_is_not_repeated() {
    // bare deflate, one fixed block: "a", then three bytes from four back, where nothing is
    let sent = [0x4b, 0x04, 0x62, 0x00];
    let bytes: Vec<&[u8]> = sent.chunks(1).collect();
    for chunks in [&[&sent[..]][..], &bytes] {
        assert_eq!(decode("deflate", chunks), Err(DecodeError::Corrupt), "in {} pieces", chunks.len());
    }
}

#[test]
fn windows_are_bounded() {
    let mut zstd = zstd::stream::write::Encoder::new(Vec::new(), 3).unwrap();
    zstd.window_log(25).unwrap();
    zstd.write_all(b"x").unwrap();
    let sent = zstd.finish().unwrap();
    assert_eq!(decode("zstd", &[&sent]), Err(DecodeError::Corrupt), "a window of 32 MiB");
    assert_eq!(decode("br", &[&[0x11, 0x1e, 0, 0, 0]]), Err(DecodeError::Corrupt), "br's large window");
}

#[test]
fn a_bomb_comes_in_pieces() {
    for encoding in ["gzip", "br", "zstd", "gzip, gzip"] {
        let bomb = encode(encoding, &vec![0; 64 << 20]);
        let mut decoder = Decoder::new(encoding).unwrap();
        let mut total = 0;
        decoder
            .feed(&bomb, &mut |piece| {
                assert!(piece.len() <= PIECE_BYTES);
                total += piece.len();
            })
            .unwrap();
        assert_eq!(total, 64 << 20, "{encoding}");
    }
}

proptest! {
    #[test]
    fn the_cut_does_not_matter(
        encoding in prop::sample::select(&ENCODINGS[..]),
        body in proptest::collection::vec(any::<u8>(), 0..5_000),
        size in 1_usize..700,
    ) {
        let sent = encode(encoding, &body);
        let chunks: Vec<&[u8]> = sent.chunks(size).collect();
        prop_assert_eq!(decode(encoding, &chunks), Ok(body));
    }

    #[test]
    fn garbage_never_panics(
        encoding in prop::sample::select(&ENCODINGS[..]),
        body in proptest::collection::vec(any::<u8>(), 0..2_000),
        at in any::<prop::sample::Index>(),
        size in 1_usize..700,
    ) {
        let mut sent = encode(encoding, &body);
        sent.push(0);
        let at = at.index(sent.len());
        sent.splice(at..at, body.iter().copied().take(9));
        for bytes in [&sent, &body] {
            let chunks: Vec<&[u8]> = bytes.chunks(size).collect();
            // either result will do; what counts is that there is one
            drop(decode(encoding, &chunks));
        }
    }
}
