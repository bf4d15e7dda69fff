//! What the gate needs to know of a request, read from its body.
//!
//! Not here: the gate, and the request's journey.
use serde::Deserialize;

use crate::decode::Decoder;
use crate::estimate;
use crate::limits::limit;
use crate::usage::read::{Raw, count, has_key_in_another_case, model_name, nested, object};
use crate::usage::{InPath, Shape};

/// Longest decoded request body that is read, in bytes; a longer one is guessed at by its length.
pub const MAX_REQUEST_BYTES: usize = limit(16 * 1024 * 1024, 4 * 1024);

/// A longer body, bytes, may take a processor for long.
pub const MAX_READ_AT_ONCE_BYTES: usize = 256 * 1024;

/// What the gate needs to know of a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// The model asked for.
    pub model: Option<String>,
    /// Whether the answer was asked for as a stream.
    pub streamed: bool,
    /// Input estimate, tokens.
    pub input_estimate: u64,
    /// Output that is reserved beforehand, tokens; 0 for streams, whose output is counted as it flows.
    pub output_allowance: u64,
    /// The most output that the request allows, tokens; `None` when it does not say.
    pub output_limit: Option<u64>,
    /// Nothing is generated.
    pub has_no_output: bool,
    /// Whether the provider adds input that it keeps: a conversation of which the request is the last turn.
    pub has_stored_input: bool,
    /// Why the answer may not report what it costs, in words; such a request is not forwarded.
    pub unmeterable: Option<&'static str>,
}

const BACKGROUND: &str = "a background response reports its usage later, where no budget can stop it";
const ANOTHER_CASE: &str = "a key of it is another one to servers that take no notice of case";
/// What is judged of a request in one of OpenAI's forms, which servers in Go speak too.
const JUDGED: [&str; 11] = [
    "model",
    "stream",
    "stream_options",
    "max_tokens",
    "max_completion_tokens",
    "max_output_tokens",
    "n",
    "prompt",
    "best_of",
    "background",
    "previous_response_id",
];
const UNREAD: &str = "its body cannot be read whole, so it may ask for a background response";

#[derive(Deserialize)]
struct Request<'a> {
    #[serde(borrow)]
    model: Raw<'a>,
    #[serde(borrow)]
    stream: Raw<'a>,
    #[serde(borrow)]
    max_tokens: Raw<'a>,
    #[serde(borrow)]
    max_completion_tokens: Raw<'a>,
    #[serde(borrow)]
    max_output_tokens: Raw<'a>,
    #[serde(borrow)]
    n: Raw<'a>,
    #[serde(borrow)]
    prompt: Raw<'a>,
    #[serde(borrow)]
    best_of: Raw<'a>,
    #[serde(borrow)]
    background: Raw<'a>,
    #[serde(borrow)]
    previous_response_id: Raw<'a>,
    #[serde(borrow)]
    conversation: Raw<'a>,
    #[serde(borrow, rename = "cachedContent", alias = "cached_content")]
    cached_content: Raw<'a>,
    /// Gemini's limits.
    #[serde(borrow, rename = "generationConfig", alias = "generation_config")]
    generation_config: Raw<'a>,
    /// Converse's limits.
    #[serde(borrow, rename = "inferenceConfig")]
    inference_config: Raw<'a>,
    /// Code Assist puts Gemini's request into its own.
    #[serde(borrow)]
    request: Raw<'a>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Limits<'a> {
    #[serde(borrow, alias = "max_output_tokens")]
    max_output_tokens: Raw<'a>,
    #[serde(borrow)]
    max_tokens: Raw<'a>,
    #[serde(borrow, alias = "candidate_count")]
    candidate_count: Raw<'a>,
}

impl Facts {
    /// What the gate reserves, tokens. Stored input is not in it: it would refuse most turns for a guess.
    #[must_use]
    pub fn reservation(&self) -> u64 {
        self.input_estimate.saturating_add(self.output_allowance)
    }

