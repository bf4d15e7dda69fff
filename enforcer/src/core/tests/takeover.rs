//! What an earlier controller left in ledger and kernel, and what a new one makes of it.
use super::*;

#[test]
fn a_new_controller_takes_the_more_closed_of_ledger_and_kernel() {
    let bench = Bench::new("");
    let (told, found, open) = (bench.attach("told"), bench.attach("found"), bench.attach("open"));
    bench.cut("told").unwrap();
    let held = ["told", "found", "open"].map(|name| bench.view(name).attachment);
    let bench =
        bench.restart("", vec![pinned(&held[0], false), pinned(&held[1], true), pinned(&held[2], false)]);
    assert!(!bench.kernel.is_open(told.slot), "the ledger says cut");
    assert!(!bench.kernel.is_open(found.slot), "the kernel says cut");
    assert!(bench.kernel.is_open(open.slot));
    assert!(bench.view("told").cause.is_some() && bench.view("found").cause.is_some());
    assert!(bench.view("open").cause.is_none());
}

fn anything_at(range: &str) -> Allowed {
    let ports = AllowedPorts { any: true, ..AllowedPorts::default() };
    Allowed { range: range.parse().unwrap(), ports }
}

#[test]
fn a_guard_that_the_ledger_does_not_know_is_kept_closed() {
    let bench = Bench::new("");
    bench.attach("known");
    let known = bench.view("known").attachment;
    // any cgroup that is there will do: the fake kernel attaches to none
    let somewhere = std::fs::metadata(crate::bottle::cgroup::mount().unwrap()).unwrap().ino();
    let strange = Pinned {
        name: "strange".into(),
        slot: 7,
        generation: 9,
        cgroup_id: somewhere,
        cut: None,
        mute: false,
    };
    let left = [7, known.slot].map(|slot| (slot, vec![anything_at("192.0.2.0/24")]));
    let bench = bench.restart_with("", vec![pinned(&known, false), strange], left.clone());
    assert!(!bench.kernel.is_open(7));
    assert!(bench.kernel.allowed(7).is_empty(), "nor is what an earlier controller let through");
    assert_eq!(bench.kernel.allowed(known.slot), left[1].1, "of others that is not the core's to change");
    let strange = bench.view("strange").attachment;
    assert_eq!(strange.egress, Egress::Metered);
    assert!(bench.kernel.guard(7).unwrap().lockdown);
    assert!(bench.view("strange").cause.unwrap().to_string().contains("not in the ledger"));
    assert!(bench.attach("next").generation > 9, "no generation is given out twice");
}

#[test]
fn a_guard_that_holds_something_else_ends_the_start() {
    let bench = Bench::new("");
    bench.attach("b1");
    let other = Pinned { cgroup_id: 1, ..pinned(&bench.view("b1").attachment, true) };
    let (dir, kernel) = (bench.dir, Arc::new(FakeKernel::with_pinned(vec![other])));
    bench.core.tell(Message::Stop);
    let mut ledger = SqliteLedger::open(&dir.path().join("ledger.db")).unwrap();
    let snapshot = ledger.load().unwrap();
    let (writer, _thread) = Writer::spawn(Box::new(ledger));
    let (changes, _) = broadcast::channel(16);
    let (actor, _aborts) = act::orders();
    let parts = Parts {
        settings: Arc::new(settings("")),
        kernel,
        writer,
        listener: listener(),
        actor,
        hand: policy::orders().0,
        hooks: hooks::calls().0,
        changes,
    };
    assert!(start(parts, snapshot).is_err());
}
