//! Ids of listeners and connections from before, where one controller follows another.
use std::net::SocketAddr;
use std::time::Duration;

use aya::maps::{Array, Map, MapData};
use enforcer::kernel::loader::Loader;
use enforcer::kernel::{Kernel as _, Place};
use enforcer_ebpf::Flow;

use super::support::host::{Host, LISTENER, SLOT};
use super::support::meter::Meter;
use super::support::network::in_own_network;
use super::support::sender::Sender;
use super::{Elsewhere, bottle, flow_counts};

#[test]
fn root_a_new_controller_gives_a_listener_s_id_to_another_namespace() {
    in_own_network(|| {
        let host = Host::new("ids");
        let meter = Meter::new();
        let loader = host.opened(meter.guard());
        let local = meter.ip4.local_addr().unwrap();
        let old = Elsewhere::like(&meter, &loader, LISTENER + 1);
        let mut earlier = old.network.inside(|| Sender::start(Some(&host.cgroup)));
        let from = "127.0.0.1:45679";
        assert_eq!(earlier.order(&format!("connect-from {from} {local}")), from);
        drop(loader);

        let loader = host.load();
        let peer: SocketAddr = from.parse().unwrap();
        assert_eq!(loader.flow(peer, local, LISTENER + 1), None);
        assert_eq!(flow_counts(&host).get(&SLOT, 0).unwrap(), 0);
        let new = Elsewhere::like(&meter, &loader, LISTENER + 1);
        let mut later = new.network.inside(|| Sender::start(Some(&host.cgroup)));
        assert_eq!(later.order(&format!("connect-from {from} {local}")), from);
        assert!(loader.flow(peer, local, LISTENER + 1).is_some());
        assert_eq!(earlier.order("close"), "ok");
        drop(old);
        std::thread::sleep(Duration::from_millis(50));
        assert!(loader.flow(peer, local, LISTENER + 1).is_some(), "the end of the other one took it away");
    });
}

#[test]
fn root_a_connection_begun_under_an_earlier_controller_is_no_neighbour_s() {
    in_own_network(|| {
        let host = Host::new("begun");
        let meter = Meter::new();
        let loader = host.load();
        let paths = [bottle(&host, &loader, "one", 1, &meter), bottle(&host, &loader, "two", 2, &meter)];
        let local = meter.ip4.local_addr().unwrap();
        let elsewhere = Elsewhere::like(&meter, &loader, LISTENER + 1);
        // a client without a cookie for the server asks for none (see ip-sysctl)
        elsewhere.network.inside(|| std::fs::write("/proc/sys/net/ipv4/tcp_fastopen", "5").unwrap());
        let froms = ["127.0.0.1:45680", "127.0.0.1:45681", "127.0.0.1:45682"];
        let mut begun = froms.map(|from| {
            let mut sender = elsewhere.network.inside(|| Sender::start(Some(&paths[0])));
            assert_eq!(sender.order(&format!("begin-from {from} {local}")), from);
            sender
        });
        let peers = froms.map(|from| from.parse::<SocketAddr>().unwrap());
        let slot_of =
            |loader: &Loader, peer, listener| loader.flow(peer, local, listener).map(|flow: Flow| flow.slot);
        assert_eq!(slot_of(&loader, peers[0], LISTENER + 1), None, "it is not open yet");
        assert_eq!(begun[0].order("write"), "ok");
        assert_eq!(slot_of(&loader, peers[0], LISTENER + 1), Some(1), "opened in time, it is remembered");
        drop(loader);

        // the id goes to another namespace, and this one has no place, then a new one
        let loader = host.load();
        let neighbours = Elsewhere::like(&meter, &loader, LISTENER + 1);
        begun[1].order("write");
        loader.set_place(elsewhere.cookie(), &Place { listener: LISTENER + 2, ..elsewhere.place() }).unwrap();
        begun[2].order("write");
        let mut neighbour = neighbours.network.inside(|| Sender::start(Some(&paths[1])));
        for (from, peer) in froms.into_iter().zip(peers) {
            for listener in [LISTENER + 1, LISTENER + 2] {
                assert_eq!(slot_of(&loader, peer, listener), None, "{from}: it is nobody's");
            }
            assert_eq!(neighbour.order(&format!("connect-from {from} {local}")), from);
            assert_eq!(slot_of(&loader, peer, LISTENER + 1), Some(2), "the neighbour's is the neighbour's");
        }
    });
}

#[test]
fn root_ids_of_listeners_are_given_once_by_all_controllers_together() {
    let host = Host::new("once");
    let loader = host.load();
    assert_eq!([(); 2].map(|()| loader.new_listener()), [Some(LISTENER + 1), Some(LISTENER + 2)]);
    drop(loader);
    let last = MapData::from_pin(host.pins().join("LAST_LISTENER")).unwrap();
    let loader = host.load();
    assert_eq!(loader.new_listener(), Some(LISTENER + 3));
    let mut last: Array<_, u64> = Array::try_from(Map::Array(last)).unwrap();
    last.set(0, u64::from(u32::MAX) - 1, 0).unwrap();
    assert_eq!([(); 2].map(|()| loader.new_listener()), [Some(u32::MAX), None], "then there are no more");
}
