//! Runs keys when they are due: each run is a task, the number of concurrent runs is limited, and no run is cancelled.
//! Out of scope: what a run does.
//!
//! # Why runs that wait release their worker
//! A run that waits for another process to start does no work meanwhile, so another key uses its worker. The number of such runs is
//! limited, too: the processes that they wait for compete for the same CPUs.
//!
//! # Why slow runs release their worker
//! A run that takes longer than [`SLOW_AFTER`] most likely hangs: in a program, in the kernel, or in a file system without its server. Its
//! deadline ends it, but until then it must not prevent other keys from running. It uses no CPU, so the limit is higher: it bounds the
//! resources that these runs keep open.

use std::collections::HashMap;
use std::fmt::Debug;
use std::future::Future;
use std::hash::Hash;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{Notify, mpsc, watch};
use tokio::task::{Id, JoinSet};
use tracing::{error, trace};

use super::queue::{Lane, Outcome, Queue};
use crate::clock;

/// A wake-up for a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EnqueueRequest<K> {
    /// The state of the host changed.
    Enqueue(K),
    /// The desired state changed.
    EnqueueFresh(K),
    /// No change is known: run the key in the bulk lane.
    EnqueueLowPriority(K),
}

/// Enqueues keys. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Enqueuer<K> {
    requests: mpsc::UnboundedSender<EnqueueRequest<K>>,
}

impl<K> Enqueuer<K> {
    /// Enqueues a key because the state of the host changed. A backoff is kept.
    pub fn enqueue(&self, key: K) {
        // Sending fails only if the controller has stopped.
        let _ = self.requests.send(EnqueueRequest::Enqueue(key));
    }

    /// Enqueues a key in the bulk lane: no change is known.
    pub fn enqueue_low_priority(&self, key: K) {
        let _ = self.requests.send(EnqueueRequest::EnqueueLowPriority(key));
    }

    /// Enqueues a key because its desired state changed: its failures are reset, and it runs at once.
    pub fn enqueue_fresh(&self, key: K) {
        let _ = self.requests.send(EnqueueRequest::EnqueueFresh(key));
    }
}

/// The limit of waiting runs without a worker, as a multiple of the number of workers.
pub const WAITING_PER_WORKER: usize = 3;

/// A run that takes longer than this releases its worker.
pub const SLOW_AFTER: Duration = Duration::from_millis(500);

/// The same for a key after a failed run: it most likely hangs again.
const SLOW_AFTER_FAILURE: Duration = Duration::from_millis(100);

/// The default limit of slow runs without a worker.
pub const MAX_SLOW_RUNS: usize = 256;

tokio::task_local! {
    static RUN: Arc<RunState>;
}

/// A run in progress.
#[derive(Debug)]
struct RunState {
    released_runs: Arc<ReleasedRuns>,
    /// The run has released its worker.
    released: AtomicBool,
}

/// Counts the runs that have released their workers.
#[derive(Debug, Default)]
struct ReleasedRuns {
    waiting: ReleaseCount,
    slow: ReleaseCount,
    unlimited: ReleaseCount,
    changed: Notify,
}

/// The number of runs released for one reason, and its limit.
#[derive(Debug, Default)]
struct ReleaseCount {
    count: AtomicUsize,
    limit: usize,
}

impl ReleaseCount {
    fn of(limit: usize) -> Self {
        Self {
            limit,
            ..Self::default()
        }
    }
}

impl ReleasedRuns {
    fn released(&self) -> usize {
        [&self.waiting, &self.slow, &self.unlimited]
            .map(|slots| slots.count.load(Ordering::Relaxed))
            .iter()
            .sum()
    }
}

/// Why a run releases its worker.
#[derive(Clone, Copy, Debug)]
enum ReleaseReason {
    /// It waits for another process.
    Waiting,
    /// It takes longer than [`SLOW_AFTER`].
    Slow,
    /// It waits for an operation that is limited in number elsewhere.
    Unlimited,
}

