//! The dashboard without a terminal and without a daemon: what keys ask for, what is drawn, the loop itself.
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use insta::assert_snapshot;
use proptest::prelude::*;
use ratatui::style::Color;

use super::event::Key;
use super::state::AUDIT_ROWS;
use super::update::update;
use super::*;
use crate::audit::{Cause, CauseKind};

fn budget(scope: &str, owner: &str, limit: u64, used: u64) -> api::Budget {
    api::Budget {
        scope: scope.into(),
        owner: owner.into(),
        window: "total".into(),
        limit,
        used,
        remaining: limit.saturating_sub(used),
        ..api::Budget::default()
    }
}

fn bottle(name: &str, total: u64, budget: api::Budget) -> api::Bottle {
    let output = total / 4;
    let usage = api::Usage { input: total - output, output, total, flows: 12, ..Default::default() };
    api::Bottle {
        name: name.into(),
        agent: None,
        parent: None,
        cgroup: format!("/sys/fs/cgroup/{name}"),
        pids: 3,
        state: api::State::Open,
        face: None,
        cause: None,
        policy: "cutoff".into(),
        egress: "open".into(),
        usage: BTreeMap::from([("claude".into(), usage)]),
        budget: BTreeMap::from([("claude".into(), budget)]),
        chain: BTreeMap::new(),
        kernel: api::Packets { passed_packets: 48_210, dropped_packets: 0, ..Default::default() },
    }
}

fn budget_cause() -> Cause {
    Cause {
        kind: CauseKind::Budget,
        provider: Some("claude".into()),
        scope: Some("bottle".into()),
        owner: Some("reviewer".into()),
        limit: Some(300_000),
        used: Some(305_112),
        window: Some("total".into()),
        rule: Some("nearest".into()),
        flow: Some(812),
        at: "2026-01-31T12:00:00.000Z".into(),
        by: "controller".into(),
        reason: None,
        held: false,
        freeze: None,
        face: crate::kernel::Face::Silent,
        policy: crate::settings::Policy::Cutoff,
        processes: crate::audit::Processes::Running,
    }
}

/// `builder` is open, `reviewer` is cut for its budget, `scout` has no budget.
fn status() -> api::Status {
    let mut builder = bottle("builder", 1_250_000, budget("global", "global", 5_000_000, 1_555_112));
    builder.agent = Some("implementer".into());
    let mut reviewer = bottle("reviewer", 305_112, budget("bottle", "reviewer", 300_000, 305_112));
    reviewer.state = api::State::Cut;
    reviewer.face = Some(crate::kernel::Face::Answered);
    reviewer.cause = Some(budget_cause());
    reviewer.kernel.dropped_packets = 77;
    let mut scout = bottle("scout", 400, budget("global", "global", 1, 1));
    scout.budget.clear();
    api::Status {
        daemon: api::Daemon {
            pid: 4100,
            version: "0.1.0".into(),
            meter: api::Meter { pid: Some(4101), listen: "127.0.0.1:7080".into(), state: "serving".into() },
            lane: api::Lane { pid: Some(4102), state: "serving".into() },
            kernel: api::Programs { programs: "attached".into(), lease_s: Some(10) },
            closed: None,
        },
        bottles: vec![builder, reviewer, scout],
    }
}

fn row(id: i64, action: &str, bottle: &str) -> Row {
    Row {
        id,
        at: "2026-01-31T12:00:00.000Z".into(),
        bottle: Some(bottle.into()),
        action: action.into(),
        cause: (action == "cut").then(budget_cause),
        by: "controller".into(),
        outcome: "done".into(),
        detail: None,
        took_us: Some(84),
    }
}

fn rows() -> Vec<Row> {
    vec![row(1, "attach", "builder"), row(2, "attach", "reviewer"), row(3, "cut", "reviewer")]
}

/// A dashboard that has just had its first answers.
fn live() -> State {
    let mut state = State::default();
    update(&mut state, Event::Status { at_ms: 0, answer: Ok(status()) });
    update(&mut state, Event::Audit(Ok(rows())));
    update(&mut state, Event::Audit(Ok(vec![])));
    state
}

