//! How a VMM ended, its last output, and the record that this daemon stopped it.
//! Out of scope: evaluating the exit.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{CONSOLE, Desired};
use crate::host::process::{self, Exit, Identity, ProcessState, Record, StderrReader};
use crate::host::{Error, Kind, fs};

/// A process that has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Its identity.
    pub process: Identity,
    /// How it ended.
    pub exit: Exit,
    /// This daemon stopped it.
    pub stopped: bool,
}

/// The process that the record names or, if there is no record, `known`, if it has ended. It is not reaped, so that a caller that fails
/// to store how it ended can call again. A process of an earlier boot is not returned.
pub fn ended(desired: &Desired, known: Option<&Identity>) -> Result<Option<Ended>, Error> {
    let recorded = match process::read_record(&desired.record()) {
        Ok(Record::Of(identity)) => Some(identity),
        Ok(Record::None | Record::Unborn) => None,
        // A start is in progress.
        Err(error) if error.kind == Kind::Busy => return Ok(None),
        Err(error) => return Err(error),
    };
    let Some(process) = recorded.or_else(|| known.cloned()) else {
        return Ok(None);
    };
    if process.boot != fs::boot_id()? {
        return Ok(None);
    }
    match process::open(&process)? {
        ProcessState::Alive(_) => Ok(None),
        ProcessState::Ended(exit) => Ok(Some(Ended {
            stopped: fs::read_json::<Stopping>(&desired.stopping())?
                .is_some_and(|stopping| stopping.process == process),
            process,
            exit,
        })),
    }
}

/// Appends output of a VMM that failed, which is not in its log yet, to the log, for users. The log belongs to the VMM, which may have
/// replaced it by anything.
pub(super) fn append_output(dir: &Path, stderr: Option<&StderrReader>) {
    let output = stderr.map(StderrReader::read).unwrap_or_default();
    let add = || -> io::Result<()> {
        let mut log = OpenOptions::new()
            .append(true)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(dir.join(CONSOLE))?;
        match log.metadata()?.is_file() {
            true => log.write_all(&output),
            false => Err(io::Error::other("it is not a regular file")),
        }
    };
    if let (false, Err(error)) = (output.is_empty(), add()) {
        tracing::debug!(%error, "cannot append a VMM's last output to its log");
    }
}

/// Progress of the power-down request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum PowerDownRequest {
    /// The request is being sent; after a crash it is unknown whether it was.
    Asking,
    /// The request was sent at this time, in milliseconds since the boot.
    AtMs(u64),
    /// The request cannot be sent, or is not required.
    Not,
}

#[derive(Serialize, Deserialize)]
struct Stopping {
    process: Identity,
    asked: PowerDownRequest,
}

/// Records that this daemon stops the process. Called before any action on it.
pub(super) fn record_stop(
    desired: &Desired,
    process: &Identity,
    request: PowerDownRequest,
) -> Result<(), Error> {
    let path = desired.stopping();
    let stopping = Stopping {
        process: process.clone(),
        asked: request,
    };
    let fail = |error| Error::other("write", path.display().to_string(), error);
    let text = serde_json::to_vec(&stopping).map_err(fail)?;
    match fs::write(&path, &text, 0o600, fs::Durability::Process) {
        // A process without a run directory is stopped, too; there is no place for the record.
        Err(error) if error.kind == Kind::Absent => Ok(()),
        written => written,
    }
}

/// Like [`record_stop`] without a power-down request, unless a stop of this process is recorded already.
pub(super) fn record_stop_once(desired: &Desired, process: &Identity) -> Result<(), Error> {
    match read(desired)?.is_some_and(|known| known.process == *process) {
        true => Ok(()),
        false => record_stop(desired, process, PowerDownRequest::Not),
    }
}

/// Milliseconds since the guest of this process was requested to power down; `u64::MAX` if no request could be sent.
pub(super) fn request_age_ms(desired: &Desired, process: &Identity) -> Result<Option<u64>, Error> {
    let stopping = read(desired)?.filter(|stopping| stopping.process == *process);
    Ok(match stopping.map(|stopping| stopping.asked) {
        None | Some(PowerDownRequest::Asking) => None,
        Some(PowerDownRequest::Not) => Some(u64::MAX),
        Some(PowerDownRequest::AtMs(at)) => Some(now_ms()?.saturating_sub(at)),
    })
}

/// Milliseconds since the boot.
pub(super) fn now_ms() -> Result<u64, Error> {
    Ok(u64::try_from(process::uptime()?.as_millis()).unwrap_or(u64::MAX))
}

/// The record of the stop; `None` if there is none. If the VM is being removed, an invalid one counts as absent: its VMM is stopped anyway.
fn read(desired: &Desired) -> Result<Option<Stopping>, Error> {
    match desired.is_removal() {
        true => fs::read_json_or_ignore(&desired.stopping()),
        false => fs::read_json(&desired.stopping()),
    }
}

/// Checks that the record of a stop can be decoded. Until then no exit is evaluated: one that this daemon has caused would count as a
/// failure.
pub(super) fn check_stop(desired: &Desired) -> Result<(), Error> {
    read(desired).map(drop)
}

/// The last non-empty lines of the console in the run directory, at most 200 characters each. They are guest output: control characters
/// are removed.
pub fn last_lines(dir: &Path, count: usize) -> Vec<String> {
    // The VMM may have replaced the file: one that cannot be read counts as empty.
    let tail = fs::tail(&dir.join(CONSOLE), 4096);
    let tail = tail.ok().flatten().unwrap_or_default();
    let lines = tail.lines().map(str::trim).filter(|line| !line.is_empty());
    let mut lines: Vec<String> = lines
        .map(|line| line.chars().filter(|c| !c.is_control()).take(200).collect())
        .collect();
    lines.split_off(lines.len().saturating_sub(count))
}
