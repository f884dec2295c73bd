//! The nodes that can run VMs with one request, in order of preference.
//! Out of scope: the filters ([`super::filter`]); what becomes of a VM.
//!
//! # Order
//! `pack`: the fullest node, then the first by name. `spread`: the node with the fewest VMs of the group, then as `pack`. Images do not
//! distinguish nodes: a node without the image is not one of them.
//!
//! # Cost
//! Nodes are filtered once for all groups with the same request. A group with k VMs on m nodes moves at most m + k nodes to a list of its
//! own, and back: O((m + k) log n) instead of a scan of all n nodes for each VM. Only one request is open at a time, and what is used of
//! the nodes changes only through it, so that the keys of the sets are current.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::filter::{self, Histogram, Reason};
use super::free::Free;
use super::index::{Index, NodeEntry};
use super::request::Request;
use crate::fleet::object::{Resources, Strategy};

/// The nodes for one request.
pub(super) struct Candidates<'v> {
    request: Request<'v>,
    /// The nodes that can run one more VM: fullness, position.
    open: BTreeSet<(Reverse<u64>, usize)>,
    /// The others, by reason.
    closed: Histogram,
    /// The number of nodes that were looked at.
    examined: u64,
    /// How long nodes are waited for that may be able to run VMs.
    wait: Option<Duration>,
}

/// The nodes for the VMs of one group.
pub(super) struct Session<'c, 'v> {
    candidates: &'c mut Candidates<'v>,
    strategy: Strategy,
    /// The number of VMs of the group by position of the node.
    counts: BTreeMap<usize, u64>,
    /// The open nodes that have VMs of the group (`spread`): number, fullness, position.
    shared: BTreeSet<(u64, Reverse<u64>, usize)>,
    /// The nodes that have a subnet for the group, while there is none for another node; `None`: any node.
    served: Option<BTreeSet<usize>>,
    /// The addresses for VMs of the group; `None`: they need none of a subnet of the node.
    free: Option<Free>,
}

/// A node that a VM must not be bound to.
pub(super) type Excluded = (usize, Reason);

impl<'v> Candidates<'v> {
    pub(super) fn new(index: &Index<'v>, request: Request<'v>) -> Self {
        let mut candidates = Self {
            request,
            open: BTreeSet::new(),
            closed: Histogram::new(),
            examined: index.nodes.len() as u64,
            wait: None,
        };
        for (at, node) in index.nodes.iter().enumerate() {
            match filter::obstacle(node, &candidates.request) {
                None => drop(candidates.open.insert((Reverse(node.fullness()), at))),
                Some(reason) => {
                    *candidates.closed.entry(reason).or_default() += 1;
                    if reason == Reason::NotLooked {
                        candidates.wait = candidates.wait.max(node.view.looks);
                    }
                }
            }
        }
        candidates
    }
}

impl Candidates<'_> {
    /// The number of nodes that were looked at.
    pub(super) fn examined(&self) -> u64 {
        self.examined
    }

    /// How long no VM is bound: nodes that may be able to run VMs have not looked yet for all files.
    pub(super) fn wait(&self) -> Option<Duration> {
        self.wait
    }
}

impl<'c, 'v> Session<'c, 'v> {
    pub(super) fn open(
        candidates: &'c mut Candidates<'v>,
        index: &Index<'v>,
        strategy: Strategy,
        counts: BTreeMap<usize, u64>,
        free: Option<Free>,
    ) -> Self {
        let mut shared = BTreeSet::new();
        if strategy == Strategy::Spread {
            for (&at, &count) in &counts {
                let fullness = Reverse(index.nodes[at].fullness());
                if candidates.open.remove(&(fullness, at)) {
                    shared.insert((count, fullness, at));
                }
            }
        }
        Self {
            candidates,
            strategy,
            counts,
            shared,
            served: None,
            free,
        }
    }

    /// There is no subnet for a node that is not one of these.
    pub(super) fn restrict(&mut self, served: BTreeSet<usize>) {
        self.served = Some(served);
    }

    /// Whether the node has a subnet for the group, or can get one; always if it needs none.
    pub(super) fn serves(&self, at: usize) -> bool {
        self.served.as_ref().is_none_or(|it| it.contains(&at))
    }

