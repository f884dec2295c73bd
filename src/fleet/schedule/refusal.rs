//! Nodes that have refused a VM, and for how long they are excluded.
//! Out of scope: why nodes refuse.

use std::time::Duration;

use super::candidates::Excluded;
use super::filter::Reason;
use super::index::Index;
use super::view::Stored;
use crate::api::meta::{Name, Timestamp};
use crate::fleet::object::{Group, Refusal, Resources, Vm};

/// The first backoff. Each refusal doubles it.
pub const FIRST: Duration = Duration::from_secs(10);
/// The longest backoff.
pub const LONGEST: Duration = Duration::from_secs(300);

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
    vm.refusals.push(Refusal {
        node: node.clone(),
        reason,
        times,
        until,
        group_generation: offered,
        allocatable: allocatable(index, node).unwrap_or_default(),
    });
}

/// The nodes that the VM must not be bound to, and when the first backoff ends.
pub(super) fn excluded(
    index: &Index<'_>,
    group: &Stored<Group>,
    vm: &Vm,
) -> (Vec<Excluded>, Option<Duration>) {
    let generation = group.value.template_generation;
    let mut wake: Option<Duration> = None;
    let mut excluded = Vec::new();
    for refusal in &vm.refusals {
        let Some(rest) = rest(refusal, index.view.now) else {
            continue;
        };
        if !is_current(refusal, generation, allocatable(index, &refusal.node)) {
            continue;
        }
        wake = Some(wake.map_or(rest, |other| other.min(rest)));
        excluded.extend(
            index
                .position(&refusal.node)
                .map(|at| (at, Reason::Refused)),
        );
    }
    let copies = vm.previous.iter().filter_map(|it| index.position(&it.node));
    excluded.extend(copies.map(|at| (at, Reason::PreviousCopy)));
    (excluded, wake)
}
