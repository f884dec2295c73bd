//! The other nodes of the fleet as the API sees them: where VMs are, and the certificates, as their files change.
//! Out of scope: requests to nodes ([`crate::wire::peer`]); the objects in etcd ([`crate::fleet`]).

use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::{Interval, MissedTickBehavior};
use tracing::{info, warn};

use super::file_watch::follow;
use super::fleet::Slot;
use crate::api::event::{EventReason, EventType, ObjectRef};
use crate::api::meta::{Name, Uid};
use crate::api_server::{self, FleetFiles};
use crate::clock;
use crate::engine::Engine;
use crate::fleet::mirror::Mirror;
use crate::wire::peer::{Fleet, PeerTls, Place, Registry, Whereabouts};

/// The interval in which files that could not be used are read again.
const RETRY: Duration = Duration::from_secs(5);

/// The interval in which it is looked whether the connection to the fleet was replaced.
const LINK_INTERVAL: Duration = Duration::from_secs(5);
/// The interval in which the certificates of open connections are verified, since they expire.
const EXPIRY_INTERVAL: Duration = Duration::from_secs(60);

/// What is followed.
struct Followed {
    /// The files that the settings name.
    files: Option<FleetFiles>,
    /// Why they cannot be used.
    problem: Option<String>,
    /// For the listener.
    sender: watch::Sender<api_server::Peers>,
}

/// The other nodes.
pub(super) struct Peers {
    slot: Arc<Slot>,
    engine: Arc<Engine>,
    tls: RwLock<Option<Arc<PeerTls>>>,
    connections: Registry,
}

impl Peers {
    /// Without certificates until [`Self::start`].
    pub(super) fn new(slot: Arc<Slot>, engine: Arc<Engine>) -> Self {
        Self {
            slot,
            engine,
            tls: RwLock::default(),
            connections: Registry::default(),
        }
    }

    /// Reads the certificates that the settings name, and follows the settings and the files in a task.
    pub(super) async fn start(
        self: &Arc<Self>,
        tasks: &mut JoinSet<()>,
        mut configs: watch::Receiver<Option<FleetFiles>>,
        resync: Duration,
    ) -> watch::Receiver<api_server::Peers> {
        let (sender, receiver) = watch::channel(api_server::Peers::Off);
        let mut followed = Followed {
            files: None,
            problem: None,
            sender,
        };
        let files = configs.borrow_and_update().clone();
        self.read(files, &mut followed).await;
        let peers = Arc::clone(self);
        tasks.spawn(async move { peers.follow(configs, followed, resync).await });
        receiver
    }

    /// Never returns.
    async fn follow(
        &self,
        mut configs: watch::Receiver<Option<FleetFiles>>,
        mut followed: Followed,
        resync: Duration,
    ) {
        let changed = Notify::new();
        let directories = follow(configs.clone(), FleetFiles::directories, &changed, resync);
        let mut expiry = tokio::time::interval(EXPIRY_INTERVAL);
        expiry.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let reading = async {
            loop {
                let is_fleet = followed.files.is_some();
                tokio::select! {
                    settings = configs.changed() => if settings.is_err() {
                        // The daemon stops.
                        std::future::pending().await
                    },
                    () = changed.notified() => {}
                    () = tokio::time::sleep(RETRY), if followed.problem.is_some() => {}
                    () = self.end_refused(&mut expiry), if is_fleet => {}
                }
                let files = configs.borrow_and_update().clone();
                self.read(files, &mut followed).await;
            }
        };
        tokio::select! {
            () = reading => {}
            () = directories => {}
        }
    }

