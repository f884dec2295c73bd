//! The lifecycle of a VM's VMM: stores how it ended, applies the resulting power decision, and stops it.
//! Out of scope: the power decision ([`super::super::life`]); starting the VMM (`climb`).

use std::time::Duration;

use tracing::debug;

use super::step::{Climbing, Meet, Stop};
use super::{Engine, Key, SLOW};
use crate::api::condition::{Reason, Status};
use crate::api::event::EventType;
use crate::api::life::Grace;
use crate::api::meta::Uid;
use crate::api::rung::Rung;
use crate::api::vm::{Hypervisor, Power, Vm};
use crate::clock;
use crate::host::process::Identity;
use crate::owner::{self, Label};
use crate::reconcile::life::{self, End, ProcessMark, Started, Verdict};
use crate::reconcile::vmm::{self, Guest, Judged, Left};
use crate::reconcile::{Error, Wait};
use crate::runtime::queue::Outcome;
use crate::store::{self, Txn};

/// Number of lines of a VMM's log that are stored when it has ended.
const LAST_LINES: usize = 5;

impl Engine {
    /// The checkpoint of a VM's Vmm stage.
    pub(super) fn process_mark(&self, uid: Uid) -> ProcessMark {
        self.store
            .read(|world| ProcessMark::of(world.page(uid, Rung::Vmm)))
    }

    /// The power decision for a VM: run, stay stopped, or restart.
    pub(super) fn verdict(&self, vm: &Vm) -> Verdict {
        let verdict = self
            .process_mark(vm.meta.uid)
            .verdict(vm.power, vm.spec.life.restart);
        match (&verdict, vm.power) {
            // It was started, and the daemon ended before that was stored.
            (Verdict::Down(..), Power::Running | Power::Paused)
                if self.processes.runs(vm.meta.uid) =>
            {
                Verdict::Run
            }
            _ => verdict,
        }
    }

    /// Deletes the host's connection tracking entries of a guest that has ended, once for each stop. The VM's next run retries a failure;
    /// the number of remaining entries is bounded by the VM's limit.
    async fn forget_flows_at_rest(&self, vm: &Vm, verdict: &Verdict) {
        let uid = vm.meta.uid;
        let (address, noted) = self.store.read(|world| {
            let lease = world.lease(&vm.meta.name);
            let page = world.page(uid, Rung::Vmm);
            let noted = page.map(|page| (page.condition.status, page.condition.reason));
            (lease.map(|lease| lease.address.ip()), noted)
        });
        let is_noted = match verdict {
            Verdict::Down(reason, _) => noted == Some((Status::False, *reason)),
            Verdict::Again | Verdict::Run => false,
        };
        let Some(address) = address.filter(|_| !is_noted) else {
            return;
        };
        if let Err(stuck) = self.forget_flows(address).await {
            let (_, reason, message) = stuck.found;
            let object = format!("vm/{}", vm.meta.name);
            self.note(EventType::Warning, &object, &reason.to_string(), &message);
        }
    }

    /// The desired process of a VM that is stopped: none.
    pub(super) fn at_rest(&self, vm: &Vm) -> vmm::Desired {
        let label = self.instance.vm_label(&vm.meta.name, vm.meta.uid);
        let nothing = vmm::Desired {
            left: Left::Log,
            ..self.processes.nothing(&label)
        };
        self.living(vm, nothing)
    }

    /// Adds the grace period, the desired guest state and the last evaluated exit to a desired process.
    pub(super) fn living(&self, vm: &Vm, desired: vmm::Desired) -> vmm::Desired {
        let mark = self.process_mark(vm.meta.uid);
        let settled = self.store.read(|world| {
            let page = world.page(vm.meta.uid, Rung::Vmm);
            page.is_some_and(|page| page.condition.is_true_at(vm.meta.generation))
        });
        let guest = match vm.power {
            Power::Paused => Guest::Paused,
            // It may have been paused before.
            Power::Running if mark.process.is_some() && !settled => Guest::Running,
            Power::Running | Power::Stopped | Power::Restarting => Guest::Any,
        };
        vmm::Desired {
            grace: vm.spec.life.graceful_shutdown,
            guest,
            judged: Judged::Of(mark.last_end.map(|end| end.process)),
            ..desired
        }
    }

    /// Whether the deletion of a VM is forced.
    pub(super) fn is_forced(&self, uid: Uid) -> bool {
        self.store
            .read(|world| world.vm(uid).is_some_and(|vm| vm.meta.forced))
    }

    /// How long to wait for the guest of a VM that is deleted to power down.
    pub(super) fn grace(&self, uid: Uid) -> Grace {
        let life = self
            .store
            .read(|world| world.vm(uid).map(|vm| vm.spec.life.clone()));
        life.unwrap_or_default().graceful_shutdown
    }

    /// If the VMM has ended and this is not stored yet, stores how it ended, before any action that depends on it. Returns a message if
    /// the VMM failed at startup: it ended by itself before it was observed to run.
    pub(super) async fn note_end(&self, vm: &Vm) -> Result<Option<String>, store::Error> {
        if vm.spec.hypervisor == Hypervisor::None {
            return Ok(None);
        }
        let uid = vm.meta.uid;
        let label = self.instance.vm_label(&vm.meta.name, uid);
        let nothing = self.processes.nothing(&label);
        let mark = self.process_mark(uid);
        let known = mark.process.as_ref().map(|started| &started.identity);
        // If this cannot be observed, the stage cannot be observed either, and reports the error.
        let Ok(Some(ended)) = vmm::ended(&nothing, known) else {
            return Ok(None);
        };
        let noted = mark.last_end.as_ref().map(|end| &end.process);
        if noted == Some(&ended.process) {
            return Ok(None);
        }
        let stillborn = !ended.stopped && known != Some(&ended.process);
        let end = End {
            exit: ended.exit,
            at: clock::now(),
            why: life::why(vm.spec.hypervisor, ended.exit, ended.stopped),
            said: vmm::last_lines(&nothing.dir, LAST_LINES),
            answered: ended.stopped,
            process: ended.process,
        };
        debug!(vm = %vm.meta.name, exit = %end.exit, "VMM ended");
        let (words, exit) = (end.words(), end.exit);
        self.write(|txn| remember(txn, uid, |mark| mark.ended(end)))
            .await?;
        let kind = match (ended.stopped, exit) {
            (true, _) | (false, crate::host::process::Exit::Code(0)) => EventType::Normal,
            (false, _) => EventType::Warning,
        };
        self.note(kind, &format!("vm/{}", vm.meta.name), "Ended", &words);
        Ok(stillborn.then_some(words))
    }

