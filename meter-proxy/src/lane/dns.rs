//! Answers to DNS queries of bottles that may ask nobody: every name is at one address, which the kernel sends here.
//!
//! Pure: a query's bytes in, an answer's bytes out. Nothing is looked up, passed on or remembered. Not here: the
//! socket (`queries`).
use std::net::Ipv4Addr;

/// Where every name is: of the range for benchmarks, RFC 2544, which is nobody's. The kernel redirects it, as any
/// address that is not known to be local; nothing else connects to it.
pub const EVERYWHERE: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
/// Most bytes that an answer is longer than the question in it.
#[cfg(test)]
const MAX_ADDED_BYTES: usize = 64;

/// RFC 1035, 4.1.1.
const HEADER_BYTES: usize = 12;
/// Longest name with its length bytes, and longest label: RFC 1035, 2.3.4.
const MAX_NAME_BYTES: usize = 255;
const MAX_LABEL_BYTES: u8 = 63;
/// Fields of the second word of a header: RFC 1035, 4.1.1.
const IS_RESPONSE: u16 = 1 << 15;
const OPCODE: u16 = 0b1111 << 11;
const IS_TRUNCATED: u16 = 1 << 9;
const RECURSION_DESIRED: u16 = 1 << 8;
const RECURSION_AVAILABLE: u16 = 1 << 7;
const NOT_IMPLEMENTED: u16 = 4;
/// Types of records: RFC 1035, 3.2.2; RFC 3596; RFC 9460, 14.1; RFC 6891, 6.1.1.
const A: u16 = 1;
const AAAA: u16 = 28;
const SVCB: u16 = 64;
const HTTPS: u16 = 65;
const OPT: u16 = 41;
/// RFC 1035, 3.2.4.
const INTERNET: u16 = 1;
/// The name that stands first after the header, RFC 1035, 4.1.4.
const NAME_OF_QUESTION: u16 = 0xc00c;

/// The answer to a query, by UDP. None to what is not one well-formed question, with EDNS (RFC 6891) or without;
/// EDNS itself is not answered, which says that it is not spoken here.
#[must_use]
pub fn answer(query: &[u8]) -> Option<Vec<u8>> {
    let mut rest = Reader(query);
    let (id, flags) = (rest.word()?, rest.word()?);
    let counts = [rest.word()?, rest.word()?, rest.word()?, rest.word()?];
    let [1, 0, 0, more @ 0..=1] = counts else { return None };
    if flags & (IS_RESPONSE | OPCODE | IS_TRUNCATED) != 0 {
        return None;
    }
    rest.name()?;
    let (kind, class) = (rest.word()?, rest.word()?);
    let question = &query[HEADER_BYTES..query.len() - rest.0.len()];
    for _ in 0..more {
        rest.extension()?;
    }
    rest.0.is_empty().then(|| said(id, flags & RECURSION_DESIRED, kind, class, question))
}

/// The bytes of an answer.
fn said(id: u16, recursion: u16, kind: u16, class: u16, question: &[u8]) -> Vec<u8> {
    let (failure, addresses) = match (class, kind) {
        (INTERNET, A) => (0, 1),
        // nothing of that kind, and no start of authority beside it: not to be remembered, RFC 2308, 5
        (INTERNET, AAAA | SVCB | HTTPS) => (0, 0),
        _ => (NOT_IMPLEMENTED, 0),
    };
    let flags = IS_RESPONSE | recursion | RECURSION_AVAILABLE | failure;
    let header = [id, flags, 1, addresses, 0, 0];
    let mut bytes: Vec<u8> = header.into_iter().flat_map(u16::to_be_bytes).collect();
    bytes.extend_from_slice(question);
    if addresses == 1 {
        // name, type, class, time to live (two words), length
        let record = [NAME_OF_QUESTION, A, INTERNET, 0, 0, 4];
        bytes.extend(record.into_iter().flat_map(u16::to_be_bytes));
        bytes.extend(EVERYWHERE.octets());
    }
    bytes
}

