//! Where a connection comes from: a process of this host, or an address.
//! Out of scope: what it may do (`auth`, `admission`).

use std::fmt;
use std::net::IpAddr;

use super::caller::Caller;
use super::socket::Peer;
use super::user::User;

/// The origin of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// A process, on a Unix socket.
    Local(Peer),
    /// An address, on a TCP socket.
    Remote(IpAddr),
}

impl Origin {
    /// The user of the limits that apply.
    pub(super) fn user(&self) -> User {
        match self {
            Self::Local(peer) if peer.is_privileged() => User::Privileged,
            Self::Local(peer) => User::Of(peer.uid),
            Self::Remote(address) => User::of_address(*address),
        }
    }

    /// Who sends the requests, for events.
    pub(super) fn caller(&self) -> Caller {
        match self {
            Self::Local(peer) => Caller::User(peer.uid),
            Self::Remote(address) => Caller::Token(*address),
        }
    }

    /// The address; processes of this host have the one of the loopback interface.
    pub(super) fn address(&self) -> IpAddr {
        match self {
            Self::Local(_) => IpAddr::from([127, 0, 0, 1]),
            Self::Remote(address) => *address,
        }
    }
}

/// For the log: `uid 1000`, `192.0.2.1`.
impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local(peer) => write!(f, "uid {}", peer.uid),
            Self::Remote(address) => address.fmt(f),
        }
    }
}
