//! Which rules of each isolated VM the last look saw: what happened before it is no news.
//! Out of scope: the look.
//!
//! # Why
//! Each commit of ours makes an event, and the look that follows the commit has seen what it left behind. A second look would
//! be a third of what a change of the policy costs.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::api::meta::Uid;
use crate::host::rule::Generation;

/// By VM, the generation of the rules that were found right.
#[derive(Debug, Default)]
pub struct SeenRules(Mutex<HashMap<Uid, Generation>>);

impl SeenRules {
    /// A look found the rules right.
    pub fn note(&self, uid: Uid, generation: Generation) {
        self.seen().insert(uid, generation);
    }

    /// Whether a look has seen what the transaction left behind that ended in `generation`.
    pub fn covers(&self, uid: Uid, generation: Generation) -> bool {
        let seen = self.seen();
        seen.get(&uid).is_some_and(|seen| seen.covers(generation))
    }

    /// The VM is no more.
    pub fn forget(&self, uid: Uid) {
        self.seen().remove(&uid);
    }

    fn seen(&self) -> MutexGuard<'_, HashMap<Uid, Generation>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
