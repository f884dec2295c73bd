//! A VM up its ladder: each rung is taken, converged, and written down together with the taking of the next.
//! Not here: what a rung does, the way down.

use tracing::debug;

use super::step::Step;
use super::{Engine, SLOW};
use crate::api::condition::{Reason, Status};
use crate::api::host_group::{Origin, UpdatePolicy};
use crate::api::lease::{Address, Lease};
use crate::api::meta::Uid;
use crate::api::network::{Connection, NetworkSpec};
use crate::api::rung::{LADDER, Rung};
use crate::api::vm::{Hypervisor, Vm};
use crate::clock;
use crate::host::process::Identity;
use crate::reconcile::fold::ProcessMark;
use crate::reconcile::record::Record;
use crate::runtime::queue::Outcome;
use crate::store::{self, Gate, LeaseError, Txn};

/// How far a VM has climbed before its VMM: it is connected, or why not yet.
pub(super) type Reached = Result<Connection, Outcome>;

impl Engine {
    /// Up: each rung is taken, converged, written down together with the taking of the next.
    pub(super) async fn climb(&self, vm: &Vm, failures: u32) -> Result<Outcome, store::Error> {
        let uid = vm.meta.uid;
        let (vm, lease) = match self.take_lease(uid).await? {
            Ok(taken) => taken,
            Err(outcome) => return Ok(outcome),
        };
        // What plugins gave is remembered in their own cache.
        let kept = lease.clone();
        let kept = kept.filter(|lease| !matches!(lease.address, Address::Plugged { .. }));
        let record = self.record(&vm, kept);
        let address = lease.map(|lease| lease.address);
        let reached = match (&vm.spec.network, address) {
            (NetworkSpec::Isolated(_), Some(Address::Block { block, .. })) => {
                self.climb_isolated(&vm, block, record).await?
            }
            (NetworkSpec::Bridge(spec), Some(address @ Address::Bridged { .. })) => {
                self.climb_bridged(&vm, spec, &address, record).await?
            }
            (NetworkSpec::Cni(spec), _) => self.climb_plugged(&vm, spec, record).await?,
            // A lease of another mode under a VM that stands: it waits to be replaced.
            (NetworkSpec::Isolated(_) | NetworkSpec::Bridge(_), _) => Err(Outcome::After(SLOW)),
        };
        match reached {
            Ok(connection) => self.run_process(&vm, &connection, failures).await,
            Err(outcome) => Ok(outcome),
        }
    }

    /// Both transactions of the lease rung in one: its world is the store itself.
    pub(super) async fn take_lease(
        &self,
        uid: Uid,
    ) -> Result<Result<(Vm, Option<Lease>), Outcome>, store::Error> {
        let now = clock::now();
        self.write(|txn| {
            let vm = match txn.take_rung(uid, Rung::Lease, now)? {
                Gate::Open(vm) => *vm,
                Gate::Closed(_) | Gate::Gone => return Ok(Err(Outcome::Converged)),
            };
            let generation = vm.meta.generation;
            let lease = match txn.lease(&vm, now) {
                Ok(lease) => lease,
                Err(LeaseError::Store(error)) => return Err(error),
                Err(error) => {
                    let reason = match error {
                        LeaseError::NoBlock(_)
                        | LeaseError::NoAddress(_)
                        | LeaseError::NotListed(_) => Reason::RangeExhausted,
                        LeaseError::Taken(_) | LeaseError::NoPool | LeaseError::Store(_) => {
                            Reason::Waiting
                        }
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
    ///
    /// It is waited for until that is durable if the next rung will touch the host.
    pub(super) async fn ready_and_take(
        &self,
        vm: &Vm,
        rung: Rung,
        mark: Option<String>,
    ) -> Result<bool, store::Error> {
        let now = clock::now();
        let (uid, generation) = (vm.meta.uid, vm.meta.generation);
        let next = LADDER.into_iter().find(|next| *next > rung);
        let change = |txn: &mut Txn<'_>| {
            let found = (Status::True, Reason::Converged, String::new());
            txn.set_condition(uid, rung, found, generation, now)?;
            if mark.is_some() {
                txn.set_mark(uid, rung, mark)?;
            }
            let Some(next) = next else {
                return Ok(true);
            };
            Ok(match txn.take_rung(uid, next, now)? {
                Gate::Open(now) => now.meta.generation == generation,
                Gate::Closed(_) | Gate::Gone => false,
            })
        };
        match (next, vm.spec.hypervisor) {
            (None, _) | (Some(Rung::Vmm), Hypervisor::None) => self.store.write_behind(change),
            (Some(_), _) => self.write(change).await,
        }
    }

    /// The last rung. A VMM that ends again and again backs off with its key.
    pub(super) async fn run_process(
        &self,
        vm: &Vm,
        connection: &Connection,
        failures: u32,
    ) -> Result<Outcome, store::Error> {
        let label = self.instance.vm_label(&vm.meta.name, vm.meta.uid);
        let (spec, name) = (&vm.spec, &vm.meta.name);
        let desired = match self.processes.desired(spec, name, &label, connection).await {
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
    pub(super) fn process_mark(&self, uid: Uid, identity: &Identity) -> String {
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

    /// What a daemon that has lost its state reads to adopt the VM.
    pub(super) fn record(&self, vm: &Vm, lease: Option<Lease>) -> String {
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
        };
        serde_json::to_string(&record).unwrap_or_default()
    }
}
