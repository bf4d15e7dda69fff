//! The self-test of `doctor`: tries to get out of a bottle in every way there is, and says by which it got out.
//!
//! On a throwaway bottle in a network of its own, with the real programs: `stage` sets it up, `attempts` lists the
//! ways, `sender` makes them from inside, `far_end` counts what arrives, and this file judges. No bottle of the
//! host, no daemon and no other network is touched.
pub mod attempts;
pub mod far_end;
pub mod network;
pub mod packets;
pub mod sender;
pub mod stage;

use std::path::Path;

use clap::ValueEnum;
use serde::Serialize;

use self::attempts::{ATTEMPTS, Attempt, Evidence};
use self::sender::Word;
use self::stage::{Outcome, Stage, StageError};

/// In which family of addresses an attempt is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs, reason = "the families' own names")]
pub enum Family {
    Ip4,
    Ip6,
    /// IPv4 by an IPv6 socket.
    Mapped,
    Packet,
    Vsock,
    Xdp,
}

impl Family {
    /// As on the command line and in JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Ip4 => "ip4",
            Self::Ip6 => "ip6",
            Self::Mapped => "mapped",
            Self::Packet => "packet",
            Self::Vsock => "vsock",
            Self::Xdp => "xdp",
        }
    }
}

/// What the bottle is while an attempt is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Egress mode `open`: what is metered goes to the meter, all else passes.
    Open,
    /// Egress mode `metered`: nothing passes but to the meter.
    Metered,
    /// Cut: nothing passes.
    Cut,
}

impl State {
    /// As in JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Metered => "metered",
            Self::Cut => "cut",
        }
    }
}

/// One line of the table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Escape {
    /// The way out.
    pub attempt: &'static str,
    /// Its family.
    pub family: Family,
    /// What the bottle was.
    pub bottle: State,
    /// Whether nothing got out.
    pub closed: bool,
    /// Whether the kernel has this way at all. One that it has not is closed.
    pub tried: bool,
    /// Whether the hooks on a cgroup promise to close it. The others need what `detail` names.
    pub promised: bool,
    /// What happened.
    pub detail: String,
}

impl Escape {
    /// Whether something got out that must not.
    #[must_use]
    pub fn is_broken_promise(&self) -> bool {
        self.promised && !self.closed
    }
}

/// Tries every way out of an open, of a locked and of a cut bottle. `program` is this program.
///
/// # Errors
/// When it could not be tried: that says nothing of what is closed.
pub fn self_test(program: &Path) -> Result<Vec<Escape>, StageError> {
    stage::in_own_network(|| {
        let stage = Stage::set(program)?;
        stage.guard()?;
        let mut escapes = Vec::new();
        for state in [State::Open, State::Metered, State::Cut] {
            stage.put(state);
            for (attempt, family) in due(state) {
                let outcome = stage.attempt(attempt, family)?;
                escapes.push(judge(attempt, family, state, &outcome));
            }
        }
        Ok(escapes)
    })
}

/// What a bottle in this state must not get out by.
fn due(state: State) -> impl Iterator<Item = (&'static Attempt, Family)> {
    let due = ATTEMPTS.iter().filter(move |attempt| attempt.is_metered || state != State::Open);
    due.flat_map(|attempt| attempt.families.iter().map(move |&family| (attempt, family)))
}

/// Says of an outcome whether something got out. Nothing but the meter may hear of an open bottle's attempts, since
/// all of them aim at what is metered, nor of a locked one's; nobody at all may hear of a cut one's.
fn judge(attempt: &Attempt, family: Family, state: State, outcome: &Outcome) -> Escape {
    let Outcome { word, heard } = outcome;
    let astray = if state == State::Cut { heard.elsewhere + heard.at_meter } else { heard.elsewhere };
    let granted = attempt.evidence == Evidence::Grant && *word == Word::Granted;
    let closed = astray == 0 && !granted;
    let detail = match word {
        Word::Missing(why) => format!("not applicable: {why}"),
        _ if granted => "it is granted".to_owned(),
        _ if !closed => format!("packets got out: {astray}, bytes beside the meter: {}", heard.bytes),
        Word::Refused(why) if heard.at_meter == 0 => format!("refused: {why}"),
        _ if heard.at_meter > 0 => "sent to the meter".to_owned(),
        _ => "nothing arrived".to_owned(),
    };
    let detail = match attempt.closed_by {
        Some(what) if !closed => format!("{detail}; closed by {what}"),
        _ => detail,
    };
    let (tried, promised) = (!matches!(word, Word::Missing(_)), attempt.closed_by.is_none());
    Escape { attempt: attempt.name, family, bottle: state, closed, tried, promised, detail }
}
