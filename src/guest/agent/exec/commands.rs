//! The commands that the agent knows, by their ids, and the memory for their output.
//! Out of scope: HTTP.

use std::collections::HashMap;
use std::sync::Arc;

use axum::http::StatusCode;
use parking_lot::Mutex;
use uuid::Uuid;

use super::background::Background;
use crate::guest::agent::error::Error;
use crate::guest::agent::process::Process;

/// The maximum number of commands in the background, with those that have ended.
const COUNT: usize = 1024;

/// The maximum size of all buffers together, in bytes.
const TOTAL_RING_BYTES: usize = 256 << 20;

/// All commands.
#[derive(Debug, Default)]
pub struct Commands(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    background: HashMap<String, Arc<Background>>,
    foreground: HashMap<String, Arc<Process>>,
    /// Commands that are being started.
    starting: usize,
    reserved: usize,
}

/// Memory for the output of a command. It is released when this is dropped.
#[derive(Debug)]
pub struct Reservation {
    commands: Arc<Commands>,
    bytes: usize,
}

impl Reservation {
    /// Releases what is not used.
    pub fn shrink(&mut self, bytes: usize) {
        let unused = self.bytes.saturating_sub(bytes);
        self.commands.0.lock().reserved -= unused;
        self.bytes -= unused;
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.shrink(0);
    }
}

/// The right to add one command in the background.
#[derive(Debug)]
pub struct Slot(Arc<Commands>);

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.0.lock().starting -= 1;
    }
}

/// A command in the foreground, known until this is dropped.
#[derive(Debug)]
pub struct Foreground {
    commands: Arc<Commands>,
    /// Its id.
    pub id: String,
}

impl Drop for Foreground {
    fn drop(&mut self) {
        self.commands.0.lock().foreground.remove(&self.id);
    }
}

/// A new id: `ex_` and a random text.
pub fn new_id() -> String {
    format!("ex_{}", Uuid::new_v4().simple())
}

impl Commands {
    /// Makes a command in the foreground known.
    pub fn add_foreground(self: &Arc<Self>, process: &Arc<Process>) -> Foreground {
        let id = new_id();
        let process = Arc::clone(process);
        self.0.lock().foreground.insert(id.clone(), process);
        Foreground {
            commands: Arc::clone(self),
            id,
        }
    }

    /// Takes memory and a place for a command in the background. The oldest command that has ended makes room.
    ///
    /// # Errors
    /// 503: all memory is in use, or all commands run.
    pub fn reserve(self: &Arc<Self>, bytes: usize) -> Result<(Reservation, Slot), Error> {
        let mut inner = self.0.lock();
        if inner.reserved + bytes > TOTAL_RING_BYTES {
            let text = format!(
                "buffers for output take {} of {TOTAL_RING_BYTES} bytes, and {bytes} more were requested: remove commands that have ended",
                inner.reserved
            );
            return Err(Error::unavailable(text));
        }
        // Dropped after the lock is released: its reservation takes the lock.
        let mut evicted = None;
        if inner.background.len() + inner.starting >= COUNT {
            let ended = inner
                .background
                .values()
                .filter(|command| command.process.ending().is_some());
            let oldest = ended.min_by_key(|command| command.process.started_at);
            let Some(id) = oldest.map(|command| command.id.clone()) else {
                let text = format!("{COUNT} commands run in the background, which is the maximum");
                return Err(Error::unavailable(text));
            };
            evicted = inner.background.remove(&id);
        }
        inner.starting += 1;
        inner.reserved += bytes;
        drop(inner);
        drop(evicted);
        let reservation = Reservation {
            commands: Arc::clone(self),
            bytes,
        };
        Ok((reservation, Slot(Arc::clone(self))))
    }

    /// Makes a command in the background known.
    pub fn add(&self, command: Arc<Background>, slot: Slot) {
        self.0.lock().background.insert(command.id.clone(), command);
        drop(slot);
    }

    /// All commands in the background, the oldest first.
    pub fn list(&self) -> Vec<Arc<Background>> {
        let mut all: Vec<_> = self.0.lock().background.values().cloned().collect();
        all.sort_by(|a, b| (a.process.started_at, &a.id).cmp(&(b.process.started_at, &b.id)));
        all
    }

    /// A command in the background.
    ///
    /// # Errors
    /// 410: it was removed, or never existed.
    pub fn get(&self, id: &str) -> Result<Arc<Background>, Error> {
        let found = self.0.lock().background.get(id).cloned();
        found.ok_or_else(|| gone(id))
    }

    /// The process of a command in the background or in the foreground.
    ///
    /// # Errors
    /// 410: it was removed, or never existed.
    pub fn process(&self, id: &str) -> Result<Arc<Process>, Error> {
        let inner = self.0.lock();
        let background = || Some(Arc::clone(&inner.background.get(id)?.process));
        let found = inner.foreground.get(id).cloned().or_else(background);
        found.ok_or_else(|| gone(id))
    }

    /// Removes a command in the background.
    ///
    /// # Errors
    /// 409: it runs. 410: it was removed, or never existed.
    pub fn remove(&self, id: &str) -> Result<(), Error> {
        let command = self.get(id)?;
        if command.process.ending().is_none() {
            let text = format!("command {id} is running: kill it first");
            return Err(Error::new(StatusCode::CONFLICT, text));
        }
        let removed = self.0.lock().background.remove(id);
        removed.map(drop).ok_or_else(|| gone(id))
    }
}

fn gone(id: &str) -> Error {
    Error::new(
        StatusCode::GONE,
        format!("command {id} does not exist or was removed"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_is_reserved_is_released_in_parts_or_at_once() {
        let commands = Arc::new(Commands::default());
        let (mut first, slot) = commands.reserve(TOTAL_RING_BYTES - 10).expect("memory");
        assert_eq!(
            commands.reserve(11).unwrap_err().status,
            StatusCode::SERVICE_UNAVAILABLE
        );
        let second = commands.reserve(10).expect("memory");
        first.shrink(100);
        first.shrink(200);
        assert_eq!(commands.0.lock().reserved, 110);
        drop((first, second, slot));
        let inner = commands.0.lock();
        assert_eq!((inner.reserved, inner.starting), (0, 0));
    }

    #[test]
    fn ids_that_are_not_known_are_gone() {
        let commands = Commands::default();
        assert_eq!(
            commands.process("ex_1").unwrap_err().status,
            StatusCode::GONE
        );
        assert_eq!(
            commands.remove("ex_1").unwrap_err().status,
            StatusCode::GONE
        );
        assert!(new_id().starts_with("ex_"));
    }
}
