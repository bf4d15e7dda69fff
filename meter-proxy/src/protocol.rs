//! The messages between the meter and the controller, and the socket that carries them.
//!
//! One `SOCK_SEQPACKET` pair, one postcard-encoded message a packet, descriptors by `SCM_RIGHTS`; the refusal
//! lane has a pair of its own, with its own messages (`lane`). The controller uses this module (with
//! [`crate::tokens`] and [`crate::text`]) and nothing else of the meter. Not here: what either side does with a
//! message.
mod lane;

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

pub use self::lane::{LaneAnswer, LaneConfig, LaneToController, MAX_LANE_SOCKETS, ToLane};
use crate::egress::{EgressMode, EgressRule};
use crate::tokens::{Ending, Provenance, Tokens};

/// Longest message in bytes; a longer one is an error at the sender. Below the kernel's default for one packet.
pub const MAX_MESSAGE_BYTES: usize = 160 * 1024;
/// Longest `raw` of a settlement in bytes; the meter drops what is longer.
pub const MAX_RAW_BYTES: usize = 64 * 1024;
/// Most running counts in one message: it stays below [`MAX_MESSAGE_BYTES`] whatever they are.
pub const MAX_COUNTS: usize = 512;
/// Most descriptors in one message.
pub const MAX_DESCRIPTORS: usize = 8;
/// Id of the listening sockets in the meter's own network namespace.
pub const OWN_LISTENER: u32 = 1;
/// Most listening sockets of one id: one of IPv4, one of IPv6.
pub const MAX_SOCKETS_OF_LISTENER: usize = 2;
/// Most network namespaces with listening sockets, beside the meter's own.
const MAX_NAMESPACES: usize = 2_048;

/// How many network namespaces may have listening sockets where a process may open so many descriptors: at either
/// end of the socket those take a quarter of them at most.
#[must_use]
pub fn namespaces_within(descriptors: usize) -> usize {
    (descriptors / 4 / MAX_SOCKETS_OF_LISTENER).min(MAX_NAMESPACES)
}

/// A bottle as the kernel knows it. Slot 0 is the host itself (`unattached: meter`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct BottleRef {
    /// Index in the kernel's table.
    pub slot: u32,
    /// Generation of the slot; an older one is void.
    pub generation: u32,
}

/// The answer to "whose connection is this".
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The bottle.
    pub bottle: BottleRef,
    /// Its name, for messages.
    pub name: String,
    /// Where the program meant to connect, when the kernel redirected it.
    pub original: Option<SocketAddr>,
    /// What it may reach besides its providers: its own mode, or a closer one of a bottle around it.
    pub egress: EgressMode,
}

/// How a provider reports usage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Dialect {
    /// Anthropic Messages.
    Anthropic,
    /// OpenAI Responses and Chat Completions.
    Openai,
    /// OpenAI Chat Completions alone (compatible servers).
    OpenaiChat,
    /// Gemini, at Google's own API, Vertex AI or Code Assist.
    Gemini,
    /// Bedrock's runtime: whatever its models speak, and Converse.
    Bedrock,
}

/// One provider as the settings define it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Provider {
    /// Key of its budget (`claude`).
    pub name: String,
    /// How it reports usage.
    pub dialect: Dialect,
    /// Host names that are metered, lower case; `*` stands for one label.
    pub hosts: Vec<String>,
    /// `http(s)://host[:port][/path]` that every request goes to; without it the authority asked for is dialled.
    pub upstream: Option<String>,
    /// Whether a chat stream that is not asked for its usage is asked for it by the meter.
    pub include_usage: bool,
}

/// What the meter needs to know; pushed at start and after each change, replacing what was before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// Providers, each with distinct hosts.
    pub providers: Vec<Provider>,
    /// PEM certificates trusted towards upstreams, beside the system's; empty for none.
    pub extra_roots_pem: String,
    /// Whether running counts are sent while a response streams.
    pub midstream: bool,
    /// How long an exchange of a silently cut bottle is kept before upstream is closed, milliseconds.
    pub hold_ms: u64,
    /// Longest wait for a `Settled` before the response is aborted, milliseconds.
    pub settle_timeout_ms: u64,
    /// CIDRs in private, loopback and metadata ranges that client-chosen names may resolve to.
    pub allow_private: Vec<String>,
    /// What bottles in mode `allowlist` may reach beside their providers.
    pub allow: Vec<EgressRule>,
}

