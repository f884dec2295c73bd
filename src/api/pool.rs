//! Link-local address pools: the usable /22s, the /22 of a group, and the /30s in it.
//! Out of scope: leases.
//!
//! 169.254.0.0/16 (RFC 3927) has 64 /22s; the index of one is the upper six bits of the third octet.

use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;

use super::meta::Name;
use super::network::Block;

/// The prefix length of a derived pool.
pub const PREFIX_LEN: u8 = 22;

/// /22s that are never used: RFC 3927's own first and last /24 (in 0 and 63), cloud VPN tunnels (1, 2), node-local DNS
/// (5, 6), and instance and task metadata (42, with 43 as a margin).
pub const RESERVED_INDICES: [u8; 8] = [0, 1, 2, 5, 6, 42, 43, 63];

/// The number of usable /22s.
pub const USABLE: u64 = 64 - RESERVED_INDICES.len() as u64;

/// The link-local range 169.254.0.0/16 (RFC 3927, section 2.1).
pub fn link_local() -> Ipv4Network {
    network(Ipv4Addr::new(169, 254, 0, 0), 16)
}

/// Whether the /22 with this index (0 to 63) is reserved.
pub fn is_reserved_index(index: u8) -> bool {
    RESERVED_INDICES.contains(&index)
}

/// The /22 with this index; only the lower six bits of `index` count.
pub fn pool(index: u8) -> Ipv4Network {
    network(Ipv4Addr::new(169, 254, (index & 63) << 2, 0), PREFIX_LEN)
}

/// The first reserved /22 that shares an address with `range`.
pub fn reserved_within(range: Ipv4Network) -> Option<Ipv4Network> {
    RESERVED_INDICES
        .iter()
        .map(|&index| pool(index))
        .find(|&reserved| overlaps(reserved, range))
}

/// The /22 for a group without a range: the one that the hash of its name selects or, if that is taken, the next free one in order.
/// `None` if all 56 are taken. A pure function of its arguments.
pub fn derive(group: &Name, taken: impl Fn(Ipv4Network) -> bool) -> Option<Ipv4Network> {
    let usable: Vec<u8> = (0..64).filter(|&index| !is_reserved_index(index)).collect();
    let digest = blake3::derive_key("slicectl pool of a host group", group.as_str().as_bytes());
    let first = u64::from_le_bytes(digest[..8].try_into().expect("8 of 32 bytes")) % USABLE;
    usable
        .iter()
        .cycle()
        .skip(first as usize)
        .take(usable.len())
        .map(|&index| pool(index))
        .find(|&candidate| !taken(candidate))
}

/// Every /30 in `range`, in order of address; empty if the range is smaller than a /30.
pub fn blocks(range: Ipv4Network) -> impl Iterator<Item = Block> {
    let first = u32::from(range.network());
    (0..capacity(range)).map(move |index| Block::around(Ipv4Addr::from(first + index * 4)))
}

/// The number of /30s in `range`.
pub fn capacity(range: Ipv4Network) -> u32 {
    match range.prefix() {
        // A /0 has 2^30; no shift here can overflow.
        prefix @ 0..=Block::PREFIX_LEN => 1 << (Block::PREFIX_LEN - prefix),
        _ => 0,
    }
}

/// Whether two networks share an address.
pub fn overlaps(a: Ipv4Network, b: Ipv4Network) -> bool {
    // Not `is_subnet_of`, which compares the address including its host bits.
    a.contains(b.network()) || b.contains(a.network())
}

fn network(address: Ipv4Addr, prefix: u8) -> Ipv4Network {
    Ipv4Network::new(address, prefix).expect("a prefix length up to 32")
}

/// The /22s that overlap a range.
pub fn overlapping_pools(range: Ipv4Network) -> impl Iterator<Item = Ipv4Network> {
    let size = 1u32 << (32 - PREFIX_LEN);
    let first = u32::from(range.network()) & !(size - 1);
    (first..=u32::from(range.broadcast()))
        .step_by(size as usize)
        .filter_map(|address| Ipv4Network::new(address.into(), PREFIX_LEN).ok())
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    fn name() -> impl Strategy<Value = Name> {
        "[a-z0-9]{1,20}".prop_map(|text| Name::new(text).unwrap())
    }

    proptest! {
        #[test]
        fn a_derived_pool_is_free_not_reserved_and_always_the_same(
            name in name(),
            taken in proptest::collection::hash_set(0_u8..64, 0..64),
        ) {
            let is_taken = |range: Ipv4Network| taken.contains(&(range.network().octets()[2] >> 2));
            let free = (0..64).filter(|i| !is_reserved_index(*i) && !taken.contains(i)).count();
            match derive(&name, is_taken) {
                None => prop_assert_eq!(free, 0),
                Some(range) => {
                    prop_assert!(free > 0 && !is_taken(range));
                    prop_assert_eq!(range.prefix(), PREFIX_LEN);
                    prop_assert!(range.is_subnet_of(link_local()) && reserved_within(range).is_none());
                    prop_assert_eq!(derive(&name, is_taken), Some(range));
                }
            }
        }

        #[test]
        fn taking_another_pool_does_not_move_a_group(name in name(), other in 0_u8..64) {
            let range = derive(&name, |_| false).unwrap();
            prop_assume!(pool(other) != range);
            prop_assert_eq!(derive(&name, |candidate| candidate == pool(other)), Some(range));
        }

        #[test]
        fn blocks_fill_a_range_without_overlap(address in any::<u32>(), prefix in 16_u8..=32) {
            let range = network(network(Ipv4Addr::from(address), prefix).network(), prefix);
            let all: Vec<Block> = blocks(range).collect();
            prop_assert_eq!(all.len() as u32, capacity(range));
            prop_assert_eq!(all.iter().collect::<HashSet<_>>().len(), all.len());
            prop_assert!(all.iter().all(|block| block.network().is_subnet_of(range)));
        }

        #[test]
        fn overlap_is_sharing_an_address(a in any::<u32>(), p in 0_u8..=32, b in any::<u32>(), q in 0_u8..=32) {
            let (a, b) = (network(Ipv4Addr::from(a), p), network(Ipv4Addr::from(b), q));
            let shared = u32::from(a.network()).max(u32::from(b.network()))
                <= u32::from(a.broadcast()).min(u32::from(b.broadcast()));
            prop_assert_eq!(overlaps(a, b), shared);
        }
    }

    #[test]
    fn every_pool_can_be_reached_and_groups_spread() {
        let seen: HashSet<_> = (0..1000)
            .filter_map(|n| derive(&Name::new(format!("group-{n}")).unwrap(), |_| false))
            .collect();
        assert_eq!(seen.len() as u64, USABLE);
    }

    #[test]
    fn a_22_has_256_blocks_and_the_first_is_where_the_range_starts() {
        let range: Ipv4Network = "169.254.100.0/22".parse().unwrap();
        assert_eq!(capacity(range), 256);
        assert_eq!(
            blocks(range).next().unwrap().guest(),
            Ipv4Addr::new(169, 254, 100, 2)
        );
        assert_eq!(
            blocks(range).last().unwrap().broadcast(),
            Ipv4Addr::new(169, 254, 103, 255)
        );
    }
}
