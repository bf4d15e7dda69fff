//! What a guard can know of a socket, by its family, type and protocol. Pure.
use crate::kernel::sock_diag::{Family, Transport};

/// What a socket is to a guard.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Sort {
    /// It reaches no network.
    Local,
    /// The kernel lists it with its cgroup.
    Listed(Family, Transport),
    /// The guard of its cgroup governs it, and no list tells which that is.
    Unlisted(String),
    /// No guard governs it.
    Beside(String),
}

impl Sort {
    /// By the numbers of socket(2).
    pub(super) fn of(domain: i32, kind: i32, protocol: i32) -> Self {
        let family = match domain {
            libc::AF_UNIX | libc::AF_NETLINK | libc::AF_ALG => return Self::Local,
            libc::AF_INET => Family::V4,
            libc::AF_INET6 => Family::V6,
            libc::AF_PACKET => return Self::Beside("a packet socket".into()),
            libc::AF_VSOCK => return Self::Beside("a vsock socket".into()),
            libc::AF_XDP => return Self::Beside("an XDP socket".into()),
            other => return Self::Beside(format!("a socket of address family {other}")),
        };
        match (kind, protocol) {
            (libc::SOCK_STREAM, libc::IPPROTO_TCP | libc::IPPROTO_MPTCP) => {
                Self::Listed(family, Transport::Tcp)
            }
            (libc::SOCK_DGRAM, libc::IPPROTO_UDP) => Self::Listed(family, Transport::Udp),
            (libc::SOCK_RAW, _) => Self::Unlisted("a raw socket".into()),
            (libc::SOCK_DGRAM, libc::IPPROTO_ICMP | libc::IPPROTO_ICMPV6) => {
                Self::Unlisted("a ping socket".into())
            }
            (_, other) => Self::Unlisted(format!("a socket of IP protocol {other}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_are_sorted_by_what_governs_them() {
        let beside = |words: &str| Sort::Beside(words.into());
        let unlisted = |words: &str| Sort::Unlisted(words.into());
        for (domain, kind, protocol, sort) in [
            (libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_TCP, Sort::Listed(Family::V4, Transport::Tcp)),
            (
                libc::AF_INET6,
                libc::SOCK_STREAM,
                libc::IPPROTO_MPTCP,
                Sort::Listed(Family::V6, Transport::Tcp),
            ),
            (libc::AF_INET6, libc::SOCK_DGRAM, libc::IPPROTO_UDP, Sort::Listed(Family::V6, Transport::Udp)),
            (libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_TCP, unlisted("a raw socket")),
            (libc::AF_INET, libc::SOCK_DGRAM, libc::IPPROTO_ICMP, unlisted("a ping socket")),
            (libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_SCTP, unlisted("a socket of IP protocol 132")),
            (libc::AF_PACKET, libc::SOCK_RAW, 0, beside("a packet socket")),
            (libc::AF_VSOCK, libc::SOCK_STREAM, 0, beside("a vsock socket")),
            (libc::AF_BLUETOOTH, libc::SOCK_SEQPACKET, 0, beside("a socket of address family 31")),
            (libc::AF_UNIX, libc::SOCK_STREAM, 0, Sort::Local),
            (libc::AF_NETLINK, libc::SOCK_RAW, 0, Sort::Local),
        ] {
            assert_eq!(Sort::of(domain, kind, protocol), sort);
        }
    }
}
