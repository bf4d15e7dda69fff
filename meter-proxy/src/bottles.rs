//! What the meter knows of each bottle: whether it is open, its connections, its way to providers.
//!
//! The controller decides; here its word is kept and spread by a watch channel. Not here: what each part of
//! the meter does when a bottle changes.
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::Instant;

use crate::dial::Lookups;
use crate::forward::Upstreams;
use crate::lock::lock;
use crate::protocol::{BottleRef, Upstream};
use crate::settings::Settings;

/// Most of the request bodies of one bottle that wait at the gate or on their way, KiB.
const MAX_ROOM_KIB: u32 = 64 * 1024;
/// Most long request bodies of one bottle that are read at a time: each keeps a processor busy.
const MAX_READING: usize = 2;
/// Most things of one bottle that are noticed in [`NOTICED_FOR`].
const MAX_NOTICED: usize = 256;
/// What was noticed is noticed again after this long.
const NOTICED_FOR: Duration = Duration::from_secs(3_600);

/// What the controller last said of a bottle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Traffic flows.
    Open,
    /// Silently cut: nothing is read from providers; closed when the hold of this number runs out.
    Held(u64),
    /// Cut: connections to providers are closed.
    Closed,
    /// No bottle any more: every connection is closed.
    Detached,
}

/// One bottle, shared by its connections.
pub struct Bottle {
    /// The controller's word for it.
    pub id: BottleRef,
    /// Its connections to providers, shared with no other bottle.
    pub upstreams: Upstreams,
    /// Its name lookups.
    pub lookups: Lookups,
    /// One permit a connection.
    pub connections: Arc<Semaphore>,
    room: Arc<Semaphore>,
    reading: Semaphore,
    standing: watch::Sender<Standing>,
    noticed: Mutex<HashMap<String, Instant>>,
}

impl Bottle {
    fn new(id: BottleRef, settings: &watch::Receiver<Arc<Settings>>, most_connections: usize) -> Self {
        let lookups = Lookups::default();
        Self {
            id,
            upstreams: Upstreams::new(settings.clone(), lookups.clone()),
            lookups,
            connections: Arc::new(Semaphore::new(most_connections)),
            room: Arc::new(Semaphore::new(MAX_ROOM_KIB as usize)),
            reading: Semaphore::new(MAX_READING),
            standing: watch::Sender::new(Standing::Open),
            noticed: Mutex::default(),
        }
    }

    /// The standing now.
    #[must_use]
    pub fn standing(&self) -> Standing {
        *self.standing.borrow()
    }

    /// Follows the standing; the present one counts as seen.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Standing> {
        self.standing.subscribe()
    }

    /// Waits for memory to keep `bytes` of a request's body in; free again when the value is dropped. `None`
    /// only if the count were closed, which nobody does.
    pub async fn room_for(&self, bytes: u64) -> Option<OwnedSemaphorePermit> {
        let kib = u32::try_from(bytes.div_ceil(1024)).unwrap_or(MAX_ROOM_KIB).min(MAX_ROOM_KIB);
        Arc::clone(&self.room).acquire_many_owned(kib).await.ok()
    }

    /// Does what keeps a processor busy when it is this bottle's turn, where no other task waits for it.
    pub async fn in_turn<T>(&self, work: impl FnOnce() -> T) -> T {
        // fails only if the count were closed, which nobody does
        let _turn = self.reading.acquire().await;
        tokio::task::block_in_place(work)
    }

    /// Whether `what` is noticed for the first time in a while; nothing is, past the bound.
    pub fn is_new(&self, what: &str) -> bool {
        let mut noticed = lock(&self.noticed);
        if noticed.len() >= MAX_NOTICED || noticed.contains_key(what) {
            noticed.retain(|_, at| at.elapsed() < NOTICED_FOR);
        }
        let is_new = noticed.len() < MAX_NOTICED && !noticed.contains_key(what);
        if is_new {
            noticed.insert(what.to_owned(), Instant::now());
        }
        is_new
    }

    /// Changes the standing, unless the bottle is detached already. Says whether it changed.
    fn become_if(&self, next: Standing, from: impl Fn(Standing) -> bool) -> bool {
        self.standing.send_if_modified(|standing| {
            let change = *standing != Standing::Detached && from(*standing);
            if change {
                *standing = next;
            }
            change
        })
    }
}

/// All bottles that the meter has heard of.
pub struct Bottles {
    known: Mutex<Known>,
    settings: watch::Receiver<Arc<Settings>>,
    most_connections: usize,
}

#[derive(Default)]
struct Known {
    bottles: HashMap<BottleRef, Arc<Bottle>>,
    holds: u64,
}

impl Bottles {
    /// Begins with none. `most_connections`: of each at a time.
    #[must_use]
    pub fn new(settings: watch::Receiver<Arc<Settings>>, most_connections: usize) -> Self {
        Self { known: Mutex::default(), settings, most_connections }
    }

    /// The bottle, made known when it was not. Called in the order of the controller's messages, so that a
    /// detached one never comes back.
    pub fn enter(&self, id: BottleRef) -> Arc<Bottle> {
        let mut known = lock(&self.known);
        let fresh = || Arc::new(Bottle::new(id, &self.settings, self.most_connections));
        let bottle = known.bottles.entry(id).or_insert_with(fresh);
        Arc::clone(bottle)
    }

    /// Cuts a bottle. A held one is closed when the settings' hold has run out.
    pub fn cut(&self, id: BottleRef, upstream: Upstream) {
        let bottle = self.enter(id);
        match upstream {
            Upstream::Close => {
                bottle.become_if(Standing::Closed, |standing| standing != Standing::Closed);
            }
            Upstream::Hold => {
                let held = Standing::Held(self.next_hold());
                if bottle.become_if(held, |standing| standing == Standing::Open) {
                    tokio::spawn(close_after(bottle, held, self.settings.borrow().hold));
                }
            }
        }
    }

    /// Opens a bottle.
    pub fn open(&self, id: BottleRef) {
        self.enter(id).become_if(Standing::Open, |standing| standing != Standing::Open);
    }

    /// Forgets a bottle and closes its connections.
    pub fn detach(&self, id: BottleRef) {
        if let Some(bottle) = lock(&self.known).bottles.remove(&id) {
            bottle.become_if(Standing::Detached, |_| true);
        }
    }

    /// Lets every bottle dial anew: what was dialled under an older configuration is not used again.
    pub fn forget_upstreams(&self) {
        for bottle in lock(&self.known).bottles.values() {
            bottle.upstreams.forget();
        }
    }

    fn next_hold(&self) -> u64 {
        let mut known = lock(&self.known);
        known.holds += 1;
        known.holds
    }
}

/// Closes the bottle when the same hold still stands.
async fn close_after(bottle: Arc<Bottle>, held: Standing, hold: Duration) {
    tokio::time::sleep(hold).await;
    bottle.become_if(Standing::Closed, |standing| standing == held);
}
