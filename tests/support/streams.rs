//! Senders that do not stop, of ten thousand sends a second, and their receivers outside of every bottle.
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::cgroup::TestCgroup;
use crate::clock::{mono_ns, wait_until};
use crate::process;
use crate::sink::Sink;

const PER_SECOND: &str = "10000";
/// A far side's retransmission timer may have backed off to this.
const FLOWING: Duration = Duration::from_secs(30);
/// By then a receiver on a busy host has read what passed the hook before a cut.
const READ_LATE: Duration = Duration::from_millis(100);

/// A sender in a cgroup, and what counts what comes of it; ended when dropped.
pub struct Stream {
    /// For the words of a failure.
    pub name: String,
    sender: Child,
    sink: Sink,
}

impl Stream {
    /// Sends from a cgroup to a receiver at this address, by `udp` or `tcp`.
    #[must_use]
    pub fn start(cgroup: &TestCgroup, protocol: &str, ip: IpAddr) -> Self {
        let sink = if protocol == "udp" { Sink::udp(ip) } else { Sink::tcp(ip) };
        let to = sink.address();
        Self::through(cgroup, protocol, to, sink)
    }

    /// Sends to whoever passes it on to the receiver.
    #[must_use]
    pub fn through(cgroup: &TestCgroup, protocol: &str, to: SocketAddr, sink: Sink) -> Self {
        let mut command = Command::new(process::built("sender"));
        command.args([protocol, &to.to_string(), "--pps", PER_SECOND]);
        let sender = cgroup.spawn(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()));
        Self { name: format!("{protocol} to {to} from {}", cgroup.path().display()), sender, sink }
    }

    /// From each of these cgroups, by UDP and TCP, over IPv4 and IPv6.
    #[must_use]
    pub fn every(cgroups: &[&TestCgroup]) -> Vec<Self> {
        let ips: [IpAddr; 2] = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
        let each = |cgroup: &TestCgroup| {
            let of = |protocol: &'static str| ips.map(|ip| Self::start(cgroup, protocol, ip));
            [of("udp"), of("tcp")].into_iter().flatten().collect::<Vec<_>>()
        };
        cgroups.iter().flat_map(|cgroup| each(cgroup)).collect()
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        process::kill(&mut self.sender);
    }
}

/// Waits until something comes of every one. Panics when it does not.
pub fn assert_flowing(streams: &[Stream]) {
    let since = mono_ns();
    for stream in streams {
        let flows = wait_until(FLOWING, || (stream.sink.bytes_since(since) > 0).then_some(()));
        assert!(flows.is_some(), "{} does not flow", stream.name);
    }
}

/// Waits until what passed before a cut has been read: nothing may come after this instant.
#[must_use]
pub fn settled() -> u64 {
    std::thread::sleep(READ_LATE);
    mono_ns()
}

/// Watches for a time that nothing comes, since an instant. Panics when something does.
pub fn assert_nothing_came(streams: &[Stream], since: u64, watched: Duration, when: &str) {
    std::thread::sleep(watched);
    for stream in streams {
        assert_eq!(stream.sink.bytes_since(since), 0, "{when}: {}", stream.name);
    }
}
