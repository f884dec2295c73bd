//! What a confined process sees and may do: a user of its own, no capabilities, a file system with next to nothing in it.
//! Out of scope: being born ([`super::spawn`]); which user, which files.
//!
//! # How
//! All that takes memory is prepared before the fork, as a list of steps with their paths; the child carries it out by system
//! calls alone. The new root is a small tmpfs, built over `/sys`, of which nothing of the host's is needed (a fresh one that shows the
//! process' own network namespace comes in its place), and entered by pivot_root(2); so no other mount of the host is
//! kept alive by the process, above all no network namespace of another VM.
//!
//! # Why devices are made and not bound
//! A node belongs to somebody: `/dev/kvm` is root's or a group's on most hosts. Nodes of its own belong to the process' user.

use std::ffi::{CStr, CString, OsStr};
use std::fs;
use std::io;
use std::os::fd::{AsFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Component, Path, PathBuf};

use super::bind::{attributes_of, check_long, mount};
use super::controls;
use super::filter;
use super::jail::{Jail, keep_what_a_jailer_needs};
use super::mounts::{IdMap, detached};
use super::query::Query;
use super::spawn::check;
use super::step::{Below, Step, c_string};
use crate::host::named::Named;

/// How a process is confined.
#[derive(Clone, Copy, Debug)]
pub struct Confine<'a> {
    /// Its user, and its group of the same number.
    pub user: u32,
    /// Its working directory, the only place where it may make files; made, and given to the user, by whoever asks.
    pub home: &'a Path,
    /// Further files and block devices that it sees, at their own paths.
    pub reach: &'a [Reach<'a>],
    /// Whether it has `/dev/kvm`.
    pub kvm: bool,
    /// A control group (version 2) that it is put into.
    pub cgroup: Option<&'a Path>,
    /// The jailer that takes over at the end; none: it becomes its user and the program at once.
    pub jail: Option<Jail<'a>>,
}

/// One thing of the host's that a confined process sees.
#[derive(Clone, Copy, Debug)]
pub struct Reach<'a> {
    /// Where it is.
    pub path: &'a Path,
    /// Whether it may be written. That its user may read or write it is for others to see to, except with block devices.
    pub writable: bool,
    /// The file itself, where somebody else has named it: then it is shown from this descriptor, and its path is not followed again.
    pub named: Option<&'a Named>,
    /// Shown as another's; only with `named`.
    pub map: Option<IdMap>,
}

/// Where programs and their libraries are. What of it a host does not have is left out.
const SYSTEM: [&str; 9] = [
    "/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/nix", "/gnu",
];
/// Files that the loader of programs reads.
const LOADER: [&str; 1] = ["/etc/ld.so.cache"];
/// Character devices that every process has (Documentation/admin-guide/devices.txt).
const DEVICES: [(&str, u32, u32); 5] = [
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/net/tun", 10, 200),
];
/// Where the new root is built.
const BUILD: &str = "/sys";
/// Of a VMM: its guest's disks and sockets, no more.
const OPEN_FILES: u64 = 4096;
/// Threads of one user: 255 processors and what serves them.
const THREADS: u64 = 1024;
/// Bytes of memory that may be locked, the kernel's own default.
const LOCKED: u64 = 8 << 20;

/// The steps of one confinement, ready to be taken by a child.
pub(super) struct Cell {
    user: u32,
    cgroup: Option<RawFd>,
    /// Where paths begin while the new root is built.
    root: PathBuf,
    pub(super) steps: Vec<Step>,
    pub(super) home: CString,
    filter: Vec<libc::sock_filter>,
    /// The source of the new root: what the process is known by, where it cannot write.
    marks: CString,
    end: End,
}

/// What comes last.
#[derive(Clone, Copy)]
enum End {
    User,
    Jailer,
}

pub(super) const LOCKED_DOWN: libc::c_ulong = libc::MS_NOSUID | libc::MS_NODEV;

