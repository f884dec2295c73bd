//! The agent of this node: it copies the VMs that are bound to this node to the local store, and reports them.
//! Out of scope: what is changed (the plan, [`super::node`]); the connection to etcd ([`super::link`]); running VMs (the engine).
//!
//! # Order
//! 1. The file of the guard is written, in which no VM gets more time: the plan depends on what is in it.
//! 2. The steps that change the local store are one transaction, on stable storage before anything else is done.
//! 3. The file of the guard is written again. Also if the store has failed: otherwise the guard would stop VMs although contact exists.
//! 4. The status keys are written by a task: a stop never waits for etcd.

mod available;
mod execute;
pub mod fence_file;
mod local;
mod look;
mod node_status;
mod objects;
mod statuses;

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::broadcast;
use tokio::task::{JoinError, JoinHandle};
use tracing::{info, warn};

use super::contact::{Boottime, Contact};
use super::kv;
use super::link::Link;
use super::node::{self, GuardState, Input, Objects, Plan, Report, Step};
use crate::api::allowed::Purpose;
use crate::api::fleet::{FleetVm, HOLD_AFTER_BOOT};
use crate::api::meta::{Name, Uid};
use crate::clock;
use crate::engine::{Engine, Key};
use crate::host;
use crate::store::{self, World};
use available::{Amounts, HostFacts};
use fence_file::{Content, Ending, FenceWriter};
use local::Local;
pub use node_status::NodeSettings;

/// How long changes are gathered before a plan is made.
const GATHER: Duration = Duration::from_millis(30);
/// The longest time between two plans: the time of a stop may have come.
const TICK: Duration = Duration::from_secs(1);
/// The same if no VM has such a time: contact may be lost.
const IDLE_TICK: Duration = Duration::from_secs(10);
/// How long after a failed write the next one is made.
const RETRY: Duration = Duration::from_secs(2);

/// The agent.
pub struct Agent {
    link: Arc<Link>,
    engine: Arc<Engine>,
    settings: NodeSettings,
    fence: FenceWriter,
    host: Mutex<HostFacts>,
    reports: Mutex<Vec<Report>>,
}

/// What the loop remembers between two plans.
#[derive(Default)]
struct Progress {
    writing: Option<JoinHandle<Result<Option<u64>, kv::Error>>>,
    /// The number of the list, and the revision of the last status that was written since: until it is watched, the plan would write it
    /// again. The revisions of another list may be those of a restored cluster.
    written: (u64, u64),
    /// The VMs that may be started.
    allowed: BTreeSet<Uid>,
    /// No write before this time of the monotonic clock.
    pause_until: Option<std::time::Instant>,
    looked: Option<(std::time::Instant, BTreeSet<(Purpose, PathBuf)>)>,
    looking: Option<JoinHandle<Result<HostFacts, host::Error>>>,
    last_error: Option<String>,
}

impl Agent {
    /// When the last confirmed renewal of this boot was sent, as the daemon before has stored it for the guard.
    pub fn stored_renewal(engine: &Engine) -> Option<Boottime> {
        FenceWriter::new(&engine.run_dir.0, &engine.host.boot_id).renewed()
    }

    /// Checks that the VMs of the fleet in the local store were bound to a node of this name. A node with another name would renew another key:
    /// the scheduler would count it as absent, and replace VMs that this node does not stop.
    ///
    /// # Errors
    /// They were bound to another name; a sentence.
    pub fn check_name(engine: &Engine, node: &Name) -> Result<(), String> {
        let other = engine.store.read(|world| local::other_node(world, node));
        let Some((vm, name)) = other else {
            return Ok(());
        };
        Err(format!(
            "this node has the name {node}, and vm/{vm} was bound to it by the name {name}: set `node: {name}`, and drain the node before it gets another name"
        ))
    }

    /// An agent that does nothing yet.
    pub fn new(link: Arc<Link>, engine: Arc<Engine>, settings: NodeSettings) -> Arc<Self> {
        Arc::new(Self {
            fence: FenceWriter::new(&engine.run_dir.0, &engine.host.boot_id),
            link,
            engine,
            settings,
            host: Mutex::default(),
            reports: Mutex::default(),
        })
    }

