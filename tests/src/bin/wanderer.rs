//! Two threads of one process in different network namespaces: the second makes one of its own and connects there.
//!
//! Arguments: the meter's address, and one that is redirected. Prints how soon each was served, and after how many
//! refusals; ends well when both were, and still are a while later.
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use nix::sched::{CloneFlags, unshare};

/// How long a new namespace may take to be served, and how long it is watched after that.
const SOON: Duration = Duration::from_secs(5);
/// Between two tries.
const PAUSE: Duration = Duration::from_micros(200);
const A_WHILE: Duration = Duration::from_millis(1_500);

fn main() -> anyhow::Result<()> {
    let addresses: Vec<SocketAddr> =
        std::env::args().skip(1).map(|address| address.parse()).collect::<Result<_, _>>()?;
    let wanderer = std::thread::spawn(move || wander(&addresses));
    wanderer.join().map_err(|_| anyhow::anyhow!("the thread panicked"))?
}

fn wander(addresses: &[SocketAddr]) -> anyhow::Result<()> {
    unshare(CloneFlags::CLONE_NEWNET).context("a network namespace")?;
    if !Command::new("ip").args(["link", "set", "lo", "up"]).status()?.success() {
        bail!("lo cannot be set up");
    }
    let started = Instant::now();
    for address in addresses {
        let mut refusals = 0;
        while let Err(error) = TcpStream::connect(address) {
            refusals += 1;
            if started.elapsed() > SOON {
                return Err(error).with_context(|| format!("no way to {address}"));
            }
            std::thread::sleep(PAUSE);
        }
        println!("{address}: served {:?} after lo was up, {refusals} refusals before", started.elapsed());
    }
    // the thread is all there is in it: that must do
    std::thread::sleep(A_WHILE);
    for address in addresses {
        TcpStream::connect(address).with_context(|| format!("the way to {address} is gone"))?;
    }
    Ok(())
}
