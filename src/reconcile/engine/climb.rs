//! Brings a VM up: each stage is acquired and converged, and its result is stored together with the acquisition of the next.
//! Out of scope: what a stage does, teardown.

use std::sync::atomic::Ordering;
use std::time::Duration;

use tracing::debug;

use super::step::{Ascent, Climbing, Meet, Ready, Stop, about};
use super::{Engine, SLOW};
use crate::api::condition::{Reason, Status};
use crate::api::host_group::{Origin, UpdatePolicy};
use crate::api::lease::{Address, Lease};
use crate::api::meta::Uid;
use crate::api::network::{Connection, NetworkSpec, TapOwner};
use crate::api::rung::Rung;
use crate::api::storage::Bytes;
use crate::api::vm::{Hypervisor, Power, Vm};
use crate::clock;
use crate::host::image::Progress;
use crate::host::process::user_lives;
use crate::reconcile::contest::CALM;
use crate::reconcile::disk;
use crate::reconcile::group::{self, Claim};
use crate::reconcile::life::Verdict;
use crate::reconcile::record::Record;
use crate::reconcile::storage::Disks;
use crate::reconcile::vmm;
use crate::runtime::controller::without_worker;
use crate::runtime::queue::Outcome;
use crate::store::{self, Durable, Gate, LeaseError};

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
const COPY_WORDS: Duration = Duration::from_secs(2);
/// The pending step while the files of a VM are observed.
const FILES: &str = "observe the files that the VM names";
/// Interval between checks whether a running copy is still required.
const COPY_STEP: Duration = Duration::from_millis(250);

impl Engine {
    /// Brings a VM up: each stage is acquired and converged, and its result is stored together with the acquisition of the next one.
    pub(super) async fn climb(&self, vm: &Vm, failures: u32) -> Result<Outcome, store::Error> {
        let (leased, taken) = self.take_claimed_lease(vm.meta.uid).await?;
        let (vm, lease) = match leased {
            Ok(leased) => leased,
            Err(outcome) => return Ok(outcome),
        };
        let mut climbing = Climbing {
            engine: self,
            vm: &vm,
            taken,
            contested: None,
        };
        let climbed = match self.connect(&vm, lease, &mut climbing).await {
            Ok(Some(connection)) => climbing.run_process(&connection, failures).await,
            Ok(None) => Ok(Outcome::After(SLOW)),
            Err(stop) => Err(stop),
        };
        match climbed {
            // Observe again when the conflict may be over.
            Ok(Outcome::Converged) if climbing.contested.is_some() => Ok(Outcome::After(CALM)),
            Ok(outcome) | Err(Stop::Outcome(outcome)) => Ok(outcome),
            Err(Stop::Store(error)) => Err(error),
        }
    }

    /// Converges the Net and Firewall stages in the VM's mode. None: there is no lease of this mode, or the plugins returned no connection.
    pub(super) async fn connect<A: Ascent>(
        &self,
        vm: &Vm,
        lease: Option<Lease>,
        ascent: &mut A,
    ) -> Result<Option<Connection>, A::Stop> {
        // The CNI cache has the addresses that plugins assigned.
        let kept = lease.clone();
        let kept = kept.filter(|lease| !matches!(lease.address, Address::Plugged { .. }));
        let record = self.record(vm, kept);
        let address = lease.map(|lease| lease.address);
        match (&vm.spec.network, address) {
            // Each on the heap: otherwise the stack of a worker would have to hold all three.
            (NetworkSpec::Isolated(_), Some(Address::Block { block, .. })) => {
                let connecting = self.connect_isolated(vm, block, record, ascent);
                Box::pin(connecting).await.map(Some)
            }
            (NetworkSpec::Bridge(spec), Some(address @ Address::Bridged { .. })) => {
                let connecting = self.connect_bridged(vm, spec, &address, record, ascent);
                Box::pin(connecting).await.map(Some)
            }
            (NetworkSpec::Cni(spec), _) => {
                Box::pin(self.connect_plugged(vm, spec, record, ascent)).await
            }
            // An existing VM with a lease of another mode waits for its replacement.
            (NetworkSpec::Isolated(_) | NetworkSpec::Bridge(_), _) => Ok(None),
        }
    }

