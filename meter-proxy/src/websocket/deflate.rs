//! permessage-deflate (RFC 7692): what was agreed on, and a copy of compressed messages made readable.
//!
//! Not here: the compressed bytes, which pass as they are.
use flate2::{Decompress, FlushDecompress, Status};
use http::HeaderMap;
use http::header::{HeaderValue, SEC_WEBSOCKET_EXTENSIONS};

/// The extension's name.
const NAME: &str = "permessage-deflate";
/// What a sender leaves out at the end of each message (RFC 7692, 7.2.1).
const TAIL: [u8; 4] = [0, 0, 0xff, 0xff];
/// Bytes of one piece of output.
const PIECE_BYTES: usize = 16 * 1024;

/// The server chose an extension under which its frames cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it chose a WebSocket extension that is not known")]
pub struct UnknownExtension;

/// A compressed message is not what it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a compressed message is corrupt")]
pub struct Corrupt;

/// What client and server agreed on: whether each side's messages build on its earlier ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deflate {
    /// The client's do.
    pub client_takeover: bool,
    /// The server's do.
    pub server_takeover: bool,
}

impl Deflate {
    /// Reads the server's choice; `None`: no compression.
    ///
    /// # Errors
    /// When it chose anything else.
    pub fn chosen(headers: &HeaderMap) -> Result<Option<Self>, UnknownExtension> {
        let mut chosen = None;
        for extension in extensions(headers) {
            let mut words = extension.split(';').map(|word| word.trim().to_ascii_lowercase());
            if words.next().as_deref() != Some(NAME) || chosen.is_some() {
                return Err(UnknownExtension);
            }
            let words: Vec<String> = words.collect();
            let says = |what: &str| words.iter().any(|word| word == what);
            chosen = Some(Self {
                client_takeover: !says("client_no_context_takeover"),
                server_takeover: !says("server_no_context_takeover"),
            });
        }
        Ok(chosen)
    }
}

/// Leaves of a client's offers those that can be read; its bytes stay as they are when all can.
pub fn keep_readable_offers(headers: &mut HeaderMap) {
    let readable = |offer: &String| {
        let name = offer.split(';').next().unwrap_or_default();
        name.trim().eq_ignore_ascii_case(NAME)
    };
    let offers = extensions(headers);
    let kept: Vec<&String> = offers.iter().filter(|offer| readable(offer)).collect();
    if kept.len() == offers.len() {
        return;
    }
    headers.remove(SEC_WEBSOCKET_EXTENSIONS);
    for offer in kept {
        // what was taken from a header fits into one
        if let Ok(value) = HeaderValue::from_str(offer) {
            headers.append(SEC_WEBSOCKET_EXTENSIONS, value);
        }
    }
}

fn extensions(headers: &HeaderMap) -> Vec<String> {
    let values = headers.get_all(SEC_WEBSOCKET_EXTENSIONS).iter();
    let text = values.map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
    text.flat_map(|value| value.split(',').map(|one| one.trim().to_owned()).collect::<Vec<_>>())
        .filter(|one| !one.is_empty())
        .collect()
}

/// Makes the messages of one direction readable, in the window that the format has (32 KiB).
pub struct Inflate {
    /// From the first compressed message on: it takes 40 KiB.
    codec: Option<Box<Decompress>>,
    takeover: bool,
}

impl Inflate {
    /// Begins with the first message. `takeover`: messages build on earlier ones.
    #[must_use]
    pub fn new(takeover: bool) -> Self {
        Self { codec: None, takeover }
    }

    /// Takes the next bytes of a compressed message. `sink` gets what they make readable until it returns `false`:
    /// then it wants no more, and nothing that follows can be read.
    ///
    /// # Errors
    /// When they are corrupt.
    pub fn feed(
        &mut self,
        payload: &[u8],
        ends: bool,
        sink: &mut dyn FnMut(&[u8]) -> bool,
    ) -> Result<(), Corrupt> {
        let wanted = self.run(payload, sink)?;
        if ends && wanted {
            self.run(&TAIL, sink)?;
            if !self.takeover {
                self.codec = None;
            }
        }
        Ok(())
    }

