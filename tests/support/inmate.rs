//! A process in a bottle that tries what the test tells it, and says how it went (`src/bin/inmate`).
//!
//! It is single-threaded and root, and stays where it is between two orders: sockets, namespaces and all.
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::fd::{AsFd, AsRawFd as _};
use std::os::unix::net::UnixListener;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

use crate::cgroup::TestCgroup;
use crate::network::{Namespace, link};
use crate::process;

/// How long an order may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// A process that obeys; killed when dropped.
pub struct Inmate {
    child: Child,
    orders: ChildStdin,
    answers: Receiver<String>,
}

impl Inmate {
    /// Starts one in a cgroup, or where the test is, in the network of the calling thread.
    #[must_use]
    pub fn start(cgroup: Option<&TestCgroup>) -> Self {
        let mut command = Command::new(process::built("inmate"));
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = match cgroup {
            Some(cgroup) => cgroup.spawn(&mut command),
            None => command.spawn().expect("the inmate can be started"),
        };
        let (orders, stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let (said, answers) = channel();
        std::thread::spawn(move || {
            // ends with the inmate; nobody may be left to hear it
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                drop(said.send(line));
            }
        });
        Self { child, orders, answers }
    }

    /// One that is root of a user namespace of its own, with a network namespace whose only way out is a cable to `far`.
    #[must_use]
    pub fn with_own_network(cgroup: Option<&TestCgroup>, far: &Namespace) -> Self {
        let mut inmate = Self::start(cgroup);
        inmate.ok("unshare");
        link(&inmate.network(), far);
        inmate
    }

    /// The network namespace it is in.
    #[must_use]
    pub fn network(&self) -> Namespace {
        Namespace::of_process(self.pid())
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Tells it to do something; its answer: `ok` with what it found, or the name of the error.
    pub fn order(&mut self, order: &str) -> String {
        writeln!(self.orders, "{order}").expect("the inmate takes orders");
        self.answer(order)
    }

    /// Tells it to do something that must work; what it found.
    #[track_caller]
    pub fn ok(&mut self, order: &str) -> String {
        let answer = self.order(order);
        let found = answer.strip_prefix("ok").unwrap_or_else(|| panic!("{order}: {answer}"));
        found.trim_start().to_owned()
    }

    /// Runs a shell command in its place, which must succeed.
    #[track_caller]
    pub fn shell(&mut self, command: &str) {
        self.ok(&format!("sh {command}"));
    }

    /// Hands it an open connection, which it uses from now on.
    pub fn hand_over(&mut self, descriptor: impl AsFd) {
        let dir = tempfile::tempdir().expect("a directory for a socket");
        let path = dir.path().join("hand");
        let listener = UnixListener::bind(&path).expect("a socket to hand over by");
        writeln!(self.orders, "take {}", path.display()).expect("the inmate takes orders");
        let (stream, _) = listener.accept().expect("the inmate comes for it");
        let rights = [descriptor.as_fd().as_raw_fd()];
        let payload = [std::io::IoSlice::new(b"x")];
        sendmsg::<()>(
            stream.as_raw_fd(),
            &payload,
            &[ControlMessage::ScmRights(&rights)],
            MsgFlags::empty(),
            None,
        )
        .expect("a descriptor can be handed over");
        assert_eq!(self.answer("take"), "ok");
    }

    fn answer(&self, order: &str) -> String {
        self.answers.recv_timeout(PATIENCE).unwrap_or_else(|error| panic!("{order}: no answer: {error}"))
    }
}

impl Drop for Inmate {
    fn drop(&mut self) {
        process::kill(&mut self.child);
    }
}
