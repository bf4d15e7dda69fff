//! Loopback addresses: the host's are never reached, a namespace's own once the controller knows it.
use std::net::SocketAddr;

use enforcer::kernel::{Kernel as _, Place};

use super::support::host::{Host, here, place};
use super::support::network::{Network, in_own_network};
use super::support::sender::Sender;
use super::{Far, Meter, REFUSED, confined};

#[test]
fn root_the_host_s_loopback_is_never_reached() {
    in_own_network(|| {
        let (_host, meter, loader, mut sender) = confined("host-lo");
        let forms = ["127.0.0.1:9000", "127.1.2.3:9000", "[::1]:9000"];
        let mut far: Vec<Far> = forms.iter().flat_map(|at| [Far::tcp(at), Far::udp(at)]).collect();
        far.push(Far::tcp("[::ffff:127.0.0.1]:9001"));
        let check = |sender: &mut Sender| {
            for far in &far {
                far.assert_not_reached(sender);
            }
            for unspecified in ["0.0.0.0:9000", "[::]:9000"] {
                assert_eq!(sender.order(&format!("connect {unspecified}")), REFUSED);
            }
        };
        check(&mut sender);
        // as between the start of a new controller and its first word about the place
        loader.remove_place(here()).unwrap();
        check(&mut sender);
        loader.set_place(here(), &place(&meter.guard())).unwrap();
        check(&mut sender);
    });
}

#[test]
fn root_a_namespace_s_own_loopback_is_reached_once_it_is_known() {
    in_own_network(|| {
        let host = Host::new("own-lo");
        let meter = Meter::new();
        let loader = host.opened(meter.guard());
        let network = Network::new();
        let cookie = network.inside(here);
        network.inside(|| {
            let mut sender = Sender::start(Some(&host.cgroup));
            let mut peer = Sender::start(Some(&host.cgroup));
            let far = [
                Far::tcp("127.0.0.1:9000"),
                Far::udp("127.0.0.1:9000"),
                Far::tcp("[::1]:9000"),
                Far::udp("[::1]:9000"),
            ];
            // a socket that is there before its namespace is known
            let listening: SocketAddr = peer.order("listen 127.0.0.1:0").parse().unwrap();
            for far in &far {
                far.assert_not_reached(&mut sender);
            }
            let there = Place { listener: 7, ..place(&meter.guard()) };
            loader.set_place(cookie, &there).unwrap();
            for far in &far {
                far.assert_reached(&mut sender);
            }
            // both ends in the bottle: what a listener accepts answers, too
            assert!(sender.order(&format!("connect {listening}")).parse::<SocketAddr>().is_ok());
            Far::tcp("10.9.8.7:9000").assert_not_reached(&mut sender);
            Far::udp("203.0.113.7:9000").assert_not_reached(&mut sender);
            loader.remove_place(cookie).unwrap();
            for far in &far {
                far.assert_not_reached(&mut sender);
            }
        });
    });
}
