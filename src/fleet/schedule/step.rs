//! What the scheduler decides: writes to etcd, each with the revisions that its transaction compares.
//! Out of scope: the decisions; sending the transactions.
//!
//! # Transactions
//! A step is one write and a list of comparisons of `mod_revision`. Steps are independent of each other: the shell may send them in any
//! order, in one transaction or in several, and a step that fails is decided again by the next plan. No two steps of a plan write the same
//! key. The shell adds a comparison of the election key to each transaction ([`batches`] counts it), so that a scheduler that has lost the
//! election writes nothing.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use crate::api::meta::{Name, Uid};
use crate::fleet::keys::Key;
use crate::fleet::object::{NodeSubnet, Vm};

/// The decisions on one view.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// The subnets of nodes that VMs of [`Plan::steps`] need: they are written before. If one of them fails, the view has changed.
    pub subnets: Vec<Step>,
    /// The other writes. Empty: nothing is to be done for this view.
    pub steps: Vec<Step>,
    /// The VMs that stay where they are although they should not, with the reason: for the status of a drain.
    pub blocked: Vec<Blocked>,
    /// When a plan for the same objects can differ from this one: a backoff or `replace_after` ends. `None`: never.
    pub wake_after: Option<Duration>,
    /// A step depends on how long a node has been without contact. The objects must not be older than the time that is compared: a node
    /// that has returned and was lost again in the meantime counts from zero again.
    pub depends_on_time: bool,
    /// The number of nodes that were looked at, which is what the plan costs beyond one pass over the view.
    pub examined: u64,
}

impl Plan {
    pub(super) fn wake(&mut self, after: Duration) {
        self.wake_after = Some(self.wake_after.map_or(after, |other| other.min(after)));
    }
}

/// One write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The decision that the write carries out.
    pub action: Action,
    /// The VM, or the group.
    pub name: Name,
    /// The change.
    pub write: Write,
    /// What must not have changed.
    pub compares: Vec<Compare>,
}

/// A change of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    /// Put `/slice/v1/vms/<uid>`.
    PutVm(Box<Vm>),
    /// Delete `/slice/v1/vms/<uid>`.
    DeleteVm(Uid),
    /// Delete `/slice/v1/groups/<name>`.
    DeleteGroup(Name),
    /// Put `/slice/v1/ranges/<group>/<node>`.
    PutSubnet(Name, Name, NodeSubnet),
    /// Delete `/slice/v1/ranges/<group>/<node>`.
    DeleteSubnet(Name, Name),
}

/// `mod_revision(key) == revision`; 0: the key is absent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compare {
    /// The key.
    pub key: Key,
    /// Its revision.
    pub revision: u64,
}

/// Why an object is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Action {
    /// A VM is created, with a binding if a node fits.
    Create,
    /// A VM without a node, or one that its node has refused, is bound.
    Bind,
    /// A VM that its node has refused loses its binding; no other node fits.
    Unbind,
    /// The reason why no node fits is updated.
    Pending,
    /// A VM loses its binding to a fenced node, and gets another one if a node fits.
    Release,
    /// A VM is bound to another node because contact to its node is lost.
    Replace,
    /// A VM is bound to the node again that has kept its original copy.
    Return,
    /// A VM is moved to another node.
    Move,
    /// A VM gets the current spec of its group on its node.
    Update,
    /// A node has deleted a copy, or no longer has to keep one.
    Confirm,
    /// The deletion of a VM is requested.
    Delete,
    /// A VM that has no copy is removed.
    Remove,
    /// A group that has no VM is removed.
    RemoveGroup,
    /// A node gets a subnet for a group in bridge mode.
    AssignSubnet,
    /// The subnet of a group that is deleted and has no VM is free again.
    FreeSubnet,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Create => "create",
            Self::Bind => "bind",
            Self::Unbind => "unbind",
            Self::Pending => "set pending",
            Self::Release => "release",
            Self::Replace => "replace",
            Self::Return => "return",
            Self::Move => "move",
            Self::Update => "update",
            Self::Confirm => "confirm",
            Self::Delete => "delete",
            Self::Remove => "remove",
            Self::RemoveGroup => "remove group",
            Self::AssignSubnet => "assign subnet",
            Self::FreeSubnet => "free subnet",
        })
    }
}

/// A VM that stays where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blocked {
    /// The VM.
    pub vm: Name,
    /// Its node.
    pub node: Name,
    /// What is not done, and why: a sentence.
    pub reason: String,
}

/// A part of a plan that fits one transaction.
#[derive(Clone, Debug, Default)]
pub struct Batch<'p> {
    /// The comparisons of its steps, each key once, without that of the election key.
    pub compares: Vec<&'p Compare>,
    /// Its steps.
    pub steps: Vec<&'p Step>,
}

/// The steps in their order, in batches of at most `limit` writes and `limit` comparisons including that of the election key (etcd counts
/// them separately; its default `--max-txn-ops` is 128).
pub fn batches(steps: &[Step], limit: usize) -> Vec<Batch<'_>> {
    let mut batches: Vec<Batch<'_>> = Vec::new();
    let mut keys: BTreeMap<&Key, u64> = BTreeMap::new();
    for step in steps {
        let is_new = |compare: &&Compare| !keys.contains_key(&compare.key);
        let added = step.compares.iter().filter(is_new).count();
        let fits =
            |batch: &Batch<'_>| batch.steps.len() < limit && batch.compares.len() + added < limit;
        if !batches.last().is_some_and(fits) {
            batches.push(Batch::default());
            keys.clear();
        }
        let Some(batch) = batches.last_mut() else {
            continue;
        };
        batch.steps.push(step);
        for compare in &step.compares {
            if keys.insert(&compare.key, compare.revision).is_none() {
                batch.compares.push(compare);
            }
        }
    }
    batches
}
