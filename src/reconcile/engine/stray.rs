//! What no object wants, off the host: all that bears the label, from the top.
//! Not here: finding such labels ([`super::super::adopt`]).

use std::net::Ipv4Addr;

use tracing::info;

use super::Engine;
use super::descend::Standing;
use crate::api::event::EventType;
use crate::api::rung::LADDER;
use crate::clock;
use crate::host::{self, fs, link, neigh};
use crate::owner::{self, Label};
use crate::reconcile::net::cni::INTENT;
use crate::reconcile::orphans::Verdict;
use crate::runtime::queue::Outcome;
use crate::store;

impl Engine {
    /// Something of ours that no object wants: all of it, from the top.
    pub(super) async fn run_stray(&self, label: &Label) -> Result<Outcome, store::Error> {
        let uid = owner::uid_of(label);
        if self.store.read(|world| world.vm(uid).is_some()) {
            return Ok(Outcome::Converged);
        }
        let object = label.to_string();
        match self.judge_orphan(label) {
            Ok(Verdict::Remove) => {}
            Ok(Verdict::Adopt(record)) => {
                self.adopt_again(*record, clock::now()).await?;
                return Ok(Outcome::Converged);
            }
            Ok(Verdict::Keep(why)) => {
                self.tell_kept(label, &why, clock::now());
                return Ok(Outcome::Converged);
            }
            Err(error) => {
                let message = format!("{error}: {}", error.source);
                self.note(EventType::Warning, &object, "ObserveFailed", &message);
                return Ok(Outcome::Failed);
            }
        }
        let standings = match self.standings(label).await {
            Ok(standings) => standings,
            Err(error) => {
                let message = format!("{error}: {}", error.source);
                self.note(EventType::Warning, &object, "ObserveFailed", &message);
                return Ok(Outcome::Failed);
            }
        };
        for rung in LADDER.into_iter().rev() {
            for standing in &standings {
                if let Err(stuck) = self.take_down(rung, label, standing).await {
                    let (_, reason, message) = stuck.found;
                    if stuck.outcome == Outcome::Failed {
                        self.note(EventType::Warning, &object, &reason.to_string(), &message);
                    }
                    return Ok(stuck.outcome);
                }
            }
        }
        self.store.write_behind(|txn| txn.bury(uid))?;
        info!(%label, "removed what nothing wants");
        self.note(
            EventType::Normal,
            &object,
            "GarbageCollected",
            "removed what no object wants",
        );
        Ok(Outcome::Converged)
    }

    /// In which modes something may stand: no object is left to tell. The plugins come before the namespace that they worked in.
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

    /// On which bridge the host knows the VM's MAC, and by which address: the entry outlives the TAP, and would keep the address
    /// from everybody else.
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

    /// Plugins were asked for it, or are remembered to have been.
    fn is_plugged(&self, label: &Label) -> Result<bool, host::Error> {
        let uid = owner::uid_of(label);
        if fs::read_text(&self.run_dir.vm_dir(uid).join(INTENT))?.is_some() {
            return Ok(true);
        }
        let fail = |error| host::Error::other("list", "what the CNI cache knows of", error);
        let container = label.instance.container_id(uid);
        let remembered = self.cni.attachments_of(&container).map_err(fail)?;
        Ok(!remembered.is_empty())
    }
}
