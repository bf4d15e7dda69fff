//! What the kernel's hooks tell, read on one thread and passed on to who acts on it. Decides nothing.
use std::io;
use std::os::fd::AsFd as _;
use std::sync::Arc;

use enforcer_ebpf::EVENT_NAMESPACE;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::namespaces::Namespaces;
use crate::core::{CoreHandle, Message};
use crate::kernel::{Event, Events};

/// Starts the thread; it ends with the process, or when events cannot be waited for any more: what depends on them
/// is then found by looking, later.
///
/// # Errors
/// When the thread cannot be started.
pub fn follow(events: Events, namespaces: Arc<Namespaces>, core: CoreHandle) -> io::Result<()> {
    let follow = move || {
        if let Err(error) = read_all(events, |event| pass_on(event, &namespaces, &core)) {
            tracing::error!(%error, "the kernel's events are not read any more");
        }
    };
    std::thread::Builder::new().name("events".into()).spawn(follow).map(drop)
}

fn read_all(mut events: Events, mut pass_on: impl FnMut(Event)) -> nix::Result<()> {
    loop {
        while let Some(event) = events.next_event() {
            pass_on(event);
        }
        let mut waiting = [PollFd::new(events.as_fd(), PollFlags::POLLIN)];
        match poll(&mut waiting, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error),
        }
    }
}

fn pass_on(event: Event, namespaces: &Namespaces, core: &CoreHandle) {
    if event.kind == EVENT_NAMESPACE {
        namespaces.refused(event);
    } else {
        core.tell(Message::Dropped(event));
    }
}
