//! What becomes of a ledger that refuses, is slow, or knows of exchanges whose meter died; and the heartbeat.
use super::*;
use crate::clock::DAY_MS;

#[test]
fn requests_are_refused_while_the_ledger_refuses_and_granted_after() {
    let bench = Bench::new("");
    let bottle = bench.attach("b1");
    bench.reserve(1, bottle, 10);
    bench.order();
    bench.refusing.store(true, Ordering::SeqCst);
    bench.settle(1, 10);
    bench.reserve(2, bottle, 10);
    let ToMeter::Refused { exchange: 2, refusal: Refusal::Closed { reason } } = bench.order() else {
        panic!("granted without a ledger, or delivered unsettled")
    };
    assert!(reason.contains("disk full"), "{reason}");
    bench.refusing.store(false, Ordering::SeqCst);
    let until = Instant::now() + SOON;
    while bench.ask(|reply| Message::View { reply }).1.is_some() {
        assert!(Instant::now() < until, "the owed settlement is never paid");
        std::thread::sleep(Duration::from_millis(20));
    }
    bench.reserve(3, bottle, 10);
    assert_eq!(bench.order(), ToMeter::Permit { exchange: 3 });
}

#[test]
fn what_is_refused_for_ever_keeps_the_gate_closed_and_holds_back_nothing_else() {
    let mut bench = Bench::new("");
    let bottle = bench.attach("b1");
    for exchange in [1, 2] {
        bench.reserve(exchange, bottle, 10);
        assert_eq!(bench.order(), ToMeter::Permit { exchange });
    }
    bench.refusing.store(true, Ordering::SeqCst);
    bench.never.store(1, Ordering::SeqCst);
    bench.settle(1, 10);
    bench.settle(2, 20);
    bench.no_order();
    bench.refusing.store(false, Ordering::SeqCst);
    let wait_for = |bench: &mut Bench, settled: usize| {
        let until = Instant::now() + SOON;
        while bench.flows().iter().filter(|flow| flow.status == "completed").count() < settled {
            assert!(Instant::now() < until, "an owed settlement is never paid");
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    wait_for(&mut bench, 1);
    bench.reserve(3, bottle, 10);
    let refused = bench.order();
    assert!(
        matches!(refused, ToMeter::Refused { exchange: 3, refusal: Refusal::Closed { .. } }),
        "{refused:?}"
    );
    bench.never.store(0, Ordering::SeqCst);
    wait_for(&mut bench, 2);
    while bench.ask(|reply| Message::View { reply }).1.is_some() {
        std::thread::sleep(Duration::from_millis(5));
    }
    bench.reserve(4, bottle, 10);
    assert_eq!(bench.order(), ToMeter::Permit { exchange: 4 });
}

#[test]
fn what_was_under_way_when_the_meter_died_is_charged_at_its_reservation() {
    let mut bench = Bench::new("budget: { claude: 1000 }");
    let bottle = bench.attach("b1");
    bench.reserve(1, bottle, 300);
    bench.order();
    bench.say(ToController::Progress(vec![(1, Tokens { input: 40, output: 20, ..Tokens::default() })]));
    bench.core.tell(Message::MeterLost { epoch: 1 });
    assert_eq!(bench.view("b1").budget["claude"].used, 300);
    assert_eq!(bench.view("b1").usage["claude"].estimated, 300);
    let until = Instant::now() + SOON;
    while bench.flows()[0].status == "open" {
        assert!(Instant::now() < until, "the orphan is never settled");
        std::thread::sleep(Duration::from_millis(10));
    }
    let flow = bench.flows().remove(0);
    assert_eq!((flow.status.as_str(), flow.provenance.as_deref()), ("orphaned", Some("estimated")));
    assert_eq!((flow.usage.input, flow.usage.output), (40, 260));
}

#[test]
fn a_ledger_that_does_not_answer_closes_the_gate_until_it_does() {
    let bench = Bench::new("");
    let bottle = bench.attach("b1");
    bench.silent.store(true, Ordering::SeqCst);
    bench.reserve(1, bottle, 10);
    bench.no_order();
    std::thread::sleep(super::durable::PATIENCE);
    bench.reserve(2, bottle, 10);
    let ToMeter::Refused { exchange: 2, refusal: Refusal::Closed { reason } } = bench.order() else {
        panic!("nothing opens on a ledger that is not there");
    };
    assert_eq!(reason, "the ledger has not answered for 5 s");
    let (_, closed) = bench.ask(|reply| Message::View { reply });
    assert!(closed.unwrap().starts_with("the ledger has not answered"));
    assert!(bench.kernel.is_open(bottle.slot), "the network is not the disk's business");

    bench.silent.store(false, Ordering::SeqCst);
    assert_eq!(bench.order(), ToMeter::Permit { exchange: 1 });
    bench.reserve(3, bottle, 10);
    assert_eq!(bench.order(), ToMeter::Permit { exchange: 3 });
}

#[test]
fn a_day_that_is_asked_for_again_before_it_is_written_is_rolled_up_and_told_once() {
    let mut bench = Bench::new("");
    let bottle = bench.attach("b1");
    bench.spend(1, bottle, 100);
    let start = now_ms().div_euclid(DAY_MS) * DAY_MS;
    // a day is begun and may end while this runs
    let days = [start, start + DAY_MS].map(|start| start..start + DAY_MS);
    bench.silent.store(true, Ordering::SeqCst);
    for day in [days.clone(), days.clone(), days].into_iter().flatten() {
        bench.core.tell(Message::RollUp(day));
    }
    bench.no_order();
    bench.silent.store(false, Ordering::SeqCst);
    // what is written is so in order
    bench.core.tell(Message::Warn { bottle: None, detail: "last".into(), failed: false });
    bench.awaited_rows("warn", 1);
    assert_eq!(bench.flows(), []);
    assert_eq!(bench.rows("retention").len(), 1, "{:?}", bench.rows("retention"));
    assert_eq!(bench.view("b1").usage["claude"].total, 100);
}

#[test]
fn the_heart_beats_by_itself_and_each_bottle_has_the_lease() {
    let bench = Bench::new("lease: 3s");
    let bottle = bench.attach("b1");
    assert_eq!(bench.kernel.lease(bottle.slot), Some(Duration::from_secs(3)));
    let before = bench.kernel.beats();
    let until = Instant::now() + SOON;
    while bench.kernel.beats() < before + 3 && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(bench.kernel.beats() >= before + 3, "it beats while nothing happens");
    let without = Bench::new("lease: off");
    assert_eq!(without.kernel.lease(without.attach("b1").slot), None);
}
