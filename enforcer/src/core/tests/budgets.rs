//! What operators say of budgets: what closes is done before it is written, what opens after; the last word holds.
use super::*;
use crate::budget::window::Window;
use crate::control::api::{BudgetRow, BudgetScope, SetBudget};
use crate::hooks::Occasion;
use crate::policy::Act;

pub(super) fn order(scope: &str, verb: BudgetVerb) -> BudgetOrder {
    let scope: BudgetScope = scope.parse().unwrap();
    BudgetOrder { scope, provider: "claude".into(), verb }
}

pub(super) fn set(tokens: u64) -> BudgetVerb {
    BudgetVerb::Set(SetBudget { tokens, window: None })
}

impl Bench {
    /// Orders without waiting for the answer.
    fn say_budget(&self, scope: &str, verb: BudgetVerb, by: &str) -> oneshot::Receiver<Result<(), Problem>> {
        let (reply, answer) = oneshot::channel();
        let (order, received) = (order(scope, verb), Instant::now());
        self.core.tell(Message::StateBudget { order, by: by.into(), received, reply });
        answer
    }

    pub(super) fn budget(&self, scope: &str, verb: BudgetVerb) -> Result<(), Problem> {
        self.say_budget(scope, verb, "uid:7").blocking_recv().unwrap()
    }

    pub(super) fn add_to_global(&self, tokens: u64) {
        self.budget("global", BudgetVerb::Add(tokens)).unwrap();
    }

    fn budgets(&self) -> Vec<BudgetRow> {
        self.ask(|reply| Message::Budgets { reply })
    }

    /// `scope=limit/used` of every budget.
    pub(super) fn stand(&self) -> Vec<String> {
        let rows = self.budgets().into_iter().filter(|row| row.provider == "claude");
        rows.map(|row| format!("{}={}/{}", row.scope, row.used, row.limit)).collect()
    }
}

#[test]
fn a_budget_below_its_use_cuts_before_it_is_written() {
    let mut bench = Bench::new("budget: { claude: 1000 }");
    let (one, two) = (bench.attach("one"), bench.attach("two"));
    bench.spend(1, one, 100);
    bench.refusing.store(true, Ordering::SeqCst);
    let answer = bench.say_budget("global", set(100), "uid:7");
    let told = [bench.order(), bench.order()];
    for bottle in [one, two] {
        assert!(told.contains(&ToMeter::Cut { bottle, upstream: Upstream::Close }), "{told:?}");
        assert!(!bench.kernel.is_open(bottle.slot), "although the ledger refuses");
    }
    let problem = answer.blocking_recv().unwrap().unwrap_err();
    assert!(problem.error.starts_with("done, but not recorded yet"), "{problem:?}");
    assert_eq!(bench.stand(), ["global=100/100"]);

    bench.refusing.store(false, Ordering::SeqCst);
    let until = Instant::now() + SOON;
    while bench.rows("budget").is_empty() {
        assert!(Instant::now() < until, "what is owed is never written");
        std::thread::sleep(Duration::from_millis(20));
    }
    let row = bench.rows("budget").remove(0);
    assert_eq!((row.by.as_str(), row.outcome.as_str(), row.took_us.is_some()), ("uid:7", "done", true));
    let words = "set global claude: 100 tokens total (before: 1000 tokens total)";
    assert_eq!(row.detail.as_deref(), Some(words));
    let cause = bench.view("two").cause.unwrap();
    assert_eq!((cause.limit, cause.used, cause.owner.as_deref()), (Some(100), Some(100), Some("global")));
}

