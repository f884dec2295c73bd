//! One stage: its loop with its events, its condition, the delay after conflicting writers, and storing the result.
//! Out of scope: the order of the stages; the desired state of each.

use std::borrow::Cow;
use std::future::Future;
use std::sync::{Mutex, PoisonError};

use tracing::debug;

use super::pending::Current;
use super::{Engine, GROUND_SLOW, Key, SLOW};
use crate::api::condition::{Reason, Status};
use crate::api::event::EventType;
use crate::api::lease::{Address, Lease};
use crate::api::meta::{Name, Uid};
use crate::api::network::{Connection, Mode};
use crate::api::rung::{LADDER, Rung};
use crate::api::vm::{Hypervisor, Vm};
use crate::clock;
use crate::host;
use crate::host::rule::Generation;
use crate::reconcile::net::cni::CheckMode;
use crate::reconcile::{Conflict, Convergence, Error, Program, Reconcile, Wait, converge};
use crate::runtime::queue::Outcome;
use crate::store::{self, Change, Durable, Gate, Txn};

/// What a pass over the stages does with a stage: converges it (bring-up, teardown) or computes its plan (preview).
pub(super) trait Meet: Send {
    /// Why the pass ends here.
    type Stop: Send;

    /// Handles one stage and returns its observed state.
    fn meet<R: Reconcile>(
        &mut self,
        rung: Rung,
        reconciler: &R,
        desired: &R::Desired,
    ) -> impl Future<Output = Result<R::Observed, Self::Stop>> + Send;
}

/// A pass from the first stage to the last, in which the result of each stage is stored (bring-up) or evaluated (preview).
pub(super) trait Ascent: Meet {
    /// Whether CNI plugins are called with CHECK.
    fn checking(&self) -> CheckMode;

    /// Called when a stage is Ready, before the next one is handled.
    fn ready(
        &mut self,
        rung: Rung,
        ready: Ready,
    ) -> impl Future<Output = Result<(), Self::Stop>> + Send;
}

/// The result of a stage that is Ready.
#[derive(Default)]
pub(super) struct Ready {
    /// The new checkpoint. None: the stored one is kept.
    pub(super) mark: Option<String>,
    /// The message of the stage's condition.
    pub(super) message: Cow<'static, str>,
    /// The address that CNI plugins assigned, to be stored as the VM's lease.
    pub(super) address: Option<Address>,
    /// The generation of an isolated VM's rules that was verified.
    pub(super) rules: Option<Generation>,
}

impl Ready {
    pub(super) fn marked(mark: String) -> Self {
        Self {
            mark: Some(mark),
            ..Self::default()
        }
    }

    pub(super) fn connected(connection: &Connection) -> Self {
        Self {
            mark: serde_json::to_string(connection).ok(),
            ..Self::default()
        }
    }
}

/// The bring-up of a VM.
pub(super) struct Climbing<'a> {
    pub(super) engine: &'a Engine,
    pub(super) vm: &'a Vm,
    /// Completes when the transaction that acquired the next stage is on disk.
    pub(super) taken: Durable,
    /// The message about a conflicting writer that reverts repairs of the Net stage. The stage continues to repair.
    pub(super) contested: Option<String>,
}

/// A stage whose acquisition may not be on disk yet: it is observed meanwhile, and changed only when the acquisition is on disk.
struct Taken<'a, R> {
    rung: &'a R,
    durable: Mutex<Durable>,
    /// Records the action in progress, for the condition.
    current: Option<&'a Current>,
}

impl<R: Reconcile> Reconcile for Taken<'_, R> {
    type Desired = R::Desired;
    type Observed = R::Observed;
    type Action = R::Action;

    fn plan(desired: &R::Desired, observed: &R::Observed) -> Result<Vec<R::Action>, Conflict> {
        R::plan(desired, observed)
    }

    fn waits(action: &R::Action) -> Option<Wait> {
        R::waits(action)
    }

    fn program(&self, action: &R::Action) -> Option<Program> {
        self.rung.program(action)
    }

    async fn observe(&self, desired: &R::Desired) -> Result<R::Observed, host::Error> {
        self.rung.observe(desired).await
    }

    async fn act(&self, desired: &R::Desired, action: &R::Action) -> Result<(), host::Error> {
        let durable =
            std::mem::take(&mut *self.durable.lock().unwrap_or_else(PoisonError::into_inner));
        let written = durable.wait().await;
        written.map_err(|error| host::Error::other("acquire", "the stage", error))?;
        let Some(current) = self.current else {
            return self.rung.act(desired, action).await;
        };
        current.begins(action.to_string(), self.rung.program(action));
        let done = self.rung.act(desired, action).await;
        current.ends();
        done
    }
}

/// Why a bring-up ends before the last stage is Ready.
pub(super) enum Stop {
    /// The stage is not Ready; its condition contains the reason.
    Outcome(Outcome),
    /// The store failed.
    Store(store::Error),
}

impl From<store::Error> for Stop {
    fn from(error: store::Error) -> Self {
        Self::Store(error)
    }
}