/// Waits without occupying a worker. Outside of a run, or if the limit ([`WAITING_PER_WORKER`]) is reached, the worker is not released.
pub async fn release_worker<W: Future>(future: W) -> W::Output {
    let released =
        ReleaseGuard::try_release(ReleaseReason::Waiting).or_else(ReleaseGuard::mark_released);
    let output = future.await;
    drop(released);
    output
}

/// Waits without occupying a worker and without a limit: for operations that are limited in number elsewhere, such as copies of images.
pub async fn release_worker_unlimited<W: Future>(future: W) -> W::Output {
    let released = ReleaseGuard::try_release(ReleaseReason::Unlimited);
    let done = future.await;
    drop(released);
    done
}

/// Completes a run. It releases its worker after `slow_after`.
async fn release_when_slow<R: Future>(run: R, slow_after: Duration) -> R::Output {
    let mut run = Box::pin(run);
    loop {
        tokio::select! {
            biased;
            done = &mut run => return done,
            () = tokio::time::sleep(slow_after) => {}
        }
        // The run may have released its worker already.
        if let Some(_released) = ReleaseGuard::try_release(ReleaseReason::Slow) {
            return run.await;
        }
    }
}

/// A guard: the run has no worker until this is dropped.
struct ReleaseGuard {
    run: Arc<RunState>,
    /// `None`: the run keeps its worker, and must not be treated as slow either.
    reason: Option<ReleaseReason>,
}

impl ReleaseGuard {
    fn try_release(reason: ReleaseReason) -> Option<Self> {
        let run = RUN.try_with(Arc::clone).ok()?;
        if run.released.swap(true, Ordering::Relaxed) {
            return None;
        }
        let slots = run.released_runs.sort(reason);
        let increment = |taken| (taken < slots.limit).then_some(taken + 1);
        let taken = slots
            .count
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, increment);
        if taken.is_err() {
            run.released.store(false, Ordering::Relaxed);
            return None;
        }
        run.released_runs.changed.notify_one();
        Some(Self {
            run,
            reason: Some(reason),
        })
    }

    /// Counts the run as released without releasing its worker: over the limit, a run that waits for a process keeps its worker until it
    /// ends.
    fn mark_released() -> Option<Self> {
        let run = RUN.try_with(Arc::clone).ok()?;
        let newly_released = !run.released.swap(true, Ordering::Relaxed);
        newly_released.then_some(Self { run, reason: None })
    }
}

impl Drop for ReleaseGuard {
    fn drop(&mut self) {
        if let Some(reason) = self.reason {
            let slots = self.run.released_runs.sort(reason);
            slots.count.fetch_sub(1, Ordering::Relaxed);
        }
        self.run.released.store(false, Ordering::Relaxed);
    }
}

impl ReleasedRuns {
    fn sort(&self, reason: ReleaseReason) -> &ReleaseCount {
        match reason {
            ReleaseReason::Waiting => &self.waiting,
            ReleaseReason::Slow => &self.slow,
            ReleaseReason::Unlimited => &self.unlimited,
        }
    }
}

/// The run loop.
pub struct Controller<K> {
    queue: Queue<K>,
    wakes: mpsc::UnboundedReceiver<EnqueueRequest<K>>,
    idle: watch::Sender<bool>,
    workers: usize,
    max_slow_runs: usize,
    lane: Box<dyn Fn(&K) -> Lane + Send>,
}

/// Returns a controller with `width` workers, its waker, and a watch that is true while no key is due or running.
pub fn controller<K>(width: usize) -> (Controller<K>, Enqueuer<K>, watch::Receiver<bool>) {
    let (wakes, inbox) = mpsc::unbounded_channel();
    let (idle, is_idle) = watch::channel(false);
    let controller = Controller {
        queue: Queue::default(),
        wakes: inbox,
        idle,
        workers: width,
        max_slow_runs: MAX_SLOW_RUNS,
        lane: Box::new(|_| Lane::Prompt),
    };
    (controller, Enqueuer { requests: wakes }, is_idle)
}

