//! The other nodes of the fleet as the API sees them: where VMs are, and the certificates, as their files change.
//! Out of scope: requests to nodes ([`crate::wire::peer`]); the objects in etcd ([`crate::fleet`]).

use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tracing::{info, warn};

use super::file_watch::follow;
use super::fleet::Slot;
use crate::api::event::{EventReason, EventType, ObjectRef};
use crate::api::meta::Name;
use crate::api_server::{self, FleetFiles};
use crate::clock;
use crate::engine::Engine;
use crate::fleet::mirror::Mirror;
use crate::wire::peer::{Fleet, PeerTls, Place, Registry, Whereabouts};

#[cfg(debug_assertions)]
mod seam;

/// The interval in which files that could not be used are read again.
const RETRY: Duration = Duration::from_secs(5);

/// The other nodes.
pub(super) struct Peers {
    slot: Arc<Slot>,
    engine: Arc<Engine>,
    /// The name of this node, if it has certificates.
    own: Option<Name>,
    tls: RwLock<Option<Arc<PeerTls>>>,
    connections: Registry,
}

impl Peers {
    /// Without certificates until [`Self::start`].
    pub(super) fn new(slot: Arc<Slot>, engine: Arc<Engine>, files: Option<&FleetFiles>) -> Self {
        Self {
            slot,
            engine,
            own: files.map(|files| files.node.clone()),
            tls: RwLock::default(),
            connections: Registry::default(),
        }
    }

    /// Reads the certificates, and follows their files in a task.
    pub(super) async fn start(
        self: &Arc<Self>,
        tasks: &mut JoinSet<()>,
        files: Option<FleetFiles>,
        resync: Duration,
    ) -> watch::Receiver<api_server::Peers> {
        let Some(files) = files else {
            return watch::Sender::new(api_server::Peers::Off).subscribe();
        };
        let mut problem = None;
        let (sender, receiver) = watch::channel(api_server::Peers::Off);
        self.read(&files, &sender, &mut problem).await;
        let peers = Arc::clone(self);
        tasks.spawn(async move { peers.follow(files, sender, problem, resync).await });
        receiver
    }

    async fn follow(
        &self,
        files: FleetFiles,
        sender: watch::Sender<api_server::Peers>,
        mut problem: Option<String>,
        resync: Duration,
    ) {
        let changed = Notify::new();
        // The sender lives as long as this function.
        let (_settings, configs) = watch::channel(Some(files.clone()));
        let reading = async {
            loop {
                tokio::select! {
                    () = changed.notified() => {}
                    () = self.recheck_nodes() => {}
                    () = tokio::time::sleep(RETRY), if problem.is_some() => {}
                }
                self.read(&files, &sender, &mut problem).await;
            }
        };
        tokio::select! {
            () = reading => {}
            () = follow(configs, FleetFiles::directories, &changed, resync) => {}
        }
    }

    /// Checks the connections whenever the objects of the fleet change: a node may be gone. Never returns.
    async fn recheck_nodes(&self) {
        // Without a connection to etcd yet, it is looked for again when the files are read.
        if let Some(link) = self.slot.get() {
            let mut changes = link.subscribe();
            while changes.changed().await.is_ok() {
                self.recheck();
            }
        }
        std::future::pending().await
    }

    fn recheck(&self) {
        let Some(current) = self.tls.read().clone() else {
            return;
        };
        if self.connections.is_empty() {
            return;
        }
        // Also certificates that have expired, and nodes that are gone.
        for node in self
            .connections
            .recheck(&current, |node| self.is_gone(node))
        {
            info!(%node, "closed a connection: the node or its certificate is no longer accepted");
        }
    }

    /// Reads the files. Files that are invalid change nothing: the certificates before stay in effect.
    async fn read(
        &self,
        files: &FleetFiles,
        sender: &watch::Sender<api_server::Peers>,
        problem: &mut Option<String>,
    ) {
        match files.load().await {
            Ok(loaded) => {
                *problem = None;
                self.replace(loaded, sender);
            }
            Err(why) => {
                if problem.as_ref() != Some(&why) {
                    warn!(error = %why, "the certificates of the fleet are invalid");
                    let message = format!("certificates of the fleet are not in effect: {why}");
                    self.report(EventType::Warning, EventReason::ApiListenerFailed, &message);
                }
                *problem = Some(why.clone());
                if self.tls.read().is_none() {
                    sender.send_replace(api_server::Peers::Failed(why));
                }
            }
        }
        self.recheck();
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
        #[cfg(debug_assertions)]
        if let Some(found) = seam::whereabouts(vm) {
            return Some(found);
        }
        let link = self.slot.get()?;
        // Without contact, the last known place.
        link.read(|mirror, _| whereabouts(mirror, link.node(), vm))
    }

    fn others(&self) -> Vec<Place> {
        #[cfg(debug_assertions)]
        if let Some(found) = seam::others(self.own.as_ref()) {
            return found;
        }
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
        #[cfg(debug_assertions)]
        if seam::is_gone(node) {
            return true;
        }
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
        Some(binding) => Some(Whereabouts::At(place(mirror, &binding.node))),
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

/// Whether an administrator has said so, and the node has not started again since.
fn is_gone(mirror: &Mirror, node: &Name) -> bool {
    let admin = mirror.nodes.get(node);
    let gone = admin.and_then(|stored| stored.value.as_ref().ok()?.gone.as_ref());
    let Some(gone) = gone else { return false };
    let status = mirror.node_statuses.get(node);
    let status = status.and_then(|stored| stored.value.as_ref().ok());
    status.map(|status| &status.boot_id) == gone.boot_id.as_ref()
}

#[cfg(test)]
mod tests;
