//! The agent of this node: it copies the VMs that are bound to this node to the local store, and reports them.
//! Out of scope: what is changed (the plan, [`super::node`]); the connection to etcd ([`super::link`]); running VMs (the engine).
//!
//! # Order
//! 1. The steps that change the local store are one transaction, on stable storage before anything else is done.
//! 2. The file of the guard is written.
//! 3. The status keys are written by a task: a stop never waits for etcd.

mod available;
mod execute;
pub mod fence_file;
mod local;
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
use tokio::task::JoinHandle;
use tracing::{info, warn};

use super::contact::{Boottime, Contact};
use super::fence::{Guarded, VmmUser};
use super::kv;
use super::link::Link;
use super::node::{self, Input, Objects, Plan, Report, Step};
use crate::api::fleet::FleetVm;
use crate::api::meta::Uid;
use crate::clock;
use crate::engine::{Engine, Key};
use crate::store::{self, World};
use available::{Amounts, HostFacts};
use fence_file::FenceWriter;
use local::Local;
pub use node_status::NodeSettings;

/// How long changes are gathered before a plan is made.
const GATHER: Duration = Duration::from_millis(30);
/// The longest time between two plans: the time of a stop may have come.
const TICK: Duration = Duration::from_secs(1);
/// The same if no VM has such a time: contact may be lost.
const IDLE_TICK: Duration = Duration::from_secs(10);
/// The interval in which programs, images and disk space are looked at.
const LOOK: Duration = Duration::from_secs(60);
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
    /// The revision of the last status that was written: until it is watched, the plan would write it again.
    written: u64,
    /// The VMs that may be started.
    allowed: BTreeSet<Uid>,
    /// No write before this time of the monotonic clock.
    pause_until: Option<std::time::Instant>,
    looked: Option<(std::time::Instant, BTreeSet<PathBuf>)>,
    last_error: Option<String>,
}

impl Agent {
    /// When the last confirmed renewal of this boot was sent, as the daemon before has stored it for the guard.
    pub fn stored_renewal(engine: &Engine) -> Option<Boottime> {
        FenceWriter::new(&engine.run_dir.0, &engine.host.boot_id).renewed()
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
            self.look(&mut progress).await;
            self.round(&mut progress).await;
            let tick = self.tick();
            tokio::select! {
                changed = link.changed() => if changed.is_err() { return },
                changed = store.recv() => if matches!(changed, Err(broadcast::error::RecvError::Closed)) { return },
                () = written(&mut progress) => {}
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

    /// Looks at the host in an interval, and when a group names other files.
    async fn look(&self, progress: &mut Progress) {
        let files = self.link.read(|mirror, _| available::files(mirror));
        let now = clock::monotonic();
        let is_current = progress.looked.as_ref().is_some_and(|(at, known)| {
            now.saturating_duration_since(*at) < LOOK && *known == files
        });
        if is_current {
            return;
        }
        let engine = Arc::clone(&self.engine);
        let named = files.clone();
        let reading = tokio::task::spawn_blocking(move || HostFacts::read(&engine, &named));
        // A file system that hangs must not stop the agent: what was found before is used.
        if let Ok(Ok(found)) =
            tokio::time::timeout(crate::host::blocking::FILE_TIMEOUT, reading).await
        {
            *self.host.lock() = found;
        }
        progress.looked = Some((now, files));
    }

    /// One plan.
    async fn round(&self, progress: &mut Progress) {
        let (local, amounts) = self.engine.store.read(|world| self.local(world));
        let plan = self.plan(&local, &amounts);
        let changes: Vec<Step> = plan
            .steps
            .iter()
            .filter(|it| is_local(it))
            .cloned()
            .collect();
        if !changes.is_empty() {
            for step in &changes {
                info!(step = %summary(step), "fleet");
            }
            let now = clock::now();
            let stored = self
                .engine
                .store
                .write(|txn| execute::execute(txn, &changes, now));
            if let Err(error) = stored.await {
                let _: &store::Error = &error;
                self.note(
                    progress,
                    format!("cannot store the VMs of the fleet: {error}"),
                );
                return;
            }
        }
        let guarded = self.engine.store.read(guarded);
        let contact = self.link.read(|_, contact| contact.clone());
        if let Err(error) = self.fence.write(&contact, guarded) {
            self.note(
                progress,
                format!("cannot write the file of the guard: {error}"),
            );
            return;
        }
        self.wake(progress, plan.restart_allowed.clone());
        self.write_statuses(progress, &plan, &amounts);
        *self.reports.lock() = plan.reports;
    }

    fn local(&self, world: &World) -> (Local, Amounts) {
        let amounts = available::amounts(world, &self.host.lock(), self.settings.vcpus_per_cpu);
        (Local::of(world), amounts)
    }

    fn plan(&self, local: &Local, amounts: &Amounts) -> Plan {
        let node = self.link.node();
        let available =
            available::available(local, amounts, &self.host.lock(), self.fence.has_guard());
        let known = |uid: &Uid| local.vms.contains_key(uid) || local.refusals.contains_key(uid);
        let (objects, contact) = self
            .link
            .read(|mirror, contact| (objects::of(mirror, node, known), contact.clone()));
        node::plan(&self.input(local, &available, &objects, &contact))
    }

    fn input<'a>(
        &'a self,
        local: &'a Local,
        available: &'a node::Available,
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
        }
    }

