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
use crate::api::rung::{LADDER, Rung, RungPage};
use crate::api::vm::Vm;

/// The result of acquiring a stage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Gate {
    /// The stage is acquired: continue when the transaction is durable.
    Open(Box<Vm>),
    /// The previous stage or the host network is not Ready at this generation, with a message. The VM is enqueued when it is.
    Closed(String),
    /// The VM does not exist or is being deleted.
    Gone,
}

impl World {
    fn below_is_ready(&self, vm: &Vm, rung: Rung) -> Result<(), String> {
        let below = LADDER.iter().take_while(|r| **r != rung).last();
        if let Some(below) = below {
            let ready = self
                .page(vm.meta.uid, *below)
                .is_some_and(|page| page.condition.is_true_at(vm.meta.generation));
            if !ready {
                return Err(format!("waiting for {below}"));
            }
        }
        // From the namespace on, a VM depends on the rules of the host.
        match rung {
            Rung::Net | Rung::Firewall if !self.ground_carries(vm, rung) => {
                let found = self.ground.as_ref().map(|ground| &ground.condition);
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

    fn ground_carries(&self, vm: &Vm, rung: Rung) -> bool {
        match (&vm.spec.network, rung) {
            (NetworkSpec::Isolated(_) | NetworkSpec::Bridge(_), Rung::Net) => {}
            // The subnet of a VM in CNI mode is known only after the plugins have run.
            (NetworkSpec::Cni(_), Rung::Firewall) => {}
            (NetworkSpec::Isolated(_) | NetworkSpec::Bridge(_) | NetworkSpec::Cni(_), _) => {
                return true;
            }
        }
        let Some(ground) = &self.ground else {
            return false;
        };
        ground.condition.status == Status::True
            && self
                .lease(&vm.meta.name)
                .is_some_and(|lease| ground.carries.carries(&lease.address))
    }
}

impl Txn<'_> {
    /// Acquires a stage of a VM, if its preconditions hold.
    ///
    /// # Errors
    /// [`Error::Write`].
    pub fn take_rung(&mut self, uid: Uid, rung: Rung, now: Timestamp) -> Result<Gate, Error> {
        let Some(vm) = self.world().vm(uid).filter(|vm| !vm.meta.deleting).cloned() else {
            return Ok(Gate::Gone);
        };
        let page = self.world().page(uid, rung).cloned();
        let mut page = page.unwrap_or_else(|| RungPage::initial(now));
        if let Err(why) = self.world().below_is_ready(&vm, rung) {
            // A stage that is Ready stays Ready; otherwise its condition describes what it waits for.
            if page.condition.status != Status::True {
                let found = (Status::Unknown, Reason::Waiting, why.clone());
                self.set_condition(uid, rung, found, vm.meta.generation, now)?;
            }
            return Ok(Gate::Closed(why));
        }
        if !page.held {
            page.held = true;
            self.put_page(uid, rung, page)?;
        }
        Ok(Gate::Open(Box::new(vm)))
    }

    /// Acquires a stage without checking preconditions: for a VM that exists on the host and is adopted.
    ///
    /// # Errors
    /// [`Error::Write`].
    pub fn hold_rung(&mut self, uid: Uid, rung: Rung, now: Timestamp) -> Result<(), Error> {
        let page = self.world().page(uid, rung).cloned();
        let page = page.unwrap_or_else(|| RungPage::initial(now));
        self.put_page(uid, rung, RungPage { held: true, ..page })
    }

    /// Writes the condition of a stage of a VM. `since` changes only if the status changes.
    ///
    /// # Errors
    /// [`Error::Write`].
    pub fn set_condition(
        &mut self,
        uid: Uid,
        rung: Rung,
        (status, reason, message): (Status, Reason, String),
        generation: u64,
        now: Timestamp,
    ) -> Result<(), Error> {
        if self.world().vm(uid).is_none() {
            return Ok(());
        }
        let page = self.world().page(uid, rung).cloned();
        let mut page = page.unwrap_or_else(|| RungPage::initial(now));
        let since = match page.condition.status == status {
            true => page.condition.since,
            false => now,
        };
        page.condition = Condition {
            status,
            reason,
            message,
            since,
            observed_generation: generation,
        };
        self.is_observed(uid, rung, status);
        self.put_page(uid, rung, page)
    }

    /// Writes the checkpoint of a stage: what it records about the converged state.
    ///
    /// # Errors
    /// [`Error::Write`].
    pub fn set_mark(&mut self, uid: Uid, rung: Rung, mark: Option<String>) -> Result<(), Error> {
        match self.world().page(uid, rung).cloned() {
            None => Ok(()),
            Some(page) => self.put_page(uid, rung, RungPage { mark, ..page }),
        }
    }

    /// Releases a stage of a VM that is being deleted; the VM is removed with its last stage.
    /// Returns false, and changes nothing, while a later stage is acquired.
    ///
    /// # Errors
    /// [`Error::Write`].
    pub fn leave_rung(&mut self, uid: Uid, rung: Rung, now: Timestamp) -> Result<bool, Error> {
        let held_above = LADDER
            .iter()
            .filter(|above| **above > rung)
            .any(|above| self.world().page(uid, *above).is_some_and(|page| page.held));
        if held_above {
            return Ok(false);
        }
        if let Some(page) = self
            .world()
            .page(uid, rung)
            .cloned()
            .filter(|page| page.held)
        {
            let left = RungPage {
                held: false,
                mark: None,
                condition: Condition {
                    status: Status::False,
                    reason: Reason::Terminating,
                    message: String::new(),
                    since: now,
                    ..page.condition
                },
            };
            self.put_page(uid, rung, left)?;
        }
        self.remove_if_free(uid)?;
        Ok(true)
    }

    /// Removes a VM that is being deleted and has no acquired stage.
    ///
    /// # Errors
    /// [`Error::Write`].
    pub fn remove_if_free(&mut self, uid: Uid) -> Result<(), Error> {
        let free = self.world().vm(uid).is_some_and(|vm| vm.meta.deleting);
        if free && !self.world().is_held(uid) {
            self.remove_vm(uid)?;
        }
        Ok(())
    }
}
