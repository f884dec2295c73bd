//! What would be done for a VM: the same rungs and the same plans as on its way up or down, looked at and not carried out.
//! Not here: what is wanted of a rung; which VMs are changed or removed ([`super::super::group`]).
//!
//! # Why
//! A plan is made from one look. What only the look after a step can find, such as flows to cut once new rules stand, is not known yet.

use super::Engine;
use super::step::{Ascent, Meet, Ready};
use crate::api::meta::Uid;
use crate::api::rung::{LADDER, Rung};
use crate::api::vm::Vm;
use crate::reconcile::life::Verdict;
use crate::reconcile::net::cni::Checking;
use crate::reconcile::{Reconcile, diff, disk};

impl Engine {
    /// The steps that would be taken for a VM that was changed to this, while it goes on; if it is stuck on the way, at last
    /// why.
    pub async fn preview_change(&self, vm: &Vm) -> Vec<String> {
        let lease = self.store.read(|world| world.lease(&vm.meta.name).cloned());
        let mut looking = Looking::at(self, vm.meta.uid);
        let connected = self.connect(vm, lease, &mut looking).await;
        match self.verdict(vm) {
            Verdict::Run => {}
            Verdict::Down(..) | Verdict::Again => {
                if let Ok(Some(_)) = connected {
                    let hands = &self.processes.rung;
                    let _ = looking.meet(Rung::Vmm, hands, &self.at_rest(vm)).await;
                }
                return looking.steps;
            }
        }
        if let Ok(Some(connection)) = connected
            && let Ok(disks) = self.disks(vm)
            && let Ok(desired) = self.process(vm, &connection, &disks).await
        {
            if disks.own.want.is_some() {
                let hands = disk::Disks::default();
                if looking.meet(Rung::Vmm, &hands, &disks.own).await.is_err() {
                    return looking.steps;
                }
            }
            let hands = &self.processes.rung;
            let _ = looking.meet(Rung::Vmm, hands, &desired).await;
        }
        looking.steps
    }

    /// The steps that would be taken to remove a VM, from the top; if it is stuck on the way, at last why.
    pub async fn preview_removal(&self, vm: &Vm) -> Vec<String> {
        let label = self.instance.vm_label(&vm.meta.name, vm.meta.uid);
        let standing = self.standing(vm);
        let mut looking = Looking::at(self, vm.meta.uid);
        for rung in looking.held.clone().into_iter().rev() {
            let looked = self.empty(rung, &label, &standing, &mut looking).await;
            if looked.is_err() {
                break;
            }
        }
        looking.steps
    }
}

/// One who looks and touches nothing.
struct Looking {
    held: Vec<Rung>,
    steps: Vec<String>,
}

/// There is nothing more to be told.
struct Halt;

impl Looking {
    fn at(engine: &Engine, uid: Uid) -> Self {
        Self {
            held: engine.held(uid),
            steps: Vec::new(),
        }
    }
}

impl Meet for Looking {
    type Stop = Halt;

    async fn meet<R: Reconcile>(
        &mut self,
        _: Rung,
        reconciler: &R,
        desired: &R::Desired,
    ) -> Result<R::Observed, Halt> {
        match diff(reconciler, desired).await {
            Ok((steps, observed)) => {
                self.steps.extend(steps);
                Ok(observed)
            }
            Err(error) => {
                self.steps.push(format!("stuck: {error}"));
                Err(Halt)
            }
        }
    }
}

impl Ascent for Looking {
    /// To ask the plugins is to run them.
    fn checking(&self) -> Checking {
        Checking::Never
    }

    /// What would be done at a rung that the VM has not come to yet hangs on what is done below it.
    async fn ready(&mut self, rung: Rung, _: Ready) -> Result<(), Halt> {
        let next = LADDER.into_iter().find(|next| *next > rung);
        match next.is_none_or(|next| self.held.contains(&next)) {
            true => Ok(()),
            false => Err(Halt),
        }
    }
}
