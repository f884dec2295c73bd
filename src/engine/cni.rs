//! The Net and Firewall stages of a CNI VM: its attachment, and the redirect and the forwarding switch between attachment and TAP.
//! Out of scope: the Lease and Vmm stages; how plugins are run.

use std::collections::BTreeSet;
use std::sync::Arc;

use ipnetwork::Ipv4Network;
use tracing::{info, warn};

use super::step::{BringUpRunner, ReadyStage, StageRunner};
use super::{Engine, Key};
use crate::api::cni::CniOptions;
use crate::api::event::{EventReason, EventType, ObjectRef};
use crate::api::lease::Address;
use crate::api::meta::Uid;
use crate::api::network::{CniSpec, Connection, NetworkSpec};
use crate::api::stage::Stage;
use crate::api::vm::Vm;
use crate::clock;
use crate::owner::{self, Label, Owner, TAP};
use crate::reconcile::checkpoint;
use crate::reconcile::firewall::cni::{self as redirect, CniFirewall, TapLink};
use crate::reconcile::net::cni::{
    self, CheckMode, CniNet, DataPath, Desired, GuestIdentity, IFNAME, Notice, NoticeHandler,
};

/// The message for a VM that was attached before its network was reconfigured.
const CHANGED: &str = "the network's configuration has changed; this VM keeps its attachment with the earlier configuration";

impl Engine {
    /// Handles the Net and Firewall stages. None: the plugins' result contains no connection.
    pub(super) async fn connect_cni<A: BringUpRunner>(
        &self,
        vm: &Vm,
        spec: &CniSpec,
        record: String,
        runner: &mut A,
    ) -> Result<Option<Connection>, A::Break> {
        let uid = vm.meta.uid;
        let label = self.instance.vm_label(&vm.meta.name, uid);
        let last_connection = || {
            // A lease that an earlier version wrote has no MAC.
            let connection = self.known_connection(uid)?;
            Some(GuestIdentity {
                ip: connection.ip,
                mac: connection.mac,
            })
        };
        let keep = self.last_address(vm, spec).or_else(last_connection);
        let was_known = keep.is_some();
        let desired = Desired {
            label: label.clone(),
            run_dir: self.run_dir.0.clone(),
            network: Some(spec.network_name.clone()),
            forced: false,
            data_path: Some(DataPath {
                tap_owner: Self::tap_owner(vm, runner.vmm_user(uid)),
                record,
                identity: keep,
                requested: CniOptions {
                    ips: spec.cni.ips_of(vm.index).to_vec(),
                    ..spec.cni.clone()
                },
            }),
        };
        let reconciler = CniNet::new(self.cni.clone(), runner.cni_checking());
        let net_reconciler = reconciler.with_notices(self.event_recorder(&label));
        let result = runner
            .run_stage(Stage::Net, &net_reconciler, &desired)
            .await;
        if result.is_err() || net_reconciler.has_added() {
            self.check_again(uid);
        }
        if net_reconciler.has_added() {
            // CHECK runs every plugin again, so it is called in a later run, not before the VM is Ready.
            self.waker.enqueue_low_priority(Key::Vm(uid));
        }
        let observed = result?;
        let attachment = desired.data_path.as_ref();
        let Some(connected) =
            attachment.and_then(|requested_path| observed.connection_for(requested_path))
        else {
            return Ok(None);
        };
        let changed = observed.network_changed().then(|| CHANGED.to_owned());
        let message: Vec<String> = changed
            .into_iter()
            .chain(observed.limited.clone())
            .collect();
        let ready = ReadyStage {
            message: message.join("; ").into(),
            address: cni_address(spec, &connected),
            ..ReadyStage::with_connection(&connected)
        };
        let join = match observed.chain_created_tap() {
            true => TapLink::Chain,
            false => TapLink::Redirect(IFNAME.to_owned()),
        };
        let desired = redirect::Desired {
            label,
            netns: desired.netns(),
            tap: connected.tap.clone(),
            tap_link: Some(join),
        };
        // A guest that was attached again has no network until the redirect is in place. The intent of both stages is stored already, so
        // the redirect does not wait until the disk has the new status.
        let same = keep.is_some_and(|keep| (keep.ip, keep.mac) == (connected.ip, connected.mac));
        let is_repair =
            net_reconciler.has_added() && same && self.acquired(uid).contains(&Stage::Firewall);
        let mut ready = Some(ready);
        if let Some(ready) = ready.take_if(|_| !is_repair) {
            runner.ready(Stage::Net, ready).await?;
        }
        runner
            .run_stage(Stage::Firewall, &CniFirewall, &desired)
            .await?;
        if net_reconciler.has_added() && was_known {
            cni::announce(desired.netns.clone(), &connected);
        }
        if let Some(ready) = ready {
            runner.ready(Stage::Net, ready).await?;
        }
        runner.ready(Stage::Firewall, ReadyStage::default()).await?;
        Ok(Some(connected))
    }

    /// Returns the last address and MAC of a VM of this name in this network. It may be an earlier VM: the one before a reboot, or the
    /// one that this VM replaces.
    fn last_address(&self, vm: &Vm, spec: &CniSpec) -> Option<GuestIdentity> {
        self.store
            .read(|world| match world.lease(&vm.meta.name)?.address {
                Address::Cni {
                    ref network,
                    address,
                    mac: Some(mac),
                    ..
                } if *network == spec.network_name => Some(GuestIdentity {
                    ip: address.ip(),
                    mac,
                }),
                Address::Cni { .. } | Address::Isolated { .. } | Address::Bridge { .. } => None,
            })
    }

