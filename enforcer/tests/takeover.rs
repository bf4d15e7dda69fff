//! What a controller takes over from the one before it: bottles with their verdicts, and its programs where this build
//! pinned them; what was left half done, and what is refused.
//!
//! Needs root. Every test has cgroups and pins of its own and removes them, also after a panic.
#![allow(clippy::unwrap_used, reason = "a test's helper says what it expects by unwrapping")]
mod support;

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};

use aya::maps::cgroup_storage::CgroupStorageKey;
#[expect(deprecated, reason = "the map's successor cannot be used on the packet path")]
use aya::maps::{CgroupStorage, Map, MapData};
use aya::programs::{ProgramInfo, loaded_links};
use enforcer::bottle::cgroup::Cgroup;
use enforcer::kernel::loader::Loader;
use enforcer::kernel::log::Log;
use enforcer::kernel::{Face, Guard, Kernel as _, KernelError};
use support::host::{Host, SLOT, guard, no_meter, retry};
use support::sender::{Receiver, Sender};

/// Ids of the pinned programs of the hooks on packets.
fn programs(host: &Host) -> [u32; 2] {
    ["enforcer_egress", "enforcer_ingress"].map(|name| {
        let info = ProgramInfo::from_pin(host.pins().join("progs").join(name)).unwrap();
        // the kernel keeps fifteen characters
        assert_eq!(info.name_as_str(), Some(&name[..name.len().min(15)]));
        info.id()
    })
}

/// How many bottles' links run a program.
fn links(program: u32) -> usize {
    loaded_links().filter(|link| link.as_ref().is_ok_and(|link| link.program_id() == program)).count()
}

#[test]
fn root_a_controller_of_the_same_build_loads_nothing() {
    let host = Host::new("same");
    let loader = host.attached(no_meter());
    loader.open(SLOT);
    let before = programs(&host);
    drop(loader);
    for cut in [false, true] {
        let loader = host.load();
        assert_eq!(programs(&host), before);
        assert_eq!(before.map(links), [1, 1]);
        assert_eq!(loader.is_open(SLOT), !cut);
        loader.cut(SLOT);
    }
    // what is attached from now on runs the same
    let inner = host.cgroup.join("inner");
    let loader = host.load();
    let guard = Guard { slot: 2, ..guard(no_meter()) };
    loader.attach("inner", &Cgroup::create(&inner).unwrap(), guard).unwrap();
    assert_eq!(before.map(links), [2, 2]);
}

/// What makes the pinned programs others than this build's.
type Change = (&'static str, fn(&Host));

const CHANGES: [Change; 5] = [
    ("another build", |host| {
        let build = host.pins().join("build");
        fs::remove_file(&build).unwrap();
        symlink("another", &build).unwrap();
    }),
    ("a build that did not come to its end", |host| fs::remove_file(host.pins().join("build")).unwrap()),
    ("a missing program", |host| fs::remove_file(host.pins().join("progs/enforcer_connect4")).unwrap()),
    ("a program in another's place", |host| {
        let [from, to] = ["ingress", "egress"].map(|hook| host.pins().join(format!("progs/enforcer_{hook}")));
        fs::remove_file(&to).unwrap();
        fs::hard_link(from, to).unwrap();
    }),
    ("a missing map", |host| fs::remove_file(host.pins().join("EVENTS")).unwrap()),
];

#[test]
fn root_programs_that_this_build_did_not_pin_are_not_trusted() {
    for (what, change) in CHANGES {
        let host = Host::new("other");
        drop(host.attached(no_meter()));
        let mut sender = Sender::start(Some(&host.cgroup));
        let receiver = Receiver::new("127.0.0.1");
        let before = programs(&host);
        change(&host);
        let loader = host.load();
        let after = programs(&host);
        assert!(before.iter().all(|id| !after.contains(id)), "{what}: {before:?}, {after:?}");
        assert_eq!((before.map(links), after.map(links)), ([0, 0], [1, 1]), "{what}");
        assert!(!receiver.hears(&mut sender), "{what}: cut as before");
        loader.open(SLOT);
        assert!(receiver.hears(&mut sender), "{what}");
        drop(loader);
        drop(host.load());
        assert_eq!(programs(&host), after, "{what}: the next one finds its own");
    }
}

#[test]
fn root_programs_that_log_otherwise_are_loaded_anew_and_those_that_log_the_same_are_not() {
    let host = Host::new("logs");
    drop(host.attached(no_meter()));
    let quiet = programs(&host);
    let load = |log| {
        let loader = Loader::open_to_log(Some(&host.instance), log).unwrap();
        assert_eq!(loader.logged().unwrap().is_some(), log == Log::Drops);
        let now = programs(&host);
        assert_eq!(now.map(links), [1, 1]);
        now
    };
    if let Err(refused) = Loader::open_to_log(Some(&host.instance), Log::Drops) {
        // older kernels have not the stack for them: a controller does without
        assert!(matches!(refused, KernelError::Unsupported { .. }), "{refused}");
        println!("those that log are refused here: {refused}");
        assert_ne!(load(Log::Nothing), quiet);
        return;
    }
    let telling = load(Log::Drops);
    assert_ne!(telling, quiet);
    assert_eq!(load(Log::Drops), telling);
    let again = load(Log::Nothing);
    assert!(again != telling && again != quiet);
    assert_eq!(load(Log::Nothing), again);
}

#[test]
fn root_a_directory_that_is_not_root_s_alone_is_refused() {
    let host = Host::new("open-house");
    drop(host.attached(no_meter()));
    for directory in ["", "progs", "bottles"] {
        let path = host.pins().join(directory);
        for (mode, refused) in [(0o777, true), (0o700, false)] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let opened = Loader::open(Some(&host.instance));
            assert_eq!(matches!(opened, Err(KernelError::Pins { .. })), refused, "{directory} {mode:o}");
        }
    }
}

