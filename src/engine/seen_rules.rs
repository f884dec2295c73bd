//! The generation of each isolated VM's rules at the last observation: events about earlier generations are ignored.
//! Out of scope: the observation.
//!
//! # Why
//! Each commit of ours causes an event, and the observation after the commit has already verified its result. A second observation would
//! account for a third of the cost of a policy change.

use std::collections::HashMap;

use parking_lot::Mutex;

use crate::api::meta::Uid;
use crate::host::rule::Generation;

/// The generation of the verified rules, by VM.
#[derive(Debug, Default)]
pub struct VerifiedRules(Mutex<HashMap<Uid, Generation>>);

impl VerifiedRules {
    /// Records that an observation found the rules to be correct.
    pub fn record(&self, uid: Uid, generation: Generation) {
        self.0.lock().insert(uid, generation);
    }

    /// Whether the last observation includes the transaction that ended in `generation`.
    pub fn covers(&self, uid: Uid, generation: Generation) -> bool {
        let generations = self.0.lock();
        generations
            .get(&uid)
            .is_some_and(|verified| verified.covers(generation))
    }

    /// Removes a VM that is gone.
    pub fn forget(&self, uid: Uid) {
        self.0.lock().remove(&uid);
    }
}