/// A request for leave to forward one billing request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reserve {
    /// The meter's number of the exchange, unique on this socket.
    pub exchange: u64,
    /// Whose.
    pub bottle: BottleRef,
    /// Which budget.
    pub provider: String,
    /// Path of the endpoint, without the query.
    pub endpoint: String,
    /// The model asked for, when the request says it.
    pub model: Option<String>,
    /// Input estimate and output allowance, tokens.
    pub tokens: u64,
}

/// The end of an exchange; sent exactly once for each permit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settle {
    /// The exchange.
    pub exchange: u64,
    /// Final figures.
    pub tokens: Tokens,
    /// Where they come from.
    pub provenance: Provenance,
    /// How it ended.
    pub ending: Ending,
    /// Status of the provider's answer, when there was one.
    pub http_status: Option<u16>,
    /// The model that answered, as the provider names it.
    pub model: Option<String>,
    /// The provider's own usage JSON, latest first; at most [`MAX_RAW_BYTES`].
    pub raw: Option<String>,
}

/// Something the operator should read in the audit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notice {
    /// The bottle it concerns.
    pub bottle: Option<BottleRef>,
    /// One line, printable characters only.
    pub detail: String,
}

/// From the meter to the controller.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToController {
    /// Privileges are dropped, the configuration is applied, connections are accepted.
    Ready {
        /// Process id.
        pid: u32,
    },
    /// Whose connection is this?
    Identify {
        /// Number to answer to.
        question: u64,
        /// The client's end.
        peer: SocketAddr,
        /// The meter's end.
        local: SocketAddr,
        /// Id of the listening socket.
        listener: u32,
    },
    /// May this request leave? Answered by `Permit` or `Refused`, perhaps after a wait.
    Reserve(Reserve),
    /// Would a request be refused now? Reserves nothing; answered by `Judged`.
    Judge {
        /// Number to answer to.
        question: u64,
        /// Whose.
        bottle: BottleRef,
        /// Which budget.
        provider: String,
    },
    /// The asker hung up before an answer came: forget it. A permit that crosses this message is settled `Unsent`.
    Withdraw {
        /// The exchange.
        exchange: u64,
    },
    /// Figures so far of some exchanges: the provider's, topped up with the running count of output. Latest wins. At
    /// most [`MAX_COUNTS`].
    Progress(Vec<(u64, Tokens)>),
    /// Final figures. Answered by `Settled` once they are durable.
    Settle(Settle),
    /// A leaf certificate for a metered host, please.
    Sign {
        /// Number to answer to.
        question: u64,
        /// Host name, lower case.
        host: String,
    },
    /// For the audit.
    Notice(Notice),
}

/// What becomes of the connections to providers of a bottle that was cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Upstream {
    /// Close them at once.
    Close,
    /// Stop reading; close after `hold_ms` unless the bottle is opened before.
    Hold,
}

/// A leaf certificate and its key.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leaf {
    /// DER certificates, leaf first.
    pub chain: Vec<Vec<u8>>,
    /// PKCS#8 DER key of the leaf.
    pub key: Vec<u8>,
}

impl std::fmt::Debug for Leaf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Leaf").field("certificates", &self.chain.len()).finish_non_exhaustive()
    }
}

/// Why a request may not leave.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Refusal {
    /// The governing budget is used up (or what is left is reserved by others for longer than the gate waits).
    Budget {
        /// Name of the bottle.
        bottle: String,
        /// Budget's provider.
        provider: String,
        /// Budget's scope: launch, agent, bottle, parent, global.
        scope: String,
        /// Whose budget it is.
        owner: String,
        /// Budget, tokens.
        limit: u64,
        /// Used and in flight, tokens.
        used: u64,
        /// Held by requests under way, tokens.
        reserved: u64,
        /// Budget's window, and when it ends.
        window: String,
        /// The rule by which it is this budget that binds the bottle: nearest, ceiling, strictest.
        rule: String,
    },
    /// The bottle is cut.
    Cut {
        /// Name of the bottle.
        bottle: String,
        /// Why, in words.
        cause: String,
    },
    /// The connection belongs to no attached bottle (any more).
    Unattached,
    /// The controller cannot decide or cannot record; the reason in words.
    Closed {
        /// Why.
        reason: String,
    },
}

