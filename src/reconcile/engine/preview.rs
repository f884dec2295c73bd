//! What would be done for a VM: the same stages and plans as for bringing it up or tearing it down, computed but not carried out.
//! Out of scope: the desired state of a stage; which VMs are changed or removed ([`super::super::group`]).
//!
//! # Why
//! A plan is computed from one observation. Steps that depend on an observation after an earlier step are not known yet, such as deleting
//! flows when new rules are in place.

use super::Engine;
use super::step::{Ascent, Meet, Ready};
use crate::api::meta::Uid;
use crate::api::network::Connection;
use crate::api::rung::{LADDER, Rung};
use crate::api::vm::Vm;
use crate::reconcile::life::Verdict;
use crate::reconcile::net::cni::CheckMode;
use crate::reconcile::{Reconcile, diff, disk};

/// The steps that would be carried out for a VM.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Preview {
    /// The steps, in order.
    pub steps: Vec<String>,
    /// Why further steps cannot be computed.
    pub stuck: Option<String>,
}

impl Engine {
    /// Previews the update of a VM to this spec, without a replacement.
    pub async fn preview_change(&self, vm: &Vm) -> Preview {
        let lease = self.store.read(|world| world.lease(&vm.meta.name).cloned());
        let mut looking = Looking::at(self, vm.meta.uid);
        match self.connect(vm, lease, &mut looking).await {
            Err(Halt) => {}
            Ok(None) if looking.awaits_footing => {}
            Ok(None) => looking.stuck("no lease or CNI result to connect it with".to_owned()),
            Ok(Some(connection)) => self.preview_process(vm, &connection, &mut looking).await,
        }
        looking.preview
    }

    /// Previews the Vmm stage, the VM's disk first.
    async fn preview_process(&self, vm: &Vm, connection: &Connection, looking: &mut Looking) {
        match self.verdict(vm) {
            Verdict::Run => {}
            Verdict::Down(..) | Verdict::Again => {
                let hands = &self.processes.rung;
                let _told_by_itself = looking.meet(Rung::Vmm, hands, &self.at_rest(vm)).await;
                return;
            }
        }
        let disks = match self.disks(vm).await {
            Ok(disks) => disks,
            Err(unfit) => return looking.stuck(unfit),
        };
        let desired = match self.process(vm, connection, &disks).await {
            Ok(desired) => desired,
            Err(unfit) => return looking.stuck(unfit),
        };
        if disks.own.want.is_some() {
            let hands = disk::Disks::default();
            if looking.meet(Rung::Vmm, &hands, &disks.own).await.is_err() {
                return;
            }
        }
        let _told_by_itself = looking
            .meet(Rung::Vmm, &self.processes.rung, &desired)
            .await;
    }

    /// Previews the removal of a VM, from the last stage to the first.
    pub async fn preview_removal(&self, vm: &Vm) -> Preview {
        let label = self.instance.vm_label(&vm.meta.name, vm.meta.uid);
        let standing = self.standing(vm);
        let mut looking = Looking::at(self, vm.meta.uid);
        for rung in looking.held.clone().into_iter().rev() {
            let looked = self.empty(rung, &label, &standing, &mut looking).await;
            if looked.is_err() {
                break;
            }
        }
        looking.preview
    }
}

/// A pass that observes and plans, and changes nothing.
struct Looking {
    held: Vec<Rung>,
    /// The next stage depends on the result of a planned step.
    awaits_footing: bool,
    preview: Preview,
}

/// The preview ends here.
struct Halt;

impl Looking {
    fn at(engine: &Engine, uid: Uid) -> Self {
        Self {
            held: engine.held(uid),
            awaits_footing: false,
            preview: Preview::default(),
        }
    }

    fn stuck(&mut self, why: String) {
        self.preview.stuck = Some(why);
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
            Ok((plan, observed)) => {
                self.awaits_footing |= plan.iter().any(R::is_footing);
                let steps = plan.iter().map(ToString::to_string);
                self.preview.steps.extend(steps);
                Ok(observed)
            }
            Err(error) => {
                self.stuck(error.to_string());
                Err(Halt)
            }
        }
    }
}

impl Ascent for Looking {
    /// CHECK would run the plugins.
    fn checking(&self) -> CheckMode {
        CheckMode::Never
    }

    /// The plan of a stage that is not acquired yet depends on the steps of the stages before it.
    async fn ready(&mut self, rung: Rung, _: Ready) -> Result<(), Halt> {
        let next = LADDER.into_iter().find(|next| *next > rung);
        let held = next.is_none_or(|next| self.held.contains(&next));
        match held && !self.awaits_footing {
            true => Ok(()),
            false => Err(Halt),
        }
    }
}
