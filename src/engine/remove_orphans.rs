//! Removes orphans: all resources that carry the label of no object, from the last stage to the first.
//! Out of scope: finding such labels ([`super::orphans`]).

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::oneshot;
use tracing::info;

use super::{Engine, Key};
use crate::api::condition::{Reason, Status};
use crate::api::event::{EventReason, EventType, ObjectRef};
use crate::api::stage::STAGES;
use crate::clock;
use crate::engine::orphans::{Orphan, OrphanDecision, is_orphan};
use crate::engine::tear_down::{HostResources, TearDownError};
use crate::host::{self, fs, link, neigh};
use crate::owner::{self, Label};
use crate::reconcile::net::cni::INTENT;
use crate::runtime::queue::Outcome;
use crate::store;

/// How long a request waits for a removal: a guest's grace period, SIGTERM, SIGKILL and the teardown of the other stages.
const REMOVAL_TIMEOUT: Duration = Duration::from_secs(45);

/// Requests that wait for the removal of orphans, by label.
#[derive(Default)]
pub struct Removals(Mutex<HashMap<Label, Vec<oneshot::Sender<Removed>>>>);

/// The result of a removal, or why the orphan was not removed.
type Removed = Result<(), String>;

impl Removals {
    fn subscribe(&self, label: &Label) -> oneshot::Receiver<Removed> {
        let (sender, receiver) = oneshot::channel();
        let mut waiting = self.0.lock();
        waiting.entry(label.clone()).or_default().push(sender);
        receiver
    }

    fn answer(&self, label: &Label, removed: &Removed) {
        let mut waiting = self.0.lock();
        for sender in waiting.remove(label).into_iter().flatten() {
            // The receiver may be gone.
            let _ = sender.send(removed.clone());
        }
    }
}

impl Engine {
    /// Removes orphans and observes what is left of them. Returns each orphan with the resources that are gone; or, with the reason, those
    /// that still exist.
    ///
    /// # Errors
    /// The host cannot be observed afterwards.
    pub async fn remove_orphans(
        &self,
        orphans: Vec<Orphan>,
    ) -> Result<Vec<(Orphan, Removed)>, host::Error> {
        let request_removal = |orphan: &Orphan| {
            let removal = self.removals.subscribe(&orphan.label);
            self.waker.enqueue_fresh(Key::Orphan(orphan.label.clone()));
            tokio::time::timeout(REMOVAL_TIMEOUT, removal)
        };
        let results = futures::future::join_all(orphans.iter().map(request_removal)).await;
        let links = Box::pin(link::list(&self.host.netlink));
        let remaining = self.labelled(links).await?;
        let removed = |(orphan, result): (Orphan, _)| {
            // The name in the label of a process may be unknown when nothing else is left.
            let uid = owner::uid_of(&orphan.label);
            let same = |label: &&Label| owner::uid_of(label) == uid;
            let Some((_, resources)) = remaining.iter().find(|(label, _)| same(label)) else {
                return (orphan, Ok(()));
            };
            let why = match result {
                Ok(Ok(Err(why))) => why,
                Ok(_) => "it was removed and exists again".to_owned(),
                Err(_) => "its removal is still in progress".to_owned(),
            };
            let resources = resources.clone();
            (
                Orphan {
                    resources,
                    ..orphan
                },
                Err(why),
            )
        };
        Ok(orphans.into_iter().zip(results).map(removed).collect())
    }