impl std::fmt::Display for Refusal {
    /// The words that the agent's user reads.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Budget { bottle, provider, scope, owner, limit, used, reserved, window, rule } => {
                write!(
                    f,
                    "Enforcer: bottle {bottle} has used {used} of {limit} {provider} tokens \
                     (budget of scope {scope}, owner {owner}, window {window}, scope rule {rule}"
                )?;
                if used < limit {
                    write!(f, ", {reserved} reserved by requests under way")?;
                }
                f.write_str("). The operator can add tokens or restore the bottle.")
            }
            Self::Cut { bottle, cause } => write!(f, "Enforcer: bottle {bottle} is cut: {cause}."),
            Self::Unattached => {
                f.write_str("Enforcer: this connection belongs to no attached bottle, so it is not metered and not forwarded.")
            }
            Self::Closed { reason } => write!(f, "Enforcer: requests are refused for now: {reason}."),
        }
    }
}

/// From the controller to the meter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToMeter {
    /// Listening sockets come with the message, in the order of these ids. Sent first, as often as it takes; the
    /// first configuration ends them.
    Listeners {
        /// Ids of the sockets; one that has two sockets stands there twice.
        ids: Vec<u32>,
    },
    /// Replaces the configuration.
    Config(Config),
    /// Accept connections from the sockets that come with the message too: those of a network namespace. Nobody
    /// answers: a connection made before this is read waits in its socket's queue.
    Listen {
        /// Their id; new.
        id: u32,
    },
    /// Give the sockets of this id up, if there are any: until then they keep their namespace alive. Connections
    /// taken from them go on.
    Unlisten {
        /// Their id.
        id: u32,
    },
    /// Answer to `Identify`; `None`: no attached bottle.
    Identified {
        /// The question's number.
        question: u64,
        /// Whose connection it is.
        identity: Option<Identity>,
    },
    /// Answer to `Judge`.
    Judged {
        /// The question's number.
        question: u64,
        /// Why a request would be refused.
        refusal: Option<Refusal>,
    },
    /// The reservation is durable: forward.
    Permit {
        /// The exchange.
        exchange: u64,
    },
    /// Do not forward; of an exchange under way: no further, and its client is told why.
    Refused {
        /// The exchange.
        exchange: u64,
        /// Why.
        refusal: Refusal,
    },
    /// The settlement is durable: deliver what was held back.
    Settled {
        /// The exchange.
        exchange: u64,
    },
    /// Answer to `Sign`.
    Signed {
        /// The question's number.
        question: u64,
        /// The leaf, or why there is none.
        leaf: Result<Leaf, String>,
    },
    /// The bottle was cut.
    Cut {
        /// Which.
        bottle: BottleRef,
        /// What becomes of its connections to providers.
        upstream: Upstream,
    },
    /// The bottle was opened again.
    Open {
        /// Which.
        bottle: BottleRef,
    },
    /// The bottle is detached: close its connections.
    Detached {
        /// Which.
        bottle: BottleRef,
    },
}

