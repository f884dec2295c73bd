//! The two middle rungs of a CNI VM: what the plugins make, and the redirect and the gate between it and the TAP.
//! Out of scope: the lease below and the VMM above; how plugins are run.

use std::collections::BTreeSet;
use std::sync::{Arc, PoisonError};

use ipnetwork::Ipv4Network;
use tracing::{info, warn};

use super::step::{Ascent, Meet, Ready};
use super::{Engine, Key};
use crate::api::cni::CniOptions;
use crate::api::event::EventType;
use crate::api::lease::Address;
use crate::api::meta::Uid;
use crate::api::network::{CniSpec, Connection, NetworkSpec};
use crate::api::rung::Rung;
use crate::api::vm::Vm;
use crate::clock;
use crate::owner::{self, Label, Owner, TAP};
use crate::reconcile::firewall::redirect::{self, Join, Redirect};
use crate::reconcile::net::cni::{
    self, Attach, Checking, Desired, IFNAME, Keep, Notice, Tell, Want,
};

/// Of the condition of a VM whose network's configuration is another one than it was connected by.
const CHANGED: &str =
    "the network's configuration has changed since; this VM keeps what it was given";

impl Engine {
    /// None: the plugins' result tells of no connection.
    pub(super) async fn connect_plugged<A: Ascent>(
        &self,
        vm: &Vm,
        spec: &CniSpec,
        record: String,
        ascent: &mut A,
    ) -> Result<Option<Connection>, A::Stop> {
        let uid = vm.meta.uid;
        let label = self.instance.vm_label(&vm.meta.name, uid);
        let before = || {
            // A lease that an earlier version wrote has no MAC.
            let known = self.known_connection(uid)?;
            Some(Keep {
                ip: known.ip,
                mac: known.mac,
            })
        };
        let keep = self.kept(vm, spec).or_else(before);
        let was_known = keep.is_some();
        let desired = Desired {
            label: label.clone(),
            run_dir: self.run_dir.0.clone(),
            network: Some(spec.network_name.clone()),
            forced: false,
            want: Some(Want {
                tap_owner: self.tap_owner(vm),
                record,
                keep,
                asked: CniOptions {
                    ips: spec.cni.ips_of(vm.index).to_vec(),
                    ..spec.cni.clone()
                },
            }),
        };
        let hands = Attach::new(self.cni.clone(), ascent.checking());
        let hands = hands.telling(self.teller(&label));
        let seen = ascent.meet(Rung::Net, &hands, &desired).await;
        if seen.is_err() || hands.has_added() {
            self.check_again(uid);
        }
        if hands.has_added() {
            // Not before it is Ready: it starts every plugin once more.
            self.waker.sweep(Key::Vm(uid));
        }
        let seen = seen?;
        let connected = desired.want.as_ref();
        let Some(connected) = connected.and_then(|want| seen.connection_for(want)) else {
            return Ok(None);
        };
        let changed = seen.network_changed().then(|| CHANGED.to_owned());
        let message: Vec<String> = changed.into_iter().chain(seen.limited.clone()).collect();
        let ready = Ready {
            message: message.join("; ").into(),
            address: plugged(spec, &connected),
            ..Ready::connected(&connected)
        };
        let join = match seen.chain_made_the_tap() {
            true => Join::Chains,
            false => Join::Ours(IFNAME.to_owned()),
        };
        let desired = redirect::Desired {
            label,
            netns: desired.netns(),
            tap: connected.tap.clone(),
            join: Some(join),
        };
        // A guest that was attached again has no network until the redirect is in place. The intent of both stages is stored already, so
        // the redirect does not wait until the disk has the new status.
        let same = keep.is_some_and(|keep| (keep.ip, keep.mac) == (connected.ip, connected.mac));
        let is_repair = hands.has_added() && same && self.held(uid).contains(&Rung::Firewall);
        let mut ready = Some(ready);
        if let Some(ready) = ready.take_if(|_| !is_repair) {
            ascent.ready(Rung::Net, ready).await?;
        }
        ascent.meet(Rung::Firewall, &Redirect, &desired).await?;
        if hands.has_added() && was_known {
            cni::announce(desired.netns.clone(), &connected);
        }
        if let Some(ready) = ready {
            ascent.ready(Rung::Net, ready).await?;
        }
        ascent.ready(Rung::Firewall, Ready::default()).await?;
        Ok(Some(connected))
    }

    /// Returns the last address and MAC of a VM of this name in this network. It may be an earlier VM: the one before a reboot, or the
    /// one that this VM replaces.
    fn kept(&self, vm: &Vm, spec: &CniSpec) -> Option<Keep> {
        self.store
            .read(|world| match world.lease(&vm.meta.name)?.address {
                Address::Plugged {
                    ref network,
                    plugged,
                    mac: Some(mac),
                    ..
                } if *network == spec.network_name => Some(Keep {
                    ip: plugged.ip(),
                    mac,
                }),
                Address::Plugged { .. } | Address::Block { .. } | Address::Bridged { .. } => None,
            })
    }

    /// Once after the start and after each resync the plugins are asked, too.
    pub(super) fn checking(&self, uid: Uid) -> Checking {
        let mut checked = self.checked.lock().unwrap_or_else(PoisonError::into_inner);
        match checked.insert(uid) {
            true => Checking::Once,
            false => Checking::Never,
        }
    }

