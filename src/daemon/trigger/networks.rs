//! The networks that routes were added or deleted for.
//! Out of scope: the VMs in them.

use std::collections::{BTreeMap, HashSet};
use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;

/// Maximum number of networks that are distinguished. A slot has four routes, and many slots are created at once.
const MAX_NETWORKS: usize = 8192;

/// Length of the prefixes that further networks are merged into: a routing daemon may add hundreds of thousands.
const MERGED_PREFIX: u8 = 8;

/// Networks, by prefix length: a lookup takes one step for each length, independent of the number of networks.
#[derive(Default)]
pub(super) struct Networks {
    by_prefix: BTreeMap<u8, HashSet<u32>>,
}

impl Networks {
    /// Adds a network, or the /8 that it is in if there are too many.
    pub(super) fn insert(&mut self, network: Ipv4Network) {
        let prefix = match self.len() < MAX_NETWORKS {
            true => network.prefix(),
            false => network.prefix().min(MERGED_PREFIX),
        };
        let networks = self.by_prefix.entry(prefix).or_default();
        networks.insert(masked(network.ip(), prefix));
    }

    /// Adds the networks of `other`.
    pub(super) fn merge(&mut self, other: Self) {
        for (prefix, networks) in other.by_prefix {
            for bits in networks {
                // A valid prefix length, because it was that of a network.
                if let Ok(network) = Ipv4Network::new(Ipv4Addr::from_bits(bits), prefix) {
                    self.insert(network);
                }
            }
        }
    }

    /// Whether the address is in one of the networks.
    pub(super) fn contain(&self, address: Ipv4Addr) -> bool {
        let mut by_prefix = self.by_prefix.iter();
        by_prefix.any(|(prefix, networks)| networks.contains(&masked(address, *prefix)))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.by_prefix.is_empty()
    }

    /// The number of networks.
    pub(super) fn len(&self) -> usize {
        self.by_prefix.values().map(HashSet::len).sum()
    }
}

fn masked(address: Ipv4Addr, prefix: u8) -> u32 {
    let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
    address.to_bits() & mask
}

#[cfg(test)]
mod tests {
    use super::*;

    fn networks(texts: &[&str]) -> Networks {
        let mut networks = Networks::default();
        for text in texts {
            networks.insert(text.parse().unwrap());
        }
        networks
    }

    #[test]
    fn an_address_is_in_a_network_of_any_prefix_length() {
        for (network, inside, outside) in [
            ("169.254.4.0/30", "169.254.4.3", "169.254.4.4"),
            ("10.1.2.3/32", "10.1.2.3", "10.1.2.4"),
            ("10.0.0.0/8", "10.255.0.1", "11.0.0.1"),
            // The host bits do not count.
            ("10.1.2.3/16", "10.1.9.9", "10.2.2.3"),
            ("128.0.0.0/1", "255.0.0.1", "127.0.0.1"),
        ] {
            let networks = networks(&[network]);
            assert!(networks.contain(inside.parse().unwrap()), "{network}");
            assert!(!networks.contain(outside.parse().unwrap()), "{network}");
        }
        assert!(networks(&["0.0.0.0/0"]).contain(Ipv4Addr::BROADCAST));
        assert!(!Networks::default().contain(Ipv4Addr::LOCALHOST));
    }

    /// Routes of 1,000 slots that are created together, and those of another address in the same range.
    #[test]
    fn routes_of_many_slots_concern_no_other_slot() {
        let mut networks = Networks::default();
        let first = "169.254.100.0".parse::<Ipv4Addr>().unwrap().to_bits();
        for slot in 0..1000 {
            let start = first + 4 * slot;
            for (offset, prefix) in [(0, 30), (0, 32), (1, 32), (3, 32)] {
                let address = Ipv4Addr::from_bits(start + offset);
                networks.insert(Ipv4Network::new(address, prefix).unwrap());
            }
        }
        assert_eq!(networks.len(), 4000);
        assert!(networks.contain("169.254.100.2".parse().unwrap()));
        assert!(!networks.contain("169.254.99.2".parse().unwrap()));
        assert!(!networks.contain("169.254.200.2".parse().unwrap()));
    }

    #[test]
    fn a_routing_table_of_the_internet_takes_bounded_memory_and_no_route_of_it_is_lost() {
        let mut networks = Networks::default();
        for route in 0..100_000_u32 {
            let address = Ipv4Addr::from_bits(0x0b00_0000 + route * 256);
            networks.insert(Ipv4Network::new(address, 24).unwrap());
        }
        assert!(networks.len() <= MAX_NETWORKS + 256, "{}", networks.len());
        for route in 0..100_000_u32 {
            assert!(networks.contain(Ipv4Addr::from_bits(0x0b00_0001 + route * 256)));
        }
        let mut merged = Networks::default();
        merged.merge(networks);
        assert!(merged.contain("11.0.0.1".parse().unwrap()));
        assert!(merged.contain("12.134.159.1".parse().unwrap()));
    }
}
