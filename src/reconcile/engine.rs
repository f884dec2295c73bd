//! What is done for a key: the ground, a group, a VM up or down its ladder, a stray that no object wants.
//! Not here: when ([`crate::runtime`]).
//!
//! # Why
//! A VM is one key, not one key a rung: its rungs depend on each other, so their runs would only wait for one another, and
//! a run that climbs the whole ladder enters the VM's namespace once. Each rung still has its own plan, its own page, and
//! is taken in its own transaction.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tracing::{debug, info, warn};

use super::contest::Contests;
use super::firewall::Firewall;
use super::fold::ProcessMark;
use super::ground::Ground;
use super::group::{self, Claims, HostUse, Progress};
use super::net::Net;
use super::processes::Processes;
use super::record::Record;
use super::{Conflict, Convergence, Error, Probe, Reconcile, converge, firewall, ground, net};
use crate::api::condition::{Condition, Reason, Status};
use crate::api::event::EventType;
use crate::api::meta::{Name, Timestamp, Uid};
use crate::api::network::{Block, NetworkSpec};
use crate::api::rung::{LADDER, Rung};
use crate::api::vm::Vm;
use crate::clock;
use crate::host::iptables::Backend;
use crate::host::netlink::Handle;
use crate::host::netns::Netns;
use crate::host::process::Identity;
use crate::owner::{self, Instance, Label, RunDir};
use crate::runtime::controller::Waker;
use crate::runtime::queue::Outcome;
use crate::store::{self, Gate, LeaseError, Store, Txn};

/// What can be looked at.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Key {
    /// The host's own rules.
    Ground,
    /// A group.
    Group(Name),
    /// A VM.
    Vm(Uid),
    /// Something on the host with our label on it that no object wants.
    Stray(Label),
}

/// The host, as far as the engine needs it.
#[derive(Clone)]
pub struct HostHands {
    /// The namespace that the daemon was started in.
    pub home: Netns,
    /// A socket in it.
    pub netlink: Handle,
    /// Which kernel interface the host's iptables speaks.
    pub backend: Backend,
    /// `/proc/sys/kernel/random/boot_id`.
    pub boot_id: String,
}

/// What an engine is made of.
pub struct Engine {
    /// Whose things.
    pub instance: Instance,
    /// Where what lives as long as the host is up is kept.
    pub run_dir: RunDir,
    /// What is remembered.
    pub store: Store,
    /// The host.
    pub hands: HostHands,
    /// The VMMs.
    pub processes: Processes,
    /// Ranges claimed on this host.
    pub claims: Claims,
    /// Wakes keys.
    pub waker: Waker<Key>,
    /// Asked before each step.
    pub probe: Probe,
    /// Who keeps wanting the opposite.
    pub contests: Contests,
    /// Why a group has no VMs yet.
    pub troubles: std::sync::Mutex<HashMap<Name, String>>,
    /// Steps taken on the host so far.
    pub steps: std::sync::atomic::AtomicU64,
    /// Groups that wait for one of their VMs.
    pub waiting: std::sync::Mutex<std::collections::HashSet<Name>>,
}

/// Looks again at what cannot be helped by trying harder.
const SLOW: Duration = Duration::from_secs(30);

/// What a rung's loop came to.
enum Step<O> {
    /// The plan is empty.
    Ready(O),
    /// It is not; the condition says why.
    Not(Outcome),
}

impl Engine {
    /// One run for one key.
    pub async fn run(self: Arc<Self>, key: Key, failures: u32) -> Outcome {
        let outcome = match &key {
            Key::Ground => self.run_ground().await,
            Key::Group(name) => self.run_group(name).await,
            Key::Vm(uid) => self.run_vm(*uid, failures).await,
            Key::Stray(label) => self.run_stray(label).await,
        };
        outcome.unwrap_or_else(|error| {
            warn!(?key, %error, "cannot remember what was done");
            Outcome::Failed
        })
    }

    /// Every key that an object stands for: something may have happened anywhere.
    pub fn nudge_everything(&self) {
        let keys: Vec<Key> = self.store.read(|world| {
            let groups = world.groups().map(|group| Key::Group(group.meta.name.clone()));
            let vms = world.vms().map(|vm| Key::Vm(vm.meta.uid));
            [Key::Ground].into_iter().chain(groups).chain(vms).collect()
        });
        for key in keys {
            self.waker.nudge(key);
        }
    }