fn key_of(word: &str) -> Key {
    match word {
        "Up" => Key::Up,
        "Down" => Key::Down,
        "Home" => Key::Home,
        "End" => Key::End,
        "Enter" => Key::Enter,
        "Esc" => Key::Escape,
        "Back" => Key::Backspace,
        "Ctrl-C" => Key::Interrupt,
        one => Key::Char(one.chars().next().unwrap()),
    }
}

/// Presses keys, separated by spaces; what was asked for.
fn press(state: &mut State, keys: &str) -> Vec<Effect> {
    let keys = keys.split_whitespace().map(key_of);
    keys.flat_map(|key| update(state, Event::Key(key))).collect()
}

fn cut(bottle: &str) -> Effect {
    Effect::Ask(Request::Cut { bottle: bottle.into(), body: api::Cut::default() })
}

fn restore(bottle: &str, add: &[(&str, u64)], force: bool) -> Effect {
    let add = add.iter().map(|(provider, tokens)| ((*provider).to_owned(), *tokens)).collect();
    Effect::Ask(Request::Restore { bottle: bottle.into(), body: api::Restore { add, force } })
}

fn text(state: &State, width: u16, height: u16) -> String {
    plain_text(&render(state, width, height))
}

#[test]
fn keys_ask_for_what_they_say_and_only_after_a_yes() {
    let all = || vec![Effect::Ask(Request::CutAll { body: api::Cut::default() })];
    for (keys, effects) in [
        ("", vec![]),
        ("c", vec![]),
        ("c n", vec![]),
        ("c Esc y", vec![]),
        ("c x Enter", vec![]),
        ("c y", vec![cut("builder")]),
        ("c Y", vec![cut("builder")]),
        ("c y y", vec![cut("builder")]),
        ("j j c y", vec![cut("scout")]),
        ("Down Down Down Down c y", vec![cut("scout")]),
        ("End k c y", vec![cut("reviewer")]),
        ("End Home Up c y", vec![cut("builder")]),
        ("C", vec![]),
        ("C n", vec![]),
        ("C y", all()),
        ("/ s c o u t Enter C y", all()),
        ("/ s c o u t Enter c y", vec![cut("scout")]),
        ("/ s c o u t Esc c y", vec![cut("builder")]),
        ("/ s c x Back Enter c y", vec![cut("scout")]),
        ("/ z Enter c y", vec![]),
        ("/ q Enter", vec![]),
        ("r y", vec![]),
        ("j r y Enter", vec![]),
        ("j r Enter", vec![]),
        ("j r f", vec![restore("reviewer", &[], true)]),
        ("j r 5 0 0 k Enter", vec![restore("reviewer", &[("claude", 500_000)], false)]),
        ("j r 2 M Enter", vec![restore("reviewer", &[("claude", 2_000_000)], false)]),
        ("j r 5 1 1 2 Enter", vec![]),
        ("j r 5 1 1 3 Enter", vec![restore("reviewer", &[("claude", 5113)], false)]),
        ("j r 6 f Enter", vec![]),
        ("j r 6 k Esc Enter", vec![]),
        ("? c y", vec![]),
        ("? q", vec![]),
        ("? ? q", vec![Effect::Quit]),
        ("q", vec![Effect::Quit]),
        ("c Ctrl-C", vec![Effect::Quit]),
    ] {
        assert_eq!(press(&mut live(), keys), effects, "{keys}");
    }
}

#[test]
fn a_restore_without_a_used_up_budget_is_a_yes_or_no() {
    let mut state = live();
    let reviewer = &mut state.status.as_mut().unwrap().bottles[1];
    reviewer.budget.insert("claude".into(), budget("bottle", "reviewer", 300_000, 299_999));
    assert_eq!(press(&mut state, "j r y"), [restore("reviewer", &[], false)]);
}

#[test]
fn every_used_up_budget_is_asked_about() {
    let mut state = live();
    let reviewer = &mut state.status.as_mut().unwrap().bottles[1];
    reviewer.budget.insert("codex".into(), budget("global", "global", 10, 10));
    let asked = press(&mut state, "j r 6 k Enter 1 Enter");
    assert_eq!(asked, [restore("reviewer", &[("claude", 6000), ("codex", 1)], false)]);
}

