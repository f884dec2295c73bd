//! Which stages this process has not observed yet: what is stored of them was observed by an earlier one.
//! Out of scope: what is answered of them ([`crate::reconcile::fold`]).
//!
//! # Why
//! A stored condition reports what was true when it was written. Between two lives of the daemon anything may have changed on the host,
//! so until a stage was observed again its condition is not known. This is a fact about the process and is never stored.

use std::collections::{BTreeSet, HashMap};

use super::world::World;
use super::{Store, lock};
use crate::api::condition::Status;
use crate::api::meta::{Timestamp, Uid};
use crate::api::rung::Rung;
use crate::api::vm::Vm;

/// Stages by VM, and since when they are to be observed.
#[derive(Default)]
pub(super) struct Unobserved {
    since: Option<Timestamp>,
    stages: HashMap<Uid, BTreeSet<Rung>>,
}

impl World {
    /// Since when this process has not observed a stage of a VM. None: it has, or nothing is stored of it.
    pub fn unobserved_since(&self, vm: &Vm, rung: Rung) -> Option<Timestamp> {
        let stages = self.unobserved.stages.get(&vm.meta.uid)?;
        let unknown = !vm.meta.deleting && stages.contains(&rung);
        self.unobserved.since.filter(|_| unknown)
    }

    /// Whether every stage of a VM of which something is stored was observed by this process. One that is being deleted has no
    /// readiness to observe.
    pub fn is_observed(&self, vm: &Vm) -> bool {
        vm.meta.deleting || !self.unobserved.stages.contains_key(&vm.meta.uid)
    }

    /// A stage was observed. False: it had been before.
    pub(super) fn observed(&mut self, uid: Uid, rung: Rung) -> bool {
        let Some(stages) = self.unobserved.stages.get_mut(&uid) else {
            return false;
        };
        let news = stages.remove(&rung);
        if stages.is_empty() {
            self.unobserved.stages.remove(&uid);
        }
        news
    }

    /// What was observed could not be written.
    pub(super) fn not_observed(&mut self, uid: Uid, rung: Rung) {
        self.unobserved.stages.entry(uid).or_default().insert(rung);
    }

    /// Whether a watch is to be notified of an observation that changes nothing that is stored: once for each VM, or there would be
    /// more notifications after a restart than fit into the backlog; and of each failure.
    pub(super) fn completes(&self, uid: Uid, status: Status) -> bool {
        status != Status::True || !self.unobserved.stages.contains_key(&uid)
    }
}

impl Store {
    /// From now on every stored True or False is unknown until its stage is observed.
    pub fn begin_observation(&self, now: Timestamp) {
        let mut world = lock(&self.shared.world);
        let decided = |uid: &Uid| {
            let pages = world.pages.get(uid).into_iter().flatten();
            let decided = pages.filter(|(_, page)| page.condition.status != Status::Unknown);
            decided.map(|(rung, _)| *rung).collect::<BTreeSet<Rung>>()
        };
        let stages = world.vms.keys().map(|uid| (*uid, decided(uid)));
        let stages = stages.filter(|(_, stages)| !stages.is_empty()).collect();
        world.unobserved = Unobserved {
            since: Some(now),
            stages,
        };
    }
}