    /// Every VM is Ready, every group has the VMs it wants, and the ground is firm.
    pub fn all_ready(&self) -> bool {
        self.store.read(|world| {
            let firm = world.ground().is_some_and(|ground| {
                ground.condition.status == Status::True && ground.carries == world.footing()
            });
            firm && world.vms().all(|vm| world.is_ready(vm))
                && world.groups().all(|group| {
                    let vms = world.vms_of(&group.meta.name).count();
                    !group.meta.deleting && vms == group.spec.count as usize
                })
        })
    }

    async fn run_ground(&self) -> Result<Outcome, store::Error> {
        let footing = self.store.read(store::World::footing);
        let desired = ground::Desired {
            instance: self.instance.clone(),
            footing: footing.clone(),
        };
        let before = self.store.read(|world| world.ground().cloned());
        let done = self.converge(&self.ground(), &desired).await;
        let (status, reason, message) = describe(&done.result);
        let was_firm = before
            .as_ref()
            .is_some_and(|g| g.condition.status == Status::True && g.carries == footing);
        if was_firm && !done.taken.is_empty() {
            let message = format!("repaired: {}", done.taken.join("; "));
            self.note(EventType::Warning, "ground", "Drift", &message);
        }
        if status == Status::False {
            self.note(EventType::Warning, "ground", &reason.to_string(), &message);
        }
        let now = clock::now();
        let since = before
            .as_ref()
            .filter(|g| g.condition.status == status)
            .map_or(now, |g| g.condition.since);
        let page = store::Ground {
            condition: Condition {
                status,
                reason,
                message,
                since,
                observed_generation: 0,
            },
            carries: footing.clone(),
            boot_id: self.hands.boot_id.clone(),
        };
        let firm = status == Status::True;
        self.write(|txn| txn.put_ground(page)).await?;
        if firm && !was_firm {
            self.nudge_waiting_vms();
        }
        Ok(match firm {
            true => Outcome::Converged,
            false => Outcome::Failed,
        })
    }

    fn nudge_waiting_vms(&self) {
        let waiting: Vec<Uid> = self.store.read(|world| {
            let waits = |vm: &&Vm| {
                let net = world.page(vm.meta.uid, Rung::Net);
                !net.is_some_and(|page| page.condition.is_true_at(vm.meta.generation))
            };
            world.vms().filter(waits).map(|vm| vm.meta.uid).collect()
        });
        for uid in waiting {
            self.waker.nudge(Key::Vm(uid));
        }
    }

    async fn run_group(&self, name: &Name) -> Result<Outcome, store::Error> {
        let host_use = HostUse {
            netlink: &self.hands.netlink,
            instance: &self.instance,
        };
        let done = group::reconcile(&self.store, &self.claims, &host_use, name, clock::now()).await;
        let mut waiting = self.waiting.lock().unwrap_or_else(|p| p.into_inner());
        let mut troubles = self.troubles.lock().unwrap_or_else(|p| p.into_inner());
        troubles.remove(name);
        match done {
            Ok(Progress::Done) => {
                waiting.remove(name);
                Ok(Outcome::Converged)
            }
            Ok(Progress::Waiting) => {
                waiting.insert(name.clone());
                Ok(Outcome::Converged)
            }
            Err(group::Error::Store(error)) => Err(error),
            Err(error) => {
                let object = format!("hostgroup/{name}");
                self.note(
                    EventType::Warning,
                    &object,
                    "RangeUnavailable",
                    &error.to_string(),
                );
                troubles.insert(name.clone(), error.to_string());
                Ok(Outcome::Failed)
            }
        }
    }

    async fn run_vm(&self, uid: Uid, failures: u32) -> Result<Outcome, store::Error> {
        let Some(vm) = self.store.read(|world| world.vm(uid).cloned()) else {
            self.contests.forget(uid);
            return Ok(Outcome::Converged);
        };
        let was_ready = self.store.read(|world| world.is_ready(&vm));
        let outcome = match vm.meta.deleting {
            true => self.descend(&vm).await?,
            false => self.climb(&vm, failures).await?,
        };
        let (gone, ready) = self.store.read(|world| match world.vm(uid) {
            None => (true, false),
            Some(vm) => (false, world.is_ready(vm)),
        });
        if ready && !was_ready {
            debug!(vm = %vm.meta.name, "ready");
            let object = format!("vm/{}", vm.meta.name);
            self.note(EventType::Normal, &object, "Ready", "every rung is Ready");
        }
        if (gone || ready != was_ready) && self.group_waits(&vm.group) {
            self.waker.nudge(Key::Group(vm.group.clone()));
        }
        Ok(outcome)
    }

