//! What all groups of a host may have together: more than the address plan has cannot be made, so it is not planned either.
//! Out of scope: what one group can know of itself; who has which address.

use std::collections::BTreeSet;

use ipnetwork::Ipv4Network;

use super::super::host_group::HostGroupSpec;
use super::super::manifest::{Draft, Problem};
use super::super::network::NetworkSpec;
use super::super::pool;

/// Groups of a host.
pub const MAX_GROUPS: usize = 4096;
/// VMs of a host, whatever connects them.
pub const MAX_VMS: u64 = 16_384;
/// Isolated VMs of a host: the /30s of the /22s in 169.254.0.0/16 that are not reserved.
pub const MAX_ISOLATED: u64 = pool::USABLE * (1 << (30 - pool::PREFIX_LEN));
/// Entries of `allow` and `drop`, counted for each VM: each is a rule in the kernel.
pub const MAX_RULES: u64 = 2 << 20;

/// What some groups have together.
#[derive(Default)]
pub(super) struct Total {
    groups: usize,
    vms: u64,
    isolated: u64,
    rules: u64,
    /// The /22s that named ranges touch.
    named: BTreeSet<Ipv4Network>,
    /// Groups to which a /22 is given.
    derived: usize,
}

impl Total {
    /// One group more; with so many VMs made on demand.
    pub(super) fn add(&mut self, spec: &HostGroupSpec, on_demand: usize) {
        let vms = u64::from(spec.count) + on_demand as u64;
        self.groups += 1;
        self.vms += vms;
        if let NetworkSpec::Isolated(isolated) = &spec.template.network {
            self.isolated += vms;
            match isolated.range {
                Some(range) => self.named.extend(pool::slash_22s(range)),
                None if vms > 0 => self.derived += 1,
                None => {}
            }
        }
        self.rules += vms * entries(spec);
    }

    /// What speaks against one more.
    pub(super) fn objection(&self, draft: &Draft, on_demand: usize) -> Option<Problem> {
        let mut all = Self {
            named: self.named.clone(),
            ..*self
        };
        all.add(&draft.spec, on_demand);
        let beside = |others: u64| match others {
            0 => String::new(),
            others => format!(", {others} of them in other groups"),
        };
        let too_many = |field: &str, what: &str, (found, others): (u64, u64), most: u64| {
            let beside = beside(others);
            let message =
                format!("found {found} {what}{beside}, expected at most {most} on a host");
            Some(draft.problem(field, message))
        };
        let nothing = draft.spec.count == 0;
        if all.groups > MAX_GROUPS {
            let counts = (all.groups as u64, self.groups as u64);
            return too_many("name", "groups", counts, MAX_GROUPS as u64);
        }
        // One that adds none is not what is too much.
        if nothing {
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
            return too_many("network.range", "ranges of a /22", counts, pool::USABLE);
        }
        None
    }
}

fn entries(spec: &HostGroupSpec) -> u64 {
    let policy = spec.template.network.policy();
    policy.map_or(0, |policy| (policy.allow.len() + policy.drop.len()) as u64)
}