#[test]
fn more_tokens_open_exactly_what_they_cover_and_after_they_are_written() {
    let mut bench = Bench::new("budget: { claude: 100 }\nbottles: { own: { budget: { claude: 50 } } }");
    let (one, two, own) = (bench.attach("one"), bench.attach("two"), bench.attach("own"));
    bench.spend(1, own, 50);
    bench.spend(2, one, 90);
    for bottle in [one, two, own] {
        assert!(!bench.kernel.is_open(bottle.slot));
    }
    bench.budget("global", BudgetVerb::Add(40)).unwrap();
    assert!(!bench.kernel.is_open(one.slot), "140 of 140 are used");

    bench.refusing.store(true, Ordering::SeqCst);
    let problem = bench.budget("global", BudgetVerb::Add(1)).unwrap_err();
    assert!(problem.error.starts_with("not recorded, so not done"), "{problem:?}");
    assert!(!bench.kernel.is_open(one.slot));
    bench.refusing.store(false, Ordering::SeqCst);

    bench.budget("global", BudgetVerb::Add(1)).unwrap();
    assert!(bench.kernel.is_open(one.slot) && bench.kernel.is_open(two.slot));
    assert!(!bench.kernel.is_open(own.slot), "its own budget governs it");
    assert_eq!(bench.view("one").budget["claude"].remaining, 1);
    let restored: Vec<_> =
        bench.rows("restore").into_iter().map(|row| (row.bottle.unwrap(), row.by)).collect();
    assert_eq!(restored, [("one".into(), "uid:7".into()), ("two".into(), "uid:7".to_owned())]);
    bench.budget("bottle:own", set(51)).unwrap();
    assert!(bench.kernel.is_open(own.slot));
}

#[test]
fn what_an_operator_cut_too_no_budget_opens() {
    let bench = Bench::new("budget: { claude: 100 }");
    let (one, two) = (bench.attach("one"), bench.attach("two"));
    bench.spend(1, one, 100);
    bench.cut("one").unwrap();
    assert!(bench.view("one").cause.unwrap().held);
    bench.budget("global", set(1_000)).unwrap();
    assert!(!bench.kernel.is_open(one.slot), "an operator cut it, and no operator has restored it");
    assert!(bench.kernel.is_open(two.slot));
    bench.restore("one", &[], false).unwrap();
    assert!(bench.kernel.is_open(one.slot));
}

#[test]
fn of_two_operators_the_last_word_holds_and_both_are_written() {
    let mut bench = Bench::new("budget: { claude: 100 }");
    let bottle = bench.attach("b1");
    bench.spend(1, bottle, 100);
    for (first, second, limit, open) in [
        (set(500), set(60), 60, false),
        (set(60), set(500), 500, true),
        (set(900), BudgetVerb::Add(5), 905, true),
        (BudgetVerb::Add(5), set(100), 100, false),
        (set(300), BudgetVerb::Clear, 100, false),
        (set(700), BudgetVerb::Add(0), 700, true),
    ] {
        let before = bench.rows("budget").len();
        // the disk is slow: the second is said before the first is written
        bench.silent.store(true, Ordering::SeqCst);
        let answers =
            [bench.say_budget("global", first, "uid:1"), bench.say_budget("global", second, "uid:2")];
        bench.ask(|reply| Message::UnderWay { reply });
        bench.silent.store(false, Ordering::SeqCst);
        let answers = answers.map(|answer| answer.blocking_recv().unwrap());
        assert_eq!(answers, [Ok(()), Ok(())], "{first:?}, then {second:?}");
        assert_eq!(bench.stand(), [format!("global=100/{limit}")], "{first:?}, then {second:?}");
        let is_open = || bench.kernel.is_open(bottle.slot);
        assert_eq!(is_open(), open, "{first:?}, then {second:?}");
        let by: Vec<String> = bench.rows("budget").into_iter().skip(before).map(|row| row.by).collect();
        assert_eq!(by, ["uid:1", "uid:2"]);
    }
}

#[test]
fn a_wider_budget_that_is_used_up_while_a_nearer_one_is_cleared_cuts() {
    let bench = Bench::new("budget: { claude: 1000 }");
    let (own, other) = (bench.attach("own"), bench.attach("other"));
    bench.budget("bottle:own", set(500)).unwrap();
    bench.reserve(1, other, 10);
    assert_eq!(bench.order(), ToMeter::Permit { exchange: 1 });
    bench.silent.store(true, Ordering::SeqCst);
    // it opens, so it waits for the disk; and meanwhile there is nothing left that it could open
    let answer = bench.say_budget("bottle:own", BudgetVerb::Clear, "uid:7");
    bench.settle(1, 1000);
    assert_eq!(bench.order(), ToMeter::Cut { bottle: other, upstream: Upstream::Close });
    assert!(bench.kernel.is_open(own.slot), "its own budget governs it still");
    bench.silent.store(false, Ordering::SeqCst);
    answer.blocking_recv().unwrap().unwrap();
    assert!(!bench.kernel.is_open(own.slot));
}

