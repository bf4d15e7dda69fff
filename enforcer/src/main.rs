//! The command line of Enforcer: parse, run, say how it ended.
use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use enforcer::error::Exit;
use enforcer::{cli::Cli, commands, text::scrub};

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) if error.use_stderr() => return refuse(&error),
        Err(help) => help.exit(),
    };
    commands::run(cli).unwrap_or_else(|failure| {
        failure.print();
        failure.exit.into()
    })
}

/// Wrong usage. The words quote what was given, which a script may have from an agent: scrubbed line by line.
fn refuse(error: &clap::Error) -> ExitCode {
    let text: String = error.render().to_string().lines().map(|line| format!("{}\n", scrub(line))).collect();
    // a closed stderr leaves the exit code, which is all that can still be told
    drop(std::io::stderr().write_all(text.as_bytes()));
    Exit::Usage.into()
}
