//! Tracks recent changes of our own: events about these objects are likely caused by our own actions.
//! Out of scope: the content of events.
//!
//! # Why
//! Bringing up a VM causes some thirty events. An observation for each would cost more than the bring-up and find nothing. If we have not
//! changed a VM for a short time, events about it are caused by another program.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use tokio::sync::broadcast::error::RecvError;

use super::gathered::Pending;
use super::{CONFLICT_INTERVAL, REST_TIME};
use crate::api::meta::Uid;
use crate::clock;
use crate::engine::{Engine, Key};
use crate::store::Change;

/// Time of our last change of each object.
#[derive(Default)]
pub(super) struct Activity {
    /// By VM.
    vms: HashMap<Uid, Instant>,
    /// Last change of any object, including groups and the host: the rules of the host depend on all of them.
    last: Option<Instant>,
    /// Time at which the host was last enqueued for observation.
    host: Option<Instant>,
}

impl Activity {
    /// Records a change of the store. The stages of a VM that is brought up write their status one after the other.
    pub(super) fn note(&mut self, change: &Result<Change, RecvError>) {
        let vm = match change {
            Ok(Change::Vm(uid) | Change::StageStatus(uid)) => Some(*uid),
            Ok(Change::Observed(_) | Change::View | Change::Agent(_)) => return,
            Ok(_) | Err(_) => None,
        };
        match vm {
            Some(_) => self.record_enqueued(std::iter::once(vm)),
            None => self.last = Some(clock::monotonic()),
        }
    }

    /// Records that VMs are enqueued for observation; `None` is the host.
    pub(super) fn record_enqueued(&mut self, vms: impl Iterator<Item = Option<Uid>>) {
        /// Number of entries above which expired ones are removed.
        const SWEEP_THRESHOLD: usize = 1024;
        let now = clock::monotonic();
        for vm in vms {
            self.last = Some(now);
            match vm {
                Some(uid) => drop(self.vms.insert(uid, now)),
                None => self.host = Some(now),
            }
        }
        if self.vms.len() > SWEEP_THRESHOLD {
            let is_expired = |at: &Instant| now.saturating_duration_since(*at) >= REST_TIME;
            self.vms.retain(|_, at| !is_expired(at));
        }
    }

    /// How long to wait before the events are enqueued, if a conflicting writer changes every object that they are about.
    pub(super) fn contested(&self, pending: &Pending, engine: &Engine) -> Option<Duration> {
        if pending.everything || !pending.has_content() {
            return None;
        }
        let now = clock::monotonic();
        let mut longest = Duration::ZERO;
        for vm in pending.vms() {
            let (key, last) = match vm {
                Some(uid) => (Key::Vm(uid), self.vms.get(&uid)),
                // Not `last`: repairs of VMs with conflicting writers would delay the host.
                None => (Key::HostNetwork, self.host.as_ref()),
            };
            if !engine.is_contested(&key) {
                return None;
            }
            let age = last.map(|at| now.saturating_duration_since(*at));
            longest = longest
                .max(age.map_or(Duration::ZERO, |age| CONFLICT_INTERVAL.saturating_sub(age)));
        }
        Some(longest)
    }

    /// Whether every object that the events are about is at rest: not changed by us within [`REST_TIME`].
    pub(super) fn is_at_rest(&self, pending: &Pending) -> bool {
        let now = clock::monotonic();
        let is_at_rest = |at: Option<&Instant>| {
            at.is_none_or(|at| now.saturating_duration_since(*at) >= REST_TIME)
        };
        let mut vms = pending.vms();
        !pending.everything
            && vms.all(|vm| match vm {
                Some(uid) => is_at_rest(self.vms.get(&uid)),
                None => is_at_rest(self.last.as_ref()),
            })
    }
}
