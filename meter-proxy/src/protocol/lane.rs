//! The messages between the refusal lane and the controller, on a socket of the same kind as the meter's.
//!
//! The controller begins with `Config`, and with `Listen` before or after it; the lane serves from its first
//! configuration on, says `Ready`, and asks `Why` once for each connection. Not here: what either side does with a
//! message.
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::{BottleRef, Leaf, Provider, Refusal};

/// Most sockets of one id: of IPv4 and of IPv6 a TCP listener, and a UDP socket that DNS queries come to.
pub const MAX_LANE_SOCKETS: usize = 4;

/// What the lane needs to know; pushed at start and after each change, replacing what was before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaneConfig {
    /// Providers, each with distinct hosts: whose shape an answer has, and for which names TLS is spoken.
    pub providers: Vec<Provider>,
}

/// The answer to "why may nothing pass here".
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaneAnswer {
    /// The bottle that the connection comes from; it is cut, and answered.
    pub bottle: BottleRef,
    /// Its name, for the log.
    pub name: String,
    /// What its agent is told.
    pub refusal: Refusal,
    /// Where the program meant to connect, when the kernel sent it here from elsewhere.
    pub original: Option<SocketAddr>,
}

/// From the lane to the controller.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LaneToController {
    /// Privileges are dropped, the system call filter is on, the configuration is applied, connections are taken
    /// from the sockets that came so far and will be from those that come.
    Ready {
        /// Process id.
        pid: u32,
    },
    /// Whose connection is this, and why may it not go on? Answered from memory: the lane waits 2 seconds.
    Why {
        /// Number to answer to, unique on this socket; `Sign` counts on in the same numbers.
        question: u64,
        /// The client's end.
        peer: SocketAddr,
        /// The lane's end.
        local: SocketAddr,
        /// Id of the listening socket.
        listener: u32,
    },
    /// A leaf certificate for a metered host, please. Asked only for hosts of the configuration's providers.
    Sign {
        /// Number to answer to.
        question: u64,
        /// Host name, lower case.
        host: String,
    },
}

/// From the controller to the lane.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToLane {
    /// Replaces the configuration; signed leaves are asked for anew.
    Config(LaneConfig),
    /// Take connections and queries from the sockets that come with the message (at most [`MAX_LANE_SOCKETS`], in
    /// any order: the lane asks each what it is). Nobody answers: what came before this is read waits in its
    /// socket's queue. An id may be given more sockets by another such message.
    Listen {
        /// Their id.
        id: u32,
    },
    /// Close the sockets of this id, if there are any. Connections taken from them go on.
    Unlisten {
        /// Their id.
        id: u32,
    },
    /// Answer to `Why`; `None`: of no bottle that is cut and answered, so the connection is closed without a word.
    Because {
        /// The question's number.
        question: u64,
        /// Whose connection it is, and what to tell it.
        answer: Option<LaneAnswer>,
    },
    /// Answer to `Sign`.
    Signed {
        /// The question's number.
        question: u64,
        /// The leaf, or why there is none.
        leaf: Result<Leaf, String>,
    },
    /// The bottle is open again, cut silently, or gone: end its connections. Answers to `Why` that came before this
    /// message are void with it, those that come after are not.
    Opened {
        /// Which.
        bottle: BottleRef,
    },
}
