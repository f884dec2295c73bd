//! Claims: ranges, subnets and bridge addresses that only one daemon on a host may use.
//! Out of scope: storing claims on the host ([`super::claims`]).

use std::collections::BTreeSet;
use std::fmt;
use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;
use serde::{Deserialize, Serialize};

use crate::api::lease::{Address, subnet};
use crate::api::meta::Name;
use crate::api::network::NetworkSpec;
use crate::api::pool;
use crate::store::{Pool, World};

/// A resource that a group has chosen.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Claim {
    /// An isolated group's range.
    Range(Ipv4Network),
    /// A gateway and its subnet. Daemons that use the same bridge share the subnet, but no address in it.
    Gateway {
        /// Its bridge.
        bridge: String,
        /// The gateway, with the prefix length of the subnet.
        gateway: Ipv4Network,
    },
    /// A VM's address on a bridge.
    Address {
        /// Its bridge.
        bridge: String,
        /// The address of the VM.
        ip: Ipv4Addr,
    },
}

impl Claim {
    /// Whether two daemons must not have these claims at the same time.
    pub fn conflicts(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Address { bridge, ip }, Self::Gateway { bridge: b, gateway })
            | (Self::Gateway { bridge: b, gateway }, Self::Address { bridge, ip }) => {
                bridge == b && gateway.ip() == *ip
            }
            (Self::Address { .. }, Self::Address { .. }) => self == other,
            (Self::Gateway { bridge, .. }, Self::Gateway { bridge: b, .. }) if bridge == b => false,
            (Self::Range(_) | Self::Gateway { .. } | Self::Address { .. }, _) => {
                pool::overlaps(self.network(), other.network())
            }
        }
    }

    /// All addresses of the claim.
    pub fn network(&self) -> Ipv4Network {
        match self {
            Self::Range(range) => *range,
            Self::Gateway { gateway, .. } => subnet(*gateway),
            Self::Address { ip, .. } => Ipv4Network::from(*ip),
        }
    }

    /// The manifest field that the claim comes from.
    pub(super) fn field(&self) -> &'static str {
        match self {
            Self::Range(_) => "range",
            Self::Gateway { .. } => "gateway",
            Self::Address { .. } => "addresses",
        }
    }
}

impl fmt::Display for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Range(range) => write!(f, "range {range}"),
            Self::Gateway { bridge, .. } => {
                write!(f, "subnet {} of bridge {bridge}", self.network())
            }
            Self::Address { bridge, ip } => write!(f, "address {ip} on bridge {bridge}"),
        }
    }
}

/// All claims that a daemon needs: the choices of its groups and the addresses of its VMs.
pub fn needed(world: &World) -> BTreeSet<Claim> {
    let pools = world.pools();
    let pools = pools.filter_map(|(group, pool)| of_pool(world, group, pool));
    let leases = world.leases().flat_map(|lease| of_address(&lease.address));
    pools.chain(leases).collect()
}

/// The claims that a group needs before its choice may be stored. Addresses of an earlier choice, which running VMs still have, are not
/// included: they are claimed already, and a conflict about them must not keep the group from giving them up.
pub(super) fn of_group(world: &World, name: &Name) -> BTreeSet<Claim> {
    let Some(pool) = world.pool(name) else {
        return BTreeSet::new();
    };
    let leases = world.leases_of(name).map(|lease| &lease.address);
    let leases = leases.filter(|address| address.range() == pool.range);
    let pool = of_pool(world, name, pool).into_iter();
    pool.chain(leases.flat_map(of_address)).collect()
}

/// The claim of a pool. None if the pool is of another mode: a group that was switched to another mode keeps the old pool until it is
/// reconciled, and the claims of its VMs then follow from their leases.
fn of_pool(world: &World, group: &Name, pool: &Pool) -> Option<Claim> {
    let network = world.group(group).map(|group| &group.spec.template.network);
    match (network, pool.gateway) {
        (Some(NetworkSpec::Isolated(_)) | None, None) => Some(Claim::Range(pool.range)),
        (Some(NetworkSpec::Bridge(spec)), Some(gateway)) => Some(Claim::Gateway {
            bridge: spec.bridge.clone(),
            gateway: Ipv4Network::new(gateway, pool.range.prefix()).ok()?,
        }),
        (_, _) => None,
    }
}

/// The claims for a VM's address. None for a CNI network: its plugins manage its addresses.
pub fn of_address(address: &Address) -> Vec<Claim> {
    match address {
        Address::Isolated { pool, .. } => vec![Claim::Range(*pool)],
        Address::Bridge {
            bridge,
            gateway,
            ip,
        } => vec![
            Claim::Gateway {
                bridge: bridge.clone(),
                gateway: *gateway,
            },
            Claim::Address {
                bridge: bridge.clone(),
                ip: *ip,
            },
        ],
        Address::Cni { .. } => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(text: &str) -> Claim {
        let tokens: Vec<&str> = text.split(' ').collect();
        match tokens[..] {
            [range] => Claim::Range(range.parse().unwrap()),
            [bridge, net] if net.contains('/') => Claim::Gateway {
                bridge: bridge.to_owned(),
                gateway: net.parse().unwrap(),
            },
            [bridge, ip] => Claim::Address {
                bridge: bridge.to_owned(),
                ip: ip.parse().unwrap(),
            },
            _ => panic!("{text}"),
        }
    }

    #[test]
    fn claims_conflict_if_two_daemons_could_assign_the_same_address() {
        let table = [
            ("169.254.100.0/22", "169.254.100.0/22", true),
            ("169.254.100.0/22", "169.254.102.0/29", true),
            ("169.254.0.0/16", "169.254.102.0/29", true),
            ("169.254.100.0/22", "169.254.104.0/22", false),
            ("169.254.100.0/29", "169.254.100.8/29", false),
            ("169.254.100.0/22", "br0 169.254.100.1/24", true),
            ("br0 192.168.7.1/24", "br1 192.168.7.1/24", true),
            ("br0 192.168.7.1/24", "br1 192.168.0.1/16", true),
            ("br0 192.168.7.1/24", "br1 192.168.6.1/24", false),
            ("br0 192.168.7.1/25", "br1 192.168.7.129/25", false),
            ("br0 10.0.0.1/8", "br1 10.9.0.1/24", true),
            ("br0 192.168.7.1/24", "br0 192.168.7.1/24", false),
            ("br0 192.168.7.1/24", "br0 192.168.7.2/24", false),
            ("br0 192.168.7.1/24", "br0 192.168.7.1", true),
            ("br0 192.168.7.1/24", "br0 192.168.7.2", false),
            ("br0 192.168.7.2", "br0 192.168.7.2", true),
            ("br0 192.168.7.2", "br0 192.168.7.3", false),
            ("br0 192.168.7.2", "br1 192.168.7.2", false),
        ];
        for (one, other, conflict) in table {
            let (one, other) = (claim(one), claim(other));
            assert_eq!(one.conflicts(&other), conflict, "{one} and {other}");
            assert_eq!(other.conflicts(&one), conflict, "{other} and {one}");
            let text = serde_json::to_string(&one).unwrap();
            assert_eq!(serde_json::from_str::<Claim>(&text).unwrap(), one);
        }
    }
}
