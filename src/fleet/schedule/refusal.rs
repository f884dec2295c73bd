//! Nodes that have refused a VM, and for how long they are excluded.
//! Out of scope: why nodes refuse.

use std::time::Duration;

use super::candidates::{Excluded, Session};
use super::filter::Reason;
use super::index::Index;
use super::view::Stored;
use crate::api::meta::{Name, Timestamp};
use crate::fleet::object::{Group, Refusal, Resources, Vm};

/// The first backoff. Each refusal doubles it.
pub const FIRST: Duration = Duration::from_secs(10);
/// The longest backoff.
pub const LONGEST: Duration = Duration::from_secs(300);
/// After so many refusals in effect the VM is offered to no node: what refuses it is the VM. It also bounds the object.
pub const MOST: usize = 16;
/// The longest reason, in characters: a node writes it.
const MAX_REASON: usize = 200;

fn backoff(times: u32) -> Duration {
    let doubled = 1_u32
        .checked_shl(times.saturating_sub(1))
        .unwrap_or(u32::MAX);
    FIRST.saturating_mul(doubled).min(LONGEST)
}

/// The time until the backoff ends; `None`: it has ended. A backoff that ends later than the longest one was stored before the clock was
/// set back, and has ended.
fn rest(refusal: &Refusal, now: Timestamp) -> Option<Duration> {
    let rest = Duration::try_from(refusal.until.duration_since(now)).ok()?;
    (!rest.is_zero() && rest <= LONGEST).then_some(rest)
}

/// Whether nothing that the node has refused has changed.
fn is_current(refusal: &Refusal, generation: u64, allocatable: Option<Resources>) -> bool {
    refusal.group_generation == generation && Some(refusal.allocatable) == allocatable
}

fn allocatable(index: &Index<'_>, node: &Name) -> Option<Resources> {
    let status = index.node(node)?.view.status.as_ref()?;
    Some(status.value.allocatable)
}

/// Adds the refusal by the node of the binding, and removes those that no longer matter.
pub(super) fn record(index: &Index<'_>, vm: &mut Vm, node: &Name, reason: String) {
    let now = index.view.now;
    let offered = vm.group_generation;
    let current = |refusal: &Refusal| {
        is_current(refusal, offered, allocatable(index, &refusal.node))
            && now.duration_since(refusal.until)
                < jiff::SignedDuration::try_from(LONGEST).unwrap_or_default()
    };
    vm.refusals.retain(current);
    let earlier = vm.refusals.iter().position(|it| it.node == *node);
    let times = earlier
        .map_or(0, |at| vm.refusals.remove(at).times)
        .saturating_add(1);
    let until = now.saturating_add(backoff(times)).unwrap_or(now);
    // The earliest ends first.
    vm.refusals.sort_by_key(|refusal| refusal.until);
    let excess = (vm.refusals.len() + 1).saturating_sub(MOST);
    vm.refusals.drain(..excess);
    vm.refusals.push(Refusal {
        node: node.clone(),
        reason: reason.chars().take(MAX_REASON).collect(),
        times,
        until,
        group_generation: offered,
        allocatable: allocatable(index, node).unwrap_or_default(),
    });
}

/// Where a VM must not be bound.
#[derive(Debug, Default)]
pub(super) struct Exclusions {
    /// The nodes.
    pub(super) nodes: Vec<Excluded>,
    /// When the first backoff ends.
    pub(super) wake: Option<Duration>,
    /// It is offered to no node until then: so many have refused it.
    pub(super) exhausted: Option<usize>,
    /// The last refusal, a sentence.
    pub(super) last: Option<String>,
}

/// The nodes that the VM must not be bound to.
pub(super) fn excluded(index: &Index<'_>, group: &Stored<Group>, vm: &Vm) -> Exclusions {
    let generation = group.value.template_generation;
    let mut found = Exclusions::default();
    let mut refused = 0;
    for refusal in &vm.refusals {
        let Some(rest) = rest(refusal, index.view.now) else {
            continue;
        };
        if !is_current(refusal, generation, allocatable(index, &refusal.node)) {
            continue;
        }
        refused += 1;
        let Refusal { node, reason, .. } = refusal;
        found.last = Some(format!("The last refusal is of {node}: {reason}"));
        found.wake = Some(found.wake.map_or(rest, |other| other.min(rest)));
        let at = index.position(&refusal.node);
        found.nodes.extend(at.map(|at| (at, Reason::Refused)));
    }
    found.exhausted = Some(refused).filter(|refused| *refused >= MOST);
    let copies = vm.previous.iter().filter_map(|it| index.position(&it.node));
    found
        .nodes
        .extend(copies.map(|at| (at, Reason::PreviousCopy)));
    found
}

impl Exclusions {
    /// The preferred node.
    pub(super) fn pick(&self, session: &mut Session<'_, '_>) -> Option<usize> {
        match self.exhausted {
            Some(_) => None,
            None => session.pick(&self.nodes),
        }
    }

    /// Why there is none.
    pub(super) fn message<'v>(&self, session: &Session<'_, 'v>, index: &Index<'v>) -> String {
        let why = match self.exhausted {
            Some(refused) => {
                format!("{refused} nodes have refused the VM; it is offered again later.")
            }
            None => session.message(index, &self.nodes),
        };
        match &self.last {
            Some(last) => format!("{why} {last}"),
            None => why,
        }
    }
}
