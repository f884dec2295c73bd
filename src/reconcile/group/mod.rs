//! The reconciler of groups. Its actual state is the store: it writes VMs and leases, and changes nothing on the host.
//! Out of scope: bringing up a VM (the pipeline of stages).

mod add_error;
mod choosing;
mod claim;
mod claims;
mod foresee;
mod friendly_name;
mod generated_name;
mod on_demand;
mod plan;
mod preflight;
mod range;
mod range_error;
mod subnet;
mod tags;

use std::collections::BTreeMap;

use tracing::debug;

use super::{Conflict, InStore, Reconcile, Stored, converge_in};
use crate::api::host_group::{HostGroup, HostGroupSpec};
use crate::api::meta::{Meta, Name, Timestamp, Uid};
use crate::api::network::{Mode, NetworkSpec};
use crate::api::vm::{Power, Vm};
use crate::host;
use crate::store::{self, LeaseError, Store, Txn, World};

pub use add_error::AddError;
pub use claim::{Claim, needed, of_address};
pub use claims::{CLAIMS_DIR, ClaimOwner, Claims};
pub use foresee::{Assigned, ForeseenVm, foresee};
pub use on_demand::{Added, NameRule, Removed, add, add_with, remove};
pub use plan::{Action, Desired, Extra, Member, Observed, outdated, plan};
pub use preflight::{BlockedReason, Preflight, PreflightCheck};
pub use range::HostUse;
pub use range_error::RangeError;
pub use tags::set_tags;

use choosing::{Rollback, choose, choosing, claimed, living};

/// The progress of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Nothing is left to do.
    Done,
    /// It waits for its VMs: reconcile it again when one becomes Ready or is removed.
    Waiting,
    /// These VMs are not replaced, each with the reason: only another manifest or a change of the host can help.
    Blocked(BTreeMap<Name, String>),
    /// The result of this preflight check is needed first; nothing was changed.
    CheckFirst(Box<PreflightCheck>),
}

/// The reason why a group cannot be reconciled.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The plan does not become empty.
    #[error(transparent)]
    Loop(#[from] super::Error),
    /// It has no addresses.
    #[error(transparent)]
    Range(#[from] RangeError),
    /// The addresses of the host could not be read.
    #[error(transparent)]
    Observe(#[from] host::Error),
    /// The store cannot be written.
    #[error(transparent)]
    Store(#[from] store::Error),
}

/// Reconciles the VMs and leases of a group in one transaction, with the results of the preflight checks of replacements.
///
/// # Errors
/// [`Error`]; then nothing has changed.
pub async fn reconcile(
    store: &Store,
    claims: &Claims,
    host_use: &HostUse<'_>,
    name: &Name,
    preflight: &Preflight,
    now: Timestamp,
) -> Result<Progress, Error> {
    let plan = |txn: &mut Txn<'_>, observation: &range::Observation| {
        choose_and_plan(txn, claims, observation, name, preflight, now)
    };
    let progress = match choosing(store, claims, host_use, name, plan).await {
        Ok(progress) => progress,
        Err(Stop::CheckFirst(check)) => return Ok(Progress::CheckFirst(check)),
        Err(Stop::Failed(error)) => return Err(error),
    };
    claims.release_unused(store).await;
    Ok(progress)
}

/// The transaction: the choice of addresses, the VMs and their leases. It is committed only if all addresses are claimed.
fn choose_and_plan(
    txn: &mut Txn<'_>,
    claims: &Claims,
    observation: &range::Observation,
    name: &Name,
    preflight: &Preflight,
    now: Timestamp,
) -> Result<Progress, Rollback<Stop>> {
    let group = living(txn.world(), name).cloned();
    if let Some(group) = &group {
        choose(txn, observation, group, group.size())?;
    }
    let vms = GroupVms {
        group: name,
        preflight: Some(preflight),
        now,
    };
    let progress = carry_out_plan(txn, &vms, preflight).map_err(Rollback::Failed)?;
    if group.is_some() {
        claimed(txn.world(), claims, name)?;
    }
    Ok(progress)
}

/// Why a transaction of a group is rolled back.
enum Stop {
    CheckFirst(Box<PreflightCheck>),
    Failed(Error),
}

impl<E: Into<Error>> From<E> for Stop {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

/// The reconciler of the VMs and leases of a group.
struct GroupVms<'a> {
    group: &'a Name,
    /// The results of the preflight checks. `None`: replacements are not checked.
    preflight: Option<&'a Preflight>,
    now: Timestamp,
}

impl Reconcile for GroupVms<'_> {
    type Desired = Desired;
    type Observed = Observed;
    type Action = Action;

    fn plan(desired: &Desired, observed: &Observed) -> Result<Vec<Action>, Conflict> {
        Ok(plan(desired, observed))
    }
}

impl InStore for GroupVms<'_> {
    type Error = Stop;

    fn observe(&self, world: &World, desired: &Desired) -> Observed {
        observed(
            world,
            self.group,
            desired,
            self.preflight.unwrap_or(&Preflight::default()),
        )
    }

    fn admit(&self, world: &World, desired: &Desired, plan: &[Action]) -> Result<(), Stop> {
        let preflight = self.preflight;
        match preflight.and_then(|known| known.next_check(world, desired, plan)) {
            None => Ok(()),
            Some(check) => Err(Stop::CheckFirst(Box::new(check))),
        }
    }

    fn act(&self, txn: &mut Txn<'_>, _: &Desired, action: &Action) -> Result<(), Stop> {
        debug!(group = %self.group, %action, "group");
        Ok(carry_out(txn, self.group, action, self.now)?)
    }
}

