//! A small agent: asks a provider in a loop, prints what it says, and stops with the reason when it is refused.
//!
//! Exit codes: 0 all answered, 1 no answer, 3 refused (402 or 429), 4 an answer broke off.
use std::fs::File;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::Parser;
use serde_json::{Value, json};
use support::agent::{Agent, Answer, Ended, Options};

/// Asks a provider the way its SDKs do.
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    options: Options,
    /// How many requests; 0: until refused.
    #[arg(long, default_value_t = 1)]
    requests: usize,
    /// So many requests at once instead, on one connection of HTTP/2; prints an answer a line.
    #[arg(long, requires_all = ["http2", "json"])]
    together: Option<usize>,
    /// Every other one of them is taken back when it is not answered after so many milliseconds.
    #[arg(long, requires = "together")]
    take_back_ms: Option<u64>,
    /// Pause between requests, the connection kept open, in milliseconds.
    #[arg(long, default_value_t = 0)]
    keep_alive_idle_ms: u64,
    /// Writes the exact bytes of all answers' bodies here.
    #[arg(long)]
    dump: Option<PathBuf>,
    /// One line for each event instead of running text.
    #[arg(long, conflicts_with = "json")]
    events: bool,
    /// One JSON line for each answer instead of its text.
    #[arg(long)]
    json: bool,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<ExitCode> {
    let args = Args::parse();
    let mut dump = args.dump.as_ref().map(File::create).transpose().context("cannot write the dump")?;
    let mut agent = Agent::new(args.options.clone())?;
    if let Some(many) = args.together {
        let take_back_after = args.take_back_ms.map(Duration::from_millis);
        let answers = agent.ask_together(many, take_back_after).await?;
        answers.iter().flatten().for_each(|answer| println!("{}", json!(answer)));
        return Ok(ExitCode::SUCCESS);
    }
    let mut asked = 0;
    while args.requests == 0 || asked < args.requests {
        if asked > 0 {
            tokio::time::sleep(Duration::from_millis(args.keep_alive_idle_ms)).await;
        }
        asked += 1;
        let answer = agent.ask(|event| show_event(&args, event)).await?;
        if let Some(dump) = &mut dump {
            dump.write_all(&answer.body)?;
        }
        show_answer(&args, &answer);
        if let Some(code) = stop_code(&answer) {
            return Ok(ExitCode::from(code));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn show_event(args: &Args, event: &str) {
    if args.events {
        println!("{event}");
    } else if !args.json {
        let value: Value = serde_json::from_str(event).unwrap_or_default();
        print!("{}", support::agent::text_in(&value));
        flush();
    }
}

fn show_answer(args: &Args, answer: &Answer) {
    if args.json {
        println!("{}", json!(answer));
    } else if !args.events {
        // a stream's text was printed as it came
        println!("{}", if answer.events == 0 { answer.text.as_str() } else { "" });
    }
    flush();
    if answer.status >= 400 {
        eprintln!(
            "demo-agent: API Error: {} {}",
            answer.status,
            answer.error.as_deref().unwrap_or("(no message)")
        );
    }
    if let Ended::Broken(why) = &answer.ended {
        eprintln!("demo-agent: the answer broke off: {why}");
    }
}

fn flush() {
    std::io::stdout().flush().expect("standard output can be written");
}

fn stop_code(answer: &Answer) -> Option<u8> {
    match answer {
        _ if answer.refusal().is_some() => Some(3),
        _ if answer.ended != Ended::Complete => Some(4),
        _ if answer.status >= 400 => Some(1),
        _ => None,
    }
}
