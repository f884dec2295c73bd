//! What may block, on threads of its own and for a bounded time.
//! Not here: programs, which can be killed ([`super::process`]).
//!
//! # Why
//! A system call on a file system whose server does not answer (FUSE, NFS) sleeps until it does, and no thread can be called back
//! from there. So whoever waits for the thread stops waiting, and the thread is left behind. Those are counted: when too many are
//! left behind, nothing new is begun, so that the runtime's pool is never used up.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use super::{Error, Kind};

/// Threads that may be left behind at the same time.
const MOST_LEFT: usize = 64;

static LEFT: AtomicUsize = AtomicUsize::new(0);

/// For a look at a file that a user named.
pub const FILE_DEADLINE: Duration = Duration::from_secs(10);

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
    let thread = tokio::task::spawn_blocking({
        let left = Arc::clone(&left);
        move || {
            let done = act();
            if left.swap(true, Ordering::AcqRel) {
                LEFT.fetch_sub(1, Ordering::Relaxed);
            }
            done
        }
    });
    match tokio::time::timeout(deadline, thread).await {
        Ok(Ok(done)) => done,
        Ok(Err(failed)) => match failed.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(cancelled) => Err(Error::other(doing, thing, cancelled)),
        },
        Err(_) => {
            // Counted before it can be known as left, and taken back when it came back at the very moment.
            LEFT.fetch_add(1, Ordering::Relaxed);
            if left.swap(true, Ordering::AcqRel) {
                LEFT.fetch_sub(1, Ordering::Relaxed);
            }
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
    }
}
