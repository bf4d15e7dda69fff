//! The thread that serves namespaces: hears what is asked, and looks at every bottle in rounds.
//!
//! Not here: for how long a namespace is served and how many there may be (`known`).
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::os::fd::AsFd as _;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use meter_proxy::protocol::{BottleRef, Notice, namespaces_within};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::known::{Full, Known, MAX_OF_BOTTLE, Served};
use super::{Message, Parts, Watched};
use crate::bottle::cgroup::{self, Cgroup, CgroupError};
use crate::bottle::netns::{self, Inside, Namespace, NamespaceError, NamespaceId};
use crate::core::Message as CoreMessage;
use crate::kernel::{Event, KernelError, Place};

/// How often every bottle is looked at.
const ROUND: Duration = Duration::from_millis(250);
/// Rounds take no more than this part of one core: with many processes they come less often.
const BUSY_PART: u32 = 20;
/// A namespace that could not be served is tried again after this long.
const RETRY: Duration = Duration::from_secs(2);

/// Processes of one bottle that are looked at in a round, in the order of their numbers; the next round goes on from
/// there, so that a bottle with many has its own looked at less often, and no other's.
const MAX_OF_ROUND: usize = 1_024;

/// What a look at a bottle found.
#[derive(Debug, PartialEq, Eq)]
struct Look {
    /// The namespaces that its processes are in, each with one of them. Those that end meanwhile are in none.
    found: BTreeMap<NamespaceId, u32>,
    /// The first process that was not looked at, if there were too many.
    rest: Option<u32>,
}

/// Looks at no more than `most` of a bottle's processes, from number `first` on.
fn look(cgroup: &Cgroup, first: u32, most: usize) -> Result<Look, CgroupError> {
    let mut pids = cgroup.pids()?;
    pids.retain(|pid| *pid >= first);
    let rest = (pids.len() > most).then(|| *pids.select_nth_unstable(most).1);
    let of = |pid| NamespaceId::of_process(pid).ok().map(|id| (id, pid));
    Ok(Look { found: pids.into_iter().take(most).filter_map(of).collect(), rest })
}

/// The thread's state.
pub(super) struct Keeper {
    parts: Parts,
    own: NamespaceId,
    bottles: BTreeMap<u32, Watched>,
    known: Known,
    /// Where the meter and the lane are in each namespace, the host's too, by its cookie.
    places: BTreeMap<u64, Place>,
    lane_serves: bool,
    /// Not tried again before then.
    retry: BTreeMap<NamespaceId, Instant>,
    /// Slots of bottles of which it was said that they have too many, or use what cannot be served.
    told: BTreeSet<u32>,
    /// Slots whose refused connections have led to nothing new: not looked into again in this round.
    in_vain: BTreeSet<u32>,
    /// Slots that are still to be looked at in this round.
    round: VecDeque<u32>,
    /// Slots of bottles that were not looked at to the end, with the process to go on from.
    rest: BTreeMap<u32, u32>,
    busy: Duration,
}

impl Keeper {
    /// Serves the namespaces that these bottles are in.
    pub(super) fn of(parts: Parts, mut bottles: Vec<Watched>) -> io::Result<Self> {
        let mut keeper = Self::new(parts)?;
        bottles.sort_by_key(|bottle| Reverse(bottle.depth()));
        for bottle in bottles {
            keeper.watch(bottle);
        }
        Ok(keeper)
    }

    fn new(parts: Parts) -> io::Result<Self> {
        // here there are the meter's sockets and twice as many of the lane's
        let most = namespaces_within(raise_descriptor_limit()? / 3);
        Ok(Self {
            own: NamespaceId::own()?,
            bottles: BTreeMap::new(),
            known: Known::new(most),
            places: BTreeMap::from([(parts.host_cookie, parts.listener.place_with_lane())]),
            lane_serves: false,
            retry: BTreeMap::new(),
            told: BTreeSet::new(),
            in_vain: BTreeSet::new(),
            round: VecDeque::new(),
            rest: BTreeMap::new(),
            busy: Duration::ZERO,
            parts,
        })
    }

    /// Between two looks at bottles whoever asks is heard first.
    pub(super) fn run(mut self, inbox: &Receiver<Message>) {
        let mut next_round = Instant::now() + ROUND;
        loop {
            let wait = next_round.saturating_duration_since(Instant::now());
            match inbox.recv_timeout(wait) {
                Ok(Message::Stop) | Err(RecvTimeoutError::Disconnected) => return,
                Ok(message) => self.handle(message),
                Err(RecvTimeoutError::Timeout) if self.look_at_next() => {}
                Err(RecvTimeoutError::Timeout) => next_round = self.end_round(),
            }
        }
    }

