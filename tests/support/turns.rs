//! Tests that measure the time of this machine, or observe the descriptors of this process, run while no other test of their binary runs.
//! Every test in a private kernel takes a turn; a test outside of one does not, and may run beside a test that is alone.
//! Out of scope: other binaries, which cargo runs one after the other.

use std::cell::Cell;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Who runs and who waits.
struct Turns {
    running: usize,
    alone: bool,
    /// Tests that wait to be alone; no other test begins before them.
    waiting: usize,
}

static TURNS: Mutex<Turns> = Mutex::new(Turns {
    running: 0,
    alone: false,
    waiting: 0,
});
static CHANGED: Condvar = Condvar::new();

thread_local! {
    /// Whether this thread belongs to a test that has its turn.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

fn turns() -> MutexGuard<'static, Turns> {
    TURNS.lock().unwrap_or_else(PoisonError::into_inner)
}

fn wait_while(condition: impl Fn(&Turns) -> bool) -> MutexGuard<'static, Turns> {
    CHANGED
        .wait_while(turns(), |turns| condition(turns))
        .unwrap_or_else(PoisonError::into_inner)
}

/// The turn of one test; it ends when this is dropped.
#[must_use]
pub struct Turn {
    alone: bool,
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut turns = turns();
        match self.alone {
            true => {
                turns.alone = false;
                INSIDE.set(false);
            }
            false => turns.running -= 1,
        }
        CHANGED.notify_all();
    }
}

/// Waits until no other test runs, and keeps others from running. What this thread then calls has its turn with it.
pub fn alone() -> Turn {
    turns().waiting += 1;
    let mut turns = wait_while(|turns| turns.alone || turns.running > 0);
    turns.waiting -= 1;
    turns.alone = true;
    INSIDE.set(true);
    Turn { alone: true }
}

/// Waits until no test runs alone; nothing on a thread that has its turn already.
pub fn beside_others() -> Option<Turn> {
    if INSIDE.get() {
        return None;
    }
    let mut turns = wait_while(|turns| turns.alone || turns.waiting > 0);
    turns.running += 1;
    Some(Turn { alone: false })
}

/// This thread belongs to a test that has its turn.
pub(crate) fn inside() {
    INSIDE.set(true);
}