    /// The VMs for which nothing is done although something differs, with the reasons.
    pub fn reports(&self) -> Vec<Report> {
        self.reports.lock().clone()
    }

    /// Acts until it is dropped. VMs keep running then; those that may be replaced are not started without an agent.
    pub async fn run(self: Arc<Self>) {
        let permission = &self.engine.processes.stage.permission;
        let weak = Arc::downgrade(&self);
        permission.set(Some(Arc::new(move |vm| match weak.upgrade() {
            Some(agent) => agent.may_start(vm),
            None => Err("the agent of the fleet does not run".to_owned()),
        })));
        let mut link = self.link.subscribe();
        let mut store = self.engine.store.watch();
        let mut progress = Progress::default();
        loop {
            self.begin_look(&mut progress);
            self.round(&mut progress).await;
            let tick = self.tick();
            tokio::select! {
                changed = link.changed() => if changed.is_err() { return },
                changed = store.recv() => if matches!(changed, Err(broadcast::error::RecvError::Closed)) { return },
                found = done(&mut progress.writing) => self.written(&mut progress, found),
                found = done(&mut progress.looking) => self.looked(&mut progress, found),
                () = tokio::time::sleep(tick) => {}
            }
            tokio::time::sleep(GATHER).await;
            link.mark_unchanged();
            link.borrow_and_update();
            while !matches!(
                store.try_recv(),
                Err(broadcast::error::TryRecvError::Empty | broadcast::error::TryRecvError::Closed)
            ) {}
        }
    }

    /// The write of status keys has ended.
    fn written(
        &self,
        progress: &mut Progress,
        found: Result<Result<Option<u64>, kv::Error>, JoinError>,
    ) {
        match found {
            Ok(Ok(applied)) => progress.written.1 = progress.written.1.max(applied.unwrap_or(0)),
            Ok(Err(error)) => {
                progress.pause_until = Some(clock::monotonic() + RETRY);
                warn!(%error, "cannot write the status of VMs to etcd");
            }
            Err(error) => warn!(%error, "the write of status keys has ended"),
        }
    }

    /// One plan.
    async fn round(&self, progress: &mut Progress) {
        if let Err(error) = self.write_fence(&Ending::All) {
            return self.note(progress, error);
        }
        let (local, amounts) = self.engine.store.read(|world| self.local(world));
        let guard = self.fence.guard();
        let plan = self.plan(&local, &amounts, &guard);
        let ending = plan.steps.iter().filter_map(ends);
        let ending = Ending::These(ending.collect());
        let stored = match plan.steps.iter().any(is_local) {
            true => self.store(progress, &plan, &ending).await,
            false => Ok(()),
        };
        let written = self.write_fence(&ending);
        if let Err(error) = stored.and(written) {
            return self.note(progress, error);
        }
        progress.last_error = None;
        self.wake(progress, plan.restart_allowed.clone());
        self.write_statuses(progress, &plan, &amounts, guard.runs);
        *self.reports.lock() = plan.reports;
    }

    /// Stores the steps of a plan. While the disk does not answer, the file of the guard, which is in memory, is written on.
    async fn store(
        &self,
        progress: &mut Progress,
        plan: &Plan,
        ending: &Ending,
    ) -> Result<(), String> {
        let changes: Vec<Step> = plan
            .steps
            .iter()
            .filter(|it| is_local(it))
            .cloned()
            .collect();
        for step in &changes {
            info!(step = %summary(step), "fleet");
        }
        let (node, now) = (self.link.node(), clock::now());
        let store = &self.engine.store;
        let stored = store.write(|txn| execute::execute(txn, node, &changes, now));
        let mut stored = std::pin::pin!(stored);
        let result: Result<(), store::Error> = loop {
            match tokio::time::timeout(TICK, &mut stored).await {
                Ok(result) => break result,
                Err(_) => {
                    if let Err(error) = self.write_fence(ending) {
                        self.note(progress, error);
                    }
                }
            }
        };
        result.map_err(|error| format!("cannot store the VMs of the fleet: {error}"))
    }