    /// Returns the desired process of a VM with this connection, or the reason why it cannot run, as text for users.
    pub(super) async fn process(
        &self,
        vm: &Vm,
        connection: &Connection,
        disks: &Disks,
    ) -> Result<vmm::Desired, String> {
        let (spec, name) = (&vm.spec, &vm.meta.name);
        let label = self.instance.vm_label(name, vm.meta.uid);
        let user = self.store.read(|world| world.vmm_id(vm.meta.uid));
        let processes = &self.processes;
        let desired = processes.desired(spec, name, &label, connection, disks, user);
        Ok(self.living(vm, desired.await?))
    }

    /// Returns the desired disks of a VM, or the reason why it cannot have them, as text for users.
    pub(super) async fn disks(&self, vm: &Vm) -> Result<Disks, String> {
        let label = self.instance.vm_label(&vm.meta.name, vm.meta.uid);
        self.processes
            .disks(&vm.spec.storage, &vm.meta.name, &label)
            .await
    }

    /// As [`Self::take_lease`], after claiming the address on the host. In most cases the group has claimed it already, when it chose it.
    async fn take_claimed_lease(&self, uid: Uid) -> Result<(Leased, Durable), store::Error> {
        let mut unclaimed = None;
        let mut awaited = Vec::new();
        loop {
            match self.take_lease(uid, unclaimed.take()) {
                Ok(done) => return Ok(done),
                Err(NoLease::Store(error)) => return Err(error),
                Err(NoLease::Unclaimed(lacking)) => match self.claims.hold(lacking).await {
                    Ok(held) => awaited.push(held),
                    Err(error) => unclaimed = Some(error.to_string()),
                },
            }
        }
    }

    /// Acquires and converges the Lease stage in one transaction: its actual state is the store itself. `unclaimed` is the error if no
    /// address can be claimed.
    fn take_lease(
        &self,
        uid: Uid,
        unclaimed: Option<String>,
    ) -> Result<(Leased, Durable), NoLease> {
        let now = clock::now();
        let wants_user = self.wants_user(uid);
        let name = self
            .store
            .read(|world| world.vm(uid).map(|vm| vm.meta.name.clone()));
        let about = name.map(|name| about(uid, &name).to_vec());
        self.store.begin_about(&about.unwrap_or_default(), |txn| {
            let vm = match txn.take_rung(uid, Rung::Lease, now)? {
                Gate::Open(vm) => *vm,
                Gate::Closed(_) | Gate::Gone => return Ok(Err(Outcome::Converged)),
            };
            let generation = vm.meta.generation;
            if let Some(why) = unclaimed {
                let found = (Status::False, Reason::Waiting, why);
                txn.set_condition(uid, Rung::Lease, found, generation, now)?;
                return Ok(Err(Outcome::After(SLOW)));
            }
            let lease = match txn.lease(&vm, now) {
                Ok(lease) => lease,
                Err(LeaseError::Store(error)) => return Err(error.into()),
                Err(error) => {
                    let reason = match error {
                        LeaseError::NoBlock(_)
                        | LeaseError::NoAddress(_)
                        | LeaseError::NotListed(_)
                        | LeaseError::ListUsedUp { .. } => Reason::RangeExhausted,
                        LeaseError::Taken(..) | LeaseError::NoPool | LeaseError::Store(_) => {
                            Reason::Waiting
                        }
                    };
                    let found = (Status::False, reason, error.to_string());
                    txn.set_condition(uid, Rung::Lease, found, generation, now)?;
                    // A new range changes the host requirements, which enqueues the VM.
                    self.turn_away(uid);
                    return Ok(Err(Outcome::After(SLOW)));
                }
            };
            // A VM that exists keeps its address, and its rules are maintained, whatever other daemons claim.
            let exists = txn
                .world()
                .page(uid, Rung::Net)
                .is_some_and(|page| page.held);
            if let Some(lease) = lease.as_ref().filter(|_| !exists) {
                let wanted = group::of_address(&lease.address).into_iter();
                let lacking = self.claims.lacking(wanted.collect());
                if !lacking.is_empty() {
                    return Err(NoLease::Unclaimed(lacking));
                }
            }
            if wants_user && !self.give_user(txn, uid)? {
                let why = format!("no free user for its VMM in {} (--vmm-ids)", self.vmm_ids);
                let found = (Status::False, Reason::RangeExhausted, why);
                txn.set_condition(uid, Rung::Lease, found, generation, now)?;
                return Ok(Err(Outcome::After(SLOW)));
            }
            let found = (Status::True, Reason::Converged, String::new());
            txn.set_condition(uid, Rung::Lease, found, generation, now)?;
            match txn.take_rung(uid, Rung::Net, now)? {
                Gate::Open(vm) => Ok(Ok((*vm, lease))),
                Gate::Closed(_) => {
                    self.turn_away(uid);
                    Ok(Err(Outcome::Converged))
                }
                Gate::Gone => Ok(Err(Outcome::Converged)),
            }
        })
    }

