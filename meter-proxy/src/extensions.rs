//! The extensions of a TLS hello, as far as rustls does not tell them: whether one hides a name (ECH).
//!
//! Pure. Not here: whether the hello is one (`hello` has rustls read it first), and what follows.

/// The extension `encrypted_client_hello`, RFC 9849, 5.
const ENCRYPTED_CLIENT_HELLO: usize = 0xfe0d;
/// First byte of that extension in a hello that was itself encrypted once; any other carries one inside.
const INNER: u8 = 1;
/// Bytes before the fragment in a record, and where its length stands: RFC 8446, 5.1.
const RECORD_HEAD: usize = 5;
const RECORD_LENGTH: std::ops::Range<usize> = 3..5;
/// Type and length of a handshake message, then version and random of a hello: RFC 8446, 4 and 4.1.2.
const HELLO_HEAD: usize = 4 + 2 + 32;

/// Whether the hello in these records says that a second one is encrypted inside, which may ask for another name.
/// True for random bytes in its place too (GREASE): nobody without the key can tell. Also true for what cannot be
/// read, as it cannot be ruled out.
#[must_use]
pub fn hides_a_name(records: &[u8]) -> bool {
    let message = message(records);
    extensions(&message).is_none_or(|mut extensions| extensions.any_hides_a_name())
}

/// The handshake message that the records carry in pieces.
fn message(mut records: &[u8]) -> Vec<u8> {
    let mut message = Vec::with_capacity(records.len());
    while let Some(length) = records.get(RECORD_LENGTH) {
        let end = RECORD_HEAD + number(length);
        message.extend_from_slice(&records[RECORD_HEAD..end.min(records.len())]);
        records = records.get(end..).unwrap_or_default();
    }
    message
}

/// The extensions of a hello; none of them in one that ends before.
fn extensions(message: &[u8]) -> Option<Rest<'_>> {
    let mut rest = Rest(message);
    rest.take(HELLO_HEAD)?;
    let _session = rest.vector(1)?;
    let _suites = rest.vector(2)?;
    let _compression = rest.vector(1)?;
    if rest.0.is_empty() { Some(rest) } else { rest.vector(2).map(Rest) }
}

/// What is left to be read.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn take(&mut self, bytes: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(bytes)?;
        self.0 = rest;
        Some(taken)
    }

    /// What follows a length of so many bytes.
    fn vector(&mut self, length_bytes: usize) -> Option<&'a [u8]> {
        let length = self.take(length_bytes)?;
        self.take(number(length))
    }

    /// Whether one of the extensions carries an encrypted hello, or cannot be read.
    fn any_hides_a_name(&mut self) -> bool {
        while !self.0.is_empty() {
            let (Some(kind), Some(body)) = (self.take(2), self.vector(2)) else { return true };
            if number(kind) == ENCRYPTED_CLIENT_HELLO && body.first() != Some(&INNER) {
                return true;
            }
        }
        false
    }
}

/// A number in network byte order.
fn number(bytes: &[u8]) -> usize {
    bytes.iter().fold(0, |number, byte| number << 8 | usize::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: (u16, &[u8]) = (0, b"\0\x0b\0\0\x08api.test");
    const ALPN: (u16, &[u8]) = (16, b"\0\x03\x02h2");
    /// Reserved values that some clients put at both ends, RFC 8701.
    const GREASE: (u16, &[u8]) = (0x8a8a, b"\0");
    /// An outer one: suite, config id, key, payload.
    const OUTER: (u16, &[u8]) = (0xfe0d, b"\0\0\x01\0\x01\x07\0\x02kk\0\x03ppp");

    fn short(length: usize) -> [u8; 2] {
        u16::try_from(length).unwrap().to_be_bytes()
    }

    /// A hello with these extensions; `None`: it ends before them.
    fn hello(extensions: Option<&[(u16, &[u8])]>) -> Vec<u8> {
        let mut body = [&[3, 3][..], &[5; 32], &[32], &[6; 32], &[0, 4, 0x13, 1, 0x13, 2], &[1, 0]].concat();
        if let Some(extensions) = extensions {
            let each =
                |(kind, body): &(u16, &[u8])| [&kind.to_be_bytes()[..], &short(body.len()), body].concat();
            let all: Vec<u8> = extensions.iter().flat_map(each).collect();
            body.extend([&short(all.len())[..], &all].concat());
        }
        [&[1, 0][..], &short(body.len()), &body].concat()
    }

    /// The message in records of at most `most` bytes each.
    fn records(message: &[u8], most: usize) -> Vec<u8> {
        message.chunks(most).flat_map(|part| [&[0x16, 3, 1][..], &short(part.len()), part].concat()).collect()
    }

    #[test]
    fn a_hello_hides_a_name_where_it_carries_another() {
        let inner: (u16, &[u8]) = (0xfe0d, &[1]);
        for (what, extensions, hides) in [
            ("before there were extensions", None, false),
            ("no extension", Some(&[][..]), false),
            ("a name", Some(&[NAME, ALPN]), false),
            ("a name between reserved values", Some(&[GREASE, NAME, ALPN, GREASE]), false),
            ("an encrypted one beside a name", Some(&[NAME, OUTER, ALPN]), true),
            ("an encrypted one alone", Some(&[OUTER]), true),
            ("among reserved values", Some(&[GREASE, ALPN, NAME, OUTER, GREASE]), true),
            ("decrypted by somebody before", Some(&[NAME, inner]), false),
            ("an empty one", Some(&[NAME, (0xfe0d, &[])]), true),
        ] {
            let message = hello(extensions);
            for most in [1, 7, 64, 16_384] {
                assert_eq!(hides_a_name(&records(&message, most)), hides, "{what}, {most} bytes a record");
            }
        }
    }

    #[test]
    fn what_cannot_be_read_may_hide_one() {
        let whole = hello(Some(&[NAME, ALPN]));
        for end in 0..whole.len() {
            let cut = records(&whole[..end], 16_384);
            let ends_before_extensions = end == hello(None).len();
            assert_eq!(hides_a_name(&cut), !ends_before_extensions, "{end} bytes");
        }
        assert!(hides_a_name(&[]));
    }

    proptest::proptest! {
        #[test]
        fn nothing_makes_it_panic(records in proptest::collection::vec(proptest::num::u8::ANY, 0..300)) {
            std::hint::black_box(hides_a_name(&records));
        }
    }
}