    /// Whether the VMM of a local VM may be started now. Called directly before the start.
    fn may_start(&self, vm: Uid) -> Result<(), String> {
        let (fleet, local, guarded) = self.engine.store.read(|world| {
            let fleet = world.vm(vm).and_then(|vm| vm.fleet()).cloned();
            let has_user = world.vmm_id(vm).is_some_and(|user| user != 0);
            (
                fleet.map(|it| (it, has_user)),
                Local::of(world),
                guarded(world),
            )
        });
        let Some((FleetVm { uid, .. }, has_user)) = fleet else {
            return Err("it is not of the fleet any more".to_owned());
        };
        if !has_user {
            return Err("its VMM has no user of its own, by which the guard stops it".to_owned());
        }
        if !self.fence.has_guard() {
            return Err("no guard runs on this node: start sliced-fence.service".to_owned());
        }
        let (objects, contact) = self.link.read(|mirror, contact| {
            (
                objects::of_one(mirror, self.link.node(), uid),
                contact.clone(),
            )
        });
        let available = node::Available::default();
        if !node::may_start(&self.input(&local, &available, &objects, &contact), uid) {
            return Err(
                "it may be replaced by another node: it is started when this node has contact to etcd and the scheduler has its status"
                    .to_owned(),
            );
        }
        let written = self.fence.write(&contact, guarded);
        written.map_err(|error| format!("the file of the guard cannot be written: {error}"))
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
    fn write_statuses(&self, progress: &mut Progress, plan: &Plan, amounts: &Amounts) {
        let now = clock::monotonic();
        let is_paused = progress.pause_until.is_some_and(|until| now < until);
        if progress.writing.is_some() || is_paused {
            return;
        }
        let written = progress.written;
        let host = self.host.lock().clone();
        let writes = self.link.read(|mirror, contact| {
            if mirror.revision < written || !contact.may_act(Boottime(clock::boottime())) {
                return Vec::new();
            }
            let node = self.link.node();
            let mut writes = statuses::of(&plan.steps, mirror, node);
            let own = self
                .settings
                .status(&host, amounts, &self.engine.host.boot_id);
            writes.extend(node_status::write(mirror, node, &own));
            writes
        });
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

/// Waits for the end of the write of status keys.
async fn written(progress: &mut Progress) {
    let Some(writing) = &mut progress.writing else {
        return std::future::pending().await;
    };
    let result = writing.await;
    progress.writing = None;
    match result {
        Ok(Ok(applied)) => progress.written = progress.written.max(applied.unwrap_or(0)),
        Ok(Err(error)) => {
            progress.pause_until = Some(clock::monotonic() + RETRY);
            warn!(%error, "cannot write the status of VMs to etcd");
        }
        Err(error) => warn!(%error, "the write of status keys has ended"),
    }
}

fn is_local(step: &Step) -> bool {
    !matches!(step, Step::PutStatus { .. } | Step::DeleteStatus { .. })
}

/// The VMs that the guard stops.
fn guarded(world: &World) -> Vec<Guarded> {
    let entry = |vm: &crate::api::vm::Vm| {
        let fleet = vm.fleet()?;
        Some(Guarded {
            uid: fleet.uid,
            user: VmmUser(world.vmm_id(vm.meta.uid).filter(|user| *user != 0)?),
            stop: fleet.stop?,
            is_ending: fleet.stopped || vm.meta.deleting,
        })
    };
    world.vms().filter_map(entry).collect()
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
