//! Tears a VM down: the same plans as for bringing it up, with empty desired state.
//! Out of scope: bringing up; orphans ([`crate::engine::remove_orphans`]).

use std::net::Ipv4Addr;

use tracing::debug;

use super::Engine;
use super::step::{StageRunner, condition_of, desired_inputs};
use crate::api::condition::{Reason, Status};
use crate::api::event::{EventReason, EventType, ObjectRef};
use crate::api::lease::Address;
use crate::api::meta::Uid;
use crate::api::network::NetworkSpec;
use crate::api::stage::{STAGES, Stage};
use crate::api::vm::Vm;
use crate::clock;
use crate::host::{self, fs};
use crate::owner::{self, Label, Owner};
use crate::reconcile::net::bridge::{self, Location};
use crate::reconcile::record::Record;
use crate::reconcile::{Convergence, OnHost, disk, firewall, net, storage, vmm};
use crate::runtime::queue::Outcome;
use crate::store::{self, Change};

/// The resources that a VM may have on the host, according to its mode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum HostResources {
    /// A namespace and a veth.
    Isolated,
    /// A TAP on a bridge.
    Bridge {
        tap: String,
        /// The bridge, and the VM's address on it, if known.
        location: Option<(String, std::net::Ipv4Addr)>,
    },
    /// A namespace and the resources that plugins created.
    Cni,
}

/// The reason why a stage is not torn down yet.
pub(super) struct TearDownError {
    /// Status, reason and message for its condition.
    pub(super) found: (Status, Reason, String),
    /// When to try again.
    pub(super) outcome: Outcome,
}

/// The host refused a step, or could not be read: try again with a delay.
fn failed(error: &host::Error) -> TearDownError {
    TearDownError {
        found: (Status::False, Reason::ActionFailed, error.to_string()),
        outcome: Outcome::Failed,
    }
}

impl Engine {
    /// Tears a VM down: each stage, from the last to the first, is converged to an empty desired state and released.
    pub(super) async fn tear_down(&self, vm: &Vm) -> Result<Outcome, store::Error> {
        let uid = vm.meta.uid;
        let label = self.instance.vm_label(&vm.meta.name, uid);
        let resources = self.host_resources(vm);
        for stage in self.acquired(uid).into_iter().rev() {
            if let Err(error) = self.tear_down_stage(stage, &label, &resources).await {
                self.set_condition(vm, stage, error.found).await?;
                return Ok(error.outcome);
            }
            let now = clock::now();
            self.write(|txn| txn.release(uid, stage, now)).await?;
        }
        self.report_kept_disk(vm, &label);
        self.write(|txn| txn.remove_if_released(uid)).await?;
        let object = ObjectRef::vm(&vm.meta.name);
        let message = "nothing of it is left on the host";
        self.record_event(EventType::Normal, &object, EventReason::Deleted, message);
        Ok(Outcome::Converged)
    }

    /// Reports the path of a disk that is not removed with its VM: a persistent one, or one whose record cannot be decoded.
    fn report_kept_disk(&self, vm: &Vm, label: &Label) {
        let name = &vm.meta.name;
        let left = self.processes.no_disk(label).map(|none| disk::kept(&none));
        if let Some(Err(error)) = left.filter(|_| !vm.spec.storage.is_default()) {
            let message = format!("the disk is kept: {error}");
            let object = ObjectRef::vm(name);
            self.record_event(EventType::Warning, &object, EventReason::DiskKept, &message);
        }
        let storage = &vm.spec.storage;
        let disk = storage::existing_disk(storage, self.processes.disk_dir(), name);
        if let Some(disk) = disk.filter(|_| storage.persistent) {
            let message = format!("the persistent disk is kept: {}", disk.display());
            let object = ObjectRef::vm(name);
            self.record_event(EventType::Normal, &object, EventReason::DiskKept, &message);
        }
    }

    /// The stages that a VM has acquired, in the order of the pipeline.
    pub(super) fn acquired(&self, uid: Uid) -> Vec<Stage> {
        self.store.read(|world| {
            let is_acquired = |stage: &Stage| {
                world
                    .status(uid, *stage)
                    .is_some_and(|status| status.acquired)
            };
            STAGES.into_iter().filter(is_acquired).collect()
        })
    }

    /// The resources that a VM may have on the host.
    pub(super) fn host_resources(&self, vm: &Vm) -> HostResources {
        match &vm.spec.network {
            NetworkSpec::Isolated(_) => HostResources::Isolated,
            NetworkSpec::Cni(_) => HostResources::Cni,
            NetworkSpec::Bridge(spec) => {
                let lease = self.store.read(|world| world.lease(&vm.meta.name).cloned());
                HostResources::Bridge {
                    tap: spec.tap(vm.index),
                    location: lease.and_then(|lease| match lease.address {
                        Address::Bridge { bridge, ip, .. } => Some((bridge, ip)),
                        Address::Isolated { .. } | Address::Cni { .. } => None,
                    }),
                }
            }
        }
    }

    pub(super) async fn tear_down_stage(
        &self,
        stage: Stage,
        label: &Label,
        resource: &HostResources,
    ) -> Result<(), TearDownError> {
        let uid = owner::uid_of(label);
        match stage {
            // Its exit needs no notification.
            Stage::Vmm => self.processes.watch(uid, None),
            // A new attachment is checked by its plugins again.
            Stage::Net => self.check_again(uid),
            Stage::Lease | Stage::Firewall => {}
        }
        // The record is removed together with the namespace.
        let address = match stage {
            Stage::Net => self.address_of(label).map_err(|error| failed(&error))?,
            Stage::Lease | Stage::Firewall | Stage::Vmm => None,
        };
        let mut runner = TearDown {
            engine: self,
            label,
        };
        self.remove_stage(stage, label, resource, &mut runner)
            .await?;
        match address {
            // The VM cannot send packets any more, so no new entry is created.
            Some(address) => self.delete_flows(address).await,
            None => Ok(()),
        }
    }