impl Cell {
    /// `cgroup` is the opened `cgroup.procs` of the wanted group; it stays open until the birth is over.
    /// `marks` is what the process is known by ([`super::Origin`]).
    pub(super) fn prepare(
        what: &Confine<'_>,
        cgroup: Option<RawFd>,
        marks: &str,
    ) -> io::Result<Self> {
        let mut cell = Self {
            user: what.user,
            cgroup,
            root: BUILD.into(),
            steps: Vec::new(),
            home: c_string(what.home)?,
            filter: filter::program(),
            marks: CString::new(marks)?,
            end: match what.jail {
                None => End::User,
                Some(_) => End::Jailer,
            },
        };
        cell.add_system()?;
        match &what.jail {
            None => cell.add_own(what)?,
            Some(jail) => cell.add_jail(what, jail, marks)?,
        }
        Ok(cell)
    }

    /// For a program that is asked something and has no home, no network and no files of its own.
    pub(super) fn for_query(what: &Query<'_>, user: u32) -> io::Result<Self> {
        let mut cell = Self {
            user,
            cgroup: None,
            root: BUILD.into(),
            steps: Vec::new(),
            home: c"/".to_owned(),
            filter: filter::program(),
            marks: c"slice-query".to_owned(),
            end: End::User,
        };
        cell.add_system()?;
        cell.add_devices(what.kvm)?;
        let alone = LOCKED_DOWN | libc::MS_NOEXEC;
        cell.fresh(("proc", "proc"), Path::new("/proc"), alone, "hidepid=2")?;
        for path in what.beside {
            cell.show(&Reach {
                path,
                writable: false,
                named: None,
                map: None,
            })?;
        }
        cell.show(&Reach {
            path: what.program.real(),
            writable: false,
            named: Some(what.program),
            map: None,
        })?;
        Ok(cell)
    }

    fn add_system(&mut self) -> io::Result<()> {
        for path in SYSTEM.iter().chain(&LOADER).map(Path::new) {
            if path.exists() {
                self.bind(path, libc::MS_RDONLY, Below::All)?;
            }
        }
        Ok(())
    }

    fn add_devices(&mut self, kvm: bool) -> io::Result<()> {
        for (path, major, minor) in DEVICES {
            let number = libc::makedev(major, minor);
            self.device(Path::new(path), libc::S_IFCHR | 0o600, number)?;
        }
        // Which number it has is found out by the kernel when it is loaded.
        if let (true, Ok(found)) = (kvm, fs::metadata("/dev/kvm")) {
            self.device(Path::new("/dev/kvm"), libc::S_IFCHR | 0o600, found.rdev())?;
        }
        Ok(())
    }

    fn add_own(&mut self, what: &Confine<'_>) -> io::Result<()> {
        self.add_devices(what.kvm)?;
        let alone = LOCKED_DOWN | libc::MS_NOEXEC;
        let (proc, sys) = (Path::new("/proc"), Path::new(BUILD));
        self.fresh(("proc", "proc"), proc, alone, "hidepid=2")?;
        self.fresh(("sysfs", "sysfs"), sys, alone | libc::MS_RDONLY, "")?;
        for reach in what.reach {
            self.show(reach)?;
        }
        self.bind(what.home, libc::MS_NOEXEC, Below::Nothing)
    }

    /// From now on paths begin there.
    pub(super) fn go_below(&mut self, root: &Path) {
        self.root.extend(root.components().skip(1));
    }

    pub(super) fn show(&mut self, reach: &Reach<'_>) -> io::Result<()> {
        if let Some(named) = reach.named {
            let path = match is_system(reach.path) {
                true => named.real(),
                false => reach.path,
            };
            return self.show_named(named, path, reach, libc::MS_RDONLY);
        }
        // Where programs are it is seen already, or stands behind a link that leads out of there: then it is shown where that leads.
        let real = fs::canonicalize(reach.path)?;
        match (is_system(reach.path), is_system(&real), reach.writable) {
            (true, true, false) => Ok(()),
            (true, _, _) => {
                let reach = Reach {
                    path: &real,
                    ..*reach
                };
                self.show_at(&reach, libc::MS_RDONLY)
            }
            (false, _, _) => self.show_at(reach, libc::MS_RDONLY),
        }
    }

    /// `read`: how a file is mounted that may not be written.
    pub(super) fn show_at(&mut self, reach: &Reach<'_>, read: libc::c_ulong) -> io::Result<()> {
        if let Some(named) = reach.named {
            return self.show_named(named, reach.path, reach, read);
        }
        let found = fs::metadata(reach.path)?;
        if found.file_type().is_block_device() {
            let mode = if reach.writable { 0o600 } else { 0o400 };
            return self.device(reach.path, libc::S_IFBLK | mode, found.rdev());
        }
        let flags = match reach.writable {
            true => libc::MS_NOEXEC,
            false => read,
        };
        self.bind(reach.path, flags, Below::Nothing)
    }

