//! Whether the agents of VMs answer, and their guests have what they are to get: the condition `Agent`. It is not stored, and no part of `Ready`.
//! Out of scope: requests to an agent ([`crate::guest`]); what a guest is to get ([`super::provision`]); showing it ([`crate::status`]).
//!
//! # When an agent is asked
//! After its VMM has started, with a growing delay until it answers, but not longer than 10 minutes; when what its guest is to get has
//! changed; when its userdata has ended; and at each resync. Else nothing runs while it answers. A guest that is paused is not asked. The end
//! of the process that handles QEMU's vsock device is noticed at once.
//!
//! An agent reports the generation of what its guest has got, so a daemon that was restarted sends nothing that the guest has already.

mod follow;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{Notify, Semaphore};
use tokio_util::task::AbortOnDropHandle;

use self::follow::Followed;
use super::Engine;
use super::provision::{Desired, Outcome};
use crate::api::condition::{Condition, Reason, Status};
use crate::api::event::{EventReason, EventType};
use crate::api::guest_access::Agent;
use crate::api::meta::Uid;
use crate::api::secret::SecretName;
use crate::api::stage::Stage;
use crate::api::vm::{Hypervisor, Power, Vm};
use crate::clock;
use crate::host::process::Identity;
use crate::reconcile::checkpoint;
use crate::reconcile::vmm::VmmPaths;
use crate::store::{Change, World};

/// The maximum number of agents that are asked at the same time.
const CONCURRENCY: usize = 32;

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
    /// An end of the userdata is expected; see [`Outcome::userdata_event`]. Kept while the agent is not asked.
    is_userdata_open: bool,
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

    /// The event of the end of the userdata, if it is new.
    fn userdata_event(
        &self,
        uid: Uid,
        of: &Target,
        outcome: &Outcome,
    ) -> Option<(EventType, EventReason, String)> {
        let mut vms = self.vms.lock();
        let entry = vms.get_mut(&uid).filter(|entry| entry.target == *of)?;
        outcome.userdata_event(&mut entry.is_userdata_open)
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
    let is_userdata_open = known.is_some_and(|entry| entry.is_userdata_open);
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
            let follow = follow::follow(engine.clone(), of);
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
            is_userdata_open,
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