    fn group_waits(&self, group: &Name) -> bool {
        let waiting = self.waiting.lock().unwrap_or_else(|p| p.into_inner());
        waiting.contains(group)
    }

    /// Up: each rung is taken, converged, written down together with the taking of the next.
    async fn climb(&self, vm: &Vm, failures: u32) -> Result<Outcome, store::Error> {
        let uid = vm.meta.uid;
        let (vm, lease) = match self.take_lease(uid).await? {
            Ok(taken) => taken,
            Err(outcome) => return Ok(outcome),
        };
        let label = self.instance.vm_label(&vm.meta.name, uid);
        let hands = self.net();
        let desired = net::Desired {
            label: label.clone(),
            run_dir: self.run_dir.0.clone(),
            slot: Some(self.slot(&vm, &lease)),
        };
        match self.step(&vm, Rung::Net, &hands, &desired).await? {
            Step::Ready(_) => {}
            Step::Not(outcome) => return Ok(outcome),
        }
        if !self.ready_and_take(&vm, Rung::Net, None).await? {
            return Ok(Outcome::Converged);
        }
        let judged = self.store.read(|world| {
            let page = world.page(uid, Rung::Firewall);
            page.and_then(|page| page.mark.clone())
        });
        let rules = self.rules(&vm, lease.block, judged);
        let digest = rules.digest.clone();
        let desired = firewall::Desired {
            netns: desired.netns(),
            lock: self.run_dir.vm_dir(uid).join(net::LOCK),
            rules: Some(rules),
        };
        match self
            .step(&vm, Rung::Firewall, &self.firewall(), &desired)
            .await?
        {
            Step::Ready(_) => {}
            Step::Not(outcome) => return Ok(outcome),
        }
        if !self
            .ready_and_take(&vm, Rung::Firewall, Some(digest))
            .await?
        {
            return Ok(Outcome::Converged);
        }
        self.run_process(&vm, &lease, failures).await
    }

    /// Both transactions of the lease rung in one: its world is the store itself.
    async fn take_lease(
        &self,
        uid: Uid,
    ) -> Result<Result<(Vm, crate::api::lease::Lease), Outcome>, store::Error> {
        let now = clock::now();
        self.write(|txn| {
            let vm = match txn.take_rung(uid, Rung::Lease, now)? {
                Gate::Open(vm) => *vm,
                Gate::Closed(_) | Gate::Gone => return Ok(Err(Outcome::Converged)),
            };
            let generation = vm.meta.generation;
            let lease = match txn.lease_block(&vm, now) {
                Ok(lease) => lease,
                Err(LeaseError::Store(error)) => return Err(error),
                Err(error @ (LeaseError::Exhausted(_) | LeaseError::NoPool)) => {
                    let reason = match error {
                        LeaseError::Exhausted(_) => Reason::RangeExhausted,
                        LeaseError::NoPool | LeaseError::Store(_) => Reason::Waiting,
                    };
                    let found = (Status::False, reason, error.to_string());
                    txn.set_condition(uid, Rung::Lease, found, generation, now)?;
                    return Ok(Err(Outcome::After(SLOW)));
                }
            };
            let found = (Status::True, Reason::Converged, String::new());
            txn.set_condition(uid, Rung::Lease, found, generation, now)?;
            match txn.take_rung(uid, Rung::Net, now)? {
                Gate::Open(vm) => Ok(Ok((*vm, lease))),
                Gate::Closed(_) | Gate::Gone => Ok(Err(Outcome::Converged)),
            }
        })
        .await
    }

