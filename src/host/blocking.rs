//! Operations that may block, on separate threads and with a timeout.
//! Out of scope: programs, which can be killed ([`super::process`]).
//!
//! # Why
//! A system call on a file system whose server does not answer (FUSE, NFS) sleeps until it does, and the thread cannot be interrupted.
//! So the caller stops waiting and the thread is abandoned. Abandoned threads are counted: above a limit no new operation
//! starts, so that the runtime's thread pool is never exhausted.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use super::{Error, Kind};

/// Threads that may be abandoned at the same time.
const MOST_LEFT: usize = 64;

static LEFT: AtomicUsize = AtomicUsize::new(0);

/// The number of running or abandoned operations by key, for keys with a concurrency limit.
static KEYS: Mutex<BTreeMap<String, usize>> = Mutex::new(BTreeMap::new());

/// Concurrent lookups of the same files: many VMs start with the same kernel.
pub const SAME_FILES: usize = 4;

/// An operation has returned.
static RELEASED: Notify = Notify::const_new();

/// The timeout for checking a file that a user specified.
pub const FILE_DEADLINE: Duration = Duration::from_secs(10);

/// As [`within`], with at most `most` concurrent operations per key: another one waits until an earlier one has returned, and is refused
/// after `deadline`. Otherwise retries of a hanging operation would exhaust the threads that all other operations need.
///
/// # Errors
/// As [`within`]; or the earlier operations have not returned.
pub async fn limited<T: Send + 'static>(
    most: usize,
    key: String,
    deadline: Duration,
    doing: &'static str,
    thing: impl Into<String>,
    act: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let thing = thing.into();
    let Ok(claim) = tokio::time::timeout(deadline, Claim::wait(&key, most)).await else {
        let why = "earlier operations on it are still blocked in the kernel";
        return Err(Error {
            kind: Kind::Busy,
            ..Error::other(doing, thing, why)
        });
    };
    within(deadline, doing, thing, move || {
        let _claim = claim;
        act()
    })
    .await
}

/// One slot of a key.
struct Claim(String);

impl Claim {
    /// Waits for a free slot.
    async fn wait(key: &str, most: usize) -> Self {
        loop {
            // Enabled before the attempt, so that a release between the two is not missed.
            let mut released = pin!(RELEASED.notified());
            released.as_mut().enable();
            if let Some(claim) = Self::take(key, most) {
                return claim;
            }
            released.await;
        }
    }

    fn take(key: &str, most: usize) -> Option<Self> {
        let mut keys = keys();
        let taken = keys.entry(key.to_owned()).or_default();
        if *taken >= most {
            return None;
        }
        *taken += 1;
        Some(Self(key.to_owned()))
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if let Entry::Occupied(mut taken) = keys().entry(std::mem::take(&mut self.0)) {
            *taken.get_mut() -= 1;
            if *taken.get() == 0 {
                taken.remove();
            }
        }
        RELEASED.notify_waiters();
    }
}

fn keys() -> MutexGuard<'static, BTreeMap<String, usize>> {
    KEYS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The caller that waits for a thread. If dropped before the thread has returned, the thread is abandoned.
struct Waiter(Arc<AtomicBool>);

