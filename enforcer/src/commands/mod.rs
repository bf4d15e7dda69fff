//! One file a verb. Each asks the control API and prints; nothing here knows how a bottle is guarded.
mod attach;
mod audit;
mod budget;
mod ca;
mod cut;
mod daemon;
mod detach;
mod doctor;
mod env;
mod freeze;
mod kill;
mod manual;
pub mod output;
mod restore;
mod run;
mod settings;
mod start;
mod status;
mod thaw;
mod top;
mod usage;

use std::path::PathBuf;
use std::process::ExitCode;

use crate::cli::{Cli, Command, Global, Guarding, by_provider};
use crate::control::api;
use crate::control::client::{Blocking, Client};
use crate::error::{Exit, Failure};
use crate::escape::sender;
use crate::lane::sockets;
use crate::state::control_socket;

/// Does what the command line says. The code is not always success: `run` ends with its command's.
///
/// # Errors
/// What stopped the command, with its exit code.
pub fn run(cli: Cli) -> Result<ExitCode, Failure> {
    let global = &cli.global;
    match cli.command {
        Command::Run(run) => return run::run(global, &run),
        Command::Doctor(json) => return doctor::run(global, json),
        Command::Daemon(daemon) => daemon::run(global, &daemon),
        Command::Attach(attach) => attach::run(global, &attach),
        Command::Detach(detach) => detach::run(global, &detach),
        Command::Status(status) => status::run(global, &status),
        Command::Cut(cut) => cut::run(global, &cut),
        Command::Restore(restore) => restore::run(global, &restore),
        Command::Freeze(freeze) => freeze::run(global, &freeze),
        Command::Thaw(thaw) => thaw::run(global, &thaw),
        Command::Kill(kill) => kill::run(global, &kill),
        Command::Budget(budget) => budget::run(global, &budget),
        Command::Usage(usage) => usage::run(global, &usage),
        Command::Audit(audit) => audit::run(global, &audit),
        Command::Top(what) => top::run(global, &what),
        Command::Env(env) => env::run(global, &env),
        Command::Ca(ca) => ca::run(global, ca),
        Command::Settings(settings) => settings::run(global, &settings),
        Command::Completions { shell } => manual::completions(shell),
        Command::Man { dir } => manual::pages(&dir),
        Command::LaneSockets { port } => {
            sockets::hand_over(port).map_err(|error| Failure::io("the refusal lane's sockets", &error))
        }
        Command::ProbeSender(order) => sender::run(&order).map_err(|error| Failure::io("the sender", &error)),
    }?;
    Ok(ExitCode::SUCCESS)
}

/// The control socket of the daemon that is meant.
fn socket(global: &Global) -> PathBuf {
    global.socket.clone().unwrap_or_else(|| control_socket(global.state_dir.as_deref()))
}

/// A client of the daemon that is meant.
fn connect(global: &Global) -> Result<Blocking, Failure> {
    Blocking::new(Client::new(socket(global))).map_err(|error| Failure::io("a runtime for requests", &error))
}

/// The attach request of `run` and `attach`, but for what is attached.
fn attach_request(name: &str, guarding: &Guarding) -> Result<api::Attach, Failure> {
    Ok(api::Attach {
        name: name.to_owned(),
        agent: guarding.agent.clone(),
        parent: guarding.parent.clone(),
        budget: tokens_by_provider("--budget", &guarding.budget)?,
        policy: guarding.policy.map(|policy| crate::settings::Policy::from(policy).as_str().to_owned()),
        egress: guarding.egress.map(|egress| crate::settings::Egress::from(egress).as_str().to_owned()),
        ..api::Attach::default()
    })
}

fn tokens_by_provider(
    option: &str,
    list: &[(String, u64)],
) -> Result<std::collections::BTreeMap<String, u64>, Failure> {
    by_provider(list).map_err(|what| Failure::new(Exit::Usage, format!("{option}: {what}")))
}