    /// Writes that a rung is Ready and takes the next one, in one transaction. False: the next one cannot be taken.
    async fn ready_and_take(
        &self,
        vm: &Vm,
        rung: Rung,
        mark: Option<String>,
    ) -> Result<bool, store::Error> {
        let now = clock::now();
        let (uid, generation) = (vm.meta.uid, vm.meta.generation);
        self.write(|txn| {
            let found = (Status::True, Reason::Converged, String::new());
            txn.set_condition(uid, rung, found, generation, now)?;
            if mark.is_some() {
                txn.set_mark(uid, rung, mark)?;
            }
            let Some(next) = LADDER.into_iter().find(|next| *next > rung) else {
                return Ok(true);
            };
            Ok(match txn.take_rung(uid, next, now)? {
                Gate::Open(now) => now.meta.generation == generation,
                Gate::Closed(_) | Gate::Gone => false,
            })
        })
        .await
    }

    /// The last rung. A VMM that ends again and again backs off with its key.
    async fn run_process(
        &self,
        vm: &Vm,
        lease: &crate::api::lease::Lease,
        failures: u32,
    ) -> Result<Outcome, store::Error> {
        let label = self.instance.vm_label(&vm.meta.name, vm.meta.uid);
        let (spec, name) = (&vm.spec, &vm.meta.name);
        let desired = match self
            .processes
            .desired(spec, name, &label, lease.block)
            .await
        {
            Ok(desired) => desired,
            Err(unfit) => {
                let found = (Status::False, Reason::Invalid, unfit);
                self.set_condition(vm, Rung::Vmm, found).await?;
                // Only a new spec, or a host that has changed, can help.
                return Ok(Outcome::After(SLOW));
            }
        };
        let observed = match self
            .step(vm, Rung::Vmm, &self.processes.rung, &desired)
            .await?
        {
            Step::Ready(observed) => observed,
            Step::Not(outcome) => return Ok(outcome),
        };
        debug!(vm = %vm.meta.name, failures, "process is as wanted");
        let mark = observed
            .process()
            .map(|identity| self.process_mark(vm.meta.uid, identity));
        self.ready_and_take(vm, Rung::Vmm, mark).await?;
        self.processes.watch(vm.meta.uid, observed.process());
        Ok(Outcome::Converged)
    }

    /// What the page is to remember; the moment of the start is kept while the process is the same.
    fn process_mark(&self, uid: Uid, identity: &Identity) -> String {
        let known = self.store.read(|world| {
            let mark = world.page(uid, Rung::Vmm)?.mark.clone()?;
            serde_json::from_str::<ProcessMark>(&mark).ok()
        });
        let mark = known
            .filter(|mark| mark.identity == *identity)
            .unwrap_or_else(|| ProcessMark {
                started_at: clock::ago(identity.age().unwrap_or_default()),
                identity: identity.clone(),
            });
        serde_json::to_string(&mark).unwrap_or_default()
    }