    /// Whether a VM needs a user for its VMM. A VMM that an earlier version started without a user is left unchanged until it ends.
    fn wants_user(&self, uid: Uid) -> bool {
        let without = self.store.read(|world| {
            let vm = world.vm(uid)?;
            let ours = vm.spec.hypervisor != Hypervisor::None;
            Some(ours && world.vmm_id(uid).is_none())
        });
        without == Some(true) && !self.processes.runs(uid)
    }

    /// Assigns a user to a VMM. Returns false if none is free. A user that runs a process on this host is skipped: another daemon may have
    /// the same range.
    fn give_user(&self, txn: &mut store::Txn<'_>, uid: Uid) -> Result<bool, store::Error> {
        let start = self.vmm_ids.start(self.instance.as_str());
        let given = txn.give_vmm_id(uid, &self.vmm_ids, start, user_lives)?;
        Ok(given.is_some())
    }

    /// The user that may open a VM's TAP: that of its VMM, or the configured one if the user starts the VMM.
    pub(super) fn tap_owner(&self, vm: &Vm) -> TapOwner {
        match self.store.read(|world| world.vmm_id(vm.meta.uid)) {
            Some(uid) => TapOwner { uid, gid: None },
            None => vm.spec.network.tap_owner(),
        }
    }

    /// Reports the progress of a copy periodically. Returns only if the progress cannot be stored.
    async fn tell_of_copy(&self, vm: &Vm, progress: &Progress) -> store::Error {
        let began = stamp();
        // The time of the last progress, once a stalled copy is reported.
        let (mut told, mut stuck) = (0, None);
        loop {
            tokio::time::sleep(COPY_WORDS).await;
            let done = progress.done.load(Ordering::Relaxed);
            let total = progress.total.load(Ordering::Relaxed);
            let message = format!("copying the image: {} of {}", Bytes(done), Bytes(total));
            let found = match (done == told, &stuck) {
                (true, Some(_)) => continue,
                (true, None) => {
                    let since = stamp();
                    let message =
                        format!("runs since {began}, no progress since {since}: {message}");
                    stuck = Some(since);
                    (Status::Unknown, Reason::Waiting, message)
                }
                (false, _) => {
                    (told, stuck) = (done, None);
                    (Status::False, Reason::Converging, message)
                }
            };
            if let Err(error) = self.set_condition(vm, Rung::Vmm, found).await {
                return error;
            }
        }
    }

    /// Returns when this version of the VM is no longer desired. Another run of its key follows.
    async fn changed(&self, vm: &Vm) {
        let same = || {
            self.store.read(|world| {
                let now = world.vm(vm.meta.uid);
                now.is_some_and(|now| !now.meta.deleting && now.spec.storage == vm.spec.storage)
            })
        };
        while same() {
            tokio::time::sleep(COPY_STEP).await;
        }
    }

