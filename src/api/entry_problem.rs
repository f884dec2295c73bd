//! Why an entry of `allow`, or a whole list, is invalid.
//! Out of scope: the syntax of an entry ([`super::policy`]).

use ipnetwork::Ipv4Network;

use super::policy::{self, Entry, METADATA};

/// The maximum number of entries of a list: each is a rule, and rules are evaluated one by one for a packet.
pub(super) const MAX_ENTRIES: usize = 1024;

/// The reason why a list with this number of entries is invalid, if it is.
pub fn list_problem(entries: usize) -> Option<String> {
    (entries > MAX_ENTRIES)
        .then(|| format!("found {entries} entries, expected at most {MAX_ENTRIES}"))
}

/// The reason why an entry of `allow` is invalid, if it is.
pub fn entry_problem(entry: &Entry, allow_metadata: bool) -> Option<String> {
    let is_metadata = METADATA
        .iter()
        .any(|&address| entry.network.contains(address));
    let message = match is_metadata {
        true => "is a metadata service, which is denied by default; allow_metadata: true allows it",
        false => "is a reserved destination, which no list can allow",
    };
    is_denied(entry.network, allow_metadata).then(|| format!("\"{entry}\" {message}"))
}

/// Whether every address of `network` is denied before the lists are evaluated.
fn is_denied(network: Ipv4Network, allow_metadata: bool) -> bool {
    if allow_metadata && METADATA.iter().any(|&address| network.contains(address)) {
        return false;
    }
    if policy::reserved().any(|reserved| network.is_subnet_of(reserved)) {
        return true;
    }
    // Two reserved ranges may be adjacent (224.0.0.0/4 and 240.0.0.0/4): check the halves.
    policy::reserved().any(|reserved| reserved.is_subnet_of(network))
        && halves(network).is_some_and(|halves| {
            halves
                .into_iter()
                .all(|half| is_denied(half, allow_metadata))
        })
}

fn halves(network: Ipv4Network) -> Option<[Ipv4Network; 2]> {
    let prefix = network.prefix() + 1;
    let low = Ipv4Network::new(network.network(), prefix).ok()?;
    let high = Ipv4Network::new(network.broadcast(), prefix).ok()?;
    Some([low, Ipv4Network::new(high.network(), prefix).ok()?])
}