    fn handle(&mut self, message: Message) {
        match message {
            Message::Watch { bottle, reply } => {
                if reply.send(self.watch(*bottle)).is_err() {
                    tracing::debug!("nobody waits for a bottle's namespaces any more");
                }
            }
            Message::Forget { slot } => self.forget(slot),
            Message::Refused(event) => self.refused(&event),
            Message::Lane(serves) => self.turn_lane(serves),
            Message::Stop => {}
        }
    }

    fn watch(&mut self, bottle: Watched) -> Vec<String> {
        let slot = bottle.slot;
        self.forget(slot);
        self.bottles.insert(slot, bottle);
        self.look_at(slot, usize::MAX)
    }

    fn forget(&mut self, slot: u32) {
        self.bottles.remove(&slot);
        self.told.remove(&slot);
        self.in_vain.remove(&slot);
        self.rest.remove(&slot);
        let gone = self.known.forget(slot);
        self.give_up(gone);
    }

    /// Looks at one more bottle of this round; `false` when all have been.
    fn look_at_next(&mut self) -> bool {
        let Some(slot) = self.round.pop_front() else { return false };
        let started = Instant::now();
        self.look_at(slot, MAX_OF_ROUND);
        self.busy += started.elapsed();
        true
    }

    /// Ends the round; the instant at which the next begins. A bottle inside another comes first: what it is in
    /// counts for it, not for the one around it.
    fn end_round(&mut self) -> Instant {
        let gone = self.known.end_round(|slot| self.rest.contains_key(&slot));
        self.give_up(gone);
        let now = Instant::now();
        self.retry.retain(|_, until| *until > now);
        self.in_vain.clear();
        let mut slots: Vec<u32> = self.bottles.keys().copied().collect();
        slots.sort_by_key(|slot| Reverse(self.bottles.get(slot).map(Watched::depth)));
        self.round = slots.into();
        now + ROUND.max(std::mem::take(&mut self.busy) * BUSY_PART)
    }

    /// Serves the namespaces that a bottle's processes are in now, or so many of them. One line for each that stays
    /// closed.
    fn look_at(&mut self, slot: u32, most: usize) -> Vec<String> {
        let Some(bottle) = self.bottles.get(&slot) else { return Vec::new() };
        let first = self.rest.remove(&slot).unwrap_or(0);
        let found = match look(&bottle.cgroup, first, most) {
            Ok(Look { found, rest }) => {
                self.rest.extend(rest.map(|rest| (slot, rest)));
                found
            }
            Err(error) => {
                tracing::warn!(bottle = bottle.name, %error, "its network namespaces cannot be told");
                self.known.keep(slot);
                return Vec::new();
            }
        };
        let closed = found.into_iter().filter_map(|(id, pid)| self.meet(slot, id, pid)).collect();
        self.look_for_threads(slot);
        closed
    }

    /// A thread may be in another namespace than its process: those that were met are looked for by their own number.
    fn look_for_threads(&mut self, slot: u32) {
        let Some(bottle) = self.bottles.get(&slot) else { return };
        for (id, witness) in self.known.missing(slot) {
            if NamespaceId::of_process(witness).is_ok_and(|there| there == id)
                && bottle.cgroup.contains(witness)
            {
                self.known.meet(slot, id);
            }
        }
    }

    /// A process of the bottle, or a thread, is in this namespace. What stays closed, in one line.
    fn meet(&mut self, slot: u32, id: NamespaceId, pid: u32) -> Option<String> {
        if id == self.own || self.known.meet(slot, id) {
            return None;
        }
        if self.retry.get(&id).is_some_and(|until| *until > Instant::now()) {
            self.known.close(slot, id);
            return None;
        }
        match self.known.room_for(slot, id) {
            Ok(()) => self.open(slot, id, pid),
            Err(full) => self.full(slot, full),
        }
    }

    fn open(&mut self, slot: u32, id: NamespaceId, pid: u32) -> Option<String> {
        match self.serve(slot, pid) {
            Ok(()) => {
                self.told.remove(&slot);
                None
            }
            // it has ended, or gone elsewhere
            Err(Closed::Namespace(NamespaceError::Process { source, .. })) => {
                tracing::debug!(pid, %source, "a process left its network namespace before it was served");
                None
            }
            Err(closed @ Closed::Outside) => {
                tracing::debug!(pid, %closed, "a network namespace is not served");
                None
            }
            Err(closed) => {
                self.retry.insert(id, Instant::now() + RETRY);
                let line = format!("a network namespace (process {pid}) is closed: {closed}");
                self.known.close(slot, id).then(|| self.say(slot, line))
            }
        }
    }

    /// Whether a process, or a thread, is certainly in the bottle.
    fn is_inside(&self, slot: u32, pid: u32) -> bool {
        let Some(Watched { cgroup, .. }) = self.bottles.get(&slot) else { return false };
        cgroup::path_of(pid).is_ok_and(|path| path.starts_with(cgroup.path())) && cgroup.exists()
    }

