//! The guard itself on a throwaway bottle: the real programs, attached by the real loader, with a process inside.
use std::io::{self, ErrorKind, Read as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd as _;
use std::time::Duration;

use enforcer_ebpf::{EVENT_CUT, LISTENER_HOST};

use super::super::table::address_words;
use super::super::throwaway::Throwaway;
use super::super::{Flow, Guard, Kernel as _, Place, namespace_cookie};
use super::inside::{accept, connect_from_loopback, ended_well, fork_in, refused};
use super::{Failure, Outcome, failure};
use crate::bottle::cgroup::Cgroup;

/// The slot of the trial's bottle, in a table of its own.
const SLOT: u32 = 1;
/// How long a packet over loopback may take.
const ARRIVAL: Duration = Duration::from_millis(300);
/// How long one may still be under way whose sender was refused.
const UNDER_WAY: Duration = Duration::from_millis(10);
/// A lease that is over soon, and a time in which it is: the kernel's clock ticks every few milliseconds.
const LEASE: Duration = Duration::from_millis(100);
const LEASE_IS_OVER: Duration = Duration::from_millis(150);
/// Beats after which a bottle must have been heard.
const LED_TRIES: usize = 5;
/// An address of the documentation ranges: nobody's.
const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

/// A bottle for the length of the probes.
pub(super) struct Trial {
    bottle: Throwaway,
    /// The meter's stand-in.
    listener: TcpListener,
}

impl Trial {
    pub(super) fn start(bottle: Throwaway) -> Result<Self, Failure> {
        Ok(Self { bottle, listener: TcpListener::bind("127.0.0.1:0")? })
    }

    pub(super) fn cgroup(&self) -> &Cgroup {
        &self.bottle.cgroup
    }

    /// The bottle's cgroup, with a way out.
    pub(super) fn opened(&self) -> &Cgroup {
        self.bottle.loader.open(SLOT);
        &self.bottle.cgroup
    }

    pub(super) fn attach(&self) -> Outcome {
        let meter = self.listener.local_addr()?;
        let here = namespace_cookie(self.listener.as_fd())?;
        self.bottle.loader.set_place(here, &Place::new(LISTENER_HOST, meter))?;
        self.bottle.loader.attach("doctor", &self.bottle.cgroup, Guard::new(SLOT, 1, meter))?;
        Ok("every hook attaches to a cgroup by a link, and is given its bottle".to_owned())
    }

    /// A real sender in the bottle must be heard while it is open, and not while it is cut.
    pub(super) fn cut(&self) -> Outcome {
        for open in [true, false, true] {
            if open {
                self.bottle.loader.open(SLOT);
            } else {
                self.bottle.loader.cut(SLOT);
            }
            self.must_hear(open, if open { "open" } else { "cut" })?;
        }
        Ok("a sender in a cut bottle is not heard, in an open one it is".to_owned())
    }

    /// An open bottle must be closed while nobody is at the wheel.
    pub(super) fn lease(&self) -> Outcome {
        let loader = &self.bottle.loader;
        loader.open(SLOT);
        loader.set_lease(SLOT, Some(LEASE));
        let tried = self.must_hear_led("led").and_then(|()| {
            std::thread::sleep(LEASE_IS_OVER);
            self.must_hear(false, "left")?;
            self.must_hear_led("led again")
        });
        loader.set_lease(SLOT, None);
        tried.map(|()| "an open bottle is closed while the controller is silent".to_owned())
    }

    /// A busy host may take longer than the lease to send at all: that is no answer, and asked again.
    fn must_hear_led(&self, bottle: &str) -> Result<(), Failure> {
        for _ in 0..LED_TRIES {
            self.bottle.loader.beat();
            if self.hears()? {
                return Ok(());
            }
        }
        Err(failure(format!("a packet of the {bottle} bottle is lost")))
    }

    fn must_hear(&self, expected: bool, bottle: &str) -> Result<(), Failure> {
        if self.hears()? == expected {
            return Ok(());
        }
        let what = if expected { "is lost" } else { "passes" };
        Err(failure(format!("a packet of the {bottle} bottle {what}")))
    }

    /// Whether a datagram from inside the bottle arrives outside.
    fn hears(&self) -> io::Result<bool> {
        let receiver = UdpSocket::bind("127.0.0.1:0")?;
        let address = receiver.local_addr()?;
        let sender = fork_in(&self.bottle.cgroup, || {
            let from = SocketAddr::from(([127, 0, 0, 1], 0));
            UdpSocket::bind(from)?.send_to(b"x", address).map(drop)
        })?;
        let sent = ended_well(sender)?;
        receiver.set_read_timeout(Some(if sent { ARRIVAL } else { UNDER_WAY }))?;
        Ok(receiver.recv(&mut [0; 8]).is_ok())
    }

    /// A drop of a cut bottle must be told.
    pub(super) fn events(&self) -> Outcome {
        let mut events = self.bottle.loader.events()?;
        self.bottle.loader.open(SLOT);
        self.bottle.loader.cut(SLOT);
        self.must_hear(false, "cut")?;
        while let Some(event) = events.next_event() {
            if (event.kind, event.slot) == (EVENT_CUT, SLOT) {
                return Ok("the first drop of a cut bottle is told at once".to_owned());
            }
        }
        Err(failure("a drop of a cut bottle is not told"))
    }

    /// A real connection from inside the bottle must be known as the bottle's.
    pub(super) fn identity(&self) -> Outcome {
        self.bottle.loader.open(SLOT);
        let meter = self.listener.local_addr()?;
        let client = fork_in(&self.bottle.cgroup, || {
            let mut stream = TcpStream::connect_timeout(&meter, ARRIVAL)?;
            stream.read(&mut [0]).map(drop)
        })?;
        let flow = self.accepted_flow();
        ended_well(client)?;
        match flow? {
            Some(flow) if flow.slot == SLOT && flow.cgroup_id == self.bottle.cgroup.id() => {
                Ok("a connection to the meter is known as its bottle's".to_owned())
            }
            _ => Err(failure("a connection to the meter is not known as its bottle's")),
        }
    }

    /// What is known of the next connection to the listener; closes it.
    fn accepted_flow(&self) -> io::Result<Option<Flow>> {
        let (_stream, peer) = accept(&self.listener, ARRIVAL)?;
        Ok(self.bottle.loader.flow(peer, self.listener.local_addr()?, LISTENER_HOST))
    }

    /// A real connection to an address that is not ours must arrive at the listener and not know it.
    pub(super) fn redirect(&self) -> Outcome {
        self.bottle.loader.open(SLOT);
        for asked in [SocketAddr::from((ELSEWHERE, 443)), (ELSEWHERE.to_ipv6_mapped(), 443).into()] {
            let client = fork_in(&self.bottle.cgroup, || {
                let mut stream = connect_from_loopback(asked)?;
                let deceived = stream.peer_addr()? == asked;
                // ends when the other side has looked the connection up
                let ended = stream.read(&mut [0]).map(drop);
                if deceived { ended } else { Err(ErrorKind::InvalidData.into()) }
            })?;
            let flow = self.accepted_flow();
            let deceived = ended_well(client)?;
            let original = flow?.map(|flow| (flow.original_ip, flow.original_port));
            if original != Some((address_words(asked.ip()), 443)) {
                return Err(failure(format!(
                    "a redirected connection to {asked} arrives without its address"
                )));
            }
            if !deceived {
                return Err(failure(format!("a redirected connection to {asked} names another peer")));
            }
        }
        Ok("connections to :443 of public addresses arrive at the meter, with the address asked for"
            .to_owned())
    }

    /// What a bottle must not do has to fail at once.
    pub(super) fn refusals(&self) -> Outcome {
        let meter = self.listener.local_addr()?;
        let elsewhere = SocketAddr::from((ELSEWHERE, 443));
        let cgroup = &self.bottle.cgroup;
        self.bottle.loader.open(SLOT);
        let squatting = fork_in(cgroup, || refused(TcpListener::bind(meter)))?;
        let quic =
            fork_in(cgroup, || refused(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?.send_to(b"x", elsewhere)))?;
        let open = [
            (ended_well(squatting)?, "a bottle can bind the meter's port"),
            (ended_well(quic)?, "a bottle can send QUIC past the meter"),
        ];
        self.bottle.loader.cut(SLOT);
        let connecting = fork_in(cgroup, || refused(connect_from_loopback(meter)))?;
        let cut = [(ended_well(connecting)?, "a cut bottle's connection is not refused at once")];
        match open.iter().chain(&cut).find(|(held, _)| !held) {
            Some((_, what)) => Err(failure(*what)),
            None => Ok("a cut bottle's connect, QUIC and the meter's port get EPERM".to_owned()),
        }
    }

    /// Programs loaded anew must take over from those that are attached, with every verdict as it was.
    pub(super) fn takeover(&self) -> Outcome {
        for open in [true, false] {
            if open {
                self.bottle.loader.open(SLOT);
            } else {
                self.bottle.loader.cut(SLOT);
            }
            let next = self.bottle.reload()?;
            let adopted = next.adopted();
            if adopted.iter().map(|pinned| (pinned.slot, pinned.cut.is_none())).ne([(SLOT, open)]) {
                return Err(failure("a bottle or its verdict is lost when programs are replaced"));
            }
            self.must_hear(open, "taken-over")?;
        }
        Ok("attached programs are replaced, and a cut stays cut".to_owned())
    }
}
