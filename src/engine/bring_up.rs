//! Brings a VM up: each stage is acquired and converged, and its result is stored together with the acquisition of the next.
//! Out of scope: what a stage does, teardown.

use std::sync::atomic::Ordering;
use std::time::Duration;

use tracing::debug;

use super::processes::NotRunnable;
use super::step::{
    BringUp, BringUpError, BringUpRunner, ReadyStage, StageRunner, condition_of, desired_inputs,
};
use super::{Engine, SLOW_RETRY};
use crate::api::condition::{Reason, Status};
use crate::api::event::{EventType, ObjectRef};
use crate::api::host_group::{Origin, UpdatePolicy};
use crate::api::lease::{Address, Lease};
use crate::api::meta::{Timestamp, Uid};
use crate::api::network::{Connection, NetworkSpec, TapOwner};
use crate::api::stage::Stage;
use crate::api::storage::Bytes;
use crate::api::vm::{Hypervisor, Power, Vm};
use crate::clock;
use crate::engine::conflicting_writer::QUIET_PERIOD;
use crate::host;
use crate::host::image::Progress;
use crate::host::process::user_lives;
use crate::reconcile::group::{Claim, Claims};
use crate::reconcile::lease::{self, Leases};
use crate::reconcile::power::PowerDecision;
use crate::reconcile::record::Record;
use crate::reconcile::storage::Disks;
use crate::reconcile::{Error, Stored, converge_in, disk, vmm};
use crate::runtime::controller::release_worker_unlimited;
use crate::runtime::queue::Outcome;
use crate::store::{self, Acquisition, Durable};

/// A VM with its lease, which CNI plugins assign in CNI mode; or the outcome if it cannot continue.
type Leased = Result<(Vm, Option<Lease>), Outcome>;

/// The reason why the transaction of a lease was rolled back.
enum NoLease {
    /// These claims must be made on the host first.
    Unclaimed(Vec<Claim>),
    Store(store::Error),
}

impl From<store::Error> for NoLease {
    fn from(error: store::Error) -> Self {
        Self::Store(error)
    }
}

/// Interval at which the progress of a copy is reported.
const COPY_REPORT_INTERVAL: Duration = Duration::from_secs(2);
/// The pending step while the files of a VM are observed.
const OBSERVE_FILES: &str = "observe the files that the VM names";
/// Interval between checks whether a running copy is still required.
const COPY_CHECK_INTERVAL: Duration = Duration::from_millis(250);

impl Engine {
    /// Brings a VM up: each stage is acquired and converged, and its result is stored together with the acquisition of the next one.
    pub(super) async fn bring_up(&self, vm: &Vm, failures: u32) -> Result<Outcome, store::Error> {
        let (leased, acquired) = self.acquire_claimed_lease(vm.meta.uid).await?;
        let (vm, lease) = match leased {
            Ok(leased) => leased,
            Err(outcome) => return Ok(outcome),
        };
        let mut bring_up = BringUp {
            engine: self,
            vm: &vm,
            acquired,
            conflict_message: None,
            is_transition: false,
            has_acted: false,
        };
        let result = match self.connect(&vm, lease, &mut bring_up).await {
            Ok(Some(connection)) => bring_up.run_vmm_stage(&connection, failures).await,
            Ok(None) => Ok(Outcome::RequeueAfter(SLOW_RETRY)),
            Err(stop) => Err(stop),
        };
        match result {
            // Observe again when the conflict may be over.
            Ok(Outcome::Converged) if bring_up.conflict_message.is_some() => {
                Ok(Outcome::RequeueAfter(QUIET_PERIOD))
            }
            Ok(outcome) | Err(BringUpError::Outcome(outcome)) => Ok(outcome),
            Err(BringUpError::Store(error)) => Err(error),
        }
    }

    /// Converges the Net and Firewall stages in the VM's mode. None: there is no lease of this mode, or the plugins returned no connection.
    pub(super) async fn connect<A: BringUpRunner>(
        &self,
        vm: &Vm,
        lease: Option<Lease>,
        runner: &mut A,
    ) -> Result<Option<Connection>, A::Break> {
        // The CNI cache has the addresses that plugins assigned.
        let recorded_lease = lease.clone();
        let kept = recorded_lease.filter(|lease| !matches!(lease.address, Address::Cni { .. }));
        let user = runner.vmm_user(vm.meta.uid);
        let record = self.record(vm, kept, user);
        let address = lease.map(|lease| lease.address);
        match (&vm.spec.network, address) {
            // Each on the heap: otherwise the stack of a worker would have to hold all three.
            (NetworkSpec::Isolated(_), Some(Address::Isolated { block, .. })) => {
                let connecting = self.connect_isolated(vm, block, record, runner);
                Box::pin(connecting).await.map(Some)
            }
            (NetworkSpec::Bridge(spec), Some(address @ Address::Bridge { .. })) => {
                let connecting = self.connect_bridge(vm, spec, &address, record, runner);
                Box::pin(connecting).await.map(Some)
            }
            (NetworkSpec::Cni(spec), _) => {
                Box::pin(self.connect_cni(vm, spec, record, runner)).await
            }
            // An existing VM with a lease of another mode waits for its replacement.
            (NetworkSpec::Isolated(_) | NetworkSpec::Bridge(_), _) => Ok(None),
        }
    }

