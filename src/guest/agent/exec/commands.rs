//! The commands that the agent knows, by their ids.
//! Out of scope: HTTP.

use std::collections::HashMap;
use std::sync::Arc;

use axum::http::StatusCode;
use parking_lot::Mutex;
use uuid::Uuid;

use super::background::Background;
use super::budget::{Budget, Reservation};
use crate::guest::agent::error::Error;
use crate::guest::agent::process::Process;

/// The maximum number of commands in the background, with those that have ended.
const COUNT: usize = 1024;

/// All commands.
#[derive(Debug, Default)]
pub struct Commands {
    known: Mutex<Known>,
    budget: Arc<Budget>,
}

#[derive(Debug, Default)]
struct Known {
    background: HashMap<String, Arc<Background>>,
    foreground: HashMap<String, Arc<Process>>,
    /// Commands that are being started.
    starting: usize,
}

/// The right to add one command in the background.
#[derive(Debug)]
pub struct Slot(Arc<Commands>);

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.known.lock().starting -= 1;
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
        self.commands.known.lock().foreground.remove(&self.id);
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
        self.known.lock().foreground.insert(id.clone(), process);
        Foreground {
            commands: Arc::clone(self),
            id,
        }
    }

    /// Takes memory and a place for a command in the background. The oldest command that has ended is removed for it, if necessary.
    ///
    /// # Errors
    /// 503: all memory is in use, or all commands run.
    pub fn reserve(self: &Arc<Self>, bytes: usize) -> Result<(Reservation, Slot), Error> {
        let reservation = self.budget.reserve(bytes)?;
        let mut known = self.known.lock();
        if known.background.len() + known.starting >= COUNT {
            let ended = known
                .background
                .values()
                .filter(|command| command.process.ending().is_some());
            let oldest = ended.min_by_key(|command| command.process.started_at);
            let Some(id) = oldest.map(|command| command.id.clone()) else {
                let text = format!("{COUNT} commands run in the background, which is the maximum");
                return Err(Error::unavailable(text));
            };
            known.background.remove(&id);
        }
        known.starting += 1;
        Ok((reservation, Slot(Arc::clone(self))))
    }

    /// Makes a command in the background known.
    pub fn add(&self, command: Arc<Background>, slot: Slot) {
        self.known
            .lock()
            .background
            .insert(command.id.clone(), command);
        drop(slot);
    }

    /// All commands in the background, the oldest first.
    pub fn list(&self) -> Vec<Arc<Background>> {
        let mut all: Vec<_> = self.known.lock().background.values().cloned().collect();
        all.sort_by(|a, b| (a.process.started_at, &a.id).cmp(&(b.process.started_at, &b.id)));
        all
    }

    /// A command in the background.
    ///
    /// # Errors
    /// 410: it was removed, or never existed.
    pub fn get(&self, id: &str) -> Result<Arc<Background>, Error> {
        let found = self.known.lock().background.get(id).cloned();
        found.ok_or_else(|| gone(id))
    }

    /// The process of a command in the background or in the foreground.
    ///
    /// # Errors
    /// 410: it was removed, or never existed.
    pub fn process(&self, id: &str) -> Result<Arc<Process>, Error> {
        let known = self.known.lock();
        let background = || Some(Arc::clone(&known.background.get(id)?.process));
        let found = known.foreground.get(id).cloned().or_else(background);
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
        let removed = self.known.lock().background.remove(id);
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