    /// Ends connections of nodes that an administrator has stated to be gone, whenever the objects of the fleet change, and those with
    /// expired certificates. Never returns.
    async fn end_refused(&self, expiry: &mut Interval) {
        loop {
            let link = self.slot.get();
            let mut changes = link.as_ref().map(|link| link.subscribe());
            // Only the comparison is needed: a link that was replaced may end.
            let id = link.map(|link| Arc::as_ptr(&link).addr());
            loop {
                self.end_gone();
                let changed = async {
                    match &mut changes {
                        Some(changes) => changes.changed().await.is_ok(),
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    is_open = changed => if !is_open { break },
                    () = tokio::time::sleep(LINK_INTERVAL) => {}
                    _ = expiry.tick() => self.recheck(),
                }
                // Settings of the fleet that change replace the link.
                if self.slot.get().map(|link| Arc::as_ptr(&link).addr()) != id {
                    break;
                }
            }
        }
    }

    /// Verifies no certificate: objects of the fleet change often.
    fn end_gone(&self) {
        for node in self.connections.end_of(|node| self.is_gone(node)) {
            info!(%node, "closed the connections of a node that is gone");
        }
    }

    /// Verifies the certificates of all connections.
    fn recheck(&self) {
        let Some(current) = self.tls.read().clone() else {
            return;
        };
        for node in self.connections.recheck(&current) {
            info!(%node, "closed a connection: the certificate of the node is no longer accepted");
        }
    }

    /// Reads the files. Files that become invalid change nothing: the certificates before stay in effect. Those of other settings do not: it
    /// is not known which nodes are to be accepted, so none is.
    async fn read(&self, files: Option<FleetFiles>, followed: &mut Followed) {
        let has_other_settings = files != followed.files;
        followed.files.clone_from(&files);
        let Some(files) = files else {
            followed.problem = None;
            if has_other_settings {
                self.refuse_all(&followed.sender, api_server::Peers::Off);
            }
            return;
        };
        match files.load().await {
            Ok(loaded) => {
                followed.problem = None;
                self.replace(loaded, &followed.sender);
            }
            Err(why) => {
                if followed.problem.as_ref() != Some(&why) {
                    warn!(error = %why, "the certificates of the fleet are invalid");
                    let message = format!("certificates of the fleet are not in effect: {why}");
                    self.report(EventType::Warning, EventReason::ApiListenerFailed, &message);
                }
                followed.problem = Some(why.clone());
                if has_other_settings || self.tls.read().is_none() {
                    self.refuse_all(&followed.sender, api_server::Peers::Failed(why));
                }
            }
        }
    }

    fn replace(&self, loaded: PeerTls, sender: &watch::Sender<api_server::Peers>) {
        let before = self.tls.read().clone();
        if before.is_some_and(|before| *before == loaded) {
            return;
        }
        let loaded = Arc::new(loaded);
        // Before the listener and the check of what is open: see `Registry::register`.
        *self.tls.write() = Some(Arc::clone(&loaded));
        sender.send_replace(api_server::Peers::On(loaded));
        self.recheck();
    }

    /// Accepts no node from now on, and ends all connections.
    fn refuse_all(&self, sender: &watch::Sender<api_server::Peers>, why: api_server::Peers) {
        *self.tls.write() = None;
        sender.send_replace(why);
        for node in self.connections.end_of(|_| true) {
            info!(%node, "closed the connections of a node: there is no certificate of a fleet");
        }
    }

    fn report(&self, kind: EventType, reason: EventReason, message: &str) {
        let events = self.engine.store.events();
        events.note(clock::now(), kind, &ObjectRef::Host, reason, message);
    }

    fn is_local(&self, vm: &Name) -> bool {
        self.engine.store.read(|world| world.vm_named(vm).is_some())
    }
}

impl Fleet for Peers {
    fn whereabouts(&self, vm: &Name) -> Option<Whereabouts> {
        if self.is_local(vm) {
            return None;
        }
        let link = self.slot.get()?;
        // Without contact, the last known place.
        link.read(|mirror, _| whereabouts(mirror, link.node(), vm))
    }

    fn uid_of(&self, vm: &Name) -> Option<Uid> {
        let store = &self.engine.store;
        store.read(|world| Some(world.vm_named(vm)?.fleet()?.uid))
    }

    fn others(&self) -> Vec<Place> {
        let Some(link) = self.slot.get() else {
            return Vec::new();
        };
        link.read(|mirror, _| {
            let others = mirror.node_statuses.keys();
            let others = others.filter(|node| *node != link.node());
            others.map(|node| place(mirror, node)).collect()
        })
    }

    fn is_gone(&self, node: &Name) -> bool {
        let link = self.slot.get();
        link.is_some_and(|link| link.read(|mirror, _| is_gone(mirror, node)))
    }

    fn tls(&self) -> Option<Arc<PeerTls>> {
        self.tls.read().clone()
    }

    fn connections(&self) -> &Registry {
        &self.connections
    }
}

fn whereabouts(mirror: &Mirror, own: &Name, vm: &Name) -> Option<Whereabouts> {
    let vms = mirror
        .vms
        .values()
        .filter_map(|stored| stored.value.as_ref().ok());
    // One that is being deleted may exist beside its successor.
    let vm = vms
        .filter(|found| found.meta.name == *vm)
        .min_by_key(|found| found.meta.deleting)?;
    match &vm.binding {
        Some(binding) if binding.node == *own => None,
        Some(binding) => Some(Whereabouts::At(place(mirror, &binding.node), vm.meta.uid)),
        None if vm.meta.deleting => None,
        None => Some(Whereabouts::Pending(vm.pending.clone())),
    }
}

fn place(mirror: &Mirror, node: &Name) -> Place {
    let status = mirror.node_statuses.get(node);
    let status = status.and_then(|stored| stored.value.as_ref().ok());
    Place {
        node: node.clone(),
        url: status.and_then(|status| status.api.clone()),
        version: status
            .map(|status| status.version.clone())
            .unwrap_or_default(),
    }
}

/// Whether an administrator has stated that the node is gone, and the node has not started again since. A value that cannot be decoded proves nothing: what an
/// administrator specifies may be that the node is gone, and a status that the node has written does not show another boot.
fn is_gone(mirror: &Mirror, node: &Name) -> bool {
    let Some(admin) = mirror.nodes.get(node) else {
        return false;
    };
    let Ok(admin) = &admin.value else { return true };
    let Some(gone) = &admin.gone else {
        return false;
    };
    match mirror.node_statuses.get(node).map(|stored| &stored.value) {
        Some(Ok(status)) => Some(&status.boot_id) == gone.boot_id.as_ref(),
        // A node without a status has not started. Its status may have been absent when the node was stated to be gone.
        Some(Err(_)) | None => true,
    }
}

#[cfg(test)]
mod tests;