    /// Returns the desired process of a VM with this connection, or the reason why it is not run.
    pub(super) async fn process(
        &self,
        vm: &Vm,
        connection: &Connection,
        disks: &Disks,
        user: Option<u32>,
    ) -> Result<vmm::Desired, NotRunnable> {
        let (spec, name) = (&vm.spec, &vm.meta.name);
        let label = self.instance.vm_label(name, vm.meta.uid);
        let processes = &self.processes;
        let desired = processes.desired(spec, name, &label, connection, disks, user);
        Ok(self.with_lifecycle(vm, desired.await?))
    }

    /// Returns the desired disks of a VM, or the reason why it cannot have them, as text for users.
    pub(super) async fn desired_disks(&self, vm: &Vm) -> Result<Disks, String> {
        let label = self.instance.vm_label(&vm.meta.name, vm.meta.uid);
        self.processes
            .disks(&vm.spec.storage, &vm.meta.name, &label)
            .await
    }

    /// As [`Self::acquire_lease`], after claiming the address on the host. In most cases the group has claimed it already, when it chose it.
    async fn acquire_claimed_lease(&self, uid: Uid) -> Result<(Leased, Durable), store::Error> {
        let mut unclaimed = None;
        let mut new_claims = Vec::new();
        loop {
            match self.acquire_lease(uid, unclaimed.take()) {
                Ok(result) => return Ok(result),
                Err(NoLease::Store(error)) => return Err(error),
                Err(NoLease::Unclaimed(missing)) => match self.claims.hold(missing).await {
                    Ok(claim) => new_claims.push(claim),
                    Err(error) => unclaimed = Some(error.to_string()),
                },
            }
        }
    }

    /// Acquires and converges the Lease stage in one transaction. `unclaimed` is the error if no address can be claimed.
    fn acquire_lease(
        &self,
        uid: Uid,
        unclaimed: Option<String>,
    ) -> Result<(Leased, Durable), NoLease> {
        let now = clock::now();
        let needs_user = self.needs_user(uid);
        let reconciler = self.leases(Some(&self.claims), now);
        let name = self
            .store
            .read(|world| world.vm(uid).map(|vm| vm.meta.name.clone()));
        let inputs = name.map(|name| desired_inputs(uid, &name).to_vec());
        self.store.begin_for(&inputs.unwrap_or_default(), |txn| {
            let vm = match txn.acquire(uid, Stage::Lease, now)? {
                Acquisition::Acquired(vm) => *vm,
                Acquisition::Waiting(_) | Acquisition::Gone => return Ok(Err(Outcome::Converged)),
            };
            let generation = vm.meta.generation;
            if let Some(message) = unclaimed {
                let found = (Status::False, Reason::Waiting, message);
                txn.set_condition(uid, Stage::Lease, found, generation, now)?;
                return Ok(Err(Outcome::RequeueAfter(SLOW_RETRY)));
            }
            let desired = lease::Desired { vm, needs_user };
            let lease = match converge_in(txn, &reconciler, &desired) {
                Ok(Stored { observed, .. }) => observed.lease.valid(),
                Err(lease::Error::Store(error)) => return Err(error.into()),
                Err(lease::Error::Unclaimed(missing)) => return Err(NoLease::Unclaimed(missing)),
                Err(error) => {
                    let found = (Status::False, error.reason(), error.to_string());
                    txn.set_condition(uid, Stage::Lease, found, generation, now)?;
                    // A new range changes the host requirements, which enqueues the VM.
                    self.wait_for_host_network(uid);
                    return Ok(Err(Outcome::RequeueAfter(SLOW_RETRY)));
                }
            };
            let found = (Status::True, Reason::Converged, String::new());
            txn.set_condition(uid, Stage::Lease, found, generation, now)?;
            match txn.acquire(uid, Stage::Net, now)? {
                Acquisition::Acquired(vm) => Ok(Ok((*vm, lease))),
                Acquisition::Waiting(_) => {
                    self.wait_for_host_network(uid);
                    Ok(Err(Outcome::Converged))
                }
                Acquisition::Gone => Ok(Err(Outcome::Converged)),
            }
        })
    }

