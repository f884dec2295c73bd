//! The objects that may have changed since the log of changes was brought up to date.
//! Out of scope: whether they have changed, which the log finds out.
//!
//! # Why
//! What users see of an object depends on others: of a VM on its lease, of a group on its VMs. A change of the host network is reported
//! as one of all VMs and groups, and what is not stored (blocked groups, manifests) as [`Change::View`].

use std::collections::BTreeSet;

use crate::api::meta::{Name, Uid};
use crate::api::view::{Kind, Object};
use crate::status::watch_log::WatchLog;
use crate::store::{Change, World};

/// The number of VMs that are computed while the world is locked.
const AT_ONCE: usize = 64;

/// The objects to compute again.
#[derive(Debug, Default)]
pub(super) struct Dirty {
    everything: bool,
    vms: BTreeSet<Uid>,
    groups: BTreeSet<Name>,
    leases: BTreeSet<Name>,
}

impl Dirty {
    /// All objects.
    pub(super) fn everything() -> Self {
        Self {
            everything: true,
            ..Self::default()
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        !self.everything && self.vms.is_empty() && self.groups.is_empty() && self.leases.is_empty()
    }

    /// Adds what a change concerns.
    pub(super) fn add(&mut self, change: Change) {
        match change {
            Change::Vm(uid)
            | Change::StageStatus(uid)
            | Change::Observed(uid)
            | Change::Agent(uid) => {
                self.vms.insert(uid);
            }
            Change::Group(name) => {
                self.groups.insert(name);
            }
            Change::Lease(name) => {
                self.leases.insert(name);
            }
            // Nothing of the requirements is part of an object.
            Change::HostNetwork => {}
            Change::View | Change::Everything => self.everything = true,
        }
    }

    /// Computes a part of the objects and adds them to the log. Returns whether that was the last part.
    pub(super) fn take_some(
        &mut self,
        world: &World,
        log: &mut WatchLog,
        compute: impl Fn(Kind, &Name) -> Option<Object>,
    ) -> bool {
        if std::mem::take(&mut self.everything) {
            self.expand(world, log);
        }
        let update = |log: &mut WatchLog, kind, name: &Name| match compute(kind, name) {
            Some(object) => log.put(&object),
            None => log.remove(kind, name),
        };
        let (mut left, mut is_gone) = (AT_ONCE, false);
        while left > 0 {
            if let Some(name) = self.leases.pop_first() {
                update(log, Kind::Lease, &name);
                // Its address is part of the VM.
                self.vms.extend(world.vm_named(&name).map(|vm| vm.meta.uid));
                left -= 1;
            } else if let Some(uid) = self.vms.pop_first() {
                match world.vm(uid) {
                    Some(vm) => {
                        update(log, Kind::Vm, &vm.meta.name);
                        self.groups.insert(vm.group.clone());
                    }
                    None => is_gone = true,
                }
                left -= 1;
            } else if let Some(name) = self.groups.pop_first() {
                update(log, Kind::HostGroup, &name);
                // A group looks at the conditions of its VMs.
                left = left.saturating_sub(1 + world.vms_of(&name).count() / 8);
            } else {
                break;
            }
        }
        if is_gone {
            log.retain(Kind::Vm, |name| world.vm_named(name).is_some());
        }
        self.is_empty()
    }

    /// Adds all objects that exist, and all that the log knows.
    fn expand(&mut self, world: &World, log: &mut WatchLog) {
        log.retain(Kind::Vm, |name| world.vm_named(name).is_some());
        self.vms.extend(world.vms().map(|vm| vm.meta.uid));
        let groups = world.groups().map(|group| &group.meta.name);
        let known = log.names(Kind::HostGroup);
        self.groups.extend(groups.chain(known).cloned());
        let leases = world.leases().map(|lease| &lease.name);
        let known = log.names(Kind::Lease);
        self.leases.extend(leases.chain(known).cloned());
    }
}