    /// Down: from the top, each rung's desired is nothing.
    async fn descend(&self, vm: &Vm) -> Result<Outcome, store::Error> {
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

    async fn take_down(&self, rung: Rung, label: &Label) -> Result<(), (Status, Reason, String)> {
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
    async fn run_stray(&self, label: &Label) -> Result<Outcome, store::Error> {
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

    /// The loop, with its steps counted.
    async fn converge<R: Reconcile>(
        &self,
        reconciler: &R,
        desired: &R::Desired,
    ) -> Convergence<R::Observed> {
        let done = converge(reconciler, desired, &self.probe).await;
        let taken = u64::try_from(done.taken.len()).unwrap_or(u64::MAX);
        self.steps
            .fetch_add(taken, std::sync::atomic::Ordering::Relaxed);
        done
    }

    /// A rung's loop, its events and, if it failed, its condition.
    async fn step<R: Reconcile>(
        &self,
        vm: &Vm,
        rung: Rung,
        reconciler: &R,
        desired: &R::Desired,
    ) -> Result<Step<R::Observed>, store::Error> {
        let was_ready = self.store.read(|world| {
            let page = world.page(vm.meta.uid, rung);
            page.is_some_and(|page| page.condition.is_true_at(vm.meta.generation))
        });
        let Convergence { taken, result } = self.converge(reconciler, desired).await;
        let object = format!("vm/{}", vm.meta.name);
        if !taken.is_empty() {
            debug!(vm = %vm.meta.name, %rung, ?taken, "acted");
        }
        if was_ready && !taken.is_empty() {
            let message = format!("{rung} repaired: {}", taken.join("; "));
            self.note(EventType::Warning, &object, "Drift", &message);
            if let Some(count) = self.contests.count(vm.meta.uid, rung, clock::monotonic()) {
                let steps = taken.join("; ");
                let (reason, message) = match rung {
                    Rung::Vmm => (Reason::CrashLoop, format!("{count} times in a minute: {steps}")),
                    Rung::Lease | Rung::Net | Rung::Firewall => (
                        Reason::Contested,
                        format!("repaired {count} times in a minute: somebody wants the opposite of: {steps}"),
                    ),
                };
                self.note(EventType::Warning, &object, &reason.to_string(), &message);
                self.set_condition(vm, rung, (Status::False, reason, message)).await?;
                return Ok(Step::Not(Outcome::Shun(SLOW)));
            }
        }
        match &result {
            Ok(_) => {}
            Err(_) => {
                let found = describe(&result);
                self.note(EventType::Warning, &object, &found.1.to_string(), &found.2);
                self.set_condition(vm, rung, found).await?;
            }
        }
        Ok(result.map_or(Step::Not(Outcome::Failed), Step::Ready))
    }

    async fn set_condition(
        &self,
        vm: &Vm,
        rung: Rung,
        found: (Status, Reason, String),
    ) -> Result<(), store::Error> {
        let now = clock::now();
        let (uid, generation) = (vm.meta.uid, vm.meta.generation);
        self.write(|txn| txn.set_condition(uid, rung, found, generation, now))
            .await
    }

    async fn write<T>(
        &self,
        change: impl FnOnce(&mut Txn<'_>) -> Result<T, store::Error>,
    ) -> Result<T, store::Error> {
        self.store.write(change).await
    }

    fn note(&self, kind: EventType, object: &str, reason: &str, message: &str) {
        let now: Timestamp = clock::now();
        self.store.events().note(now, kind, object, reason, message);
    }

    /// Hands for the ground.
    pub fn ground(&self) -> Ground {
        Ground {
            home: self.hands.home.clone(),
            backend: self.hands.backend.clone(),
        }
    }

    /// Hands for the Net rung, for one run.
    pub fn net(&self) -> Net {
        Net::new(self.hands.home.clone(), self.hands.netlink.clone())
    }

    /// Hands for the Firewall rung.
    pub fn firewall(&self) -> Firewall {
        Firewall {
            backend: self.hands.backend.clone(),
        }
    }

    /// The data path that a VM wants.
    pub fn slot(&self, vm: &Vm, lease: &crate::api::lease::Lease) -> net::Slot {
        let NetworkSpec::Isolated(isolated) = &vm.spec.network;
        let (origin, update) = self.store.read(|world| match world.group(&vm.group) {
            Some(group) => (group.origin.clone(), group.spec.update),
            None => (crate::api::host_group::Origin::Apply, Default::default()),
        });
        let record = Record {
            boot_id: self.hands.boot_id.clone(),
            origin,
            update,
            vm: vm.clone(),
            lease: lease.clone(),
        };
        net::Slot {
            block: lease.block,
            tap_owner: isolated.tap_owner,
            record: serde_json::to_string(&record).unwrap_or_default(),
        }
    }

    /// The rules that a VM wants.
    pub fn rules(&self, vm: &Vm, block: Block, judged: Option<String>) -> firewall::Rules {
        let policy = vm.spec.network.policy().clone();
        let guest_mac = owner::vm_names(&self.instance, vm.meta.uid).guest_mac;
        let ruleset = firewall::rules::compile(&policy, block, guest_mac);
        firewall::Rules {
            digest: firewall::rules::digest(&ruleset),
            ruleset,
            judged,
            policy,
            guest: block.guest(),
        }
    }
}

fn emptied<O>(done: Convergence<O>) -> Result<Vec<String>, (Status, Reason, String)> {
    match done.result {
        Ok(_) => Ok(done.taken),
        Err(_) => Err(describe(&done.result)),
    }
}

/// An ended loop as a condition.
fn describe<O>(result: &Result<O, Error>) -> (Status, Reason, String) {
    match result {
        Ok(_) => (Status::True, Reason::Converged, String::new()),
        Err(error) => {
            let (status, reason) = match error {
                Error::Conflict(Conflict { .. }) => (Status::False, Reason::Conflict),
                Error::Observe(_) => (Status::Unknown, Reason::ObserveFailed),
                Error::Act { .. } => (Status::False, Reason::ActionFailed),
                Error::NotConverging(_) => (Status::False, Reason::NotConverging),
            };
            (status, reason, error.to_string())
        }
    }
}