    /// From the descriptor: what the path leads to by now is of no account.
    fn show_named(
        &mut self,
        named: &Named,
        path: &Path,
        reach: &Reach<'_>,
        read: libc::c_ulong,
    ) -> io::Result<()> {
        if let Some(number) = named.device() {
            let mode = if reach.writable { 0o600 } else { 0o400 };
            return self.device(path, libc::S_IFBLK | mode, number);
        }
        let flags = match reach.writable {
            true => libc::MS_NOEXEC,
            false => read,
        };
        let mount = detached(named.as_fd(), attributes_of(flags | LOCKED_DOWN), reach.map)?;
        let to = self.place(path)?;
        self.steps.push(Step::File(to.clone(), 0o644));
        self.steps.push(Step::Attach { mount, to });
        Ok(())
    }

    pub(super) fn bind(
        &mut self,
        path: &Path,
        flags: libc::c_ulong,
        below: Below,
    ) -> io::Result<()> {
        let to = self.place(path)?;
        self.steps.push(match path.is_dir() {
            true => Step::Dir(to.clone()),
            false => Step::File(to.clone(), 0o644),
        });
        self.steps.push(Step::Bind {
            from: c_string(path)?,
            to,
            flags: flags | LOCKED_DOWN,
            below,
        });
        Ok(())
    }

    fn device(&mut self, path: &Path, kind: libc::mode_t, number: u64) -> io::Result<()> {
        let path = self.place(path)?;
        self.steps.push(Step::Device { path, kind, number });
        Ok(())
    }

    /// A file system of this kind, with this word as its source.
    pub(super) fn fresh(
        &mut self,
        (kind, source): (&str, &str),
        path: &Path,
        flags: libc::c_ulong,
        options: &str,
    ) -> io::Result<()> {
        let to = self.place(path)?;
        self.steps.push(Step::Dir(to.clone()));
        self.steps.push(Step::Fresh {
            kind: CString::new(kind)?,
            source: CString::new(source)?,
            to,
            flags,
            options: CString::new(options)?,
        });
        Ok(())
    }