    /// The reconciler of the Lease stage.
    pub(super) fn leases<'a>(&'a self, claims: Option<&'a Claims>, now: Timestamp) -> Leases<'a> {
        Leases {
            claims,
            users: (&self.vmm_ids, self.vmm_ids.start(self.instance.as_str())),
            user_lives,
            guarded_users: &self.guarded_users,
            now,
        }
    }

    /// Whether a VM needs a user for its VMM. A VMM that an earlier version started without a user is left unchanged until it ends.
    fn needs_user(&self, uid: Uid) -> bool {
        let lacks_user = self.store.read(|world| {
            let vm = world.vm(uid)?;
            let has_vmm = vm.spec.hypervisor != Hypervisor::None;
            Some(has_vmm && world.vmm_id(uid).is_none())
        });
        lacks_user == Some(true) && !self.processes.may_be_running(uid)
    }

    /// The user that may open a VM's TAP: that of its VMM, or the configured one if the user starts the VMM.
    pub(super) fn tap_owner(vm: &Vm, vmm_user: Option<u32>) -> TapOwner {
        match vmm_user {
            Some(uid) => TapOwner { uid, gid: None },
            None => vm.spec.network.tap_owner(),
        }
    }

    /// Reports the progress of a copy periodically. Returns only if the progress cannot be stored.
    async fn report_copy_progress(&self, vm: &Vm, progress: &Progress) -> store::Error {
        let started_at = timestamp();
        // The time of the last progress, once a stalled copy is reported.
        let (mut reported, mut stalled_since) = (0, None);
        loop {
            tokio::time::sleep(COPY_REPORT_INTERVAL).await;
            let copied = progress.done.load(Ordering::Relaxed);
            let total = progress.total.load(Ordering::Relaxed);
            let message = format!("copying the image: {} of {}", Bytes(copied), Bytes(total));
            let found = match (copied == reported, &stalled_since) {
                (true, Some(_)) => continue,
                (true, None) => {
                    let since = timestamp();
                    let message =
                        format!("runs since {started_at}, no progress since {since}: {message}");
                    stalled_since = Some(since);
                    (Status::Unknown, Reason::Waiting, message)
                }
                (false, _) => {
                    (reported, stalled_since) = (copied, None);
                    (Status::False, Reason::Converging, message)
                }
            };
            if let Err(error) = self.set_condition(vm, Stage::Vmm, found).await {
                return error;
            }
        }
    }

    /// Returns when this version of the VM is no longer desired. Another run of its key follows.
    async fn until_changed(&self, vm: &Vm) {
        let is_unchanged = || {
            self.store.read(|world| {
                let now = world.vm(vm.meta.uid);
                now.is_some_and(|now| !now.meta.deleting && now.spec.storage == vm.spec.storage)
            })
        };
        while is_unchanged() {
            tokio::time::sleep(COPY_CHECK_INTERVAL).await;
        }
    }

    /// The record from which a daemon that has lost its state adopts the VM.
    fn record(&self, vm: &Vm, lease: Option<Lease>, vmm_user: Option<u32>) -> String {
        let (origin, update) = self.store.read(|world| match world.group(&vm.group) {
            Some(group) => (group.origin.clone(), group.spec.update),
            None => (Origin::Apply, UpdatePolicy::default()),
        });
        let record = Record {
            boot_id: self.host.boot_id.clone(),
            origin,
            update,
            vm: vm.clone(),
            lease,
            vmm_id: vmm_user,
        };
        serde_json::to_string(&record).unwrap_or_default()
    }
}

