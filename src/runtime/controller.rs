//! Runs keys as they fall due: as tasks, so many at once, none cancelled half way.
//! Out of scope: what a run does.
//!
//! # Why some runs stand aside
//! A run that waits for somebody else's process to come up works on nothing meanwhile, and its place is of more use to another key.
//! Those that stand aside are bounded, too: what they wait for competes for the same processors.
//!
//! # Why slow runs release their worker
//! A run that takes longer than [`SLOW`] most likely hangs: in a program, in the kernel, in a file system whose server is gone. Its
//! deadline ends it, but until then it is not to keep other keys from being run. It competes for nothing, so there may be more of
//! those; they are bounded by what they hold open.

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
    /// The world moved.
    Nudge(K),
    /// The intent moved.
    Renew(K),
    /// Nothing is known to have moved: look at the key when there is time.
    Sweep(K),
}

/// Where wake-ups go in. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Waker<K> {
    wakes: mpsc::UnboundedSender<Wake<K>>,
}

impl<K> Waker<K> {
    /// The world moved: look at the key.
    pub fn nudge(&self, key: K) {
        // A controller that has stopped needs no wake-up.
        let _ = self.wakes.send(Wake::Nudge(key));
    }

    /// Nothing is known to have moved: look at the key when there is time.
    pub fn sweep(&self, key: K) {
        let _ = self.wakes.send(Wake::Sweep(key));
    }

    /// The intent moved: forget failures, look now.
    pub fn renew(&self, key: K) {
        let _ = self.wakes.send(Wake::Renew(key));
    }
}

/// How many times as many runs may stand aside as run at once.
pub const ASIDE: usize = 3;

/// A run that takes longer releases its worker.
pub const SLOW: Duration = Duration::from_millis(500);

/// The same for a key that has failed: most likely it hangs again.
const SLOW_AGAIN: Duration = Duration::from_millis(100);

/// How many slow runs may have released their workers at the same time, unless somebody says otherwise.
pub const SLOW_RUNS: usize = 256;

tokio::task_local! {
    static RUN: Arc<Run>;
}

/// A run under way.
#[derive(Debug)]
struct Run {
    places: Arc<Places>,
    /// It counts no more among those that have a worker.
    released: AtomicBool,
}

/// The runs that have released their workers.
#[derive(Debug, Default)]
struct Places {
    aside: Sort,
    slow: Sort,
    outside: Sort,
    changed: Notify,
}

/// So many of a sort.
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
    /// It waits for somebody else's process.
    Aside,
    /// It takes long.
    Slow,
    /// What it waits for is bounded elsewhere.
    Outside,
}

/// Waits without taking up one of the places that runs share. Outside of a run, and where too many do so already, it is a plain wait.
pub async fn stand_aside<W: Future>(wait: W) -> W::Output {
    let released = Released::of_this_run(Why::Aside).or_else(Released::in_name);
    let done = wait.await;
    drop(released);
    done
}

/// Waits without a worker, however many do: for what is bounded elsewhere, such as copies of images.
pub async fn without_worker<W: Future>(wait: W) -> W::Output {
    let released = Released::of_this_run(Why::Outside);
    let done = wait.await;
    drop(released);
    done
}

/// Runs to its end, without a worker once it is slow.
async fn hand_over<R: Future>(run: R, patience: Duration) -> R::Output {
    let mut run = Box::pin(run);
    loop {
        tokio::select! {
            biased;
            done = &mut run => return done,
            () = tokio::time::sleep(patience) => {}
        }
        // It may wait without one already.
        if let Some(_released) = Released::of_this_run(Why::Slow) {
            return run.await;
        }
    }
}

/// A run without a worker, until this is dropped.
struct Released {
    run: Arc<Run>,
    /// None: it has one, and is not to be taken for a slow one either.
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

    /// Those that wait for processes are bounded: one too many keeps its worker, however long it takes.
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

/// The loop.
pub struct Controller<K> {
    queue: Queue<K>,
    wakes: mpsc::UnboundedReceiver<Wake<K>>,
    idle: watch::Sender<bool>,
    width: usize,
    slow: usize,
    lane: Box<dyn Fn(&K) -> Lane + Send>,
}

/// A controller that runs `width` keys at once, its waker, and whether nothing is due or running.
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
    /// The same, running so many keys at once.
    pub fn with_width(self, width: usize) -> Self {
        Self { width, ..self }
    }

    /// The same, with so many slow runs beside.
    pub fn with_slow(self, slow: usize) -> Self {
        Self { slow, ..self }
    }

    /// The same, where `lane` determines the lane in which a woken key is looked at.
    pub fn with_lanes(self, lane: impl Fn(&K) -> Lane + Send + 'static) -> Self {
        let lane = Box::new(lane);
        Self { lane, ..self }
    }

    /// Until `stop` completes: then no new run starts, and the ones under way are finished.
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
                trace!(?key, "look");
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
                error!(%error, "a run panicked; its key backs off");
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
