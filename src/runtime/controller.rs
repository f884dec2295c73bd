//! Runs keys when they are due: each run is a task, the number of concurrent runs is limited, and no run is cancelled.
//! Out of scope: what a run does.
//!
//! # Why runs that wait release their worker
//! A run that waits for another process to start does no work meanwhile, so another key uses its worker. The number of such runs is
//! limited, too: the processes that they wait for compete for the same CPUs.
//!
//! # Why slow runs release their worker
//! A run that takes longer than [`SLOW`] most likely hangs: in a program, in the kernel, or in a file system whose server is gone. Its
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
pub enum Wake<K> {
    /// The state of the host changed.
    Nudge(K),
    /// The desired state changed.
    Renew(K),
    /// No change is known: run the key in the bulk lane.
    Sweep(K),
}

/// Enqueues keys. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Waker<K> {
    wakes: mpsc::UnboundedSender<Wake<K>>,
}

impl<K> Waker<K> {
    /// Enqueues a key because the state of the host changed. A backoff is kept.
    pub fn nudge(&self, key: K) {
        // Sending fails only if the controller has stopped.
        let _ = self.wakes.send(Wake::Nudge(key));
    }

    /// Enqueues a key in the bulk lane: no change is known.
    pub fn sweep(&self, key: K) {
        let _ = self.wakes.send(Wake::Sweep(key));
    }

    /// Enqueues a key because its desired state changed: its failures are reset, and it runs at once.
    pub fn renew(&self, key: K) {
        let _ = self.wakes.send(Wake::Renew(key));
    }
}

/// The limit of waiting runs without a worker, as a multiple of the number of workers.
pub const ASIDE: usize = 3;

/// A run that takes longer than this releases its worker.
pub const SLOW: Duration = Duration::from_millis(500);

/// The same for a key whose last run failed: it most likely hangs again.
const SLOW_AGAIN: Duration = Duration::from_millis(100);

/// The default limit of slow runs without a worker.
pub const SLOW_RUNS: usize = 256;

tokio::task_local! {
    static RUN: Arc<Run>;
}

/// A run in progress.
#[derive(Debug)]
struct Run {
    places: Arc<Places>,
    /// The run has released its worker.
    released: AtomicBool,
}

/// Counts the runs that have released their workers.
#[derive(Debug, Default)]
struct Places {
    aside: Sort,
    slow: Sort,
    outside: Sort,
    changed: Notify,
}

/// The number of runs released for one reason, and its limit.
#[derive(Debug, Default)]
struct Sort {
    taken: AtomicUsize,
    limit: usize,
}

impl Sort {
    fn of(limit: usize) -> Self {
        Self {
            limit,
            ..Self::default()
        }
    }
}

impl Places {
    fn released(&self) -> usize {
        [&self.aside, &self.slow, &self.outside]
            .map(|sort| sort.taken.load(Ordering::Relaxed))
            .iter()
            .sum()
    }
}

/// Why a run releases its worker.
#[derive(Clone, Copy, Debug)]
enum Why {
    /// It waits for another process.
    Aside,
    /// It takes longer than [`SLOW`].
    Slow,
    /// It waits for an operation whose number is limited elsewhere.
    Outside,
}

/// Waits without occupying a worker. Outside of a run, or if the limit ([`ASIDE`]) is reached, the worker is not released.
pub async fn stand_aside<W: Future>(wait: W) -> W::Output {
    let released = Released::of_this_run(Why::Aside).or_else(Released::in_name);
    let done = wait.await;
    drop(released);
    done
}

/// Waits without occupying a worker and without a limit: for operations whose number is limited elsewhere, such as copies of images.
pub async fn without_worker<W: Future>(wait: W) -> W::Output {
    let released = Released::of_this_run(Why::Outside);
    let done = wait.await;
    drop(released);
    done
}

/// Completes a run. It releases its worker after `patience`.
async fn hand_over<R: Future>(run: R, patience: Duration) -> R::Output {
    let mut run = Box::pin(run);
    loop {
        tokio::select! {
            biased;
            done = &mut run => return done,
            () = tokio::time::sleep(patience) => {}
        }
        // The run may have released its worker already.
        if let Some(_released) = Released::of_this_run(Why::Slow) {
            return run.await;
        }
    }
}

/// A guard: the run has no worker until this is dropped.
struct Released {
    run: Arc<Run>,
    /// `None`: the run keeps its worker, and must not be treated as slow either.
    why: Option<Why>,
}

