//! Foresees the VMs that changed groups would create, in a transaction that is rolled back: the same choices as in [`super::reconcile`].
//! Out of scope: the stages of these VMs.

use std::collections::{BTreeMap, BTreeSet};

use super::choosing::{Rollback, choose, living};
use super::claim::{Claim, of_group};
use super::claims::Claims;
use super::plan::{Action, plan};
use super::preflight::Preflight;
use super::range::{self, HostUse, Observation};
use super::{Error, carry_out, desired, observed};
use crate::api::host_group::{HostGroup, HostGroupSpec, Origin};
use crate::api::lease::Lease;
use crate::api::meta::{Meta, Name, Timestamp};
use crate::api::vm::Vm;
use crate::store::{Store, Txn, World};

/// A VM that would be created.
#[derive(Clone, Debug)]
pub struct NewVm {
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

/// The VMs that groups with these specs would create now, by name. `assign_user` assigns the user of a VMM in the transaction.
pub async fn foresee(
    store: &Store,
    claims: &Claims,
    host_use: &HostUse<'_>,
    specs: &[(Name, HostGroupSpec)],
    now: Timestamp,
    mut assign_user: impl FnMut(&mut Txn<'_>, &Vm) -> Result<Option<u32>, String>,
) -> BTreeMap<Name, NewVm> {
    let mut groups = Vec::new();
    for (name, spec) in specs {
        let group = store.read(|world| changed(world, name, spec, now));
        let observation = range::observe_only(claims, host_use, &group).await;
        groups.push((group, observation.map_err(|error| error.to_string())));
    }
    let found: Vec<_> = store.dry_run(|txn| {
        let results = groups.iter().map(|(group, observation)| {
            let observation = observation.as_ref().map_err(Clone::clone);
            foresee_group(txn, group, observation, now, &mut assign_user)
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
            (vm.vm.meta.name.clone(), NewVm { assigned, ..vm })
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

/// The VMs that a group would create, and the claims that it would need.
fn foresee_group(
    txn: &mut Txn<'_>,
    group: &HostGroup,
    observation: Result<&Observation, String>,
    now: Timestamp,
    assign_user: &mut impl FnMut(&mut Txn<'_>, &Vm) -> Result<Option<u32>, String>,
) -> (Vec<NewVm>, BTreeSet<Claim>) {
    let name = &group.meta.name;
    let stored = txn.put_group(group.clone());
    let chosen = stored.map_err(|error| error.to_string()).and_then(|()| {
        let chosen = choose::<Error>(txn, observation?, group, group.size());
        chosen.map_err(|rollback| match rollback {
            Rollback::Failed(error) => error.to_string(),
            Rollback::ObserveFirst | Rollback::Claim(_) => "the host was not observed".to_owned(),
        })
    });
    let desired = desired(txn.world(), name);
    let observed = observed(txn.world(), name, &desired, &Preflight::default());
    let mut created = Vec::new();
    for action in plan(&desired, &observed) {
        let failed = carry_out(txn, name, &action, now).err();
        if let Action::Create { index, .. } = action {
            let vm = txn.world().vms_of(name).find(|vm| vm.index == index);
            let refused = chosen
                .clone()
                .err()
                .or(failed.map(|error| error.to_string()));
            created.extend(vm.cloned().map(|vm| (vm, refused)));
        }
    }
    let assign = |(vm, refused): (Vm, Option<String>)| NewVm {
        assigned: match refused {
            Some(why) => Err(why),
            None => assign(txn, &vm, now, assign_user),
        },
        vm,
    };
    let vms = created.into_iter().map(assign).collect();
    (vms, of_group(txn.world(), name))
}

fn assign(
    txn: &mut Txn<'_>,
    vm: &Vm,
    now: Timestamp,
    assign_user: &mut impl FnMut(&mut Txn<'_>, &Vm) -> Result<Option<u32>, String>,
) -> Result<Assigned, String> {
    let lease = txn.lease(vm, now).map_err(|error| error.to_string())?;
    let vmm_user = assign_user(txn, vm)?;
    Ok(Assigned { lease, vmm_user })
}
