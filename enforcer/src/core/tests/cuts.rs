//! Whom a crossing cuts, in which order, and what a restore opens.
use super::*;

#[test]
fn crossing_in_the_middle_of_a_stream_cuts_before_anything_is_written() {
    let mut bench = Bench::new("budget: { claude: 100 }");
    let bottle = bench.attach("b1");
    bench.reserve(1, bottle, 10);
    assert_eq!(bench.order(), ToMeter::Permit { exchange: 1 });
    bench.refusing.store(true, Ordering::SeqCst);
    bench.say(ToController::Progress(vec![(1, Tokens { output: 99, ..Tokens::default() })]));
    bench.no_order();
    assert!(bench.kernel.is_open(bottle.slot));
    bench.say(ToController::Progress(vec![(1, Tokens { output: 100, ..Tokens::default() })]));
    assert_eq!(bench.order(), ToMeter::Cut { bottle, upstream: Upstream::Close });
    assert!(!bench.kernel.is_open(bottle.slot), "cut although the ledger refuses");

    bench.refusing.store(false, Ordering::SeqCst);
    let cause = bench.view("b1").cause.unwrap();
    assert_eq!((cause.scope.as_deref(), cause.limit, cause.used), (Some("global"), Some(100), Some(100)));
    assert_eq!(cause.flow, Some(bench.flows()[0].id));
    let cut = std::iter::repeat_with(|| {
        std::thread::sleep(Duration::from_millis(20));
        bench.actions()
    })
    .take(250)
    .find_map(|rows| rows.into_iter().find(|row| row.action == "cut"))
    .expect("the cut is recorded once the ledger answers again");
    assert!(cut.took_us.is_some());
}

#[test]
fn an_answer_that_a_cut_breaks_off_ended_by_it_however_the_meter_saw_it_end() {
    let mut bench = Bench::new("");
    let (cut, open) = (bench.attach("b1"), bench.attach_as("b2", "/sys/fs/cgroup/b2", &[]));
    for (exchange, bottle) in [(1, cut), (2, open)] {
        bench.reserve(exchange, bottle, 10);
        assert_eq!(bench.order(), ToMeter::Permit { exchange });
    }
    bench.cut("b1").unwrap();
    assert!(matches!(bench.order(), ToMeter::Cut { .. }));
    for exchange in [1, 2] {
        bench.settle_as(exchange, 5, Ending::ClientGone);
        assert_eq!(bench.order(), ToMeter::Settled { exchange });
    }
    let endings: Vec<_> = bench.flows().iter().map(|flow| flow.status.clone()).collect();
    assert_eq!(endings, ["cut", "client_gone"]);
}

#[test]
fn the_global_budget_cuts_whom_it_governs_and_nobody_else() {
    let bench = Bench::new("budget: { claude: 100 }\nbottles: { own: { budget: { claude: 500 } } }");
    let (one, two, own) = (bench.attach("one"), bench.attach("two"), bench.attach("own"));
    bench.reserve(1, one, 10);
    bench.order();
    bench.settle(1, 100);
    let cuts = [bench.order(), bench.order()];
    for bottle in [one, two] {
        assert!(cuts.contains(&ToMeter::Cut { bottle, upstream: Upstream::Close }), "{cuts:?}");
        assert!(!bench.kernel.is_open(bottle.slot));
    }
    assert!(bench.kernel.is_open(own.slot));
    bench.attach_as("late", "/sys/fs/cgroup/late", &[]);
    assert!(bench.view("late").cause.is_some(), "attached under a used-up budget: cut from the start");
}

#[test]
fn a_budget_that_had_room_again_is_crossed_again() {
    let bench = Bench::new("budget: { claude: 100 }");
    let (one, two) = (bench.attach("one"), bench.attach("two"));
    for exchange in [1, 2] {
        bench.reserve(exchange, one, 1);
        assert_eq!(bench.order(), ToMeter::Permit { exchange });
    }
    let cut = |bench: &Bench| [one, two].map(|bottle| !bench.kernel.is_open(bottle.slot));
    bench.say(ToController::Progress(vec![(1, Tokens { output: 100, ..Tokens::default() })]));
    // the provider bills less than what was seen
    bench.settle(1, 50);
    assert_eq!((bench.view("one").budget["claude"].used, cut(&bench)), (50, [true, true]));
    for name in ["one", "two"] {
        bench.restore(name, &[], false).unwrap();
    }
    bench.settle(2, 50);
    assert_eq!((bench.view("one").budget["claude"].used, cut(&bench)), (100, [true, true]));
}

#[test]
fn a_launch_budget_overrides_and_a_nested_bottle_charges_its_parent() {
    let bench = Bench::new("bottles: { outer: { budget: { claude: 100 } } }");
    let outer = bench.attach("outer");
    let inner = bench.attach_as("inner", "/sys/fs/cgroup/outer/inner", &[("claude", 1_000)]);
    assert_eq!(bench.view("inner").attachment.parent.as_deref(), Some("outer"));
    bench.reserve(1, inner, 10);
    bench.order();
    bench.settle(1, 100);
    let orders = [bench.order(), bench.order()];
    for bottle in [outer, inner] {
        assert!(orders.contains(&ToMeter::Cut { bottle, upstream: Upstream::Close }), "{orders:?}");
    }
    assert!(bench.kernel.is_open(inner.slot), "its own budget has 900 left");
    assert_eq!(bench.view("inner").budget["claude"].scope, "launch");
    assert_eq!(bench.order(), ToMeter::Settled { exchange: 1 });
    bench.reserve(2, inner, 10);
    assert!(
        matches!(bench.order(), ToMeter::Refused { refusal: Refusal::Cut { .. }, .. }),
        "the outer cut holds"
    );
    bench.restore("outer", &[("claude", 1_000)], false).unwrap();
    let orders = [bench.order(), bench.order()];
    for bottle in [outer, inner] {
        assert!(orders.contains(&ToMeter::Open { bottle }), "{orders:?}");
    }
}

#[test]
fn restore_opens_what_the_tokens_cover_and_keeps_debt() {
    let mut bench = Bench::new("budget: { claude: 100 }");
    let bottle = bench.attach("b1");
    bench.reserve(1, bottle, 10);
    bench.order();
    bench.settle(1, 150);
    bench.order();
    bench.order();
    let problem = bench.restore("b1", &[], false).unwrap_err();
    assert_eq!(problem.exit_code, 4);
    assert!(bench.restore("b1", &[("claude", 50)], false).is_err(), "50 only cover the debt");
    bench.restore("b1", &[("claude", 51)], false).unwrap();
    assert!(bench.kernel.is_open(bottle.slot));
    assert_eq!(bench.view("b1").budget["claude"].remaining, 1);
    let restored = bench.actions().into_iter().rfind(|row| row.action == "restore").unwrap();
    assert_eq!((restored.by.as_str(), restored.outcome.as_str()), ("uid:7", "done"));
}

#[test]
fn restore_is_written_before_anything_opens() {
    let bench = Bench::new("");
    let bottle = bench.attach("b1");
    bench.cut("b1").unwrap();
    assert_eq!(bench.order(), ToMeter::Cut { bottle, upstream: Upstream::Hold });
    bench.refusing.store(true, Ordering::SeqCst);
    assert!(bench.restore("b1", &[], false).is_err());
    assert!(!bench.kernel.is_open(bottle.slot));
    assert!(bench.view("b1").cause.is_some());
}
