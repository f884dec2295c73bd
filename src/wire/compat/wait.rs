//! Waits for a state of a VM.
//! Out of scope: which state, and what follows if it is not reached.

use std::time::Duration;

use futures::StreamExt;

use super::super::backend::{Backend, Refusal};
use crate::api::meta::Name;
use crate::api::node::Node;
use crate::api::view::{Change, Kind};

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
                None => changes.insert(backend.watch(Kind::Vm, Some(vm.clone())).await?),
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
        let Ok(mut changes) = backend.watch(Kind::Vm, Some(vm.clone())).await else {
            return false;
        };
        let mut exists = false;
        while let Some(change) = changes.next().await {
            match change {
                Change::Deleted { .. } => return true,
                Change::Synced if !exists => return true,
                Change::Synced => {}
                Change::Added { .. } | Change::Modified { .. } => exists = true,
            }
        }
        false
    };
    tokio::time::timeout(limit, removed).await.unwrap_or(false)
}
