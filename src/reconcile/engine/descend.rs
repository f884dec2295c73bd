//! Tears a VM down: the same plans as for bringing it up, with empty desired state.
//! Out of scope: bringing up; what no object references ([`super::stray`]).

use std::net::Ipv4Addr;

use tracing::debug;

use super::Engine;
use super::step::{Meet, about, describe};
use crate::api::condition::{Reason, Status};
use crate::api::event::EventType;
use crate::api::lease::Address;
use crate::api::meta::Uid;
use crate::api::network::NetworkSpec;
use crate::api::rung::{LADDER, Rung};
use crate::api::vm::Vm;
use crate::clock;
use crate::host::fs;
use crate::owner::{self, Label, Owner};
use crate::reconcile::net::port::{self, Remains};
use crate::reconcile::record::Record;
use crate::reconcile::{Convergence, Reconcile, disk, firewall, net, storage, vmm};
use crate::runtime::queue::Outcome;
use crate::store::{self, Change};

/// What a VM may have on the host, as far as its mode tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// A namespace of its own, and a veth.
    Isolated,
    /// A TAP on a bridge.
    Bridged {
        tap: String,
        /// The bridge, and the VM's address on it, where known.
        place: Option<(String, std::net::Ipv4Addr)>,
    },
    /// A namespace of its own, and what the plugins made.
    Plugged,
}

/// Why a rung is not empty yet.
pub(super) struct Stuck {
    /// Status, reason and words for its condition.
    pub(super) found: (Status, Reason, String),
    /// When to look again.
    pub(super) outcome: Outcome,
}

impl Engine {
    /// Down: from the top, each rung's desired is nothing.
    pub(super) async fn descend(&self, vm: &Vm) -> Result<Outcome, store::Error> {
        let uid = vm.meta.uid;
        let label = self.instance.vm_label(&vm.meta.name, uid);
        let standing = self.standing(vm);
        for rung in self.held(uid).into_iter().rev() {
            if let Err(stuck) = self.take_down(rung, &label, &standing).await {
                self.set_condition(vm, rung, stuck.found).await?;
                return Ok(stuck.outcome);
            }
            let now = clock::now();
            self.write(|txn| txn.leave_rung(uid, rung, now)).await?;
        }
        self.tell_what_is_kept(vm);
        self.write(|txn| txn.remove_if_free(uid)).await?;
        Ok(Outcome::Converged)
    }

    /// What people have written into a VM is never removed by us; so it is said where it lies.
    fn tell_what_is_kept(&self, vm: &Vm) {
        let name = &vm.meta.name;
        let storage = &vm.spec.storage;
        let disk = storage::lying(storage, self.processes.disk_dir(), name);
        if let Some(disk) = disk.filter(|_| storage.persistent) {
            let message = format!("the persistent disk stays: {}", disk.display());
            let object = format!("vm/{name}");
            self.note(EventType::Normal, &object, "DiskKept", &message);
        }
    }

    /// Which rungs a VM has taken, from below.
    pub(super) fn held(&self, uid: Uid) -> Vec<Rung> {
        self.store.read(|world| {
            let held = |rung: &Rung| world.page(uid, *rung).is_some_and(|page| page.held);
            LADDER.into_iter().filter(held).collect()
        })
    }

    /// What a VM may have on the host.
    pub(super) fn standing(&self, vm: &Vm) -> Standing {
        match &vm.spec.network {
            NetworkSpec::Isolated(_) => Standing::Isolated,
            NetworkSpec::Cni(_) => Standing::Plugged,
            NetworkSpec::Bridge(spec) => {
                let lease = self.store.read(|world| world.lease(&vm.meta.name).cloned());
                Standing::Bridged {
                    tap: spec.tap(vm.index),
                    place: lease.and_then(|lease| match lease.address {
                        Address::Bridged { bridge, ip, .. } => Some((bridge, ip)),
                        Address::Block { .. } | Address::Plugged { .. } => None,
                    }),
                }
            }
        }
    }

    pub(super) async fn take_down(
        &self,
        rung: Rung,
        label: &Label,
        standing: &Standing,
    ) -> Result<(), Stuck> {
        let uid = owner::uid_of(label);
        match rung {
            // Nobody is to be told of its end.
            Rung::Vmm => self.processes.watch(uid, None),
            // Nothing is left that its plugins could be asked about.
            Rung::Net => self.check_again(uid),
            Rung::Lease | Rung::Firewall => {}
        }
        // The record goes with the namespace.
        let address = match rung {
            Rung::Net => self.address_of(label),
            Rung::Lease | Rung::Firewall | Rung::Vmm => None,
        };
        let mut emptying = Emptying {
            engine: self,
            label,
        };
        self.empty(rung, label, standing, &mut emptying).await?;
        match address {
            // Nothing comes from the VM any more that would make an entry.
            Some(address) => self.forget_flows(address).await,
            None => Ok(()),
        }
    }