#[test]
fn root_a_cut_outlives_its_controller_and_is_adopted() {
    let host = Host::new("adopt");
    let loader = host.attached(no_meter());
    loader.open(SLOT);
    loader.cut(SLOT);
    drop(loader);
    let mut sender = Sender::start(Some(&host.cgroup));
    let receiver = Receiver::new("127.0.0.1");
    assert!(!receiver.hears(&mut sender), "no controller, and still cut");

    let loader = host.load();
    let adopted = loader.adopted();
    assert_eq!(adopted.len(), 1);
    let pinned = &adopted[0];
    assert_eq!(
        (pinned.name.as_str(), pinned.slot, pinned.generation, pinned.cut),
        ("b", SLOT, 7, Some(Face::Silent))
    );
    assert_eq!(pinned.cgroup_id, host.cgroup().id());
    assert!(!receiver.hears(&mut sender), "adopted, and still cut");
    loader.open(SLOT);
    assert!(receiver.hears(&mut sender), "the new controller's word counts");
    drop(loader);
    assert!(receiver.hears(&mut sender), "an open bottle stays open");
    assert_eq!(host.load().adopted()[0].cut, None);
}

#[test]
fn root_a_guard_that_was_never_finished_is_removed() {
    let host = Host::new("unfinished");
    drop(host.attached(no_meter()));
    fs::remove_file(host.pins().join("bottles/b/egress")).unwrap();
    assert!(host.load().adopted().is_empty());
    assert_eq!(fs::read_dir(host.pins().join("bottles")).unwrap().count(), 0);
}

#[test]
#[expect(deprecated, reason = "the map's successor cannot be used on the packet path")]
fn root_a_hook_pinned_without_its_slot_drops_and_is_given_it_by_the_next_controller() {
    let host = Host::new("slotless");
    let loader = host.attached(no_meter());
    let (mut sender, receiver) = (Sender::start(Some(&host.cgroup)), Receiver::new("127.0.0.1"));
    let storage = MapData::from_pin(host.pins().join("CG")).unwrap();
    let mut storage: CgroupStorage<_, u32> = Map::CgroupStorage(storage).try_into().unwrap();
    let egress = CgroupStorageKey::new(host.cgroup().id(), 1);
    assert_eq!(storage.get(egress, 0).unwrap(), SLOT);
    storage.insert(egress, 0, 0).unwrap();
    drop(loader);
    assert!(!receiver.hears(&mut sender));
    let loader = host.load();
    assert!(!receiver.hears(&mut sender), "it was not opened yet");
    loader.open(SLOT);
    assert!(receiver.hears(&mut sender));
}

#[test]
fn root_a_live_guard_with_a_missing_hook_is_refused() {
    let host = Host::new("missing");
    let loader = host.attached(no_meter());
    loader.open(SLOT);
    drop(loader);
    fs::remove_file(host.pins().join("bottles/b/ingress")).unwrap();
    assert!(matches!(Loader::open(Some(&host.instance)), Err(KernelError::Pins { .. })));
}

#[test]
fn root_a_guard_whose_cgroup_is_gone_is_adopted_as_gone() {
    let host = Host::new("gone");
    drop(host.attached(no_meter()));
    retry(|| Cgroup::open(&host.cgroup).and_then(Cgroup::remove)).unwrap();
    let loader = host.load();
    assert_eq!(loader.adopted()[0].cgroup_id, 0);
    loader.detach("b", SLOT).unwrap();
    assert_eq!(fs::read_dir(host.pins().join("bottles")).unwrap().count(), 0);
    drop(Cgroup::create(&host.cgroup).unwrap());
}
