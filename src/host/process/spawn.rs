//! Starting a process that outlives us and cannot be lost.
//! Out of scope: which program, and its configuration.
//!
//! # Why the child writes its own record
//! Between the fork and the moment a parent has noted the pid, the parent may be killed. So the child notes itself, before it
//! becomes the program, in a file that was opened (and locked, see [`super::read_record`]) before the fork.
//!
//! # Why the log is bounded by the kernel
//! A guest can write to its serial line for ever, also while no daemon is alive to look, and the run directory is memory. A pump
//! process would be one more thing to lose. So the child gets `RLIMIT_FSIZE` with SIGXFSZ ignored and blocked: a write beyond the limit
//! fails with EFBIG, a VMM drops those bytes and runs on. All writers append (O_APPEND), so whoever truncates
//! the file lets them write again. The limit holds for every file the process makes grow: a disk image is to be made
//! at its full size beforehand and to be counted in `file_limit`.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::{FlockOperation, Uid};

use super::census::{self, MOUNTS_VAR};
use super::confine::{Cell, Confine};
use super::files;
use super::identity::{self, Record};
use super::{Identity, read_record};
use crate::host::named::Named;
use crate::host::{Error, fs};

/// What to start, and where.
#[derive(Clone, Copy, Debug)]
pub struct Spawn<'a> {
    /// The program and its arguments.
    pub argv: &'a [String],
    /// Its whole environment, beside `PATH`.
    pub env: &'a [(&'a str, &'a str)],
    /// Its working directory.
    pub cwd: &'a Path,
    /// The network namespace it lives in, as a path.
    pub netns: &'a Path,
    /// A link that must be in that namespace, or nothing is started ([`crate::host::Kind::Absent`]).
    pub needs_link: &'a str,
    /// A named pipe, made anew, that is its standard input: whoever opens it writes to the process. None: nobody does.
    pub input: Option<&'a Path>,
    /// Where its standard output and error are appended.
    pub log: &'a Path,
    /// No file may grow beyond this many bytes by its hand.
    pub file_limit: u64,
    /// Where it is noted which process it became.
    pub record: &'a Path,
    /// Files that stay open in it, though it knows nothing of them: locks on them live as long as it does.
    pub inherits: &'a [BorrowedFd<'a>],
    /// The program's file, where somebody else has named it; it must be shown to the process at its real path. None: the one that
    /// the first word leads to.
    pub program: Option<&'a Named>,
    /// How it is confined; none: it is a process like us, for trials.
    pub confine: Option<Confine<'a>>,
}