    /// Deletes the host's connection tracking entries of this address.
    pub(super) async fn delete_flows(&self, address: Ipv4Addr) -> Result<(), TearDownError> {
        let result = self.flows.delete(&self.host.host_netns, address).await;
        result.map_err(|error| failed(&error))
    }

    /// The address of the VM with this label, from its lease or its record.
    fn address_of(&self, label: &Label) -> Result<Option<Ipv4Addr>, host::Error> {
        let uid = owner::uid_of(label);
        let leased = self.store.read(|world| {
            let vm = world.vm(uid)?;
            let lease = world.lease(&vm.meta.name)?;
            Some(lease.address.ip())
        });
        if leased.is_some() {
            return Ok(leased);
        }
        let path = self.run_dir.vm_dir(uid).join(net::RECORD);
        let record = fs::read_json_or_ignore::<Record>(&path)?;
        Ok(record.and_then(|record| Some(record.lease?.address.ip())))
    }

    /// Converges a stage to the empty desired state.
    pub(super) async fn remove_stage<M: StageRunner>(
        &self,
        stage: Stage,
        label: &Label,
        resource: &HostResources,
        runner: &mut M,
    ) -> Result<(), M::Break> {
        match stage {
            Stage::Lease => Ok(()),
            Stage::Net => self.remove_net(label, resource, runner).await,
            Stage::Firewall => self.remove_firewall(label, resource, runner).await,
            Stage::Vmm => {
                let desired = vmm::Desired {
                    grace: self.grace_period(owner::uid_of(label)),
                    forced: self.is_forced(owner::uid_of(label)),
                    ..self.processes.nothing(label)
                };
                let reconciler = &self.processes.stage;
                runner.run_stage(stage, reconciler, &desired).await?;
                if let Some(desired) = self.processes.no_disk(label) {
                    runner
                        .run_stage(stage, &disk::Disks::default(), &desired)
                        .await?;
                }
                Ok(())
            }
        }
    }

    async fn remove_net<M: StageRunner>(
        &self,
        label: &Label,
        resource: &HostResources,
        runner: &mut M,
    ) -> Result<(), M::Break> {
        match resource {
            HostResources::Isolated => {
                let desired = net::isolated::Desired {
                    label: label.clone(),
                    run_dir: self.run_dir.0.clone(),
                    slot: None,
                };
                runner.run_stage(Stage::Net, &self.net(), &desired).await?;
            }
            HostResources::Bridge { tap, location } => {
                let desired = bridge::Desired {
                    label: label.clone(),
                    run_dir: self.run_dir.0.clone(),
                    tap: tap.clone(),
                    slot: None,
                    last_location: location.clone().map(|(bridge, ip)| Location { bridge, ip }),
                };
                runner.run_stage(Stage::Net, &self.port(), &desired).await?;
            }
            HostResources::Cni => self.detach_cni(label, runner).await?,
        }
        Ok(())
    }

    async fn remove_firewall<M: StageRunner>(
        &self,
        label: &Label,
        resource: &HostResources,
        runner: &mut M,
    ) -> Result<(), M::Break> {
        match resource {
            HostResources::Isolated => {
                let desired = firewall::isolated::Desired {
                    netns: self.run_dir.netns(&owner::names_of(label)),
                    lock: self.run_dir.vm_dir(owner::uid_of(label)).join(net::LOCK),
                    rules: None,
                };
                let reconciler = self.isolated_firewall_reconciler();
                runner
                    .run_stage(Stage::Firewall, &reconciler, &desired)
                    .await?;
            }
            HostResources::Bridge { tap, .. } => {
                let desired = firewall::bridge::Desired {
                    label: label.clone(),
                    tap: tap.clone(),
                    allowed: None,
                    last_verified: None,
                };
                let reconciler = self.bridge_firewall_reconciler();
                runner
                    .run_stage(Stage::Firewall, &reconciler, &desired)
                    .await?;
            }
            HostResources::Cni => self.remove_redirect(label, runner).await?,
        }
        Ok(())
    }
}

/// Tears down the resources with a label.
struct TearDown<'a> {
    engine: &'a Engine,
    label: &'a Label,
}

impl StageRunner for TearDown<'_> {
    type Break = TearDownError;

    async fn run_stage<R: OnHost>(
        &mut self,
        stage: Stage,
        reconciler: &R,
        desired: &R::Desired,
    ) -> Result<R::Observed, TearDownError> {
        let inputs = match &self.label.owner {
            Owner::Vm { uid, name } => desired_inputs(*uid, name).to_vec(),
            Owner::HostNetwork => vec![Change::HostNetwork],
        };
        let convergence = self.engine.converge(reconciler, desired, &inputs).await;
        let Convergence {
            actions, result, ..
        } = convergence;
        debug!(label = %self.label, %stage, ?actions, "torn down");
        match &result {
            Ok(_) => {}
            Err(error) => {
                let key = self.engine.key_of(self.label);
                let await_outcome = self
                    .engine
                    .await_change(key, owner::uid_of(self.label), error);
                return Err(TearDownError {
                    found: condition_of(&result),
                    outcome: await_outcome.unwrap_or(Outcome::Failed),
                });
            }
        }
        result.map_err(|error| TearDownError {
            found: (Status::Unknown, Reason::ObserveFailed, error.to_string()),
            outcome: Outcome::Failed,
        })
    }
}
