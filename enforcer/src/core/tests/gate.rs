//! The gate: what is let through, what waits, what is refused, and by which figures.
use super::*;

#[test]
fn a_permit_comes_after_its_reservation_is_durable() {
    let mut bench = Bench::new("budget: { claude: 1000 }");
    let bottle = bench.attach("b1");
    bench.reserve(1, bottle, 100);
    assert_eq!(bench.order(), ToMeter::Permit { exchange: 1 });
    let flows = bench.flows();
    assert_eq!((flows[0].status.as_str(), flows[0].reserved), ("open", 100));
    assert_eq!(bench.view("b1").budget["claude"].reserved, 100);

    bench.settle(1, 70);
    assert_eq!(bench.order(), ToMeter::Settled { exchange: 1 });
    let flows = bench.flows();
    assert_eq!((flows[0].status.as_str(), flows[0].usage.total), ("completed", 70));
    let budget = &bench.view("b1").budget["claude"];
    assert_eq!((budget.used, budget.reserved, budget.remaining), (70, 0, 930));
}

#[test]
fn a_budget_that_is_used_up_refuses_with_its_figures() {
    let bench = Bench::new("budget: { claude: 100 }\nbottles: { b1: { budget: { claude: 50 } } }");
    let bottle = bench.attach("b1");
    bench.reserve(1, bottle, 10);
    bench.order();
    bench.settle(1, 60);
    assert_eq!(bench.order(), ToMeter::Cut { bottle, upstream: Upstream::Close });
    assert_eq!(bench.order(), ToMeter::Settled { exchange: 1 });
    bench.restore("b1", &[], true).unwrap();
    assert_eq!(bench.order(), ToMeter::Open { bottle });
    bench.reserve(2, bottle, 10);
    let ToMeter::Refused { exchange: 2, refusal } = bench.order() else { panic!("not refused") };
    let Refusal::Budget { scope, owner, limit, used, .. } = &refusal else { panic!("{refusal:?}") };
    assert_eq!((scope.as_str(), owner.as_str(), *limit, *used), ("bottle", "b1", 50, 60));
}

#[test]
fn a_request_waits_while_only_reservations_stand_in_its_way() {
    let bench = Bench::new("budget: { claude: 100 }");
    let bottle = bench.attach("b1");
    bench.reserve(1, bottle, 150);
    assert_eq!(bench.order(), ToMeter::Permit { exchange: 1 });
    bench.reserve(2, bottle, 10);
    bench.no_order();
    bench.settle(1, 5);
    let orders = [bench.order(), bench.order()];
    for order in [ToMeter::Settled { exchange: 1 }, ToMeter::Permit { exchange: 2 }] {
        assert!(orders.contains(&order), "{orders:?}");
    }
}

#[test]
fn what_is_released_lets_in_who_waits_for_it_in_order_and_nobody_else() {
    let yaml = "budget: { claude: 100 }\nscope_rule: strictest\nbottles: { own: { budget: { claude: 50 } } }";
    let bench = Bench::new(yaml);
    let (one, own) = (bench.attach("one"), bench.attach("own"));
    bench.reserve(1, own, 60);
    assert_eq!(bench.order(), ToMeter::Permit { exchange: 1 });
    bench.reserve(2, own, 10);
    bench.reserve(3, one, 60);
    assert_eq!(bench.order(), ToMeter::Permit { exchange: 3 }, "only its own budget is spoken for");
    bench.reserve(4, one, 10);
    bench.reserve(5, own, 10);
    bench.no_order();
    // of the global budget something is left then, of the other one still nothing
    bench.settle(3, 1);
    let orders = [bench.order(), bench.order()];
    for order in [ToMeter::Settled { exchange: 3 }, ToMeter::Permit { exchange: 4 }] {
        assert!(orders.contains(&order), "{orders:?}");
    }
    bench.no_order();
    bench.settle(1, 1);
    let orders = [bench.order(), bench.order(), bench.order()];
    for order in [1, 2, 5].map(|n| match n {
        1 => ToMeter::Settled { exchange: 1 },
        exchange => ToMeter::Permit { exchange },
    }) {
        assert!(orders.contains(&order), "{orders:?}");
    }
}

#[test]
fn a_cut_answers_the_bottle_s_own_requests_at_the_gate() {
    let bench = Bench::new("budget: { claude: 100 }");
    let (one, two) = (bench.attach("one"), bench.attach("two"));
    bench.reserve(1, two, 150);
    bench.order();
    bench.reserve(2, one, 10);
    bench.reserve(3, two, 10);
    bench.no_order();
    bench.cut("one").unwrap();
    let orders = [bench.order(), bench.order()];
    assert!(orders.contains(&ToMeter::Cut { bottle: one, upstream: Upstream::Hold }), "{orders:?}");
    let refused =
        |order: &ToMeter| matches!(order, ToMeter::Refused { exchange: 2, refusal: Refusal::Cut { .. } });
    assert!(orders.iter().any(refused), "{orders:?}");
    bench.no_order();
    bench.settle(1, 5);
    let orders = [bench.order(), bench.order()];
    assert!(orders.contains(&ToMeter::Permit { exchange: 3 }), "{orders:?}");
}

