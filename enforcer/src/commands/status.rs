//! `status`: the daemon and its bottles.
use super::output::{Table, or_dash, print, print_json};
use crate::cli::{Global, Status};
use crate::control::api;
use crate::error::Failure;
use crate::text::{scrub, short};

pub(super) fn run(global: &Global, status: &Status) -> Result<(), Failure> {
    let control = super::connect(global)?;
    let Some(name) = &status.name else {
        let found = control.wait(control.client().status())?;
        return if status.json.json { print_json(&found) } else { print(&page(&found)) };
    };
    let bottle = control.wait(control.client().bottle(name))?;
    if status.json.json { print_json(&bottle) } else { print(&bottles(std::slice::from_ref(&bottle))) }
}

fn page(status: &api::Status) -> String {
    let daemon = &status.daemon;
    let mut page = format!(
        "daemon {} (pid {}), meter {} on {}, lane {}, programs {}\n",
        scrub(&daemon.version),
        daemon.pid,
        scrub(&daemon.meter.state),
        scrub(&daemon.meter.listen),
        scrub(&daemon.lane.state),
        scrub(&daemon.kernel.programs),
    );
    if let Some(why) = &daemon.closed {
        page.push_str(&format!("requests are refused: {}\n", scrub(why)));
    }
    if status.bottles.is_empty() {
        page.push_str("no bottles\n");
    } else {
        page.push_str(&bottles(&status.bottles));
    }
    page
}

/// A table with one row for each bottle and provider, and a line for each cause.
fn bottles(bottles: &[api::Bottle]) -> String {
    const HEADING: [&str; 11] = [
        "BOTTLE", "STATE", "EGRESS", "PIDS", "PROVIDER", "USED", "LIMIT", "LEFT", "SCOPE", "PASSED",
        "DROPPED",
    ];
    let mut table = Table::new(&HEADING, [3, 5, 6, 7, 9, 10]);
    for bottle in bottles {
        let mut providers: Vec<&String> = bottle.budget.keys().chain(bottle.usage.keys()).collect();
        providers.sort_unstable();
        providers.dedup();
        if providers.is_empty() {
            table.row(&row(bottle, None));
        }
        for provider in providers {
            table.row(&row(bottle, Some(provider)));
        }
    }
    let causes = bottles.iter().filter_map(|bottle| {
        let cause = bottle.cause.as_ref()?;
        Some(format!("{}: {}, {}\n", scrub(&bottle.name), scrub(&cause.to_string()), scrub(&cause.at)))
    });
    table.render() + &causes.collect::<String>()
}

fn row(bottle: &api::Bottle, provider: Option<&str>) -> [String; 11] {
    let budget = provider.and_then(|provider| bottle.budget.get(provider));
    let own = provider.and_then(|provider| bottle.usage.get(provider)).map_or(0, |usage| usage.total);
    let of_budget = |figure: fn(&api::Budget) -> u64| or_dash(budget.map(figure).map(short).as_deref());
    [
        bottle.name.clone(),
        bottle.state.as_str().to_owned(),
        bottle.egress.clone(),
        bottle.pids.to_string(),
        or_dash(provider),
        provider.map_or_else(|| or_dash(None), |_| short(budget.map_or(own, |budget| budget.used))),
        of_budget(|budget| budget.limit),
        of_budget(|budget| budget.remaining),
        or_dash(budget.map(|budget| format!("{}:{}", budget.scope, budget.owner)).as_deref()),
        short(bottle.kernel.passed_packets),
        short(bottle.kernel.dropped_packets),
    ]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::audit::{Cause, CauseKind};

    fn bottle() -> api::Bottle {
        let budget = api::Budget {
            scope: "launch".into(),
            owner: "b1".into(),
            window: "total".into(),
            limit: 200_000,
            used: 201_500,
            reserved: 0,
            remaining: 0,
        };
        let cause = Cause {
            kind: CauseKind::Budget,
            provider: Some("claude".into()),
            scope: Some("launch".into()),
            owner: Some("b1".into()),
            limit: Some(200_000),
            used: Some(201_500),
            flow: Some(7),
            at: "2026-01-31T12:00:00.000Z".into(),
            by: "controller".into(),
            reason: None,
            face: crate::kernel::Face::Silent,
            policy: crate::settings::Policy::Cutoff,
            processes: crate::audit::Processes::Running,
        };
        api::Bottle {
            name: "b1".into(),
            agent: None,
            parent: None,
            cgroup: "/c".into(),
            pids: 3,
            state: api::State::Cut,
            face: Some(crate::kernel::Face::Silent),
            cause: Some(cause),
            policy: "cutoff".into(),
            egress: "open".into(),
            usage: BTreeMap::from([("codex".into(), api::Usage { total: 5, ..api::Usage::default() })]),
            budget: BTreeMap::from([("claude".into(), budget)]),
            kernel: api::Packets { passed_packets: 10, dropped_packets: 2, ..api::Packets::default() },
        }
    }

    #[test]
    fn a_table_shows_budgets_usage_and_the_cause() {
        insta::assert_snapshot!(bottles(&[bottle()]), @r#"
        BOTTLE  STATE  EGRESS  PIDS  PROVIDER  USED  LIMIT  LEFT  SCOPE      PASSED  DROPPED
        b1      cut    open       3  claude    201k   200k     0  launch:b1      10        2
        b1      cut    open       3  codex        5      -     -  -              10        2
        b1: 201500 of 200000 claude tokens used (budget of scope launch, owner b1), exchange 7, 2026-01-31T12:00:00.000Z
        "#);
    }
}
