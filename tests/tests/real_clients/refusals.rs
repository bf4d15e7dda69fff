//! How often a gate has said no, by the audit, which has one row for all refusals of a span and tells with a later one
//! how many it left out.
use std::process::Command;
use std::time::Duration;

use support::clock::wait_until;
use support::process;
use support::stage::Bottle;

use crate::client::Client;
use crate::scene::{ANSWERED, Scene};

/// Longer than the span in which a bottle has one row.
pub const SPAN: Duration = Duration::from_secs(11);
/// How rows begin that are the kernel's: of what is dropped where a bottle is cut.
const DROPPED: &str = "a packet ";
const WRITTEN: Duration = Duration::from_secs(5);

/// Refusals of a bottle up to now, of which the last is a [`SPAN`] ago: it asks once more, and hears no.
pub fn of(scene: &Scene, client: Client, bottle: &Bottle) -> u64 {
    told_by(scene, &bottle.name, || {
        let next = scene.stage.ask(bottle, &["--provider", client.provider()]);
        let why = next.one().error.as_deref().unwrap_or_default();
        assert!(why.contains(" has used "), "{next:?}");
    })
}

/// The same of the host, told what this bottle is.
pub fn of_host(scene: &Scene, client: Client, told: &Bottle) -> u64 {
    told_by(scene, "host", || {
        let mut next = Command::new(process::built("demo-agent"));
        next.args(["--provider", client.provider()]).envs(scene.stage.daemon.environment(&told.name));
        let next = process::run(&mut next, ANSWERED);
        assert!(next.code != Some(0) && format!("{next:?}").contains(" has used "), "{next:?}");
    })
}

/// What the audit tells once `again` has been refused once more, but for that.
fn told_by(scene: &Scene, bottle: &str, again: impl FnOnce()) -> u64 {
    let rows = || {
        let rows = scene.stage.audit(bottle, "refuse").into_iter();
        let details = rows.map(|row| row["detail"].as_str().unwrap().to_owned());
        details.filter(|detail| !detail.starts_with(DROPPED)).collect::<Vec<_>>()
    };
    let before = rows().len();
    again();
    let rows = wait_until(WRITTEN, || Some(rows()).filter(|rows| rows.len() > before));
    let rows = rows.unwrap_or_else(|| panic!("the audit has no row of {bottle}'s last refusal"));
    rows.iter().map(|detail| stood_for(detail)).sum::<u64>() - 1
}

/// The refusals that a row stands for: its own, if it is of one, and those that were left out before it.
fn stood_for(detail: &str) -> u64 {
    let Some((before, _)) = detail.split_once(" more refusals") else { return 1 };
    match before.rsplit_once('(') {
        Some((_, left_out)) => 1 + left_out.parse::<u64>().unwrap(),
        None => before.parse().unwrap(),
    }
}
