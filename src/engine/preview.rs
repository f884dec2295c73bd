//! What would be done for a VM: the same stages and plans as for bringing it up or tearing it down, computed but not carried out.
//! Out of scope: the desired state of a stage; which VMs are changed or removed ([`crate::reconcile::group`]).
//!
//! # Why
//! A plan is computed from one observation. Steps that depend on an observation after an earlier step are not known yet, such as deleting
//! flows when new rules are in place.

use super::Engine;
use super::step::{BringUpRunner, ReadyStage, StageRunner};
use crate::api::meta::Uid;
use crate::api::network::Connection;
use crate::api::stage::{STAGES, Stage};
use crate::api::vm::Vm;
use crate::reconcile::net::cni::CheckMode;
use crate::reconcile::power::PowerDecision;
use crate::reconcile::{OnHost, diff, disk};

/// The steps that would be carried out for a VM.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Preview {
    /// The steps, in order.
    pub steps: Vec<String>,
    /// Why further steps cannot be computed.
    pub blocked: Option<String>,
}

impl Engine {
    /// Previews the update of a VM to this spec, without a replacement.
    pub async fn preview_change(&self, vm: &Vm) -> Preview {
        let lease = self.store.read(|world| world.lease(&vm.meta.name).cloned());
        let mut runner = PreviewRunner::at(self, vm.meta.uid);
        match self.connect(vm, lease, &mut runner).await {
            Err(PreviewEnd) => {}
            Ok(None) if runner.depends_on_step => {}
            Ok(None) => runner.set_blocked("no lease or CNI result to connect it with".to_owned()),
            Ok(Some(connection)) => self.preview_process(vm, &connection, &mut runner).await,
        }
        runner.preview
    }

    /// Previews the Vmm stage, the VM's disk first.
    async fn preview_process(&self, vm: &Vm, connection: &Connection, runner: &mut PreviewRunner) {
        match self.power_decision(vm) {
            PowerDecision::Run => {}
            PowerDecision::Stop(..) | PowerDecision::Restart => {
                let reconciler = &self.processes.stage;
                let _reported = runner
                    .run_stage(Stage::Vmm, reconciler, &self.desired_when_stopped(vm))
                    .await;
                return;
            }
        }
        let disks = match self.desired_disks(vm).await {
            Ok(disks) => disks,
            Err(reason) => return runner.set_blocked(reason),
        };
        let desired = match self.process(vm, connection, &disks).await {
            Ok(desired) => desired,
            Err(invalid) => return runner.set_blocked(invalid),
        };
        if disks.own.spec.is_some() {
            let net_reconciler = disk::Disks::default();
            if runner
                .run_stage(Stage::Vmm, &net_reconciler, &disks.own)
                .await
                .is_err()
            {
                return;
            }
        }
        let _reported_by_the_stage = runner
            .run_stage(Stage::Vmm, &self.processes.stage, &desired)
            .await;
    }

    /// Previews the removal of a VM, from the last stage to the first.
    pub async fn preview_removal(&self, vm: &Vm) -> Preview {
        let label = self.instance.vm_label(&vm.meta.name, vm.meta.uid);
        let resources = self.host_resources(vm);
        let mut runner = PreviewRunner::at(self, vm.meta.uid);
        for stage in runner.acquired.clone().into_iter().rev() {
            let result = self
                .remove_stage(stage, &label, &resources, &mut runner)
                .await;
            if result.is_err() {
                break;
            }
        }
        runner.preview
    }
}

/// A pass that observes and plans, and changes nothing.
struct PreviewRunner {
    acquired: Vec<Stage>,
    /// The next stage depends on the result of a planned step.
    depends_on_step: bool,
    preview: Preview,
}

/// The preview ends here.
struct PreviewEnd;

impl PreviewRunner {
    fn at(engine: &Engine, uid: Uid) -> Self {
        Self {
            acquired: engine.acquired(uid),
            depends_on_step: false,
            preview: Preview::default(),
        }
    }

    fn set_blocked(&mut self, reason: String) {
        self.preview.blocked = Some(reason);
    }
}

impl StageRunner for PreviewRunner {
    type Break = PreviewEnd;

    async fn run_stage<R: OnHost>(
        &mut self,
        _: Stage,
        reconciler: &R,
        desired: &R::Desired,
    ) -> Result<R::Observed, PreviewEnd> {
        match diff(reconciler, desired).await {
            Ok((plan, observed)) => {
                self.depends_on_step |= plan.iter().any(R::is_prerequisite);
                let steps = plan.iter().map(ToString::to_string);
                self.preview.steps.extend(steps);
                Ok(observed)
            }
            Err(error) => {
                self.set_blocked(error.to_string());
                Err(PreviewEnd)
            }
        }
    }
}

impl BringUpRunner for PreviewRunner {
    /// CHECK would run the plugins.
    fn cni_checking(&self) -> CheckMode {
        CheckMode::Never
    }

    /// The plan of a stage that is not acquired yet depends on the steps of the stages before it.
    async fn ready(&mut self, stage: Stage, _: ReadyStage) -> Result<(), PreviewEnd> {
        let next = STAGES.into_iter().find(|next| *next > stage);
        let next_acquired = next.is_none_or(|next| self.acquired.contains(&next));
        match next_acquired && !self.depends_on_step {
            true => Ok(()),
            false => Err(PreviewEnd),
        }
    }
}
