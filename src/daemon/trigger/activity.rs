//! What we have changed a moment ago: events about that are likely to be of our own actions.
//! Out of scope: the content of events.
//!
//! # Why
//! Building a VM causes some thirty events. A look at it for each would cost more than the building, and finds nothing. A VM that
//! nobody has touched for a moment has no such events: what the kernel reports of it was done by somebody else.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use tokio::sync::broadcast::error::RecvError;

use super::gathered::Gathered;
use super::{CONTESTED, REST};
use crate::api::meta::Uid;
use crate::clock;
use crate::reconcile::engine::{Engine, Key};
use crate::store::Change;

/// When each object was last changed by us.
#[derive(Default)]
pub(super) struct Activity {
    /// By VM.
    vms: HashMap<Uid, Instant>,
    /// Any of them, a group or the host: the host's own rules follow all of these.
    last: Option<Instant>,
    /// When the host was last enqueued for observation.
    host: Option<Instant>,
}

impl Activity {
    /// The store has changed. The stages of a VM that is being built write their status one after the other.
    pub(super) fn note(&mut self, change: &Result<Change, RecvError>) {
        let vm = match change {
            Ok(Change::Vm(uid) | Change::Page(uid)) => Some(*uid),
            Ok(Change::Observed(_)) => return,
            Ok(_) | Err(_) => None,
        };
        match vm {
            Some(_) => self.note_told(std::iter::once(vm)),
            None => self.last = Some(clock::monotonic()),
        }
    }

    /// These VMs are enqueued for observation; `None` is the host.
    pub(super) fn note_told(&mut self, vms: impl Iterator<Item = Option<Uid>>) {
        /// Enough to be worth a sweep.
        const MANY: usize = 1024;
        let now = clock::monotonic();
        for vm in vms {
            self.last = Some(now);
            match vm {
                Some(uid) => drop(self.vms.insert(uid, now)),
                None => self.host = Some(now),
            }
        }
        if self.vms.len() > MANY {
            let rested = |at: &Instant| now.saturating_duration_since(*at) >= REST;
            self.vms.retain(|_, at| !rested(at));
        }
    }

    /// How long to wait before these events are acted on, if all that they are about is changed by a conflicting writer.
    pub(super) fn contested(&self, news: &Gathered, engine: &Engine) -> Option<Duration> {
        if news.everything || !news.is_something() {
            return None;
        }
        let now = clock::monotonic();
        let mut longest = Duration::ZERO;
        for vm in news.vms() {
            let (key, last) = match vm {
                Some(uid) => (Key::Vm(uid), self.vms.get(&uid)),
                // Not `last`: repairs of contested VMs would keep the host waiting.
                None => (Key::Ground, self.host.as_ref()),
            };
            if !engine.is_contested(&key) {
                return None;
            }
            let age = last.map(|at| now.saturating_duration_since(*at));
            longest = longest.max(age.map_or(Duration::ZERO, |age| CONTESTED.saturating_sub(age)));
        }
        Some(longest)
    }

    /// Whether all that these events are about has been left alone by us for a moment.
    pub(super) fn is_at_rest(&self, news: &Gathered) -> bool {
        let now = clock::monotonic();
        let rested =
            |at: Option<&Instant>| at.is_none_or(|at| now.saturating_duration_since(*at) >= REST);
        let mut vms = news.vms();
        !news.everything
            && vms.all(|vm| match vm {
                Some(uid) => rested(self.vms.get(&uid)),
                None => rested(self.last.as_ref()),
            })
    }
}