    /// From the next look at each VM on.
    pub fn ask_plugins_again(&self) {
        let mut checked = self.checked.lock().unwrap_or_else(PoisonError::into_inner);
        checked.clear();
    }

    /// Releases what plugins hold for containers of ours that have no VM: attachments in libcni's cache, reservations of
    /// `host-local`.
    ///
    /// Returns the containers that plugins have not released, each with the plugins' error.
    pub async fn sweep_plugins(&self) -> Vec<(String, String)> {
        let networks: BTreeSet<String> = self.store.read(|world| {
            let networks = world
                .groups()
                .filter_map(|group| match &group.spec.template.network {
                    NetworkSpec::Cni(spec) => Some(spec.network_name.clone()),
                    NetworkSpec::Isolated(_) | NetworkSpec::Bridge(_) => None,
                });
            networks.collect()
        });
        let networks: Vec<String> = networks.into_iter().collect();
        let known = || {
            self.store
                .read(|world| world.vms().map(|vm| vm.meta.uid).collect::<BTreeSet<_>>())
        };
        // What was lost is not what was deleted.
        let living = || &known() | &self.protected();
        let swept = cni::sweep(&self.cni, &self.instance, &living, &networks).await;
        for failure in &swept.failures {
            warn!(
                failure,
                "plugins could not be asked to let go of what nothing wants"
            );
            self.note(EventType::Warning, "ground", "DetachFailed", failure);
        }
        let count = swept.detached.len() + swept.reservations.len();
        if count > 0 {
            info!(count, "plugins let go of what nothing wants");
            let message = format!("CNI plugins let go of {count} things that no VM has");
            self.note(EventType::Normal, "ground", "GarbageCollected", &message);
        }
        swept.kept
    }

    /// The containers of ours that have no VM and that the plugins failed to release.
    pub fn abandoned_by_plugins(&self) -> Vec<String> {
        let abandoned = self.cni.abandoned().unwrap_or_default();
        let containers = abandoned.into_iter().map(|it| it.attachment.container_id);
        let is_nobodys = |container: &String| {
            let uid = self.instance.uid_of_container(container);
            uid.is_some_and(|uid| self.store.read(|world| world.vm(uid).is_none()))
        };
        containers.filter(is_nobodys).collect()
    }

    pub(super) fn check_again(&self, uid: Uid) {
        let mut checked = self.checked.lock().unwrap_or_else(PoisonError::into_inner);
        checked.remove(&uid);
    }

    pub(super) async fn unplug<M: Meet>(&self, label: &Label, meet: &mut M) -> Result<(), M::Stop> {
        let desired = Desired {
            label: label.clone(),
            run_dir: self.run_dir.0.clone(),
            network: self.network_of(owner::uid_of(label)),
            forced: self.is_forced(owner::uid_of(label)),
            want: None,
        };
        let hands = Attach::new(self.cni.clone(), Checking::Never);
        let hands = hands.telling(self.teller(label));
        meet.meet(Rung::Net, &hands, &desired).await.map(drop)
    }

    fn network_of(&self, uid: Uid) -> Option<String> {
        self.store.read(|world| match &world.vm(uid)?.spec.network {
            NetworkSpec::Cni(spec) => Some(spec.network_name.clone()),
            NetworkSpec::Isolated(_) | NetworkSpec::Bridge(_) => None,
        })
    }

    pub(super) async fn stop_redirecting<M: Meet>(
        &self,
        label: &Label,
        meet: &mut M,
    ) -> Result<(), M::Stop> {
        let uid = owner::uid_of(label);
        let desired = redirect::Desired {
            label: label.clone(),
            netns: self.run_dir.netns(&owner::names_of(label)),
            tap: self.known_tap(uid).unwrap_or_else(|| TAP.to_owned()),
            join: None,
        };
        meet.meet(Rung::Firewall, &Redirect, &desired)
            .await
            .map(drop)
    }

    /// A chain of plugins may have given the TAP a name of its own.
    fn known_tap(&self, uid: Uid) -> Option<String> {
        self.known_connection(uid).map(|known| known.tap)
    }

    /// How the guest was connected when it was last Ready.
    fn known_connection(&self, uid: Uid) -> Option<Connection> {
        let mark = self.mark(uid, Rung::Net)?;
        serde_json::from_str(&mark).ok()
    }

    /// Records an event for each notice about the VM's attachment.
    fn teller(&self, label: &Label) -> Tell {
        let store = self.store.clone();
        let object = match &label.owner {
            Owner::Vm { name, .. } => format!("vm/{name}"),
            Owner::Ground => label.to_string(),
        };
        Arc::new(move |Notice { reason, message }| {
            let events = store.events();
            events.note(clock::now(), EventType::Warning, &object, reason, &message);
        })
    }
}

/// What the plugins gave, to be noted as a lease.
fn plugged(spec: &CniSpec, connected: &Connection) -> Option<Address> {
    let plugged = Ipv4Network::new(connected.ip, connected.prefix_len).ok()?;
    Some(Address::Plugged {
        network: spec.network_name.clone(),
        plugged,
        gateway: connected.gateway,
        mac: Some(connected.mac),
    })
}
