//! Budgets by tables that can be checked by eye, and by properties.
use proptest::prelude::*;

use super::weights::Weight;
use super::*;

fn hour(text: &str) -> Hour {
    text.parse().unwrap()
}

fn output(output: u64) -> Tokens {
    Tokens { output, ..Tokens::default() }
}

fn accounts(rule: ScopeRule) -> Accounts {
    Accounts::new(rule, Weights::default(), hour("2026-01-31T12"))
}

/// A chain of four scopes and the launch, for a provider.
fn chain(accounts: &mut Accounts, provider: &str) -> Path {
    vec![
        (Scope::Launch, accounts.id(&Owner::Launch(1), provider)),
        (Scope::Agent, accounts.id(&Owner::Agent("implementer".into()), provider)),
        (Scope::Bottle, accounts.id(&Owner::Bottle("b".into()), provider)),
        (Scope::Parent, accounts.id(&Owner::Bottle("base".into()), provider)),
        (Scope::Global, accounts.id(&Owner::Global, provider)),
    ]
}

fn total(tokens: u64) -> Option<Budget> {
    Some(Budget { tokens, window: Window::Total })
}

/// A cell `used/limit`; `-` where no budget is defined.
fn define(accounts: &mut Accounts, id: AccountId, cell: &str) {
    if let Some((used, limit)) = cell.split_once('/') {
        accounts.charge(id, &output(used.parse().unwrap()));
        accounts.define(id, total(limit.parse().unwrap()));
    }
}

/// `open` by a scope that governs, `wait` or `cut` by the scope that stands in the way, or `free`.
fn verdict(accounts: &Accounts, path: &Path) -> String {
    match (accounts.judge(path), accounts.governing(path)) {
        (Judgement::Grant, None) => "free".into(),
        (Judgement::Grant, Some(governing)) => format!("open:{}", governing.scope.as_str()),
        (Judgement::Wait(scope, _), _) => format!("wait:{}", scope.as_str()),
        (Judgement::Refuse(scope, _), _) => format!("cut:{}", scope.as_str()),
    }
}

const RULES: [ScopeRule; 3] = [ScopeRule::Nearest, ScopeRule::Ceiling, ScopeRule::Strictest];

#[test]
fn which_budget_of_a_chain_governs_by_each_rule() {
    for line in "
        launch  agent   bottle  parent  global     nearest      ceiling      strictest
        -       -       -       -       -          free         free         free
        -       -       -       -       40/100     open:global  open:global  open:global
        -       -       -       -       100/100    cut:global   cut:global   cut:global
        -       -       -       10/50   40/100     open:parent  open:parent  open:parent
        -       -       -       10/50   90/100     open:parent  open:global  open:global
        -       -       -       50/50   90/100     cut:parent   cut:parent   cut:parent
        -       -       -       10/50   100/100    open:parent  cut:global   cut:global
        -       -       10/20   10/15   40/100     open:bottle  open:bottle  open:parent
        -       -       10/20   15/15   40/100     open:bottle  open:bottle  cut:parent
        -       -       20/20   15/15   40/100     cut:bottle   cut:bottle   cut:bottle
        -       5/9     10/10   10/15   40/100     open:agent   open:agent   cut:bottle
        -       5/500   10/20   10/15   40/100     open:agent   open:global  open:parent
        -       5/500   10/20   10/15   100/100    open:agent   cut:global   cut:global
        5/6     5/5     10/10   15/15   100/100    open:launch  cut:global   cut:agent
        6/6     5/9     10/20   10/15   40/100     cut:launch   cut:launch   cut:launch
        9/6     5/9     10/20   10/15   99/100     cut:launch   cut:launch   cut:launch
        0/0     -       -       -       -          cut:launch   cut:launch   cut:launch
    "
    .lines()
    .skip(2)
    {
        let cells: Vec<&str> = line.split_whitespace().collect();
        for (rule, expected) in RULES.into_iter().zip(cells.iter().skip(5)) {
            let mut accounts = accounts(rule);
            let path = chain(&mut accounts, "claude");
            path.iter().zip(&cells).for_each(|((_, id), cell)| define(&mut accounts, *id, cell));
            assert_eq!(verdict(&accounts, &path), *expected, "{rule:?}: {line}");
        }
    }
}