    /// Where `path` comes to stand while the new root is built; the directories above it are made.
    pub(super) fn place(&mut self, path: &Path) -> io::Result<CString> {
        let plain =
            |part: &Component<'_>| matches!(part, Component::RootDir | Component::Normal(_));
        if !path.is_absolute() || !path.components().all(|part| plain(&part)) {
            let why = format!("{} is not an absolute path without `..`", path.display());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        let mut at = self.root.clone();
        let names: Vec<&OsStr> = path.components().skip(1).map(|c| c.as_os_str()).collect();
        let (name, above) = names.split_last().ok_or(io::ErrorKind::InvalidInput)?;
        for part in above {
            at.push(part);
            self.steps.push(Step::Dir(c_string(&at)?));
        }
        at.push(name);
        c_string(&at)
    }

    /// Becomes confined. On an error the child must end.
    ///
    /// # Safety
    /// Only system calls; to be called between fork and exec.
    pub(super) unsafe fn enter(&self) -> io::Result<()> {
        // SAFETY: as of this function.
        unsafe {
            told(c"join the control group", self.join())?;
            told(c"build a file system", self.build())?;
            told(c"enter the file system", self.pivot())?;
            told(c"set the limits", limit())?;
            match self.end {
                End::User => told(c"become the user", self.become_user()),
                End::Jailer => told(c"drop capabilities", keep_what_a_jailer_needs()),
            }?;
            told(c"forbid controls of the TAP", controls::forbid())
        }
    }

    unsafe fn join(&self) -> io::Result<()> {
        let Some(procs) = self.cgroup else {
            return Ok(());
        };
        // SAFETY: the descriptor is open, the text is ours. "0" is whoever writes it (cgroup-v2.rst).
        match unsafe { libc::write(procs, c"0".as_ptr().cast(), 1) } {
            1 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    unsafe fn build(&self) -> io::Result<()> {
        let build = c"/sys".as_ptr();
        // SAFETY: plain system calls; every pointer is to a C string of `self` or of the program.
        unsafe {
            check(libc::unshare(libc::CLONE_NEWNS))?;
            mount(None, c"/", None, libc::MS_REC | libc::MS_PRIVATE, None)?;
            let room = c"mode=0755,size=1m";
            check(libc::mount(
                self.marks.as_ptr(),
                build,
                c"tmpfs".as_ptr(),
                libc::MS_NOSUID | libc::MS_NOEXEC,
                room.as_ptr().cast(),
            ))?;
            libc::umask(0);
            for step in &self.steps {
                step.take(self.user)?;
            }
            libc::umask(0o077);
        }
        Ok(())
    }

    /// The old root is stacked on the new one for a moment, and let go (pivot_root(2), "pivot_root(".", ".")").
    unsafe fn pivot(&self) -> io::Result<()> {
        // SAFETY: as in `build`.
        unsafe {
            check(libc::chdir(c"/sys".as_ptr()))?;
            let dot = c".".as_ptr();
            match libc::syscall(libc::SYS_pivot_root, dot, dot) {
                0 => {}
                _ => return Err(io::Error::last_os_error()),
            }
            check(libc::umount2(dot, libc::MNT_DETACH))?;
            let flags = libc::MS_REMOUNT
                | libc::MS_BIND
                | libc::MS_RDONLY
                | libc::MS_NOSUID
                | libc::MS_NOEXEC;
            mount(None, c"/", None, flags, None)?;
            check(libc::chdir(self.home.as_ptr()))
        }
    }

    unsafe fn become_user(&self) -> io::Result<()> {
        let user = libc::c_long::from(self.user);
        // SAFETY: plain system calls. The raw ones: libc's own would tell all threads of a process that has no others.
        unsafe {
            drop_bounding(0)?;
            let none = std::ptr::null::<libc::gid_t>();
            check_long(libc::syscall(libc::SYS_setgroups, 0_usize, none))?;
            check_long(libc::syscall(libc::SYS_setresgid, user, user, user))?;
            check_long(libc::syscall(libc::SYS_setresuid, user, user, user))?;
            // Leaving root empties all sets but the inheritable one (capabilities(7)).
            let header = [0x2008_0522_u32, 0];
            let sets = [0_u32; 6];
            check_long(libc::syscall(
                libc::SYS_capset,
                header.as_ptr(),
                sets.as_ptr(),
            ))?;
            check(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))?;
            filter::install(&self.filter)
        }
    }
}

/// All capabilities that can be gained, but for this set.
///
/// # Safety
/// Only system calls; to be called between fork and exec.
pub(super) unsafe fn drop_bounding(kept: u64) -> io::Result<()> {
    for capability in (0..64).filter(|capability| kept & 1 << capability == 0) {
        // SAFETY: a plain system call.
        if unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) } != 0 {
            match io::Error::last_os_error() {
                // The last one that this kernel knows was before.
                error if error.raw_os_error() == Some(libc::EINVAL) => break,
                error => return Err(error),
            }
        }
    }
    Ok(())
}

/// Whether a path leads to where programs are.
pub(super) fn is_system(path: &Path) -> bool {
    SYSTEM.iter().any(|system| path.starts_with(system))
}

unsafe fn limit() -> io::Result<()> {
    for (what, limit) in [
        (libc::RLIMIT_NOFILE, OPEN_FILES),
        (libc::RLIMIT_NPROC, THREADS),
        (libc::RLIMIT_MEMLOCK, LOCKED),
    ] {
        let limit = libc::rlimit {
            rlim_cur: limit,
            rlim_max: limit,
        };
        // SAFETY: the pointer is to a local.
        check(unsafe { libc::setrlimit(what, &raw const limit) })?;
    }
    Ok(())
}

/// A parent is told a number alone; which step it was comes to stand in the log.
unsafe fn told(doing: &CStr, done: io::Result<()>) -> io::Result<()> {
    if done.is_err() {
        for words in [c"confinement: cannot ", doing, c"\n"] {
            // SAFETY: the pointer and the length are of a C string.
            unsafe { libc::write(2, words.as_ptr().cast(), words.count_bytes()) };
        }
    }
    done
}
