//! The mock provider's own books: what came in, what went out, what it bills for it.
use std::sync::Mutex;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::clock::mono_ns;

/// Tokens billed, by class; `input` is uncached, `reasoning` a part of `output`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the classes are the ones of every ledger row")]
pub struct Billed {
    pub input: u64,
    pub cache_write: u64,
    pub cache_read: u64,
    pub output: u64,
    pub reasoning: u64,
}

impl Billed {
    /// All classes but `reasoning`, which is inside `output`.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.input + self.cache_write + self.cache_read + self.output
    }

    /// Class by class sum.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            input: self.input + other.input,
            cache_write: self.cache_write + other.cache_write,
            cache_read: self.cache_read + other.cache_read,
            output: self.output + other.output,
            reasoning: self.reasoning + other.reasoning,
        }
    }
}

/// How an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// Sent whole.
    Completed,
    /// The provider broke it off, as its script says.
    Broken,
    /// The client hung up first.
    ClientGone,
}

/// One request and its answer. All token figures are what was billed up to now.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    /// Order of arrival, from 0.
    pub id: usize,
    /// Method.
    pub method: String,
    /// Path and query as received.
    pub path: String,
    /// `Host` header; by HTTP/2 `:authority`.
    pub host: Option<String>,
    /// Whether it came over TLS.
    pub tls: bool,
    /// Whether it came by HTTP/2.
    pub http2: bool,
    /// Whether it came in a compressed message of a WebSocket.
    pub deflated: bool,
    /// All request headers, names in lower case, in order.
    pub headers: Vec<(String, String)>,
    /// Length of the request body.
    pub request_bytes: usize,
    /// SHA-256 of the request body, in hex.
    pub request_sha256: String,
    /// Whether its path is one that bills.
    pub billable: bool,
    /// Status answered; 0 until then.
    pub status: u16,
    /// Bytes of the answer's body handed to the connection so far (content-coded, without chunk framing).
    pub response_bytes: usize,
    /// SHA-256 of those bytes, in hex.
    pub response_sha256: String,
    /// Those bytes; empty when the script forgets bodies.
    #[serde(skip)]
    pub response_body: Vec<u8>,
    /// What it bills: input when the answer starts, output as it is sent.
    pub billed: Billed,
    /// When it arrived, on the monotonic clock.
    pub arrived_ns: u64,
    /// How it ended; `None` while under way.
    pub end: Option<End>,
    /// When the end was noticed, on the monotonic clock.
    pub ended_ns: Option<u64>,
}

impl Record {
    /// Value of a request header.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }
}

/// All records, and the running hash of each answer.
#[derive(Default)]
pub(super) struct Book {
    entries: Mutex<Vec<Entry>>,
}

struct Entry {
    record: Record,
    response_hash: Sha256,
    forget_body: bool,
}

impl Book {
    pub(super) fn records(&self) -> Vec<Record> {
        let entries = self.entries.lock().unwrap();
        entries.iter().map(Entry::as_record).collect()
    }

    pub(super) fn billed_total(&self) -> Billed {
        let entries = self.entries.lock().unwrap();
        entries.iter().fold(Billed::default(), |sum, entry| sum.plus(entry.record.billed))
    }

    /// Requests whose answer has not ended.
    pub(super) fn open_count(&self) -> usize {
        self.entries.lock().unwrap().iter().filter(|entry| entry.record.end.is_none()).count()
    }

    /// Adds a request; gives its id.
    pub(super) fn open(&self, head: &http::request::Parts, tls: bool, forget_body: bool) -> usize {
        let headers = head.headers.iter();
        let headers = headers
            .map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned()));
        let host = head.headers.get(http::header::HOST).and_then(|h| h.to_str().ok()).map(str::to_owned);
        let mut entries = self.entries.lock().unwrap();
        let record = Record {
            id: entries.len(),
            method: head.method.to_string(),
            path: head.uri.path_and_query().map_or_else(String::new, ToString::to_string),
            host: host.or_else(|| head.uri.authority().map(ToString::to_string)),
            tls,
            http2: head.version == http::Version::HTTP_2,
            deflated: false,
            headers: headers.collect(),
            request_bytes: 0,
            request_sha256: String::new(),
            billable: false,
            status: 0,
            response_bytes: 0,
            response_sha256: String::new(),
            response_body: Vec::new(),
            billed: Billed::default(),
            arrived_ns: mono_ns(),
            end: None,
            ended_ns: None,
        };
        entries.push(Entry { record, response_hash: Sha256::new(), forget_body });
        entries.len() - 1
    }

    pub(super) fn received_body(&self, id: usize, body: &[u8], billable: bool) {
        self.with(id, |entry| {
            entry.record.request_bytes = body.len();
            entry.record.request_sha256 = sha256_hex(body);
            entry.record.billable = billable;
        });
    }

    pub(super) fn came_deflated(&self, id: usize, deflated: bool) {
        self.with(id, |entry| entry.record.deflated = deflated);
    }

    /// The answer starts: its status, and what is billed from its first byte on.
    pub(super) fn answering(&self, id: usize, status: u16, billed: Billed) {
        self.with(id, |entry| {
            entry.record.status = status;
            entry.record.billed = billed;
        });
    }

    /// Bytes were handed to the connection; `output` is the output billed from now on.
    pub(super) fn sent(&self, id: usize, bytes: &[u8], output: u64) {
        self.with(id, |entry| {
            entry.response_hash.update(bytes);
            entry.record.response_bytes += bytes.len();
            if !entry.forget_body {
                entry.record.response_body.extend_from_slice(bytes);
            }
            entry.record.billed.output = entry.record.billed.output.max(output);
        });
    }

    /// The answer ended; only the first word on it counts.
    pub(super) fn ended(&self, id: usize, end: End) {
        self.with(id, |entry| {
            if entry.record.end.is_none() {
                entry.record.end = Some(end);
                entry.record.ended_ns = Some(mono_ns());
            }
        });
    }

    fn with(&self, id: usize, change: impl FnOnce(&mut Entry)) {
        change(&mut self.entries.lock().unwrap()[id]);
    }
}

impl Entry {
    fn as_record(&self) -> Record {
        let mut record = self.record.clone();
        record.response_sha256 = hex(&self.response_hash.clone().finalize());
        record
    }
}

/// SHA-256 in lower-case hex: the form of a record's hashes.
#[must_use]
pub fn sha256_hex(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn hex(digest: &[u8]) -> String {
    use std::fmt::Write as _;
    digest.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a string takes everything");
        text
    })
}
