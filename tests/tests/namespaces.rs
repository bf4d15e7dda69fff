//! Bottles in network namespaces of their own: the meter is inside each, so that `lo` is all they need.
//!
//! Each test has a network of its own that stands for the host's; the provider's address there is nobody's, so what
//! is answered went through the meter.
#![allow(clippy::unwrap_used, reason = "a failed expectation should stop the test where it stands")]
use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::clock::wait_until;
use support::enforcer::Daemon;
use support::inmate::Inmate;
use support::namespace::{Holder, copy_socket, sockets_of};
use support::network::{Namespace, PUBLIC4, PUBLIC6, in_own_network, ip};
use support::process::{self, Output, Seen, built};
use support::provider::Reply;
use support::sink::Sink;
use support::stage::{Bottle, Stage};

const SOON: Duration = Duration::from_secs(10);
const V4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
/// The flag of unshare(2) for a new network namespace.
const CLONE_NEWNET: u32 = 0x4000_0000;
/// Most network namespaces of one bottle that are served.
const MOST: usize = 16;

/// An agent that dials the provider at `address` itself and knows of no proxy, to be started in a bottle.
fn direct(stage: &Stage, bottle: &Bottle, address: IpAddr) -> Command {
    let address = SocketAddr::new(address, 443).to_string();
    let ca = stage.daemon.ok(&["ca", "path"]);
    let mut command = Command::new(built("demo-agent"));
    command.env_clear().args(["--json", "--mode", "direct", "--address", &address, "--ca-file", ca.trim()]);
    bottle.cgroup.enter_before_exec(&mut command);
    command
}

/// Runs one such agent in the holder's namespace.
fn ask(stage: &Stage, bottle: &Bottle, holder: &Holder) -> Output {
    process::run(holder.enter_before_exec(&mut direct(stage, bottle, PUBLIC4)), SOON)
}

/// An agent with the variables of `enforcer env`, in the holder's namespace.
fn ask_with_env(stage: &Stage, bottle: &Bottle, holder: &Holder, arguments: &[&str]) -> Output {
    process::run(holder.enter_before_exec(&mut stage.agent(bottle, &[&["--json"], arguments].concat())), SOON)
}

fn assert_answered(stage: &Stage, output: &Output) {
    assert_eq!(output.code, Some(0), "{}\n{}\n{}", output.stdout, output.stderr, stage.daemon.logs());
}

fn assert_not_connected(output: &Output) {
    assert_eq!(output.code, Some(1), "{output:?}");
    assert!(output.stderr.contains("cannot connect"), "{output:?}");
}

/// Process ids of the controller and the meter.
fn pids(daemon: &Daemon) -> [u32; 2] {
    let meter = daemon.json(&["status"])["daemon"]["meter"]["pid"].as_u64().unwrap();
    [daemon.pid(), u32::try_from(meter).unwrap()]
}

/// Sockets that both have open: those that listen.
fn listening(daemon: &Daemon) -> BTreeSet<PathBuf> {
    let [controller, meter] = pids(daemon).map(sockets_of);
    controller.intersection(&meter).cloned().collect()
}

/// Waits until both listen in one namespace more than `before`; the sockets there.
fn wait_served(daemon: &Daemon, before: &BTreeSet<PathBuf>) -> BTreeSet<PathBuf> {
    let more = || Some(&listening(daemon) - before).filter(|more| more.len() == 2);
    wait_until(SOON, more).expect("one socket of each family, held by both")
}

/// Waits until neither has any of these any more.
fn wait_given_up(daemon: &Daemon, sockets: &BTreeSet<PathBuf>, why: &str) {
    let gone = || pids(daemon).into_iter().all(|pid| sockets_of(pid).is_disjoint(sockets)).then_some(());
    assert!(wait_until(SOON, gone).is_some(), "{why}: {sockets:?}\n{}", daemon.logs());
}

fn wait_gone(process: &Seen) {
    wait_until(SOON, || (!process.is_alive()).then_some(())).expect("the process ends");
}

/// A bottle with a process in a namespace of its own, attached after that process was there.
fn housed(stage: &Stage, name: &str) -> (Bottle, Holder) {
    let cgroup = support::cgroup::TestCgroup::new(name);
    let holder = Holder::start(&cgroup);
    stage.daemon.attach(name, cgroup.path(), &[]);
    (Bottle { name: name.into(), cgroup }, holder)
}

