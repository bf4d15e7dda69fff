//! The two faces of a cut: which one is shown, to whom, and what the lane is told of it.
use super::processes::thaw;
use super::*;
use crate::audit::Processes;
use crate::policy::Act;

impl Bench {
    fn cut_as(&self, name: &str, face: Option<Face>, hard: bool) {
        let order = api::Cut { face, hard, ..api::Cut::default() };
        let (by, received) = ("uid:7".into(), Instant::now());
        self.ask(|reply| Message::Cut { name: name.into(), order, by, received, reply }).unwrap();
    }

    /// Uses up what is allowed.
    fn cross(&self, bottle: BottleRef) {
        self.reserve(1, bottle, 10);
        assert_eq!(self.order(), ToMeter::Permit { exchange: 1 });
        self.settle(1, 1_000);
        self.view("b1");
    }

    fn faces(&self, bottle: BottleRef) -> [Option<Face>; 2] {
        [self.view("b1").face, self.kernel.face(bottle.slot)]
    }

    fn aborts(&self) -> Vec<Which> {
        self.aborts.try_iter().map(|abort| abort.which).collect()
    }
}

#[test]
fn a_crossing_shows_the_face_that_is_set_and_closes_upstream_whichever_it_is() {
    for (yaml, face, aborts) in
        [("", Face::Answered, &[Which::Metered][..]), ("cut: silent\n", Face::Silent, &[])]
    {
        let bench = Bench::new(&format!("{yaml}budget: {{ claude: 100 }}"));
        let bottle = bench.attach("b1");
        bench.cross(bottle);
        assert_eq!(bench.faces(bottle), [Some(face); 2]);
        assert_eq!(bench.aborts(), aborts);
        let told: Vec<ToMeter> = bench.orders.try_iter().collect();
        assert!(told.contains(&ToMeter::Cut { bottle, upstream: Upstream::Close }), "{told:?}");
    }
}

#[test]
fn of_two_faces_the_more_closed_stands_and_the_first_cause_with_it() {
    let budget = "budget: { claude: 100 }";
    // silence over an answer
    let bench = Bench::new(budget);
    let bottle = bench.attach("b1");
    bench.cross(bottle);
    bench.cut_as("b1", Some(Face::Answered), false);
    assert_eq!(bench.faces(bottle), [Some(Face::Answered); 2]);
    bench.cut_as("b1", None, false);
    assert_eq!(bench.faces(bottle), [Some(Face::Silent); 2]);
    assert_eq!(bench.told.try_iter().collect::<Vec<_>>(), [ToLane::Opened { bottle }]);
    let cause = bench.view("b1").cause.unwrap();
    assert_eq!((cause.kind, cause.face), (crate::audit::CauseKind::Budget, Face::Silent));

    // an answer never over silence
    let bench = Bench::new(budget);
    let bottle = bench.attach("b1");
    bench.reserve(1, bottle, 10);
    bench.cut_as("b1", None, false);
    bench.settle(1, 1_000);
    bench.cut_as("b1", Some(Face::Answered), false);
    assert_eq!(bench.faces(bottle), [Some(Face::Silent); 2]);
    assert!(bench.aborts().is_empty(), "its connections are held");

    bench.restore("b1", &[("claude", 5_000)], false).unwrap();
    assert_eq!(bench.faces(bottle), [None; 2]);
    bench.cut_as("b1", Some(Face::Answered), false);
    assert_eq!(bench.faces(bottle), [Some(Face::Answered); 2]);
    bench.told.try_iter().for_each(drop);
    bench.restore("b1", &[], false).unwrap();
    assert_eq!(bench.told.try_iter().collect::<Vec<_>>(), [ToLane::Opened { bottle }]);
}

#[test]
fn a_nested_bottle_sees_the_most_closed_of_the_cuts_around_it() {
    let bench = Bench::new("");
    let outer = bench.attach_as("outer", "/sys/fs/cgroup/o", &[]);
    let inner = bench.attach_as("b1", "/sys/fs/cgroup/o/i", &[]);
    bench.cut_as("outer", Some(Face::Answered), false);
    let abort = bench.aborts.recv_timeout(SOON).unwrap();
    let slots = [outer, inner].map(|bottle| (bottle.slot, bottle.generation)).to_vec();
    assert_eq!((abort.slot, abort.slots), (outer.slot, slots));
    assert_eq!(bench.view("b1").face, Some(Face::Answered));
    bench.cut_as("b1", None, true);
    assert_eq!(bench.aborts(), [Which::All]);
    assert_eq!((bench.view("b1").face, bench.view("outer").face), (Some(Face::Silent), Some(Face::Answered)));
}