    /// Writes the file of the guard.
    fn write_fence(&self, ending: &Ending) -> Result<(), String> {
        let written = self.fence.write(|before| {
            let contact = self.link.read(|_, contact| contact.clone());
            let store = &self.engine.store;
            store.read(|world| Content::of(world, contact, before, ending))
        });
        written.map_err(|error: host::Error| format!("cannot write the file of the guard: {error}"))
    }

    fn local(&self, world: &World) -> (Local, Amounts) {
        let amounts = available::amounts(world, &self.host.lock(), self.settings.vcpus_per_cpu);
        (Local::of(world), amounts)
    }

    fn plan(&self, local: &Local, amounts: &Amounts, guard: &GuardState) -> Plan {
        let node = self.link.node();
        let known = |uid: &Uid| local.vms.contains_key(uid) || local.refusals.contains_key(uid);
        let (objects, contact) = self
            .link
            .read(|mirror, contact| (objects::of(mirror, node, known), contact.clone()));
        let mut available = available::available(local, amounts, &self.host.lock());
        // They may have many VMs, and are needed for new ones only.
        if objects::has_new(&objects, node, |uid| local.vms.contains_key(uid)) {
            available.host_groups = self.engine.store.read(local::host_groups);
        }
        node::plan(&self.input(local, (&available, guard), &objects, &contact))
    }

    fn input<'a>(
        &'a self,
        local: &'a Local,
        (available, guard): (&'a node::Available, &'a GuardState),
        objects: &'a Objects,
        contact: &'a Contact,
    ) -> Input<'a> {
        Input {
            node: self.link.node(),
            contact,
            now: Boottime(clock::boottime()),
            objects,
            local: &local.vms,
            refusals: &local.refusals,
            local_groups: &local.groups,
            available,
            guard,
        }
    }

    /// Whether the VMM of a local VM may be started now. Called directly before the start.
    fn may_start(&self, vm: Uid) -> Result<(), String> {
        // The user of its VMM may be another one than before.
        self.write_fence(&Ending::All)?;
        let (fleet, local) = self.engine.store.read(|world| {
            let fleet = world.vm(vm).and_then(|vm| vm.fleet()).cloned();
            let has_user = world.vmm_id(vm).is_some_and(|user| user != 0);
            (fleet.map(|it| (it, has_user)), Local::of(world))
        });
        let Some((FleetVm { uid, stop, .. }, has_user)) = fleet else {
            return Err("it is not of the fleet any more".to_owned());
        };
        if stop.is_some() && !has_user {
            return Err("its VMM has no user of its own, by which the guard stops it".to_owned());
        }
        let guard = self.fence.guard();
        if stop.is_some() && !guard.runs {
            return Err("no guard runs on this node: start sliced-fence.service".to_owned());
        }
        let (objects, contact) = self.link.read(|mirror, contact| {
            (
                objects::of_one(mirror, self.link.node(), uid),
                contact.clone(),
            )
        });
        let available = node::Available::default();
        let input = self.input(&local, (&available, &guard), &objects, &contact);
        match node::may_start(&input, uid) {
            true => Ok(()),
            false if stop.is_none() => Err(format!(
                "it may have been moved while this host was off: it is started when this node has contact to etcd, or {} s after the boot",
                HOLD_AFTER_BOOT.as_secs()
            )),
            false => Err(
                "it may be replaced by another node: it is started when this node has contact to etcd and the scheduler has its status"
                    .to_owned(),
            ),
        }
    }

    /// Runs the keys of VMs that may be started now and could not before.
    fn wake(&self, progress: &mut Progress, allowed: BTreeSet<Uid>) {
        let new: BTreeSet<&Uid> = allowed.difference(&progress.allowed).collect();
        if !new.is_empty() {
            self.engine.store.read(|world| {
                for vm in world.vms() {
                    let waits = vm.fleet().is_some_and(|fleet| new.contains(&fleet.uid));
                    if waits && !world.is_ready(vm) {
                        self.engine.waker.enqueue_fresh(Key::Vm(vm.meta.uid));
                    }
                }
            });
        }
        progress.allowed = allowed;
    }

    /// Begins the next write of status keys, if none is under way.
    fn write_statuses(
        &self,
        progress: &mut Progress,
        plan: &Plan,
        amounts: &Amounts,
        has_guard: bool,
    ) {
        let now = clock::monotonic();
        let is_paused = progress.pause_until.is_some_and(|until| now < until);
        if progress.writing.is_some() || is_paused {
            return;
        }
        let (listed, written) = progress.written;
        let host = self.host.lock().clone();
        let (writes, lists) = self.link.read_listed(|mirror, contact, lists| {
            let is_behind = listed == lists && mirror.revision < written;
            if is_behind || !contact.may_act(Boottime(clock::boottime())) {
                return (Vec::new(), lists);
            }
            let node = self.link.node();
            let mut writes = statuses::of(&plan.steps, mirror, node);
            // Before, the node seems to have nothing.
            if host.is_read {
                let boot_id = &self.engine.host.boot_id;
                let own = self.settings.status(&host, amounts, has_guard, boot_id);
                writes.extend(node_status::write(mirror, node, &own));
            }
            (writes, lists)
        });
        progress.written.0 = lists;
        if listed != lists {
            progress.written.1 = 0;
        }
        if !writes.is_empty() {
            let client = self.link.client().clone();
            let sending = async move { statuses::send(&client, writes).await };
            progress.writing = Some(tokio::spawn(sending));
        }
    }

    /// How long until the next plan if nothing changes.
    fn tick(&self) -> Duration {
        let has_stop = self.engine.store.read(|world| {
            let mut vms = world.vms();
            vms.any(|vm| vm.fleet().is_some_and(|fleet| fleet.stop.is_some()))
        });
        match has_stop {
            true => TICK,
            false => IDLE_TICK,
        }
    }

    /// Logs an error once.
    fn note(&self, progress: &mut Progress, error: String) {
        if progress.last_error.as_ref() != Some(&error) {
            warn!("{error}");
        }
        progress.last_error = Some(error);
    }
}

