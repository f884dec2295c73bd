//! The stages that this process has not observed yet: their stored conditions were observed by an earlier process.
//! Out of scope: the status that is computed from it ([`crate::status`]).
//!
//! # Why
//! A stored condition reports what was true when it was written. While the daemon was not running, anything may have changed on the host,
//! so the condition of a stage is Unknown until the stage is observed again. This is a property of the process and is never stored.

use std::collections::BTreeSet;

use super::Store;
use super::unobserved::Unobserved;
use super::world::World;
use crate::api::condition::Status;
use crate::api::meta::{Timestamp, Uid};
use crate::api::stage::Stage;
use crate::api::vm::Vm;

impl World {
    /// The time since when a stage of a VM is unobserved. `None`: this process has observed it, or nothing is stored about it.
    pub fn unobserved_since(&self, vm: &Vm, stage: Stage) -> Option<Timestamp> {
        let stages = self.unobserved.stages.get(&vm.meta.uid)?;
        let unknown = !vm.meta.deleting && stages.contains(&stage);
        self.unobserved.since.filter(|_| unknown)
    }

    /// Whether this process has observed all stages of a VM that have a stored condition. Always true for a VM that is being deleted: its
    /// readiness does not matter.
    pub fn is_observed(&self, vm: &Vm) -> bool {
        vm.meta.deleting || !self.unobserved.stages.contains_key(&vm.meta.uid)
    }

    /// Records that a stage was observed. Returns false if it had been observed before.
    pub(super) fn set_observed(&mut self, uid: Uid, stage: Stage) -> bool {
        let Some(stages) = self.unobserved.stages.get_mut(&uid) else {
            return false;
        };
        let newly_observed = stages.remove(&stage);
        if stages.is_empty() {
            self.unobserved.stages.remove(&uid);
        }
        newly_observed
    }

    /// Undoes [`Self::set_observed`]: the observation could not be written.
    pub(super) fn unset_observed(&mut self, uid: Uid, stage: Stage) {
        self.unobserved.stages.entry(uid).or_default().insert(stage);
    }

    /// Whether watchers are notified of an observation that changes nothing that is stored: once per VM, because otherwise a restart would
    /// cause more notifications than fit into the backlog, and for each failure.
    pub(super) fn is_reported(&self, uid: Uid, status: Status) -> bool {
        status != Status::True || !self.unobserved.stages.contains_key(&uid)
    }
}

impl Store {
    /// Makes every stored True or False condition Unknown until its stage is observed.
    pub fn begin_observation(&self, now: Timestamp) {
        let mut world = self.shared.world.lock();
        let known_stages = |uid: &Uid| {
            let statuses = world.stage_statuses.get(uid).into_iter().flatten();
            let decided = statuses
                .filter(|(_, stage_status)| stage_status.condition.status != Status::Unknown);
            decided
                .map(|(stage, _)| *stage)
                .collect::<BTreeSet<Stage>>()
        };
        let stages = world.vms.keys().map(|uid| (*uid, known_stages(uid)));
        let stages = stages.filter(|(_, stages)| !stages.is_empty()).collect();
        world.unobserved = Unobserved {
            since: Some(now),
            stages,
        };
    }
}
