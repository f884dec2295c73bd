//! The egress policy of a VM: the lists of the manifest and their evaluation.
//! Out of scope: rules of the packet filter.
//!
//! The firewall's rules, `explain` and the termination of existing flows are all derived from [`Policy`].
//!
//! # Truth table
//! Neither list: everything passes. `drop` alone: the rest passes. `allow` alone: the rest is denied. Both: `allow` is evaluated first,
//! then `drop`, and packets that match neither pass. Reserved destinations are denied before the lists are evaluated.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use ipnetwork::Ipv4Network;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Addresses of cloud metadata services: denied unless `allow_metadata: true`.
pub const METADATA: [Ipv4Addr; 3] = [
    Ipv4Addr::new(169, 254, 169, 254),
    Ipv4Addr::new(168, 63, 129, 16),
    Ipv4Addr::new(100, 100, 100, 200),
];

/// Destinations that no list can allow: RFC 3927, RFC 1122 section 3.2.1.3, RFC 5771, RFC 1112 section 4, Azure, Alibaba.
pub const RESERVED: [(Ipv4Addr, u8); 7] = [
    (Ipv4Addr::new(169, 254, 0, 0), 16),
    (Ipv4Addr::new(127, 0, 0, 0), 8),
    (Ipv4Addr::new(0, 0, 0, 0), 8),
    (Ipv4Addr::new(224, 0, 0, 0), 4),
    (Ipv4Addr::new(240, 0, 0, 0), 4),
    (Ipv4Addr::new(168, 63, 129, 16), 32),
    (Ipv4Addr::new(100, 100, 100, 200), 32),
];

/// [`RESERVED`] as networks, in the order of the rules.
pub fn reserved() -> impl Iterator<Item = Ipv4Network> {
    RESERVED
        .iter()
        .map(|&(address, prefix)| Ipv4Network::new(address, prefix).expect("a prefix length"))
}

/// The transport protocols of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// RFC 9293.
    Tcp,
    /// RFC 768.
    Udp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// Destination ports, both ends included, never 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ports {
    /// First port.
    pub first: u16,
    /// Last port, at least `first`.
    pub last: u16,
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.first == self.last {
            true => write!(f, "{}", self.first),
            false => write!(f, "{}-{}", self.first, self.last),
        }
    }
}

/// An entry of a list: `IP` or `CIDR`, then `:port` or `:from-to`, then `/tcp` or `/udp` (after the `/len` of a CIDR without ports).
/// Ports without a protocol apply to TCP and UDP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Entry {
    /// Destination; an IP is a /32.
    pub network: Ipv4Network,
    /// Destination ports; `None` for all packets, including those without ports.
    pub ports: Option<Ports>,
    /// Protocol; `None` for any.
    pub protocol: Option<Protocol>,
}

/// The error for a text that is not a valid [`Entry`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "found \"{}\", expected IP or CIDR, then optionally :PORT or :FROM-TO, then optionally /tcp or /udp ({why})",
    .found.escape_debug()
)]
pub struct InvalidEntry {
    found: String,
    why: String,
}

impl InvalidEntry {
    /// The reason, without the text and the expected format.
    pub fn why(&self) -> &str {
        &self.why
    }
}

impl FromStr for Entry {
    type Err = InvalidEntry;

    fn from_str(text: &str) -> Result<Self, InvalidEntry> {
        parse_entry(text).map_err(|reason| InvalidEntry {
            found: text.to_owned(),
            why: reason,
        })
    }
}

fn parse_entry(text: &str) -> Result<Entry, String> {
    // Messages quote the text and must be one line.
    if text.contains(|c: char| c.is_control() || c.is_whitespace()) {
        return Err("it contains white space".into());
    }
    if text.matches(':').count() > 1 {
        return Err("IPv6 destinations are not supported yet".into());
    }
    let (rest, protocol) = match text.rsplit_once('/') {
        Some((rest, "tcp")) => (rest, Some(Protocol::Tcp)),
        Some((rest, "udp")) => (rest, Some(Protocol::Udp)),
        Some((_, word)) if word.chars().any(|c| c.is_ascii_alphabetic()) => {
            return Err(format!("unknown protocol `{word}`, expected tcp or udp"));
        }
        _ => (text, None),
    };
    let (destination, ports) = match rest.split_once(':') {
        Some((destination, ports)) => (destination, Some(parse_ports(ports)?)),
        None => (rest, None),
    };
    let network = parse_network(destination)?;
    Ok(Entry {
        network,
        ports,
        protocol,
    })
}

