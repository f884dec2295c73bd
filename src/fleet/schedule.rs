//! The scheduler: which VM objects exist, and which node runs each. A pure function, run by the elected daemon for each change.
//! Out of scope: reading etcd, the election, sending the transactions; what a node does with its VMs.
//!
//! # Rules
//! - Only what an object says changes anything. The absence of a node, of a status or of contact deletes and moves nothing; the one
//!   exception is a group with [`Replacement`](super::object::Replacement) ([`replacement`]).
//! - Of one uid, at most one copy runs. A VM gets another node only when its previous copy is proven to be absent, is stopped by its node
//!   under the terms of the replacement, or with `moving_from`, until which the new node does not start it.
//! - Each binding and each release increments the epoch of the VM.
//! - A node has at most what it has: a copy that may exist uses its node, also while it is deleted.
//! - Nodes look for the files that a group names when they see it. The VMs of the group are bound when all nodes that may be able to run
//!   them have looked, or when the leader does not wait for the others any more.
//! - A node gets a subnet for a group in bridge mode with `subnets` before the first VM of the group is bound to it (`subnets`).
//! - The same view has the same plan. A plan of a view in which nothing is to be done is empty.
//!
//! # What a node does
//! - It runs a VM with a binding to it without `deleting` and `moving_from`, when it has the group in the generation of the VM or a later
//!   one, and reports it with the epoch of the binding. The first report, with the `stops_within` that it obeys, precedes the start.
//! - It acts on an object only when it has contact: it has renewed its lease and then read its objects.
//! - It refuses an epoch with [`Phase::Refused`](super::object::Phase), for good, and only if it has never had a copy of that epoch: of a VM
//!   that it cannot start again it reports `NotReady`.
//! - It deletes its copy if the object has `deleting`, or a greater epoch than the copy without a binding to this node, unless `previous`
//!   says `keep`. Then, and if it has no copy, it reports [`Phase::Deleted`](super::object::Phase) with the epoch that the object names
//!   for it (`binding`, `moving_from`, `previous`).
//! - If its user deletes a VM, it reports [`Phase::Deleted`](super::object::Phase) too; the VM then gets another epoch.
//! - It removes its report when the object is removed or does not name the node. An object that is missing deletes no copy.
//!
//! # Cost
//! O(n log n) for n objects, and one look at each node for each different request of the groups that need nodes.

mod candidates;
mod disrupt;
mod filter;
mod free;
mod index;
mod place;
mod pools;
mod refusal;
pub mod replacement;
mod request;
pub mod step;
mod subnets;
mod survey;
pub mod view;
mod work;

#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap};

use self::candidates::{Candidates, Session};
use self::index::Index;
use self::request::Request;
use self::step::Plan;
use self::view::View;
use self::work::Work;
use super::object::Group;
use crate::api::meta::{Name, Uid};

/// What is to be done for this view. `uids` returns the uids of new VMs.
pub fn plan(view: &View, uids: &mut dyn FnMut() -> Uid) -> Plan {
    let mut index = Index::new(view);
    let mut plan = Plan::default();
    // Groups with equal requests, in the order of the first of each.
    let mut classes: Vec<(Request<'_>, Vec<Work<'_>>)> = Vec::new();
    let mut by_request: HashMap<Request<'_>, usize> = HashMap::new();
    let names: BTreeSet<&Name> = view
        .groups
        .keys()
        .chain(index.members.keys().copied())
        .collect();
    for name in names {
        let Some(work) = survey::survey(&index, name, uids, &mut plan) else {
            continue;
        };
        let request = Request::of(&work.group.value);
        let needs_node = !work.candidates.is_empty() || !subnets::missing(&index, &work).is_empty();
        if !needs_node && !disrupt::is_due(&index, &work, &request) {
            continue;
        }
        let class = by_request.entry(request).or_insert_with_key(|request| {
            classes.push((request.clone(), Vec::new()));
            classes.len() - 1
        });
        classes[*class].1.push(work);
    }
    for (request, groups) in classes {
        let mut candidates = Candidates::new(&index, request);
        match candidates.wait() {
            Some(wait) => plan.wake(wait),
            None => groups
                .into_iter()
                .for_each(|work| assign(&mut index, &mut candidates, work, &mut plan)),
        }
        plan.examined += candidates.examined();
    }
    plan
}

/// Decides about the VMs of one group that need nodes.
fn assign<'v>(
    index: &mut Index<'v>,
    candidates: &mut Candidates<'v>,
    mut work: Work<'v>,
    plan: &mut Plan,
) {
    let group: &Group = &work.group.value;
    let missing = subnets::missing(index, &work);
    let counts = std::mem::take(&mut work.counts);
    let free = subnets::free(index, group);
    let mut session = Session::open(candidates, index, group.placement.strategy, counts, free);
    subnets::assign_to_bound(index, &mut session, missing, work.group, plan);
    for candidate in std::mem::take(&mut work.candidates) {
        place::place(index, &mut session, work.group, candidate, plan);
    }
    disrupt::disrupt(index, &mut session, &work, plan);
    session.close();
}
