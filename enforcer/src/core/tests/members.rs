//! Attach and detach: who may, what a cut has to say to it, and where it goes when the cgroup is gone.
use super::*;

#[test]
fn a_cut_bottle_is_let_go_only_by_force() {
    let bench = Bench::new("");
    let bottle = bench.attach("b1");
    bench.cut("b1").unwrap();
    bench.order();
    assert_eq!(bench.release("b1", false, false).unwrap_err().exit_code, 4);
    let attachment = bench.release("b1", true, false).unwrap();
    assert_eq!(bench.order(), ToMeter::Detached { bottle });
    assert!(!bench.kernel.is_open(bottle.slot), "closed until the hooks are off");
    bench.core.tell(Message::Forget { attachment: attachment.id });
    let again = bench.attach("b1");
    assert!(bench.kernel.is_open(again.slot), "whoever forces it means it");
}

#[test]
fn a_kept_cut_goes_over_to_the_next_attachment_until_it_is_restored() {
    let mut bench = Bench::new("");
    bench.attach("b1");
    bench.cut("b1").unwrap();
    let attachment = bench.release("b1", true, true).unwrap();
    bench.core.tell(Message::Forget { attachment: attachment.id });
    // the first try ends before it is guarded, and loses nothing
    let tried = bench.admit("b1", "/sys/fs/cgroup/b1", &[]);
    bench.core.tell(Message::Forget { attachment: tried.id });
    let again = bench.attach("b1");
    assert!(!bench.kernel.is_open(again.slot));
    assert_eq!(bench.view("b1").cause.unwrap().by, "uid:7");
    bench.restore("b1", &[], false).unwrap();
    assert!(bench.kernel.is_open(again.slot));
    let attachment = bench.release("b1", false, true).unwrap();
    bench.core.tell(Message::Forget { attachment: attachment.id });
    let last = bench.attach("b1");
    assert!(bench.kernel.is_open(last.slot), "there was no cut to keep");
    assert_eq!(bench.actions().iter().filter(|row| row.action == "cut").count(), 2, "the kept one too");
}

#[test]
fn a_cut_whose_cgroup_went_while_nobody_looked_is_kept_for_what_the_settings_attach_again() {
    let yaml = "bottles: { kept: { cgroup: /sys/fs/cgroup/kept }, lost: {} }";
    let bench = Bench::new(yaml);
    bench.attach("kept");
    bench.attach("lost");
    bench.cut("kept").unwrap();
    bench.cut("lost").unwrap();
    let gone =
        ["kept", "lost"].map(|name| Pinned { cgroup_id: 0, ..pinned(&bench.view(name).attachment, true) });
    let bench = bench.restart(yaml, gone.to_vec());
    // and once more before its cgroup is back
    let bench = bench.restart(yaml, vec![]);
    let [kept, lost] = ["kept", "lost"].map(|name| bench.attach(name));
    assert!(!bench.kernel.is_open(kept.slot));
    assert!(bench.kernel.is_open(lost.slot));
}

#[test]
fn a_cut_that_comes_while_a_bottle_is_being_attached_holds() {
    let mut bench = Bench::new("");
    let attachment = bench.admit("b1", "/sys/fs/cgroup/b1", &[]);
    bench.cut("b1").unwrap();
    bench.guarded(attachment.id);
    assert!(!bench.kernel.is_open(attachment.slot));
    assert!(bench.view("b1").cause.is_some());
    bench.restore("b1", &[], false).unwrap();
    assert!(bench.kernel.is_open(attachment.slot));
    assert!(bench.actions().iter().any(|row| row.action == "cut" && row.by == "uid:7"));
}

#[test]
fn what_is_being_attached_cannot_be_restored_and_owes_nothing_for_that() {
    let bench = Bench::new("");
    let attachment = bench.admit("b1", "/sys/fs/cgroup/b1", &[]);
    let problem = bench.restore("b1", &[], false).unwrap_err();
    assert_eq!(problem.error, "b1 is still being attached");
    bench.guarded(attachment.id);
    assert!(bench.kernel.is_open(attachment.slot));
    assert_eq!(bench.ask(|reply| Message::View { reply }).1, None);
}

#[test]
fn a_release_that_is_refused_leaves_what_was_decided_meanwhile() {
    let bench = Bench::new("");
    let bottle = bench.attach("b1");
    bench.cut("b1").unwrap();
    bench.silent.store(true, Ordering::SeqCst);
    let (reply, restored) = oneshot::channel();
    let order = api::Restore::default();
    bench.core.tell(Message::Restore { name: "b1".into(), order, by: "uid:7".into(), reply });
    // the writer has taken the restore alone
    std::thread::sleep(Duration::from_millis(50));
    let (reply, released) = oneshot::channel();
    let (name, by) = ("b1".into(), "uid:7".into());
    bench.core.tell(Message::Release { name, force: true, keep_cut: false, by, reply });
    bench.step.store(true, Ordering::SeqCst);
    restored.blocking_recv().unwrap().unwrap();
    assert!(!bench.kernel.is_open(bottle.slot), "it is being let go");
    bench.refusing.store(true, Ordering::SeqCst);
    bench.step.store(true, Ordering::SeqCst);
    released.blocking_recv().unwrap().unwrap_err();
    assert_eq!((bench.view("b1").cause, bench.kernel.is_open(bottle.slot)), (None, true));
    bench.silent.store(false, Ordering::SeqCst);
}

#[test]
fn no_bottle_is_its_own_ancestor() {
    let bench = Bench::new("bottles: { base: { budget: { claude: 10 } }, reviewer: { extends: base } }");
    let admission = Admission {
        name: "base".into(),
        agent: None,
        parent: Some("reviewer".into()),
        cgroup: "/sys/fs/cgroup/base".into(),
        cgroup_id: 9,
        owns_cgroup: false,
        container: None,
        policy: Policy::Cutoff,
        egress: Egress::Open,
        launch_budget: BTreeMap::new(),
        mute: false,
    };
    let problem = bench.ask(|reply| Message::Admit { admission, reply }).unwrap_err();
    assert_eq!(problem.exit_code, 2);
}