fn timestamp() -> String {
    clock::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

impl BringUp<'_> {
    /// Converges the Vmm stage. The backoff of the key also applies to a VMM that exits repeatedly.
    async fn run_vmm_stage(
        &mut self,
        connection: &Connection,
        failures: u32,
    ) -> Result<Outcome, BringUpError> {
        let (engine, vm) = (self.engine, self.vm);
        let startup_failure = engine.record_exit(vm).await?;
        match (engine.power_decision(vm), startup_failure) {
            (PowerDecision::Run, None) => {}
            (PowerDecision::Run, Some(cause)) => return self.handle_startup_failure(cause).await,
            (
                decision @ (PowerDecision::Stop(..)
                | PowerDecision::Restart
                | PowerDecision::Delete(_)),
                _,
            ) => {
                return self.stop_vmm(decision).await;
            }
        }
        let result = engine.pending(vm, Stage::Vmm, OBSERVE_FILES, engine.desired_disks(vm));
        let disks = match result.await? {
            Ok(disks) => disks,
            Err(reason) => return self.report_invalid(reason).await,
        };
        let user = self.vmm_user(vm.meta.uid);
        let looked = engine.process(vm, connection, &disks, user);
        let looked = engine.pending(vm, Stage::Vmm, OBSERVE_FILES, looked);
        let desired = match looked.await? {
            Ok(desired) => desired,
            Err(NotRunnable::Invalid(reason)) => return self.report_invalid(reason).await,
            Err(NotRunnable::Unobserved(error)) => return self.report_unobserved(error).await,
        };
        let disk_note = self.make_disk(&disks.own).await?;
        if let Some(why) = self.start_refusal() {
            let found = (Status::False, Reason::Waiting, why);
            engine.set_condition(vm, Stage::Vmm, found).await?;
            return Ok(Outcome::RequeueAfter(SLOW_RETRY));
        }
        let reconciler = &engine.processes.stage;
        let began = clock::monotonic();
        let observed = self.run_stage(Stage::Vmm, reconciler, &desired).await?;
        debug!(vm = %vm.meta.name, failures, "process is converged");
        let process = observed.process();
        if let Some(process) = process.filter(|_| self.has_acted) {
            engine.report_start(vm, process, began);
        }
        let checkpoint =
            process.and_then(|identity| engine.running_checkpoint(vm.meta.uid, identity));
        engine.processes.watch(vm.meta.uid, process);
        if vm.power == Power::Paused && process.is_some() {
            return self.set_paused(checkpoint).await;
        }
        // An error is ignored: the process was observed just before.
        let other_disk_note =
            process.and_then(|it| vmm::uses_another_disk(&desired, it.pid).ok().flatten());
        self.ready(
            Stage::Vmm,
            ReadyStage {
                checkpoint,
                message: [
                    disk_note,
                    other_disk_note,
                    engine.processes.files().restart_note(&vm.spec),
                ]
                .into_iter()
                .flatten()
                .collect::<Vec<_>>()
                .join("; ")
                .into(),
                ..ReadyStage::default()
            },
        )
        .await?;
        Ok(Outcome::Converged)
    }

    /// Why the VMM, which does not run, may not be started now.
    fn start_refusal(&self) -> Option<String> {
        let (processes, uid) = (&self.engine.processes, self.vm.meta.uid);
        match processes.may_be_running(uid) {
            true => None,
            false => processes.stage.permission.check(uid).err(),
        }
    }

    /// Reports that the state of the VMM could not be read.
    async fn report_unobserved(&self, error: host::Error) -> Result<Outcome, BringUpError> {
        let found = condition_of::<()>(&Err(Error::Observe(error)));
        self.report_once(found).await?;
        Ok(Outcome::Failed)
    }

    /// Reports a VM that this host cannot run. Only a new spec or a change of the host can help.
    async fn report_invalid(&self, reason: String) -> Result<Outcome, BringUpError> {
        let found = (Status::False, Reason::Invalid, reason);
        self.report_once(found).await?;
        Ok(Outcome::RequeueAfter(SLOW_RETRY))
    }

    /// Stores the condition of the Vmm stage, with an event if it is another one than before.
    async fn report_once(&self, found: (Status, Reason, String)) -> Result<(), BringUpError> {
        let (engine, vm) = (self.engine, self.vm);
        let is_known = engine.store.read(|world| {
            let status = world.status(vm.meta.uid, Stage::Vmm);
            status.is_some_and(|status| {
                let known = &status.condition;
                (known.status, known.reason, &known.message) == (found.0, found.1, &found.2)
            })
        });
        if !is_known {
            let object = ObjectRef::vm(&vm.meta.name);
            engine.record_event(EventType::Warning, &object, found.1, &found.2);
        }
        Ok(engine.set_condition(vm, Stage::Vmm, found).await?)
    }

    /// Creates the VM's own disk, if it has one, before its VMM starts. Returns a note about an existing disk.
    async fn make_disk(&mut self, desired: &disk::Desired) -> Result<Option<String>, BringUpError> {
        if desired.spec.is_none() {
            return Ok(None);
        }
        let (engine, vm) = (self.engine, self.vm);
        let reconciler = disk::Disks {
            places: engine.processes.files().clone(),
            ..disk::Disks::default()
        };
        let progress = reconciler.progress.clone();
        let made = Box::pin(self.run_stage(Stage::Vmm, &reconciler, desired));
        // A copy may take long. The number of concurrent copies is limited in `disk`.
        release_worker_unlimited(async {
            tokio::select! {
                made = made => Ok(disk::image_note(desired, &made?)),
                failed = engine.report_copy_progress(vm, &progress) => Err(BringUpError::Store(failed)),
                () = engine.until_changed(vm) => Err(BringUpError::Outcome(Outcome::Converged)),
            }
        })
        .await
    }
}
