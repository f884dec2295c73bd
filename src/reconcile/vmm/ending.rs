//! How a VMM ended, its last words, and the note that it was we who stopped it.
//! Out of scope: what follows from it.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{CONSOLE, Desired};
use crate::host::process::{self, Exit, Identity, Life, Record, Words};
use crate::host::{Error, Kind, fs};

/// A process that has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Which.
    pub process: Identity,
    /// How.
    pub exit: Exit,
    /// It was we who stopped it.
    pub stopped: bool,
}

/// The process that the record names or, if there is no record, `known`: if it has ended. It is not reaped, so that whoever cannot
/// write down how it ended learns it the next time. What ran in an earlier boot has not ended, it has never been.
pub fn ended(desired: &Desired, known: Option<&Identity>) -> Result<Option<Ended>, Error> {
    let recorded = match process::read_record(&desired.record()) {
        Ok(Record::Of(identity)) => Some(identity),
        Ok(Record::None | Record::Unborn) => None,
        // A birth under way.
        Err(error) if error.kind == Kind::Busy => return Ok(None),
        Err(error) => return Err(error),
    };
    let Some(process) = recorded.or_else(|| known.cloned()) else {
        return Ok(None);
    };
    if process.boot != fs::boot_id()? {
        return Ok(None);
    }
    match process::look(&process)? {
        Life::Alive(_) => Ok(None),
        Life::Ended(exit) => Ok(Some(Ended {
            stopped: read(desired)?.is_some_and(|stopping| stopping.process == process),
            process,
            exit,
        })),
    }
}

/// What a VMM said before it gave up, and not in its log: it is added there, for people. The log is the VMM's, which may have put
/// anything in its place.
pub(super) fn add_words(dir: &Path, words: Option<&Words>) {
    let said = words.map(Words::read).unwrap_or_default();
    let add = || -> io::Result<()> {
        let mut log = OpenOptions::new()
            .append(true)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(dir.join(CONSOLE))?;
        match log.metadata()?.is_file() {
            true => log.write_all(&said),
            false => Err(io::Error::other("it is no plain file")),
        }
    };
    if let (false, Err(error)) = (said.is_empty(), add()) {
        tracing::debug!(%error, "a VMM's last words cannot be added to its log");
    }
}

/// How far a stop has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Asked {
    /// Its guest is just being asked; after a crash it is not known whether it was.
    Asking,
    /// Its guest was asked so long after the boot.
    AtMs(u64),
    /// Its guest cannot be asked, or was not to be.
    Not,
}

#[derive(Serialize, Deserialize)]
struct Stopping {
    process: Identity,
    asked: Asked,
}

/// Notes that we stop this process: before anything is done to it.
pub(super) fn note(desired: &Desired, process: &Identity, asked: Asked) -> Result<(), Error> {
    let path = desired.stopping();
    let stopping = Stopping {
        process: process.clone(),
        asked,
    };
    let fail = |error| Error::other("write", path.display().to_string(), error);
    let text = serde_json::to_vec(&stopping).map_err(fail)?;
    match fs::write(&path, &text, 0o600, fs::Durability::Process) {
        // A process without a run directory is stopped all the same; who has stopped it is nowhere to be told.
        Err(error) if error.kind == Kind::Absent => Ok(()),
        written => written,
    }
}

/// The same, unless it is noted already.
pub(super) fn note_once(desired: &Desired, process: &Identity) -> Result<(), Error> {
    match read(desired)?.is_some_and(|known| known.process == *process) {
        true => Ok(()),
        false => note(desired, process, Asked::Not),
    }
}

/// How many milliseconds ago the guest of this process was asked to power down. One that cannot be asked has had its time.
pub(super) fn asked_ms(desired: &Desired, process: &Identity) -> Result<Option<u64>, Error> {
    let stopping = read(desired)?.filter(|stopping| stopping.process == *process);
    Ok(match stopping.map(|stopping| stopping.asked) {
        None | Some(Asked::Asking) => None,
        Some(Asked::Not) => Some(u64::MAX),
        Some(Asked::AtMs(at)) => Some(now_ms()?.saturating_sub(at)),
    })
}

/// Milliseconds since the boot.
pub(super) fn now_ms() -> Result<u64, Error> {
    Ok(u64::try_from(process::uptime()?.as_millis()).unwrap_or(u64::MAX))
}

/// A note that cannot be understood is none.
fn read(desired: &Desired) -> Result<Option<Stopping>, Error> {
    let text = fs::read_text(&desired.stopping())?;
    Ok(text.and_then(|text| serde_json::from_str(&text).ok()))
}

/// The last lines in the run directory's console that say something, at most 200 characters each. A guest wrote them: nothing that
/// could steer a terminal is left in them.
pub fn last_lines(dir: &Path, count: usize) -> Vec<String> {
    // What stands there is of the VMM's making: words that cannot be read are none.
    let tail = fs::tail(&dir.join(CONSOLE), 4096);
    let tail = tail.ok().flatten().unwrap_or_default();
    let lines = tail.lines().map(str::trim).filter(|line| !line.is_empty());
    let mut lines: Vec<String> = lines
        .map(|line| line.chars().filter(|c| !c.is_control()).take(200).collect())
        .collect();
    lines.split_off(lines.len().saturating_sub(count))
}
