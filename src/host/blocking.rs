//! What may block, on threads of its own and for a bounded time.
//! Out of scope: programs, which can be killed ([`super::process`]).
//!
//! # Why
//! A system call on a file system whose server does not answer (FUSE, NFS) sleeps until it does, and no thread can be called back
//! from there. So whoever waits for the thread stops waiting, and the thread is left behind. Those are counted: when too many are
//! left behind, nothing new is begun, so that the runtime's pool is never used up.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use super::{Error, Kind};

/// Threads that may be left behind at the same time.
const MOST_LEFT: usize = 64;

static LEFT: AtomicUsize = AtomicUsize::new(0);

/// How many operations are under way or left behind by what they are about, where these are to be few at a time.
static KEYS: Mutex<BTreeMap<String, usize>> = Mutex::new(BTreeMap::new());

/// Lookups of the same files that run at the same time: many VMs start with the same kernel.
pub const SAME_FILES: usize = 4;

/// One of them has come back.
static RELEASED: Notify = Notify::const_new();

/// For a look at a file that a user named.
pub const FILE_DEADLINE: Duration = Duration::from_secs(10);

/// As [`within`], at most `most` at a time with the same key: another one waits until an earlier one has come back, and is refused when
/// that takes longer than `deadline`. Retries of what hangs would otherwise use up the threads that everything else needs.
///
/// # Errors
/// As [`within`]; or the earlier ones have not come back.
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
        let why = "earlier operations on it have not come back from the kernel";
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

/// One of the few places of a key.
struct Claim(String);

impl Claim {
    /// Until one is free.
    async fn wait(key: &str, most: usize) -> Self {
        loop {
            // Before the try: a release between the two is not missed.
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

/// Whoever waits for a thread. Dropped before the thread has come back, it leaves it behind.
struct Waiter(Arc<AtomicBool>);

impl Drop for Waiter {
    fn drop(&mut self) {
        // Counted before it can be known as left, and taken back when it came back at the very moment, or before.
        LEFT.fetch_add(1, Ordering::Relaxed);
        if self.0.swap(true, Ordering::AcqRel) {
            LEFT.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// The thread. Dropped when it has come back, has panicked, or was never begun because the runtime ended first.
struct Thread(Arc<AtomicBool>);

impl Drop for Thread {
    fn drop(&mut self) {
        if self.0.swap(true, Ordering::AcqRel) {
            LEFT.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// Runs `act` on a thread that may block, and waits for it for so long.
///
/// # Errors
/// `act`'s; or it did not come back in time, and goes on by itself; or too many have not.
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
                format!("{MOST_LEFT} operations before it have not come back from the kernel"),
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
            let why = format!("the kernel did not come back within {deadline}");
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
    async fn who_does_not_come_back_is_left_behind_and_counted_until_it_does() {
        let short = Duration::from_millis(20);
        let before = LEFT.load(Ordering::Relaxed);
        let (stop, stopped) = channel::<()>();
        let hang = move || {
            let _ = stopped.recv();
            Ok(())
        };
        let error = within(short, "look at", "it", hang).await.unwrap_err();
        assert_eq!(error.source.kind(), std::io::ErrorKind::TimedOut, "{error}");
        assert_eq!(LEFT.load(Ordering::Relaxed), before + 1);
        drop(stop);
        while LEFT.load(Ordering::Relaxed) != before {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let done = within(short, "look at", "it", || Ok(7)).await;
        assert_eq!(done.unwrap(), 7);
        who_is_dropped_leaves_its_thread_behind().await;
        what_was_never_begun_or_has_panicked_is_not_left_behind().await;
        what_hangs_is_not_begun_again_until_it_has_come_back().await;
    }

    async fn who_is_dropped_leaves_its_thread_behind() {
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

    async fn what_was_never_begun_or_has_panicked_is_not_left_behind() {
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
                let queued = within(Duration::MAX, "look at", "it", || Ok(()));
                let dropped = tokio::time::timeout(Duration::from_millis(20), queued).await;
                assert!(dropped.is_err());
                small_runtime_ends(takes_the_thread, stop);
            });
            small.shutdown_background();
        })
        .join()
        .unwrap();
        let panics = tokio::spawn(within(Duration::MAX, "look at", "it", || {
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

    /// The queued operation is discarded with the runtime; the one that has the thread comes back.
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

    async fn what_hangs_is_not_begun_again_until_it_has_come_back() {
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
            let first = limited(SAME_FILES, "a".into(), short, "look at", "it", hang).await;
            assert_eq!(
                first.unwrap_err().source.kind(),
                std::io::ErrorKind::TimedOut
            );
        }
        for _ in 0..3 {
            let again = limited(SAME_FILES, "a".into(), short, "look at", "it", || Ok(())).await;
            assert_eq!(again.unwrap_err().kind, Kind::Busy);
        }
        assert_eq!(
            LEFT.load(Ordering::Relaxed),
            before + SAME_FILES,
            "so many threads, however often it is tried"
        );
        let other = limited(SAME_FILES, "b".into(), short, "look at", "it", || Ok(7)).await;
        assert_eq!(other.unwrap(), 7);
        drop(stop);
        while LEFT.load(Ordering::Relaxed) != before {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let again = limited(SAME_FILES, "a".into(), short, "look at", "it", || Ok(7)).await;
        assert_eq!(again.unwrap(), 7);
        let running = Claim::wait("b", 1).await;
        let second = limited(1, "b".into(), short, "copy", "it", || Ok(())).await;
        assert_eq!(second.unwrap_err().kind, Kind::Busy);
        drop(running);
    }

    #[tokio::test]
    async fn looks_at_the_same_files_wait_for_each_other_and_all_succeed() {
        let looks = (0..100).map(|n| {
            let pause = move || {
                std::thread::sleep(Duration::from_millis(1));
                Ok(n)
            };
            limited(
                SAME_FILES,
                "same".into(),
                FILE_DEADLINE,
                "look at",
                "it",
                pause,
            )
        });
        let found = futures::future::join_all(looks).await;
        let found: Vec<_> = found.into_iter().map(Result::unwrap).collect();
        assert_eq!(found, (0..100).collect::<Vec<_>>());
    }
}
