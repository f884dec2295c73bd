//! Waits for a state of a VM.
//! Out of scope: which state, and what follows if it is not reached.

use std::time::Duration;

use futures::StreamExt;

use super::super::backend::{Backend, Refusal};
use super::super::watch;
use crate::api::meta::Name;
use crate::api::node::Node;
use crate::api::view::{Kind, WatchRequest};

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
        while changes.next().await.is_some() {
            if let Err(Refusal::NotFound(_) | Refusal::NotFoundWithSuggestion(..)) =
                backend.get(Kind::Vm, Some(vm.clone())).await
            {
                return true;
            }
        }
        false
    };
    tokio::time::timeout(limit, removed).await.unwrap_or(false)
}

/// A watch of one VM. Its lines only say that something has changed.
fn changes_of(vm: &Name) -> WatchRequest {
    watch::request_of_objects(Kind::Vm, Some(vm.clone()))
}
