//! `run`: makes a bottle, launches a command in it, waits, and takes the bottle away again.
use std::ffi::OsString;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use nix::unistd::Gid;

use super::output::say;
use crate::bottle::launch::{Launch, Signals, User};
use crate::cli::{Global, Run};
use crate::control::api::{self, Bottle};
use crate::control::client::Blocking;
use crate::error::{Exit, Failure};
use crate::settings::{Egress, check_name};

/// How long processes that the command left behind are given to end by themselves.
const LEFTOVERS_TIMEOUT: Duration = Duration::from_secs(1);
/// Pause between two looks at them.
const LEFTOVERS_POLL: Duration = Duration::from_millis(50);
/// Most names tried when none is given.
const NAME_TRIES: u32 = 10_000;

pub(super) fn run(global: &Global, run: &Run) -> Result<ExitCode, Failure> {
    let request = super::attach_request(run.name.as_deref().unwrap_or_default(), &run.guarding)?;
    if !nix::unistd::geteuid().is_root() {
        return Err(Failure::new(Exit::Refused, "run needs root: it makes a cgroup and joins it")
            .hint("sudo enforcer run …; the command itself runs as you"));
    }
    let user = User::choose(run.user.as_deref())?;
    let control = super::connect(global)?;
    super::start::ensure_daemon(global, &control)?;
    let user = user.without_group(control_group(control.client().socket())?)?;
    if user.uid.is_root() {
        say("the command runs as root, which can lift its own cut; name a user with --user");
    }
    let signals = Signals::hold().map_err(|error| Failure::io("hold signals back", &error))?;
    let bottle = attach(&control, run, request)?;
    let code = launch(&control, run, &user, &bottle, &signals);
    // the command's end is the answer; a bottle that stays is said, not returned
    if let Err(failure) = finish(&control, &bottle.name) {
        failure.print();
    }
    Ok(ExitCode::from(code?))
}

/// The group that may use the control socket.
fn control_group(socket: &Path) -> Result<Gid, Failure> {
    let found = std::fs::symlink_metadata(socket).map_err(|error| Failure::io(socket.display(), &error))?;
    Ok(Gid::from_raw(found.gid()))
}

/// Attaches a new bottle; without `--name` under the first name that is free.
fn attach(control: &Blocking, run: &Run, mut request: api::Attach) -> Result<Bottle, Failure> {
    request.create = true;
    if run.name.is_none() {
        request.name = free_name(control, &run.command, "")?;
    }
    loop {
        let attached = match control.wait(control.client().attach(&request)) {
            Ok(attached) => attached,
            Err(error) if run.name.is_some() => return Err(error.into()),
            // another `run` may have taken the name meanwhile; anything else is the answer
            Err(error) => match free_name(control, &run.command, &request.name)? {
                next if next == request.name => return Err(error.into()),
                next => {
                    request.name = next;
                    continue;
                }
            },
        };
        attached.warnings.iter().for_each(|warning| say(warning));
        return Ok(attached.bottle);
    }
}

/// The command's name with the first number that no bottle has; `kept` if that one is still free.
fn free_name(control: &Blocking, command: &[OsString], kept: &str) -> Result<String, Failure> {
    let bottles = control.wait(control.client().status())?.bottles;
    let is_free = |name: &String| bottles.iter().all(|bottle| bottle.name != *name);
    if !kept.is_empty() && is_free(&kept.to_owned()) {
        return Ok(kept.to_owned());
    }
    let stem = stem(command);
    (1..=NAME_TRIES).map(|number| format!("{stem}-{number}")).find(is_free).ok_or_else(|| {
        Failure::new(Exit::Failed, format!("no free name like {stem}-1")).hint("give one with --name")
    })
}

/// What of the command's file name may stand in a bottle's name; `run` when nothing may.
fn stem(command: &[OsString]) -> String {
    let program = command.first().map(Path::new).and_then(Path::file_name).unwrap_or_default();
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let stem: String = program.to_string_lossy().chars().filter(|&c| allowed(c)).take(40).collect();
    if check_name(&stem).is_ok() { stem } else { "run".to_owned() }
}

/// Runs the command in the bottle to its end; its exit code.
fn launch(
    control: &Blocking,
    run: &Run,
    user: &User,
    bottle: &Bottle,
    signals: &Signals,
) -> Result<u8, Failure> {
    let variables = if run.no_env {
        Vec::new()
    } else {
        control.wait(control.client().environment(&bottle.name))?.variables
    };
    let launch = Launch {
        command: &run.command,
        user,
        workdir: run.workdir.as_deref(),
        variables: &variables,
        cgroup: Path::new(&bottle.cgroup),
        confined: Egress::from_word(&bottle.egress) != Some(Egress::Open),
    };
    let running = launch.start(signals)?;
    running.wait().map_err(|error| Failure::io("wait for the command", &error))
}

/// Takes the bottle away, unless something still runs in it: that stays guarded.
fn finish(control: &Blocking, name: &str) -> Result<(), Failure> {
    let deadline = Instant::now() + LEFTOVERS_TIMEOUT;
    loop {
        let left = control.wait(control.client().bottle(name))?.pids;
        if left == 0 {
            return Ok(control.wait(control.client().detach(name, true)).map(drop)?);
        }
        if Instant::now() > deadline {
            let who = if left == 1 {
                "1 process still runs".to_owned()
            } else {
                format!("{left} processes still run")
            };
            say(&format!("{who} in bottle {name}; it stays attached (enforcer detach {name} --force)"));
            return Ok(());
        }
        std::thread::sleep(LEFTOVERS_POLL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_comes_from_the_command() {
        for (command, expected) in [
            ("/usr/bin/claude", "claude"),
            ("./my agent!", "myagent"),
            ("…", "run"),
            ("-x", "run"),
            ("/", "run"),
        ] {
            assert_eq!(stem(&[command.into()]), expected);
        }
        assert_eq!(stem(&["x".repeat(300).into()]).len(), 40);
    }
}
