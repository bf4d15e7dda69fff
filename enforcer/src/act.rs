//! What a cut does beyond the store into the map: aborts sockets of the bottle, on a thread of its own, so that nothing
//! waits for it. Whoever reads from or writes to one gets ECONNABORTED at once instead of hanging.
//!
//! Which sockets: after an answered cut those that are connected to the meter; with `--hard` every one. Not here: what
//! is cut, and why.
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::bottle::cgroup::Cgroup;
use crate::bottle::netns::{self, Namespace, NamespaceId};
use crate::core::{CoreHandle, Message};
use crate::kernel::sock_diag::{InetSocket, SockDiag, namespace_of};
use crate::kernel::{Flow, FlowKey, Kernel, address_of};
use crate::meter::Meter;

/// A connection that was being made at the moment of the cut is remembered a little later: it is looked for again.
const AGAIN_AFTER: Duration = Duration::from_millis(20);

/// Which sockets of a bottle are aborted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// Those that are connected to the meter.
    Metered,
    /// Every one that was made in its cgroup and below.
    All,
}

/// An order to abort.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Abort {
    /// The bottle's name.
    pub bottle: String,
    /// Its slot; if it is open again when the order is done, nothing is.
    pub slot: u32,
    /// Its cgroup.
    pub cgroup: PathBuf,
    /// The cgroup's id.
    pub cgroup_id: u64,
    /// Slots of the bottle and of those nested in its cgroup, each with its generation.
    pub slots: Vec<(u32, u32)>,
    /// Which sockets.
    pub which: Which,
}

/// Gives orders; they are done one after another until every one of these is dropped.
#[derive(Clone, Debug)]
pub struct Actor(Sender<Abort>);

impl Actor {
    /// Has sockets aborted, soon.
    pub fn abort(&self, order: Abort) {
        if self.0.send(order).is_err() {
            tracing::debug!("nobody aborts sockets any more: the controller is stopping");
        }
    }
}

/// The end to give orders to, and the one that they come from.
#[must_use]
pub fn orders() -> (Actor, Receiver<Abort>) {
    let (sender, orders) = channel();
    (Actor(sender), orders)
}

/// What the thread works with.
pub struct Parts {
    /// Who remembers the connections to the meter.
    pub kernel: Arc<dyn Kernel>,
    /// Who has a socket in every network namespace of bottles.
    pub meter: Arc<Meter>,
    /// Who records what failed.
    pub core: CoreHandle,
    /// The meter's port, in every network namespace.
    pub meter_port: u16,
}

/// Starts the thread that does the orders.
///
/// # Errors
/// When it cannot be started.
pub fn start(orders: Receiver<Abort>, parts: Parts) -> io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name("act".into()).spawn(move || parts.run(&orders))
}

impl Parts {
    fn run(&self, orders: &Receiver<Abort>) {
        while let Ok(first) = orders.recv() {
            let batch: Vec<Abort> = std::iter::once(first).chain(orders.try_iter()).collect();
            batch.iter().for_each(|order| self.act(order));
            std::thread::sleep(AGAIN_AFTER);
            batch.iter().for_each(|order| self.act(order));
        }
    }

    fn act(&self, order: &Abort) {
        if self.kernel.is_open(order.slot) {
            return;
        }
        let mut failures = Vec::new();
        let aborted = match order.which {
            Which::Metered => self.abort_metered(&order.slots, &mut failures),
            Which::All => abort_all(order, &mut failures),
        };
        tracing::debug!(bottle = order.bottle, aborted, which = ?order.which, "sockets are aborted");
        if let Some(first) = failures.first() {
            let more = match failures.len() - 1 {
                0 => String::new(),
                more => format!(" ({more} more like this)"),
            };
            let detail = format!("sockets could not be aborted: {first}{more}; what they send is dropped");
            self.core.tell(Message::Warn { bottle: Some(order.bottle.clone()), detail, failed: true });
        }
    }

    /// Aborts the connections of these slots to the meter, wherever they were made; how many.
    fn abort_metered(&self, slots: &[(u32, u32)], failures: &mut Vec<String>) -> usize {
        let mut by_listener: BTreeMap<u32, Vec<(FlowKey, Flow)>> = BTreeMap::new();
        for (slot, generation) in slots {
            match self.kernel.flows_of(*slot) {
                Ok(flows) => {
                    // a slot may be another bottle's by now
                    let metered = flows.into_iter().filter(|(key, flow)| {
                        key.destination_port == u32::from(self.meter_port) && flow.generation == *generation
                    });
                    metered.for_each(|flow| by_listener.entry(flow.0.listener).or_default().push(flow));
                }
                Err(error) => failures.push(error.to_string()),
            }
        }
        let mut aborted = 0;
        for (listener, flows) in by_listener {
            // without its listener the namespace is given up: nobody is in it any more
            let Some(sockets) = self.meter.sockets_of(listener) else { continue };
            let Some(socket) = sockets.first() else { continue };
            match namespace_of(socket.as_fd()).and_then(|namespace| SockDiag::open_in(namespace.as_fd())) {
                Ok(mut diag) => {
                    for (key, flow) in &flows {
                        match abort(&mut diag, key, flow) {
                            Ok(found) => aborted += usize::from(found),
                            Err(error) => failures.push(error.to_string()),
                        }
                    }
                }
                Err(error) => failures.push(format!("a network namespace: {error}")),
            }
        }
        aborted
    }
}

/// Aborts the bottle's end of one connection; `false` when it is gone already.
fn abort(diag: &mut SockDiag, key: &FlowKey, flow: &Flow) -> io::Result<bool> {
    let end = |ip, port: u32| {
        let port = u16::try_from(port).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
        Ok::<_, io::Error>((address_of(ip), port).into())
    };
    let local = end(&key.source_ip, key.source_port)?;
    let remote = end(&key.destination_ip, key.destination_port)?;
    diag.abort(&InetSocket::connection(local, remote, flow.cookie))
}

/// Aborts every socket that was made in the bottle's cgroup and below, in each network namespace that its processes
/// are in; how many.
fn abort_all(order: &Abort, failures: &mut Vec<String>) -> usize {
    let found = Cgroup::open(&order.cgroup).and_then(|cgroup| {
        let ids = if cgroup.id() == order.cgroup_id { cgroup.ids()? } else { Default::default() };
        Ok((ids, cgroup.pids()?))
    });
    let (ids, pids) = match found {
        Ok(found) => found,
        Err(error) => {
            failures.push(error.to_string());
            return 0;
        }
    };
    let own = NamespaceId::own().into_iter().map(|id| (id, std::process::id()));
    // threads of a process that has ended meanwhile are in none
    let theirs = pids.into_iter().flat_map(|pid| netns::of_threads(pid).unwrap_or_default());
    let mut seen = BTreeSet::new();
    let mut aborted = 0;
    for (id, pid) in own.chain(theirs) {
        if !seen.insert(id) {
            continue;
        }
        let made = Namespace::of_process(pid).map_err(io::Error::other);
        let made = made.and_then(|namespace| SockDiag::open_in(namespace.as_fd()));
        match made.and_then(|mut diag| diag.abort_made_in(&ids)) {
            Ok(found) => aborted += found,
            Err(error) => failures.push(format!("in the network namespace of process {pid}: {error}")),
        }
    }
    aborted
}