fn parse_network(text: &str) -> Result<Ipv4Network, String> {
    let (address, prefix) = match text.split_once('/') {
        None => (text, 32),
        Some((address, len)) => match len.parse::<u8>() {
            Ok(prefix @ 0..=32) if len.len() <= 2 && len.bytes().all(|b| b.is_ascii_digit()) => {
                (address, prefix)
            }
            _ => return Err(format!("invalid prefix length `/{len}`, expected 0 to 32")),
        },
    };
    let address: Ipv4Addr = address
        .parse()
        .map_err(|_| format!("invalid IPv4 address `{address}`"))?;
    let network = Ipv4Network::new(address, prefix).map_err(|e| e.to_string())?;
    match network.network() == address {
        true => Ok(network),
        false => Err(format!(
            "`{text}` has host bits set, use `{}/{prefix}`",
            network.network()
        )),
    }
}

fn parse_ports(text: &str) -> Result<Ports, String> {
    let port = |text: &str| match text.parse::<u16>() {
        Ok(port) if port != 0 && text.bytes().all(|b| b.is_ascii_digit()) => Ok(port),
        _ => Err(format!("invalid port `{text}`, expected 1 to 65535")),
    };
    let (first, last) = match text.split_once('-') {
        Some((first, last)) => (port(first)?, port(last)?),
        None => (port(text)?, port(text)?),
    };
    match first <= last {
        true => Ok(Ports { first, last }),
        false => Err(format!(
            "invalid port range `{text}`, expected the lower port first"
        )),
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.network.prefix() {
            32 => write!(f, "{}", self.network.ip())?,
            _ => write!(f, "{}", self.network)?,
        }
        if let Some(ports) = self.ports {
            write!(f, ":{ports}")?;
        }
        if let Some(protocol) = self.protocol {
            write!(f, "/{protocol}")?;
        }
        Ok(())
    }
}

impl TryFrom<String> for Entry {
    type Error = InvalidEntry;
    fn try_from(text: String) -> Result<Self, InvalidEntry> {
        text.parse()
    }
}

impl From<Entry> for String {
    fn from(entry: Entry) -> Self {
        entry.to_string()
    }
}

impl Entry {
    /// Whether every packet that `other` matches is matched by `self`.
    pub fn covers(&self, other: &Self) -> bool {
        let network = other.network.is_subnet_of(self.network);
        let ports = match (self.ports, other.ports) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(ours), Some(theirs)) => ours.first <= theirs.first && theirs.last <= ours.last,
        };
        // Ports without a protocol match TCP and UDP only.
        let protocol = match (self.protocol, other.protocol) {
            (None, _) => true,
            (Some(ours), theirs) => theirs == Some(ours),
        };
        network && ports && protocol
    }

    /// Whether both may match the same packet.
    fn overlaps(&self, other: &Self) -> bool {
        let network =
            self.network.is_subnet_of(other.network) || other.network.is_subnet_of(self.network);
        let ports = match (self.ports, other.ports) {
            (Some(ours), Some(theirs)) => ours.first <= theirs.last && theirs.first <= ours.last,
            (None, _) | (_, None) => true,
        };
        let protocol = match (self.protocol, other.protocol) {
            (Some(ours), Some(theirs)) => ours == theirs,
            (None, _) | (_, None) => true,
        };
        network && ports && protocol
    }

    /// Whether the entry is a single address with ports: only such an entry can allow access to the host itself.
    pub fn may_allow_host_access(&self) -> bool {
        self.network.prefix() == 32 && self.ports.is_some()
    }

    /// Whether the entry matches a packet.
    pub fn matches(&self, packet: &Packet) -> bool {
        let transport = packet.transport.map(|(protocol, _)| protocol);
        let port = packet.transport.and_then(|(_, port)| port);
        self.network.contains(packet.destination)
            && (self.protocol.is_none() || transport == self.protocol)
            && self.ports.is_none_or(|ports| {
                port.is_some_and(|port| (ports.first..=ports.last).contains(&port))
            })
    }
}

/// The properties of a packet from a VM that the policy evaluates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// The destination address.
    pub destination: Ipv4Addr,
    /// TCP or UDP and the destination port; `None` for another protocol. The port is `None` for a fragment other than the first.
    pub transport: Option<(Protocol, Option<u16>)>,
}

/// What happens to a denied packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnDeny {
    /// It is dropped without a response.
    #[default]
    Drop,
    /// The response is a TCP reset, or ICMP "administratively prohibited".
    Reject,
}

impl fmt::Display for OnDeny {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Drop => "drop",
            Self::Reject => "reject",
        })
    }
}

