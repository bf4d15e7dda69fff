//! Usage of Bedrock's runtime: `invoke`, whose answers are the models' own, and Converse.
//!
//! A stream of `invoke` has events `chunk` with the model's own JSON in base64, the last of them with
//! `amazon-bedrock-invocationMetrics`; one of Converse ends with the event `metadata`. A JSON answer of `invoke` has its
//! figures in headers (`x-amzn-bedrock-…-token-count`) beside what the model's own JSON says. Input excludes both
//! cache classes.
use aws_smithy_types::base64;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::read::{MAX_COUNT, Raw, list, nested, object, word};
use super::report::Stated;
use super::tally::Tally;
use super::{Document, HeaderText, Named, Reader, Shape, shape_of_usage};
use crate::event_stream::EXCEPTION;

/// Bedrock's runtime.
pub(super) struct Bedrock;

/// Headers of an answer of `invoke`: input, output, read from the cache and written to it.
const COUNTS_IN_HEAD: [&str; 4] = [
    "x-amzn-bedrock-input-token-count",
    "x-amzn-bedrock-output-token-count",
    "x-amzn-bedrock-cache-read-input-token-count",
    "x-amzn-bedrock-cache-write-input-token-count",
];

#[derive(Deserialize)]
struct Payload<'a> {
    #[serde(borrow)]
    bytes: Raw<'a>,
}

/// What the events of models have: Anthropic's a type, OpenAI's and some others' choices, the rest text in one of
/// these fields.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ModelEvent<'a> {
    #[serde(borrow, rename = "amazon-bedrock-invocationMetrics")]
    metrics: Raw<'a>,
    #[serde(borrow, rename = "type")]
    kind: Raw<'a>,
    #[serde(borrow)]
    choices: Raw<'a>,
    #[serde(borrow)]
    generation: Raw<'a>,
    #[serde(borrow)]
    output_text: Raw<'a>,
    #[serde(borrow)]
    completion: Raw<'a>,
    #[serde(borrow)]
    text: Raw<'a>,
    #[serde(borrow)]
    outputs: Raw<'a>,
    #[serde(borrow)]
    content_block_delta: Raw<'a>,
}

