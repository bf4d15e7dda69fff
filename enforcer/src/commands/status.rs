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
    if status.json.json {
        return print_json(&bottle);
    }
    print(&(bottles(std::slice::from_ref(&bottle)) + &chains(&bottle)))
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
    const HEADING: [&str; 12] = [
        "BOTTLE", "STATE", "EGRESS", "PIDS", "PROVIDER", "USED", "LIMIT", "LEFT", "SCOPE", "WINDOW",
        "PASSED", "DROPPED",
    ];
    let mut table = Table::new(&HEADING, [3, 5, 6, 7, 10, 11]);
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

fn row(bottle: &api::Bottle, provider: Option<&str>) -> [String; 12] {
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
        or_dash(budget.map(|budget| budget.window.as_str())),
        short(bottle.kernel.passed_packets),
        short(bottle.kernel.dropped_packets),
    ]
}

/// Every scope of each provider's chain, nearest first, and why the budget governs that does.
fn chains(bottle: &api::Bottle) -> String {
    const HEADING: [&str; 9] =
        ["PROVIDER", "SCOPE", "WINDOW", "LIMIT", "USED", "RESERVED", "LEFT", "UNTIL", "BINDS"];
    let mut table = Table::new(&HEADING, [3, 4, 5, 6]);
    for (provider, chain) in &bottle.chain {
        for link in chain {
            table.row(&[
                provider.clone(),
                format!("{}:{}", link.scope, link.owner),
                or_dash(link.window.as_deref()),
                or_dash(link.limit.map(short).as_deref()),
                short(link.used),
                short(link.reserved),
                or_dash(link.remaining.map(short).as_deref()),
                or_dash(link.until.as_deref()),
                or_dash(link.binds.then_some("yes")),
            ]);
        }
    }
    let why = bottle.budget.iter().map(|(provider, budget)| {
        format!(
            "{}: {}:{}: {}\n",
            scrub(provider),
            scrub(&budget.scope),
            scrub(&budget.owner),
            scrub(&budget.why)
        )
    });
    format!("\n{}{}", table.render(), why.collect::<String>())
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
            why: "the nearest budget governs".into(),
            ..api::Budget::default()
        };
        let chain = vec![
            api::Link {
                scope: "launch".into(),
                owner: "b1".into(),
                window: Some("total".into()),
                limit: Some(200_000),
                used: 201_500,
                remaining: Some(0),
                binds: true,
                ..api::Link::default()
            },
            api::Link { scope: "bottle".into(), owner: "b1".into(), used: 201_500, ..api::Link::default() },
            api::Link {
                scope: "global".into(),
                owner: "global".into(),
                window: Some("daily".into()),
                limit: Some(5_000_000),
                used: 1_000_000,
                remaining: Some(4_000_000),
                until: Some("2026-02-01T00:00:00.000Z".into()),
                ..api::Link::default()
            },
        ];
        let cause = Cause {
            kind: CauseKind::Budget,
            provider: Some("claude".into()),
            scope: Some("launch".into()),
            owner: Some("b1".into()),
            limit: Some(200_000),
            used: Some(201_500),
            window: Some("total".into()),
            rule: Some("nearest".into()),
            flow: Some(7),
            at: "2026-01-31T12:00:00.000Z".into(),
            by: "controller".into(),
            reason: None,
            held: false,
            freeze: None,
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
            chain: BTreeMap::from([("claude".into(), chain)]),
            kernel: api::Packets { passed_packets: 10, dropped_packets: 2, ..api::Packets::default() },
        }
    }

    #[test]
    fn a_table_shows_budgets_usage_and_the_cause() {
        insta::assert_snapshot!(bottles(&[bottle()]), @r#"
        BOTTLE  STATE  EGRESS  PIDS  PROVIDER  USED  LIMIT  LEFT  SCOPE      WINDOW  PASSED  DROPPED
        b1      cut    open       3  claude    201k   200k     0  launch:b1  total       10        2
        b1      cut    open       3  codex        5      -     -  -          -           10        2
        b1: 201500 of 200000 claude tokens used (budget of scope launch, owner b1, window total, scope rule nearest), exchange 7, 2026-01-31T12:00:00.000Z
        "#);
    }

    #[test]
    fn a_bottle_s_chain_shows_every_scope_and_which_binds() {
        insta::assert_snapshot!(chains(&bottle()), @r#"

        PROVIDER  SCOPE          WINDOW  LIMIT  USED  RESERVED  LEFT  UNTIL                     BINDS
        claude    launch:b1      total    200k  201k         0     0  -                         yes
        claude    bottle:b1      -           -  201k         0     -  -                         -
        claude    global:global  daily      5M    1M         0    4M  2026-02-01T00:00:00.000Z  -
        claude: launch:b1: the nearest budget governs
        "#);
    }
}