    /// Sockets first, then the meter, and the kernel last: what it sends there is accepted.
    fn serve(&mut self, slot: u32, pid: u32) -> Result<(), Closed> {
        let namespace = Namespace::of_process(pid)?;
        // the number may have become another process's; from here on the namespace cannot
        if !self.is_inside(slot, pid) {
            return Err(Closed::Outside);
        }
        if namespace.id() == self.own || self.known.meet(slot, namespace.id()) {
            return Ok(());
        }
        let Inside { cookie, sockets, ip4, ip6, without_ip6 } =
            namespace.listen(self.parts.listener.address)?;
        if let Some(error) = without_ip6 {
            tracing::warn!(pid, %error, "sockets of that network namespace that take IPv6 alone are refused");
        }
        let listener = self.parts.kernel.new_listener().ok_or(Closed::NoIds)?;
        self.parts.meter.listen(listener, sockets);
        let place = Place { meter_ip6: ip6, ..Place::new(listener, ip4) };
        if let Err(error) = self.parts.kernel.set_place(cookie, &place) {
            self.parts.meter.unlisten(listener);
            return Err(error.into());
        }
        self.known.serve(slot, namespace.id(), listener, cookie, pid);
        self.open_lane(slot, &namespace, cookie, place);
        tracing::debug!(pid, listener, cookie, "a network namespace is served");
        Ok(())
    }

    /// Opens the lane's sockets in a namespace that is served. Without them an answered cut is a silent one there.
    fn open_lane(&mut self, slot: u32, namespace: &Namespace, cookie: u64, place: Place) {
        let place = match self.parts.lane.listen_in(namespace.as_fd(), place.listener) {
            Ok(lane) => Place { lane: Some(lane.ip4), lane_ip6: lane.ip6, ..place },
            Err(error) => {
                self.say(
                    slot,
                    format!("an answered cut is silent in one of its network namespaces: {error}"),
                );
                place
            }
        };
        self.places.insert(cookie, place);
        if self.lane_serves {
            self.write_place(cookie, &place);
        }
    }

    /// The lane serves from now on, or nothing is sent to it any more.
    fn turn_lane(&mut self, serves: bool) {
        self.lane_serves = serves;
        for (cookie, place) in &self.places {
            let without = Place { lane: None, lane_ip6: None, ..*place };
            self.write_place(*cookie, if serves { place } else { &without });
        }
    }

    /// Writes a place anew. One that cannot be written is taken away: nothing is sent from there, and that is told.
    fn write_place(&self, cookie: u64, place: &Place) {
        let written = self.parts.kernel.set_place(cookie, place);
        if let Err(error) = written.or_else(|error| self.parts.kernel.remove_place(cookie).and(Err(error))) {
            tracing::error!(%error, cookie, "where the lane is cannot be written");
        }
    }

    /// The kernel forgets the place first: nothing is sent to sockets that are about to close.
    fn give_up(&mut self, gone: Vec<Served>) {
        for Served { listener, cookie, .. } in gone {
            if let Err(error) = self.parts.kernel.remove_place(cookie) {
                tracing::error!(%error, cookie, "a network namespace without a meter is not forgotten");
            }
            self.parts.meter.unlisten(listener);
            self.parts.lane.unlisten(listener);
            self.places.remove(&cookie);
            tracing::debug!(listener, cookie, "a network namespace is not served any more");
        }
    }

    /// A connection was refused because the kernel knew no place. Any thread of the process may have made it; where
    /// the process has ended, others of the bottle may be in the same namespace. A bottle that is refused again and
    /// again is looked into once a round.
    fn refused(&mut self, event: &Event) {
        let slot = event.slot;
        let current = self.bottles.get(&slot).is_some_and(|bottle| bottle.generation == event.generation);
        if !current || self.known.has_cookie(event.cookie) || !self.in_vain.insert(slot) {
            return;
        }
        // the socket may be in the hands of a process outside, whose namespaces are no business of the bottle's
        let is_inside = self.is_inside(slot, event.pid);
        let threads = if is_inside { netns::of_threads(event.pid).unwrap_or_default() } else { Vec::new() };
        for (id, thread) in &threads {
            self.meet(slot, *id, *thread);
        }
        if threads.is_empty() {
            self.look_at(slot, MAX_OF_ROUND);
        }
        if self.known.has_cookie(event.cookie) {
            self.in_vain.remove(&slot);
            return;
        }
        let all_served = threads.iter().all(|(id, _)| *id == self.own || self.known.meet(slot, *id));
        if !threads.is_empty() && all_served && self.told.insert(slot) {
            let line = format!(
                "process {} uses a socket of a network namespace that it is not in: the meter cannot be reached by it",
                event.pid
            );
            self.say(slot, line);
        }
    }