impl<K: Clone + Debug + Eq + Hash + Send + 'static> Controller<K> {
    /// Sets the number of workers.
    pub fn with_workers(self, width: usize) -> Self {
        Self {
            workers: width,
            ..self
        }
    }

    /// Sets the limit of slow runs without a worker.
    pub fn with_max_slow_runs(self, slow: usize) -> Self {
        Self {
            max_slow_runs: slow,
            ..self
        }
    }

    /// Sets the function that determines the lane of a key.
    pub fn with_lanes(self, lane: impl Fn(&K) -> Lane + Send + 'static) -> Self {
        let lane = Box::new(lane);
        Self { lane, ..self }
    }

    /// Runs keys until `stop` completes. Then no new run starts, and runs in progress are completed.
    pub async fn run<F, R>(mut self, run: F, stop: impl Future<Output = ()>)
    where
        F: Fn(K, u32) -> R,
        R: Future<Output = Outcome> + Send + 'static,
    {
        let mut runs = JoinSet::new();
        let mut keys: HashMap<Id, K> = HashMap::new();
        let places = Arc::new(ReleasedRuns {
            waiting: ReleaseCount::of(self.workers.saturating_mul(WAITING_PER_WORKER)),
            slow: ReleaseCount::of(self.max_slow_runs),
            unlimited: ReleaseCount::of(usize::MAX),
            ..ReleasedRuns::default()
        });
        tokio::pin!(stop);
        loop {
            self.drain_requests();
            let now = clock::monotonic();
            let full = |runs: &JoinSet<_>| runs.len() >= self.workers + places.released();
            while !full(&runs)
                && let Some(key) = self.queue.take(now)
            {
                trace!(?key, "run");
                let failures = self.queue.failures(&key);
                let run_state = Arc::new(RunState {
                    released_runs: Arc::clone(&places),
                    released: AtomicBool::new(false),
                });
                let slow_after = match failures {
                    0 => SLOW_AFTER,
                    _ => SLOW_AFTER_FAILURE,
                };
                let run = RUN.scope(
                    run_state,
                    release_when_slow(run(key.clone(), failures), slow_after),
                );
                let task = runs.spawn(run);
                keys.insert(task.id(), key);
            }
            self.report_idle(runs.is_empty());
            let due = self.queue.next_due(now).filter(|_| !full(&runs));
            tokio::select! {
                () = &mut stop => break,
                Some(wake) = self.wakes.recv() => self.handle_request(wake),
                Some(ended) = runs.join_next_with_id() => self.on_run_end(ended, &mut keys),
                () = places.changed.notified() => {}
                () = sleep_until(due) => {}
            }
        }
        while let Some(ended) = runs.join_next_with_id().await {
            self.on_run_end(ended, &mut keys);
        }
    }

    fn drain_requests(&mut self) {
        while let Ok(wake) = self.wakes.try_recv() {
            self.handle_request(wake);
        }
    }

    fn handle_request(&mut self, wake: EnqueueRequest<K>) {
        match wake {
            EnqueueRequest::Enqueue(key) => self.queue.enqueue_in((self.lane)(&key), key),
            EnqueueRequest::EnqueueFresh(key) => {
                self.queue.enqueue_fresh_in((self.lane)(&key), key)
            }
            EnqueueRequest::EnqueueLowPriority(key) => self.queue.enqueue_in(Lane::Bulk, key),
        }
    }

    fn on_run_end(
        &mut self,
        ended: Result<(Id, Outcome), tokio::task::JoinError>,
        keys: &mut HashMap<Id, K>,
    ) {
        let (id, outcome) = match ended {
            Ok((id, outcome)) => (id, outcome),
            Err(error) => {
                error!(%error, "a run panicked; it is retried with a backoff");
                (error.id(), Outcome::Failed)
            }
        };
        if let Some(key) = keys.remove(&id) {
            self.queue.done(key, clock::monotonic(), outcome);
        }
    }

    fn report_idle(&self, no_runs: bool) {
        let idle = no_runs && self.queue.is_idle();
        self.idle
            .send_if_modified(|reported| std::mem::replace(reported, idle) != idle);
    }
}

async fn sleep_until(due: Option<std::time::Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}
