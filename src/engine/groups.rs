//! Runs a group: its VMs and leases, why it is blocked, and preflight checks of replacements.
//! Out of scope: which VMs a group has ([`crate::reconcile::group`]); their bring-up and teardown (`bring_up`, `tear_down`).

use tracing::warn;

use super::{Engine, Key, SLOW_RETRY};
use crate::api::condition::Reason;
use crate::api::event::{EventReason, EventType, ObjectRef};
use crate::api::meta::{Name, Uid};
use crate::api::stage::Stage;
use crate::api::vm::{Vm, VmSpec};
use crate::clock;
use crate::reconcile::group::{self, BlockedReason, HostUse, Preflight, Progress};
use crate::runtime::queue::Outcome;
use crate::store;

impl Engine {
    /// Applies a group's spec to its VMs before any of them is run.
    pub async fn apply_to_vms(&self, group: &Name) {
        if let Err(error) = self.run_group(group).await {
            warn!(%group, %error, "the spec of a restricted group is not applied to its VMs yet");
        }
    }

    /// Claims on the host the ranges that groups chose in an earlier run of the daemon, before any group chooses one. `whole`: the state
    /// is complete, so that claims of no group can be released.
    pub async fn restore_claims(&self, state_is_complete: bool) -> Result<(), group::Error> {
        self.claims.reap(&self.host.netlink).await?;
        let stored = self.store.read(group::needed);
        self.claims.hold_stored(stored).await?;
        match state_is_complete {
            true => self.claims.release_unused(&self.store).await,
            false => self.claims.keep_all(),
        }
        Ok(())
    }

    pub(super) async fn run_group(&self, name: &Name) -> Result<Outcome, store::Error> {
        let host_use = HostUse {
            netlink: &self.host.netlink,
            instance: &self.instance,
        };
        let mut preflight = Preflight::default();
        let is_stored = || self.store.read(|world| world.group(name).is_some());
        let was_stored = is_stored();
        let progress = loop {
            let (store, now) = (&self.store, clock::now());
            let done =
                group::reconcile(store, &self.claims, &host_use, name, &preflight, now).await;
            match done {
                Ok(Progress::CheckFirst(check)) => {
                    let result = self.preflight_check(&check.vm, &check.spec).await;
                    preflight.note(*check, result);
                }
                done => break done,
            }
        };
        if was_stored && !is_stored() {
            let object = ObjectRef::host_group(name);
            let message = "the group and its VMs are deleted";
            self.record_event(EventType::Normal, &object, EventReason::Deleted, message);
        }
        Ok(match progress {
            Ok(Progress::Done) => {
                self.store_group_result(name, GroupWaits::No, None);
                Outcome::Converged
            }
            Ok(Progress::Waiting | Progress::CheckFirst(_)) => {
                self.store_group_result(name, GroupWaits::Yes, None);
                Outcome::Converged
            }
            Ok(Progress::Blocked(blocked)) => {
                self.store_group_result(
                    name,
                    GroupWaits::Yes,
                    Some(BlockedReason::PreflightFailed(blocked)),
                );
                Outcome::RequeueAfter(SLOW_RETRY)
            }
            Err(group::Error::Store(error)) => return Err(error),
            Err(error) => {
                let message = error.to_string();
                let reason = match error {
                    group::Error::Loop(_) => BlockedReason::NotConverging(message),
                    _ => BlockedReason::NoRange(message),
                };
                self.store_group_result(name, GroupWaits::Unchanged, Some(reason));
                Outcome::Failed
            }
        })
    }