    pub(super) fn request(&self) -> &Request<'v> {
        &self.candidates.request
    }

    /// The preferred node for a VM.
    pub(super) fn pick(&mut self, excluded: &[Excluded]) -> Option<usize> {
        let candidates = &mut *self.candidates;
        let (served, free) = (self.served.as_ref(), self.free.as_ref());
        let is_allowed = |at: &usize| {
            served.is_none_or(|it| it.contains(at))
                && free.is_none_or(|it| it.has(*at))
                && !excluded.iter().any(|(other, _)| other == at)
        };
        let open = candidates.open.iter().map(|(_, at)| *at);
        let shared = self.shared.iter().map(|(_, _, at)| *at);
        let examined = &mut candidates.examined;
        let mut nodes = open.chain(shared).inspect(|_| *examined += 1);
        nodes.find(is_allowed)
    }

    /// Why [`Self::pick`] finds none.
    pub(super) fn message(&self, index: &Index<'v>, excluded: &[Excluded]) -> String {
        let mut reasons = self.candidates.closed.clone();
        let mut seen = BTreeSet::new();
        let open = self.candidates.open.iter().map(|(_, at)| *at);
        let all = open.chain(self.shared.iter().map(|(_, _, at)| *at));
        let unserved: Vec<Excluded> = all
            .filter_map(|at| {
                let lacking = self.free.as_ref().filter(|it| !it.has(at));
                match self.serves(at) {
                    false => Some((at, Reason::Subnets)),
                    true => lacking.map(|it| (at, it.lacking)),
                }
            })
            .collect();
        for (at, reason) in excluded.iter().chain(&unserved) {
            let fullness = Reverse(index.nodes[*at].fullness());
            let count = self.counts.get(at).copied().unwrap_or(0);
            let is_open = self.candidates.open.contains(&(fullness, *at))
                || self.shared.contains(&(count, fullness, *at));
            if is_open && seen.insert(*at) {
                *reasons.entry(*reason).or_default() += 1;
            }
        }
        filter::message(index.nodes.len(), &reasons)
    }

    /// Counts one VM more on a node.
    pub(super) fn bind(&mut self, index: &mut Index<'v>, at: usize) {
        let (resources, bridge) = (self.request().resources, self.request().bridge);
        let node = &mut index.nodes[at];
        let was_open = self.take(node, at);
        node.add(&resources, bridge);
        *self.counts.entry(at).or_default() += 1;
        if let Some(free) = &mut self.free {
            free.take(at);
        }
        self.put(node, at, was_open);
    }

    /// Counts one VM with `old` resources as one with the request. What this frees is for the next plan: the steps of a plan are
    /// independent of each other, and the one that frees it may fail.
    pub(super) fn resize(&mut self, index: &mut Index<'v>, at: usize, old: &Resources) {
        let resources = self.request().resources;
        let node = &mut index.nodes[at];
        let was_open = self.take(node, at);
        node.used = node.used.plus(&resources.minus(old));
        self.put(node, at, was_open);
    }

    /// Removes a node from the lists; returns whether it was open.
    fn take(&mut self, node: &NodeEntry<'v>, at: usize) -> bool {
        let fullness = Reverse(node.fullness());
        let count = self.counts.get(&at).copied().unwrap_or(0);
        self.candidates.open.remove(&(fullness, at)) || self.shared.remove(&(count, fullness, at))
    }

    /// Puts back a node that was open, if it can run one more VM.
    fn put(&mut self, node: &NodeEntry<'v>, at: usize, was_open: bool) {
        if !was_open {
            return;
        }
        if let Some(reason) = filter::insufficient(node, &self.candidates.request, None) {
            *self.candidates.closed.entry(reason).or_default() += 1;
            return;
        }
        let fullness = Reverse(node.fullness());
        match (self.strategy, self.counts.get(&at)) {
            (Strategy::Spread, Some(&count)) if count > 0 => {
                self.shared.insert((count, fullness, at));
            }
            (Strategy::Spread | Strategy::Pack, _) => {
                self.candidates.open.insert((fullness, at));
            }
        }
    }

    /// Ends the work on the group.
    pub(super) fn close(self) {
        let shared = self.shared.into_iter();
        self.candidates
            .open
            .extend(shared.map(|(_, fullness, at)| (fullness, at)));
    }
}