#[test]
fn root_a_bottle_with_nothing_but_lo_is_metered_whatever_it_knows() {
    in_own_network(|| {
        let stage = Stage::over_tls(Reply::default(), "");
        let (bottle, holder) = housed(&stage, "alone");
        for address in [PUBLIC4, PUBLIC6] {
            let mut agent = direct(&stage, &bottle, address);
            assert_answered(&stage, &process::run(holder.enter_before_exec(&mut agent), SOON));
        }
        for way in [
            &["--mode", "connect"][..],
            &["--mode", "gateway"],
            &["--mode", "connect", "--provider", "codex"],
        ] {
            assert_answered(&stage, &ask_with_env(&stage, &bottle, &holder, way));
        }
        let flows = stage.flows("alone");
        assert_eq!(flows.len(), 5);
        assert!(flows.iter().all(|flow| flow["provenance"] == "reported"), "{flows:?}");
        assert_eq!(stage.provider.billing_records().len(), 5);
    });
}

#[test]
fn root_sockets_of_ipv6_alone_are_metered_in_the_host_s_namespace_and_in_others() {
    in_own_network(|| {
        // what this process and those it starts here take for granted, the agent included
        fs::write("/proc/sys/net/ipv6/bindv6only", "1").unwrap();
        let stage = Stage::over_tls(Reply::default(), "");
        let here = stage.bottle("here", &[]);
        assert_answered(&stage, &process::run(&mut direct(&stage, &here, PUBLIC6), SOON));
        let (bottle, holder) = housed(&stage, "v6only");
        holder.run(&["sysctl", "-q", "net.ipv6.bindv6only=1"]);
        let mut agent = direct(&stage, &bottle, PUBLIC6);
        assert_answered(&stage, &process::run(holder.enter_before_exec(&mut agent), SOON));
        assert_eq!((stage.flows("here").len(), stage.flows("v6only").len()), (1, 1));
    });
}

#[test]
fn root_a_bottle_behind_a_veth_pair_is_metered_inside() {
    in_own_network(|| {
        let stage = Stage::over_tls(Reply::default(), "");
        let (bottle, holder) = housed(&stage, "veth");
        let pid = holder.pid().to_string();
        ip(&["link", "add", "outside", "type", "veth", "peer", "name", "inside", "netns", &pid]);
        ip(&["address", "add", "10.88.0.1/24", "dev", "outside"]);
        ip(&["link", "set", "outside", "up"]);
        holder.run(&["ip", "address", "add", "10.88.0.2/24", "dev", "inside"]);
        holder.run(&["ip", "link", "set", "inside", "up"]);
        holder.run(&["ip", "route", "add", "default", "via", "10.88.0.1"]);
        assert_answered(&stage, &ask(&stage, &bottle, &holder));
        assert_answered(&stage, &ask_with_env(&stage, &bottle, &holder, &["--mode", "connect"]));
        assert_eq!(stage.flows("veth").len(), 2);
    });
}

#[test]
fn root_a_meter_that_listens_elsewhere_is_found_from_a_namespace_without_a_way_there() {
    in_own_network(|| {
        ip(&["address", "add", "10.77.0.1/32", "dev", "lo"]);
        let stage = Stage::over_tls(Reply::default(), "listen: \"10.77.0.1:0\"\n");
        let (bottle, holder) = housed(&stage, "faraway");
        assert!(stage.daemon.ok(&["env", "faraway"]).contains("http://10.77.0.1:"));
        for mode in ["connect", "gateway"] {
            assert_answered(&stage, &ask_with_env(&stage, &bottle, &holder, &["--mode", mode]));
        }
        assert_answered(&stage, &ask(&stage, &bottle, &holder));
    });
}

