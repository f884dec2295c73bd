//! Which process: pid, start time and boot, and the record of it that a newborn writes about itself.
//! Out of scope: whether it still runs.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

use rustix::fs::FlockOperation;
use rustix::process::Pid;
use serde::{Deserialize, Serialize};

use crate::host::fs::{self, Durability};
use crate::host::{Error, Kind};

/// Tells one process from every other there ever was on this machine.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Identity {
    /// The number that may be reused.
    pub pid: u32,
    /// When it was started: clock ticks (100 Hz) since boot.
    pub start: u64,
    /// Which boot: `/proc/sys/kernel/random/boot_id`.
    pub boot: String,
}

/// What a record says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// There is none, or it cannot be understood.
    None,
    /// A start was attempted and the child died before it could become the program.
    Unborn,
    /// This one was started.
    Of(Identity),
}

/// The part of `/proc/<pid>/stat` (proc_pid_stat(5)) that we need.
pub(super) struct Stat {
    pub(super) pid: u32,
    pub(super) start: u64,
    pub(super) parent: u32,
    state: char,
}

impl Identity {
    /// The process that has this pid now, or `None` if none has.
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

    /// How long ago it was started, to a hundredth of a second.
    pub fn age(&self) -> Result<std::time::Duration, Error> {
        // USER_HZ is 100 on every architecture of ours (proc_pid_stat(5)).
        let born = Duration::from_millis(self.start.saturating_mul(10));
        Ok(uptime()?.saturating_sub(born))
    }

    pub(super) fn as_pid(&self) -> Option<Pid> {
        i32::try_from(self.pid).ok().and_then(Pid::from_raw)
    }
}

/// Since the boot, sleep included, to a hundredth of a second: a clock that nobody sets (proc_uptime(5)).
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
    /// Ended, and not yet reaped.
    pub(super) fn is_dead(&self) -> bool {
        matches!(self.state, 'Z' | 'X' | 'x')
    }

    /// The command's name is in brackets and may itself hold brackets and blanks: the last bracket counts.
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

/// The text of a record: the boot id, written before the birth, then what `/proc/self/stat` told the newborn.
pub(super) fn header(boot: &str) -> String {
    format!("{boot}\n")
}

/// Reads the record that [`super::spawn`] or [`write_record`] left at `path`.
///
/// [`Kind::Busy`] while a birth is under way: the parent takes a lock on the record, the newborn inherits it and lets go of it
/// by becoming the program. So a parent that is killed in between does not leave a moment in which its child cannot be seen.
pub fn read_record(path: &Path) -> Result<Record, Error> {
    let shown = || path.display().to_string();
    let wrap = |error| Error::io("read the process record", shown(), error);
    let mut file = match open_roots(path) {
        Ok(Some(file)) => file,
        Ok(None) => return Ok(Record::None),
        Err(error) => match wrap(error) {
            error if error.kind == Kind::Absent => return Ok(Record::None),
            error => return Err(error),
        },
    };
    rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared)
        .map_err(|error| wrap(error.into()))?;
    let mut text = Vec::new();
    file.read_to_end(&mut text).map_err(wrap)?;
    Ok(parse_record(&String::from_utf8_lossy(&text)))
}

/// A file that nobody but us can have written: ours, of one name, and closed to the writing of others. `None`: it is another's. A pipe is
/// not waited for, a symbolic link not followed.
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

/// Writes anew the record of a process that was found without one.
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
    fn we_find_ourselves() {
        let me = Identity::of(std::process::id()).unwrap().unwrap();
        assert_eq!(me.pid, std::process::id());
        assert!(me.start > 0);
    }

    #[test]
    fn a_record_written_anew_reads_back() {
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
        fn no_record_makes_us_panic(text in ".*\n?.*") {
            parse_record(&text);
        }
    }
}
