//! Runs keys as they fall due: as tasks, so many at once, none cancelled half way.
//! Not here: what a run does.

use std::collections::HashMap;
use std::fmt::Debug;
use std::future::Future;
use std::hash::Hash;

use tokio::sync::{mpsc, watch};
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
        tokio::pin!(stop);
        loop {
            self.take_in();
            let now = clock::monotonic();
            while runs.len() < self.width
                && let Some(key) = self.queue.take(now)
            {
                trace!(?key, "look");
                let failures = self.queue.failures(&key);
                let task = runs.spawn(run(key.clone(), failures));
                keys.insert(task.id(), key);
            }
            self.tell_idle(runs.is_empty());
            let due = self.queue.next_due(now).filter(|_| runs.len() < self.width);
            tokio::select! {
                () = &mut stop => break,
                Some(wake) = self.wakes.recv() => self.wake(wake),
                Some(ended) = runs.join_next_with_id() => self.end(ended, &mut keys),
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
