//! What would be done for a VM: the same stages and plans as for bringing it up or tearing it down, computed but not carried out.
//! Out of scope: the desired state of a stage; which VMs are changed or removed ([`crate::reconcile::group`]).
//!
//! # Why
//! The first plan is computed from an observation, the next ones from the state that the steps before them are predicted to have. Steps that
//! depend on what cannot be predicted are not known, such as deleting flows when new rules are in place.

use std::collections::BTreeMap;

use super::Engine;
use super::step::{BringUpRunner, ReadyStage, StageRunner};
use crate::api::host_group::HostGroupSpec;
use crate::api::lease::{Address, Lease};
use crate::api::meta::{Name, Uid};
use crate::api::network::Connection;
use crate::api::stage::{STAGES, Stage};
use crate::api::vm::{Hypervisor, Vm};
use crate::clock;
use crate::reconcile::group::{self, Assigned, ForeseenVm, HostUse};
use crate::reconcile::net::cni::CheckMode;
use crate::reconcile::power::PowerDecision;
use crate::reconcile::{Basis, OnHost, diff, disk};

/// The steps that would be carried out for a VM.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Preview {
    /// The steps, in order.
    pub steps: Vec<String>,
    /// Why further steps cannot be computed.
    pub blocked: Option<String>,
}

impl Engine {
    /// The VMs that groups with these specs would create now, with what the first `limit` would be assigned. Nothing is stored.
    pub async fn foresee(
        &self,
        specs: &[(Name, HostGroupSpec)],
        limit: usize,
    ) -> BTreeMap<Name, ForeseenVm> {
        let host_use = HostUse {
            netlink: &self.host.netlink,
            instance: &self.instance,
        };
        // What is claimed by other daemons is checked for a whole group.
        let leases = self.leases(None, clock::now());
        group::foresee(&self.store, &self.claims, &host_use, specs, &leases, limit).await
    }

    /// Previews the creation of a VM. Each stage is planned as if the stages before it were converged.
    pub async fn preview_creation(&self, new: &ForeseenVm) -> Preview {
        let Assigned { lease, vmm_user } = match &new.assigned {
            Ok(assigned) => assigned,
            Err(why) => {
                return Preview {
                    steps: Vec::new(),
                    blocked: Some(why.clone()),
                };
            }
        };
        let mut runner = PreviewRunner::of_new(self, *vmm_user);
        let steps = &mut runner.preview.steps;
        steps.extend(lease.as_ref().map(lease_step));
        match self.connect(&new.vm, lease.clone(), &mut runner).await {
            Err(PreviewEnd) => {}
            Ok(None) => runner.preview.steps.push(after_add(&new.vm)),
            Ok(Some(connection)) => {
                self.preview_process(&new.vm, &connection, &mut runner)
                    .await
            }
        }
        runner.preview
    }

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
    async fn preview_process(
        &self,
        vm: &Vm,
        connection: &Connection,
        runner: &mut PreviewRunner<'_>,
    ) {
        match self.power_decision(vm) {
            PowerDecision::Run => {}
            PowerDecision::Stop(..) | PowerDecision::Restart | PowerDecision::Delete(_) => {
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
        let user = runner.vmm_user(vm.meta.uid);
        let desired = match self.process(vm, connection, &disks, user).await {
            Ok(desired) => desired,
            Err(reason) => return runner.set_blocked(reason.to_string()),
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
struct PreviewRunner<'a> {
    engine: &'a Engine,
    basis: Basis,
    /// The user that the VMM of a new VM would get.
    new_user: Option<u32>,
    acquired: Vec<Stage>,
    /// The next stage depends on the result of a planned step.
    depends_on_step: bool,
    preview: Preview,
}

/// The preview ends here.
struct PreviewEnd;

impl<'a> PreviewRunner<'a> {
    fn of_new(engine: &'a Engine, vmm_user: Option<u32>) -> Self {
        Self {
            engine,
            basis: Basis::New,
            new_user: vmm_user,
            acquired: Vec::new(),
            depends_on_step: false,
            preview: Preview::default(),
        }
    }

    fn at(engine: &'a Engine, uid: Uid) -> Self {
        Self {
            engine,
            basis: Basis::Existing,
            new_user: None,
            acquired: engine.acquired(uid),
            depends_on_step: false,
            preview: Preview::default(),
        }
    }

    fn set_blocked(&mut self, reason: String) {
        self.preview.blocked = Some(reason);
    }
}

impl StageRunner for PreviewRunner<'_> {
    type Break = PreviewEnd;

    async fn run_stage<R: OnHost>(
        &mut self,
        _: Stage,
        reconciler: &R,
        desired: &R::Desired,
    ) -> Result<R::Observed, PreviewEnd> {
        match diff(reconciler, desired, self.basis).await {
            Ok((plan, observed)) => {
                self.depends_on_step |= plan.iter().any(R::is_prerequisite);
                let text = |action: &R::Action| match self.basis {
                    Basis::Existing => action.to_string(),
                    Basis::New => format!("{action:#}"),
                };
                let steps: Vec<String> = plan.iter().map(text).collect();
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

impl BringUpRunner for PreviewRunner<'_> {
    /// CHECK would run the plugins.
    fn cni_checking(&self) -> CheckMode {
        CheckMode::Never
    }

    fn vmm_user(&self, uid: Uid) -> Option<u32> {
        let stored = || self.engine.store.read(|world| world.vmm_id(uid));
        self.new_user.or_else(stored)
    }

    fn counts_refused(&self) -> bool {
        false
    }

    /// The plan of a stage that is not acquired yet depends on the steps of the stages before it. For a new VM, their result is assumed.
    async fn ready(&mut self, stage: Stage, _: ReadyStage) -> Result<(), PreviewEnd> {
        if self.basis == Basis::New {
            return Ok(());
        }
        let next = STAGES.into_iter().find(|next| *next > stage);
        let next_acquired = next.is_none_or(|next| self.acquired.contains(&next));
        match next_acquired && !self.depends_on_step {
            true => Ok(()),
            false => Err(PreviewEnd),
        }
    }
}

fn lease_step(lease: &Lease) -> String {
    match &lease.address {
        Address::Isolated { block, .. } => format!("lease {block}"),
        Address::Bridge { bridge, ip, .. } => format!("lease {ip} on {bridge}"),
        Address::Cni { address, .. } => format!("request the last address, {}", address.ip()),
    }
}

/// The last line for a VM in a CNI network: the interface and its addresses are those that the plugins return.
fn after_add(vm: &Vm) -> String {
    let vmm = match vm.spec.hypervisor {
        Hypervisor::None => "",
        _ => ", the VMM",
    };
    format!("then the TAP, the redirect{vmm}: they depend on the result of ADD")
}
