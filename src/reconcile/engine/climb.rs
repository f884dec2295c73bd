//! A VM up its ladder: each rung is taken, converged, and written down together with the taking of the next.
//! Not here: what a rung does, the way down.

use tracing::debug;

use super::step::{Ascent, Climbing, Meet, Ready, Stop};
use super::{Engine, SLOW};
use crate::api::condition::{Reason, Status};
use crate::api::host_group::{Origin, UpdatePolicy};
use crate::api::lease::{Address, Lease};
use crate::api::meta::Uid;
use crate::api::network::{Connection, NetworkSpec};
use crate::api::rung::Rung;
use crate::api::vm::Vm;
use crate::clock;
use crate::host::process::Identity;
use crate::reconcile::fold::ProcessMark;
use crate::reconcile::record::Record;
use crate::reconcile::vmm;
use crate::runtime::queue::Outcome;
use crate::store::{self, Durable, Gate, LeaseError};

/// A VM with its lease, if it has one that is ours to give; or why it goes no further.
type Leased = Result<(Vm, Option<Lease>), Outcome>;

impl Engine {
    /// Up: each rung is taken, converged, written down together with the taking of the next.
    pub(super) async fn climb(&self, vm: &Vm, failures: u32) -> Result<Outcome, store::Error> {
        let (leased, taken) = self.take_lease(vm.meta.uid)?;
        let (vm, lease) = match leased {
            Ok(leased) => leased,
            Err(outcome) => return Ok(outcome),
        };
        let mut climbing = Climbing {
            engine: self,
            vm: &vm,
            taken,
        };
        let climbed = match self.connect(&vm, lease, &mut climbing).await {
            Ok(Some(connection)) => climbing.run_process(&connection, failures).await,
            Ok(None) => Ok(Outcome::After(SLOW)),
            Err(stop) => Err(stop),
        };
        match climbed {
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
            (NetworkSpec::Isolated(_), Some(Address::Block { block, .. })) => self
                .connect_isolated(vm, block, record, ascent)
                .await
                .map(Some),
            (NetworkSpec::Bridge(spec), Some(address @ Address::Bridged { .. })) => self
                .connect_bridged(vm, spec, &address, record, ascent)
                .await
                .map(Some),
            (NetworkSpec::Cni(spec), _) => self.connect_plugged(vm, spec, record, ascent).await,
            // A lease of another mode under a VM that stands: it waits to be replaced.
            (NetworkSpec::Isolated(_) | NetworkSpec::Bridge(_), _) => Ok(None),
        }
    }

    /// What is to run for a VM that is connected so, or why it cannot, in words.
    pub(super) async fn process(
        &self,
        vm: &Vm,
        connection: &Connection,
    ) -> Result<vmm::Desired, String> {
        let (spec, name) = (&vm.spec, &vm.meta.name);
        let label = self.instance.vm_label(name, vm.meta.uid);
        self.processes.desired(spec, name, &label, connection).await
    }

    /// Both transactions of the lease rung in one: its world is the store itself.
    fn take_lease(&self, uid: Uid) -> Result<(Leased, Durable), store::Error> {
        let now = clock::now();
        self.store.begin(|txn| {
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
        };
        serde_json::to_string(&record).unwrap_or_default()
    }
}

impl Climbing<'_> {
    /// The last rung. A VMM that ends again and again backs off with its key.
    async fn run_process(
        &mut self,
        connection: &Connection,
        failures: u32,
    ) -> Result<Outcome, Stop> {
        let (engine, vm) = (self.engine, self.vm);
        let desired = match engine.process(vm, connection).await {
            Ok(desired) => desired,
            Err(unfit) => {
                let found = (Status::False, Reason::Invalid, unfit);
                engine.set_condition(vm, Rung::Vmm, found).await?;
                // Only a new spec, or a host that has changed, can help.
                return Ok(Outcome::After(SLOW));
            }
        };
        let hands = &engine.processes.rung;
        let observed = self.meet(Rung::Vmm, hands, &desired).await?;
        debug!(vm = %vm.meta.name, failures, "process is as wanted");
        let process = observed.process();
        let mark = process.map(|identity| engine.process_mark(vm.meta.uid, identity));
        self.ready(
            Rung::Vmm,
            Ready {
                mark,
                ..Ready::default()
            },
        )
        .await?;
        engine.processes.watch(vm.meta.uid, process);
        Ok(Outcome::Converged)
    }
}
