//! Bottles in each other: whose a connection is, and whose verdict holds.
use std::io::Read as _;
use std::net::SocketAddr;
use std::time::Duration;

use enforcer::bottle::cgroup::Cgroup;
use enforcer::kernel::{Guard, Kernel as _};
use enforcer_ebpf::FLOWS_PER_BOTTLE;

use super::support::eventually;
use super::support::host::{Host, SLOT, here, place};
use super::support::meter::{Meter, accept, canonical, original};
use super::support::network::{PUBLIC4, PUBLIC6, in_own_network};
use super::support::sender::{ARRIVAL, Sender};
use super::{bottle, flow_counts};

#[test]
fn root_of_ten_bottles_in_each_other_the_innermost_is_charged_and_each_one_s_verdict_holds() {
    const DEPTH: u32 = 10;
    in_own_network(|| {
        let host = Host::new("depth");
        let meter = Meter::new();
        let loader = host.load();
        loader.set_place(here(), &place(&meter.guard_with_ip6())).unwrap();
        let mut path = host.cgroup.clone();
        for slot in 1..=DEPTH {
            path = path.join("in");
            let cgroup = Cgroup::create(&path).unwrap();
            loader.attach(&slot.to_string(), &cgroup, Guard { slot, ..meter.guard_with_ip6() }).unwrap();
            loader.open(slot);
        }
        let mut sender = Sender::start(Some(&path));
        for (asked, listener) in
            [(format!("{PUBLIC4}:443"), &meter.ip4), (format!("[{PUBLIC6}]:443"), &meter.ip6)]
        {
            for cut in 1..=DEPTH {
                loader.cut(cut);
                assert_eq!(sender.order(&format!("connect {asked}")), "PermissionDenied", "{cut} is cut");
                loader.open(cut);
            }
            sender.order(&format!("connect {asked}")).parse::<SocketAddr>().unwrap();
            let (mut stream, flow) = accept(&loader, listener);
            let flow = flow.unwrap();
            assert_eq!((flow.slot, original(&flow)), (DEPTH, canonical(&asked)));
            assert_eq!(sender.order("peer"), asked);
            for cut in [1, DEPTH / 2, DEPTH] {
                loader.cut(cut);
                assert_eq!(sender.order("write"), "ok", "it is queued");
                assert!(stream.read(&mut [0]).is_err(), "a byte passed though {cut} is cut");
                loader.open(cut);
                stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
                stream.read_exact(&mut [0]).unwrap();
                stream.set_read_timeout(Some(ARRIVAL)).unwrap();
            }
            assert_eq!(sender.order("close"), "ok");
        }
        let counts = flow_counts(&host);
        eventually(|| (1..=DEPTH).all(|slot| counts.get(&slot, 0).unwrap() == 0));
    });
}

#[test]
fn root_a_connection_that_the_inner_bottle_may_not_hold_is_not_the_outer_one_s() {
    in_own_network(|| {
        let host = Host::new("over");
        let meter = Meter::new();
        let loader = host.opened(meter.guard());
        let inner = bottle(&host, &loader, "inner", 2, &meter);
        let mut counts = flow_counts(&host);
        counts.set(2, u64::from(FLOWS_PER_BOTTLE), 0).unwrap();
        let mut sender = Sender::start(Some(&inner));
        for asked in [format!("{PUBLIC4}:443"), meter.ip4.local_addr().unwrap().to_string()] {
            assert_eq!(sender.order(&format!("connect {asked}")), "PermissionDenied", "{asked}");
        }
        assert_eq!(counts.get(&SLOT, 0).unwrap(), 0);
        counts.set(2, 0, 0).unwrap();
        sender.order(&format!("connect {PUBLIC4}:443")).parse::<SocketAddr>().unwrap();
        assert_eq!(accept(&loader, &meter.ip4).1.unwrap().slot, 2);
        assert_eq!((counts.get(&SLOT, 0).unwrap(), counts.get(&2, 0).unwrap()), (0, 1));
    });
}
