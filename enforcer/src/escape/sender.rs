//! The process inside the bottle: makes one attempt and says what the kernel answered.
//!
//! It is this program itself, started with the hidden command `probe-sender`. It joins the bottle's cgroup, says that
//! it is ready, waits for a line on stdin, tries, says how it went, and ends. Outside of a network of the self-test it
//! sends nothing.
use std::fs;
use std::io::{self, BufRead as _, ErrorKind, Write as _};
use std::path::{Path, PathBuf};

use clap::Args;
use nix::sched::{CloneFlags, unshare};
use serde::{Deserialize, Serialize};

use super::attempts::{ATTEMPTS, Attempt, Stand, Target, old_socket};
use super::{Family, network};

/// The cgroup that [`Stand::Below`] makes.
const BELOW: &str = "below";

/// `probe-sender`.
#[derive(Debug, Args)]
pub struct Order {
    /// The attempt's name
    #[arg(long)]
    pub attempt: String,
    /// In which family
    #[arg(long, value_enum)]
    pub family: Family,
    /// The bottle's cgroup
    #[arg(long)]
    pub cgroup: PathBuf,
    /// The meter's port on loopback
    #[arg(long)]
    pub meter_port: u16,
}

/// What the sender says, one JSON line each.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Word {
    /// The kernel does not have it; the end.
    Missing(String),
    /// In place.
    Ready,
    /// The kernel granted every call; the end.
    Granted,
    /// The kernel refused; the end.
    Refused(String),
}

/// Carries an order out.
///
/// # Errors
/// When it is no order, or the sender cannot get into place.
pub fn run(order: &Order) -> io::Result<()> {
    let attempt = find(&order.attempt)?;
    if let Err(error) = (attempt.offered)(order.family) {
        return say(&Word::Missing(error.to_string()));
    }
    let target = stand(attempt, order)?;
    say(&Word::Ready)?;
    io::stdin().lock().read_line(&mut String::new())?;
    network::check()?;
    say(&match (attempt.act)(&target) {
        Ok(()) => Word::Granted,
        Err(error) => Word::Refused(error.to_string()),
    })
}

fn find(name: &str) -> io::Result<&'static Attempt> {
    ATTEMPTS.iter().find(|attempt| attempt.name == name).ok_or_else(|| ErrorKind::InvalidInput.into())
}

/// Goes where the attempt is made from.
fn stand(attempt: &Attempt, order: &Order) -> io::Result<Target> {
    let old_socket = (attempt.stand == Stand::WithOldSocket).then(|| old_socket(order.family)).transpose()?;
    join(&order.cgroup)?;
    match attempt.stand {
        Stand::Bottle | Stand::WithOldSocket => {}
        Stand::OwnNetwork => unshare(CloneFlags::CLONE_NEWNET)?,
        Stand::Below => {
            let below = order.cgroup.join(BELOW);
            match fs::create_dir(&below) {
                // of an earlier attempt
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                made => made?,
            }
            join(&below)?;
        }
    }
    Ok(Target { family: order.family, old_socket, meter_port: order.meter_port })
}

fn join(cgroup: &Path) -> io::Result<()> {
    fs::write(cgroup.join("cgroup.procs"), "0")
}

fn say(word: &Word) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{}", serde_json::to_string(word)?)?;
    out.flush()
}