    /// Whether this run calls CHECK: the first one after the start and after each resync does.
    pub(super) fn checking(&self, uid: Uid) -> CheckMode {
        let mut checked = self.cni_checked.lock();
        match checked.insert(uid) {
            true => CheckMode::Once,
            false => CheckMode::Never,
        }
    }

    /// Calls CHECK in the next run of each VM.
    pub fn check_all_again(&self) {
        let mut checked = self.cni_checked.lock();
        checked.clear();
    }

    /// Releases what plugins hold for containers of ours that have no VM: attachments in libcni's cache, reservations of
    /// `host-local`.
    ///
    /// Returns the containers that plugins have not released, each with the plugins' error.
    pub async fn release_orphaned_attachments(&self) -> Vec<(String, String)> {
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
        let known_uids = || {
            self.store
                .read(|world| world.vms().map(|vm| vm.meta.uid).collect::<BTreeSet<_>>())
        };
        // A VM with lost state is not a deleted VM: its attachment is kept.
        let kept_uids = || &known_uids() | &self.protected();
        let swept = cni::sweep(&self.cni, &self.instance, &kept_uids, &networks).await;
        for failure in &swept.failures {
            warn!(
                failure,
                "CNI plugins failed to release an orphaned attachment"
            );
            self.record_event(
                EventType::Warning,
                &ObjectRef::Host,
                EventReason::DetachFailed,
                failure,
            );
        }
        let count = swept.detached.len() + swept.reservations.len();
        if count > 0 {
            info!(count, "CNI plugins released orphaned attachments");
            let message =
                format!("CNI plugins released {count} attachments and reservations without a VM");
            self.record_event(
                EventType::Normal,
                &ObjectRef::Host,
                EventReason::GarbageCollected,
                &message,
            );
        }
        swept.kept
    }

    /// The containers of ours that have no VM and that the plugins failed to release.
    pub fn unreleased_containers(&self) -> Vec<String> {
        let abandoned = self.cni.abandoned().unwrap_or_default();
        let containers = abandoned.into_iter().map(|it| it.attachment.container_id);
        let has_no_vm = |container: &String| {
            let uid = self.instance.uid_from_container_id(container);
            uid.is_some_and(|uid| self.store.read(|world| world.vm(uid).is_none()))
        };
        containers.filter(has_no_vm).collect()
    }

    pub(super) fn check_again(&self, uid: Uid) {
        let mut checked = self.cni_checked.lock();
        checked.remove(&uid);
    }

    pub(super) async fn detach_cni<M: StageRunner>(
        &self,
        label: &Label,
        runner: &mut M,
    ) -> Result<(), M::Break> {
        let desired = Desired {
            label: label.clone(),
            run_dir: self.run_dir.0.clone(),
            network: self.network_of(owner::uid_of(label)),
            forced: self.is_forced(owner::uid_of(label)),
            data_path: None,
        };
        let net_reconciler = CniNet::new(self.cni.clone(), CheckMode::Never);
        let reconciler = net_reconciler.with_notices(self.event_recorder(label));
        runner
            .run_stage(Stage::Net, &reconciler, &desired)
            .await
            .map(drop)
    }

    fn network_of(&self, uid: Uid) -> Option<String> {
        self.store.read(|world| match &world.vm(uid)?.spec.network {
            NetworkSpec::Cni(spec) => Some(spec.network_name.clone()),
            NetworkSpec::Isolated(_) | NetworkSpec::Bridge(_) => None,
        })
    }

    pub(super) async fn remove_redirect<M: StageRunner>(
        &self,
        label: &Label,
        runner: &mut M,
    ) -> Result<(), M::Break> {
        let uid = owner::uid_of(label);
        let desired = redirect::Desired {
            label: label.clone(),
            netns: self.run_dir.netns(&owner::names_of(label)),
            tap: self.known_tap(uid).unwrap_or_else(|| TAP.to_owned()),
            tap_link: None,
        };
        runner
            .run_stage(Stage::Firewall, &CniFirewall, &desired)
            .await
            .map(drop)
    }

    /// The TAP's name, which a plugin chain may have chosen.
    fn known_tap(&self, uid: Uid) -> Option<String> {
        self.known_connection(uid).map(|known| known.tap)
    }

    /// The guest's connection when its Net stage was last Ready.
    pub(super) fn known_connection(&self, uid: Uid) -> Option<Connection> {
        self.store
            .read(|world| checkpoint::connection(world.status(uid, Stage::Net)))
    }

    /// Records an event for each notice about the VM's attachment.
    fn event_recorder(&self, label: &Label) -> NoticeHandler {
        let store = self.store.clone();
        let object = match &label.owner {
            Owner::Vm { name, .. } => ObjectRef::vm(name),
            Owner::HostNetwork => ObjectRef::Host,
        };
        Arc::new(move |Notice { reason, message }| {
            let events = store.events();
            events.note(clock::now(), EventType::Warning, &object, reason, &message);
        })
    }
}

/// The address that the plugins assigned, to be stored as a lease.
fn cni_address(spec: &CniSpec, connected: &Connection) -> Option<Address> {
    let network_address = Ipv4Network::new(connected.ip, connected.prefix_len).ok()?;
    Some(Address::Cni {
        network: spec.network_name.clone(),
        address: network_address,
        gateway: connected.gateway,
        mac: Some(connected.mac),
    })
}
