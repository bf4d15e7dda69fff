//! What the path of a request says of it, where other providers say it in the body.
//!
//! Not here: whether it costs (`endpoint`).
use super::{Shape, path};
use crate::text::printable_within;

/// Whether what the path asks for has no output: embeddings, whose numbers are not generated text.
#[must_use]
pub fn has_no_output(path: &str) -> bool {
    let path = path::decoded(&path::canonical(path).unwrap_or_default());
    let last = path.trim_end_matches('/').rsplit(['/', ':']).next();
    matches!(last, Some("embeddings" | "embedContent" | "batchEmbedContents"))
}

/// What the path of a request says that other providers' bodies say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InPath {
    /// The model asked for.
    pub model: Option<String>,
    /// Whether the answer was asked for as a stream.
    pub streamed: bool,
    /// Whether it is for Bedrock's Converse, whose body has a form of its own.
    pub is_converse: bool,
}

/// Longest name of a model, in characters.
const MAX_MODEL_CHARS: usize = 128;

/// Reads the path of a request whose answer has this shape.
#[must_use]
pub fn in_path(shape: Shape, path: &str) -> InPath {
    let path = path::decoded(&path::canonical(path).unwrap_or_default());
    let (model, verb) = match shape {
        Shape::Gemini => path.rsplit('/').next().and_then(|last| last.split_once(':')),
        Shape::Bedrock => path.strip_prefix("/model/").and_then(|rest| rest.rsplit_once('/')),
        _ => None,
    }
    .unwrap_or_default();
    // Code Assist's verbs stand behind its version
    let model = Some(model).filter(|model| !model.is_empty() && *model != "v1internal");
    InPath {
        model: model.map(|model| printable_within(model, MAX_MODEL_CHARS)),
        streamed: verb.starts_with("stream") || verb.ends_with("-stream"),
        is_converse: shape == Shape::Bedrock && matches!(verb, "converse" | "converse-stream"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn embeddings_have_no_output() {
        for path in [
            "/v1/embeddings",
            "/v1/embeddings/",
            "/v1beta/models/m%3AembedContent",
            "/x/m:batchEmbedContents",
        ] {
            assert!(has_no_output(path), "{path}");
        }
        for path in [
            "/v1/chat/completions",
            "/v1/embeddings/x",
            "/v1beta/models/m:generateContent",
            "",
            "/a/../embeddings",
        ] {
            assert!(!has_no_output(path), "{path}");
        }
    }

    #[test]
    fn a_path_may_name_the_model_and_the_stream() {
        let table = [
            (Shape::Gemini, "/v1beta/models/gemini-x:streamGenerateContent", Some("gemini-x"), true),
            (Shape::Gemini, "/v1beta/models/gemini-x:generateContent", Some("gemini-x"), false),
            (Shape::Gemini, "/v1internal:streamGenerateContent", None, true),
            (Shape::Gemini, "/v1beta/cachedContents", None, false),
            (
                Shape::Bedrock,
                "/model/anthropic.claude-x-v1%3A0/invoke",
                Some("anthropic.claude-x-v1:0"),
                false,
            ),
            (Shape::Bedrock, "/model/a%2Fb/converse-stream", Some("a/b"), true),
            (Shape::Bedrock, "/model/m/invoke-with-response-stream", Some("m"), true),
            (Shape::OpenaiChat, "/model/m/invoke-with-response-stream", None, false),
        ];
        for (shape, path, model, streamed) in table {
            let is_converse = path.contains("/converse");
            let expected = InPath { model: model.map(str::to_owned), streamed, is_converse };
            assert_eq!(in_path(shape, path), expected, "{path}");
        }
    }
}
