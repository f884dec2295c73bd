//! Where the VMs of a group of a fleet run, and whether they are replaced when contact to their node is lost.
//! Out of scope: choosing nodes, stopping copies.

use std::collections::BTreeMap;
use std::time::Duration;

use ipnetwork::Ipv4Network;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::network::{Addresses, NetworkSpec};
use super::pool;
use super::vm::{Hypervisor, VmSpec};

/// Labels of a node.
pub type Labels = BTreeMap<String, String>;

/// The part of a group that only a fleet has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FleetPart {
    /// Where its VMs may run.
    pub placement: Placement,
    /// Whether its VMs are replaced when contact to their node is lost; `None`: never.
    pub replacement: Option<Replacement>,
}

/// Where the VMs of a group may run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Placement {
    /// How nodes are preferred.
    #[serde(default)]
    pub strategy: Strategy,
    /// Labels that a node must have.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selector: Labels,
    /// The architecture (`uname -m`) that a node must have; `None`: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub architecture: Option<String>,
    /// The number of VMs of the group that an update or a drain may make unavailable at once, at least 1.
    #[serde(default = "one")]
    pub max_unavailable: u32,
    /// In bridge mode, the pool from which each node gets a subnet for the group; `None`: the group has the same subnet on each node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subnets: Option<Subnets>,
}

fn one() -> u32 {
    1
}

impl Default for Placement {
    fn default() -> Self {
        Self {
            strategy: Strategy::default(),
            node_selector: Labels::new(),
            architecture: None,
            max_unavailable: one(),
            subnets: None,
        }
    }
}

/// The subnets of a group in bridge mode: one for each node that runs VMs of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Subnets {
    /// What they are taken from.
    #[schema(value_type = String)]
    pub pool: Ipv4Network,
    /// The prefix length of each.
    pub prefix_len: u8,
}

/// The number of VMs for which a subnet with this prefix length has addresses: all but those of the network, of the node and for broadcasts.
pub fn addresses_in(prefix_len: u8) -> u64 {
    let size = 1_u64 << (32 - prefix_len.min(32));
    size.saturating_sub(3)
}

/// The most VMs of a group that one node has addresses for: in isolated mode the /30 networks of the range, in bridge mode with `subnets` the
/// addresses of the subnet of a node; `None`: no network of a node limits them.
pub fn most_on_a_node(network: &NetworkSpec, placement: &Placement) -> Option<u64> {
    match network {
        NetworkSpec::Isolated(spec) => {
            // Each node derives a range of the same size.
            let range = spec.range.unwrap_or_else(|| pool::pool(0));
            Some(pool::capacity(range).into())
        }
        NetworkSpec::Bridge(_) => Some(addresses_in(placement.subnets?.prefix_len)),
        NetworkSpec::Cni(_) => None,
    }
}

impl Subnets {
    /// The number of subnets in the pool.
    pub fn count(&self) -> u64 {
        let bits = self.prefix_len.min(32).checked_sub(self.pool.prefix());
        bits.map_or(0, |bits| 1 << bits)
    }

    /// The number of VMs of a group for which the pool has addresses, if no other group uses it.
    pub fn addresses(&self) -> u64 {
        self.count() * addresses_in(self.prefix_len)
    }
}

/// How nodes are preferred.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Strategy {
    /// The node with the fewest VMs of the group; of these, the fullest.
    #[default]
    Spread,
    /// The fullest node.
    Pack,
}

/// How VMs of a node without contact are replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Replacement {
    /// How long the key of the node must have been absent before a VM is started on another node.
    #[schema(value_type = Object)]
    pub replace_after: Duration,
    /// How long after the last confirmed renewal the node stops its own copy.
    #[schema(value_type = Object)]
    pub stop_after: Duration,
    /// Which copy remains when the node has contact again.
    #[serde(default)]
    pub reconcile: Reconcile,
}

/// Which copy of a VM remains.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Reconcile {
    /// That with the greater epoch.
    #[default]
    KeepReplacement,
    /// That of the node that was without contact. The replacement is stopped before the original may start again.
    KeepOriginal,
}

/// The time between the end of a copy and the start of the next, for differences of the clocks' rates and for a VMM that must be killed.
pub const MARGIN: Duration = Duration::from_secs(30);

/// The least `stop_after`: an election of etcd is no reason to stop VMs.
pub const MIN_STOP_AFTER: Duration = Duration::from_secs(30);