impl Released {
    fn of_this_run(why: Why) -> Option<Self> {
        let run = RUN.try_with(Arc::clone).ok()?;
        if run.released.swap(true, Ordering::Relaxed) {
            return None;
        }
        let sort = run.places.sort(why);
        let more = |taken| (taken < sort.limit).then_some(taken + 1);
        let taken = sort
            .taken
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        if taken.is_err() {
            run.released.store(false, Ordering::Relaxed);
            return None;
        }
        run.places.changed.notify_one();
        Some(Self {
            run,
            why: Some(why),
        })
    }

    /// Marks the run as released without releasing its worker: over the limit, a run that waits for a process keeps its worker until it
    /// ends.
    fn in_name() -> Option<Self> {
        let run = RUN.try_with(Arc::clone).ok()?;
        let first = !run.released.swap(true, Ordering::Relaxed);
        first.then_some(Self { run, why: None })
    }
}

impl Drop for Released {
    fn drop(&mut self) {
        if let Some(why) = self.why {
            let sort = self.run.places.sort(why);
            sort.taken.fetch_sub(1, Ordering::Relaxed);
        }
        self.run.released.store(false, Ordering::Relaxed);
    }
}

impl Places {
    fn sort(&self, why: Why) -> &Sort {
        match why {
            Why::Aside => &self.aside,
            Why::Slow => &self.slow,
            Why::Outside => &self.outside,
        }
    }
}

/// The run loop.
pub struct Controller<K> {
    queue: Queue<K>,
    wakes: mpsc::UnboundedReceiver<Wake<K>>,
    idle: watch::Sender<bool>,
    width: usize,
    slow: usize,
    lane: Box<dyn Fn(&K) -> Lane + Send>,
}

/// Returns a controller with `width` workers, its waker, and a watch that is true while no key is due or running.
pub fn controller<K>(width: usize) -> (Controller<K>, Waker<K>, watch::Receiver<bool>) {
    let (wakes, inbox) = mpsc::unbounded_channel();
    let (idle, is_idle) = watch::channel(false);
    let controller = Controller {
        queue: Queue::default(),
        wakes: inbox,
        idle,
        width,
        slow: SLOW_RUNS,
        lane: Box::new(|_| Lane::Prompt),
    };
    (controller, Waker { wakes }, is_idle)
}

impl<K: Clone + Debug + Eq + Hash + Send + 'static> Controller<K> {
    /// Sets the number of workers.
    pub fn with_width(self, width: usize) -> Self {
        Self { width, ..self }
    }

    /// Sets the limit of slow runs without a worker.
    pub fn with_slow(self, slow: usize) -> Self {
        Self { slow, ..self }
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
        let places = Arc::new(Places {
            aside: Sort::of(self.width.saturating_mul(ASIDE)),
            slow: Sort::of(self.slow),
            outside: Sort::of(usize::MAX),
            ..Places::default()
        });
        tokio::pin!(stop);
        loop {
            self.take_in();
            let now = clock::monotonic();
            let full = |runs: &JoinSet<_>| runs.len() >= self.width + places.released();
            while !full(&runs)
                && let Some(key) = self.queue.take(now)
            {
                trace!(?key, "run");
                let failures = self.queue.failures(&key);
                let this = Arc::new(Run {
                    places: Arc::clone(&places),
                    released: AtomicBool::new(false),
                });
                let patience = match failures {
                    0 => SLOW,
                    _ => SLOW_AGAIN,
                };
                let run = RUN.scope(this, hand_over(run(key.clone(), failures), patience));
                let task = runs.spawn(run);
                keys.insert(task.id(), key);
            }
            self.tell_idle(runs.is_empty());
            let due = self.queue.next_due(now).filter(|_| !full(&runs));
            tokio::select! {
                () = &mut stop => break,
                Some(wake) = self.wakes.recv() => self.wake(wake),
                Some(ended) = runs.join_next_with_id() => self.end(ended, &mut keys),
                () = places.changed.notified() => {}
                () = sleep_until(due) => {}
            }
        }
        while let Some(ended) = runs.join_next_with_id().await {
            self.end(ended, &mut keys);
        }
    }

    fn take_in(&mut self) {
        while let Ok(wake) = self.wakes.try_recv() {
            self.wake(wake);
        }
    }

    fn wake(&mut self, wake: Wake<K>) {
        match wake {
            Wake::Nudge(key) => self.queue.nudge_in((self.lane)(&key), key),
            Wake::Renew(key) => self.queue.renew_in((self.lane)(&key), key),
            Wake::Sweep(key) => self.queue.nudge_in(Lane::Bulk, key),
        }
    }

    fn end(
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

    fn tell_idle(&self, no_runs: bool) {
        let idle = no_runs && self.queue.is_idle();
        self.idle
            .send_if_modified(|told| std::mem::replace(told, idle) != idle);
    }
}

async fn sleep_until(due: Option<std::time::Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}
