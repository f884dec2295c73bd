//! Operations that may block, on separate threads and with a timeout.
//! Out of scope: programs, which can be killed ([`super::process`]).
//!
//! # Why
//! A system call on a file system with a server that does not answer (FUSE, NFS) sleeps until it does, and the thread cannot be interrupted.
//! So the caller stops waiting and the thread is abandoned. Abandoned threads are counted: above a limit no new operation
//! starts, so that the runtime's thread pool is never exhausted.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;

use super::{Error, Kind};

/// Threads that may be abandoned at the same time.
const MAX_ABANDONED: usize = 64;

static ABANDONED: AtomicUsize = AtomicUsize::new(0);

/// The number of running or abandoned operations by key, for keys with a concurrency limit.
static RUNNING: Mutex<BTreeMap<String, usize>> = Mutex::new(BTreeMap::new());

/// Concurrent lookups of the same files: many VMs start with the same kernel.
pub const MAX_SAME_FILES: usize = 4;

/// An operation has returned.
static RELEASED: Notify = Notify::const_new();

/// The timeout for checking a file that a user specified.
pub const FILE_TIMEOUT: Duration = Duration::from_secs(10);

/// As [`within`], with at most `most` concurrent operations per key: another one waits until an earlier one has returned, and is refused
/// after `deadline`. Otherwise retries of a hanging operation would exhaust the threads that all other operations need.
///
/// # Errors
/// As [`within`]; or the earlier operations have not returned.
pub async fn limited<T: Send + 'static>(
    max: usize,
    key: String,
    deadline: Duration,
    operation: &'static str,
    object: impl Into<String>,
    act: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let object = object.into();
    let Ok(permit) = tokio::time::timeout(deadline, Claim::acquire(&key, max)).await else {
        let reason = "earlier operations on it are still blocked in the kernel";
        return Err(Error {
            kind: Kind::Busy,
            ..Error::other(operation, object, reason)
        });
    };
    within(deadline, operation, object, move || {
        let _permit = permit;
        act()
    })
    .await
}

/// One slot of a key.
struct Claim(String);

impl Claim {
    /// Waits for a free slot.
    async fn acquire(key: &str, most: usize) -> Self {
        loop {
            // Enabled before the attempt, so that a release between the two is not missed.
            let mut released = pin!(RELEASED.notified());
            released.as_mut().enable();
            if let Some(claim) = Self::try_acquire(key, most) {
                return claim;
            }
            released.await;
        }
    }

    fn try_acquire(key: &str, most: usize) -> Option<Self> {
        let mut running = running();
        let count = running.entry(key.to_owned()).or_default();
        if *count >= most {
            return None;
        }
        *count += 1;
        Some(Self(key.to_owned()))
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if let Entry::Occupied(mut count) = running().entry(std::mem::take(&mut self.0)) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
        RELEASED.notify_waiters();
    }
}

fn running() -> MutexGuard<'static, BTreeMap<String, usize>> {
    RUNNING.lock()
}

/// The caller that waits for a thread. If dropped before the thread has returned, the thread is abandoned.
struct WaiterGuard(Arc<AtomicBool>);