#[test]
fn the_selection_stays_with_its_bottle() {
    let mut state = live();
    press(&mut state, "j");
    let mut without_builder = status();
    without_builder.bottles.remove(0);
    update(&mut state, Event::Status { at_ms: 1000, answer: Ok(without_builder) });
    assert_eq!(state.selected_bottle().unwrap().name, "reviewer");
}

#[test]
fn a_tick_asks_once_until_it_is_answered() {
    let mut state = live();
    let both = [Effect::Ask(Request::Status), Effect::Ask(Request::Audit { after: 3 })];
    assert_eq!(update(&mut state, Event::Tick), both);
    assert_eq!(update(&mut state, Event::Tick), []);
    update(&mut state, Event::Status { at_ms: 1000, answer: Err("refused".into()) });
    assert_eq!(update(&mut state, Event::Tick), [Effect::Ask(Request::Status)], "retries when lost");
}

#[test]
fn the_audit_is_caught_up_with_and_bounded() {
    let mut state = State::default();
    let many = (1..=1000).map(|id| row(id, "refuse", "b")).collect();
    let next = update(&mut state, Event::Audit(Ok(many)));
    assert_eq!(next, [Effect::Ask(Request::Audit { after: 1000 })]);
    assert_eq!(state.audit.len(), AUDIT_ROWS);
    let repeated = update(&mut state, Event::Audit(Ok(vec![row(1000, "refuse", "b")])));
    assert_eq!(repeated, [], "an answer with nothing new is not asked for again at once");
    assert_eq!(state.audit.len(), AUDIT_ROWS);
}

#[test]
fn rates_are_tokens_a_second() {
    let mut state = live();
    let mut later = status();
    later.bottles[0].usage.get_mut("claude").unwrap().total += 3000;
    update(&mut state, Event::Status { at_ms: 500, answer: Ok(later.clone()) });
    assert!(state.rates.is_empty(), "half a second says too little");
    update(&mut state, Event::Status { at_ms: 1500, answer: Ok(later) });
    assert_eq!(state.rates["builder"], 2000);
    assert_eq!(state.rates["scout"], 0);
    update(&mut state, Event::Status { at_ms: 2500, answer: Err("gone".into()) });
    assert!(state.rates.is_empty());
}

#[test]
fn leaving_waits_for_an_action_and_a_failure_keeps_it() {
    let acted = |answer| Event::Acted { what: "cut builder".into(), answer };
    let mut state = live();
    assert_eq!(press(&mut state, "c y q"), [cut("builder")]);
    assert_eq!(update(&mut state, acted(Ok(()))), [Effect::Quit]);

    let mut state = live();
    press(&mut state, "c y q");
    assert!(!update(&mut state, acted(Err("no".into()))).contains(&Effect::Quit));
    assert!(state.note.as_ref().unwrap().is_error);
    assert_eq!(press(&mut state, "q"), [Effect::Quit]);

    let mut state = live();
    assert_eq!(press(&mut state, "c y q q"), [cut("builder"), Effect::Quit]);
}

#[test]
fn a_failure_is_not_covered_by_a_success() {
    let mut state = live();
    press(&mut state, "c y j c y C y");
    for (what, answer) in [("cut a", Err("gone")), ("cut b", Ok(())), ("cut c", Err("busy"))] {
        update(&mut state, Event::Acted { what: what.into(), answer: answer.map_err(String::from) });
    }
    assert_eq!(state.note.unwrap().text, "cut a failed: gone; cut c failed: busy");
}