#[test]
fn root_the_same_ports_in_two_namespaces_are_two_bottles() {
    in_own_network(|| {
        let slow = Reply::paced(40, 8, Duration::from_millis(20));
        let stage = Stage::over_tls(slow, "");
        let pairs = ["left", "right"].map(|name| housed(&stage, name));
        for (_, holder) in &pairs {
            // as few source ports as the kernel lets one choose from: those of one are those of the other
            holder.run(&["sysctl", "-q", "net.ipv4.ip_local_port_range=40000 40001"]);
        }
        let start = |(bottle, holder): &(Bottle, Holder), provider: &str| {
            let mut agent = direct(&stage, bottle, PUBLIC4);
            agent.args(["--stream", "--requests", "3", "--provider", provider]);
            agent.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
            holder.enter_before_exec(&mut agent).spawn().unwrap()
        };
        let agents: Vec<Child> = vec![start(&pairs[0], "claude"), start(&pairs[1], "codex")];
        for agent in agents {
            assert_answered(&stage, &process::finish(agent, SOON));
        }
        for (name, provider) in [("left", "claude"), ("right", "codex")] {
            let flows = stage.flows(name);
            assert_eq!(flows.len(), 3, "{flows:?}");
            assert!(flows.iter().all(|flow| flow["provider"] == provider), "{flows:?}");
        }
    });
}

#[test]
fn root_a_namespace_that_a_process_makes_later_is_served_soon() {
    in_own_network(|| {
        let stage = Stage::over_tls(Reply::default(), "");
        let bottle = stage.bottle("later", &[]);
        let mut took = Vec::new();
        for _ in 0..5 {
            let started = Instant::now();
            let holder = Holder::start(&bottle.cgroup);
            let tried = ask(&stage, &bottle, &holder);
            if tried.code != Some(0) {
                assert_not_connected(&tried);
                assert!(tried.stderr.contains("Operation not permitted"), "{tried:?}");
                // as a client that tries again: mostly once is enough, on a busy machine it takes longer
                let answered =
                    wait_until(SOON, || (ask(&stage, &bottle, &holder).code == Some(0)).then_some(()));
                answered.unwrap_or_else(|| panic!("never served\n{}", stage.daemon.logs()));
            }
            took.push((tried.code, started.elapsed()));
        }
        println!("first try, and until answered, by a process in a new namespace: {took:?}");
        assert_eq!(stage.flows("later").len(), 5);
    });
}

#[test]
fn root_what_asks_at_once_in_a_new_namespace_is_served_when_it_tries_again() {
    in_own_network(|| {
        let stage = Stage::over_tls(Reply::default(), "");
        let bottle = stage.bottle("hasty", &[]);
        let address = SocketAddr::new(PUBLIC4, 443).to_string();
        let ca = stage.daemon.ok(&["ca", "path"]);
        let agent = format!(
            "{} --json --mode direct --address {address} --ca-file {}",
            built("demo-agent").display(),
            ca.trim()
        );
        let script = format!(
            "ip link set lo up; {agent} && exit 10; for i in $(seq 100); do sleep 0.02; {agent} && exit 11; done; exit 12"
        );
        let mut refused = 0;
        for _ in 0..5 {
            let mut command = Command::new("unshare");
            command.args(["--net", "sh", "-c", &script]);
            let output = process::run(bottle.cgroup.enter_before_exec(&mut command), SOON);
            assert!(matches!(output.code, Some(10 | 11)), "{output:?}\n{}", stage.daemon.logs());
            refused += usize::from(output.code == Some(11));
        }
        println!("{refused} of 5 were refused at first");
        assert!(refused > 0, "some must have been too early, or the event was not tested");
    });
}

#[test]
fn root_a_thread_that_leaves_its_process_s_namespace_is_served() {
    in_own_network(|| {
        let stage = Stage::over_tls(Reply::default(), "");
        let bottle = stage.bottle("threads", &[]);
        let listen = stage.daemon.listen_addr();
        let mut command = Command::new(built("wanderer"));
        command.args([&listen, &SocketAddr::new(PUBLIC4, 443).to_string()]);
        let output = process::run(bottle.cgroup.enter_before_exec(&mut command), SOON);
        assert_eq!(output.code, Some(0), "{output:?}\n{}", stage.daemon.logs());
        print!("{}", output.stdout);
    });
}

