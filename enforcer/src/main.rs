//! The command line of Enforcer: parse, run, say how it ended.
use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;
use enforcer::error::{Exit, Failure};
use enforcer::{cli::Cli, commands};

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) if is_asked_for(&error) => error.exit(),
        Err(error) => return end(&wrong_usage(&error)),
    };
    commands::run(cli).unwrap_or_else(|failure| end(&failure))
}

fn end(failure: &Failure) -> ExitCode {
    failure.print();
    failure.exit.into()
}

/// Help, which is not about anything that was given: it may be printed as it is.
fn is_asked_for(error: &clap::Error) -> bool {
    !error.use_stderr() || error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
}

/// Wrong usage in the form of every other failure: clap's first paragraph on one line, its tip as the hint. It
/// quotes what was given, which a script may have from an agent.
fn wrong_usage(error: &clap::Error) -> Failure {
    let text = error.render().to_string();
    let mut paragraphs =
        text.split("\n\n").map(|paragraph| paragraph.split_whitespace().collect::<Vec<_>>().join(" "));
    let first = paragraphs.next().unwrap_or_default();
    let message = first.strip_prefix("error: ").unwrap_or(&first);
    let tip = paragraphs.find_map(|paragraph| Some(paragraph.strip_prefix("tip: ")?.to_owned()));
    let hint =
        tip.unwrap_or_else(|| "enforcer --help, or --help after a verb, tells what is meant".to_owned());
    Failure::new(Exit::Usage, message).hint(hint)
}
