//! What holds for every answer of a provider, whatever its shape and framing: any cut gives the same figures, none is
//! free, memory is bounded.
use meter_proxy::exchange::{Exchange, Facts, Figures};
use meter_proxy::protocol::MAX_RAW_BYTES;
use meter_proxy::text::is_hostile;
use meter_proxy::tokens::{Ending, Provenance};
use meter_proxy::usage::Shape;

use crate::{Input, memory};

/// Every shape of an answer.
pub const SHAPES: [Shape; 6] = [
    Shape::AnthropicMessages,
    Shape::OpenaiChat,
    Shape::OpenaiResponses,
    Shape::Gemini,
    Shape::Bedrock,
    Shape::Any,
];

/// Most that one exchange keeps while it is fed, bytes, with the limits that are fuzzed and whatever the length of its
/// answer: both ends of an event and of a usage object, and what is read of them.
const MAX_KEPT_BYTES: usize = 16 * 1024;
/// How often an answer is repeated to be a long one, and which of the choices left by then makes it one: the last, which
/// is one input in sixteen, so that the long ones cost no more than all others.
const REPEATS: usize = 16;
const LONG: [bool; 11] = [false, false, false, false, false, false, false, false, false, false, true];

const ENDINGS: [Ending; 4] = [Ending::Completed, Ending::ClientGone, Ending::UpstreamBroke, Ending::Cut];

/// Reads an input as the answer of this shape and content type, whole and in pieces.
pub fn check(shape: Shape, content_type: &str, data: &[u8]) {
    let Some(mut input) = Input::read(data) else { return };
    let ending = input.choose(ENDINGS);
    let status = input.choose([200, 200, 400]);
    let streamed = input.choose([true, false]);
    let is_long = input.choose(LONG);
    let repeated = if is_long { input.bytes.repeat(REPEATS) } else { Vec::new() };
    let bytes = if is_long { &repeated[..] } else { input.bytes };
    let case = Case { shape, content_type, status, streamed, ending };
    let whole = case.figures([bytes].into_iter());
    let (cut, kept_bytes) = memory::most_while(|| case.figures(bytes.chunks(input.piece_bytes)));
    assert!(kept_bytes < MAX_KEPT_BYTES, "{kept_bytes} bytes are kept of an answer");
    if is_corrupt(&whole) {
        // what follows is estimated by what of it came with what could be read
        assert!(is_corrupt(&cut));
    } else {
        assert_eq!(cut, whole);
    }
    case.check(&whole);
    case.check(&cut);
}

fn is_corrupt(figures: &Figures) -> bool {
    figures.alarm.as_deref().is_some_and(|alarm| alarm.contains("corrupt"))
}

/// One exchange.
struct Case<'a> {
    shape: Shape,
    content_type: &'a str,
    status: u16,
    streamed: bool,
    ending: Ending,
}

impl Case<'_> {
    fn figures<'b>(&self, pieces: impl Iterator<Item = &'b [u8]>) -> Figures {
        let facts =
            Facts { streamed: self.streamed, input_estimate: 7, output_allowance: 5, ..Facts::default() };
        let mut exchange = Exchange::new(self.shape, facts);
        exchange.head(self.status, self.content_type, "");
        let mut terminals = 0;
        for piece in pieces {
            let step = exchange.feed(piece);
            assert!(!step.terminal || step.hold, "what settles is held back until it is durable");
            terminals += usize::from(step.terminal);
        }
        assert!(terminals <= 1, "an exchange is settled once");
        exchange.end(self.ending)
    }

    fn check(&self, figures: &Figures) {
        let Figures { tokens, provenance, ending, model, raw, alarm } = figures;
        if self.status == 200 && self.shape != Shape::Any {
            assert!(tokens.total() > 0, "no answer of an inference is free: {figures:?}");
            let on_our_word = *provenance == Provenance::Estimated && *ending == Ending::Completed;
            assert!(!on_our_word || alarm.is_some(), "an estimate of a whole answer is said: {figures:?}");
        }
        assert!(tokens.reasoning <= tokens.output && tokens.tool_prompt <= tokens.input, "{figures:?}");
        assert!(tokens.cache_write_5m + tokens.cache_write_1h <= tokens.cache_write, "{figures:?}");
        for text in [model, alarm].into_iter().flatten() {
            assert!(!text.chars().any(is_hostile), "{text:?}");
        }
        if let Some(raw) = raw {
            assert!(raw.len() <= MAX_RAW_BYTES);
            serde_json::from_str::<serde::de::IgnoredAny>(raw).expect("a provider's usage is JSON");
        }
    }
}