    /// Records an event if the group is blocked for a new reason, and stores whether it waits for its VMs.
    fn store_group_result(
        &self,
        name: &Name,
        waits: GroupWaits,
        blocked_reason: Option<BlockedReason>,
    ) {
        let mut waiting = self.waiting_groups.lock();
        match waits {
            GroupWaits::Yes => drop(waiting.insert(name.clone())),
            GroupWaits::No => drop(waiting.remove(name)),
            GroupWaits::Unchanged => {}
        }
        drop(waiting);
        let mut blocked_reasons = self.blocked_reasons.lock();
        let before = match &blocked_reason {
            Some(blocked_reason) => blocked_reasons.insert(name.clone(), blocked_reason.clone()),
            None => blocked_reasons.remove(name),
        };
        drop(blocked_reasons);
        if before != blocked_reason {
            self.store.view_changed();
        }
        if let Some(blocked_reason) = blocked_reason.filter(|now| before.as_ref() != Some(now)) {
            let reason = match blocked_reason {
                BlockedReason::NoRange(_) => EventReason::RangeUnavailable,
                BlockedReason::NotConverging(_) => EventReason::NotConverging,
                BlockedReason::PreflightFailed(_) => EventReason::NotReplaced,
            };
            let object = ObjectRef::host_group(name);
            self.record_event(
                EventType::Warning,
                &object,
                reason,
                &blocked_reason.message(),
            );
        }
    }

    pub(super) fn group_waits(&self, group: &Name) -> bool {
        let waiting = self.waiting_groups.lock();
        waiting.contains(group)
    }

    /// Why a group is blocked, apart from the state of its VMs.
    pub fn blocked_reason(&self, group: &Name) -> Option<BlockedReason> {
        let blocked_reasons = self.blocked_reasons.lock();
        blocked_reasons.get(group).cloned()
    }

    /// Why a VM that should be replaced is not. None: it should not be, or nothing blocks it.
    pub fn replacement_blocked_reason(&self, vm: &Vm) -> Option<String> {
        let blocked_reasons = self.blocked_reasons.lock();
        let reason = blocked_reasons.get(&vm.group)?.of_vm(&vm.meta.name);
        reason.map(str::to_owned)
    }

    /// Checks whether this host can run `wanted` in place of an existing VM.
    ///
    /// # Errors
    /// A message for users: why it cannot.
    pub async fn preflight_check(&self, vm: &Vm, spec: &VmSpec) -> Result<(), String> {
        let uid = vm.meta.uid;
        let reason = self.store.read(|world| {
            let status = world.status(uid, Stage::Vmm);
            status.map(|status| status.condition.reason)
        });
        if reason == Some(Reason::Invalid) {
            // The existing VM cannot run either.
            return Ok(());
        }
        let label = self.instance.vm_label(&vm.meta.name, uid);
        let connection = self.known_connection(uid);
        let connection = connection.filter(|_| vm.spec.network.mode() == spec.network.mode());
        self.processes
            .preflight(spec, &vm.meta.name, &label, connection.as_ref())
            .await
    }

    /// Retries what is not settled in these groups: the user may have corrected the host, and applied the same manifest again.
    pub fn retry_groups<'n>(&self, groups: impl Iterator<Item = &'n Name>) {
        for group in groups {
            let not_settled: Vec<Uid> = self.store.read(|world| {
                let vms = world.vms_of(group);
                let not_settled = vms.filter(|vm| !world.is_settled(vm));
                not_settled.map(|vm| vm.meta.uid).collect()
            });
            let vms = not_settled.into_iter().map(Key::Vm);
            vms.for_each(|vm| self.waker.enqueue_fresh(vm));
            if self.blocked_reason(group).is_some() {
                self.waker.enqueue_fresh(Key::Group(group.clone()));
            }
        }
    }

    /// Checks whether this host can run a VM that would be created.
    ///
    /// # Errors
    /// A message for users: why it cannot.
    pub async fn preflight_new(&self, vm: &Vm) -> Result<(), String> {
        let label = self.instance.vm_label(&vm.meta.name, vm.meta.uid);
        self.processes
            .preflight(&vm.spec, &vm.meta.name, &label, None)
            .await
    }
}

/// Whether a group is enqueued when one of its VMs becomes Ready or is removed.
#[derive(Clone, Copy)]
enum GroupWaits {
    Yes,
    No,
    Unchanged,
}
