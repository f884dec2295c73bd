//! The user of a connection, as far as limits are concerned.
//! Out of scope: the limits; the user in events (`caller`).

use std::fmt;
use std::net::IpAddr;

use super::rates::network;

/// The user of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum User {
    /// Root, or the daemon's own user.
    Privileged,
    /// Another user, by its id.
    Of(u32),
    /// Whoever connects from an address; of IPv6, from a /64.
    Remote(IpAddr),
    /// A user of another node: a hash of the node and its name.
    Forwarded(u64),
}

impl User {
    /// The user of a connection from this address.
    pub(super) fn of_address(address: IpAddr) -> Self {
        Self::Remote(network(address))
    }
}

/// `user 1000`, `address 192.0.2.1`, `network 2001:db8::/64`.
impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Privileged => f.write_str("root"),
            Self::Of(uid) => write!(f, "user {uid}"),
            Self::Forwarded(_) => f.write_str("this user of another node"),
            Self::Remote(IpAddr::V4(address)) => write!(f, "address {address}"),
            Self::Remote(IpAddr::V6(network)) => write!(f, "network {network}/64"),
        }
    }
}
