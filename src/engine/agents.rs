//! Whether the agents of VMs answer, and their guests have what they are to get: the condition `Agent`. It is not stored, and no part of `Ready`.
//! Out of scope: requests to an agent ([`crate::guest`]); what a guest is to get ([`super::provision`]); showing it ([`crate::status`]).
//!
//! # When an agent is asked
//! After its VMM has started, with a growing delay until it answers, but not longer than [`GIVE_UP`]; when what its guest is to get has
//! changed; when its userdata has ended; and at each resync. Else nothing runs while it answers. A guest that is paused is not asked. The end
//! of the process that handles QEMU's vsock device is noticed at once.
//!
//! An agent reports the generation of what its guest has got, so a daemon that was restarted sends nothing that the guest has already.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{Notify, Semaphore};
use tokio_util::task::AbortOnDropHandle;

use super::Engine;
use super::provision::{self, Desired, Outcome};
use crate::api::condition::{Condition, Reason, Status};
use crate::api::event::ObjectRef;
use crate::api::guest_access::Agent;
use crate::api::meta::Uid;
use crate::api::secret::SecretName;
use crate::api::stage::Stage;
use crate::api::vm::{Hypervisor, Power, Vm};
use crate::clock;
use crate::guest::probe;
use crate::host::process::{self, Identity, ProcessState};
use crate::reconcile::checkpoint;
use crate::reconcile::vmm::{BackEndState, VmmPaths};
use crate::store::{Change, World};
use crate::vmm::{AGENT, VSOCK};

/// The shortest and the longest delay between requests to an agent that does not answer yet.
const SHORTEST_DELAY: Duration = Duration::from_millis(25);
const LONGEST_DELAY: Duration = Duration::from_secs(30);
/// A delay is this part of the time waited so far, so that the answer of an agent is noticed less than a tenth later than it could be.
const PART_OF_WAITED: u32 = 12;
/// How long after the start of its VMM an agent is asked. After that only a resync asks.
const GIVE_UP: Duration = Duration::from_secs(600);
/// The maximum number of agents that are asked at the same time.
const CONCURRENCY: usize = 32;
/// How long a VMM may take to end after the back end of its device.
const VMM_END: Duration = Duration::from_secs(2);

/// A QEMU with another device.
const OF_EARLIER_VERSION: &str = "its VMM was started by an earlier version of sliced, without a vsock device: guest access returns when the VM is restarted";

/// A guest that is not ready to be used, but can be repaired.
const IN_INITRD: &str = "it answers in the initrd: the guest has not found its root file system";

/// The known state of all agents.
pub struct Agents {
    vms: Mutex<HashMap<Uid, Entry>>,
    asking: Semaphore,
}

impl Default for Agents {
    fn default() -> Self {
        Self {
            vms: Mutex::default(),
            asking: Semaphore::new(CONCURRENCY),
        }
    }
}

struct Entry {
    target: Target,
    /// What the guest is to get, as far as it can change.
    desired: Desired,
    /// The agent is asked again.
    wake: Arc<Notify>,
    condition: Condition,
    _task: Option<AbortOnDropHandle<()>>,
}

/// What decides whether the agent of a VM is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Target {
    /// It has no guest access; the message says why.
    Disabled(&'static str),
    /// Its VMM does not run.
    NotRunning,
    /// It is paused.
    Paused(Identity),
    /// The agent is asked.
    Asked(Identity),
}

/// The delay until the next request, and `None` after [`GIVE_UP`].
fn next_delay(waited: Duration) -> Option<Duration> {
    let delay = (waited / PART_OF_WAITED).clamp(SHORTEST_DELAY, LONGEST_DELAY);
    (waited < GIVE_UP).then_some(delay)
}

impl Target {
    /// `None`: the VM has no such condition.
    fn of(world: &World, vm: &Vm) -> Option<Self> {
        let access = &vm.spec.guest_access;
        if vm.spec.hypervisor == Hypervisor::None || vm.meta.deleting {
            return None;
        }
        if !access.vsock {
            return Some(Self::Disabled("the VM has no vsock device: vsock is false"));
        }
        if access.agent == Agent::None {
            return Some(Self::Disabled("the image has no agent: agent is none"));
        }
        let process = checkpoint::vmm(world.status(vm.meta.uid, Stage::Vmm)).process;
        let Some(process) = process else {
            return Some(Self::NotRunning);
        };
        Some(match vm.power {
            Power::Paused => Self::Paused(process.identity),
            Power::Running | Power::Stopped | Power::Restarting => Self::Asked(process.identity),
        })
    }

    fn first_condition(&self) -> (Status, Reason, String) {
        match self {
            Self::Disabled(why) => (Status::False, Reason::Disabled, (*why).to_owned()),
            Self::NotRunning => (
                Status::False,
                Reason::NotAnswering,
                "the VM does not run".to_owned(),
            ),
            Self::Paused(_) => (
                Status::Unknown,
                Reason::Paused,
                "the VM is paused".to_owned(),
            ),
            Self::Asked(_) => (
                Status::Unknown,
                Reason::NotObserved,
                "not asked yet".to_owned(),
            ),
        }
    }
}

