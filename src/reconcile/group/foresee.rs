//! Foresees the VMs that changed groups would create, in a transaction that is rolled back: the same choices as in [`super::reconcile`].
//! Out of scope: the stages of these VMs.

use std::collections::{BTreeMap, BTreeSet};

use super::choosing::{Rollback, choose, living};
use super::claim::{Claim, of_group};
use super::claims::Claims;
use super::range::{self, HostUse, Observation};
use super::{Error, GroupVms, Stop, desired};
use crate::api::host_group::{HostGroup, HostGroupSpec, Origin};
use crate::api::lease::Lease;
use crate::api::meta::{Meta, Name, Timestamp, Uid};
use crate::api::vm::{Hypervisor, Vm};
use crate::reconcile::lease::{self, Leases};
use crate::reconcile::{Stored, converge_in};
use crate::store::{Store, Txn, World};

/// A VM that would be created.
#[derive(Clone, Debug)]
pub struct ForeseenVm {
    /// The VM. Its uid is a placeholder.
    pub vm: Vm,
    /// What it would get, or why it would get nothing, as text for users.
    pub assigned: Result<Assigned, String>,
}

/// What the Lease stage would assign to a VM.
#[derive(Clone, Debug)]
pub struct Assigned {
    /// Its lease; `None` in CNI mode before plugins have assigned an address.
    pub lease: Option<Lease>,
    /// The user of its VMM; `None` if it has none.
    pub vmm_user: Option<u32>,
}

/// The VMs that groups with these specs would create now, by name; what each would be assigned is computed for the first `limit` only.
pub async fn foresee(
    store: &Store,
    claims: &Claims,
    host_use: &HostUse<'_>,
    specs: &[(Name, HostGroupSpec)],
    leases: &Leases<'_>,
    limit: usize,
) -> BTreeMap<Name, ForeseenVm> {
    let now = leases.now;
    let mut groups = Vec::new();
    for (name, spec) in specs {
        let group = store.read(|world| changed(world, name, spec, now));
        let observation = range::observe_only(claims, host_use, &group).await;
        groups.push((group, observation.map_err(|error| error.to_string())));
    }
    let found: Vec<_> = store.dry_run(|txn| {
        let mut limit = limit;
        let results = groups.iter().map(|(group, observation)| {
            let observation = observation.as_ref().map_err(Clone::clone);
            let (vms, required) = foresee_group(txn, group, observation, leases, limit);
            limit -= vms.len();
            (vms, required)
        });
        results.collect()
    });
    let mut all = BTreeMap::new();
    for (vms, required) in found {
        // Files are not read while the world is locked.
        let refused = claims.could_hold(&required).err();
        let refused = refused.map(|error| error.to_string());
        all.extend(vms.into_iter().map(|vm| {
            let assigned = match &refused {
                Some(why) => Err(why.clone()),
                None => vm.assigned,
            };
            (vm.vm.meta.name.clone(), ForeseenVm { assigned, ..vm })
        }));
    }
    all
}

/// The group as it would be stored.
fn changed(world: &World, name: &Name, spec: &HostGroupSpec, now: Timestamp) -> HostGroup {
    let new = || HostGroup {
        meta: Meta::new(name.clone(), now),
        origin: Origin::Apply,
        spec: spec.clone(),
        orders: BTreeMap::new(),
        adopted: false,
        seen_in: None,
    };
    HostGroup {
        spec: spec.clone(),
        ..living(world, name).cloned().unwrap_or_else(new)
    }
}

/// The first VMs that a group would create, and the claims that it would need.
fn foresee_group(
    txn: &mut Txn<'_>,
    group: &HostGroup,
    observation: Result<&Observation, String>,
    leases: &Leases<'_>,
    limit: usize,
) -> (Vec<ForeseenVm>, BTreeSet<Claim>) {
    let name = &group.meta.name;
    let existing: BTreeSet<Uid> = txn.world().vms_of(name).map(|vm| vm.meta.uid).collect();
    let refused = create(txn, group, observation, leases.now).err();
    let vms = txn.world().vms_of(name);
    let created: Vec<Vm> = vms
        .filter(|vm| !existing.contains(&vm.meta.uid))
        .take(limit)
        .cloned()
        .collect();
    let assign = |vm: Vm| ForeseenVm {
        assigned: match &refused {
            Some(why) => Err(why.clone()),
            None => assign(txn, &vm, leases),
        },
        vm,
    };
    let vms = created.into_iter().map(assign).collect();
    (vms, of_group(txn.world(), name))
}

/// Stores the group, chooses its addresses and creates its VMs; the VMs also if there is no address for them.
fn create(
    txn: &mut Txn<'_>,
    group: &HostGroup,
    observation: Result<&Observation, String>,
    now: Timestamp,
) -> Result<(), String> {
    let name = &group.meta.name;
    let stored = txn.put_group(group.clone());
    stored.map_err(|error| error.to_string())?;
    let chosen = observation.and_then(|observation| {
        let chosen = choose::<Error>(txn, observation, group, group.size());
        chosen.map_err(|rollback| match rollback {
            Rollback::Failed(error) => error.to_string(),
            Rollback::ObserveFirst | Rollback::Claim(_) => "the host was not observed".to_owned(),
        })
    });
    let vms = GroupVms {
        group: name,
        // The result of a check is not known here: every replacement counts as possible.
        preflight: None,
        now,
    };
    let desired = desired(txn.world(), name);
    let created = converge_in(txn, &vms, &desired).map(drop);
    chosen.and(created.map_err(|stop| match stop {
        Stop::CheckFirst(_) => "a replacement is not checked yet".to_owned(),
        Stop::Failed(error) => error.to_string(),
    }))
}

fn assign(txn: &mut Txn<'_>, vm: &Vm, leases: &Leases<'_>) -> Result<Assigned, String> {
    let desired = lease::Desired {
        vm: vm.clone(),
        needs_user: vm.spec.hypervisor != Hypervisor::None,
    };
    let Stored { observed, .. } =
        converge_in(txn, leases, &desired).map_err(|error| error.to_string())?;
    Ok(Assigned {
        lease: observed.lease.valid(),
        vmm_user: observed.user,
    })
}
