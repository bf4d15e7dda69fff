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

#[cfg(test)]
mod tests {
    use super::far_end::Heard;
    use super::*;

    const SILENCE: Heard = Heard { at_meter: 0, elsewhere: 0, bytes: 0 };
    const AT_METER: Heard = Heard { at_meter: 3, ..SILENCE };
    const ASTRAY: Heard = Heard { at_meter: 3, elsewhere: 1, bytes: 40 };

    fn verdict(name: &str, state: State, word: Word, heard: Heard) -> Escape {
        let attempt = ATTEMPTS.iter().find(|attempt| attempt.name == name).unwrap();
        judge(attempt, attempt.families[0], state, &Outcome { word, heard })
    }

    fn refused() -> Word {
        Word::Refused("EPERM".to_owned())
    }

    #[test]
    fn what_arrives_beside_the_meter_got_out_whatever_the_sender_says() {
        for state in [State::Open, State::Metered, State::Cut] {
            for word in [Word::Granted, refused()] {
                let escape = verdict("QUIC", state, word, ASTRAY);
                assert!(escape.is_broken_promise() && escape.tried, "{escape:?}");
            }
            let silent = verdict("QUIC", state, Word::Granted, SILENCE);
            assert!(silent.closed && silent.detail == "nothing arrived", "{silent:?}");
            assert_eq!(verdict("QUIC", state, refused(), SILENCE).detail, "refused: EPERM");
        }
    }

    #[test]
    fn the_meter_may_hear_of_all_but_a_cut_bottle() {
        for state in [State::Open, State::Metered] {
            let escape = verdict("TCP :443", state, refused(), AT_METER);
            assert!(escape.closed && escape.detail == "sent to the meter", "{escape:?}");
        }
        assert!(verdict("TCP :443", State::Cut, refused(), AT_METER).is_broken_promise());
    }

    #[test]
    fn what_no_far_end_can_hear_is_open_when_it_is_granted() {
        let port = "taking the meter's port";
        assert!(verdict(port, State::Cut, Word::Granted, SILENCE).is_broken_promise());
        assert!(verdict(port, State::Cut, refused(), SILENCE).closed);
    }

    #[test]
    fn what_hooks_cannot_see_is_open_and_says_what_closes_it() {
        let frame = verdict("TCP :443 in a frame", State::Cut, Word::Granted, ASTRAY);
        assert!(!frame.closed && !frame.is_broken_promise());
        assert!(frame.detail.ends_with("closed by the filter of `enforcer run`"), "{frame:?}");
        let held = verdict("TCP :443 in a frame", State::Cut, refused(), SILENCE);
        assert!(held.closed && !held.detail.contains("closed by"), "{held:?}");
    }

    #[test]
    fn what_the_kernel_has_not_is_not_applicable() {
        let missing = verdict("SCTP", State::Cut, Word::Missing("not loaded".to_owned()), SILENCE);
        assert!(missing.closed && !missing.tried);
        assert_eq!(missing.detail, "not applicable: not loaded");
    }

    #[test]
    fn every_attempt_has_a_name_of_its_own_and_a_family() {
        for (at, attempt) in ATTEMPTS.iter().enumerate() {
            assert!(!attempt.name.is_empty() && !attempt.families.is_empty());
            assert!(ATTEMPTS[..at].iter().all(|other| other.name != attempt.name), "{}", attempt.name);
        }
        let names = Family::value_variants().iter().map(|family| family.to_possible_value().unwrap());
        assert!(names.zip(Family::value_variants()).all(|(value, family)| value.get_name() == family.name()));
    }
}
