//! Runs keys as they fall due: as tasks, so many at once, none cancelled half way.
//! Not here: what a run does.
//!
//! # Why some runs stand aside
//! A run that waits for somebody else's process to come up works on nothing meanwhile, and its place is of more use to another key.
//! Those that stand aside are bounded, too: what they wait for competes for the same processors.

use std::collections::HashMap;
use std::fmt::Debug;
use std::future::Future;
use std::hash::Hash;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{Notify, mpsc, watch};
use tokio::task::{Id, JoinSet};
use tracing::{error, trace};

use super::queue::{Outcome, Queue};
use crate::clock;

/// A wake-up for a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wake<K> {
    /// The world moved.
    Nudge(K),
    /// The intent moved.
    Renew(K),
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

    /// The intent moved: forget failures, look now.
    pub fn renew(&self, key: K) {
        let _ = self.wakes.send(Wake::Renew(key));
    }
}

/// How many times as many runs may stand aside as run at once.
const ASIDE: usize = 3;

tokio::task_local! {
    static PLACES: Arc<Places>;
}

/// Who of the runs stands aside.
#[derive(Debug, Default)]
struct Places {
    aside: AtomicUsize,
    limit: usize,
    changed: Notify,
}

/// Waits without taking up one of the places that runs share. Outside of a run, and where too many do so already, it is a plain wait.
pub async fn stand_aside<W: Future>(wait: W) -> W::Output {
    let stands = PLACES.try_with(Arc::clone).ok().and_then(Aside::take);
    let done = wait.await;
    drop(stands);
    done
}

/// A run that stands aside, until it is dropped.
struct Aside(Arc<Places>);

impl Aside {
    fn take(places: Arc<Places>) -> Option<Self> {
        let more = |aside| (aside < places.limit).then_some(aside + 1);
        let taken = places
            .aside
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        taken.ok()?;
        places.changed.notify_one();
        Some(Self(places))
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        self.0.aside.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The loop.
pub struct Controller<K> {
    queue: Queue<K>,
    wakes: mpsc::UnboundedReceiver<Wake<K>>,
    idle: watch::Sender<bool>,
    width: usize,
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
    };
    (controller, Waker { wakes }, is_idle)
}

impl<K: Clone + Debug + Eq + Hash + Send + 'static> Controller<K> {
    /// The same, running so many keys at once.
    pub fn with_width(self, width: usize) -> Self {
        Self { width, ..self }
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
            limit: self.width.saturating_mul(ASIDE),
            ..Places::default()
        });
        tokio::pin!(stop);
        loop {
            self.take_in();
            let now = clock::monotonic();
            let full =
                |runs: &JoinSet<_>| runs.len() >= self.width + places.aside.load(Ordering::Relaxed);
            while !full(&runs)
                && let Some(key) = self.queue.take(now)
            {
                trace!(?key, "look");
                let failures = self.queue.failures(&key);
                let run = PLACES.scope(Arc::clone(&places), run(key.clone(), failures));
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
            Wake::Nudge(key) => self.queue.nudge(key),
            Wake::Renew(key) => self.queue.renew(key),
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
