//! Mutual exclusion of operations: one at a time per container, GC exclusively, and a limited number of repairs.
//! Out of scope: the operations.
//!
//! The spec defines the rule (section 3, Lifecycle & Ordering), except for the limit of repairs.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;

use crate::clock;
use tokio::sync::{
    self, OwnedMutexGuard, OwnedRwLockReadGuard, OwnedRwLockWriteGuard, OwnedSemaphorePermit,
};

/// The interval of attempts to get exclusive access.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// How long a repair waits for other repairs. A plugin may hang until its deadline.
const REPAIR_TIMEOUT: Duration = Duration::from_secs(20);

/// The locks of a runtime.
#[derive(Debug)]
pub(super) struct Locks {
    all: Arc<sync::RwLock<()>>,
    containers: Mutex<HashMap<String, Weak<sync::Mutex<()>>>>,
    repairs: Arc<sync::Semaphore>,
}

/// A permit to repair an attachment, until dropped.
#[derive(Debug)]
pub struct RepairPermit {
    _permit: OwnedSemaphorePermit,
}

impl Default for Locks {
    fn default() -> Self {
        // At least two, because one may hang.
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            all: Arc::default(),
            containers: Mutex::default(),
            repairs: Arc::new(sync::Semaphore::new(cores.max(2))),
        }
    }
}

/// The lock of a container, until dropped.
pub(super) struct ContainerLock {
    _all: OwnedRwLockReadGuard<()>,
    _container: OwnedMutexGuard<()>,
}

impl Locks {
    /// Waits for the lock of a container.
    pub(super) async fn container(&self, id: &str) -> ContainerLock {
        let all = Arc::clone(&self.all).read_owned().await;
        let lock = self.lock_of(id);
        ContainerLock {
            _all: all,
            _container: lock.lock_owned().await,
        }
    }

    /// Waits until fewer repairs than processors are in progress. `None`: [`REPAIR_TIMEOUT`] has passed, and the repair should start
    /// without a permit.
    pub(super) async fn repair(&self) -> Option<RepairPermit> {
        let turn = Arc::clone(&self.repairs).acquire_owned();
        let turn = tokio::time::timeout(REPAIR_TIMEOUT, turn).await.ok()?;
        turn.ok().map(|permit| RepairPermit { _permit: permit })
    }

    /// Waits for exclusive access. It polls, because a queued writer would block all other operations while one plugin hangs. `None`:
    /// `timeout` has passed.
    pub(super) async fn exclusive(&self, timeout: Duration) -> Option<OwnedRwLockWriteGuard<()>> {
        let start = clock::monotonic();
        loop {
            if let Ok(lock) = Arc::clone(&self.all).try_write_owned() {
                return Some(lock);
            }
            if clock::monotonic().saturating_duration_since(start) >= timeout {
                return None;
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    fn lock_of(&self, id: &str) -> Arc<sync::Mutex<()>> {
        let mut containers = self.containers.lock();
        // One lock is kept per operation in progress.
        containers.retain(|_, lock| lock.strong_count() > 0);
        if let Some(lock) = containers.get(id).and_then(Weak::upgrade) {
            return lock;
        }
        let lock = Arc::default();
        containers.insert(id.to_owned(), Arc::downgrade(&lock));
        lock
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_repair_waits_for_others_for_a_limited_time() {
        let locks = Locks::default();
        let mut permits = Vec::new();
        for _ in 0..locks.repairs.available_permits() {
            permits.push(locks.repair().await.expect("a permit"));
        }
        assert!(locks.repair().await.is_none());
        permits.pop();
        assert!(locks.repair().await.is_some());
    }
}