/// The greatest `stop_after` and `replace_after`.
pub const MAX_REPLACE_AFTER: Duration = Duration::from_secs(30 * 24 * 3600);

/// The error of settings with which two copies of a VM could run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "replace_after is {}s, expected at least {}s: stop_after ({}s), the time to stop a VM ({}s) and a margin of {}s",
    .found.as_secs_f64(), (*.stop_after + *.grace + MARGIN).as_secs_f64(), .stop_after.as_secs_f64(), .grace.as_secs_f64(), MARGIN.as_secs()
)]
pub struct InvalidReplacement {
    found: Duration,
    stop_after: Duration,
    grace: Duration,
}

impl Replacement {
    /// Checks that the copy of the node has ended before another one is started. `grace` is the grace period of the VMs of the group.
    ///
    /// # Errors
    /// `replace_after` is too short.
    pub fn check(&self, grace: Duration) -> Result<(), InvalidReplacement> {
        match self.replace_after >= self.stop_after + grace + MARGIN {
            true => Ok(()),
            false => Err(InvalidReplacement {
                found: self.replace_after,
                stop_after: self.stop_after,
                grace,
            }),
        }
    }

    /// Why VMs with this spec cannot be replaced, whatever the times are; `None` if they can.
    pub fn objection(spec: &VmSpec) -> Option<&'static str> {
        if spec.hypervisor == Hypervisor::None {
            return Some(
                "has no effect with hypervisor \"none\": sliced cannot stop a VMM that it has not started",
            );
        }
        if spec.storage.persistent {
            return Some(
                "has no effect with persistent: true: the disk exists on the lost node only",
            );
        }
        if spec.storage.has_writable_disk() {
            return Some("has no effect with a writable disk: it exists on the lost node only");
        }
        let has_fixed_addresses = match &spec.network {
            NetworkSpec::Isolated(_) => false,
            NetworkSpec::Bridge(bridge) => matches!(bridge.addresses, Addresses::Listed(_)),
            NetworkSpec::Cni(cni) => !cni.cni.ips.is_empty(),
        };
        has_fixed_addresses
            .then_some("has no effect with fixed addresses: both copies would have the same one")
    }
}

/// Settings that contradict the spec of the VMs: the field, and the message.
pub fn problems(
    spec: &VmSpec,
    placement: &Placement,
    replacement: Option<&Replacement>,
) -> Vec<(&'static str, String)> {
    let mut found = Vec::new();
    if placement.subnets.is_some() && !matches!(spec.network, NetworkSpec::Bridge(_)) {
        let message = format!("has no effect with mode {}", spec.network.mode());
        found.push(("placement.subnets", message));
    }
    if let (Some(_), NetworkSpec::Bridge(bridge)) = (placement.subnets, &spec.network)
        && (bridge.gateway.is_some() || bridge.addresses != Addresses::Any)
    {
        let message = "found a gateway or addresses of the group, expected none: with subnets, each node has its own";
        found.push(("placement.subnets", message.to_owned()));
    }
    let Some(replacement) = replacement else {
        return found;
    };
    if let Some(objection) = Replacement::objection(spec) {
        found.push(("replacement", objection.to_owned()));
    }
    let grace = spec.lifecycle.graceful_shutdown.get();
    if let Err(error) = replacement.check(grace) {
        found.push(("replacement.replace_after", error.to_string()));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_has_addresses_for_the_vms_of_all_its_subnets() {
        for (pool, prefix_len, count, addresses) in [
            ("10.9.0.0/23", 24, 2, 506),
            ("10.9.0.0/24", 24, 1, 253),
            ("10.9.0.0/28", 30, 4, 4),
            ("10.9.0.0/28", 29, 2, 10),
            ("10.0.0.0/8", 30, 1 << 22, 1 << 22),
            ("0.0.0.0/0", 8, 256, 256 * ((1 << 24) - 3)),
            ("10.9.0.0/24", 23, 0, 0),
        ] {
            let pool = pool.parse().unwrap();
            let subnets = Subnets { pool, prefix_len };
            assert_eq!(
                (subnets.count(), subnets.addresses()),
                (count, addresses),
                "{subnets:?}"
            );
        }
        assert_eq!(
            (addresses_in(30), addresses_in(31), addresses_in(32)),
            (1, 0, 0)
        );
    }
}
