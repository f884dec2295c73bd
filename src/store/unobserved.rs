//! The stages that this process has not observed yet. Data only.
//! Out of scope: what it means (`observation`).

use std::collections::{BTreeSet, HashMap};

use crate::api::meta::{Timestamp, Uid};
use crate::api::stage::Stage;

/// The unobserved stages by VM, and the time since when they are unobserved.
#[derive(Default)]
pub(super) struct Unobserved {
    pub(super) since: Option<Timestamp>,
    pub(super) stages: HashMap<Uid, BTreeSet<Stage>>,
}