#[test]
fn root_a_socket_of_a_namespace_that_its_process_has_left_is_refused_and_audited() {
    in_own_network(|| {
        let stage = Stage::over_tls(Reply::default(), "");
        let bottle = stage.bottle("stray", &[]);
        let script = format!(
            "import ctypes, os, socket, time\nlibc = ctypes.CDLL(None)\n\
             here = os.open('/proc/self/ns/net', os.O_RDONLY)\n\
             assert libc.unshare({CLONE_NEWNET}) == 0\ns = socket.socket()\nassert libc.setns(here, 0) == 0\n\
             for _ in range(5):\n\
             \x20   try: s.connect(('{PUBLIC4}', 443)); print('connected')\n\
             \x20   except PermissionError: print('refused')\n\
             \x20   time.sleep(0.3)\n"
        );
        let mut python = Command::new("python3");
        let output = process::run(bottle.cgroup.enter_before_exec(python.args(["-c", &script])), SOON);
        assert_eq!(output.stdout, "refused\n".repeat(5), "{output:?}");
        let rows = stage.audit("stray", "refuse");
        assert_eq!(rows.len(), 1, "once: {rows:?}");
        assert!(rows[0]["detail"].as_str().unwrap().contains("that it is not in"), "{rows:?}");
    });
}

#[test]
fn root_an_empty_namespace_is_given_up_and_so_is_a_detached_bottle_s() {
    in_own_network(|| {
        let stage = Stage::over_tls(Reply::default(), "");
        let daemon = &stage.daemon;
        let other = stage.bottle("other", &[]);
        let before = listening(daemon);
        let (bottle, holder) = housed(&stage, "moving");
        assert_answered(&stage, &ask(&stage, &bottle, &holder));
        let served = wait_served(daemon, &before);
        // a second bottle in the same namespace shares them, and keeps them
        let mut sleeper = Command::new("sleep");
        let mut sleeper = other.cgroup.spawn(holder.enter_before_exec(sleeper.arg("1000")));
        std::thread::sleep(Duration::from_millis(600));
        daemon.ok(&["detach", "moving"]);
        assert_answered(&stage, &ask(&stage, &other, &holder));
        assert_eq!(listening(daemon), &before | &served);
        process::kill(&mut sleeper);
        wait_given_up(daemon, &served, "nobody of a bottle is there any more");

        daemon.attach("moving", bottle.cgroup.path(), &[]);
        let served = wait_served(daemon, &before);
        daemon.ok(&["detach", "moving"]);
        wait_given_up(daemon, &served, "the only bottle there was detached");

        daemon.attach("moving", bottle.cgroup.path(), &[]);
        let served = wait_served(daemon, &before);
        drop(holder);
        wait_given_up(daemon, &served, "the last process there has ended");
        assert_eq!(listening(daemon), before);
    });
}

#[test]
fn root_a_killed_meter_and_a_killed_daemon_come_back_to_the_namespace() {
    in_own_network(|| {
        let mut stage = Stage::over_tls(Reply::default(), "");
        let (bottle, holder) = housed(&stage, "lasting");
        assert_answered(&stage, &ask(&stage, &bottle, &holder));

        let meter = stage.daemon.meter();
        meter.kill();
        wait_gone(&meter);
        assert_answered(&stage, &ask(&stage, &bottle, &holder));

        let meter = stage.daemon.meter();
        stage.daemon.kill9();
        wait_gone(&meter);
        assert_not_connected(&ask(&stage, &bottle, &holder));
        // a fixed port would be the same again; here it is another, which the bottle need not know
        stage.daemon.restart();
        assert_answered(&stage, &ask(&stage, &bottle, &holder));
        assert_answered(&stage, &ask_with_env(&stage, &bottle, &holder, &["--mode", "connect"]));
        assert_eq!(stage.flows("lasting").len(), 4);
    });
}

#[test]
fn root_the_cut_holds_inside_and_a_restore_opens_it() {
    in_own_network(|| {
        let stage = Stage::over_tls(Reply::default(), "");
        let (bottle, holder) = housed(&stage, "cut");
        assert_answered(&stage, &ask(&stage, &bottle, &holder));
        stage.daemon.ok(&["cut", "cut"]);
        assert_not_connected(&ask(&stage, &bottle, &holder));
        assert_not_connected(&ask_with_env(&stage, &bottle, &holder, &["--mode", "connect"]));
        assert_eq!(stage.provider.billing_records().len(), 1);
        stage.daemon.ok(&["restore", "cut"]);
        assert_answered(&stage, &ask(&stage, &bottle, &holder));
    });
}

