//! Confines a process: a user of its own, no capabilities, a minimal file system.
//! Out of scope: starting the process ([`super::spawn()`]); which user and which files it gets.
//!
//! # How
//! Everything that allocates memory is prepared before the fork, as a list of steps with their paths; the child executes them with system
//! calls only. The new root is a small tmpfs, mounted over `/sys`, because nothing of the host's `/sys` is needed (a new sysfs, of the
//! process' own network namespace, replaces it), and entered with pivot_root(2). So the process keeps no other mount of the host alive, in
//! particular no network namespace of another VM.
//!
//! # Why devices are created and not bind-mounted
//! A device node has an owner: `/dev/kvm` belongs to root or to a group on most hosts. The created nodes belong to the user of the process.

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

/// The confinement of a process.
#[derive(Clone, Copy, Debug)]
pub struct Confine<'a> {
    /// Its user, and its group of the same number.
    pub user: u32,
    /// Its working directory, the only one where it may create files. The caller creates it and makes the user its owner.
    pub home: &'a Path,
    /// Further files and block devices that it sees, at the same paths as on the host.
    pub reach: &'a [Reach<'a>],
    /// Whether it has `/dev/kvm`.
    pub kvm: bool,
    /// The control group (version 2) that it joins.
    pub cgroup: Option<&'a Path>,
    /// The jailer that continues the confinement. `None`: the process becomes its user and executes the program.
    pub jail: Option<Jail<'a>>,
}

/// A file, directory or block device of the host that a confined process sees.
#[derive(Clone, Copy, Debug)]
pub struct Reach<'a> {
    /// Its path.
    pub path: &'a Path,
    /// Whether it is mounted writable. The caller gives the user access to it, except to block devices.
    pub writable: bool,
    /// The opened file, if an unprivileged user specified the path: it is mounted from this descriptor and the path is not resolved again.
    pub named: Option<&'a Named>,
    /// The ID mapping of the mount; only with `named`.
    pub map: Option<IdMap>,
}

/// Directories of programs and their libraries. Those that do not exist on the host are skipped.
const SYSTEM: [&str; 9] = [
    "/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/nix", "/gnu",
];
/// Files that the dynamic linker reads.
const LOADER: [&str; 1] = ["/etc/ld.so.cache"];
/// Character devices of every confined process (Documentation/admin-guide/devices.txt).
const DEVICES: [(&str, u32, u32); 5] = [
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/net/tun", 10, 200),
];
/// The mount point of the new root during its construction.
const BUILD: &str = "/sys";
/// Descriptors that a VMM may open: the disks and sockets of its guest.
const OPEN_FILES: u64 = 4096;
/// Threads of one user: those of 255 vCPUs and of the VMM itself.
const THREADS: u64 = 1024;
/// Bytes of memory that may be locked (the kernel's default).
const LOCKED: u64 = 8 << 20;

/// The prepared steps of one confinement, for the child to execute.
pub(super) struct Cell {
    user: u32,
    cgroup: Option<RawFd>,
    /// The directory to which paths are relative during the construction of the new root.
    root: PathBuf,
    pub(super) steps: Vec<Step>,
    pub(super) home: CString,
    filter: Vec<libc::sock_filter>,
    /// The source of the new root, which identifies the process and which the process cannot change.
    labels: CString,
    end: End,
}

/// The last step of the confinement.
#[derive(Clone, Copy)]
enum End {
    User,
    Jailer,
}

pub(super) const LOCKED_DOWN: libc::c_ulong = libc::MS_NOSUID | libc::MS_NODEV;

impl Cell {
    /// `cgroup` is the opened `cgroup.procs` of the desired group; it stays open until the process has started.
    /// `labels` identifies the process ([`super::Origin`]).
    pub(super) fn prepare(
        what: &Confine<'_>,
        cgroup: Option<RawFd>,
        labels: &str,
    ) -> io::Result<Self> {
        let mut cell = Self {
            user: what.user,
            cgroup,
            root: BUILD.into(),
            steps: Vec::new(),
            home: c_string(what.home)?,
            filter: filter::program(),
            labels: CString::new(labels)?,
            end: match what.jail {
                None => End::User,
                Some(_) => End::Jailer,
            },
        };
        cell.add_system()?;
        match &what.jail {
            None => cell.add_own(what)?,
            Some(jail) => cell.add_jail(what, jail, labels)?,
        }
        Ok(cell)
    }

