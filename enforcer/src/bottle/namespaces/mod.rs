//! The network namespaces that bottles' processes are in, beside the host's: gives each listening sockets of the
//! meter's, so that a bottle needs nothing there but `lo`, and takes them back when nobody is in it any more.
//!
//! One thread finds them: when a bottle is attached (before it opens), when the kernel refused a connection because
//! it knew no meter there, and by looking at every bottle's processes four times a second. A namespace is served in
//! this order: sockets, the meter is told, and only then the kernel sends there; and given up in the other. An open
//! socket keeps its namespace alive, so none is left behind. The thread is `keeper`, its books are `known`;
//! not here: how sockets get into a namespace (`netns`).
mod keeper;
mod known;

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use tokio::sync::oneshot;

use self::keeper::Keeper;
use super::cgroup::{Cgroup, CgroupError};
use crate::core::{CoreHandle, Listener};
use crate::kernel::{Event, Kernel};
use crate::lane::Lane;
use crate::ledger::Attachment;
use crate::meter::Meter;

/// What the thread works with.
pub struct Parts {
    /// Where the meter is, for the hooks.
    pub kernel: Arc<dyn Kernel>,
    /// Who accepts.
    pub meter: Arc<Meter>,
    /// Who answers where bottles are cut.
    pub lane: Arc<Lane>,
    /// Who records what stays closed.
    pub core: CoreHandle,
    /// Where both are in the host's namespace: at the same ports they are in every other.
    pub listener: Listener,
    /// The host's namespace.
    pub host_cookie: u64,
}

/// A bottle to be looked after.
#[derive(Debug)]
pub struct Watched {
    /// Its slot.
    pub slot: u32,
    /// The slot's generation.
    pub generation: u32,
    /// Its name.
    pub name: String,
    /// Its cgroup.
    pub cgroup: Cgroup,
}

enum Message {
    /// Look after this bottle too; the answer says what is closed in it, once all that can be served is.
    Watch { bottle: Box<Watched>, reply: oneshot::Sender<Vec<String>> },
    /// The bottle is gone.
    Forget { slot: u32 },
    /// The kernel refused a connection for want of a place.
    Refused(Event),
    /// The refusal lane serves, or is gone.
    Lane(bool),
    /// End the thread.
    Stop,
}

impl Watched {
    /// The bottle of this attachment. One whose cgroup is gone has no processes to look after; one whose cgroup
    /// cannot be opened stays closed in every other namespace, and that is said.
    #[must_use]
    pub fn if_there(attachment: &Attachment) -> Option<Self> {
        let Attachment { slot, generation, name, cgroup_id, .. } = attachment.clone();
        match Cgroup::open(Path::new(&attachment.cgroup)) {
            Ok(cgroup) => (cgroup.id() == cgroup_id).then_some(Self { slot, generation, name, cgroup }),
            Err(CgroupError::Missing(_)) => None,
            Err(error) => {
                tracing::error!(bottle = name, %error, "its network namespaces cannot be looked for");
                None
            }
        }
    }

    /// How deep its cgroup is.
    fn depth(&self) -> usize {
        self.cgroup.path().components().count()
    }
}

/// What the thread is told; it waits here until there is one.
pub struct Inbox(Receiver<Message>);

impl Inbox {
    /// Serves the namespaces that these bottles are in, then starts the thread.
    ///
    /// # Errors
    /// When this process's own namespace or its limits cannot be told, or no thread can be started.
    pub fn start(self, parts: Parts, bottles: Vec<Watched>) -> io::Result<JoinHandle<()>> {
        let keeper = Keeper::of(parts, bottles)?;
        std::thread::Builder::new().name("namespaces".into()).spawn(move || keeper.run(&self.0))
    }
}

/// The thread's handle; see the module's head.
pub struct Namespaces {
    messages: Sender<Message>,
}

impl Namespaces {
    /// The handle, and what comes of it, for [`Inbox::start`].
    #[must_use]
    pub fn new() -> (Arc<Self>, Inbox) {
        let (messages, inbox) = channel();
        (Arc::new(Self { messages }), Inbox(inbox))
    }

    /// The refusal lane serves, or is gone.
    pub fn lane(&self, serves: bool) {
        self.tell(Message::Lane(serves));
    }

    /// Looks after a bottle from now on. Returns when the namespaces that its processes are in are served; one line
    /// for each that is not, and stays closed.
    pub async fn watch(&self, bottle: Watched) -> Vec<String> {
        let (reply, answer) = oneshot::channel();
        self.tell(Message::Watch { bottle: Box::new(bottle), reply });
        // without an answer nothing is served there: the controller is stopping
        answer.await.unwrap_or_default()
    }

    /// The bottle is gone: what only it was in is closed.
    pub fn forget(&self, slot: u32) {
        self.tell(Message::Forget { slot });
    }

    /// The kernel refused a connection in a namespace in which it knows no meter.
    pub fn refused(&self, event: Event) {
        self.tell(Message::Refused(event));
    }

    /// Ends the thread. The sockets stay until the process ends, places until the next controller starts.
    pub fn stop(&self) {
        self.tell(Message::Stop);
    }

    fn tell(&self, message: Message) {
        if self.messages.send(message).is_err() {
            tracing::debug!("namespaces are not looked after any more");
        }
    }
}
