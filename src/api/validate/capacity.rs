//! Limits for all groups of a host together, such as the number of addresses.
//! Out of scope: problems of a single group; the assignment of addresses.

use std::collections::BTreeSet;

use ipnetwork::Ipv4Network;

use super::super::host_group::HostGroupSpec;
use super::super::manifest::{Draft, Problem};
use super::super::network::NetworkSpec;
use super::super::pool;

/// The maximum number of groups of a host.
pub const MAX_GROUPS: usize = 4096;
/// The maximum number of VMs of a host, in all modes.
pub const MAX_VMS: u64 = 16_384;
/// The maximum number of isolated VMs of a host: the /30s of the /22s in 169.254.0.0/16 that are not reserved.
pub const MAX_ISOLATED: u64 = pool::USABLE * (1 << (30 - pool::PREFIX_LEN));
/// The maximum number of entries of `allow` and `drop`, counted for each VM: each is a rule in the kernel.
pub const MAX_RULES: u64 = 2 << 20;

/// The sums over some groups.
#[derive(Default)]
pub(super) struct Total {
    groups: usize,
    vms: u64,
    isolated: u64,
    rules: u64,
    /// The /22s that overlap the specified ranges.
    named: BTreeSet<Ipv4Network>,
    /// The number of groups with a derived /22.
    derived: usize,
}

impl Total {
    /// Adds a group with `on_demand` VMs made on demand.
    pub(super) fn add(&mut self, spec: &HostGroupSpec, on_demand: usize) {
        let vms = u64::from(spec.count) + on_demand as u64;
        self.groups += 1;
        self.vms += vms;
        if let NetworkSpec::Isolated(isolated) = &spec.template.network {
            self.isolated += vms;
            match isolated.range {
                Some(range) => self.named.extend(pool::overlapping_pools(range)),
                None if vms > 0 => self.derived += 1,
                None => {}
            }
        }
        self.rules += vms * entries(spec);
    }

    /// The limit that another group would exceed, if any.
    pub(super) fn exceeded_limit(&self, draft: &Draft, on_demand: usize) -> Option<Problem> {
        let mut all = Self {
            named: self.named.clone(),
            ..*self
        };
        all.add(&draft.spec, on_demand);
        let elsewhere = |others: u64| match others {
            0 => String::new(),
            others => format!(", {others} of them in other groups"),
        };
        let too_many = |field: &str, what: &str, (found, others): (u64, u64), most: u64| {
            let elsewhere_text = elsewhere(others);
            let message =
                format!("found {found} {what}{elsewhere_text}, expected at most {most} on a host");
            Some(draft.problem(field, message))
        };
        let is_empty = draft.spec.count == 0;
        if all.groups > MAX_GROUPS {
            let counts = (all.groups as u64, self.groups as u64);
            return too_many("name", "groups", counts, MAX_GROUPS as u64);
        }
        // A group without VMs does not exceed the other limits.
        if is_empty {
            return None;
        }
        if all.isolated > MAX_ISOLATED && all.isolated > self.isolated {
            let counts = (all.isolated, self.isolated);
            let what = "VMs in mode isolated, which have a /30 each";
            return too_many("count", what, counts, MAX_ISOLATED);
        }
        if all.vms > MAX_VMS {
            return too_many("count", "VMs", (all.vms, self.vms), MAX_VMS);
        }
        if all.rules > MAX_RULES && all.rules > self.rules {
            let counts = (all.rules, self.rules);
            let what = "entries of allow and drop, counted for each VM";
            return too_many("count", what, counts, MAX_RULES);
        }
        let ranges = |total: &Self| (total.named.len() + total.derived) as u64;
        if ranges(&all) > pool::USABLE && ranges(&all) > ranges(self) {
            let counts = (ranges(&all), ranges(self));
            return too_many("network.range", "/22 ranges", counts, pool::USABLE);
        }
        None
    }
}

fn entries(spec: &HostGroupSpec) -> u64 {
    let policy = spec.template.network.policy();
    policy.map_or(0, |policy| (policy.allow.len() + policy.drop.len()) as u64)
}