/// Starts a process: a session of its own, no terminal, nothing inherited but what is said, not bound to our life.
/// [`crate::host::Kind::Busy`] if another birth with the same record is under way. Blocks until the program runs.
pub fn spawn(what: &Spawn<'_>) -> Result<Identity, Error> {
    let program = what.argv.first().cloned().unwrap_or_default();
    let start = || -> io::Result<()> {
        let netns = File::open(what.netns)?;
        let record = open_record(what.record)?;
        let log = open_log(what.log)?;
        let input = match what.input {
            Some(path) => Stdio::from(fs::make_pipe(path)?),
            None => Stdio::null(),
        };
        let procs = match what.confine.and_then(|confine| confine.cgroup) {
            Some(group) => Some(
                OpenOptions::new()
                    .write(true)
                    .open(group.join("cgroup.procs"))?,
            ),
            None => None,
        };
        let procs_fd = procs.as_ref().map(AsRawFd::as_raw_fd);
        let mounts = census::our_mounts().map_err(io::Error::other)?.to_string();
        let env = [&[(MOUNTS_VAR, mounts.as_str())], what.env].concat();
        let marks = census::marks(&env);
        let cell = match &what.confine {
            Some(confine) => {
                rustix::fs::fchown(&log, Some(Uid::from_raw(confine.user)), None)?;
                Some(Cell::prepare(confine, procs_fd, &marks)?)
            }
            None => None,
        };
        let birth = Birth {
            netns: netns.as_raw_fd(),
            record: record.as_raw_fd(),
            link: CString::new(what.needs_link)?,
            file_limit: what.file_limit,
            files: files::original(),
            inherits: what.inherits.iter().map(AsRawFd::as_raw_fd).collect(),
            cell,
        };
        let file = what.program.map(|named| named.real().to_owned());
        let mut command = Command::new(file.unwrap_or_else(|| file_of(&program)));
        command
            .arg0(&program)
            .args(what.argv.get(1..).unwrap_or_default())
            .env_clear()
            .env(
                "PATH",
                "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            )
            .envs(env)
            .current_dir(what.cwd)
            .stdin(input)
            .stdout(log.try_clone()?)
            .stderr(match what.confine.and_then(|confine| confine.jail) {
                Some(jail) => jail.errors.try_clone_to_owned()?.into(),
                None => log,
            });
        // SAFETY: between fork and exec only system calls are made, on descriptors and memory made before the fork:
        // no allocation, no lock, no panic.
        unsafe { command.pre_exec(move || birth.in_the_child()) };
        let started = command.spawn().map(drop);
        // Closing it is not enough: a child that is being born beside this one has inherited it and lets go at its exec.
        rustix::fs::flock(&record, FlockOperation::Unlock)?;
        started
    };
    start().map_err(|error| Error::io("start", &program, error))?;
    match read_record(what.record)? {
        Record::Of(identity) => Ok(identity),
        Record::None | Record::Unborn => Err(Error::other(
            "start",
            program,
            "its record was removed meanwhile",
        )),
    }
}

/// Links on the way to a program may lead through places that a confined process does not see. It is called by its name all the
/// same.
fn file_of(program: &str) -> PathBuf {
    let path = Path::new(program);
    match path.is_absolute() {
        true => std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned()),
        false => path.to_owned(),
    }
}

/// What the child needs between fork and exec.
struct Birth {
    netns: RawFd,
    record: RawFd,
    link: CString,
    file_limit: u64,
    /// How many descriptors it may have; none: as many as we.
    files: Option<libc::rlimit>,
    inherits: Vec<RawFd>,
    cell: Option<Cell>,
}

impl Birth {
    fn in_the_child(&self) -> io::Result<()> {
        // SAFETY: plain system calls; every pointer is to memory of this function or of `self`.
        unsafe {
            check(libc::setsid())?;
            // Our allocator disables huge pages (`no_thp`) for the whole process. That persists across exec, and the memory of a guest
            // should have them. In a kernel without huge pages there is nothing to enable again.
            libc::prctl(libc::PR_SET_THP_DISABLE, 0, 0, 0, 0);
            check(libc::setns(self.netns, libc::CLONE_NEWNET))?;
            // A VMM that runs as root would make the TAP itself, without address, rules or label.
            if libc::if_nametoindex(self.link.as_ptr()) == 0 {
                return Err(io::Error::from_raw_os_error(libc::ENODEV));
            }
            let limit = libc::rlimit {
                rlim_cur: self.file_limit,
                rlim_max: self.file_limit,
            };
            check(libc::setrlimit(libc::RLIMIT_FSIZE, &raw const limit))?;
            let no_core = libc::rlimit {
                rlim_cur: 0,
                rlim_max: 0,
            };
            check(libc::setrlimit(libc::RLIMIT_CORE, &raw const no_core))?;
            if libc::signal(libc::SIGXFSZ, libc::SIG_IGN) == libc::SIG_ERR {
                return Err(io::Error::last_os_error());
            }
            // Firecracker sets a handler of its own for it, which ends the process: blocked, no handler runs and the write
            // fails all the same.
            let mut full = std::mem::zeroed::<libc::sigset_t>();
            check(libc::sigemptyset(&raw mut full))?;
            check(libc::sigaddset(&raw mut full, libc::SIGXFSZ))?;
            check(libc::sigprocmask(
                libc::SIG_BLOCK,
                &raw const full,
                std::ptr::null_mut(),
            ))?;
            if let Some(files) = self.files {
                check(libc::setrlimit(libc::RLIMIT_NOFILE, &raw const files))?;
            }
            libc::umask(0o077);
            self.note_ourselves()?;
            protect_no_more()?;
            if let Some(cell) = &self.cell {
                cell.enter()?;
            }
            // Everything but the standard three, and what it is to hold, closes itself at exec, whoever opened it.
            check(libc::close_range(
                3,
                u32::MAX,
                libc::CLOSE_RANGE_CLOEXEC as i32,
            ))?;
            for fd in &self.inherits {
                check(libc::fcntl(*fd, libc::F_SETFD, 0))?;
            }
            go_first_no_more()
        }
    }