/// What is left of a query.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take(&mut self, bytes: usize) -> Option<&[u8]> {
        let (taken, rest) = self.0.split_at_checked(bytes)?;
        self.0 = rest;
        Some(taken)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1).map(|taken| taken[0])
    }

    fn word(&mut self) -> Option<u16> {
        self.take(2).map(|taken| u16::from_be_bytes([taken[0], taken[1]]))
    }

    /// A name in full: labels up to an empty one. One that points elsewhere is none, for there is nothing before.
    fn name(&mut self) -> Option<()> {
        let before = self.0.len();
        loop {
            match self.byte()? {
                0 => break,
                label @ 1..=MAX_LABEL_BYTES => self.take(label.into())?,
                _ => return None,
            };
        }
        (before - self.0.len() <= MAX_NAME_BYTES).then_some(())
    }

    /// The record of EDNS: the empty name, type, size, flags (two words), and options of any kind.
    fn extension(&mut self) -> Option<()> {
        let (name, kind) = (self.byte()?, self.word()?);
        let _size_and_flags = self.take(6)?;
        let length = self.word()?;
        self.take(length.into())?;
        (name == 0 && kind == OPT).then_some(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const EXAMPLE: &[u8] = b"\x03api\x09anthropic\x03com\0";
    const EDNS: &[u8] = &[0, 0, 41, 4, 0xd0, 0, 0, 0x80, 0, 0, 4, 0, 10, 0, 0];

    fn words(words: &[u16]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_be_bytes()).collect()
    }

    fn query(flags: u16, counts: [u16; 4], name: &[u8], kind: u16, class: u16, more: &[u8]) -> Vec<u8> {
        [&words(&[7, flags])[..], &words(&counts), name, &words(&[kind, class]), more].concat()
    }

    fn ask(kind: u16, class: u16) -> Vec<u8> {
        answer(&query(RECURSION_DESIRED, [1, 0, 0, 0], EXAMPLE, kind, class, &[])).unwrap()
    }

    #[test]
    fn an_address_is_the_lane_s_own_for_no_time() {
        let question = [EXAMPLE, &words(&[A, INTERNET])].concat();
        let record = [&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4][..], &[198, 18, 0, 1]].concat();
        assert_eq!(ask(A, INTERNET), [&words(&[7, 0x8180, 1, 1, 0, 0])[..], &question, &record].concat());
    }

    #[test]
    fn other_kinds_are_absent_or_unknown() {
        for (kind, class, flags) in [
            (AAAA, INTERNET, 0x8180),
            (HTTPS, INTERNET, 0x8180),
            (SVCB, INTERNET, 0x8180),
            (16, INTERNET, 0x8184),
            (255, INTERNET, 0x8184),
            (252, INTERNET, 0x8184),
            (A, 3, 0x8184),
            (A, 255, 0x8184),
        ] {
            let question = [EXAMPLE, &words(&[kind, class])].concat();
            let expected = [&words(&[7, flags, 1, 0, 0, 0])[..], &question].concat();
            assert_eq!(ask(kind, class), expected, "{kind} {class}");
        }
    }

    #[test]
    fn edns_is_tolerated_and_not_spoken() {
        let plain = query(0, [1, 0, 0, 0], EXAMPLE, A, INTERNET, &[]);
        let extended = query(0, [1, 0, 0, 1], EXAMPLE, A, INTERNET, EDNS);
        assert_eq!(answer(&extended), answer(&plain));
        assert!(answer(&plain).is_some());
    }

    #[test]
    fn what_is_not_one_question_is_dropped() {
        let long_name = [&b"\x3f"[..], &[b'a'; 63]].concat().repeat(4);
        let whole = query(0, [1, 0, 0, 0], EXAMPLE, A, INTERNET, &[]);
        let mut table = vec![
            (query(IS_RESPONSE, [1, 0, 0, 0], EXAMPLE, A, INTERNET, &[]), "an answer"),
            (query(1 << 11, [1, 0, 0, 0], EXAMPLE, A, INTERNET, &[]), "an inverse query"),
            (query(IS_TRUNCATED, [1, 0, 0, 0], EXAMPLE, A, INTERNET, &[]), "the rest is missing"),
            (query(0, [0, 0, 0, 0], &[], A, INTERNET, &[]), "no question"),
            (query(0, [2, 0, 0, 0], EXAMPLE, A, INTERNET, EXAMPLE), "two questions"),
            (query(0, [1, 1, 0, 0], EXAMPLE, A, INTERNET, &[]), "an answer with it"),
            (query(0, [1, 0, 0, 2], EXAMPLE, A, INTERNET, EDNS), "two more"),
            (query(0, [1, 0, 0, 1], EXAMPLE, A, INTERNET, &[]), "one more, which is missing"),
            (query(0, [1, 0, 0, 0], EXAMPLE, A, INTERNET, EDNS), "one more than counted"),
            (query(0, [1, 0, 0, 0], EXAMPLE, A, INTERNET, &[0]), "a byte more"),
            (query(0, [1, 0, 0, 0], b"\xc0\x0c", A, INTERNET, &[]), "a name that points at itself"),
            (query(0, [1, 0, 0, 0], b"\x40a\0", A, INTERNET, &[]), "a label of an unknown form"),
            (query(0, [1, 0, 0, 0], &[&long_name[..], &[0]].concat(), A, INTERNET, &[]), "a name too long"),
        ];
        table.extend((0..whole.len()).map(|end| (whole[..end].to_vec(), "half of one")));
        for (bytes, what) in table {
            assert_eq!(answer(&bytes), None, "{what}: {bytes:?}");
        }
        let longest = [&long_name[..long_name.len() - 3], &[0]].concat();
        let mut longest = longest;
        longest[192] = 60;
        assert!(answer(&query(0, [1, 0, 0, 0], &longest, A, INTERNET, &[])).is_some());
    }

    proptest! {
        #[test]
        fn any_bytes_are_answered_shortly_or_not_at_all(bytes: Vec<u8>) {
            if let Some(answer) = answer(&bytes) {
                prop_assert!(answer.len() <= bytes.len() + MAX_ADDED_BYTES);
            }
        }

        #[test]
        fn any_question_is_answered_with_itself(
            id: u16,
            labels in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..63), 0..4),
            kind: u16,
            class in 0u16..4,
            flags in any::<u16>().prop_map(|flags| flags & !(IS_RESPONSE | OPCODE | IS_TRUNCATED)),
        ) {
            let mut name: Vec<u8> = Vec::new();
            for label in &labels {
                name.push(u8::try_from(label.len()).unwrap());
                name.extend(label);
            }
            name.push(0);
            let query = [&words(&[id, flags, 1, 0, 0, 0])[..], &name, &words(&[kind, class])].concat();
            let answer = answer(&query).unwrap();
            prop_assert_eq!(&answer[..2], &query[..2]);
            prop_assert!(answer.len() <= query.len() - HEADER_BYTES + MAX_ADDED_BYTES);
            prop_assert_eq!(&answer[HEADER_BYTES..query.len()], &query[HEADER_BYTES..]);
        }
    }
}