    /// The confinement of a [`Query`]: no home, no network and no files of its own.
    pub(super) fn for_query(what: &Query<'_>, user: u32) -> io::Result<Self> {
        let mut cell = Self {
            user,
            cgroup: None,
            root: BUILD.into(),
            steps: Vec::new(),
            home: c"/".to_owned(),
            filter: filter::program(),
            labels: c"slice-query".to_owned(),
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
        // The kernel assigns the device number when the module is loaded.
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

    /// Makes later paths relative to this directory.
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
        // A path in a system directory is visible already, unless it is a link to a target outside: then the target is mounted at its
        // own path.
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

    /// Mounts a file at its own path. `read`: the mount flags of a file that is not writable.
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

    /// Mounts a file from its descriptor; the path is not resolved again.
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
        let to = self.target_path(path)?;
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
        let to = self.target_path(path)?;
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
        let path = self.target_path(path)?;
        self.steps.push(Step::Device { path, kind, number });
        Ok(())
    }

    /// Mounts a new file system of this type, with this source.
    pub(super) fn fresh(
        &mut self,
        (kind, source): (&str, &str),
        path: &Path,
        flags: libc::c_ulong,
        options: &str,
    ) -> io::Result<()> {
        let to = self.target_path(path)?;
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

    /// The location of `path` during the construction of the new root. Adds steps that create the directories above it.
    pub(super) fn target_path(&mut self, path: &Path) -> io::Result<CString> {
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

    /// Confines the calling process. On an error the child must exit.
    ///
    /// # Safety
    /// Makes only system calls; must be called between fork and exec.
    pub(super) unsafe fn enter(&self) -> io::Result<()> {
        // SAFETY: the caller upholds the contract of this function.
        unsafe {
            log_failure(c"join the control group", self.join())?;
            log_failure(c"build a file system", self.build())?;
            log_failure(c"enter the file system", self.pivot())?;
            log_failure(c"set the limits", limit())?;
            match self.end {
                End::User => log_failure(c"become the user", self.become_user()),
                End::Jailer => log_failure(c"drop capabilities", keep_what_a_jailer_needs()),
            }?;
            log_failure(c"forbid ioctls of the TAP", controls::forbid())
        }
    }

    unsafe fn join(&self) -> io::Result<()> {
        let Some(procs) = self.cgroup else {
            return Ok(());
        };
        // SAFETY: the descriptor is open, the text is static. "0" is the writing process (cgroup-v2.rst).
        match unsafe { libc::write(procs, c"0".as_ptr().cast(), 1) } {
            1 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    unsafe fn build(&self) -> io::Result<()> {
        let build = c"/sys".as_ptr();
        // SAFETY: plain system calls; every pointer is to a C string of `self` or to a static one.
        unsafe {
            check(libc::unshare(libc::CLONE_NEWNS))?;
            mount(None, c"/", None, libc::MS_REC | libc::MS_PRIVATE, None)?;
            let options = c"mode=0755,size=1m";
            check(libc::mount(
                self.labels.as_ptr(),
                build,
                c"tmpfs".as_ptr(),
                libc::MS_NOSUID | libc::MS_NOEXEC,
                options.as_ptr().cast(),
            ))?;
            libc::umask(0);
            for step in &self.steps {
                step.take(self.user)?;
            }
            libc::umask(0o077);
        }
        Ok(())
    }

    /// Stacks the old root on the new one and unmounts it (pivot_root(2), "pivot_root(".", ".")").
    unsafe fn pivot(&self) -> io::Result<()> {
        // SAFETY: plain system calls; every pointer is to a static C string.
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
        // SAFETY: plain system calls. They are raw because those of libc signal all threads, and this process has no others.
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

/// Drops all capabilities but this set from the bounding set.
///
/// # Safety
/// Makes only system calls; must be called between fork and exec.
pub(super) unsafe fn drop_bounding(kept: u64) -> io::Result<()> {
    for capability in (0..64).filter(|capability| kept & 1 << capability == 0) {
        // SAFETY: a plain system call.
        if unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) } != 0 {
            match io::Error::last_os_error() {
                // This kernel has no capability with this number or a higher one.
                error if error.raw_os_error() == Some(libc::EINVAL) => break,
                error => return Err(error),
            }
        }
    }
    Ok(())
}

/// Whether a path is below one of the system directories.
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

/// Writes the failed step to the log: the parent receives only the errno.
unsafe fn log_failure(doing: &CStr, done: io::Result<()>) -> io::Result<()> {
    if done.is_err() {
        for text in [c"confinement: cannot ", doing, c"\n"] {
            // SAFETY: the pointer and the length are of a C string.
            unsafe { libc::write(2, text.as_ptr().cast(), text.count_bytes()) };
        }
    }
    done
}