#[test]
fn no_cut_is_answered_of_who_rules_over_its_network_nor_of_a_bottle_around_it() {
    let mut bench = Bench::new("budget: { claude: 100 }");
    let outer = bench.attach_as("outer", "/sys/fs/cgroup/o", &[]);
    let other = bench.attach("b1");
    bench.cut_as("outer", Some(Face::Answered), false);
    assert_eq!(bench.kernel.face(outer.slot), Some(Face::Answered));
    let mute = bench.attach_as("mute", "/sys/fs/cgroup/o/i", &[]);
    assert_eq!(bench.kernel.face(outer.slot), Some(Face::Silent), "it is in there too");
    assert_eq!(bench.view("outer").cause.unwrap().face, Face::Silent);
    bench.restore("outer", &[], false).unwrap();
    for name in ["outer", "mute"] {
        bench.cut_as(name, Some(Face::Answered), false);
        assert_eq!(bench.view(name).face, Some(Face::Silent));
        bench.restore(name, &[], false).unwrap();
    }
    bench.orders.try_iter().for_each(drop);
    bench.cross(mute);
    for (bottle, face) in [(mute, Face::Silent), (outer, Face::Silent), (other, Face::Answered)] {
        assert_eq!(bench.kernel.face(bottle.slot), Some(face));
    }
    // a cut by a budget waits for nobody's commit
    let told = |bench: &mut Bench| {
        let rows = bench.reader.audit(0, 100).unwrap().into_iter();
        rows.filter(|row| row.detail.as_deref().is_some_and(|detail| detail.contains("rules over"))).count()
    };
    let until = Instant::now() + SOON;
    while told(&mut bench) < 5 && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(told(&mut bench), 5, "each cut that was to be answered says why it is not");

    let held = Pinned { mute: true, ..pinned(&bench.view("mute").attachment, true) };
    let bench = bench.restart("", vec![held]);
    assert_eq!(bench.kernel.guard(mute.slot).map(|guard| guard.mute), Some(true));
    bench.restore("mute", &[], true).unwrap();
    bench.cut_as("mute", Some(Face::Answered), false);
    assert_eq!(bench.kernel.face(mute.slot), Some(Face::Silent), "a new controller knows");
}

#[test]
fn what_a_thaw_leaves_of_who_is_never_answered_is_written_as_silent() {
    let mut bench = Bench::new("budget: { claude: 100 }");
    let mute = bench.attach_with("mute", Policy::Freeze);
    bench.spend(1, mute, 100);
    let by_budget = bench.held();
    bench.acted(by_budget, Ok(String::new()));
    bench.by_order(thaw("mute"), Act::Thaw, Ok(String::new())).unwrap();
    let cause = bench.view("mute").cause.unwrap();
    assert_eq!((cause.face, cause.processes), (Face::Silent, Processes::Running));
    assert_eq!(bench.written(), [Some(cause)]);
}

#[test]
fn the_face_is_kept_by_the_ledger_and_the_more_closed_one_by_the_kernel() {
    for (in_kernel, face) in
        [(Some(Face::Answered), Face::Answered), (Some(Face::Silent), Face::Silent), (None, Face::Answered)]
    {
        let bench = Bench::new("");
        bench.attach("b1");
        bench.cut_as("b1", Some(Face::Answered), false);
        let held = Pinned { cut: in_kernel, ..pinned(&bench.view("b1").attachment, true) };
        let slot = held.slot;
        let bench = bench.restart("", vec![held]);
        assert_eq!((bench.view("b1").face, bench.kernel.face(slot)), (Some(face), Some(face)));
    }
}

#[test]
fn the_lane_is_told_why_of_an_answered_cut_alone() {
    let bench = Bench::new("budget: { claude: 100 }");
    let bottle = bench.attach("b1");
    let (peer, local) = ("127.0.0.1:40000".parse().unwrap(), "127.0.0.1:7081".parse().unwrap());
    let asked: SocketAddr = "203.0.113.7:443".parse().unwrap();
    bench.kernel.connect(bottle.slot, peer, local, asked);
    let because = |epoch, peer| {
        bench.told.try_iter().for_each(drop);
        let why = Why { question: 3, peer, local, listener: LISTENER_HOST };
        bench.core.tell(Message::Why { epoch, why });
        bench.view("b1");
        bench.told.try_iter().next()
    };
    let nothing = Some(ToLane::Because { question: 3, answer: None });
    assert_eq!(because(1, peer), nothing, "it is open");
    bench.cross(bottle);
    let Some(ToLane::Because { question: 3, answer: Some(answer) }) = because(1, peer) else {
        panic!("it is cut, and answered")
    };
    assert_eq!((answer.bottle, answer.name.as_str(), answer.original), (bottle, "b1", Some(asked)));
    let Refusal::Budget { provider, scope, limit, used, .. } = answer.refusal else { panic!("{answer:?}") };
    assert_eq!((provider.as_str(), scope.as_str(), limit, used), ("claude", "global", 100, 1_000));
    assert_eq!(because(1, "127.0.0.1:40001".parse().unwrap()), nothing, "nobody's");
    assert_eq!(because(2, peer), None, "an earlier lane's question");
    bench.cut_as("b1", None, false);
    assert_eq!(because(1, peer), nothing, "it is cut silently");
}
