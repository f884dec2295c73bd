//! What is stored of a fleet in addition to groups and VMs.
//! Out of scope: changing it ([`super::fleet`]).

use std::collections::BTreeMap;

use crate::api::fleet::{Facts, LocalRefusal};
use crate::api::meta::Uid;

/// The etcd cluster, and the VMs that this node has refused.
#[derive(Default)]
pub(super) struct FleetState {
    pub(super) facts: Option<Facts>,
    /// By the uid of the object in the fleet.
    pub(super) refusals: BTreeMap<Uid, LocalRefusal>,
}
