//! Whose a connection is, and of whom it is nobody's.
use super::*;

#[test]
fn a_connection_is_identified_with_where_it_was_going_when_it_was_redirected() {
    let bench = Bench::new("budget: { claude: 1000 }");
    let bottle = bench.attach("b1");
    let peer: SocketAddr = "127.0.0.1:40000".parse().unwrap();
    let local = meter_address();
    let identified = |bench: &Bench, peer| {
        bench.say(ToController::Identify { question: 7, peer, local, listener: 1 });
        match bench.order() {
            ToMeter::Identified { question: 7, identity } => identity,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(identified(&bench, peer), None, "a peer of no bottle");
    let asked = ["203.0.113.7:443", "[2001:db8::7]:443"].map(|asked| asked.parse::<SocketAddr>().unwrap());
    let cases = asked.map(|asked| (asked, Some(asked))).into_iter().chain([(local, None)]);
    for (port, (asked, original)) in (40_001..).zip(cases) {
        let peer = SocketAddr::new(peer.ip(), port);
        bench.kernel.connect(bottle.slot, peer, local, asked);
        let identity = identified(&bench, peer).unwrap();
        assert_eq!((identity.bottle, identity.name.as_str(), identity.original), (bottle, "b1", original));
    }
}

#[test]
fn a_peer_of_no_bottle_is_the_host_at_its_own_listener_alone() {
    let bench = Bench::new("unattached: meter");
    bench.attach("b1");
    let local = meter_address();
    let ask = |cgroup: Option<&str>, listener| {
        let peer =
            SocketAddr::from(([127, 0, 0, 1], 40000 + u16::try_from(cgroup.map_or(0, str::len)).unwrap()));
        if let Some(cgroup) = cgroup {
            bench.kernel.connect_unseen(cgroup.as_ref(), peer, local);
        }
        bench.say(ToController::Identify { question: 7, peer, local, listener });
        match bench.order() {
            ToMeter::Identified { question: 7, identity } => identity.map(|host| host.name),
            other => panic!("{other:?}"),
        }
    };
    let host = Some("host".to_owned());
    assert_eq!(ask(Some("/sys/fs/cgroup"), LISTENER_HOST), host);
    assert_eq!(ask(Some("/sys/fs/cgroup/b10"), LISTENER_HOST), host, "not below b1");
    assert_eq!(ask(Some("/sys/fs/cgroup"), LISTENER_HOST + 1), None);
    for bottle in ["/sys/fs/cgroup/b1", "/sys/fs/cgroup/b1/below"] {
        assert_eq!(
            ask(Some(bottle), LISTENER_HOST),
            None,
            "{bottle}: no hook has seen it, and it is not the host's"
        );
    }
    assert_eq!(ask(None, LISTENER_HOST), None, "whose it is cannot be told");
}

#[test]
fn a_stale_generation_is_nobody() {
    let bench = Bench::new("");
    let bottle = bench.attach("b1");
    bench.reserve(1, BottleRef { generation: bottle.generation + 1, ..bottle }, 10);
    assert_eq!(bench.order(), ToMeter::Refused { exchange: 1, refusal: Refusal::Unattached });
}