#[test]
fn a_provider_s_budgets_are_its_own() {
    for line in "
        bottle/claude  global/claude  bottle/codex  global/codex     claude       codex
        -              100/100        -             40/100           cut:global   open:global
        5/10           100/100        -             -                open:bottle  free
        10/10          40/100         5/10          100/100          cut:bottle   open:bottle
        -              -              10/10         40/100           free         cut:bottle
    "
    .lines()
    .skip(2)
    {
        let Ok(cells) = <[&str; 6]>::try_from(line.split_whitespace().collect::<Vec<_>>()) else { continue };
        let mut accounts = accounts(ScopeRule::Nearest);
        let (claude, codex) = (chain(&mut accounts, "claude"), chain(&mut accounts, "codex"));
        let ids = [claude[2].1, claude[4].1, codex[2].1, codex[4].1];
        ids.iter().zip(cells).for_each(|(id, cell)| define(&mut accounts, *id, cell));
        assert_eq!([verdict(&accounts, &claude), verdict(&accounts, &codex)], [cells[4], cells[5]], "{line}");
    }
}

/// Ten tokens were settled in each of these hours.
const SETTLED: [&str; 7] = [
    "2025-12-31T23",
    "2026-01-01T00",
    "2026-01-25T23", // a Sunday
    "2026-01-26T00", // the Monday after
    "2026-01-31T00",
    "2026-01-31T11",
    "2026-01-31T12",
];

#[test]
fn each_window_counts_what_was_settled_in_it() {
    for line in "
        at             total  hourly  daily  weekly  monthly
        2026-01-31T12  70     10      30     40      60
        2026-01-31T13  70     0       30     40      60
        2026-02-01T00  70     0       0      40      0
        2026-02-02T00  70     0       0      0       0
        2027-01-01T00  70     0       0      0       0
    "
    .lines()
    .skip(2)
    {
        let cells: Vec<&str> = line.split_whitespace().collect();
        let Some((at, expected)) = cells.split_first() else { continue };
        let mut live = Accounts::new(ScopeRule::Nearest, Weights::default(), hour(SETTLED[0]));
        let mut loaded = Accounts::new(ScopeRule::Nearest, Weights::default(), hour(at));
        let id = live.id(&Owner::Global, "claude");
        assert_eq!(loaded.id(&Owner::Global, "claude"), id);
        for settled in SETTLED {
            live.roll(hour(settled));
            live.charge(id, &output(10));
            loaded.load_total(id, &output(10));
            loaded.load_hour(id, &output(10), hour(settled));
        }
        live.roll(hour(at));
        for (window, expected) in Window::ALL.into_iter().zip(expected) {
            for accounts in [&mut live, &mut loaded] {
                accounts.define(id, Some(Budget { tokens: 100, window }));
                assert_eq!(accounts.figures(id).used.to_string(), *expected, "{} {line}", window.as_str());
            }
        }
    }
}

/// limit, settled, others' reservations -> what the gate does
#[test]
fn the_gate_grants_waits_and_refuses() {
    for (limit, settled, reserved, expected) in [
        (100, 0, 0, "open:bottle"),
        (100, 99, 0, "open:bottle"),
        (100, 100, 0, "cut:bottle"),
        (100, 101, 0, "cut:bottle"),
        (100, 50, 49, "open:bottle"),
        (100, 50, 50, "wait:bottle"),
        (100, 0, 5_000, "wait:bottle"),
        (0, 0, 0, "cut:bottle"),
        (i64::MAX.unsigned_abs(), i64::MAX.unsigned_abs() - 1, 0, "open:bottle"),
        (i64::MAX.unsigned_abs(), i64::MAX.unsigned_abs() - 1, u64::MAX, "wait:bottle"),
        (i64::MAX.unsigned_abs(), u64::MAX, 0, "cut:bottle"),
    ] {
        let mut accounts = accounts(ScopeRule::Nearest);
        let path = chain(&mut accounts, "claude");
        accounts.define(path[2].1, total(limit));
        accounts.charge(path[2].1, &output(settled));
        accounts.reserve(&path, reserved);
        assert_eq!(
            verdict(&accounts, &path),
            expected,
            "limit {limit}, settled {settled}, reserved {reserved}"
        );
    }
}

#[test]
fn what_operators_say_stands_over_what_is_defined() {
    let mut accounts = accounts(ScopeRule::Nearest);
    let id = accounts.id(&Owner::Global, "claude");
    let now = accounts.hour();
    accounts.define(id, total(100));
    let set = |tokens, window| Statement::Set(Budget { tokens, window });
    for (statement, limit, window) in [
        (Statement::Add(20), Some(120), Window::Total),
        (set(50, Window::Daily), Some(50), Window::Daily),
        (Statement::Add(5), Some(55), Window::Daily),
        (Statement::Add(u64::MAX), Some(u64::MAX), Window::Daily),
        (Statement::Clear, Some(100), Window::Total),
        (set(u64::MAX, Window::Hourly), Some(u64::MAX), Window::Hourly),
    ] {
        accounts.state(id, statement, now);
        let figures = accounts.figures(id);
        assert_eq!((figures.limit(), figures.window()), (limit, window), "{statement:?}");
    }
    accounts.define(id, None);
    accounts.state(id, Statement::Clear, now);
    assert_eq!(accounts.figures(id).limit(), None);
}

