//! From the settlement that crosses, as the controller receives it, to the verdict in the kernel's map.
use std::time::{Duration, Instant};

use support::clock::wait_until;
use support::provider::Reply;
use support::stage::Stage;

use crate::busy::BusyDisk;
use crate::report;

const CROSSINGS: usize = 300;
/// A commit waits for a busy disk.
const SOON: Duration = Duration::from_secs(30);

/// The audit tells each cut's time from the receipt of its message to its store; the disk is busy all the while.
pub fn settlement_to_store() {
    let stage = Stage::new(Reply::default(), "midstream: false\n");
    let disk = BusyDisk::start(stage.provider.dir());
    let begun = Instant::now();
    let took = (0..CROSSINGS).map(|round| {
        let name = format!("crossing-{round}");
        let bottle = stage.bottle(&name, &["--budget", "claude=60"]);
        drop(stage.ask(&bottle, &["--stream"]));
        let row = wait_until(SOON, || stage.audit(&name, "cut").pop()).expect("a crossing is audited");
        assert_eq!(row["cause"]["kind"], "budget", "{row}");
        stage.daemon.ok(&["detach", &name, "--force"]);
        Duration::from_micros(row["took_us"].as_u64().unwrap())
    });
    let took = took.collect();
    let rate = disk.written_mib() / begun.elapsed().as_secs().max(1);
    println!("beside the daemon's own commits, 4 writers wait for the disk ({rate} MiB/s of 1 MiB each)");
    report("a settlement that crosses: received to stored in the map", took);
}