    fn run(&mut self, mut input: &[u8], sink: &mut dyn FnMut(&[u8]) -> bool) -> Result<bool, Corrupt> {
        let codec = self.codec.get_or_insert_with(|| Box::new(Decompress::new(false)));
        let mut piece = [0; PIECE_BYTES];
        loop {
            let (read, written) = (codec.total_in(), codec.total_out());
            let status = codec.decompress(input, &mut piece, FlushDecompress::None).map_err(|_| Corrupt)?;
            let moved = |now: u64, before: u64| usize::try_from(now - before).map_err(|_| Corrupt);
            let read = moved(codec.total_in(), read)?;
            let written = moved(codec.total_out(), written)?;
            input = &input[read..];
            if written > 0 && !sink(&piece[..written]) {
                return Ok(false);
            }
            match status {
                // a sender may end its blocks for good; none does, and what would follow is not defined the same by all
                Status::StreamEnd => return Err(Corrupt),
                _ if input.is_empty() && written < piece.len() => return Ok(true),
                _ if read == 0 && written == 0 => return Err(Corrupt),
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::websocket::testing::Deflater;

    fn headers(values: &[&'static str]) -> HeaderMap {
        values.iter().map(|value| (SEC_WEBSOCKET_EXTENSIONS, HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn the_servers_choice_is_read() {
        let both = Deflate { client_takeover: true, server_takeover: true };
        for (values, chosen) in [
            (&[][..], Ok(None)),
            (&["permessage-deflate"], Ok(Some(both))),
            (&["Permessage-Deflate; server_max_window_bits=10"], Ok(Some(both))),
            (
                &["permessage-deflate; client_no_context_takeover"],
                Ok(Some(Deflate { client_takeover: false, ..both })),
            ),
            (
                &["permessage-deflate;Server_No_Context_Takeover ; client_no_context_takeover"],
                Ok(Some(Deflate { client_takeover: false, server_takeover: false })),
            ),
            (&["x-zstd"], Err(UnknownExtension)),
            (&["permessage-deflate, x-zstd"], Err(UnknownExtension)),
            (&["permessage-deflate", "permessage-deflate"], Err(UnknownExtension)),
        ] {
            assert_eq!(Deflate::chosen(&headers(values)), chosen, "{values:?}");
        }
    }

    #[test]
    fn offers_that_cannot_be_read_are_not_made() {
        for (offered, made) in [
            (
                &["permessage-deflate; client_max_window_bits"][..],
                &["permessage-deflate; client_max_window_bits"][..],
            ),
            (&["permessage-deflate,  permessage-deflate"], &["permessage-deflate,  permessage-deflate"]),
            (&["x-zstd, permessage-deflate;a"], &["permessage-deflate;a"]),
            (&["x-zstd"], &[]),
        ] {
            let mut headers = headers(offered);
            keep_readable_offers(&mut headers);
            let left: Vec<_> = headers.get_all(SEC_WEBSOCKET_EXTENSIONS).iter().collect();
            assert_eq!(left, made, "{offered:?}");
        }
    }

    proptest! {
        #[test]
        fn messages_are_read_with_and_without_takeover_however_they_are_cut(
            texts in prop::collection::vec("[a-f{}\":]{0,2000}", 1..6),
            takeover: bool,
            part_bytes in 1..500_usize,
        ) {
            let (mut deflater, mut inflate) = (Deflater::new(), Inflate::new(takeover));
            for text in &texts {
                let mut read = Vec::new();
                let mut keep = |piece: &[u8]| { read.extend_from_slice(piece); true };
                for part in deflater.message(text.as_bytes(), takeover).chunks(part_bytes) {
                    inflate.feed(part, false, &mut keep).unwrap();
                }
                inflate.feed(b"", true, &mut keep).unwrap();
                prop_assert_eq!(&read, text.as_bytes());
            }
        }

        #[test]
        fn whatever_comes_is_read_or_corrupt(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let read = Inflate::new(true).feed(&bytes, true, &mut |_| true);
            prop_assert!(matches!(read, Ok(()) | Err(Corrupt)));
        }
    }

    #[test]
    fn a_bomb_goes_off_no_further_than_it_is_wanted() {
        let bomb = Deflater::new().message(&vec![b' '; 4 * 1024 * 1024], true);
        let mut seen_bytes = 0;
        let mut few = |piece: &[u8]| {
            seen_bytes += piece.len();
            seen_bytes < 100_000
        };
        Inflate::new(true).feed(&bomb, true, &mut few).unwrap();
        assert!(seen_bytes < 100_000 + PIECE_BYTES);
    }
}