    /// Says once of a bottle that it has too many.
    fn full(&mut self, slot: u32, full: Full) -> Option<String> {
        let line = match full {
            Full::Bottle => {
                format!("it is in more than {MAX_OF_BOTTLE} network namespaces: the others are closed")
            }
            Full::All => {
                "bottles are in more network namespaces than can be served: the others are closed".into()
            }
        };
        self.told.insert(slot).then(|| self.say(slot, line))
    }

    /// Has it recorded; the line.
    fn say(&self, slot: u32, line: String) -> String {
        if let Some(bottle) = self.bottles.get(&slot) {
            tracing::warn!(bottle = bottle.name, "{line}");
            let bottle = BottleRef { slot, generation: bottle.generation };
            self.parts.core.tell(CoreMessage::Closed(Notice { bottle: Some(bottle), detail: line.clone() }));
        }
        line
    }
}

/// Why a namespace stays closed.
#[derive(Debug, thiserror::Error)]
enum Closed {
    #[error(transparent)]
    Namespace(#[from] NamespaceError),
    #[error(transparent)]
    Kernel(#[from] KernelError),
    #[error("the process is not in the bottle any more")]
    Outside,
    #[error("every id of listening sockets has been given once")]
    NoIds,
}

/// Raises this process's limit of open descriptors as far as it goes; how many that is.
fn raise_descriptor_limit() -> io::Result<usize> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    Ok(usize::try_from(most).unwrap_or(usize::MAX))
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};

    use super::*;

    /// A cgroup with one process; both go with it.
    struct Inhabited(Option<Cgroup>, Child);

    impl Inhabited {
        fn new(number: usize) -> Self {
            let name = format!("enforcer-test-round-{}-{number}", std::process::id());
            let cgroup = Cgroup::create(&cgroup::mount().unwrap().join(name)).unwrap();
            let child = Command::new("sleep").arg("1000").spawn().unwrap();
            std::fs::write(cgroup.path().join("cgroup.procs"), child.id().to_string()).unwrap();
            Self(Some(cgroup), child)
        }
    }

    impl Drop for Inhabited {
        fn drop(&mut self) {
            self.1.kill().unwrap();
            self.1.wait().unwrap();
            let cgroup = self.0.take().unwrap();
            while cgroup.populated().unwrap() {
                std::thread::yield_now();
            }
            cgroup.remove().unwrap();
        }
    }

    #[test]
    fn root_a_bottle_of_many_processes_is_looked_at_in_parts() {
        assert!(nix::unistd::geteuid().is_root(), "this test makes cgroups: run it as root");
        let Inhabited(cgroup, first) = &Inhabited::new(usize::MAX);
        let cgroup = cgroup.as_ref().unwrap();
        let mut others = [(); 4].map(|()| Command::new("sleep").arg("1000").spawn().unwrap());
        let mut pids = vec![first.id()];
        for child in &others {
            std::fs::write(cgroup.path().join("cgroup.procs"), child.id().to_string()).unwrap();
            pids.push(child.id());
        }
        pids.sort_unstable();
        let looks = [(0, 2), (pids[2], 2), (pids[4], 2), (0, 5)].map(|(from, most)| look(cgroup, from, most));
        for child in &mut others {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        let rests = looks.map(|look| look.unwrap().rest);
        assert_eq!(rests, [Some(pids[2]), Some(pids[4]), None, None]);
    }

    /// `ENFORCER_TEST_FULL=1`: 1,000 bottles instead of 50.
    #[test]
    fn root_a_round_finds_the_namespace_of_every_bottle_quickly() {
        assert!(nix::unistd::geteuid().is_root(), "this test makes cgroups: run it as root");
        let many = if std::env::var_os("ENFORCER_TEST_FULL").is_some() { 1_000 } else { 50 };
        let bottles: Vec<Inhabited> = (0..many).map(Inhabited::new).collect();
        let own = NamespaceId::own().unwrap();
        let mut rounds = Vec::new();
        for _ in 0..20 {
            let started = Instant::now();
            for Inhabited(cgroup, child) in &bottles {
                let looked = look(cgroup.as_ref().unwrap(), 0, MAX_OF_ROUND).unwrap();
                let found = BTreeMap::from([(own, child.id())]);
                assert_eq!(looked, Look { found, rest: None });
            }
            rounds.push(started.elapsed());
        }
        rounds.sort();
        println!("{many} bottles with a process each: a round takes {:?} (median of 20)", rounds[10]);
        assert!(rounds[0] < Duration::from_micros(500) * many.try_into().unwrap(), "{rounds:?}");
    }
}