#[test]
fn who_hangs_up_at_the_gate_is_forgotten() {
    let bench = Bench::new("budget: { claude: 100 }");
    let bottle = bench.attach("b1");
    bench.reserve(1, bottle, 150);
    bench.order();
    bench.reserve(2, bottle, 10);
    bench.say(ToController::Withdraw { exchange: 2 });
    bench.settle(1, 5);
    assert_eq!(bench.order(), ToMeter::Settled { exchange: 1 });
    bench.no_order();
    assert_eq!(bench.ask(|reply| Message::UnderWay { reply }), 0);
}

#[test]
fn the_gate_off_reserves_nothing_and_still_refuses_what_is_used_up() {
    let bench = Bench::new("gate: off\nbudget: { claude: 100 }");
    let bottle = bench.attach("b1");
    bench.reserve(1, bottle, 5_000);
    assert_eq!(bench.order(), ToMeter::Permit { exchange: 1 });
    assert_eq!(bench.view("b1").budget["claude"].reserved, 0);
    bench.settle(1, 100);
    bench.order();
    bench.order();
    bench.restore("b1", &[], true).unwrap();
    bench.order();
    bench.reserve(2, bottle, 10);
    assert!(matches!(bench.order(), ToMeter::Refused { refusal: Refusal::Budget { .. }, .. }));
}

#[test]
fn a_socket_is_judged_as_a_request_would_be_and_nothing_is_reserved() {
    let mut bench = Bench::new("budget: { claude: 100 }");
    let bottle = bench.attach("b1");
    let judged = |bottle| {
        bench.say(ToController::Judge { question: 9, bottle, provider: "claude".into() });
        match bench.order() {
            ToMeter::Judged { question: 9, refusal } => refusal,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(judged(bottle), None);
    bench.reserve(1, bottle, 100);
    assert_eq!(bench.order(), ToMeter::Permit { exchange: 1 });
    assert_eq!(judged(bottle), None, "what others have reserved may come back");
    let stale = BottleRef { generation: bottle.generation + 1, ..bottle };
    assert_eq!(judged(stale), Some(Refusal::Unattached));
    bench.settle(1, 120);
    let told = [bench.order(), bench.order()];
    assert!(told.iter().any(|order| matches!(order, ToMeter::Cut { .. })), "{told:?}");
    assert!(matches!(judged(bottle), Some(Refusal::Cut { .. })));
    bench.restore("b1", &[], true).unwrap();
    assert!(matches!(bench.order(), ToMeter::Open { .. }));
    assert!(
        matches!(judged(bottle), Some(Refusal::Budget { limit: 100, used: 120, .. })),
        "open, and refused"
    );
    let told = bench.awaited_rows("refuse", 1);
    assert_eq!(told.len(), 1, "one row for all in this span: {told:?}");
    assert_eq!(bench.flows().len(), 1);
}

#[test]
fn what_the_host_has_under_way_is_stopped_where_its_budget_is_used_up() {
    let mut bench = Bench::new("unattached: meter\nbudget: { claude: 100 }");
    let other = bench.attach_as("b1", "/sys/fs/cgroup/b1", &[("claude", 1_000)]);
    let host = BottleRef { slot: HOST_SLOT, generation: 0 };
    for (exchange, bottle) in [(1, host), (2, host), (3, other)] {
        bench.reserve(exchange, bottle, 0);
        assert_eq!(bench.order(), ToMeter::Permit { exchange });
    }
    let seen = |exchange, output| {
        let tokens = Tokens { output, ..Tokens::default() };
        bench.say(ToController::Progress(vec![(exchange, tokens)]));
    };
    seen(1, 99);
    bench.no_order();
    seen(1, 100);
    let mut stopped = Vec::new();
    for _ in 0..2 {
        match bench.order() {
            ToMeter::Refused { exchange, refusal: Refusal::Budget { used: 100, limit: 100, .. } } => {
                stopped.push(exchange);
            }
            order => panic!("{order:?}"),
        }
    }
    stopped.sort_unstable();
    assert_eq!(stopped, [1, 2], "and nobody else's");
    bench.no_order();
    let told = bench.awaited_rows("refuse", 1);
    assert_eq!((told.len(), told[0].bottle.as_deref()), (1, Some("host")), "{told:?}");
}

#[test]
fn figures_that_weigh_less_than_what_was_reserved_for_them_let_the_next_in() {
    let bench = Bench::new("budget: { claude: 100 }\nweights: { cache_read: 0.1 }");
    let bottle = bench.attach("b1");
    bench.reserve(1, bottle, 100);
    assert_eq!(bench.order(), ToMeter::Permit { exchange: 1 });
    bench.reserve(2, bottle, 10);
    bench.no_order();
    bench.say(ToController::Progress(vec![(1, Tokens { cache_read: 90, ..Tokens::default() })]));
    assert_eq!(bench.order(), ToMeter::Permit { exchange: 2 });
}
