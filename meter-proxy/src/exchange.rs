//! One metered request and its answer, as a pure state machine.
use crate::tokens::{Ending, Provenance, Tokens};
use crate::usage::Shape;

/// What the gate needs to know of a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// The model asked for.
    pub model: Option<String>,
    /// Whether the answer was asked for as a stream.
    pub streamed: bool,
    /// Input estimate, tokens.
    pub input_estimate: u64,
    /// Output that is reserved beforehand, tokens; 0 for streams.
    pub output_allowance: u64,
}

impl Facts {
    /// What the gate reserves, tokens.
    #[must_use]
    pub fn reservation(&self) -> u64 {
        self.input_estimate.saturating_add(self.output_allowance)
    }

    /// Reads a request. `body` is what was kept of it, still encoded; `complete` says that it is all of it.
    #[must_use]
    pub fn of_request(
        _shape: Shape,
        _body: &[u8],
        _complete: bool,
        _content_encoding: &str,
        _content_length: Option<u64>,
    ) -> Self {
        Self::default()
    }
}

/// What a chunk meant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// [`Exchange::tokens`] changed.
    pub changed: bool,
    /// From this chunk on nothing may reach the client until the settlement is durable.
    pub hold: bool,
    /// The final figures are known: settle now.
    pub terminal: bool,
}

/// The final figures of an exchange.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Figures {
    /// What is charged.
    pub tokens: Tokens,
    /// Where the figures come from.
    pub provenance: Provenance,
    /// How the exchange ended, as the exchange itself judges it.
    pub ending: Ending,
    /// The model that answered.
    pub model: Option<String>,
    /// The provider's usage JSON, compact, latest first; at most [`crate::protocol::MAX_RAW_BYTES`].
    pub raw: Option<String>,
    /// What the operator should know of these figures, one line.
    pub alarm: Option<String>,
}

/// One metered request and its answer.
pub struct Exchange {
    _facts: Facts,
}

impl Exchange {
    /// Begins with what is known of the request.
    #[must_use]
    pub fn new(_shape: Shape, facts: Facts) -> Self {
        Self { _facts: facts }
    }

    /// The head of the answer.
    pub fn head(&mut self, _status: u16, _content_type: &str, _content_encoding: &str) {}

    /// Whether the answer is an event stream; otherwise the caller withholds the last bytes itself.
    #[must_use]
    pub fn is_stream(&self) -> bool {
        false
    }

    /// Bytes of the answer as they pass, still encoded.
    pub fn feed(&mut self, _bytes: &[u8]) -> Step {
        Step::default()
    }

    /// Figures so far.
    #[must_use]
    pub fn tokens(&self) -> Tokens {
        Tokens::default()
    }

    /// The final figures; call once.
    pub fn end(&mut self, ending: Ending) -> Figures {
        Figures {
            tokens: self.tokens(),
            provenance: Provenance::Estimated,
            ending,
            model: None,
            raw: None,
            alarm: None,
        }
    }
}
