//! The keys that clients find in their environment: no provider takes any of them.
use crate::client::{Client, Way};

/// For Anthropic.
pub const ANTHROPIC: &str = "sk-ant-visibly-fake";
/// For OpenAI.
pub const OPENAI: &str = "sk-visibly-fake";
/// With which AWS's requests are signed.
pub const AWS_SECRET: &str = "visibly-fake";
const AWS_ID: &str = "AKIAVISIBLYFAKE";
const KEYS: [(&str, &str); 4] = [
    ("ANTHROPIC_API_KEY", ANTHROPIC),
    ("GEMINI_API_KEY", "visibly-fake"),
    ("OPENAI_API_KEY", OPENAI),
    ("CODEX_API_KEY", OPENAI),
];
/// Some read the one, some the other.
const AWS_REGION: [(&str, &str); 2] = [("AWS_REGION", "us-east-1"), ("AWS_DEFAULT_REGION", "us-east-1")];
const AWS_SIGNING: [(&str, &str); 2] = [("AWS_ACCESS_KEY_ID", AWS_ID), ("AWS_SECRET_ACCESS_KEY", AWS_SECRET)];
/// A key of Bedrock's, with which nothing is signed.
const AWS_BEARER: [(&str, &str); 1] = [("AWS_BEARER_TOKEN_BEDROCK", "visibly-fake")];

/// The variables in which this client has keys when it comes this way: a signature is for the host that is asked, so
/// that at the gateway it would be for another than the provider's.
pub fn of(client: Client, way: Way) -> Vec<(&'static str, &'static str)> {
    match (client.provider(), way) {
        ("bedrock", Way::Gateway) => [&AWS_REGION[..], &AWS_BEARER].concat(),
        ("bedrock", _) => signing(),
        _ => KEYS.to_vec(),
    }
}

/// Those with which a client of AWS signs.
pub fn signing() -> Vec<(&'static str, &'static str)> {
    [AWS_REGION, AWS_SIGNING].concat()
}