    /// Adopts, keeps or removes the resources with this label, if no object references it.
    pub(super) async fn run_orphan(&self, label: &Label) -> Result<Outcome, store::Error> {
        if !self.store.read(|world| is_orphan(world, label)) {
            self.removals.answer(label, &Ok(()));
            return Ok(Outcome::Converged);
        }
        let object = ObjectRef::Orphan(label.to_string());
        match self.evaluate_orphan(label) {
            Ok(OrphanDecision::Remove) => {}
            Ok(OrphanDecision::Adopt(record)) => {
                self.adopt_lost_vm(*record, clock::now()).await?;
                let why = "it was adopted as a VM".to_owned();
                self.removals.answer(label, &Err(why));
                return Ok(Outcome::Converged);
            }
            Ok(OrphanDecision::Keep(why)) => {
                self.report_kept(label, &why, clock::now());
                self.removals.answer(label, &Err(why));
                return Ok(Outcome::Converged);
            }
            Err(error) => {
                let message = error.to_string();
                self.record_event(
                    EventType::Warning,
                    &object,
                    EventReason::ObserveFailed,
                    &message,
                );
                self.removals.answer(label, &Err(message));
                return Ok(Outcome::Failed);
            }
        }
        let (outcome, removed) = match self.tear_down_orphan(label).await {
            Ok(()) => {
                info!(%label, "removed an orphan");
                let message = "removed: no object references it";
                self.record_event(
                    EventType::Normal,
                    &object,
                    EventReason::GarbageCollected,
                    message,
                );
                (Outcome::Converged, Ok(()))
            }
            Err(stuck) => {
                let (_, reason, message) = stuck.found;
                if stuck.outcome != Outcome::Failed {
                    // A process is ending. The orphan is run again when it has ended.
                    return Ok(stuck.outcome);
                }
                self.record_event(EventType::Warning, &object, reason, &message);
                (Outcome::Failed, Err(message))
            }
        };
        self.removals.answer(label, &removed);
        Ok(outcome)
    }

    async fn tear_down_orphan(&self, label: &Label) -> Result<(), TearDownError> {
        let resources = self
            .host_resources_of(label)
            .await
            .map_err(|error| TearDownError {
                found: (Status::Unknown, Reason::ObserveFailed, error.to_string()),
                outcome: Outcome::Failed,
            })?;
        for stage in STAGES.into_iter().rev() {
            for resource in &resources {
                self.tear_down_stage(stage, label, resource).await?;
            }
        }
        self.store
            .write_behind(|txn| txn.confirm_removed(owner::uid_of(label)))
            .map_err(|error: store::Error| TearDownError {
                found: (Status::Unknown, Reason::StateNotWritable, error.to_string()),
                outcome: Outcome::Failed,
            })?;
        Ok(())
    }

    /// The modes in which resources with this label may exist: there is no object that specifies one. CNI comes before isolated mode, so
    /// that plugins are called with DEL before the namespace is removed.
    async fn host_resources_of(&self, label: &Label) -> Result<Vec<HostResources>, host::Error> {
        let text = label.to_string();
        let mut resources = Vec::new();
        let links = link::list(&self.host.netlink).await?;
        for found in &links {
            if found.tun.is_some() && found.alias.as_deref() == Some(text.as_str()) {
                resources.push(HostResources::Bridge {
                    tap: found.name.clone(),
                    location: self.neighbour_location(label, &links).await?,
                });
            }
        }
        if self.is_cni(label)? {
            resources.push(HostResources::Cni);
        }
        resources.push(HostResources::Isolated);
        Ok(resources)
    }

    /// The bridge and the address of the host's neighbour entry for the VM's MAC. The entry outlives the TAP, and no other VM could use
    /// the address.
    async fn neighbour_location(
        &self,
        label: &Label,
        links: &[link::Link],
    ) -> Result<Option<(String, Ipv4Addr)>, host::Error> {
        let mac = owner::names_of(label).guest_mac;
        let neighbours = neigh::list(&self.host.netlink).await?;
        Ok(neighbours
            .iter()
            .filter(|entry| entry.mac == mac.0)
            .find_map(|entry| {
                let link = links.iter().find(|link| link.index == entry.index)?;
                Some((link.name.clone(), entry.ip))
            }))
    }

    /// Whether plugins were called with ADD for it: by our intent file or by libcni's cache.
    fn is_cni(&self, label: &Label) -> Result<bool, host::Error> {
        let uid = owner::uid_of(label);
        if fs::read_text(&self.run_dir.vm_dir(uid).join(INTENT))?.is_some() {
            return Ok(true);
        }
        let cache_error = |error| host::Error::other("list", "attachments in the CNI cache", error);
        let container = label.instance.container_id(uid);
        let remembered = self.cni.attachments_of(&container).map_err(cache_error)?;
        Ok(!remembered.is_empty())
    }
}