impl Drop for WaiterGuard {
    fn drop(&mut self) {
        // Counted before the flag is set; the count is reverted if the thread has already returned.
        ABANDONED.fetch_add(1, Ordering::Relaxed);
        if self.0.swap(true, Ordering::AcqRel) {
            ABANDONED.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// The thread. Dropped when it has returned or panicked, or never started because the runtime shut down first.
struct ThreadGuard(Arc<AtomicBool>);

impl Drop for ThreadGuard {
    fn drop(&mut self) {
        if self.0.swap(true, Ordering::AcqRel) {
            ABANDONED.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// Runs `act` on a thread that may block and waits for it for at most `deadline`.
///
/// # Errors
/// The errors of `act`; a timeout (`act` continues in the background); or too many abandoned threads.
pub async fn within<T: Send + 'static>(
    deadline: Duration,
    operation: &'static str,
    object: impl Into<String>,
    act: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let object = object.into();
    if ABANDONED.load(Ordering::Relaxed) >= MAX_ABANDONED {
        return Err(Error {
            kind: Kind::Busy,
            ..Error::other(
                operation,
                object,
                format!("{MAX_ABANDONED} earlier operations are still blocked in the kernel"),
            )
        });
    }
    let settled = Arc::new(AtomicBool::new(false));
    let _waiter = WaiterGuard(Arc::clone(&settled));
    let thread = tokio::task::spawn_blocking({
        let guard = ThreadGuard(settled);
        move || {
            let _guard = guard;
            act()
        }
    });
    match tokio::time::timeout(deadline, thread).await {
        Ok(Ok(result)) => result,
        Ok(Err(failed)) => match failed.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(cancelled) => Err(Error::other(operation, object, cancelled)),
        },
        Err(_) => {
            let deadline = humantime::format_duration(deadline);
            let why = format!("the kernel did not answer within {deadline}");
            let reason = std::io::Error::new(std::io::ErrorKind::TimedOut, why);
            Err(Error::io(operation, object, reason))
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
        let before = ABANDONED.load(Ordering::Relaxed);
        let (stop, stopped) = channel::<()>();
        let block = move || {
            let _ = stopped.recv();
            Ok(())
        };
        let error = within(short, "stat", "it", block).await.unwrap_err();
        assert_eq!(error.source.kind(), std::io::ErrorKind::TimedOut, "{error}");
        assert_eq!(ABANDONED.load(Ordering::Relaxed), before + 1);
        drop(stop);
        while ABANDONED.load(Ordering::Relaxed) != before {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let done = within(short, "stat", "it", || Ok(7)).await;
        assert_eq!(done.unwrap(), 7);
        a_dropped_waiter_abandons_its_thread().await;
        an_operation_that_never_started_or_panicked_is_not_counted().await;
        a_hanging_operation_is_not_started_again_until_it_returns().await;
    }

    async fn a_dropped_waiter_abandons_its_thread() {
        let before = ABANDONED.load(Ordering::Relaxed);
        let (stop, stopped) = channel::<()>();
        let waiting = within(Duration::MAX, "copy", "it", move || {
            let _ = stopped.recv();
            Ok(())
        });
        let dropped = tokio::time::timeout(Duration::from_millis(20), waiting).await;
        assert!(dropped.is_err());
        assert_eq!(ABANDONED.load(Ordering::Relaxed), before + 1);
        drop(stop);
        while ABANDONED.load(Ordering::Relaxed) != before {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    async fn an_operation_that_never_started_or_panicked_is_not_counted() {
        let before = ABANDONED.load(Ordering::Relaxed);
        std::thread::spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .max_blocking_threads(1)
                .enable_time()
                .build()
                .unwrap();
            runtime.block_on(async {
                let (stop, stopped) = channel::<()>();
                let running = tokio::task::spawn_blocking(move || stopped.recv());
                let queued = within(Duration::MAX, "stat", "it", || Ok(()));
                let dropped = tokio::time::timeout(Duration::from_millis(20), queued).await;
                assert!(dropped.is_err());
                small_runtime_ends(running, stop);
            });
            runtime.shutdown_background();
        })
        .join()
        .unwrap();
        let panics = tokio::spawn(within(Duration::MAX, "stat", "it", || {
            if ABANDONED.load(Ordering::Relaxed) < usize::MAX {
                panic!("as a test");
            }
            Ok(())
        }));
        assert!(panics.await.is_err());
        while ABANDONED.load(Ordering::Relaxed) != before {
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
        let before = ABANDONED.load(Ordering::Relaxed);
        let (stop, stopped) = std::sync::mpsc::sync_channel::<()>(0);
        let stopped = Arc::new(Mutex::new(stopped));
        for _ in 0..MAX_SAME_FILES {
            let stopped = Arc::clone(&stopped);
            let block = move || {
                let _ = stopped.lock().recv();
                Ok(())
            };
            let first = limited(MAX_SAME_FILES, "a".into(), short, "stat", "it", block).await;
            assert_eq!(
                first.unwrap_err().source.kind(),
                std::io::ErrorKind::TimedOut
            );
        }
        for _ in 0..3 {
            let retry = limited(MAX_SAME_FILES, "a".into(), short, "stat", "it", || Ok(())).await;
            assert_eq!(retry.unwrap_err().kind, Kind::Busy);
        }
        assert_eq!(
            ABANDONED.load(Ordering::Relaxed),
            before + MAX_SAME_FILES,
            "the number of threads does not depend on the number of attempts"
        );
        let other = limited(MAX_SAME_FILES, "b".into(), short, "stat", "it", || Ok(7)).await;
        assert_eq!(other.unwrap(), 7);
        drop(stop);
        while ABANDONED.load(Ordering::Relaxed) != before {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let again = limited(MAX_SAME_FILES, "a".into(), short, "stat", "it", || Ok(7)).await;
        assert_eq!(again.unwrap(), 7);
        let running = Claim::acquire("b", 1).await;
        let second = limited(1, "b".into(), short, "copy", "it", || Ok(())).await;
        assert_eq!(second.unwrap_err().kind, Kind::Busy);
        drop(running);
    }

    #[tokio::test]
    async fn lookups_of_the_same_files_wait_for_each_other_and_all_succeed() {
        let lookups = (0..100).map(|n| {
            let pause = move || {
                std::thread::sleep(Duration::from_millis(1));
                Ok(n)
            };
            limited(
                MAX_SAME_FILES,
                "same".into(),
                FILE_TIMEOUT,
                "stat",
                "it",
                pause,
            )
        });
        let found = futures::future::join_all(lookups).await;
        let found: Vec<_> = found.into_iter().map(Result::unwrap).collect();
        assert_eq!(found, (0..100).collect::<Vec<_>>());
    }
}