impl Drop for Waiter {
    fn drop(&mut self) {
        // Counted before the flag is set; the count is reverted if the thread has already returned.
        LEFT.fetch_add(1, Ordering::Relaxed);
        if self.0.swap(true, Ordering::AcqRel) {
            LEFT.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// The thread. Dropped when it has returned or panicked, or never started because the runtime shut down first.
struct Thread(Arc<AtomicBool>);

impl Drop for Thread {
    fn drop(&mut self) {
        if self.0.swap(true, Ordering::AcqRel) {
            LEFT.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// Runs `act` on a thread that may block and waits for it for at most `deadline`.
///
/// # Errors
/// The errors of `act`; a timeout (`act` continues in the background); or too many abandoned threads.
pub async fn within<T: Send + 'static>(
    deadline: Duration,
    doing: &'static str,
    thing: impl Into<String>,
    act: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let thing = thing.into();
    if LEFT.load(Ordering::Relaxed) >= MOST_LEFT {
        return Err(Error {
            kind: Kind::Busy,
            ..Error::other(
                doing,
                thing,
                format!("{MOST_LEFT} earlier operations are still blocked in the kernel"),
            )
        });
    }
    let left = Arc::new(AtomicBool::new(false));
    let _waiter = Waiter(Arc::clone(&left));
    let thread = tokio::task::spawn_blocking({
        let coming = Thread(left);
        move || {
            let _coming = coming;
            act()
        }
    });
    match tokio::time::timeout(deadline, thread).await {
        Ok(Ok(done)) => done,
        Ok(Err(failed)) => match failed.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(cancelled) => Err(Error::other(doing, thing, cancelled)),
        },
        Err(_) => {
            let deadline = humantime::format_duration(deadline);
            let why = format!("the kernel did not answer within {deadline}");
            let why = std::io::Error::new(std::io::ErrorKind::TimedOut, why);
            Err(Error::io(doing, thing, why))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[tokio::test]
    async fn an_operation_that_times_out_is_abandoned_and_counted_until_it_returns() {
        let short = Duration::from_millis(20);
        let before = LEFT.load(Ordering::Relaxed);
        let (stop, stopped) = channel::<()>();
        let hang = move || {
            let _ = stopped.recv();
            Ok(())
        };
        let error = within(short, "stat", "it", hang).await.unwrap_err();
        assert_eq!(error.source.kind(), std::io::ErrorKind::TimedOut, "{error}");
        assert_eq!(LEFT.load(Ordering::Relaxed), before + 1);
        drop(stop);
        while LEFT.load(Ordering::Relaxed) != before {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let done = within(short, "stat", "it", || Ok(7)).await;
        assert_eq!(done.unwrap(), 7);
        a_dropped_waiter_abandons_its_thread().await;
        an_operation_that_never_started_or_panicked_is_not_counted().await;
        a_hanging_operation_is_not_started_again_until_it_returns().await;
    }

    async fn a_dropped_waiter_abandons_its_thread() {
        let before = LEFT.load(Ordering::Relaxed);
        let (stop, stopped) = channel::<()>();
        let waiting = within(Duration::MAX, "copy", "it", move || {
            let _ = stopped.recv();
            Ok(())
        });
        let dropped = tokio::time::timeout(Duration::from_millis(20), waiting).await;
        assert!(dropped.is_err());
        assert_eq!(LEFT.load(Ordering::Relaxed), before + 1);
        drop(stop);
        while LEFT.load(Ordering::Relaxed) != before {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    async fn an_operation_that_never_started_or_panicked_is_not_counted() {
        let before = LEFT.load(Ordering::Relaxed);
        std::thread::spawn(|| {
            let small = tokio::runtime::Builder::new_current_thread()
                .max_blocking_threads(1)
                .enable_time()
                .build()
                .unwrap();
            small.block_on(async {
                let (stop, stopped) = channel::<()>();
                let takes_the_thread = tokio::task::spawn_blocking(move || stopped.recv());
                let queued = within(Duration::MAX, "stat", "it", || Ok(()));
                let dropped = tokio::time::timeout(Duration::from_millis(20), queued).await;
                assert!(dropped.is_err());
                small_runtime_ends(takes_the_thread, stop);
            });
            small.shutdown_background();
        })
        .join()
        .unwrap();
        let panics = tokio::spawn(within(Duration::MAX, "stat", "it", || {
            if LEFT.load(Ordering::Relaxed) < usize::MAX {
                panic!("as a test");
            }
            Ok(())
        }));
        assert!(panics.await.is_err());
        while LEFT.load(Ordering::Relaxed) != before {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// The queued operation is discarded with the runtime; the running one returns.
    fn small_runtime_ends<T>(
        running: tokio::task::JoinHandle<T>,
        stop: std::sync::mpsc::Sender<()>,
    ) {
        running.abort();
        std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(50));
            drop(stop);
        });
    }

    async fn a_hanging_operation_is_not_started_again_until_it_returns() {
        let short = Duration::from_millis(20);
        let before = LEFT.load(Ordering::Relaxed);
        let (stop, stopped) = std::sync::mpsc::sync_channel::<()>(0);
        let stopped = Arc::new(Mutex::new(stopped));
        for _ in 0..SAME_FILES {
            let stopped = Arc::clone(&stopped);
            let hang = move || {
                let _ = stopped.lock().unwrap().recv();
                Ok(())
            };
            let first = limited(SAME_FILES, "a".into(), short, "stat", "it", hang).await;
            assert_eq!(
                first.unwrap_err().source.kind(),
                std::io::ErrorKind::TimedOut
            );
        }
        for _ in 0..3 {
            let again = limited(SAME_FILES, "a".into(), short, "stat", "it", || Ok(())).await;
            assert_eq!(again.unwrap_err().kind, Kind::Busy);
        }
        assert_eq!(
            LEFT.load(Ordering::Relaxed),
            before + SAME_FILES,
            "the number of threads does not depend on the number of attempts"
        );
        let other = limited(SAME_FILES, "b".into(), short, "stat", "it", || Ok(7)).await;
        assert_eq!(other.unwrap(), 7);
        drop(stop);
        while LEFT.load(Ordering::Relaxed) != before {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let again = limited(SAME_FILES, "a".into(), short, "stat", "it", || Ok(7)).await;
        assert_eq!(again.unwrap(), 7);
        let running = Claim::wait("b", 1).await;
        let second = limited(1, "b".into(), short, "copy", "it", || Ok(())).await;
        assert_eq!(second.unwrap_err().kind, Kind::Busy);
        drop(running);
    }

    #[tokio::test]
    async fn lookups_of_the_same_files_wait_for_each_other_and_all_succeed() {
        let looks = (0..100).map(|n| {
            let pause = move || {
                std::thread::sleep(Duration::from_millis(1));
                Ok(n)
            };
            limited(
                SAME_FILES,
                "same".into(),
                FILE_DEADLINE,
                "stat",
                "it",
                pause,
            )
        });
        let found = futures::future::join_all(looks).await;
        let found: Vec<_> = found.into_iter().map(Result::unwrap).collect();
        assert_eq!(found, (0..100).collect::<Vec<_>>());
    }
}