impl Meet for Climbing<'_> {
    type Stop = Stop;

    /// Converges a stage, records its events and, if it failed, its condition.
    async fn meet<R: Reconcile>(
        &mut self,
        rung: Rung,
        reconciler: &R,
        desired: &R::Desired,
    ) -> Result<R::Observed, Stop> {
        let (engine, vm) = (self.engine, self.vm);
        let was_ready = engine.store.read(|world| {
            let page = world.page(vm.meta.uid, rung);
            page.is_some_and(|page| {
                let contested = page.condition.reason == Reason::Contested;
                contested || page.condition.is_settled_at(vm.meta.generation)
            })
        });
        let current = Current::default();
        let reconciler = Taken {
            current: Some(&current),
            rung: reconciler,
            durable: Mutex::new(std::mem::take(&mut self.taken)),
        };
        let about = about(vm.meta.uid, &vm.meta.name);
        // On the heap: a future contains the futures that it awaits, and would be moved with all of them.
        let work = Box::pin(engine.converge(&reconciler, desired, &about));
        let Convergence { taken, result } = engine.told_of(vm, rung, &current, work).await;
        // If no step has waited for the disk, the next stage does.
        self.taken = reconciler
            .durable
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner);
        let object = format!("vm/{}", vm.meta.name);
        if !taken.is_empty() {
            debug!(vm = %vm.meta.name, %rung, ?taken, "acted");
        }
        // Also in the Net stage: when forwarding is disabled, the kernel enables `accept_redirects` (`inet_forward_change`).
        let was_shut = engine.enforcement.is_shut(vm.meta.uid);
        if rung == Rung::Firewall && result.is_ok() {
            engine.enforcement.forget(vm.meta.uid);
        }
        if was_ready && !was_shut && !taken.is_empty() {
            self.tell_of_drift(rung, &object, &taken).await?;
        }
        let Err(error) = &result else {
            return result.map_err(|_| Stop::Outcome(Outcome::Failed));
        };
        let found = describe(&result);
        let awaited = engine.awaits(Key::Vm(vm.meta.uid), vm.meta.uid, error);
        match (&awaited, error) {
            (None, _) => engine.note(EventType::Warning, &object, &found.1.to_string(), &found.2),
            // The VM is run again at once, and that run sets the condition.
            (
                Some(outcome),
                Error::Waits {
                    wait: Wait::Judgement,
                    ..
                },
            ) => {
                return Err(Stop::Outcome(*outcome));
            }
            (Some(_), _) => {}
        }
        engine.set_condition(vm, rung, found).await?;
        // No event may report that the foreign object is gone, so the VM is run again after a fixed delay.
        let in_the_way = matches!(error, Error::Conflict(_)) && rung == Rung::Net;
        let otherwise = match in_the_way {
            true => Outcome::After(GROUND_SLOW),
            // A change of the configuration file or of the VM's spec enqueues the VM. Until then it fails in the same way.
            false if error.waits_for_a_change() => Outcome::Converged,
            false => Outcome::Failed,
        };
        Err(Stop::Outcome(awaited.unwrap_or(otherwise)))
    }
}

impl Climbing<'_> {
    /// Records a drift event. Ends the bring-up if a conflicting writer reverts the repairs.
    async fn tell_of_drift(
        &mut self,
        rung: Rung,
        object: &str,
        taken: &[String],
    ) -> Result<(), Stop> {
        let (engine, vm) = (self.engine, self.vm);
        let steps = taken.join("; ");
        let message = format!("{rung} differed from the desired state; restored: {steps}");
        engine.note(EventType::Warning, object, "Drift", &message);
        let Some(count) = engine.contests.count(vm.meta.uid, rung, clock::monotonic()) else {
            return Ok(());
        };
        let (reason, message) = match rung {
            Rung::Vmm => (
                Reason::CrashLoop,
                format!("failed {count} times in a minute: {steps}"),
            ),
            Rung::Lease | Rung::Net | Rung::Firewall => (
                Reason::Contested,
                format!(
                    "repaired {count} times in a minute: a conflicting writer reverts: {steps}"
                ),
            ),
        };
        engine.note(EventType::Warning, object, &reason.to_string(), &message);
        if rung == Rung::Net && vm.spec.network.mode() != Mode::Cni {
            // Repairs by netlink messages are cheap, so they continue at the rate of event batches, and few packets are lost.
            self.contested = Some(message);
            return Ok(());
        }
        if rung == Rung::Firewall {
            // The rules are not repaired during the delay, so they are not known to be in place.
            engine.shut(vm).await;
        }
        let found = (Status::False, reason, message);
        engine.set_condition(vm, rung, found).await?;
        Err(Stop::Outcome(Outcome::Shun(SLOW)))
    }
}