#[test]
fn root_a_bottle_has_so_many_namespaces_and_the_next_is_closed() {
    in_own_network(|| {
        let stage = Stage::over_tls(Reply::default(), "");
        let bottle = stage.bottle("many", &[]);
        let holders: Vec<Holder> = (0..MOST).map(|_| Holder::start(&bottle.cgroup)).collect();
        let served = |holder: &Holder| {
            wait_until(SOON, || (ask(&stage, &bottle, holder).code == Some(0)).then_some(())).is_some()
        };
        assert!(holders.iter().all(served));
        assert_eq!(stage.audit("many", "refuse"), [Value::Null; 0]);
        let too_many = Holder::start(&bottle.cgroup);
        let rows = || Some(stage.audit("many", "refuse")).filter(|rows| !rows.is_empty());
        let rows = wait_until(SOON, rows).expect("it is audited");
        assert!(rows[0]["detail"].as_str().unwrap().contains("more than 16 network namespaces"), "{rows:?}");
        for _ in 0..3 {
            assert_not_connected(&ask(&stage, &bottle, &too_many));
        }
        assert_eq!(stage.audit("many", "refuse").len(), 1, "once");
        let (neighbour, house) = housed(&stage, "neighbour");
        assert_answered(&stage, &ask(&stage, &neighbour, &house));
        drop(holders);
        assert!(served(&too_many), "there is room again");
    });
}

#[test]
fn root_a_namespace_whose_port_is_taken_is_closed_and_says_so() {
    in_own_network(|| {
        let stage = Stage::over_tls(Reply::default(), "");
        let port = stage.daemon.listen_addr().parse::<SocketAddr>().unwrap().port();
        let cgroup = support::cgroup::TestCgroup::new("taken");
        let holder = Holder::start(&cgroup);
        let squatter = format!(
            "import socket; s=socket.create_server(('127.0.0.1',{port})); s.accept(); print('caught')"
        );
        let mut python = Command::new("python3");
        python.args(["-c", &squatter]).stdout(Stdio::piped());
        let mut squatter = cgroup.spawn(holder.enter_before_exec(&mut python));
        wait_until(SOON, || {
            let listening = fs::read_to_string(format!("/proc/{}/net/tcp", holder.pid())).unwrap();
            listening.contains(&format!("0100007F:{port:04X}")).then_some(())
        })
        .expect("it listens");
        let said = stage.daemon.cli(&["attach", "taken", "--cgroup", cgroup.path().to_str().unwrap()]);
        assert_eq!(said.code, Some(0), "{said:?}");
        assert!(format!("{}{}", said.stdout, said.stderr).contains("is taken there"), "{said:?}");
        let bottle = Bottle { name: "taken".into(), cgroup };
        assert_not_connected(&ask(&stage, &bottle, &holder));
        assert_not_connected(&ask_with_env(&stage, &bottle, &holder, &["--mode", "connect"]));
        assert_eq!(stage.audit("taken", "refuse").len(), 1);
        process::kill(&mut squatter);
        let mut said = String::new();
        std::io::Read::read_to_string(&mut squatter.stdout.take().unwrap(), &mut said).unwrap();
        assert_eq!(said, "", "nobody was sent to it");
        wait_until(SOON, || (ask(&stage, &bottle, &holder).code == Some(0)).then_some(()))
            .expect("it is served when the port is free");
    });
}