#[test]
fn what_is_added_ends_with_its_window() {
    let mut accounts = accounts(ScopeRule::Nearest);
    let id = accounts.id(&Owner::Global, "claude");
    accounts.define(id, Some(Budget { tokens: 100, window: Window::Daily }));
    accounts.state(id, Statement::Add(30), hour("2026-01-30T23"));
    assert_eq!(accounts.figures(id).limit(), Some(100), "said yesterday");
    accounts.state(id, Statement::Add(30), hour("2026-01-31T00"));
    assert_eq!(accounts.figures(id).limit(), Some(130));
    accounts.roll(hour("2026-02-01T00"));
    assert_eq!(accounts.figures(id).limit(), Some(100));
}

#[test]
fn what_is_under_way_goes_over_into_the_next_window() {
    let mut accounts = accounts(ScopeRule::Nearest);
    let path = chain(&mut accounts, "claude");
    let (_, global) = path[4];
    accounts.define(global, Some(Budget { tokens: 1_000, window: Window::Hourly }));
    let held = accounts.reserve(&path, 100);
    let held = accounts.progress(&path, held, &output(40));
    accounts.charge(global, &output(500));
    accounts.roll(hour("2026-01-31T13"));
    let figures = accounts.figures(global);
    assert_eq!((figures.used, figures.reserved), (40, 60), "no window forgets what is not settled");
    accounts.settle(&path, held, &output(70));
    assert_eq!(accounts.figures(global).used, 70);
}

#[test]
fn progress_grows_out_of_the_reservation() {
    let mut accounts = accounts(ScopeRule::Nearest);
    let path = chain(&mut accounts, "claude");
    let (_, global) = path[4];
    accounts.define(global, total(1_000));
    let mut held = accounts.reserve(&path, 300);
    for (so_far, used, reserved) in [(200, 200, 100), (150, 200, 100), (1_000, 1_000, 0)] {
        held = accounts.progress(&path, held, &output(so_far));
        let figures = accounts.figures(global);
        assert_eq!((figures.used, figures.reserved), (used, reserved), "figures never shrink");
    }
    assert!(accounts.is_used_up(global));
}

#[test]
fn each_percentage_is_warned_of_once_in_each_window() {
    let mut accounts = accounts(ScopeRule::Nearest);
    let id = accounts.id(&Owner::Global, "claude");
    accounts.define(id, Some(Budget { tokens: 100, window: Window::Daily }));
    let mut step = |used: u64, at: &str| {
        accounts.roll(hour(at));
        accounts.charge(id, &output(used));
        accounts.warn(id, &[50, 80, 95]).iter().map(|warned| warned.percent).collect::<Vec<_>>()
    };
    for (used, at, warnings) in [
        (49, "2026-01-31T12", &[][..]),
        (1, "2026-01-31T12", &[50]),
        (10, "2026-01-31T13", &[]),
        (40, "2026-01-31T14", &[80, 95]),
        (900, "2026-01-31T15", &[]),
        (10, "2026-02-01T00", &[]),
        (89, "2026-02-01T01", &[50, 80, 95]),
    ] {
        assert_eq!(step(used, at), warnings, "{used} more at {at}");
    }
}

fn any_weights() -> impl Strategy<Value = Weights> {
    let weight = (0_u32..=1_000, 0_u32..1_000).prop_filter_map("at most 1000", |(whole, thousandths)| {
        format!("{whole}.{thousandths:03}").parse::<Weight>().ok()
    });
    prop::array::uniform4(weight).prop_map(|[input, cache_write, cache_read, output]| Weights {
        input,
        cache_write,
        cache_read,
        output,
    })
}

fn any_tokens() -> impl Strategy<Value = Tokens> {
    prop::array::uniform4(prop_oneof![0_u64..100, any::<u64>()]).prop_map(
        |[input, cache_write, cache_read, output]| Tokens {
            input,
            cache_write,
            cache_read,
            output,
            reasoning: 0,
        },
    )
}

fn any_rule() -> impl Strategy<Value = ScopeRule> {
    prop::sample::select(RULES.to_vec())
}