/// What can go wrong on the socket.
#[derive(Debug, thiserror::Error)]
pub enum ProtocolError {
    /// The operating system said no.
    #[error("the socket between controller and child: {0}")]
    Io(#[from] io::Error),
    /// The other side sent something else than a message.
    #[error("a message between controller and child cannot be read: {0}")]
    Malformed(#[from] postcard::Error),
    /// A message longer than [`MAX_MESSAGE_BYTES`].
    #[error("a message of {0} bytes between controller and child is longer than {MAX_MESSAGE_BYTES}")]
    TooLong(usize),
}

/// Makes a connected pair: one end for the controller, one for the meter.
///
/// # Errors
/// When the kernel refuses a socket.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

/// Sends one message with its descriptors. Blocks, or fails with `WouldBlock`, as the socket is set.
///
/// # Errors
/// When the message is too long or the socket fails.
pub fn send<M: Serialize>(
    socket: BorrowedFd<'_>,
    message: &M,
    fds: &[BorrowedFd<'_>],
) -> Result<(), ProtocolError> {
    let bytes = postcard::to_stdvec(message)?;
    if bytes.len() > MAX_MESSAGE_BYTES {
        return Err(ProtocolError::TooLong(bytes.len()));
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::Error::other("too many descriptors for one message").into());
    }
    rustix::net::sendmsg(socket, &[IoSlice::new(&bytes)], &mut control, SendFlags::NOSIGNAL)
        .map_err(io::Error::from)?;
    Ok(())
}

/// Whether a message is short enough to be sent.
///
/// # Errors
/// When it is not.
pub fn check_length<M: Serialize>(message: &M) -> Result<(), ProtocolError> {
    match postcard::to_stdvec(message)?.len() {
        length if length > MAX_MESSAGE_BYTES => Err(ProtocolError::TooLong(length)),
        _ => Ok(()),
    }
}

/// Receives one message with its descriptors; `None` when the other side is gone. `buffer` is scratch space.
/// Blocks, or fails with `WouldBlock`, as the socket is set.
///
/// # Errors
/// When the socket fails or the packet is no message of type `M`.
pub fn receive<M: DeserializeOwned>(
    socket: BorrowedFd<'_>,
    buffer: &mut Vec<u8>,
) -> Result<Option<(M, Vec<OwnedFd>)>, ProtocolError> {
    buffer.resize(MAX_MESSAGE_BYTES, 0);
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received =
        rustix::net::recvmsg(socket, &mut [IoSliceMut::new(buffer)], &mut control, RecvFlags::CMSG_CLOEXEC)
            .map_err(io::Error::from)?;
    if received.bytes == 0 {
        return Ok(None);
    }
    if received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
        return Err(ProtocolError::TooLong(received.bytes));
    }
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            fds.extend(received);
        }
    }
    Ok(Some((postcard::from_bytes(&buffer[..received.bytes])?, fds)))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_message_arrives_with_its_descriptors() {
        let (ours, theirs) = pair().unwrap();
        let (_reader, writer) = rustix::pipe::pipe().unwrap();
        let sent = ToMeter::Listeners { ids: vec![1] };
        send(ours.as_fd(), &sent, &[writer.as_fd()]).unwrap();
        let (got, fds) = receive::<ToMeter>(theirs.as_fd(), &mut Vec::new()).unwrap().unwrap();
        assert_eq!(got, sent);
        assert_eq!(fds.len(), 1);
    }

    #[test]
    fn listening_sockets_leave_most_descriptors_to_connections() {
        for (descriptors, namespaces) in [(0, 0), (1_024, 128), (16_384, 2_048), (usize::MAX, 2_048)] {
            assert_eq!(namespaces_within(descriptors), namespaces, "{descriptors}");
        }
    }

    #[test]
    fn a_closed_socket_is_an_end_and_garbage_an_error() {
        let (ours, theirs) = pair().unwrap();
        rustix::net::send(&ours, &[0xff; 3], SendFlags::empty()).unwrap();
        assert!(matches!(
            receive::<ToMeter>(theirs.as_fd(), &mut Vec::new()),
            Err(ProtocolError::Malformed(_))
        ));
        drop(ours);
        assert!(receive::<ToMeter>(theirs.as_fd(), &mut Vec::new()).unwrap().is_none());
    }

    #[test]
    fn a_message_that_is_too_long_is_refused_by_the_sender() {
        let (ours, _theirs) = pair().unwrap();
        let long = ToMeter::Signed { question: 1, leaf: Err("x".repeat(MAX_MESSAGE_BYTES)) };
        assert!(matches!(send(ours.as_fd(), &long, &[]), Err(ProtocolError::TooLong(_))));
    }
}