#[test]
fn what_was_added_and_is_used_up_before_it_counts_opens_nothing() {
    let bench = Bench::new("budget: { claude: 100 }");
    let (restored, other) = (bench.attach("b1"), bench.attach("other"));
    for (exchange, bottle) in [(1, restored), (2, other)] {
        bench.reserve(exchange, bottle, 10);
        assert_eq!(bench.order(), ToMeter::Permit { exchange });
    }
    bench.settle(1, 100);
    bench.silent.store(true, Ordering::SeqCst);
    let (reply, answer) = oneshot::channel();
    let order = api::Restore { add: [("claude".to_owned(), 50)].into(), ..api::Restore::default() };
    bench.core.tell(Message::Restore { name: "b1".into(), order, by: "uid:7".into(), reply });
    // what was under way is told only now
    bench.settle(2, 60);
    bench.ask(|reply| Message::UnderWay { reply });
    bench.silent.store(false, Ordering::SeqCst);
    let problem = answer.blocking_recv().unwrap().unwrap_err();
    assert_eq!((problem.exit_code, problem.error.starts_with("b1 stays cut: ")), (4, true), "{problem:?}");
    assert!(!bench.kernel.is_open(restored.slot));
    assert_eq!(bench.stand(), ["global=160/150"], "what was added is there all the same");
    bench.restore("b1", &[("claude", 50)], false).unwrap();
    assert!(bench.kernel.is_open(restored.slot));
}

