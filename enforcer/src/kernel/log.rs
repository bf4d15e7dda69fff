//! What the programs log of every drop, for who debugs: whether they do, and its reader.
//!
//! Programs are compiled to log or not to. Those that do not pay nothing for it, and cannot be made to later; those that
//! do take more stack than some kernels give.
use std::io;
use std::os::fd::AsFd as _;

use aya_log::EbpfLogger;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::KernelError;
use super::hooks::{LOGGING_OBJECT, OBJECT};
use super::refusal::refused;

/// What the programs log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Log {
    /// Nothing.
    #[default]
    Nothing,
    /// Every packet that is dropped and every call that is refused.
    Drops,
}

impl Log {
    /// The programs that do.
    pub(super) fn object(self) -> &'static [u8] {
        match self {
            Self::Nothing => OBJECT,
            Self::Drops => LOGGING_OBJECT,
        }
    }
}

/// What programs have logged that nobody has read.
pub struct Logged(EbpfLogger<&'static dyn log::Log>);

impl Logged {
    /// The log that this program writes to, which all of one load share.
    pub(super) fn of(program: u32) -> Result<Self, KernelError> {
        let log = EbpfLogger::init_from_id(program);
        log.map(Self).map_err(|error| refused("cannot read the log of the kernel programs", &error))
    }

    /// Starts a thread that writes it into the daemon's own log. It ends with the process.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn follow(mut self) -> io::Result<()> {
        let follow = move || {
            if let Err(error) = self.read_all() {
                tracing::error!(%error, "the log of the kernel programs is not read any more");
            }
        };
        std::thread::Builder::new().name("kernel-log".into()).spawn(follow).map(drop)
    }

    fn read_all(&mut self) -> nix::Result<()> {
        loop {
            self.0.flush();
            let mut waiting = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
            match poll(&mut waiting, PollTimeout::NONE) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(error),
            }
        }
    }
}
