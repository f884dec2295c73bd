//! Enqueues keys on changes of the store and on the resync timer; detects that all work is done.
//! Out of scope: kernel events (`trigger`).

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{broadcast, watch};
use tracing::{info, warn};

use crate::clock;
use crate::engine::{Engine, Key};
use crate::store::Change;

/// How long `--once` waits for another action before it gives up.
const ONCE_TIMEOUT: Duration = Duration::from_secs(5);

/// Waits until everything is Ready. Returns `false` after [`ONCE_TIMEOUT`] without an action, which allows keys in backoff a few retries.
pub(super) async fn converged(engine: &Engine, idle: watch::Receiver<bool>) -> bool {
    let (mut steps, mut since) = (0, clock::monotonic());
    loop {
        quiet(idle.clone()).await;
        if engine.all_ready() {
            return true;
        }
        let actions = engine.step_count.load(std::sync::atomic::Ordering::Relaxed);
        let now = clock::monotonic();
        if actions != steps {
            (steps, since) = (actions, now);
        } else if now.saturating_duration_since(since) > ONCE_TIMEOUT {
            return false;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Waits until the queue is idle for 50 ms: a change may not have reached the queue from the store yet.
pub(super) async fn quiet(mut idle: watch::Receiver<bool>) {
    loop {
        if idle.wait_for(|idle| *idle).await.is_err() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        if *idle.borrow_and_update() {
            return;
        }
    }
}

/// Logs once how long the initial sync took and how many actions it executed.
pub(super) async fn log_initial_sync(engine: Arc<Engine>, idle: watch::Receiver<bool>) {
    let began = clock::monotonic();
    quiet(idle).await;
    info!(
        vms = engine.store.read(|world| world.vms().count()),
        actions = engine.step_count.load(std::sync::atomic::Ordering::Relaxed),
        milliseconds = clock::monotonic()
            .saturating_duration_since(began)
            .as_millis(),
        "initial sync done"
    );
}

/// Enqueues the keys that each change of the store concerns.
///
/// # Why
/// A task of tokio yields after 128 messages (`tokio::task::coop`). While thousands of VMs are created every worker executes system
/// calls, and the task is polled again only after a tenth of a second: a change behind 4,000 others was enqueued after three seconds. A
/// message costs a microsecond and the backlog is bounded (`WATCH_BACKLOG`), so all of it is processed at once.
pub(super) async fn enqueue_by_changes(engine: Arc<Engine>, changes: broadcast::Receiver<Change>) {
    tokio::task::unconstrained(enqueue_changed(engine, changes)).await;
}

async fn enqueue_changed(engine: Arc<Engine>, mut changes: broadcast::Receiver<Change>) {
    loop {
        match changes.recv().await {
            Ok(Change::Group(name)) => engine.waker.enqueue_fresh(Key::Group(name)),
            Ok(Change::Vm(uid)) => engine.waker.enqueue_fresh(Key::Vm(uid)),
            Ok(Change::HostNetwork) => engine.waker.enqueue_fresh(Key::HostNetwork),
            Ok(
                Change::StageStatus(_)
                | Change::Observed(_)
                | Change::View
                | Change::Agent(_)
                | Change::Lease(_),
            ) => {}
            Ok(Change::Everything) => engine.enqueue_all_fresh(),
            Err(broadcast::error::RecvError::Lagged(_)) => engine.enqueue_all(),
            Err(broadcast::error::RecvError::Closed) => return,
        }
    }
}

/// Enqueues everything periodically, in case events were lost.
pub(super) async fn resync(engine: Arc<Engine>, every: Duration) {
    let mut ticks = tokio::time::interval(every);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    ticks.tick().await;
    loop {
        ticks.tick().await;
        engine.check_all_again();
        engine.enqueue_all_low_priority();
        match engine.orphans(clock::now()).await {
            Ok(orphans) => {
                for orphan in orphans.removable {
                    engine.waker.enqueue(Key::Orphan(orphan.label));
                }
            }
            Err(error) => warn!(%error, "cannot list orphans"),
        }
        // The DEL of a plugin that failed before may succeed now.
        engine.release_orphaned_attachments().await;
    }
}