    /// The record from which a daemon that has lost its state adopts the VM.
    fn record(&self, vm: &Vm, lease: Option<Lease>) -> String {
        let (origin, update) = self.store.read(|world| match world.group(&vm.group) {
            Some(group) => (group.origin.clone(), group.spec.update),
            None => (Origin::Apply, UpdatePolicy::default()),
        });
        let record = Record {
            boot_id: self.hands.boot_id.clone(),
            origin,
            update,
            vm: vm.clone(),
            lease,
            vmm_id: self.store.read(|world| world.vmm_id(vm.meta.uid)),
        };
        serde_json::to_string(&record).unwrap_or_default()
    }
}

fn stamp() -> String {
    clock::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

impl Climbing<'_> {
    /// Converges the Vmm stage. The backoff of the key also applies to a VMM that exits repeatedly.
    async fn run_process(
        &mut self,
        connection: &Connection,
        failures: u32,
    ) -> Result<Outcome, Stop> {
        let (engine, vm) = (self.engine, self.vm);
        let stillborn = engine.note_end(vm).await?;
        match (engine.verdict(vm), stillborn) {
            (Verdict::Run, None) => {}
            (Verdict::Run, Some(words)) => return self.stillborn(words).await,
            (verdict @ (Verdict::Down(..) | Verdict::Again), _) => return self.rest(verdict).await,
        }
        let looked = engine.pending(vm, Rung::Vmm, FILES, engine.disks(vm));
        let disks = match looked.await? {
            Ok(disks) => disks,
            Err(unfit) => return self.unfit(unfit).await,
        };
        let looked = engine.process(vm, connection, &disks);
        let looked = engine.pending(vm, Rung::Vmm, FILES, looked);
        let desired = match looked.await? {
            Ok(desired) => desired,
            Err(unfit) => return self.unfit(unfit).await,
        };
        let remark = self.make_disk(&disks.own).await?;
        let hands = &engine.processes.rung;
        let observed = self.meet(Rung::Vmm, hands, &desired).await?;
        debug!(vm = %vm.meta.name, failures, "process is converged");
        let process = observed.process();
        let mark = process.and_then(|identity| engine.running_mark(vm.meta.uid, identity));
        engine.processes.watch(vm.meta.uid, process);
        if vm.power == Power::Paused && process.is_some() {
            return self.held(mark).await;
        }
        // An error is ignored: the process was observed just before.
        let copied = process.and_then(|it| vmm::uses_another_disk(&desired, it.pid).ok().flatten());
        self.ready(
            Rung::Vmm,
            Ready {
                mark,
                message: [
                    remark,
                    copied,
                    engine.processes.places().not_again(&vm.spec),
                ]
                .into_iter()
                .flatten()
                .collect::<Vec<_>>()
                .join("; ")
                .into(),
                ..Ready::default()
            },
        )
        .await?;
        Ok(Outcome::Converged)
    }

    /// Reports a VM that this host cannot run. Only a new spec or a change of the host can help.
    async fn unfit(&self, why: String) -> Result<Outcome, Stop> {
        let found = (Status::False, Reason::Invalid, why);
        self.engine.set_condition(self.vm, Rung::Vmm, found).await?;
        Ok(Outcome::After(SLOW))
    }

    /// Creates the VM's own disk, if it has one, before its VMM starts. Returns a note about an existing disk.
    async fn make_disk(&mut self, desired: &disk::Desired) -> Result<Option<String>, Stop> {
        if desired.want.is_none() {
            return Ok(None);
        }
        let (engine, vm) = (self.engine, self.vm);
        let hands = disk::Disks {
            places: engine.processes.places().clone(),
            ..disk::Disks::default()
        };
        let progress = hands.progress.clone();
        let made = Box::pin(self.meet(Rung::Vmm, &hands, desired));
        // A copy may take long. The number of concurrent copies is limited in `disk`.
        without_worker(async {
            tokio::select! {
                made = made => Ok(disk::remark(desired, &made?)),
                failed = engine.tell_of_copy(vm, &progress) => Err(Stop::Store(failed)),
                () = engine.changed(vm) => Err(Stop::Outcome(Outcome::Converged)),
            }
        })
        .await
    }
}
