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

/// A VM with its lease, if it has one that is ours to give; or why it goes no further.
type Leased = Result<(Vm, Option<Lease>), Outcome>;

/// Why the transaction of a lease was rolled back.
enum NoLease {
    /// This must be claimed on the host before.
    Unclaimed(Vec<Claim>),
    Store(store::Error),
}

impl From<store::Error> for NoLease {
    fn from(error: store::Error) -> Self {
        Self::Store(error)
    }
}

/// Between two words about a copy under way.
const COPY_WORDS: Duration = Duration::from_secs(2);
/// What is pending while they are looked at.
const FILES: &str = "observe the files that the VM names";
/// Between two looks whether a copy under way is still wanted.
const COPY_STEP: Duration = Duration::from_millis(250);

impl Engine {
    /// Up: each rung is taken, converged, written down together with the taking of the next.
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
            // Looks again when the conflict may be over.
            Ok(Outcome::Converged) if climbing.contested.is_some() => Ok(Outcome::After(CALM)),
            Ok(outcome) | Err(Stop::Outcome(outcome)) => Ok(outcome),
            Err(Stop::Store(error)) => Err(error),
        }
    }

    /// Up the two middle rungs, in the VM's mode. None: what it would be connected by is not there.
    pub(super) async fn connect<A: Ascent>(
        &self,
        vm: &Vm,
        lease: Option<Lease>,
        ascent: &mut A,
    ) -> Result<Option<Connection>, A::Stop> {
        // What plugins gave is remembered in their own cache.
        let kept = lease.clone();
        let kept = kept.filter(|lease| !matches!(lease.address, Address::Plugged { .. }));
        let record = self.record(vm, kept);
        let address = lease.map(|lease| lease.address);
        match (&vm.spec.network, address) {
            // On the heap each: the stack of a worker would have to hold all three.
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
            // A lease of another mode under a VM that stands: it waits to be replaced.
            (NetworkSpec::Isolated(_) | NetworkSpec::Bridge(_), _) => Ok(None),
        }
    }

    /// What is to run for a VM that is connected so, or why it cannot, in words.
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

    /// Which disks a VM is to have, or why it cannot, in words.
    pub(super) async fn disks(&self, vm: &Vm) -> Result<Disks, String> {
        let label = self.instance.vm_label(&vm.meta.name, vm.meta.uid);
        self.processes
            .disks(&vm.spec.storage, &vm.meta.name, &label)
            .await
    }

    /// As [`Self::take_lease`], with the address claimed on the host. It is in most cases: by the group, when it chose it.
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

    /// Both transactions of the Lease stage in one: its actual state is the store itself. `unclaimed`: why no address can be claimed.
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
                    // A range that comes is laid into the ground.
                    self.turn_away(uid);
                    return Ok(Err(Outcome::After(SLOW)));
                }
            };
            // A VM that exists keeps its address, and its rules are kept up, whatever others claim.
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
                let why = format!(
                    "no user is left for its VMM in {} (--vmm-ids)",
                    self.vmm_ids
                );
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

    /// Whether a VM is to be given a user for its VMM. One that runs without, from before there were any, is left alone until it ends.
    fn wants_user(&self, uid: Uid) -> bool {
        let without = self.store.read(|world| {
            let vm = world.vm(uid)?;
            let ours = vm.spec.hypervisor != Hypervisor::None;
            Some(ours && world.vmm_id(uid).is_none())
        });
        without == Some(true) && !self.processes.runs(uid)
    }

    /// False: none is left. One that something on this host runs as is passed over: another daemon may have the same range.
    fn give_user(&self, txn: &mut store::Txn<'_>, uid: Uid) -> Result<bool, store::Error> {
        let start = self.vmm_ids.start(self.instance.as_str());
        let given = txn.give_vmm_id(uid, &self.vmm_ids, start, user_lives)?;
        Ok(given.is_some())
    }

    /// Who may open a VM's TAP: its VMM, or whoever brings one.
    pub(super) fn tap_owner(&self, vm: &Vm) -> TapOwner {
        match self.store.read(|world| world.vmm_id(vm.meta.uid)) {
            Some(uid) => TapOwner { uid, gid: None },
            None => vm.spec.network.tap_owner(),
        }
    }

    /// Says, every so often, how far the copy under way has come. Comes back only when that cannot be written down.
    async fn tell_of_copy(&self, vm: &Vm, progress: &Progress) -> store::Error {
        let began = stamp();
        // Since when it has come no further, once that is reported.
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

    /// Comes back when this edition of the VM is not wanted any more: another run of its key follows then.
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

    /// What a daemon that has lost its state reads to adopt the VM.
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
    /// The last rung. A VMM that ends again and again backs off with its key.
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
        debug!(vm = %vm.meta.name, failures, "process is as wanted");
        let process = observed.process();
        let mark = process.and_then(|identity| engine.running_mark(vm.meta.uid, identity));
        engine.processes.watch(vm.meta.uid, process);
        if vm.power == Power::Paused && process.is_some() {
            return self.held(mark).await;
        }
        // A failure to observe is no evidence; the process was seen a moment ago.
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

    /// Only a new spec, or a host that has changed, can help.
    async fn unfit(&self, why: String) -> Result<Outcome, Stop> {
        let found = (Status::False, Reason::Invalid, why);
        self.engine.set_condition(self.vm, Rung::Vmm, found).await?;
        Ok(Outcome::After(SLOW))
    }

    /// The VM's own disk, if it is to have one: there before its VMM starts. What is to be said of it, if it is there.
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
        // A copy may take long; how many are made at once is bounded there.
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