#[test]
fn a_window_that_was_reached_and_opened_nothing_yet_opens_at_the_next_start() {
    let yaml =
        "budget: { claude: { tokens: 100, window: daily } }\nbottles: { t: { budget: { claude: 100 } } }";
    let bench = Bench::new(yaml);
    let (daily, total) = (bench.attach("b1"), bench.attach("t"));
    bench.spend(1, daily, 100);
    bench.spend(2, total, 100);
    let pinned = ["b1", "t"].map(|name| pinned(&bench.view(name).attachment, true)).to_vec();
    // the controller dies between the record of the hour and that of the opening
    let ledger = rusqlite::Connection::open(bench.dir.path().join("ledger.db")).unwrap();
    assert_eq!(ledger.execute("UPDATE reached SET window_key = '2090-01-01T00'", []).unwrap(), 1);
    drop(ledger);
    let mut bench = bench.restart(yaml, pinned);
    bench.awaited_rows("restore", 1);
    let until = Instant::now() + SOON;
    while !bench.kernel.is_open(daily.slot) {
        assert!(Instant::now() < until, "recorded and not opened");
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(!bench.kernel.is_open(total.slot), "its window never ends");
}

#[test]
fn a_new_controller_finds_what_was_said() {
    let yaml = "budget: { claude: 100 }\nwarn_at: [50]";
    let mut bench = Bench::new(yaml);
    let bottle = bench.attach("b1");
    bench.budget("global", set(200)).unwrap();
    bench.budget("global", BudgetVerb::Add(10)).unwrap();
    bench.budget("agent:somebody", set(5)).unwrap();
    bench.spend(1, bottle, 150);
    assert_eq!(bench.rows("warn").len(), 1);
    let held = pinned(&bench.view("b1").attachment, false);
    let mut bench = bench.restart(yaml, vec![held.clone()]);
    let expected = ["global=150/210", "agent:somebody=0/5"];
    assert_eq!(bench.stand(), expected);
    assert_eq!(bench.rows("warn").len(), 1, "and does not warn again");
    // a settings file that says less does not change what an operator stated
    let bench = bench.restart("budget: { claude: 1 }", vec![held.clone()]);
    assert_eq!(bench.stand(), expected);
    assert!(bench.view("b1").cause.is_none());
    bench.budget("global", BudgetVerb::Clear).unwrap();
    assert_eq!(bench.stand()[0], "global=150/1");
    assert!(!bench.kernel.is_open(bottle.slot), "what the settings say stands again, and it is used up");
    assert_eq!(bench.budgets()[0].source, "settings");
}

#[test]
fn what_cannot_be_said_is_refused_with_a_hint() {
    let bench = Bench::new("budget: { claude: 100 }");
    let refused = |scope: &str, verb| {
        let problem = bench.budget(scope, verb).unwrap_err();
        assert_eq!(problem.exit_code, 2, "{problem:?}");
        format!("{} [{}]", problem.error, problem.hint.unwrap())
    };
    assert_eq!(
        refused("bottle:b1", BudgetVerb::Add(1)),
        "there is no claude budget of scope bottle:b1 [state one first: enforcer budget set bottle:b1 claude=TOKENS]"
    );
    assert!(
        refused("agent:a", BudgetVerb::Clear).starts_with("there is no claude budget of scope agent:a [")
    );
    assert!(refused("global", BudgetVerb::Clear).contains("stands in the settings; no command stated it ["));
    let unknown = BudgetOrder { provider: "cluade".into(), ..order("global", set(1)) };
    let (by, received) = ("uid:7".into(), Instant::now());
    let problem =
        bench.ask(|reply| Message::StateBudget { order: unknown, by, received, reply }).unwrap_err();
    assert_eq!(problem.hint.as_deref(), Some("known providers: claude, codex, gemini, bedrock"));
}

#[test]
fn a_ceiling_cuts_what_a_nearer_budget_would_let_go_on() {
    let yaml = "scope_rule: ceiling\nbudget: { claude: 100 }\nbottles: { own: { budget: { claude: 500 } } }";
    let bench = Bench::new(yaml);
    let (own, other) = (bench.attach("own"), bench.attach("other"));
    bench.spend(1, own, 100);
    assert!(!bench.kernel.is_open(own.slot) && !bench.kernel.is_open(other.slot));
    let budget = &bench.view("own").budget["claude"];
    assert_eq!((budget.scope.as_str(), budget.limit), ("global", 100));
    assert_eq!(budget.why, "the global budget is a ceiling, and less of it is left");
    assert_eq!(bench.view("own").cause.unwrap().rule.as_deref(), Some("ceiling"));
    bench.budget("bottle:own", set(100)).unwrap();
    let problem = bench.restore("own", &[("claude", 100)], false).unwrap_err();
    let hint = problem.hint.unwrap();
    assert!(
        problem.error.contains("budget of scope global") && hint.contains("enforcer budget add global"),
        "{hint}"
    );
    bench.budget("global", BudgetVerb::Add(401)).unwrap();
    assert!(!bench.kernel.is_open(own.slot), "its own binds it too");
    bench.restore("own", &[("claude", 400)], false).unwrap();
    assert_eq!(bench.view("own").budget["claude"].scope, "bottle", "of both the one with less left");
}

#[test]
fn a_parent_s_budget_counts_its_subtree_and_outlives_its_detach() {
    let yaml = "bottles: { base: { budget: { claude: 100 } }, a: { extends: base }, b: { extends: base } }";
    let bench = Bench::new(yaml);
    bench.attach("base");
    let (a, b, outsider) = (bench.attach("a"), bench.attach("b"), bench.attach("outsider"));
    let attachment = bench.release("base", false, false).unwrap();
    bench.core.tell(Message::Forget { attachment: attachment.id });
    assert!(matches!(bench.order(), ToMeter::Detached { .. }));
    bench.spend(1, a, 60);
    assert!(bench.kernel.is_open(b.slot));
    bench.spend(2, b, 40);
    assert!(!bench.kernel.is_open(a.slot) && !bench.kernel.is_open(b.slot));
    assert!(bench.kernel.is_open(outsider.slot));
    let cause = bench.view("a").cause.unwrap();
    assert_eq!((cause.scope.as_deref(), cause.owner.as_deref()), (Some("parent"), Some("base")));
    // the name is another's now, and what it used is not forgotten
    let again = bench.attach("base");
    assert!(!bench.kernel.is_open(again.slot));
}

#[test]
fn each_warning_is_written_once_with_who_reached_it() {
    let hook = "hooks: { warn: [/bin/h, \"{bottle}\"] }";
    let mut bench = Bench::new(&format!("budget: {{ claude: 100 }}\nwarn_at: [50, 80]\n{hook}"));
    let bottle = bench.attach("b1");
    bench.spend(1, bottle, 49);
    assert_eq!(bench.called(), None);
    assert_eq!(bench.rows("warn"), []);
    bench.spend(2, bottle, 50);
    let warnings = bench.rows("warn");
    let details: Vec<_> = warnings.iter().filter_map(|row| row.detail.as_deref()).collect();
    assert_eq!(details, ["50% of the budget are used", "80% of the budget are used"]);
    let cause = warnings[0].cause.as_ref().unwrap();
    assert_eq!((cause.used, cause.limit, warnings[0].bottle.as_deref()), (Some(99), Some(100), Some("b1")));
    let calls = [bench.called().unwrap(), bench.called().unwrap()];
    assert!(
        calls.iter().all(|call| call.occasion == Occasion::Warn && call.about.bottle == "b1"),
        "{calls:?}"
    );
    assert!(calls[0].about.cause.starts_with("99 of 100 claude tokens used"), "{calls:?}");
    bench.budget("global", set(110)).unwrap();
    assert_eq!(bench.rows("warn").len(), 2, "once in each window");
    assert_eq!(bench.called(), None);
    // another budget is reached by no exchange of a bottle
    bench.budget("bottle:b1", set(198)).unwrap();
    bench.awaited_rows("warn", 3);
    let call = bench.called().unwrap();
    assert_eq!((call.occasion, call.about.bottle.as_str()), (Occasion::Warn, ""));
}

#[test]
fn a_statement_does_to_processes_what_their_policies_say() {
    let mut bench = Bench::new("budget: { claude: 1000 }");
    let killed = bench.attach_with("k", Policy::Kill);
    let frozen = bench.attach_with("f", Policy::Freeze);
    bench.spend(1, frozen, 100);
    bench.budget("global", set(100)).unwrap();
    let mut orders = [bench.held(), bench.held()];
    orders.sort_by(|a, b| a.bottle.cmp(&b.bottle));
    assert_eq!(orders.each_ref().map(|order| &order.act), [&Act::Freeze { snapshot: None }, &Act::Kill]);
    for bottle in [killed, frozen] {
        assert_eq!(bench.kernel.face(bottle.slot), Some(Face::Silent));
    }

    // what an operator opens, knowing that nothing is left, is not closed by words that leave nothing either
    let order = api::Restore { force: true, ..api::Restore::default() };
    let restore = |reply| Message::Restore { name: "f".into(), order, by: "uid:7".into(), reply };
    bench.by_order(restore, Act::Thaw, Ok(String::new())).unwrap();
    bench.budget("global", set(90)).unwrap();
    bench.budget("global", BudgetVerb::Add(5)).unwrap();
    bench.nothing_held();
    assert!(bench.kernel.is_open(frozen.slot));
}

#[test]
fn more_tokens_let_the_frozen_go_on_and_leave_the_killed() {
    let mut bench = Bench::new("budget: { claude: 100 }");
    let killed = bench.attach_with("k", Policy::Kill);
    let frozen = bench.attach_with("f", Policy::Freeze);
    bench.spend(1, frozen, 100);
    drop([bench.held(), bench.held()]);
    bench.budget("global", BudgetVerb::Add(50)).unwrap();
    let order = bench.held();
    assert_eq!((order.bottle.as_str(), &order.act), ("f", &Act::Thaw));
    bench.nothing_held();
    assert!(bench.kernel.is_open(frozen.slot));
    assert!(!bench.kernel.is_open(killed.slot));
}

#[test]
fn windows_are_said_and_kept() {
    let bench = Bench::new("window: weekly\nbudget: { claude: 100 }");
    bench.attach("b1");
    let window = |bench: &Bench| bench.budgets()[0].window;
    assert_eq!(window(&bench), Window::Weekly);
    bench.budget("global", BudgetVerb::Set(SetBudget { tokens: 5, window: Some(Window::Hourly) })).unwrap();
    assert_eq!(window(&bench), Window::Hourly);
    bench.budget("global", set(6)).unwrap();
    assert_eq!(window(&bench), Window::Hourly, "the one that it has");
    assert!(bench.budgets()[0].until.is_some());
    bench.budget("agent:a", set(6)).unwrap();
    assert_eq!(bench.budgets()[1].window, Window::Weekly, "the settings'");
}