#[test]
fn root_the_meter_is_no_way_out_of_the_namespace() {
    in_own_network(|| {
        ip(&["address", "add", "10.9.9.9/32", "dev", "lo"]);
        let stage = Stage::over_tls(Reply::default(), "");
        let (bottle, holder) = housed(&stage, "confined");
        let (_neighbour, house) = housed(&stage, "next");
        let pid = house.pid().to_string();
        ip(&["link", "add", "near", "type", "veth", "peer", "name", "far", "netns", &pid]);
        ip(&["address", "add", "10.66.0.1/24", "dev", "near"]);
        ip(&["link", "set", "near", "up"]);
        house.run(&["ip", "address", "add", "10.66.0.2/24", "dev", "far"]);
        house.run(&["ip", "link", "set", "far", "up"]);

        let loopback = Sink::tcp(V4);
        let private = Sink::tcp("10.9.9.9".parse().unwrap());
        let meter = stage.daemon.listen_addr();
        for target in
            [loopback.address().to_string(), private.address().to_string(), "10.66.0.2:8080".into(), meter]
        {
            let refused =
                ask_with_env(&stage, &bottle, &holder, &["--mode", "connect", "--authority", &target]);
            assert_eq!(refused.code, Some(1), "{target}: {refused:?}");
            assert!(refused.stderr.contains("refused CONNECT"), "{target}: {refused:?}");
        }

        // a private destination is never the meter's business: there is no way to it from here, and it stays so
        let web = TcpListener::bind("10.9.9.9:443").unwrap();
        web.set_nonblocking(true).unwrap();
        let mut agent = direct(&stage, &bottle, "10.9.9.9".parse().unwrap());
        let refused = process::run(holder.enter_before_exec(&mut agent), SOON);
        assert_not_connected(&refused);
        assert!(refused.stderr.contains("unreachable"), "{refused:?}");
        assert_eq!(web.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
        assert_eq!((loopback.receipts().len(), private.receipts().len()), (0, 0));
        assert_eq!(json!(stage.flows("confined")), json!([]));
    });
}

/// Nanoseconds that the daemon's thread which looks for namespaces has run.
fn looked_ns(daemon: &Daemon) -> u64 {
    let threads = fs::read_dir(format!("/proc/{}/task", daemon.pid())).unwrap();
    let of_name = |thread: &PathBuf| {
        fs::read_to_string(thread.join("comm")).is_ok_and(|name| name.trim() == "namespaces")
    };
    let thread = threads.map(|thread| thread.unwrap().path()).find(of_name).unwrap();
    let stat = fs::read_to_string(thread.join("schedstat")).unwrap();
    stat.split(' ').next().unwrap().parse().unwrap()
}

#[test]
fn root_looking_at_many_bottles_costs_little() {
    const WATCHED: Duration = Duration::from_secs(5);
    let many = 50;
    let stage = Stage::new(Reply::default(), "");
    let mut sleepers = Vec::new();
    let bottles: Vec<Bottle> = (0..many)
        .map(|number| {
            let bottle = stage.bottle(&format!("n{number}"), &[]);
            sleepers.push(bottle.cgroup.spawn(Command::new("sleep").arg("1000")));
            bottle
        })
        .collect();
    let before = looked_ns(&stage.daemon);
    std::thread::sleep(WATCHED);
    let share = Duration::from_nanos(looked_ns(&stage.daemon) - before).div_duration_f64(WATCHED);
    println!("{many} bottles with a process each: {:.2}% of a core", share * 100.0);
    assert!(share < 0.1, "{share}");
    sleepers.iter_mut().for_each(process::kill);
    drop(bottles);
}

#[test]
fn root_whoever_is_handed_a_bottle_s_socket_does_not_have_its_own_namespace_served() {
    in_own_network(|| {
        let stage = Stage::new(Reply::default(), "");
        let meter: SocketAddr = stage.daemon.listen_addr().parse().unwrap();
        let bottle = stage.bottle("b1", &[]);
        let before = listening(&stage.daemon);
        let mut inmate = Inmate::start(Some(&bottle.cgroup));
        inmate.ok("unshare");
        let connect = format!("connect {meter}");
        wait_until(SOON, || inmate.order(&connect).starts_with("ok").then_some(())).expect("it is served");
        let served = wait_served(&stage.daemon, &before);
        let socket = copy_socket(inmate.pid());
        drop(inmate);
        wait_given_up(&stage.daemon, &served, "no process of the bottle is there");

        // this process is outside, with a thread in a namespace that is none of the bottle's
        let outside = Namespace::new();
        outside.enter(|| {
            for _ in 0..4 {
                rustix::net::connect_unspec(&socket).unwrap();
                assert_eq!(rustix::net::connect(&socket, &meter), Err(rustix::io::Errno::PERM));
                // several rounds of the search
                std::thread::sleep(Duration::from_millis(300));
                assert_eq!(listening(&stage.daemon), before, "{}", stage.daemon.logs());
            }
            TcpListener::bind(meter).expect("nobody listens there");
        });
    });
}
