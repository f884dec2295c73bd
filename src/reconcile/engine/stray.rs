//! Removes orphans: all resources that carry the label of no object, from the last stage to the first.
//! Out of scope: finding such labels ([`super::super::adopt`]).

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tracing::info;

use super::descend::{Standing, Stuck};
use super::{Engine, Key};
use crate::api::condition::{Reason, Status};
use crate::api::event::EventType;
use crate::api::rung::LADDER;
use crate::clock;
use crate::host::{self, fs, link, neigh};
use crate::owner::{self, Label};
use crate::reconcile::net::cni::INTENT;
use crate::reconcile::orphans::{Verdict, is_orphan};
use crate::runtime::queue::Outcome;
use crate::store;

/// How long a request waits for a removal: a guest's grace period, SIGTERM, SIGKILL and the teardown of the other stages.
const PATIENCE: Duration = Duration::from_secs(45);

/// Requests that wait for the removal of orphans, by label.
#[derive(Default)]
pub struct Removals(Mutex<HashMap<Label, Vec<oneshot::Sender<Removed>>>>);

/// The result of a removal, or why the orphan remains.
type Removed = Result<(), String>;

impl Removals {
    fn ask(&self, label: &Label) -> oneshot::Receiver<Removed> {
        let (answer, told) = oneshot::channel();
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.entry(label.clone()).or_default().push(answer);
        told
    }

    fn answer(&self, label: &Label, removed: &Removed) {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for answer in waiting.remove(label).into_iter().flatten() {
            // The receiver may be gone.
            let _ = answer.send(removed.clone());
        }
    }
}

impl Engine {
    /// Removes orphans and checks that they are gone. Returns for each orphan why it remains, if it does.
    ///
    /// # Errors
    /// The host cannot be observed afterwards.
    pub async fn remove_orphans(
        &self,
        orphans: &[Label],
    ) -> Result<Vec<(Label, Removed)>, host::Error> {
        let ask = |label: &Label| {
            let removal = self.removals.ask(label);
            self.waker.renew(Key::Stray(label.clone()));
            tokio::time::timeout(PATIENCE, removal)
        };
        let told = futures::future::join_all(orphans.iter().map(ask)).await;
        let left = self.orphans(clock::now()).await?.removable;
        let removed = |(label, told): (&Label, _)| {
            let removed = match (left.contains(label), told) {
                (false, _) => Ok(()),
                (true, Ok(Ok(Err(why)))) => Err(why),
                (true, Ok(_)) => Err("it was removed and exists again".to_owned()),
                (true, Err(_)) => Err("its removal is still in progress".to_owned()),
            };
            (label.clone(), removed)
        };
        Ok(orphans.iter().zip(told).map(removed).collect())
    }

    /// Adopts, keeps or removes the resources with this label, if no object references it.
    pub(super) async fn run_stray(&self, label: &Label) -> Result<Outcome, store::Error> {
        if !self.store.read(|world| is_orphan(world, label)) {
            self.removals.answer(label, &Ok(()));
            return Ok(Outcome::Converged);
        }
        let object = label.to_string();
        match self.judge_orphan(label) {
            Ok(Verdict::Remove) => {}
            Ok(Verdict::Adopt(record)) => {
                self.adopt_again(*record, clock::now()).await?;
                self.removals.answer(label, &Ok(()));
                return Ok(Outcome::Converged);
            }
            Ok(Verdict::Keep(why)) => {
                self.tell_kept(label, &why, clock::now());
                self.removals.answer(label, &Err(why));
                return Ok(Outcome::Converged);
            }
            Err(error) => {
                let message = format!("{error}: {}", error.source);
                self.note(EventType::Warning, &object, "ObserveFailed", &message);
                self.removals.answer(label, &Err(message));
                return Ok(Outcome::Failed);
            }
        }
        let (outcome, removed) = match self.take_down_orphan(label).await {
            Ok(()) => {
                info!(%label, "removed an orphan");
                let message = "removed: no object references it";
                self.note(EventType::Normal, &object, "GarbageCollected", message);
                (Outcome::Converged, Ok(()))
            }
            Err(stuck) => {
                let (_, reason, message) = stuck.found;
                if stuck.outcome != Outcome::Failed {
                    // A process is ending. The orphan is run again when it has ended.
                    return Ok(stuck.outcome);
                }
                self.note(EventType::Warning, &object, &reason.to_string(), &message);
                (Outcome::Failed, Err(message))
            }
        };
        self.removals.answer(label, &removed);
        Ok(outcome)
    }

    async fn take_down_orphan(&self, label: &Label) -> Result<(), Stuck> {
        let standings = self.standings(label).await.map_err(|error| Stuck {
            found: (
                Status::Unknown,
                Reason::ObserveFailed,
                format!("{error}: {}", error.source),
            ),
            outcome: Outcome::Failed,
        })?;
        for rung in LADDER.into_iter().rev() {
            for standing in &standings {
                self.take_down(rung, label, standing).await?;
            }
        }
        self.store
            .write_behind(|txn| txn.bury(owner::uid_of(label)))
            .map_err(|error: store::Error| Stuck {
                found: (Status::Unknown, Reason::StateNotWritable, error.to_string()),
                outcome: Outcome::Failed,
            })?;
        Ok(())
    }

    /// The modes in which resources with this label may exist: there is no object that specifies one. CNI comes before isolated mode, so
    /// that plugins are called with DEL before the namespace is removed.
    async fn standings(&self, label: &Label) -> Result<Vec<Standing>, host::Error> {
        let text = label.to_string();
        let mut standings = Vec::new();
        let links = link::list(&self.hands.netlink).await?;
        for found in &links {
            if found.tun.is_some() && found.alias.as_deref() == Some(text.as_str()) {
                standings.push(Standing::Bridged {
                    tap: found.name.clone(),
                    place: self.pinned(label, &links).await?,
                });
            }
        }
        if self.is_plugged(label)? {
            standings.push(Standing::Plugged);
        }
        standings.push(Standing::Isolated);
        Ok(standings)
    }

    /// The bridge and the address of the host's neighbour entry for the VM's MAC. The entry outlives the TAP, and no other VM could use
    /// the address.
    async fn pinned(
        &self,
        label: &Label,
        links: &[link::Link],
    ) -> Result<Option<(String, Ipv4Addr)>, host::Error> {
        let mac = owner::names_of(label).guest_mac;
        let known = neigh::list(&self.hands.netlink).await?;
        Ok(known
            .iter()
            .filter(|entry| entry.mac == mac.0)
            .find_map(|entry| {
                let link = links.iter().find(|link| link.index == entry.index)?;
                Some((link.name.clone(), entry.ip))
            }))
    }

    /// Whether plugins were called with ADD for it: by our intent file or by libcni's cache.
    fn is_plugged(&self, label: &Label) -> Result<bool, host::Error> {
        let uid = owner::uid_of(label);
        if fs::read_text(&self.run_dir.vm_dir(uid).join(INTENT))?.is_some() {
            return Ok(true);
        }
        let fail = |error| host::Error::other("list", "attachments in the CNI cache", error);
        let container = label.instance.container_id(uid);
        let remembered = self.cni.attachments_of(&container).map_err(fail)?;
        Ok(!remembered.is_empty())
    }
}