    /// The checkpoint while this process runs. The start time is kept while the process is the same.
    pub(super) fn running_mark(&self, uid: Uid, identity: &Identity) -> Option<String> {
        let mut mark = self.process_mark(uid);
        mark.runs(Started {
            started_at: clock::ago(identity.age().unwrap_or_default()),
            identity: identity.clone(),
            confined_by: self.processes.confined_by(uid),
        });
        mark.text()
    }

    /// If a loop waits for a process, returns when to run the key again, and enqueues the key when the process has ended.
    pub(super) fn awaits(&self, key: Key, uid: Uid, error: &Error) -> Option<Outcome> {
        match error {
            Error::Waits { wait, .. } => Some(match wait {
                Wait::End(process, left) => {
                    self.processes.watch_for(key, uid, process);
                    Outcome::Awaits(*left)
                }
                Wait::Judgement => Outcome::Awaits(Duration::ZERO),
            }),
            Error::Conflict(_)
            | Error::Observe(_)
            | Error::Act { .. }
            | Error::NotConverging(_) => None,
        }
    }

    /// The key that manages the resources with this label.
    pub(super) fn key_of(&self, label: &Label) -> Key {
        let uid = owner::uid_of(label);
        match self.store.read(|world| world.vm(uid).is_some()) {
            true => Key::Vm(uid),
            false => Key::Stray(label.clone()),
        }
    }
}

impl Climbing<'_> {
    /// Handles a VMM that failed at startup: it is started again after a delay.
    pub(super) async fn stillborn(&mut self, words: String) -> Result<Outcome, Stop> {
        let (engine, vm) = (self.engine, self.vm);
        let count = engine
            .contests
            .count(vm.meta.uid, Rung::Vmm, clock::monotonic());
        let (reason, message, outcome) = match count {
            Some(count) => (
                Reason::CrashLoop,
                format!("failed {count} times in a minute: {words}"),
                Outcome::Shun(SLOW),
            ),
            None => (Reason::ActionFailed, words, Outcome::Failed),
        };
        let found = (Status::False, reason, message);
        engine.set_condition(vm, Rung::Vmm, found).await?;
        Ok(outcome)
    }

    /// Stops the VMM and keeps the other stages.
    pub(super) async fn rest(&mut self, verdict: Verdict) -> Result<Outcome, Stop> {
        let (engine, vm) = (self.engine, self.vm);
        let uid = vm.meta.uid;
        let desired = engine.at_rest(vm);
        self.meet(Rung::Vmm, &engine.processes.rung, &desired)
            .await?;
        engine.processes.watch(uid, None);
        engine.forget_flows_at_rest(vm, &verdict).await;
        let written = match verdict {
            Verdict::Down(reason, message) => {
                let found = (Status::False, reason, message);
                engine.set_condition(vm, Rung::Vmm, found).await
            }
            Verdict::Again | Verdict::Run => engine.write(|txn| run_again(txn, vm)).await,
        };
        written?;
        Ok(Outcome::Converged)
    }

    /// Reports that the VM is paused: its process runs and its vCPUs are stopped.
    pub(super) async fn held(&mut self, mark: Option<String>) -> Result<Outcome, Stop> {
        let (engine, vm) = (self.engine, self.vm);
        let (uid, generation, now) = (vm.meta.uid, vm.meta.generation, clock::now());
        let message = "paused by slicectl vm pause; continue it with slicectl vm resume";
        let found = (Status::False, Reason::Paused, message.to_owned());
        engine
            .write(|txn| {
                txn.set_condition(uid, Rung::Vmm, found, generation, now)?;
                match mark {
                    Some(mark) => txn.set_mark(uid, Rung::Vmm, Some(mark)),
                    None => Ok(()),
                }
            })
            .await?;
        Ok(Outcome::Converged)
    }
}

/// The VMM has stopped: turns the requested restart into a start, unless another request was stored meanwhile.
fn run_again(txn: &mut Txn<'_>, vm: &Vm) -> Result<(), store::Error> {
    let Some(mut now) = txn.world().vm(vm.meta.uid).cloned() else {
        return Ok(());
    };
    if now.meta.generation != vm.meta.generation {
        return Ok(());
    }
    now.power = Power::Running;
    now.meta.generation += 1;
    remember(txn, vm.meta.uid, ProcessMark::answer)?;
    txn.put_vm(now)
}

/// Changes the checkpoint of a VM's Vmm stage.
///
/// # Errors
/// [`store::Error::Write`].
pub fn remember(
    txn: &mut Txn<'_>,
    uid: Uid,
    change: impl FnOnce(&mut ProcessMark),
) -> Result<(), store::Error> {
    let mut mark = ProcessMark::of(txn.world().page(uid, Rung::Vmm));
    change(&mut mark);
    txn.set_mark(uid, Rung::Vmm, mark.text())
}