    /// Deletes what the host's connection tracking knows of this address.
    pub(super) async fn forget_flows(&self, address: Ipv4Addr) -> Result<(), Stuck> {
        let done = self.flows.forget(&self.hands.home, address).await;
        done.map_err(|error| {
            let message = format!("{error}: {}", error.source);
            Stuck {
                found: (Status::False, Reason::ActionFailed, message),
                outcome: Outcome::Failed,
            }
        })
    }

    /// The address of the VM that the label is of, by its lease or by its record.
    fn address_of(&self, label: &Label) -> Option<Ipv4Addr> {
        let uid = owner::uid_of(label);
        let leased = self.store.read(|world| {
            let vm = world.vm(uid)?;
            let lease = world.lease(&vm.meta.name)?;
            Some(lease.address.ip())
        });
        leased.or_else(|| {
            let path = self.run_dir.vm_dir(uid).join(net::RECORD);
            let record = fs::read_text(&path).ok().flatten()?;
            let record: Record = serde_json::from_str(&record).ok()?;
            Some(record.lease?.address.ip())
        })
    }

    /// Of that rung, nothing is wanted.
    pub(super) async fn empty<M: Meet>(
        &self,
        rung: Rung,
        label: &Label,
        standing: &Standing,
        meet: &mut M,
    ) -> Result<(), M::Stop> {
        match rung {
            Rung::Lease => Ok(()),
            Rung::Net => self.empty_net(label, standing, meet).await,
            Rung::Firewall => self.empty_firewall(label, standing, meet).await,
            Rung::Vmm => {
                let desired = vmm::Desired {
                    grace: self.grace(owner::uid_of(label)),
                    forced: self.is_forced(owner::uid_of(label)),
                    ..self.processes.nothing(label)
                };
                let hands = &self.processes.rung;
                meet.meet(rung, hands, &desired).await?;
                match self.processes.no_disk(label) {
                    Some(desired) => {
                        let hands = disk::Disks::default();
                        meet.meet(rung, &hands, &desired).await.map(drop)
                    }
                    None => Ok(()),
                }
            }
        }
    }

    async fn empty_net<M: Meet>(
        &self,
        label: &Label,
        standing: &Standing,
        meet: &mut M,
    ) -> Result<(), M::Stop> {
        match standing {
            Standing::Isolated => {
                let desired = net::Desired {
                    label: label.clone(),
                    run_dir: self.run_dir.0.clone(),
                    slot: None,
                };
                meet.meet(Rung::Net, &self.net(), &desired).await.map(drop)
            }
            Standing::Bridged { tap, place } => {
                let desired = port::Desired {
                    label: label.clone(),
                    run_dir: self.run_dir.0.clone(),
                    tap: tap.clone(),
                    slot: None,
                    remains: place.clone().map(|(bridge, ip)| Remains { bridge, ip }),
                };
                meet.meet(Rung::Net, &self.port(), &desired).await.map(drop)
            }
            Standing::Plugged => self.unplug(label, meet).await,
        }
    }

    async fn empty_firewall<M: Meet>(
        &self,
        label: &Label,
        standing: &Standing,
        meet: &mut M,
    ) -> Result<(), M::Stop> {
        match standing {
            Standing::Isolated => {
                let desired = firewall::Desired {
                    netns: self.run_dir.netns(&owner::names_of(label)),
                    lock: self.run_dir.vm_dir(owner::uid_of(label)).join(net::LOCK),
                    rules: None,
                };
                let hands = self.firewall();
                meet.meet(Rung::Firewall, &hands, &desired).await.map(drop)
            }
            Standing::Bridged { tap, .. } => {
                let desired = firewall::port::Desired {
                    label: label.clone(),
                    tap: tap.clone(),
                    pass: None,
                    before: None,
                };
                let hands = self.gate();
                meet.meet(Rung::Firewall, &hands, &desired).await.map(drop)
            }
            Standing::Plugged => self.stop_redirecting(label, meet).await,
        }
    }
}

/// What bears a label, on its way off the host.
struct Emptying<'a> {
    engine: &'a Engine,
    label: &'a Label,
}

impl Meet for Emptying<'_> {
    type Stop = Stuck;

    async fn meet<R: Reconcile>(
        &mut self,
        rung: Rung,
        reconciler: &R,
        desired: &R::Desired,
    ) -> Result<R::Observed, Stuck> {
        let about = match &self.label.owner {
            Owner::Vm { uid, name } => about(*uid, name).to_vec(),
            Owner::Ground => vec![Change::Ground],
        };
        let done = self.engine.converge(reconciler, desired, &about).await;
        let Convergence { taken, result } = done;
        debug!(label = %self.label, %rung, ?taken, "taken down");
        match &result {
            Ok(_) => {}
            Err(error) => {
                let key = self.engine.key_of(self.label);
                let awaited = self.engine.awaits(key, owner::uid_of(self.label), error);
                return Err(Stuck {
                    found: describe(&result),
                    outcome: awaited.unwrap_or(Outcome::Failed),
                });
            }
        }
        result.map_err(|error| Stuck {
            found: (Status::Unknown, Reason::ObserveFailed, error.to_string()),
            outcome: Outcome::Failed,
        })
    }
}
