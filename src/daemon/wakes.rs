//! What wakes keys beside the kernel's events: the store, and time; and when there is nothing left to wake for.
//! Out of scope: what the kernel reports (`trigger`).

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{broadcast, watch};
use tracing::{info, warn};

use crate::clock;
use crate::reconcile::engine::{Engine, Key};
use crate::store::Change;

/// How long `--once` waits for another step before it gives up.
const ONCE_PATIENCE: Duration = Duration::from_secs(5);

/// Whether everything becomes Ready: given up when nothing has been done for a while, which leaves what backs off a few tries.
pub(super) async fn converged(engine: &Engine, idle: watch::Receiver<bool>) -> bool {
    let (mut steps, mut since) = (0, clock::monotonic());
    loop {
        quiet(idle.clone()).await;
        if engine.all_ready() {
            return true;
        }
        let taken = engine.steps.load(std::sync::atomic::Ordering::Relaxed);
        let now = clock::monotonic();
        if taken != steps {
            (steps, since) = (taken, now);
        } else if now.saturating_duration_since(since) > ONCE_PATIENCE {
            return false;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Idle, and still so a moment later: a change may be on its way from the store to the queue.
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

/// Once: how long the first look at everything took, and what it had to do.
pub(super) async fn tell_when_quiet(engine: Arc<Engine>, idle: watch::Receiver<bool>) {
    let began = clock::monotonic();
    quiet(idle).await;
    info!(
        vms = engine.store.read(|world| world.vms().count()),
        actions = engine.steps.load(std::sync::atomic::Ordering::Relaxed),
        milliseconds = clock::monotonic()
            .saturating_duration_since(began)
            .as_millis(),
        "quiet: everything was looked at"
    );
}

/// Enqueues the keys that each change of the store concerns.
///
/// # Why
/// A task of tokio yields after 128 messages (`tokio::task::coop`). While thousands of VMs are created every worker executes system calls, and
/// the task is polled again only after a tenth of a second: a change behind 4,000 others was enqueued after three seconds. A message costs
/// a microsecond and the backlog is bounded (`WATCH_BACKLOG`), so all of it is taken in at once.
pub(super) async fn wake_by_changes(engine: Arc<Engine>, changes: broadcast::Receiver<Change>) {
    tokio::task::unconstrained(enqueue_changed(engine, changes)).await;
}

async fn enqueue_changed(engine: Arc<Engine>, mut changes: broadcast::Receiver<Change>) {
    loop {
        match changes.recv().await {
            Ok(Change::Group(name)) => engine.waker.renew(Key::Group(name)),
            Ok(Change::Vm(uid)) => engine.waker.renew(Key::Vm(uid)),
            Ok(Change::Ground) => engine.waker.renew(Key::Ground),
            Ok(Change::Page(_) | Change::Observed(_) | Change::Lease(_)) => {}
            Ok(Change::Everything) => engine.renew_everything(),
            Err(broadcast::error::RecvError::Lagged(_)) => engine.nudge_everything(),
            Err(broadcast::error::RecvError::Closed) => return,
        }
    }
}

/// The safety net under the events.
pub(super) async fn resync(engine: Arc<Engine>, every: Duration) {
    let mut ticks = tokio::time::interval(every);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    ticks.tick().await;
    loop {
        ticks.tick().await;
        engine.ask_plugins_again();
        engine.sweep_everything();
        match engine.orphans(clock::now()).await {
            Ok(orphans) => {
                for label in orphans.removable {
                    engine.waker.nudge(Key::Stray(label));
                }
            }
            Err(error) => warn!(%error, "cannot look for what nothing wants"),
        }
        // A plugin that could not let go at the start may now.
        engine.sweep_plugins().await;
    }
}
