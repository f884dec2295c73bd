//! Identifies a process by PID, start time and boot ID, and reads the process record that a new child writes about itself.
//! Out of scope: whether the process still runs.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

use rustix::process::Pid;
use serde::{Deserialize, Serialize};

use crate::host::fs::{self, Durability};
use crate::host::lock::{self, FileLock};
use crate::host::{Error, Kind};

/// Identifies a process uniquely on this host, across reboots and PID reuse.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Identity {
    /// The PID, which the kernel may reuse.
    pub pid: u32,
    /// The start time in clock ticks (100 Hz) since boot.
    pub start: u64,
    /// The boot ID: `/proc/sys/kernel/random/boot_id`.
    pub boot: String,
}

/// The content of a process record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// The record does not exist or is invalid.
    None,
    /// A start was attempted, and the child ended before its exec.
    Unborn,
    /// This process was started.
    Of(Identity),
}

/// The required fields of `/proc/<pid>/stat` (proc_pid_stat(5)).
pub(super) struct Stat {
    pub(super) pid: u32,
    pub(super) start: u64,
    pub(super) parent: u32,
    state: char,
}

impl Identity {
    /// The process that has this PID now; `None` if there is none.
    pub fn of(pid: u32) -> Result<Option<Self>, Error> {
        let boot = fs::boot_id()?.to_owned();
        Ok(stat_of(pid)?
            .filter(|stat| !stat.is_dead())
            .map(|stat| Self {
                pid: stat.pid,
                start: stat.start,
                boot,
            }))
    }

    /// The time since its start, with a resolution of 10 ms.
    pub fn age(&self) -> Result<std::time::Duration, Error> {
        // USER_HZ is 100 on every supported architecture (proc_pid_stat(5)).
        let start = Duration::from_millis(self.start.saturating_mul(10));
        Ok(uptime()?.saturating_sub(start))
    }

    pub(super) fn as_pid(&self) -> Option<Pid> {
        i32::try_from(self.pid).ok().and_then(Pid::from_raw)
    }
}

/// The time since boot, suspend included, with a resolution of 10 ms. This clock cannot be set (proc_uptime(5)).
pub fn uptime() -> Result<Duration, Error> {
    const UPTIME: &str = "/proc/uptime";
    let text = fs::read_text(Path::new(UPTIME))?.unwrap_or_default();
    let first = text.split_ascii_whitespace().next().unwrap_or_default();
    let seconds: f64 = first
        .parse()
        .map_err(|error| Error::other("read", UPTIME, error))?;
    Duration::try_from_secs_f64(seconds).map_err(|error| Error::other("read", UPTIME, error))
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (started at tick {})", self.pid, self.start)
    }
}

impl Stat {
    /// Whether it has ended and has not been reaped.
    pub(super) fn is_dead(&self) -> bool {
        matches!(self.state, 'Z' | 'X' | 'x')
    }

    /// The command name is in parentheses and may contain parentheses and blanks: it ends at the last parenthesis.
    fn parse(line: &str) -> Option<Self> {
        let (before, after) = line.rsplit_once(')')?;
        let mut fields = after.split_ascii_whitespace();
        let state = fields.next()?.chars().next()?;
        // The state is field 3, the parent field 4, the start time field 22.
        let parent = fields.next()?.parse().ok()?;
        let start = fields.nth(17)?.parse().ok()?;
        let pid = before.split_once(' ')?.0.parse().ok()?;
        Some(Self {
            pid,
            start,
            parent,
            state,
        })
    }
}

pub(super) fn stat_of(pid: u32) -> Result<Option<Stat>, Error> {
    let path = format!("/proc/{pid}/stat");
    Ok(fs::read_text(Path::new(&path))?.and_then(|line| Stat::parse(&line)))
}

/// The first line of a record: the boot ID, written before the fork. The child appends its `/proc/self/stat`.
pub(super) fn header(boot: &str) -> String {
    format!("{boot}\n")
}

/// Reads the record that [`super::spawn()`] or [`write_record`] wrote to `path`.
///
/// Returns [`Kind::Busy`] during a start: the parent locks the record, the child inherits the lock and releases it with its exec. So
/// even if the parent is killed during the start, there is no time at which its child cannot be found.
pub fn read_record(path: &Path) -> Result<Record, Error> {
    let shown = || path.display().to_string();
    let wrap = |error| Error::io("read the process record", shown(), error);
    let file = match open_roots(path) {
        Ok(Some(file)) => file,
        Ok(None) => return Ok(Record::None),
        Err(error) => match wrap(error) {
            error if error.kind == Kind::Absent => return Ok(Record::None),
            error => return Err(error),
        },
    };
    let mut file = FileLock::shared(file)
        .and_then(|locked| locked.map_err(|_| lock::held()))
        .map_err(wrap)?;
    let mut text = Vec::new();
    file.read_to_end(&mut text).map_err(wrap)?;
    Ok(parse_record(&String::from_utf8_lossy(&text)))
}

/// Opens a file that only the daemon's user can have written: it is the owner, there is one link, and no other user may write. `None`: the
/// file is another one. Opening a pipe does not block, and a symbolic link is not followed.
fn open_roots(path: &Path) -> io::Result<Option<File>> {
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path);
    let file = match opened {
        Ok(file) => file,
        // A symbolic link; a socket.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ELOOP | libc::ENXIO)) => {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    let found = file.metadata()?;
    let ours = found.is_file()
        && found.uid() == rustix::process::geteuid().as_raw()
        && found.mode() & 0o022 == 0
        && found.nlink() <= 1;
    Ok(ours.then_some(file))
}

fn parse_record(text: &str) -> Record {
    match text.split_once('\n') {
        None => Record::None,
        Some((_, "")) => Record::Unborn,
        Some((boot, stat)) => Stat::parse(stat).map_or(Record::None, |stat| {
            Record::Of(Identity {
                pid: stat.pid,
                start: stat.start,
                boot: boot.to_owned(),
            })
        }),
    }
}

/// Writes the record of a process that was found without one.
pub fn write_record(path: &Path, identity: &Identity) -> Result<(), Error> {
    let filler = "0 ".repeat(18);
    let text = format!(
        "{}{} (found) S {filler}{}\n",
        header(&identity.boot),
        identity.pid,
        identity.start
    );
    fs::write(path, text.as_bytes(), 0o600, Durability::Process)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_command_name_cannot_forge_a_start_time() {
        let line = format!(
            "7 (a) S {}9 (b)) R {}42 0 0",
            "1 ".repeat(18),
            "2 ".repeat(18)
        );
        let stat = Stat::parse(&line).unwrap();
        assert_eq!((stat.pid, stat.start, stat.state), (7, 42, 'R'));
    }

    #[test]
    fn the_test_process_is_found() {
        let me = Identity::of(std::process::id()).unwrap().unwrap();
        assert_eq!(me.pid, std::process::id());
        assert!(me.start > 0);
    }

    #[test]
    fn a_written_record_is_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("process");
        assert_eq!(read_record(&path).unwrap(), Record::None);
        let identity = Identity {
            pid: 3,
            start: 99,
            boot: "b".into(),
        };
        write_record(&path, &identity).unwrap();
        assert_eq!(read_record(&path).unwrap(), Record::Of(identity));
        std::fs::write(&path, "b\n").unwrap();
        assert_eq!(read_record(&path).unwrap(), Record::Unborn);
    }

    proptest! {
        #[test]
        fn no_record_content_panics(text in ".*\n?.*") {
            parse_record(&text);
        }
    }
}
