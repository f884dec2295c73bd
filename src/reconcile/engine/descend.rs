//! A VM down its ladder, and what no object wants off the host: the same plans, with nothing desired.
//! Not here: the way up.

use tracing::{debug, info};

use super::Engine;
use super::step::describe;
use crate::api::condition::{Reason, Status};
use crate::api::event::EventType;
use crate::api::rung::{LADDER, Rung};
use crate::api::vm::Vm;
use crate::clock;
use crate::owner::{self, Label};
use crate::reconcile::{Convergence, firewall, net};
use crate::runtime::queue::Outcome;
use crate::store;

impl Engine {
    /// Down: from the top, each rung's desired is nothing.
    pub(super) async fn descend(&self, vm: &Vm) -> Result<Outcome, store::Error> {
        let uid = vm.meta.uid;
        let label = self.instance.vm_label(&vm.meta.name, uid);
        for rung in LADDER.into_iter().rev() {
            let held = |world: &store::World| world.page(uid, rung).is_some_and(|page| page.held);
            if !self.store.read(held) {
                continue;
            }
            if let Err(found) = self.take_down(rung, &label).await {
                self.set_condition(vm, rung, found).await?;
                return Ok(Outcome::Failed);
            }
            let now = clock::now();
            self.write(|txn| txn.leave_rung(uid, rung, now)).await?;
        }
        self.write(|txn| txn.remove_if_free(uid)).await?;
        Ok(Outcome::Converged)
    }

    pub(super) async fn take_down(
        &self,
        rung: Rung,
        label: &Label,
    ) -> Result<(), (Status, Reason, String)> {
        let uid = owner::uid_of(label);
        let taken = match rung {
            Rung::Lease => return Ok(()),
            Rung::Net => {
                let desired = net::Desired {
                    label: label.clone(),
                    run_dir: self.run_dir.0.clone(),
                    slot: None,
                };
                emptied(self.converge(&self.net(), &desired).await)
            }
            Rung::Firewall => {
                let desired = firewall::Desired {
                    netns: self.run_dir.netns(&owner::names_of(label)),
                    lock: self.run_dir.vm_dir(uid).join(net::LOCK),
                    rules: None,
                };
                emptied(self.converge(&self.firewall(), &desired).await)
            }
            Rung::Vmm => {
                self.processes.watch(uid, None);
                let desired = self.processes.nothing(label);
                emptied(self.converge(&self.processes.rung, &desired).await)
            }
        };
        taken.map(|taken| debug!(%label, %rung, ?taken, "taken down"))
    }

    /// Something of ours that no object wants: all of it, from the top.
    pub(super) async fn run_stray(&self, label: &Label) -> Result<Outcome, store::Error> {
        let uid = owner::uid_of(label);
        if self.store.read(|world| world.vm(uid).is_some()) {
            return Ok(Outcome::Converged);
        }
        for rung in LADDER.into_iter().rev() {
            if let Err((_, reason, message)) = self.take_down(rung, label).await {
                self.note(
                    EventType::Warning,
                    &label.to_string(),
                    &reason.to_string(),
                    &message,
                );
                return Ok(Outcome::Failed);
            }
        }
        info!(%label, "removed what nothing wants");
        self.note(
            EventType::Normal,
            &label.to_string(),
            "GarbageCollected",
            "removed what no object wants",
        );
        Ok(Outcome::Converged)
    }
}

fn emptied<O>(done: Convergence<O>) -> Result<Vec<String>, (Status, Reason, String)> {
    match done.result {
        Ok(_) => Ok(done.taken),
        Err(_) => Err(describe(&done.result)),
    }
}