/// Waits for the end of a task, and forgets it; without a task it never returns.
async fn done<T>(task: &mut Option<JoinHandle<T>>) -> Result<T, JoinError> {
    let Some(running) = task else {
        return std::future::pending().await;
    };
    let result = running.await;
    *task = None;
    result
}

/// It changes the local store.
fn is_local(step: &Step) -> bool {
    !matches!(step, Step::PutStatus { .. } | Step::DeleteStatus { .. })
}

/// The VM that a step stops or deletes.
fn ends(step: &Step) -> Option<Uid> {
    match step {
        Step::StopVm { uid, .. } | Step::RemoveVm { uid, .. } => Some(*uid),
        _ => None,
    }
}

fn summary(step: &Step) -> String {
    match step {
        Step::StopVm { uid, cause } => format!("stop {uid}: {cause:?}"),
        Step::RemoveVm { uid, cause } => format!("delete {uid}: {cause:?}"),
        Step::PutGroup {
            name, generation, ..
        } => format!("store hostgroup/{name}, generation {generation}"),
        Step::AddVm { vm } => format!("add vm/{}, uid {}, epoch {}", vm.name, vm.uid, vm.epoch),
        Step::UpdateVm {
            uid,
            epoch,
            group_generation,
            ..
        } => format!("update {uid}: epoch {epoch}, generation {group_generation}"),
        Step::StartVm { uid } => format!("start {uid}"),
        Step::RefuseVm { uid, reason, .. } => format!("refuse {uid}: {reason}"),
        Step::ForgetRefusal { uid } => format!("forget the refusal of {uid}"),
        Step::RemoveGroup { name } => format!("remove hostgroup/{name}"),
        Step::PutStatus { uid, .. } => format!("report {uid}"),
        Step::DeleteStatus { uid } => format!("remove the status of {uid}"),
    }
}
