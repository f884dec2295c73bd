//! Acquiring and releasing a stage: each is ONE transaction that checks the preconditions and writes the stage.
//! Out of scope: what a stage does.
//!
//! # Why
//! Check-then-write is a race: an object may be deleted in between. Here the preconditions are checked inside the transaction,
//! so a VM that is being deleted cannot acquire a stage, and a VM with an acquired stage cannot be removed.

use super::Error;
use super::txn::Txn;
use super::world::World;
use crate::api::condition::{Condition, Reason, Status};
use crate::api::meta::{Timestamp, Uid};
use crate::api::network::NetworkSpec;
use crate::api::stage::{STAGES, Stage, StageStatus};
use crate::api::vm::Vm;

/// The result of acquiring a stage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Acquisition {
    /// The stage is acquired: continue when the transaction is durable.
    Acquired(Box<Vm>),
    /// The previous stage or the host network is not Ready at this generation, with a message. The VM is enqueued when it is.
    Waiting(String),
    /// The VM does not exist or is being deleted.
    Gone,
}

impl World {
    fn dependencies_are_ready(&self, vm: &Vm, stage: Stage) -> Result<(), String> {
        let previous = STAGES.iter().take_while(|r| **r != stage).last();
        if let Some(below) = previous {
            let ready = self
                .status(vm.meta.uid, *below)
                .is_some_and(|status| status.condition.is_true_at(vm.meta.generation));
            if !ready {
                return Err(format!("waiting for {below}"));
            }
        }
        // From the namespace on, a VM depends on the rules of the host.
        match stage {
            Stage::Net | Stage::Firewall if !self.host_network_is_ready(vm, stage) => {
                let found = self
                    .host_network
                    .as_ref()
                    .map(|network_status| &network_status.condition);
                let cause = found.filter(|found| found.status != Status::True);
                Err(match cause.map(|found| found.message.as_str()) {
                    Some(cause) if !cause.is_empty() => {
                        format!("waiting for the host network: {cause}")
                    }
                    Some(_) | None => "waiting for the host network".into(),
                })
            }
            _ => Ok(()),
        }
    }

    fn host_network_is_ready(&self, vm: &Vm, stage: Stage) -> bool {
        match (&vm.spec.network, stage) {
            (NetworkSpec::Isolated(_) | NetworkSpec::Bridge(_), Stage::Net) => {}
            // The subnet of a VM in CNI mode is known only after the plugins have run.
            (NetworkSpec::Cni(_), Stage::Firewall) => {}
            (NetworkSpec::Isolated(_) | NetworkSpec::Bridge(_) | NetworkSpec::Cni(_), _) => {
                return true;
            }
        }
        let Some(host_network) = &self.host_network else {
            return false;
        };
        host_network.condition.status == Status::True
            && self
                .lease(&vm.meta.name)
                .is_some_and(|lease| host_network.applied.provide_for(&lease.address))
    }
}

impl Txn<'_> {
    /// Acquires a stage of a VM, if its preconditions hold.
    ///
    /// # Errors
    /// [`Error::Write`].
    pub fn acquire(
        &mut self,
        uid: Uid,
        stage: Stage,
        now: Timestamp,
    ) -> Result<Acquisition, Error> {
        let Some(vm) = self.world().vm(uid).filter(|vm| !vm.meta.deleting).cloned() else {
            return Ok(Acquisition::Gone);
        };
        let status = self.world().status(uid, stage).cloned();
        let mut stored = status.unwrap_or_else(|| StageStatus::initial(now));
        if let Err(message) = self.world().dependencies_are_ready(&vm, stage) {
            // A stage that is Ready stays Ready; otherwise its condition describes what it waits for.
            if stored.condition.status != Status::True {
                let found = (Status::Unknown, Reason::Waiting, message.clone());
                self.set_condition(uid, stage, found, vm.meta.generation, now)?;
            }
            return Ok(Acquisition::Waiting(message));
        }
        if !stored.acquired {
            stored.acquired = true;
            self.put_stage_status(uid, stage, stored)?;
        }
        Ok(Acquisition::Acquired(Box::new(vm)))
    }

    /// Acquires a stage without checking preconditions: for a VM that exists on the host and is adopted.
    ///
    /// # Errors
    /// [`Error::Write`].
    pub fn adopt_stage(&mut self, uid: Uid, stage: Stage, now: Timestamp) -> Result<(), Error> {
        let status = self.world().status(uid, stage).cloned();
        let stored = status.unwrap_or_else(|| StageStatus::initial(now));
        self.put_stage_status(
            uid,
            stage,
            StageStatus {
                acquired: true,
                ..stored
            },
        )
    }

    /// Writes the condition of a stage of a VM. `since` changes only if the status changes.
    ///
    /// # Errors
    /// [`Error::Write`].
    pub fn set_condition(
        &mut self,
        uid: Uid,
        stage: Stage,
        (status, reason, message): (Status, Reason, String),
        generation: u64,
        now: Timestamp,
    ) -> Result<(), Error> {
        if self.world().vm(uid).is_none() {
            return Ok(());
        }
        let stored = self.world().status(uid, stage).cloned();
        let mut stored = stored.unwrap_or_else(|| StageStatus::initial(now));
        let since = match stored.condition.status == status {
            true => stored.condition.since,
            false => now,
        };
        stored.condition = Condition {
            status,
            reason,
            message,
            since,
            observed_generation: generation,
        };
        self.record_observed(uid, stage, status);
        self.put_stage_status(uid, stage, stored)
    }

    /// Writes the checkpoint of a stage: what it records about the converged state.
    ///
    /// # Errors
    /// [`Error::Write`].
    pub fn set_checkpoint(
        &mut self,
        uid: Uid,
        stage: Stage,
        checkpoint: Option<String>,
    ) -> Result<(), Error> {
        match self.world().status(uid, stage).cloned() {
            None => Ok(()),
            Some(status) => self.put_stage_status(
                uid,
                stage,
                StageStatus {
                    checkpoint,
                    ..status
                },
            ),
        }
    }

    /// Releases a stage of a VM that is being deleted; the VM is removed with its last stage.
    /// Returns false, and changes nothing, while a later stage is acquired.
    ///
    /// # Errors
    /// [`Error::Write`].
    pub fn release(&mut self, uid: Uid, stage: Stage, now: Timestamp) -> Result<bool, Error> {
        let later_is_acquired = STAGES.iter().filter(|above| **above > stage).any(|above| {
            self.world()
                .status(uid, *above)
                .is_some_and(|stored| stored.acquired)
        });
        if later_is_acquired {
            return Ok(false);
        }
        if let Some(stored) = self
            .world()
            .status(uid, stage)
            .cloned()
            .filter(|stored| stored.acquired)
        {
            let released = StageStatus {
                acquired: false,
                checkpoint: None,
                condition: Condition {
                    status: Status::False,
                    reason: Reason::Terminating,
                    message: String::new(),
                    since: now,
                    ..stored.condition
                },
            };
            self.put_stage_status(uid, stage, released)?;
        }
        self.remove_if_released(uid)?;
        Ok(true)
    }

    /// Removes a VM that is being deleted and has no acquired stage.
    ///
    /// # Errors
    /// [`Error::Write`].
    pub fn remove_if_released(&mut self, uid: Uid) -> Result<(), Error> {
        let removable = self.world().vm(uid).is_some_and(|vm| vm.meta.deleting);
        if removable && !self.world().has_acquired_stage(uid) {
            self.remove_vm(uid)?;
        }
        Ok(())
    }
}