    /// Input to charge when the provider's figures never came, tokens; on the safe side.
    #[must_use]
    pub fn charged_input(&self) -> u64 {
        if self.has_stored_input { estimate::MAX_UNREAD_INPUT } else { self.input_estimate }
    }

    /// What is known of a request to an unlisted endpoint, whose body is not read: the input to charge should the
    /// answer turn out to be an inference. `content_length` in bytes; `None` when nobody has said it.
    #[must_use]
    pub fn of_unlisted(content_length: Option<u64>) -> Self {
        let input_estimate = estimate::unread_input_tokens(content_length.unwrap_or(u64::MAX));
        Self { input_estimate, ..Self::default() }
    }

    /// The same of a request for which nothing is generated.
    #[must_use]
    pub fn without_output(self) -> Self {
        Self { output_allowance: 0, has_no_output: true, ..self }
    }

    /// Reads a request. `in_path` is what its path says; `body` what was kept of it, still encoded; `complete` says
    /// that it is all of it; `content_length`, in bytes, is what its head declared.
    #[must_use]
    pub fn of_request(
        shape: Shape,
        in_path: InPath,
        body: &[u8],
        complete: bool,
        content_encoding: &str,
        content_length: Option<u64>,
    ) -> Self {
        let decoded = if complete { decode_whole(body, content_encoding) } else { None };
        let Some((request, decoded)) =
            decoded.as_deref().and_then(|decoded| Some((object::<Request<'_>>(decoded)?, decoded)))
        else {
            return Self::unread(shape, in_path, content_length.unwrap_or(body.len() as u64));
        };
        let streamed = in_path.streamed || request.stream.is_some_and(|stream| stream.get() == "true");
        let output_limit = request.output_limit(shape, in_path.is_converse);
        Self {
            model: in_path.model.or_else(|| model_name(request.model)),
            streamed,
            input_estimate: estimate::input_tokens(decoded),
            output_allowance: allowance(streamed, output_limit),
            output_limit,
            has_no_output: false,
            has_stored_input: request.continues(shape),
            unmeterable: unmeterable(shape, &request, decoded),
        }
    }

    /// The facts of a request that cannot be read, by its length in bytes.
    fn unread(shape: Shape, in_path: InPath, content_length: u64) -> Self {
        Self {
            model: in_path.model,
            streamed: in_path.streamed,
            input_estimate: estimate::unread_input_tokens(content_length),
            output_allowance: allowance(in_path.streamed, None),
            unmeterable: (shape == Shape::OpenaiResponses).then_some(UNREAD),
            ..Self::default()
        }
    }
}

impl Request<'_> {
    /// The request inside, where there is one.
    fn inner(&self) -> Option<Request<'_>> {
        nested(self.request)
    }

    /// The most tokens of output that the request allows, of all its answers together, when it says so in a way that
    /// providers of this shape heed.
    fn output_limit(&self, shape: Shape, is_converse: bool) -> Option<u64> {
        let inner = self.inner().and_then(|inner| inner.own_limit(shape, is_converse));
        self.own_limit(shape, is_converse).max(inner)
    }

    fn own_limit(&self, shape: Shape, is_converse: bool) -> Option<u64> {
        if shape == Shape::OpenaiChat && self.multiplies_output() {
            return None;
        }
        let stated = |field: Raw<'_>| field.and_then(|limit| count(limit).ok());
        let config = match shape {
            Shape::Gemini => nested::<Limits<'_>>(self.generation_config),
            Shape::Bedrock => nested::<Limits<'_>>(self.inference_config),
            _ => None,
        };
        let limits = match (shape, &config) {
            (Shape::OpenaiChat, _) => [self.max_completion_tokens, self.max_tokens],
            (Shape::OpenaiResponses, _) => [self.max_output_tokens, None],
            (Shape::Gemini, config) => [config.as_ref().and_then(|config| config.max_output_tokens), None],
            (Shape::Bedrock, config) if is_converse => {
                [config.as_ref().and_then(|config| config.max_tokens), None]
            }
            (_, config) => [self.max_tokens, config.as_ref().and_then(|config| config.max_tokens)],
        };
        let answers = stated(self.n).max(config.and_then(|config| stated(config.candidate_count)));
        let limit = limits.into_iter().filter_map(stated).max()?;
        Some(limit.saturating_mul(answers.unwrap_or(1).max(1)))
    }

    /// Whether a request for completions may be answered several times, each up to its limit: for each of its prompts,
    /// or to choose the best.
    fn multiplies_output(&self) -> bool {
        self.best_of.is_some() || self.prompt.is_some_and(|prompt| prompt.get().starts_with('['))
    }

    /// Whether the provider adds input that it keeps: earlier turns, or a cache that is named.
    fn continues(&self, shape: Shape) -> bool {
        match shape {
            Shape::OpenaiResponses => self.previous_response_id.is_some() || self.conversation.is_some(),
            Shape::Gemini => {
                let inner = self.inner().is_some_and(|inner| inner.cached_content.is_some());
                self.cached_content.is_some() || inner
            }
            _ => false,
        }
    }

    /// Whether the answer is made after the connection has ended. Anything but `false` may mean so.
    fn is_background(&self) -> bool {
        self.background.is_some_and(|background| background.get() != "false")
    }
}

/// Why the answer to a request that could be read may not report what it costs.
fn unmeterable(shape: Shape, request: &Request<'_>, decoded: &[u8]) -> Option<&'static str> {
    let is_openai = matches!(shape, Shape::OpenaiChat | Shape::OpenaiResponses);
    if shape == Shape::OpenaiResponses && request.is_background() {
        Some(BACKGROUND)
    } else if is_openai && has_key_in_another_case(decoded, &JUDGED) {
        Some(ANOTHER_CASE)
    } else {
        None
    }
}

fn allowance(streamed: bool, limit: Option<u64>) -> u64 {
    if streamed {
        return 0;
    }
    limit.unwrap_or(estimate::DEFAULT_OUTPUT_ALLOWANCE).min(estimate::MAX_OUTPUT_ALLOWANCE)
}

/// The decoded body; `None` when it is corrupt, in an unknown encoding or longer than [`MAX_REQUEST_BYTES`].
pub(crate) fn decode_whole(body: &[u8], content_encoding: &str) -> Option<Vec<u8>> {
    let mut decoder = Decoder::new(content_encoding).ok()?;
    let mut decoded = Vec::new();
    let mut too_long = false;
    // in steps, so that a bomb is seen before it has gone off whole
    for part in body.chunks(1024) {
        let keep = &mut |piece: &[u8]| {
            too_long |= decoded.len() + piece.len() > MAX_REQUEST_BYTES;
            if !too_long {
                decoded.extend_from_slice(piece);
            }
        };
        decoder.feed(part, keep).ok()?;
        if too_long {
            return None;
        }
    }
    Some(decoded)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::tests::encode;

    const STREAMED: &[u8] =
        br#"{"model":"claude-x","max_tokens":64000,"stream":true,"messages":[{"role":"user","content":"Hi"}]}"#;

    fn read(body: &[u8]) -> Facts {
        Facts::of_request(Shape::OpenaiChat, InPath::default(), body, true, "", None)
    }

    #[test]
    fn a_stream_reserves_its_input_only() {
        let facts =
            Facts::of_request(Shape::AnthropicMessages, InPath::default(), STREAMED, true, "", Some(99));
        assert_eq!(facts.model.as_deref(), Some("claude-x"));
        assert!(facts.streamed);
        assert_eq!(facts.output_allowance, 0);
        assert_eq!(facts.reservation(), facts.input_estimate);
        assert!((5..25).contains(&facts.input_estimate), "{facts:?}");
    }

    #[test]
    fn output_limits_by_every_name_are_bounded() {
        let table = [
            (r#"{"max_tokens":100}"#, 100),
            (r#"{"max_completion_tokens":300,"max_tokens":9}"#, 300),
            (r#"{"max_output_tokens":9,"max_completion_tokens":8,"max_tokens":300}"#, 300),
            (r#"{"max_completion_tokens":"9","max_tokens":300}"#, 300),
            (r#"{"max_tokens":100,"n":3}"#, 300),
            (r#"{"max_tokens":100,"n":0}"#, 100),
            (r#"{"max_tokens":100,"prompt":"a"}"#, 100),
            (r#"{"max_tokens":100,"prompt":["a","b"]}"#, 1_024),
            (r#"{"max_tokens":100,"prompt":"a","best_of":20}"#, 1_024),
            (r#"{"max_output_tokens":9}"#, 1_024),
            (r#"{"max_tokens":64000}"#, 4_096),
            (r#"{"max_tokens":null}"#, 1_024),
            (r#"{"max_tokens":-1}"#, 1_024),
            (r#"{"max_tokens":"100"}"#, 1_024),
            (r#"{"stream":false}"#, 1_024),
            (r#"{"stream":true,"max_tokens":100}"#, 0),
            (r#"{"stream":"true","max_tokens":100}"#, 100),
        ];
        for (body, expected) in table {
            assert_eq!(read(body.as_bytes()).output_allowance, expected, "{body}");
        }
    }

    #[test]
    fn limits_models_and_streams_of_other_forms_are_found() {
        let streamed = InPath { model: Some("m".to_owned()), streamed: true, ..InPath::default() };
        let plain = InPath { streamed: false, ..streamed.clone() };
        let converse = InPath { is_converse: true, ..plain.clone() };
        let read = |shape, in_path: &InPath, body: &str| {
            Facts::of_request(shape, in_path.clone(), body.as_bytes(), true, "", None)
        };
        for (shape, body) in [
            (Shape::Gemini, r#"{"generationConfig":{"maxOutputTokens":300}}"#),
            (Shape::Gemini, r#"{"generation_config":{"max_output_tokens":100,"candidate_count":3}}"#),
            (Shape::Gemini, r#"{"model":"x","request":{"generationConfig":{"maxOutputTokens":300}}}"#),
            (Shape::OpenaiResponses, r#"{"max_output_tokens":300,"max_tokens":9}"#),
            (Shape::Bedrock, r#"{"inferenceConfig":{"maxTokens":300}}"#),
            (Shape::Bedrock, r#"{"anthropic_version":"x","max_tokens":300}"#),
        ] {
            let facts = read(shape, &plain, body);
            assert_eq!((facts.output_allowance, facts.streamed), (300, false), "{body}");
            assert_eq!(facts.model.as_deref(), Some("m"));
            let facts = read(shape, &streamed, body);
            assert_eq!((facts.output_allowance, facts.streamed), (0, true), "{body}");
            assert!(!facts.has_stored_input);
        }
        for body in [
            r#"{"cachedContent":"c/1"}"#,
            r#"{"cached_content":"c/1"}"#,
            r#"{"request":{"cachedContent":"c/1"}}"#,
        ] {
            assert!(read(Shape::Gemini, &streamed, body).has_stored_input, "{body}");
        }
        assert!(read(Shape::Bedrock, &streamed, "not json").streamed, "the path said so");
        for (body, limit) in [
            (r#"{"max_tokens":1}"#, None),
            (r#"{"max_tokens":900,"inferenceConfig":{"maxTokens":300}}"#, Some(300)),
        ] {
            assert_eq!(read(Shape::Bedrock, &converse, body).output_limit, limit, "{body}");
        }
    }

    #[test]
    fn a_background_response_is_not_metered_and_what_may_be_one_neither() {
        let ask = |body: &str, complete| {
            Facts::of_request(Shape::OpenaiResponses, InPath::default(), body.as_bytes(), complete, "", None)
                .unmeterable
        };
        for body in
            [r#"{"background":true}"#, r#"{"b\u0061ckground":true,"x":1}"#, r#"{"background":"true"}"#]
        {
            assert_eq!(ask(body, true), Some(BACKGROUND), "{body}");
        }
        for body in ["{}", r#"{"background":false}"#, r#"{"background":null}"#, r#"{"input":"background"}"#] {
            assert_eq!(ask(body, true), None, "{body}");
            assert_eq!(ask(body, false), Some(UNREAD), "{body}");
        }
        for body in ["", "not json", r#"{"background":false,"background":true}"#] {
            assert_eq!(ask(body, true), Some(UNREAD), "{body}");
        }
        assert_eq!(read(br#"{"background":true}"#).unmeterable, None, "no other dialect has them");
    }

    #[test]
    fn what_servers_in_go_read_otherwise_is_not_metered() {
        let ask = |shape, body: &str| {
            Facts::of_request(shape, InPath::default(), body.as_bytes(), true, "", None).unmeterable
        };
        for body in [r#"{"Stream":true}"#, r#"{"stream":false,"STREAM":true}"#, r#"{"Background":true}"#] {
            assert_eq!(ask(Shape::OpenaiChat, body), Some(ANOTHER_CASE), "{body}");
            assert_eq!(ask(Shape::OpenaiResponses, body), Some(ANOTHER_CASE), "{body}");
            assert_eq!(ask(Shape::AnthropicMessages, body), None, "{body}");
        }
    }

    #[test]
    fn a_kept_conversation_is_charged_and_not_reserved() {
        for body in
            [r#"{"previous_response_id":"r1","input":"hi"}"#, r#"{"conversation":{"id":"c"},"input":"hi"}"#]
        {
            let facts =
                Facts::of_request(Shape::OpenaiResponses, InPath::default(), body.as_bytes(), true, "", None);
            assert_eq!(facts.charged_input(), estimate::MAX_UNREAD_INPUT, "{body}");
            assert!(facts.reservation() < 2_000, "{body}");
        }
        let facts = Facts::of_request(
            Shape::OpenaiResponses,
            InPath::default(),
            br#"{"conversation":null}"#,
            true,
            "",
            None,
        );
        assert_eq!(facts.charged_input(), facts.input_estimate);
    }

    #[test]
    fn encoded_requests_are_read() {
        let plain = Facts::of_request(Shape::OpenaiResponses, InPath::default(), STREAMED, true, "", None);
        for encoding in ["gzip", "deflate", "br", "zstd", "gzip, zstd"] {
            let body = encode(encoding, STREAMED);
            let facts =
                Facts::of_request(Shape::OpenaiResponses, InPath::default(), &body, true, encoding, None);
            assert_eq!(facts, plain, "{encoding}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_guessed_by_its_length() {
        let guess = Facts { input_estimate: 25, output_allowance: 1_024, ..Facts::default() };
        let table: &[(&[u8], bool, &str)] = &[
            (STREAMED, false, ""),
            (STREAMED, true, "secret"),
            (b"not gzip", true, "gzip"),
            (b"not json", true, ""),
            (b"[1]", true, ""),
            (b"{\"model\":", true, ""),
            (b"\xff\xfe", true, ""),
            (b"", true, ""),
        ];
        for (body, complete, encoding) in table {
            let facts = Facts::of_request(
                Shape::AnthropicMessages,
                InPath::default(),
                body,
                *complete,
                encoding,
                Some(100),
            );
            assert_eq!(facts, guess, "{:?}", String::from_utf8_lossy(body));
        }
        assert_eq!(Facts::of_unlisted(Some(100)), Facts { input_estimate: 25, ..Facts::default() });
    }

    #[test]
    fn a_bomb_is_not_unpacked() {
        let bomb = encode("zstd", &vec![b' '; MAX_REQUEST_BYTES + 1]);
        let facts = Facts::of_request(Shape::OpenaiResponses, InPath::default(), &bomb, true, "zstd", None);
        assert_eq!(facts.input_estimate, estimate::unread_input_tokens(bomb.len() as u64));
    }
}
