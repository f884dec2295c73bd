//! Waits for a state of a VM.
//! Out of scope: which state, and what follows if it is not reached.

use std::time::Duration;

use futures::StreamExt;
use serde::Deserialize;

use super::super::backend::{Backend, Refusal};
use super::super::watch;
use crate::api::condition::Status;
use crate::api::meta::Name;
use crate::api::node::Node;
use crate::api::view::{ConditionView, Kind, Object, WatchRequest};

/// How long a VM may take to be removed before a deletion is answered: clients delete many VMs one after another.
pub(super) const REMOVAL: Duration = Duration::from_secs(2);

/// Returns when `check` returns something for the VM, or after `limit` with `None`.
///
/// # Errors
/// The VM does not exist any more.
pub(super) async fn until<B: Backend, T>(
    backend: &B,
    vm: &Name,
    limit: Duration,
    check: impl Fn(&Node) -> Option<T>,
) -> Result<Option<T>, Refusal> {
    let found = async {
        let mut changes = None;
        loop {
            let details = backend.node(vm.clone()).await?;
            if let Some(found) = check(&details.node) {
                return Ok(Some(found));
            }
            let changes = match &mut changes {
                // Most VMs need not be waited for.
                None => changes.insert(backend.watch(changes_of(vm)).await?),
                Some(changes) => changes,
            };
            if changes.next().await.is_none() {
                return Ok(None);
            }
        }
    };
    match tokio::time::timeout(limit, found).await {
        Ok(found) => found,
        Err(_) => Ok(None),
    }
}

/// Returns whether the VM is removed, after `limit` at the latest.
pub(super) async fn is_removed<B: Backend>(backend: &B, vm: &Name, limit: Duration) -> bool {
    let removed = async {
        let Ok(mut changes) = backend.watch(changes_of(vm)).await else {
            return false;
        };
        // The lines themselves say it: a question for the VM would compare its name with all others to suggest one.
        let mut exists = false;
        while let Some(lines) = changes.next().await {
            let lines = lines.split(|byte| *byte == b'\n');
            for line in lines.filter(|line| !line.is_empty()) {
                match serde_json::from_slice::<Line>(line).map(|line| line.kind) {
                    Ok(LineKind::Added | LineKind::Modified) => exists = true,
                    Ok(LineKind::Synced) if exists => {}
                    Ok(LineKind::Synced | LineKind::Deleted) => return true,
                    Err(_) => return false,
                }
            }
        }
        false
    };
    tokio::time::timeout(limit, removed).await.unwrap_or(false)
}

/// What a line of a watch says of its object, without the object.
#[derive(Deserialize)]
struct Line {
    #[serde(rename = "type")]
    kind: LineKind,
}

#[derive(Deserialize)]
#[serde(rename_all = "UPPERCASE")]
enum LineKind {
    Added,
    Modified,
    Deleted,
    Synced,
}

/// Why a VM is not ready, or why its agent does not answer: the message of the first condition that is not true.
pub(super) async fn cause<B: Backend>(backend: &B, vm: &Name) -> Option<String> {
    let found = backend.get(Kind::Vm, Some(vm.clone())).await.ok()?;
    let Object::Vm(found) = found.items.into_iter().next()? else {
        return None;
    };
    let mut conditions = found.status.conditions.into_iter();
    let is_cause = |it: &ConditionView| it.status != Status::True && !it.message.is_empty();
    conditions.find(is_cause).map(|it| it.message)
}

/// A watch of one VM.
fn changes_of(vm: &Name) -> WatchRequest {
    watch::request_of_objects(Kind::Vm, Some(vm.clone()))
}