proptest! {
    /// Whatever the order, after every exchange has settled the verdict is that of the figures alone.
    #[test]
    fn the_order_of_settlements_never_changes_the_verdict(
        exchanges in prop::collection::vec(
            (any::<u64>(), prop::collection::vec(any_tokens(), 0..4), any_tokens()),
            1..10,
        ),
        limits in prop::array::uniform5(prop::option::of(any::<u64>())),
        weights in any_weights(),
        rule in any_rule(),
        turn in any::<prop::sample::Index>(),
    ) {
        let settled = |reverse: bool| {
            let mut accounts = Accounts::new(rule, weights, hour("2026-01-31T12"));
            let path = chain(&mut accounts, "claude");
            for ((_, id), limit) in path.iter().zip(limits) {
                accounts.define(*id, limit.and_then(total));
            }
            let mut held: Vec<_> = exchanges
                .iter()
                .map(|(reserved, progress, total)| {
                    let held = accounts.reserve(&path, *reserved);
                    let held = progress.iter().fold(held, |held, figure| accounts.progress(&path, held, figure));
                    (held, *total)
                })
                .collect();
            let turn = turn.index(held.len());
            held.rotate_left(turn);
            if reverse {
                held.reverse();
            }
            held.into_iter().for_each(|(held, total)| accounts.settle(&path, held, &total));
            let figures: Vec<Figures> = path.iter().map(|(_, id)| accounts.figures(*id)).collect();
            (verdict(&accounts, &path), figures)
        };
        let (verdict, figures) = settled(false);
        prop_assert_eq!((verdict, figures.clone()), settled(true));
        let sum = exchanges.iter().fold(Classes::default(), |sum, (_, _, total)| sum.plus(&total.into()));
        let used = u64::try_from(weights.weigh(&sum)).unwrap_or(u64::MAX);
        prop_assert!(figures.iter().all(|figures| (figures.used, figures.reserved) == (used, 0)));
    }

    /// Adding reopens exactly what it covers: what was overshot stays owed.
    #[test]
    fn debt_survives_what_is_added(
        limit in any::<u32>(), used in any::<u32>(), additions in prop::collection::vec(any::<u32>(), 0..5),
    ) {
        let mut accounts = accounts(ScopeRule::Nearest);
        let id = accounts.id(&Owner::Global, "claude");
        accounts.define(id, total(limit.into()));
        accounts.charge(id, &output(used.into()));
        let mut allowed = u64::from(limit);
        for added in additions {
            accounts.state(id, Statement::Add(added.into()), accounts.hour());
            allowed += u64::from(added);
            prop_assert_eq!(accounts.figures(id).used, u64::from(used));
            prop_assert_eq!(accounts.is_used_up(id), u64::from(used) >= allowed);
            prop_assert_eq!(accounts.figures(id).remaining(), Some(allowed.saturating_sub(used.into())));
        }
    }

    /// A budget that is stated below what is used, with any window, cuts at once.
    #[test]
    fn a_budget_below_its_use_cuts_at_once(used in 1..u64::MAX, below in any::<u64>(), at in 0..5_usize) {
        let mut accounts = accounts(ScopeRule::Nearest);
        let path = chain(&mut accounts, "claude");
        let (scope, id) = path[2];
        accounts.define(id, total(u64::MAX));
        accounts.charge(id, &output(used));
        prop_assert_eq!(accounts.judge(&path), Judgement::Grant);
        let budget = Budget { tokens: below % (used + 1), window: Window::ALL[at] };
        accounts.state(id, Statement::Set(budget), accounts.hour());
        prop_assert_eq!(accounts.judge(&path), Judgement::Refuse(scope, id));
    }

    /// However the clock jumps, windows go forward alone, and a new controller finds the same figures.
    #[test]
    fn the_clock_never_counts_twice_and_never_forgets(
        steps in prop::collection::vec((-3_000_i64..3_000, 0_u64..1_000), 1..20), window in 0..5_usize,
    ) {
        let start = hour("2026-01-31T12");
        let mut accounts = Accounts::new(ScopeRule::Nearest, Weights::default(), start);
        let id = accounts.id(&Owner::Global, "claude");
        let budget = Some(Budget { tokens: 1, window: Window::ALL[window] });
        accounts.define(id, budget);
        let (mut clock, mut history) = (start.start_ms(), Vec::new());
        for (jump, tokens) in steps {
            let before = (accounts.hour(), accounts.figures(id).used);
            clock += jump * 3_600_000;
            accounts.roll(Hour::of(clock));
            prop_assert!(accounts.hour() >= before.0);
            if accounts.hour() == before.0 {
                prop_assert_eq!(accounts.figures(id).used, before.1, "set back, it opens nothing");
            }
            accounts.charge(id, &output(tokens));
            history.push((accounts.hour(), tokens));
        }
        let mut next = Accounts::new(ScopeRule::Nearest, Weights::default(), accounts.hour());
        let again = next.id(&Owner::Global, "claude");
        next.define(again, budget);
        for (at, tokens) in history {
            next.load_total(again, &output(tokens));
            next.load_hour(again, &output(tokens), at);
        }
        prop_assert_eq!(next.figures(again), accounts.figures(id));
    }
}
