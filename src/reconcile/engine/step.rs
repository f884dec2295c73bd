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
use crate::reconcile::net::cni::Checking;
use crate::reconcile::{Conflict, Convergence, Error, Program, Reconcile, Wait, converge};
use crate::runtime::queue::Outcome;
use crate::store::{self, Change, Durable, Gate, Txn};

/// How what is wanted of a rung is met: on the way up, on the way down, or by telling what would be done.
pub(super) trait Meet: Send {
    /// Why it goes no further.
    type Stop: Send;

    /// As it is once it is met.
    fn meet<R: Reconcile>(
        &mut self,
        rung: Rung,
        reconciler: &R,
        desired: &R::Desired,
    ) -> impl Future<Output = Result<R::Observed, Self::Stop>> + Send;
}

/// The way up, where a rung is written down once it is met.
pub(super) trait Ascent: Meet {
    /// How plugins are looked at.
    fn checking(&self) -> Checking;

    /// A rung is Ready, and the next one can be taken.
    fn ready(
        &mut self,
        rung: Rung,
        ready: Ready,
    ) -> impl Future<Output = Result<(), Self::Stop>> + Send;
}

/// What is to be remembered of a rung that is Ready.
#[derive(Default)]
pub(super) struct Ready {
    /// For its page; none: what is there stays.
    pub(super) mark: Option<String>,
    /// For its condition.
    pub(super) message: Cow<'static, str>,
    /// What plugins gave, to be noted as the VM's lease.
    pub(super) address: Option<Address>,
    /// Which rules of an isolated VM were found right.
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

/// A VM on its way up.
pub(super) struct Climbing<'a> {
    pub(super) engine: &'a Engine,
    pub(super) vm: &'a Vm,
    /// Of the transaction that took the next rung.
    pub(super) taken: Durable,
    /// Somebody keeps undoing what the Net stage does, which goes on nevertheless.
    pub(super) contested: Option<String>,
}

/// A stage whose intent was written a moment ago: it is observed while the disk works, and changed when the disk has it.
struct Taken<'a, R> {
    rung: &'a R,
    durable: Mutex<Durable>,
    /// Where the action under way is noted, for its condition.
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
        written.map_err(|error| host::Error::other("take", "the rung", error))?;
        let Some(current) = self.current else {
            return self.rung.act(desired, action).await;
        };
        current.begins(action.to_string(), self.rung.program(action));
        let done = self.rung.act(desired, action).await;
        current.ends();
        done
    }
}

/// Why a VM comes no further up now.
pub(super) enum Stop {
    /// The condition says it.
    Outcome(Outcome),
    /// It could not be written down.
    Store(store::Error),
}

impl From<store::Error> for Stop {
    fn from(error: store::Error) -> Self {
        Self::Store(error)
    }
}

impl Meet for Climbing<'_> {
    type Stop = Stop;

    /// A rung's loop, its events and, if it failed, its condition.
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
        // On the heap: futures that hold each other by value grow, and are moved, with each that is put around.
        let work = Box::pin(engine.converge(&reconciler, desired, &about));
        let Convergence { taken, result } = engine.told_of(vm, rung, &current, work).await;
        // What no step waited for, the next one waits for.
        self.taken = reconciler
            .durable
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner);
        let object = format!("vm/{}", vm.meta.name);
        if !taken.is_empty() {
            debug!(vm = %vm.meta.name, %rung, ?taken, "acted");
        }
        // Of the Net stage, too: to disable forwarding is to enable `accept_redirects` (`inet_forward_change`).
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
            // It is looked at again at once, and what is said of it then is meant.
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
        // What is in the way goes by itself, and that is an event.
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
    /// Stops if a conflicting writer keeps reverting the repairs.
    async fn tell_of_drift(
        &mut self,
        rung: Rung,
        object: &str,
        taken: &[String],
    ) -> Result<(), Stop> {
        let (engine, vm) = (self.engine, self.vm);
        let steps = taken.join("; ");
        let message = format!("{rung} repaired: {steps}");
        engine.note(EventType::Warning, object, "Drift", &message);
        let Some(count) = engine.contests.count(vm.meta.uid, rung, clock::monotonic()) else {
            return Ok(());
        };
        let (reason, message) = match rung {
            Rung::Vmm => (
                Reason::CrashLoop,
                format!("{count} times in a minute: {steps}"),
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
            // Netlink messages: cheap enough to go on with as often as events are gathered, so that few packets are lost.
            self.contested = Some(message);
            return Ok(());
        }
        if rung == Rung::Firewall {
            // The rules are left alone for a while, so they are not known to be in place.
            engine.shut(vm).await;
        }
        let found = (Status::False, reason, message);
        engine.set_condition(vm, rung, found).await?;
        Err(Stop::Outcome(Outcome::Shun(SLOW)))
    }
}

impl Ascent for Climbing<'_> {
    fn checking(&self) -> Checking {
        self.engine.checking(self.vm.meta.uid)
    }

    async fn ready(&mut self, rung: Rung, ready: Ready) -> Result<(), Stop> {
        let (engine, vm) = (self.engine, self.vm);
        if rung == Rung::Net {
            let count = engine.contests.lasts(vm.meta.uid, rung, clock::monotonic());
            let lasting = count.map(|count| {
                format!("repaired {count} times in a minute: a conflicting writer reverts it")
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
        // The host's rules were lost while this VM's forwarding was being opened.
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
            // It was changed or deleted meanwhile, or the ground must be laid first.
            false => Err(Stop::Outcome(Outcome::Converged)),
        }
    }
}

impl Engine {
    /// The loop, with its steps counted. No step is taken before what `about` says was changed is on the disk: what is desired was
    /// read from memory, and another task may have written it a moment ago.
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

    /// Writes that a rung is Ready and takes the next one, in one transaction. False: the next one cannot be taken.
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
            // The host will not be touched.
            Some(_) | None => {
                let open = self.store.write_behind(change)?;
                Ok((open, Durable::default()))
            }
        }
    }
}

/// What a VM's desired state is read from.
pub(super) fn about(uid: Uid, name: &Name) -> [Change; 3] {
    [
        Change::Vm(uid),
        Change::Page(uid),
        Change::Lease(name.clone()),
    ]
}

/// An ended loop as a condition.
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
                    let message = "the guest was asked to power down".to_owned();
                    return (Status::False, Reason::Stopping, message);
                }
            };
            (status, reason, error.to_string())
        }
    }
}