/// The lists of a manifest, in its order.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct Policy {
    /// Evaluated first.
    #[serde(default)]
    pub allow: Vec<Entry>,
    /// Evaluated second.
    #[serde(default)]
    pub drop: Vec<Entry>,
    /// What happens to a denied packet.
    #[serde(default)]
    pub on_deny: OnDeny,
    /// Lets the lists decide about [`METADATA`].
    #[serde(default)]
    pub allow_metadata: bool,
}

/// What happens to a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// It passes.
    Allow,
    /// It is dropped or rejected, see [`OnDeny`].
    Deny,
}

/// The part of the policy that decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A destination that no list can allow.
    Reserved(Ipv4Network),
    /// `allow[index]`.
    Allow(usize, Entry),
    /// `drop[index]`.
    Drop(usize, Entry),
    /// The packet matches neither list.
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reserved(network) => write!(f, "reserved destination {network}"),
            Self::Allow(index, entry) => write!(f, "allow[{index}] \"{entry}\""),
            Self::Drop(index, entry) => write!(f, "drop[{index}] \"{entry}\""),
            Self::Default => f.write_str("default"),
        }
    }
}

impl Policy {
    /// The decision for packets that match neither list: denied if only `allow` has entries.
    pub fn default_verdict(&self) -> Verdict {
        match self.drop.is_empty() && !self.allow.is_empty() {
            true => Verdict::Deny,
            false => Verdict::Allow,
        }
    }

    /// The range because of which `destination` is denied before the lists are evaluated, if it is.
    pub fn reserved(&self, destination: Ipv4Addr) -> Option<Ipv4Network> {
        let is_allowed_metadata = self.allow_metadata && METADATA.contains(&destination);
        reserved()
            .find(|network| network.contains(destination))
            .filter(|_| !is_allowed_metadata)
    }

    /// Evaluates the policy for a packet from the VM's TAP with the VM's own source address and MAC.
    pub fn evaluate(&self, packet: &Packet) -> (Verdict, Origin) {
        if let Some(network) = self.reserved(packet.destination) {
            return (Verdict::Deny, Origin::Reserved(network));
        }
        let first = |list: &[Entry]| {
            list.iter()
                .copied()
                .enumerate()
                .find(|(_, entry)| entry.matches(packet))
        };
        if let Some((index, entry)) = first(&self.allow) {
            return (Verdict::Allow, Origin::Allow(index, entry));
        }
        if let Some((index, entry)) = first(&self.drop) {
            return (Verdict::Deny, Origin::Drop(index, entry));
        }
        (self.default_verdict(), Origin::Default)
    }

    /// Warnings about entries that never match: a `drop` that an `allow` covers, and duplicates.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        for (index, drop) in self.drop.iter().enumerate() {
            if let Some(allow) = self.allow.iter().find(|allow| allow.covers(drop)) {
                warnings.push(format!(
                    "drop[{index}] \"{drop}\" never matches: allow \"{allow}\" is evaluated first and covers it"
                ));
            }
        }
        for (list, entries) in [("allow", &self.allow), ("drop", &self.drop)] {
            for (index, entry) in entries.iter().enumerate() {
                if let Some(earlier) = entries[..index].iter().find(|e| e.covers(entry)) {
                    warnings.push(format!(
                        "{list}[{index}] \"{entry}\" never matches: \"{earlier}\" precedes it and covers it"
                    ));
                }
            }
        }
        warnings
    }

    /// Whether `before` also passes every packet that this policy passes. A sufficient test: `false` may also mean that a comparison of
    /// single entries cannot decide it.
    pub fn is_at_most_as_permissive_as(&self, before: &Self) -> bool {
        let metadata = before.allow_metadata || !self.allow_metadata;
        let passes = Verdict::Allow;
        let is_allowed = |entry: &Entry| {
            let listed = before.allow.iter().any(|allow| allow.covers(entry));
            let by_default = before.default_verdict() == passes
                && !before.drop.iter().any(|drop| drop.overlaps(entry));
            listed || by_default
        };
        let is_denied = |drop: &Entry| {
            let covers = |entry: &Entry| entry.covers(drop);
            self.drop.iter().any(covers) || before.allow.iter().any(covers)
        };
        let default = self.default_verdict() != passes
            || (before.default_verdict() == passes && before.drop.iter().all(is_denied));
        metadata && self.allow.iter().all(is_allowed) && default
    }

    /// The `allow` entries for which [`Entry::may_allow_host_access`] is true.
    pub fn host_access_entries(&self) -> impl Iterator<Item = Entry> + '_ {
        self.allow
            .iter()
            .copied()
            .filter(Entry::may_allow_host_access)
    }
}
