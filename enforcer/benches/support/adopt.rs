//! A thousand bottles in the kernel plane: attached, and taken over by the next controller, of the same build and of
//! another.
use std::time::{Duration, Instant};

use enforcer::bottle::cgroup::Cgroup;
use enforcer::kernel::Kernel as _;
use enforcer::kernel::pins::Pins;

use super::figures::{nanoseconds, report};
use super::{Bench, guard};

/// How many there are.
pub const BOTTLES: u32 = 1_000;
/// Times that so many are taken over.
const ADOPTIONS: usize = 50;
/// What the last controller held is freed by the kernel meanwhile, as between two starts.
const BETWEEN: Duration = Duration::from_millis(100);

/// Attaches them, has them taken over and detaches them; reports each.
pub fn adopt(bench: &Bench) {
    take_over(bench, "no bottle", 0);
    let loader = bench.open();
    let cgroups: Vec<Cgroup> =
        (1..=BOTTLES).map(|slot| Cgroup::create(&bench.cgroup.join(slot.to_string())).unwrap()).collect();
    let start = Instant::now();
    let attaching = (1..=BOTTLES)
        .zip(&cgroups)
        .map(|(slot, cgroup)| nanoseconds(|| loader.attach(&slot.to_string(), cgroup, guard(slot)).unwrap()));
    report("attach a bottle", attaching.collect());
    println!("attach {BOTTLES} bottles: {:?} in all", start.elapsed());
    for slot in 1..=BOTTLES {
        loader.open(slot);
        if slot % 2 == 0 {
            loader.cut(slot);
        }
    }
    drop(loader);
    take_over(bench, &format!("{BOTTLES} bottles, half of them cut"), usize::try_from(BOTTLES).unwrap());
    let loader = bench.open();
    let detaching = (1..=BOTTLES).map(|slot| nanoseconds(|| loader.detach(&slot.to_string(), slot).unwrap()));
    report("detach a bottle", detaching.collect());
}

fn take_over(bench: &Bench, what: &str, count: usize) {
    let adopt = || {
        std::thread::sleep(BETWEEN);
        nanoseconds(|| assert_eq!(bench.open().adopted().len(), count))
    };
    let same = (0..ADOPTIONS).map(|_| adopt());
    report(&format!("adopt {what}, by the same build"), same.collect());
    let pins = Pins::of(Some(&bench.instance));
    let another = (0..ADOPTIONS).map(|_| {
        pins.set_build(None).unwrap();
        adopt()
    });
    report(&format!("adopt {what}, by another build (programs loaded, links updated)"), another.collect());
}