    /// # Safety
    /// Only system calls; to be called between fork and exec.
    unsafe fn note_ourselves(&self) -> io::Result<()> {
        let mut stat = [0_u8; 1024];
        // SAFETY: the path is a C string, the buffer is ours and its length is passed.
        unsafe {
            let fd = libc::open(
                c"/proc/self/stat".as_ptr(),
                libc::O_RDONLY | libc::O_CLOEXEC,
            );
            check(fd)?;
            let length = libc::read(fd, stat.as_mut_ptr().cast(), stat.len());
            libc::close(fd);
            let Ok(length @ 1..) = usize::try_from(length) else {
                return Err(io::Error::last_os_error());
            };
            match libc::write(self.record, stat.as_ptr().cast(), length) {
                written if usize::try_from(written) == Ok(length) => Ok(()),
                _ => Err(io::Error::from_raw_os_error(libc::EIO)),
            }
        }
    }
}

/// The daemon may be spared when memory is short (`OOMScoreAdjust=`); what it starts is killed before it.
///
/// # Safety
/// Only system calls; to be called between fork and exec.
unsafe fn protect_no_more() -> io::Result<()> {
    // SAFETY: path and text are C strings.
    unsafe {
        let path = c"/proc/self/oom_score_adj".as_ptr();
        let fd = libc::open(path, libc::O_WRONLY | libc::O_CLOEXEC);
        check(fd)?;
        let written = libc::write(fd, c"0".as_ptr().cast(), 1);
        libc::close(fd);
        match written {
            1 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// The daemon may go before everybody else where processors are short (`Nice=`); until here this was its work.
///
/// # Safety
/// Only system calls; to be called between fork and exec.
unsafe fn go_first_no_more() -> io::Result<()> {
    // SAFETY: plain system calls.
    unsafe {
        match libc::getpriority(libc::PRIO_PROCESS, 0) {
            ..0 => check(libc::setpriority(libc::PRIO_PROCESS, 0, 0)),
            _ => Ok(()),
        }
    }
}

pub(super) fn check(answer: libc::c_int) -> io::Result<()> {
    if answer < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// The record, locked, holding only which boot this is. The lock goes when we take it away or, should we be killed, when the
/// child becomes the program.
fn open_record(path: &Path) -> io::Result<File> {
    let mut file = OpenOptions::new()
        .read(true)
        .append(true)
        .create(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)?;
    rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)?;
    file.set_len(0)?;
    let boot = fs::boot_id().map_err(io::Error::other)?;
    file.write_all(identity::header(boot).as_bytes())?;
    Ok(file)
}

/// What stands there may be of a confined process' making: a symbolic link is not followed, a pipe not waited for, and what is no
/// plain file of one name is put away.
fn open_log(path: &Path) -> io::Result<File> {
    let open = || {
        OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o640)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(path)
    };
    let plain = |file: &File| {
        let found = file.metadata();
        found.is_ok_and(|found| found.is_file() && found.nlink() == 1)
    };
    match open() {
        Ok(file) if plain(&file) => Ok(file),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(error),
        Ok(_) | Err(_) => {
            match std::fs::symlink_metadata(path)?.is_dir() {
                true => std::fs::remove_dir_all(path)?,
                false => std::fs::remove_file(path)?,
            }
            let file = open()?;
            match plain(&file) {
                true => Ok(file),
                false => Err(io::ErrorKind::AlreadyExists.into()),
            }
        }
    }
}