fn carry_out_plan(
    txn: &mut Txn<'_>,
    vms: &GroupVms<'_>,
    preflight: &Preflight,
) -> Result<Progress, Stop> {
    let name = vms.group;
    let desired = desired(txn.world(), name);
    let Stored { actions, observed } = converge_in(txn, vms, &desired)?;
    let blocked = blocked_vms(txn.world(), name, &desired, preflight);
    Ok(match actions.is_empty() && !blocked.is_empty() {
        true => Progress::Blocked(blocked),
        // What it waits for was observed after the last step.
        false => plan::progress(&desired, &observed),
    })
}

fn desired(world: &World, name: &Name) -> Desired {
    match world.group(name) {
        Some(group) if !group.meta.deleting => becoming(world, name, &group.spec),
        _ => Desired::default(),
    }
}

/// The desired state of a group with this spec.
pub fn becoming(world: &World, name: &Name, spec: &HostGroupSpec) -> Desired {
    let living = world.group(name).filter(|group| !group.meta.deleting);
    Desired {
        count: spec.count,
        update: spec.update,
        template: Some(spec.template.clone()),
        orders: living.map(|group| group.orders.clone()).unwrap_or_default(),
    }
}

/// VMs that are left unchanged, each with the reason why it is not replaced.
pub fn blocked_vms(
    world: &World,
    name: &Name,
    desired: &Desired,
    preflight: &Preflight,
) -> BTreeMap<Name, String> {
    let failure = |vm: &Vm| {
        let desired_spec = desired.spec(vm.index)?;
        preflight
            .failure(vm.meta.uid, &desired_spec)
            .map(str::to_owned)
    };
    let vms = world.vms_of(name);
    vms.filter_map(|vm| Some((vm.meta.name.clone(), failure(vm)?)))
        .collect()
}

/// The stored state of a group, compared with its desired state, and with the results of the preflight checks.
pub fn observed(world: &World, name: &Name, desired: &Desired, preflight: &Preflight) -> Observed {
    let pool = world.pool(name);
    let template = desired.template.as_ref().map(|spec| &spec.network);
    let members = world.vms_of(name).map(|vm| {
        let lease = world.lease(&vm.meta.name);
        let misplaced = match (pool, template, lease) {
            (Some(pool), Some(network), Some(lease)) if network.mode() == Mode::Bridge => {
                !store::is_valid_address(pool, vm.index, network, &lease.address)
            }
            (_, Some(NetworkSpec::Cni(spec)), Some(lease)) if vm.on_demand.is_none() => {
                !spec.cni.allow(vm.index, lease.address.ip())
            }
            _ => false,
        };
        let member = Member {
            uid: vm.meta.uid,
            misplaced,
            preflight_failed: desired.spec(vm.index).is_some_and(|desired_spec| {
                preflight.failure(vm.meta.uid, &desired_spec).is_some()
            }),
            spec: vm.spec.clone(),
            deleting: vm.meta.deleting,
            ready: world.is_settled(vm),
            on_demand: vm.on_demand.as_ref().map(|on_demand| {
                let template = on_demand.template.clone();
                let name = vm.meta.name.clone();
                Box::new(Extra { name, template })
            }),
        };
        (vm.index, member)
    });
    let leases = world.leases_of(name);
    Observed {
        group: world.group(name).is_some(),
        members: members.collect(),
        leases: leases.map(|lease| lease.name.clone()).collect(),
        name: name.clone(),
    }
}

fn carry_out(
    txn: &mut Txn<'_>,
    group: &Name,
    action: &Action,
    now: Timestamp,
) -> Result<(), store::Error> {
    match action {
        Action::Create { index, spec, order } => {
            let name = match order {
                Some(order) => Some(order.name.clone()),
                None => HostGroup::vm_name(group, *index),
            };
            // The validation of manifests refuses such a name.
            let Some(name) = name else { return Ok(()) };
            let vm = Vm {
                meta: Meta::new(name, now),
                group: group.clone(),
                index: *index,
                spec: (**spec).clone(),
                power: Power::default(),
                on_demand: order
                    .as_ref()
                    .and_then(|entry| on_demand::of(txn.world(), group, entry)),
            };
            txn.put_vm(vm.clone())?;
            // Here and not in the Lease stage, so that blocks are assigned in the order of the VM indexes.
            match txn.lease(&vm, now) {
                Err(LeaseError::Store(error)) => Err(error),
                // The Lease stage reports the error and retries.
                Ok(_) | Err(_) => Ok(()),
            }
        }
        Action::Update { uid, spec } => {
            let template = txn.world().group(group).map(|g| g.spec.template.clone());
            edit(txn, *uid, |vm| {
                vm.spec = (**spec).clone();
                vm.meta.generation += 1;
                if let (Some(on_demand), Some(template)) = (&mut vm.on_demand, template) {
                    on_demand.template = template;
                }
            })
        }
        Action::Delete { uid } => {
            let forced = txn.world().group(group).is_some_and(|it| it.meta.forced);
            edit(txn, *uid, |vm| {
                vm.meta.deleting = true;
                vm.meta.forced |= forced;
            })?;
            txn.remove_if_released(*uid)
        }
        Action::Release { lease } => txn.remove_lease(lease),
        Action::RemoveGroup => txn.remove_group(group),
    }
}

fn edit(txn: &mut Txn<'_>, uid: Uid, change: impl FnOnce(&mut Vm)) -> Result<(), store::Error> {
    match txn.world().vm(uid).cloned() {
        None => Ok(()),
        Some(mut vm) => {
            change(&mut vm);
            txn.put_vm(vm)
        }
    }
}
