//! The mock provider as a program: prints where it listens as one JSON line and answers until it is ended.
//!
//! `GET /__bill` shows what it recorded and billed.
use std::time::Duration;

use clap::Parser;
use serde_json::json;
use support::provider::{Provider, Reply, Script};

/// Answers in the wire shapes of Anthropic, OpenAI, Gemini and Bedrock on free loopback ports.
#[derive(Parser)]
struct Args {
    /// Pause before each text delta, in milliseconds.
    #[arg(long, default_value_t = 0)]
    pace_ms: u64,
    /// Output tokens of an answer (rounded up to whole deltas).
    #[arg(long, default_value_t = 40)]
    tokens: usize,
    /// Tokens of each text delta.
    #[arg(long, default_value_t = 8, value_parser = positive)]
    tokens_per_delta: usize,
    /// Uncached input tokens billed for a request.
    #[arg(long, default_value_t = 25)]
    input: u64,
    /// Input tokens billed as read from the cache.
    #[arg(long, default_value_t = 0)]
    cache_read: u64,
    /// Keep the bodies sent in memory, not only their hashes.
    #[arg(long)]
    keep_bodies: bool,
}

fn positive(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|&n| n > 0).ok_or_else(|| "a count above 0".to_owned())
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let deltas = args.tokens.div_ceil(args.tokens_per_delta);
    let reply = Reply {
        input: args.input,
        cache_read: args.cache_read,
        ..Reply::paced(deltas, args.tokens_per_delta, Duration::from_millis(args.pace_ms))
    };
    let script = Script::always(reply);
    let provider = Provider::start(if args.keep_bodies { script } else { script.forgetting_bodies() });
    let mut line = json!(provider.addresses());
    line["http_url"] = json!(provider.http_url());
    line["https_url"] = json!(provider.https_url());
    line["ca_file"] = json!(provider.ca_file());
    line["bill"] = json!(format!("{}/__bill", provider.http_url()));
    println!("{line}");
    wait_for_the_end()
}

/// Until SIGTERM or SIGINT, so that the CA file is removed.
fn wait_for_the_end() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut term = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        tokio::select! {
            _ = term.recv() => Ok(()),
            done = tokio::signal::ctrl_c() => Ok(done?),
        }
    })
}
