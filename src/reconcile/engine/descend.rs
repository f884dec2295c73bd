//! Tears a VM down: the same plans as for bringing it up, with empty desired state.
//! Out of scope: bringing up; orphans ([`super::stray`]).

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
use crate::reconcile::net::port::{self, Location};
use crate::reconcile::record::Record;
use crate::reconcile::{Convergence, Reconcile, disk, firewall, net, storage, vmm};
use crate::runtime::queue::Outcome;
use crate::store::{self, Change};

/// The resources that a VM may have on the host, according to its mode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// A namespace and a veth.
    Isolated,
    /// A TAP on a bridge.
    Bridged {
        tap: String,
        /// The bridge, and the VM's address on it, if known.
        place: Option<(String, std::net::Ipv4Addr)>,
    },
    /// A namespace and the resources that plugins created.
    Plugged,
}

/// The reason why a stage is not torn down yet.
pub(super) struct Stuck {
    /// Status, reason and message for its condition.
    pub(super) found: (Status, Reason, String),
    /// When to try again.
    pub(super) outcome: Outcome,
}

impl Engine {
    /// Tears a VM down: each stage, from the last to the first, is converged to an empty desired state and released.
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

    /// Reports the path of a persistent disk, which is not removed with its VM.
    fn tell_what_is_kept(&self, vm: &Vm) {
        let name = &vm.meta.name;
        let storage = &vm.spec.storage;
        let disk = storage::lying(storage, self.processes.disk_dir(), name);
        if let Some(disk) = disk.filter(|_| storage.persistent) {
            let message = format!("the persistent disk is kept: {}", disk.display());
            let object = format!("vm/{name}");
            self.note(EventType::Normal, &object, "DiskKept", &message);
        }
    }

    /// The stages that a VM has acquired, in the order of the pipeline.
    pub(super) fn held(&self, uid: Uid) -> Vec<Rung> {
        self.store.read(|world| {
            let held = |rung: &Rung| world.page(uid, *rung).is_some_and(|page| page.held);
            LADDER.into_iter().filter(held).collect()
        })
    }

    /// The resources that a VM may have on the host.
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
            // Its exit needs no notification.
            Rung::Vmm => self.processes.watch(uid, None),
            // A new attachment is checked by its plugins again.
            Rung::Net => self.check_again(uid),
            Rung::Lease | Rung::Firewall => {}
        }
        // The record is removed together with the namespace.
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
            // The VM cannot send packets any more, so no new entry is created.
            Some(address) => self.forget_flows(address).await,
            None => Ok(()),
        }
    }

    /// Deletes the host's connection tracking entries of this address.
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

    /// The address of the VM with this label, from its lease or its record.
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

    /// Converges a stage to the empty desired state.
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
                    last_location: place.clone().map(|(bridge, ip)| Location { bridge, ip }),
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
                    allowed: None,
                    last_verified: None,
                };
                let hands = self.gate();
                meet.meet(Rung::Firewall, &hands, &desired).await.map(drop)
            }
            Standing::Plugged => self.stop_redirecting(label, meet).await,
        }
    }
}

/// Tears down the resources with a label.
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
        debug!(label = %self.label, %rung, ?taken, "torn down");
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
