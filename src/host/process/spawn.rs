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

use std::ffi::CStr;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::{Mode, OFlags, Uid};
use rustix::io::{Errno, FdFlags};
use rustix::process::{Resource, Rlimit, Signal};
use rustix::thread::LinkNameSpaceType;

use super::census::{self, MOUNTS_VAR};
use super::child::{Setup, before_exec};
use super::confine::{Cell, set_limit, write_at_once};
use super::confinement::Confine;
use super::files;
use super::identity::{self, Record};
use super::{Identity, read_record};
use crate::host::lock::{self, FileLock};
use crate::host::named::Named;
use crate::host::syscall::{close_on_exec_from, ignore_and_block};
use crate::host::{Error, fs, ifindex};

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
        let mounts = census::our_mounts().map_err(io::Error::other)?.to_string();
        let env = [&[(MOUNTS_VAR, mounts.as_str())], what.env].concat();
        let labels = census::labels(&env);
        let cell = match &what.confine {
            Some(confine) => {
                rustix::fs::fchown(&log, Some(Uid::from_raw(confine.user)), None)?;
                Some(Cell::prepare(confine, procs, &labels)?)
            }
            None => None,
        };
        let copies = what.inherits.iter().map(BorrowedFd::try_clone_to_owned);
        let setup = SpawnSetup {
            netns,
            record,
            link: what.needs_link.to_owned(),
            file_limit: what.file_limit,
            files: files::original(),
            inherits: copies.collect::<io::Result<_>>()?,
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
        before_exec(&mut command, setup);
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
struct SpawnSetup {
    netns: File,
    record: FileLock,
    link: String,
    file_limit: u64,
    /// Its limit on open descriptors. `None`: that of the daemon.
    files: Option<Rlimit>,
    /// Copies: the command would outlive the borrowed ones.
    inherits: Vec<OwnedFd>,
    cell: Option<Cell>,
}

impl Setup for SpawnSetup {
    /// Makes only system calls.
    fn in_the_child(&self) -> io::Result<()> {
        rustix::process::setsid()?;
        // The daemon's allocator disables huge pages (`no_thp`) for the whole process. That persists across exec, and the memory of a
        // guest should use them. On a kernel without huge pages the error is ignored.
        let _ = rustix::thread::disable_transparent_huge_pages(false);
        let network = Some(LinkNameSpaceType::Network);
        rustix::thread::move_into_link_name_space(self.netns.as_fd(), network)?;
        // A VMM that runs as root would create a missing TAP, without address, rules or label.
        ifindex::of(&self.link).map_err(|_| Errno::NODEV)?;
        set_limit(Resource::Fsize, self.file_limit)?;
        set_limit(Resource::Core, 0)?;
        // Firecracker sets a handler for SIGXFSZ that ends the process. While the signal is blocked the handler does not run, and the
        // write still fails.
        ignore_and_block(Signal::XFSZ)?;
        if let Some(files) = self.files {
            rustix::process::setrlimit(Resource::Nofile, files)?;
        }
        rustix::process::umask(Mode::RWXG | Mode::RWXO);
        self.note_ourselves()?;
        protect_no_more()?;
        if let Some(cell) = &self.cell {
            cell.enter()?;
        }
        // All descriptors but the standard three and the inherited ones are closed at exec.
        close_on_exec_from(3)?;
        for fd in &self.inherits {
            rustix::io::fcntl_setfd(fd, FdFlags::empty())?;
        }
        go_first_no_more()
    }
}

impl SpawnSetup {
    /// Appends `/proc/self/stat` to the process record.
    fn note_ourselves(&self) -> io::Result<()> {
        let mut stat = [0_u8; 1024];
        let file = open(c"/proc/self/stat", OFlags::RDONLY)?;
        match rustix::io::read(file, &mut stat)? {
            0 => Err(Errno::IO.into()),
            length => write_at_once(self.record.as_fd(), &stat[..length]),
        }
    }
}

/// Resets the OOM score adjustment. The daemon may have a lower one (`OOMScoreAdjust=`); the processes that it starts must not inherit it.
fn protect_no_more() -> io::Result<()> {
    let file = open(c"/proc/self/oom_score_adj", OFlags::WRONLY)?;
    write_at_once(file, b"0")
}

/// Resets a negative nice value (`Nice=` of the daemon), which the start itself may use but the program must not inherit.
fn go_first_no_more() -> io::Result<()> {
    match rustix::process::getpriority_process(None)? {
        ..0 => Ok(rustix::process::setpriority_process(None, 0)?),
        _ => Ok(()),
    }
}

fn open(path: &CStr, how: OFlags) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(
        path,
        how | OFlags::CLOEXEC,
        Mode::empty(),
    )?)
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