#[derive(Deserialize)]
struct Output<'a> {
    #[serde(borrow)]
    text: Raw<'a>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metrics<'a> {
    #[serde(borrow)]
    input_token_count: Raw<'a>,
    #[serde(borrow)]
    output_token_count: Raw<'a>,
    #[serde(borrow)]
    cache_read_input_token_count: Raw<'a>,
    #[serde(borrow)]
    cache_write_input_token_count: Raw<'a>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Usage<'a> {
    #[serde(borrow)]
    input_tokens: Raw<'a>,
    #[serde(borrow)]
    output_tokens: Raw<'a>,
    #[serde(borrow)]
    cache_read_input_tokens: Raw<'a>,
    #[serde(borrow)]
    cache_write_input_tokens: Raw<'a>,
    #[serde(borrow)]
    cache_details: Raw<'a>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct CacheDetail<'a> {
    #[serde(borrow)]
    input_tokens: Raw<'a>,
    #[serde(borrow)]
    ttl: Raw<'a>,
}

#[derive(Deserialize)]
struct BlockDelta<'a> {
    #[serde(borrow)]
    delta: Raw<'a>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Delta<'a> {
    #[serde(borrow)]
    text: Raw<'a>,
    #[serde(borrow)]
    tool_use: Raw<'a>,
    #[serde(borrow)]
    reasoning_content: Raw<'a>,
}

/// Input of a tool, or the text of reasoning.
#[derive(Deserialize)]
struct Inner<'a> {
    #[serde(borrow)]
    input: Raw<'a>,
    #[serde(borrow)]
    text: Raw<'a>,
}

impl Reader for Bedrock {
    fn event(&self, event: Named<'_>, tally: &mut Tally) {
        match event.name {
            "chunk" => self.chunk(event.data, tally),
            "contentBlockDelta" => count_block(event.data, tally),
            "messageStop" => {
                tally.finished = true;
                tally.hold = true;
            }
            "metadata" => {
                if let Some(Document { usage: Some(usage), .. }) = object(event.data) {
                    self.usage(usage, tally);
                }
                end(tally);
            }
            EXCEPTION => tally.break_off(),
            _ => {}
        }
    }

    fn head(&self, header: HeaderText<'_>, tally: &mut Tally) {
        let counts =
            COUNTS_IN_HEAD.map(|name| (name, header(name).and_then(|text| text.parse::<u64>().ok())));
        let told = counts.into_iter().filter_map(|(name, count)| Some(format!("{name:?}:{}", count?)));
        let told: Vec<String> = told.collect();
        if told.is_empty() {
            return;
        }
        tally.keep_raw(&format!("{{{}}}", told.join(",")));
        let [input, output, cache_read, cache_write] =
            counts.map(|(_, count)| count.filter(|&count| count <= MAX_COUNT));
        // embeddings have no output, and their head no such header
        let output = output.or(input.map(|_| 0));
        tally.take(&Stated { input, output, cache_read, cache_write, ..Stated::default() });
    }

    /// Reads the usage of Converse, or the one that a model's own JSON has.
    fn usage(&self, raw: &RawValue, tally: &mut Tally) {
        match shape_of_usage(raw) {
            Shape::Bedrock | Shape::Any => converse(raw, tally),
            shape => {
                if let Some(reader) = shape.reader() {
                    reader.usage(raw, tally);
                }
            }
        }
    }

    /// After `messageStop` nothing but the figures is missing.
    fn ends_unsaid(&self, tally: &Tally) -> bool {
        tally.finished
    }
}

impl Bedrock {
    /// Reads an event of a model.
    fn chunk(&self, payload: &[u8], tally: &mut Tally) {
        let text = |payload: Payload<'_>| serde_json::from_str::<String>(payload.bytes?.get()).ok();
        let bytes = object(payload).and_then(text).and_then(|text| base64::decode(text).ok());
        let Some((bytes, event)) =
            bytes.as_ref().and_then(|bytes| Some((bytes, object::<ModelEvent<'_>>(bytes)?)))
        else {
            return tally.alarm("an event of the stream cannot be read");
        };
        let own = match (event.kind, event.choices) {
            (Some(_), _) => Shape::AnthropicMessages.reader(),
            (None, Some(_)) => Shape::OpenaiChat.reader(),
            (None, None) => None,
        };
        match own {
            Some(reader) => reader.event(Named::unnamed(bytes), tally),
            None => count_model_event(&event, tally),
        }
        if let Some(metrics) = event.metrics {
            take_metrics(metrics, tally);
            end(tally);
        }
    }
}

/// The last figures have come.
fn end(tally: &mut Tally) {
    tally.whole = tally.report.is_known();
    tally.hold = true;
    tally.terminal = true;
}

fn take_metrics(raw: &RawValue, tally: &mut Tally) {
    let Some(metrics) = tally.usage_object::<Metrics<'_>>(Some(raw)) else { return };
    let stated = Stated {
        input: tally.count("inputTokenCount", metrics.input_token_count),
        output: tally.count("outputTokenCount", metrics.output_token_count),
        cache_read: tally.count("cacheReadInputTokenCount", metrics.cache_read_input_token_count),
        cache_write: tally.count("cacheWriteInputTokenCount", metrics.cache_write_input_token_count),
        ..Stated::default()
    };
    tally.take(&stated);
}

fn converse(raw: &RawValue, tally: &mut Tally) {
    let Some(usage) = tally.usage_object::<Usage<'_>>(Some(raw)) else { return };
    let mut stated = Stated {
        input: tally.count("inputTokens", usage.input_tokens),
        output: tally.count("outputTokens", usage.output_tokens),
        cache_read: tally.count("cacheReadInputTokens", usage.cache_read_input_tokens),
        cache_write: tally.count("cacheWriteInputTokens", usage.cache_write_input_tokens),
        ..Stated::default()
    };
    for detail in list::<CacheDetail<'_>>(usage.cache_details) {
        let kept = match word(detail.ttl) {
            "5m" => &mut stated.cache_write_5m,
            "1h" => &mut stated.cache_write_1h,
            _ => continue,
        };
        let count = tally.count("cacheDetails", detail.input_tokens).unwrap_or_default();
        *kept = Some(kept.unwrap_or_default().saturating_add(count));
    }
    tally.take(&stated);
}

fn count_model_event(event: &ModelEvent<'_>, tally: &mut Tally) {
    for text in [event.generation, event.output_text, event.completion, event.text] {
        tally.count_text(text);
    }
    for output in list::<Output<'_>>(event.outputs) {
        tally.count_text(output.text);
    }
    if let Some(block) = event.content_block_delta {
        count_block(block.get().as_bytes(), tally);
    }
}

fn count_block(json: &[u8], tally: &mut Tally) {
    let block = object::<BlockDelta<'_>>(json);
    let Some(delta) = block.and_then(|block| nested::<Delta<'_>>(block.delta)) else { return };
    tally.count_text(delta.text);
    for inner in [delta.tool_use, delta.reasoning_content].into_iter().filter_map(nested::<Inner<'_>>) {
        tally.count_text(inner.input);
        tally.count_text(inner.text);
    }
}