impl Ascent for Climbing<'_> {
    fn checking(&self) -> CheckMode {
        self.engine.checking(self.vm.meta.uid)
    }

    async fn ready(&mut self, rung: Rung, ready: Ready) -> Result<(), Stop> {
        let (engine, vm) = (self.engine, self.vm);
        if rung == Rung::Net {
            let count = engine.contests.lasts(vm.meta.uid, rung, clock::monotonic());
            let lasting = count.map(|count| {
                format!(
                    "repaired {count} times in a minute: a conflicting writer reverts the repairs"
                )
            });
            self.contested = self.contested.take().or(lasting);
            let next_is_held = engine.store.read(|world| {
                let page = world.page(vm.meta.uid, Rung::Firewall);
                page.is_some_and(|page| page.held)
            });
            if let Some(message) = self.contested.clone().filter(|_| next_is_held) {
                let found = (Status::False, Reason::Contested, message);
                return Ok(engine.set_condition(vm, rung, found).await?);
            }
        }
        // The host's rules were lost while forwarding was being enabled for this VM.
        if rung == Rung::Firewall && self.engine.enforcement.is_lost() {
            self.engine.shut(self.vm).await;
        }
        if let Some(generation) = ready.rules {
            self.engine.seen_rules.note(self.vm.meta.uid, generation);
        }
        let (open, taken) = self.engine.ready_and_take(self.vm, rung, ready)?;
        self.taken = std::mem::take(&mut self.taken).followed_by(taken);
        match open {
            true => Ok(()),
            // The VM was changed or deleted meanwhile, or the host network does not meet its requirements yet.
            false => Err(Stop::Outcome(Outcome::Converged)),
        }
    }
}

impl Engine {
    /// Runs the loop and counts its steps. No step is carried out before the changes of the objects in `about` are on disk: the desired
    /// state was read from memory, and another task may have changed it just before.
    pub(super) async fn converge<R: Reconcile>(
        &self,
        reconciler: &R,
        desired: &R::Desired,
        about: &[Change],
    ) -> Convergence<R::Observed> {
        let reconciler = Taken {
            rung: reconciler,
            durable: Mutex::new(self.store.durable(about)),
            current: None,
        };
        let done = converge(&reconciler, desired, &self.probe).await;
        let taken = u64::try_from(done.taken.len()).unwrap_or(u64::MAX);
        self.steps
            .fetch_add(taken, std::sync::atomic::Ordering::Relaxed);
        done
    }

    /// Stores that a stage is Ready and acquires the next one, in one transaction. False: the next one cannot be acquired.
    fn ready_and_take(
        &self,
        vm: &Vm,
        rung: Rung,
        ready: Ready,
    ) -> Result<(bool, Durable), store::Error> {
        let now = clock::now();
        let (uid, generation) = (vm.meta.uid, vm.meta.generation);
        let next = LADDER.into_iter().find(|next| *next > rung);
        let change = |txn: &mut Txn<'_>| {
            let found = (Status::True, Reason::Converged, ready.message.into_owned());
            txn.set_condition(uid, rung, found, generation, now)?;
            if ready.mark.is_some() {
                txn.set_mark(uid, rung, ready.mark)?;
            }
            let lease = txn.world().lease(&vm.meta.name);
            let noted = lease.map(|lease| lease.address.clone());
            if let Some(address) = ready.address.filter(|given| noted.as_ref() != Some(given)) {
                txn.put_lease(Lease {
                    name: vm.meta.name.clone(),
                    group: vm.group.clone(),
                    address,
                    since: now,
                })?;
            }
            let Some(next) = next else {
                return Ok(true);
            };
            Ok(match txn.take_rung(uid, next, now)? {
                Gate::Open(now) => now.meta.generation == generation,
                Gate::Closed(_) => {
                    self.turn_away(uid);
                    false
                }
                Gate::Gone => false,
            })
        };
        let nothing_to_run =
            vm.spec.hypervisor == Hypervisor::None && vm.spec.storage.image.is_none();
        match next {
            Some(rung) if rung < Rung::Vmm || !nothing_to_run => {
                self.store.begin_about(&about(uid, &vm.meta.name), change)
            }
            // No change of the host follows.
            Some(_) | None => {
                let open = self.store.write_behind(change)?;
                Ok((open, Durable::default()))
            }
        }
    }
}

/// The stored objects that a VM's desired state is computed from.
pub(super) fn about(uid: Uid, name: &Name) -> [Change; 3] {
    [
        Change::Vm(uid),
        Change::Page(uid),
        Change::Lease(name.clone()),
    ]
}

/// The condition for the result of a loop.
pub(super) fn describe<O>(result: &Result<O, Error>) -> (Status, Reason, String) {
    match result {
        Ok(_) => (Status::True, Reason::Converged, String::new()),
        Err(error) => {
            let (status, reason) = match error {
                Error::Conflict(Conflict { .. }) => (Status::False, Reason::Conflict),
                Error::Observe(_) => (Status::Unknown, Reason::ObserveFailed),
                Error::Act { .. } if error.waits_for_a_change() => (Status::False, Reason::Invalid),
                Error::Act { .. } => (Status::False, Reason::ActionFailed),
                Error::NotConverging(_) => (Status::False, Reason::NotConverging),
                Error::Waits { .. } => {
                    let message = "waiting for the guest to power down".to_owned();
                    return (Status::False, Reason::Stopping, message);
                }
            };
            (status, reason, error.to_string())
        }
    }
}