#[test]
fn draws_bottles() {
    assert_snapshot!(render_to_text(&status(), &rows(), 80, 24), @r"
    enforcer 0.1.0 pid 4100 | meter serving 127.0.0.1:7080 | kernel attached, lease
    10 s
     bottles: 3 ────────────────────────────────────────────────────────────────────
      NAME        STATE  USED OF BUDGET                    TOKENS /S    DROPPED PIDS
    > builder     open   claude ██░░░░░░  31% 1.55M/5M     1.25M  0     0       3
      reviewer    cut    claude ████████ 101% 305k/300k    305k   0     77      3
      scout       open   claude no budget                  400    0     0       3



     builder ───────────────────────────────────────────────────────────────────────
    claude budget (global, window total): used 1,555,112 of 5,000,000, reserved 0,
    remaining 3,444,888
    claude usage: 1,250,000 tokens in 12 exchanges: input 937,500, cache write 0,
    cache read 0, output 312,500 (reasoning 0); estimated 0
    agent implementer, parent none, policy cutoff, egress open; packets passed
    48,210, dropped 0; 3 processes in /sys/fs/cgroup/builder
     audit ─────────────────────────────────────────────────────────────────────────
    12:00:00 attach builder, by controller, 84 µs
    12:00:00 attach reviewer, by controller, 84 µs
    12:00:00 cut reviewer: bottle budget, claude 305k/300k, by controller, 84 µs


    j/k  c cut  C all  f freeze  t thaw  K kill  r restore  / ? help  q quit
    ");
}

#[test]
fn draws_more_on_a_wide_screen() {
    let mut status = status();
    let builder = &mut status.bottles[0];
    builder.budget.insert("codex".into(), budget("launch", "builder", 100_000, 85_000));
    let scout = &mut status.bottles[2];
    scout.state = api::State::Frozen;
    assert_snapshot!(render_to_text(&status, &rows(), 130, 14), @r"
    enforcer 0.1.0 pid 4100 | meter serving 127.0.0.1:7080 | kernel attached, lease 10 s
     bottles: 3 ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────────
      NAME                     AGENT        STATE  USED OF BUDGET                                     TOKENS /S    PASSED DROPPED PIDS
    > builder                  implementer  open   claude ██░░░░░░  31% 1.55M/5M global               1.25M  0     48.2k  0       3
                                                   codex  ██████░░  85% 85k/100k launch builder
      reviewer                 -            cut    claude ████████ 101% 305k/300k bottle reviewer     305k   0     48.2k  77      3
      scout                    -            frozen claude no budget                                   400    0     48.2k  0       3
     builder ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────
    claude budget (global, window total): used 1,555,112 of 5,000,000, reserved 0, remaining 3,444,888
    claude usage: 1,250,000 tokens in 12 exchanges: input 937,500, cache write 0, cache read 0, output 312,500 (reasoning 0);
    estimated 0
    codex budget (launch builder, window total): used 85,000 of 100,000, reserved 0, remaining 15,000

    j/k select  c cut  C cut all  f freeze  t thaw  K kill  r restore  / filter  ? help  q quit
    ");
}

#[test]
fn draws_why_a_bottle_is_cut() {
    let mut state = live();
    press(&mut state, "j");
    assert_snapshot!(text(&state, 80, 24), @r"
    enforcer 0.1.0 pid 4100 | meter serving 127.0.0.1:7080 | kernel attached, lease
    10 s
     bottles: 3 ────────────────────────────────────────────────────────────────────
      NAME        STATE  USED OF BUDGET                    TOKENS /S    DROPPED PIDS
      builder     open   claude ██░░░░░░  31% 1.55M/5M     1.25M  0     0       3
    > reviewer    cut    claude ████████ 101% 305k/300k    305k   0     77      3
      scout       open   claude no budget                  400    0     0       3
     reviewer ──────────────────────────────────────────────────────────────────────
    cut (answered): the claude budget of scope bottle, owner reviewer, is used up:
    305,112 of 300,000 tokens, crossed by exchange 812; at 2026-01-31T12:00:00.000Z
    by controller
    claude budget (bottle reviewer, window total): used 305,112 of 300,000, reserved
    0, remaining 0
    claude usage: 305,112 tokens in 12 exchanges: input 228,834, cache write 0,
    cache read 0, output 76,278 (reasoning 0); estimated 0
    agent none, parent none, policy cutoff, egress open; packets passed 48,210,
    dropped 77; 3 processes in /sys/fs/cgroup/reviewer
     audit ─────────────────────────────────────────────────────────────────────────
    12:00:00 attach builder, by controller, 84 µs
    12:00:00 attach reviewer, by controller, 84 µs
    12:00:00 cut reviewer: bottle budget, claude 305k/300k, by controller, 84 µs

    reviewer is cut: bottle budget, claude 305k/300k
    j/k  c cut  C all  f freeze  t thaw  K kill  r restore  / ? help  q quit
    ");
}

#[test]
fn draws_the_questions_it_asks() {
    let mut state = live();
    press(&mut state, "c");
    assert_snapshot!(text(&state, 80, 9), @r"
    enforcer 0.1.0 pid 4100 | meter serving 127.0.0.1:7080 | kernel attached, lease
    10 s
     bottles: 3 ────────────────────────────────────────────────────────────────────
      NAME        STATE  USED OF BUDGET                    TOKENS /S    DROPPED PIDS
    > builder     open   claude ██░░░░░░  31% 1.55M/5M     1.25M  0     0       3
      reviewer    cut    claude ████████ 101% 305k/300k    305k   0     77      3
      scout       open   claude no budget                  400    0     0       3
    [y/n] cut bottle builder?
    j/k  c cut  C all  f freeze  t thaw  K kill  r restore  / ? help  q quit
    ");
    press(&mut state, "n j r 1 k Enter");
    assert_snapshot!(text(&state, 80, 11), @r"
    enforcer 0.1.0 pid 4100 | meter serving 127.0.0.1:7080 | kernel attached, lease
    10 s
     bottles: 3 ────────────────────────────────────────────────────────────────────
      NAME        STATE  USED OF BUDGET                    TOKENS /S    DROPPED PIDS
      builder     open   claude ██░░░░░░  31% 1.55M/5M     1.25M  0     0       3
    > reviewer    cut    claude ████████ 101% 305k/300k    305k   0     77      3
      scout       open   claude no budget                  400    0     0       3
    tokens to add: 1k_ (1k is not enough: more than 5,112 is needed) | restore
    reviewer: claude budget (bottle reviewer, used 305k of 300k) | Enter adds, f
    forces, Esc leaves it cut
    j/k  c cut  C all  f freeze  t thaw  K kill  r restore  / ? help  q quit
    ");
    press(&mut state, "Esc ?");
    assert_snapshot!(text(&state, 80, 14), @r"
    enforcer 0.1.0 pid 4100 | meter serving 127.0.0.1:7080 | kernel attached, lease
    10 s
     keys ──────────────────────────────────────────────────────────────────────────
    j k arrows Home End   select a bottle
    c   cut it: no packet passes (asks)
    C   cut all bottles (asks)
    f   freeze its processes (asks); t lets them go on
    K   kill its processes, for good (asks)
    r   restore it (asks; for tokens, too)
    /   filter by name, Enter keeps, Esc clears
    q   quit (Ctrl-C: at once)
    Any key closes this help.
    reviewer is cut: bottle budget, claude 305k/300k
    j/k  c cut  C all  f freeze  t thaw  K kill  r restore  / ? help  q quit
    ");
}

#[test]
fn draws_a_lost_daemon_as_stale() {
    let mut state = live();
    let lost = "connect /run/enforcer/control.sock: connection refused";
    update(&mut state, Event::Status { at_ms: 1000, answer: Err(lost.into()) });
    assert_snapshot!(text(&state, 80, 10), @r"
    enforcer 0.1.0 pid 4100 | meter serving 127.0.0.1:7080 | kernel attached, lease
    10 s
    STALE. NO DAEMON, trying again: connect /run/enforcer/control.sock: connection
    refused
     bottles: 3, STALE ─────────────────────────────────────────────────────────────
      NAME        STATE  USED OF BUDGET                    TOKENS /S    DROPPED PIDS
    > builder     open   claude ██░░░░░░  31% 1.55M/5M     1.25M  0     0       3
      reviewer    cut    claude ████████ 101% 305k/300k    305k   0     77      3

    j/k  c cut  C all  f freeze  t thaw  K kill  r restore  / ? help  q quit
    ");
    let buffer = render(&state, 80, 10);
    assert_eq!(buffer[(2, 5)].fg, Color::DarkGray, "the figures are greyed");
    update(&mut state, Event::Status { at_ms: 2000, answer: Ok(status()) });
    assert!(!text(&state, 80, 10).contains("STALE"), "and fresh again after an answer");
}

#[test]
fn draws_that_there_never_was_a_daemon() {
    let mut state = State::default();
    assert_snapshot!(text(&state, 60, 5), @r"
    enforcer: connecting to the daemon …



    j/k c C f t K r /  ? help  q quit
    ");
    update(&mut state, Event::Status { at_ms: 0, answer: Err("no such file".into()) });
    assert_snapshot!(text(&state, 60, 5), @r"
    enforcer: NO DAEMON, trying again: no such file



    j/k c C f t K r /  ? help  q quit
    ");
}

#[test]
fn draws_why_requests_are_refused_in_red() {
    let mut closed = status();
    closed.daemon.closed = Some("the ledger: disk full".into());
    let state = State { status: Some(closed), link: Link::Live, ..State::default() };
    let buffer = render(&state, 80, 10);
    assert!(plain_text(&buffer).contains("CLOSED: requests are refused: the ledger: disk full"));
    let (x, y) = (0..10).map(|y| (0, y)).find(|at| buffer[*at].fg == Color::Red).unwrap();
    assert_eq!(buffer[(x, y)].symbol(), "C");
}

#[test]
fn draws_on_a_tiny_terminal() {
    let mut state = live();
    press(&mut state, "j");
    assert_snapshot!(text(&state, 40, 10), @r"
    enforcer pid 4100 | meter serving
     bottles: 3 ────────────────────────────
      NAME           STATE  BUDGET USED
      builder        open   claude 31%
    > reviewer       cut    claude 101%
      scout          open   claude no budget

    reviewer is cut: bottle budget, claude
    305k/300k
    j/k c C f t K r /  ? help  q quit
    ");
}

#[test]
fn hostile_words_are_drawn_harmless() {
    let mut hostile = status();
    let bottle = &mut hostile.bottles[1];
    bottle.name = "\x1b]52;c;ZXZpbA==\x07evil\u{202e}nepo".into();
    bottle.agent = Some("a\u{9b}2J".into());
    bottle.cause.as_mut().unwrap().owner = Some("o\u{2066}wner\r\n".into());
    hostile.daemon.closed = Some("full\x1b[2J".into());
    let mut audit = rows();
    audit[2].detail = Some("\u{7f}\x1b]0;title\x07".into());
    let mut state = State { audit: audit.into(), ..live() };
    update(&mut state, Event::Status { at_ms: 0, answer: Ok(hostile) });
    press(&mut state, "j c");
    let drawn = text(&state, 130, 24);
    let steers = |c: char| {
        c != '\n' && (c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}'))
    };
    assert_eq!(drawn.find(steers), None);
    assert_snapshot!(drawn, @r"
    enforcer 0.1.0 pid 4100 | meter serving 127.0.0.1:7080 | kernel attached, lease 10 s
    CLOSED: requests are refused: full�[2J
     bottles: 3 ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────────
      NAME                     AGENT        STATE  USED OF BUDGET                                     TOKENS /S    PASSED DROPPED PIDS
      builder                  implementer  open   claude ██░░░░░░  31% 1.55M/5M global               1.25M  0     48.2k  0       3
    > �]52;c;ZXZpbA==�evil�nep a�2J         cut    claude ████████ 101% 305k/300k bottle reviewer     305k   0     48.2k  77      3
      scout                    -            open   claude no budget                                   400    0     48.2k  0       3




     �]52;c;ZXZpbA==�evil�nepo ───────────────────────────────────────────────────────────────────────────────────────────────────────
    cut (answered): the claude budget of scope bottle, owner o�wner��, is used up: 305,112 of 300,000 tokens, crossed by exchange 812;
    at 2026-01-31T12:00:00.000Z by controller
    claude budget (bottle reviewer, window total): used 305,112 of 300,000, reserved 0, remaining 0
    claude usage: 305,112 tokens in 12 exchanges: input 228,834, cache write 0, cache read 0, output 76,278 (reasoning 0); estimated 0
    agent a�2J, parent none, policy cutoff, egress open; packets passed 48,210, dropped 77; 3 processes in /sys/fs/cgroup/reviewer
     audit ───────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────
    12:00:00 attach builder, by controller, 84 µs
    12:00:00 attach reviewer, by controller, 84 µs
    12:00:00 cut reviewer: bottle budget, claude 305k/300k: ��]0;title�, by controller, 84 µs

    [y/n] cut bottle �]52;c;ZXZpbA==�evil�nepo?
    j/k select  c cut  C cut all  f freeze  t thaw  K kill  r restore  / filter  ? help  q quit
    ");
}

fn any_key() -> impl Strategy<Value = Key> {
    prop_oneof![
        Just(Key::Up),
        Just(Key::Down),
        Just(Key::Home),
        Just(Key::End),
        Just(Key::Enter),
        Just(Key::Escape),
        Just(Key::Backspace),
        "[jkcCrftK/?yYnq0-9kM]".prop_map(|c| Key::Char(c.chars().next().unwrap())),
        any::<char>().prop_map(Key::Char),
    ]
}

fn any_event() -> impl Strategy<Value = Event> {
    let answer = || prop_oneof![Just(Ok(())), any::<String>().prop_map(Err)];
    prop_oneof![
        8 => any_key().prop_map(Event::Key),
        1 => Just(Event::Tick),
        1 => (any::<u64>(), answer()).prop_map(|(at_ms, a)| Event::Status { at_ms, answer: a.map(|()| status()) }),
        1 => answer().prop_map(|a| Event::Audit(a.map(|()| rows()))),
        1 => (any::<String>(), answer()).prop_map(|(what, answer)| Event::Acted { what, answer }),
    ]
}

proptest! {
    #[test]
    fn no_sequence_of_events_panics_on_any_screen(
        events in prop::collection::vec(any_event(), 0..60), width in 1_u16..140, height in 1_u16..30,
    ) {
        let mut state = live();
        for event in events {
            update(&mut state, event);
        }
        render(&state, width, height);
    }
}

/// A daemon in memory that remembers what it was told to do.
#[derive(Clone, Default)]
struct Fake(Arc<Mutex<Vec<String>>>);

impl Backend for Fake {
    async fn status(&self) -> Result<api::Status, String> {
        Ok(status())
    }

    async fn audit(&self, after: i64) -> Result<Vec<Row>, String> {
        Ok(rows().into_iter().filter(|row| row.id > after).collect())
    }

    async fn cut(&self, bottle: &str, _body: &api::Cut) -> Result<(), String> {
        self.0.lock().unwrap().push(format!("cut {bottle}"));
        Ok(())
    }

    async fn cut_all(&self, _body: &api::Cut) -> Result<(), String> {
        self.0.lock().unwrap().push("cut all".to_owned());
        Ok(())
    }

    async fn freeze(&self, bottle: &str) -> Result<(), String> {
        self.0.lock().unwrap().push(format!("freeze {bottle}"));
        Ok(())
    }

    async fn thaw(&self, bottle: &str) -> Result<(), String> {
        self.0.lock().unwrap().push(format!("thaw {bottle}"));
        Ok(())
    }

    async fn kill(&self, bottle: &str) -> Result<(), String> {
        self.0.lock().unwrap().push(format!("kill {bottle}"));
        Ok(())
    }

    async fn restore(&self, _bottle: &str, _body: &api::Restore) -> Result<(), String> {
        Err("not here".into())
    }
}

#[tokio::test]
async fn the_loop_carries_keys_to_the_daemon_and_ends() {
    let (keys, mut inbox) = mpsc::unbounded_channel();
    let fake = Fake::default();
    let mut terminal = Terminal::new(TestBackend::new(80, 24)).unwrap();
    let driven = async {
        let typed = async {
            // the first figures must be there before a bottle can be meant
            tokio::time::sleep(Duration::from_millis(200)).await;
            for key in ['c', 'y', 'C', 'y', 'q'].map(Key::Char) {
                keys.send(Ok(Event::Key(key))).unwrap();
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            ended = drive(&mut terminal, fake.clone(), &mut inbox) => ended,
            () = typed => unreachable!("it waits for ever"),
        }
    };
    timeout(Duration::from_secs(10), driven).await.expect("q ends the loop").unwrap();
    assert_eq!(*fake.0.lock().unwrap(), ["cut builder", "cut all"]);
    assert!(plain_text(terminal.backend().buffer()).contains("reviewer"));
}

#[tokio::test]
async fn a_silent_daemon_is_an_error_and_not_a_wait() {
    let never = std::future::pending::<Result<(), String>>();
    assert_eq!(bounded(Duration::from_secs(1), never).await, Err("no answer within 1 s".into()));
}