impl Agents {
    /// The condition of a VM; `None`: it has none.
    pub fn condition(&self, vm: &Vm) -> Option<Condition> {
        let vms = self.vms.lock();
        let condition = vms.get(&vm.meta.uid)?.condition.clone();
        Some(Condition {
            observed_generation: vm.meta.generation,
            ..condition
        })
    }

    /// Stores the condition, if it is of this process still. Returns whether it has changed.
    fn set(&self, uid: Uid, of: &Target, found: (Status, Reason, String)) -> bool {
        let mut vms = self.vms.lock();
        let Some(entry) = vms.get_mut(&uid).filter(|entry| entry.target == *of) else {
            return false;
        };
        let (status, reason, message) = found;
        let known = &entry.condition;
        if (known.status, known.reason, &known.message) == (status, reason, &message) {
            return false;
        }
        let since = match known.status == status {
            true => known.since,
            false => clock::now(),
        };
        entry.condition = Condition {
            status,
            reason,
            message,
            since,
            observed_generation: 0,
        };
        true
    }
}

/// Follows the VMs and asks their agents. Never returns.
pub async fn run(engine: Arc<Engine>, resync: Duration) {
    let mut changes = engine.store.watch();
    let mut ticks = tokio::time::interval(resync);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            change = changes.recv() => match change {
                Ok(Change::Vm(uid) | Change::StageStatus(uid)) => update(&engine, uid, Reask::No),
                Ok(
                    Change::Group(_)
                    | Change::Observed(_)
                    | Change::Agent(_)
                    | Change::View
                    | Change::Lease(_)
                    | Change::HostNetwork,
                ) => {}
                Ok(Change::Everything) | Err(RecvError::Lagged(_)) => update_all(&engine, Reask::No),
                Err(RecvError::Closed) => return,
            },
            // The first tick is immediate.
            _ = ticks.tick() => update_all(&engine, Reask::Yes),
        }
    }
}

/// Whether an agent is asked although nothing has changed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reask {
    Yes,
    No,
}

fn update_all(engine: &Arc<Engine>, reask: Reask) {
    let stored: Vec<Uid> = engine
        .store
        .read(|world| world.vms().map(|vm| vm.meta.uid).collect());
    let known: Vec<Uid> = engine.agents.vms.lock().keys().copied().collect();
    for uid in stored.into_iter().chain(known) {
        update(engine, uid, reask);
    }
}

fn update(engine: &Arc<Engine>, uid: Uid, reask: Reask) {
    let found = engine.store.read(|world| {
        let vm = world.vm(uid)?;
        let dir = VmmPaths::of(&engine.run_dir, world, vm).dir;
        Some((Target::of(world, vm)?, Desired::live(vm), dir))
    });
    let mut vms = engine.agents.vms.lock();
    let Some((target, desired, dir)) = found else {
        vms.remove(&uid);
        return;
    };
    let is_known = match vms.get_mut(&uid) {
        Some(entry) if entry.target == target => {
            if entry.desired != desired {
                entry.desired = desired.clone();
                entry.wake.notify_one();
            }
            true
        }
        Some(_) | None => false,
    };
    let known = vms.get(&uid);
    if is_known && !(reask == Reask::Yes && matches!(target, Target::Asked(_))) {
        return;
    }
    let condition = match known.filter(|_| is_known) {
        Some(entry) => entry.condition.clone(),
        None => {
            let (status, reason, message) = target.first_condition();
            Condition {
                status,
                reason,
                message,
                since: clock::now(),
                observed_generation: 0,
            }
        }
    };
    let wake = Arc::new(Notify::new());
    let task = match &target {
        Target::Asked(vmm) => {
            let of = Followed {
                uid,
                target: target.clone(),
                vmm: vmm.clone(),
                dir,
                wake: Arc::clone(&wake),
            };
            let follow = follow(engine.clone(), of);
            Some(AbortOnDropHandle::new(tokio::spawn(follow)))
        }
        Target::Disabled(_) | Target::NotRunning | Target::Paused(_) => None,
    };
    vms.insert(
        uid,
        Entry {
            target,
            desired,
            wake,
            condition,
            _task: task,
        },
    );
    drop(vms);
    if !is_known {
        engine.store.notify_agent(uid);
    }
}

/// Has the guests synchronized that may have a secret, which has changed.
pub fn secret_changed(engine: &Engine, name: &SecretName) {
    let vms = engine.agents.vms.lock();
    let may_have = vms.values().filter(|entry| entry.desired.has_secret(name));
    may_have.for_each(|entry| entry.wake.notify_one());
}

/// The agent that a task follows.
struct Followed {
    uid: Uid,
    target: Target,
    vmm: Identity,
    dir: PathBuf,
    wake: Arc<Notify>,
}

