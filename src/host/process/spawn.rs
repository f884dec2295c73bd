//! Starts a process that outlives the daemon and that can be found again after any crash.
//! Out of scope: which program, and its configuration.
//!
//! # Why the child writes its own record
//! The parent may be killed between the fork and its recording of the PID. So the child records itself, before its exec, in a file that
//! was opened (and locked, see [`super::read_record`]) before the fork.
//!
//! # Why the log is bounded by the kernel
//! A guest can write to its serial line without end, also while no daemon runs, and the run directory is in memory. A process that copies
//! the output would be one more process to supervise. So the child gets `RLIMIT_FSIZE` with SIGXFSZ ignored and blocked: a write beyond the
//! limit fails with EFBIG; a VMM drops those bytes and keeps running. All writers append (O_APPEND), so they can write again after the
//! file is truncated. The limit applies to every file that the process extends: a disk image must be created with its full size
//! beforehand and must be included in `file_limit`.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::Uid;

use super::census::{self, MOUNTS_VAR};
use super::confine::{Cell, Confine};
use super::files;
use super::identity::{self, Record};
use super::{Identity, read_record};
use crate::host::lock::{self, FileLock};
use crate::host::named::Named;
use crate::host::{Error, fs};

/// A program to start and its environment.
#[derive(Clone, Copy, Debug)]
pub struct Spawn<'a> {
    /// The program and its arguments.
    pub argv: &'a [String],
    /// Its whole environment, in addition to `PATH`.
    pub env: &'a [(&'a str, &'a str)],
    /// Its working directory.
    pub cwd: &'a Path,
    /// The path of its network namespace.
    pub netns: &'a Path,
    /// A link that must exist in that namespace; otherwise the start fails with [`crate::host::Kind::Absent`].
    pub needs_link: &'a str,
    /// The path of a new FIFO that is its standard input. `None`: standard input is `/dev/null`.
    pub input: Option<&'a Path>,
    /// The file to which its standard output and error are appended.
    pub log: &'a Path,
    /// The maximum size in bytes of every file that it writes.
    pub file_limit: u64,
    /// The path of its process record.
    pub record: &'a Path,
    /// Files that stay open in it, so that locks on them are held until it ends. The program does not use them.
    pub inherits: &'a [BorrowedFd<'a>],
    /// The opened program, if an unprivileged user specified its path; the process must see it at its real path. `None`: the program of
    /// the first argument.
    pub program: Option<&'a Named>,
    /// Its confinement. `None`: it runs with the daemon's privileges, for tests.
    pub confine: Option<Confine<'a>>,
}

/// Starts a process in a session of its own, without a terminal, with only the specified descriptors. It outlives the daemon.
/// Blocks until its exec. Fails with [`crate::host::Kind::Busy`] if another start with the same record is in progress.
pub fn spawn(what: &Spawn<'_>) -> Result<Identity, Error> {
    let program = what.argv.first().cloned().unwrap_or_default();
    let start = || -> io::Result<()> {
        let netns = File::open(what.netns)?;
        let record = open_record(what.record)?;
        let log = open_log(what.log)?;
        let input = match what.input {
            Some(path) => Stdio::from(fs::create_fifo(path)?),
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
        let labels = census::labels(&env);
        let cell = match &what.confine {
            Some(confine) => {
                rustix::fs::fchown(&log, Some(Uid::from_raw(confine.user)), None)?;
                Some(Cell::prepare(confine, procs_fd, &labels)?)
            }
            None => None,
        };
        let setup = ChildSetup {
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
        unsafe { command.pre_exec(move || setup.in_the_child()) };
        command.spawn().map(drop)
    };
    start().map_err(|error| Error::io("start", &program, error))?;
    match read_record(what.record)? {
        Record::Of(identity) => Ok(identity),
        Record::None | Record::Unborn => Err(Error::other(
            "start",
            program,
            "its process record was removed during the start",
        )),
    }
}

/// Resolves the links of the program's path, which a confined process may not see. `argv[0]` is not changed.
fn file_of(program: &str) -> PathBuf {
    let path = Path::new(program);
    match path.is_absolute() {
        true => std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned()),
        false => path.to_owned(),
    }
}

/// The data that the child needs between fork and exec.
struct ChildSetup {
    netns: RawFd,
    record: RawFd,
    link: CString,
    file_limit: u64,
    /// Its limit on open descriptors. `None`: that of the daemon.
    files: Option<libc::rlimit>,
    inherits: Vec<RawFd>,
    cell: Option<Cell>,
}

impl ChildSetup {
    fn in_the_child(&self) -> io::Result<()> {
        // SAFETY: plain system calls; every pointer is to memory of this function or of `self`.
        unsafe {
            check(libc::setsid())?;
            // The daemon's allocator disables huge pages (`no_thp`) for the whole process. That persists across exec, and the memory of a
            // guest should use them. On a kernel without huge pages the error is ignored.
            libc::prctl(libc::PR_SET_THP_DISABLE, 0, 0, 0, 0);
            check(libc::setns(self.netns, libc::CLONE_NEWNET))?;
            // A VMM that runs as root would create a missing TAP, without address, rules or label.
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
            // Firecracker sets a handler for SIGXFSZ that ends the process. While the signal is blocked the handler does not run, and the
            // write still fails.
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
            // All descriptors but the standard three and the inherited ones are closed at exec.
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

    /// Appends `/proc/self/stat` to the process record.
    ///
    /// # Safety
    /// Makes only system calls; must be called between fork and exec.
    unsafe fn note_ourselves(&self) -> io::Result<()> {
        let mut stat = [0_u8; 1024];
        // SAFETY: the path is a C string, the buffer is a local and its length is passed.
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

/// Resets the OOM score adjustment. The daemon may have a lower one (`OOMScoreAdjust=`); the processes that it starts must not inherit it.
///
/// # Safety
/// Makes only system calls; must be called between fork and exec.
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

/// Resets a negative nice value (`Nice=` of the daemon), which the start itself may use but the program must not inherit.
///
/// # Safety
/// Makes only system calls; must be called between fork and exec.
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

/// Opens and locks the record and writes only the boot ID. If the daemon is killed, the exec of the child releases the lock.
fn open_record(path: &Path) -> io::Result<FileLock> {
    let file = OpenOptions::new()
        .read(true)
        .append(true)
        .create(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)?;
    let mut file = FileLock::exclusive(file)?.map_err(|_| lock::held())?;
    file.set_len(0)?;
    let boot = fs::boot_id().map_err(io::Error::other)?;
    file.write_all(identity::header(boot).as_bytes())?;
    Ok(file)
}

/// Opens the log. A confined process may have replaced it: a symbolic link is not followed, opening a FIFO does not block, and anything but
/// a regular file with one link is removed.
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
