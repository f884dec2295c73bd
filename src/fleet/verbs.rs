//! What users request of a fleet, as reads and transactions of etcd: any daemon with a user of etcd can answer them.
//! Out of scope: HTTP, YAML, text; the decisions of the scheduler and of nodes.
//!
//! # Consistency
//! A read is linearizable and has all keys at one revision: it contains every change that was answered before. It does not use the
//! mirror, which is behind while there is no contact. A change is a transaction that compares what it was computed from; if that has
//! changed, it is computed again, a bounded number of times. It is answered when etcd has committed it.
//!
//! # Values that cannot be read
//! A list contains their keys with the errors. A change of such a value is refused: it may be of a later version.

mod apply;
mod attempts;
mod change;
mod diff;
mod error;
mod groups;
mod node_actions;
mod nodes;
mod remove_node;
mod snapshot;
mod status;
mod vms;

pub use apply::{apply, delete_group, scale};
pub use diff::diff;
pub use error::Error;
pub use groups::groups;
pub use node_actions::act_on_node;
pub use nodes::{node_vms, nodes, subnets};
pub use snapshot::Snapshot;
pub use status::{Leader, leader};
pub use vms::vms;