/// Asks until the agent answers, and whenever something has changed; and waits for the end of the process that handles the device.
async fn follow(engine: Arc<Engine>, of: Followed) {
    let report = |found| {
        if engine.agents.set(of.uid, &of.target, found) {
            engine.store.notify_agent(of.uid);
        }
    };
    let socket = of.dir.join(VSOCK);
    let ask = async {
        let (mut pause, mut began) = (SHORTEST_DELAY, clock::monotonic());
        let mut was_running = false;
        loop {
            match ask(&engine, &of).await {
                Ok(outcome) => {
                    let is_running = outcome.is_running();
                    if was_running {
                        note_userdata(&engine, of.uid, &outcome);
                    }
                    was_running = is_running;
                    report(outcome.condition());
                    match is_running {
                        true => {
                            tokio::select! {
                                // An error is found again by the next request. A guest that reports an end which is none is asked less
                                // and less often.
                                _ = probe::userdata_ended(&socket) => tokio::time::sleep(pause).await,
                                () = of.wake.notified() => {}
                            }
                            pause = (pause * 2).min(LONGEST_DELAY);
                        }
                        false => {
                            of.wake.notified().await;
                            pause = SHORTEST_DELAY;
                        }
                    }
                    began = clock::monotonic();
                }
                Err(cause) => {
                    report((Status::False, Reason::NotAnswering, cause));
                    let waited = clock::monotonic().saturating_duration_since(began);
                    match next_delay(waited) {
                        Some(delay) => tokio::time::sleep(delay).await,
                        None => of.wake.notified().await,
                    }
                }
            }
        }
    };
    tokio::select! {
        () = ask => {}
        () = device_lost(&of.vmm, &of.dir) => {
            let cause = "the process that handles the vsock device has ended: guest access returns when the VM is restarted";
            report((Status::False, Reason::NotAnswering, cause.to_owned()));
        }
    }
}

/// Records the end of the userdata. An end that was not observed, because the daemon did not run, is in the condition only.
fn note_userdata(engine: &Engine, uid: Uid, outcome: &Outcome) {
    let name = engine
        .store
        .read(|world| world.vm(uid).map(|vm| vm.meta.name.clone()));
    if let (Some(name), Some((kind, reason, text))) = (name, outcome.userdata_event()) {
        let object = ObjectRef::vm(&name);
        let events = engine.store.events();
        events.note(clock::now(), kind, &object, reason, &text);
    }
}

/// Asks the agent, and gives its guest what it is to get and has not.
async fn ask(engine: &Arc<Engine>, of: &Followed) -> Result<Outcome, String> {
    if of.dir.join(AGENT).exists() {
        return Err(OF_EARLIER_VERSION.to_owned());
    }
    let asking = &engine.agents.asking;
    let _permit = asking.acquire().await.map_err(|error| error.to_string())?;
    let socket = of.dir.join(VSOCK);
    let health = probe::health(&socket).await?;
    // Asked again, with the delays of a guest that boots.
    if health.in_initrd {
        return Err(IN_INITRD.to_owned());
    }
    let desired = engine.store.read(|world| world.vm(of.uid).map(Desired::of));
    match desired {
        Some(desired) => Ok(provision::provision(engine, desired, &health, &socket).await),
        // It is deleted, and this task ends.
        None => Ok(Outcome::default()),
    }
}

/// Returns when the process that handles the device has ended and the VMM has not. Never, if the VMM handles the device itself.
async fn device_lost(vmm: &Identity, dir: &Path) {
    let back_end = match BackEndState::of(dir) {
        Ok(BackEndState::Running(identity)) => Some(identity),
        Ok(BackEndState::Ended(_)) => None,
        // A record that cannot be read is reported by the stage.
        Ok(BackEndState::None) | Err(_) => return std::future::pending().await,
    };
    if let Some(identity) = back_end
        && let Ok(ProcessState::Alive(process)) = process::open(&identity)
        && process.ended().await.is_err()
    {
        return std::future::pending().await;
    }
    // It ends with its VMM.
    if let Ok(ProcessState::Alive(process)) = process::open(vmm)
        && tokio::time::timeout(VMM_END, process.ended())
            .await
            .is_err()
    {
        return;
    }
    std::future::pending().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_that_does_not_answer_is_asked_less_and_less_often_and_then_not_at_all() {
        let (mut waited, mut delays) = (Duration::ZERO, Vec::new());
        while let Some(delay) = next_delay(waited) {
            let is_late = delay > SHORTEST_DELAY && delay * 10 > waited;
            assert!(!is_late, "{delay:?} after {waited:?}");
            delays.push(delay);
            waited += delay;
        }
        assert!(delays.is_sorted());
        assert_eq!(delays.first(), Some(&SHORTEST_DELAY));
        assert_eq!(delays.last(), Some(&LONGEST_DELAY));
        assert!(delays.len() < 130, "{}", delays.len());
        assert!(waited < GIVE_UP + LONGEST_DELAY);
    }
}
