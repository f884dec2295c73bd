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
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{Dev, FileType, Gid, Mode, Uid};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};
use rustix::process::{Resource, Rlimit, umask};
use rustix::thread::{CapabilitySet, UnshareFlags};

use super::bind::attributes_of;
use super::capabilities::{drop_bounding, keep_capabilities, keep_what_a_jailer_needs};
use super::confinement::{Confine, Reach};
use super::controls;
use super::filter;
use super::mounts::detached;
use super::step::{Below, Step, c_string};
use crate::host::named::Named;
use crate::host::syscall::{install_seccomp_filter, unshare};

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
    /// The opened `cgroup.procs` of its control group.
    cgroup: Option<File>,
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
pub(super) enum End {
    User,
    Jailer,
}

pub(super) const LOCKED_DOWN: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV);

impl Cell {
    /// `cgroup` is the opened `cgroup.procs` of the desired group. `labels` identifies the process ([`super::Origin`]).
    pub(super) fn prepare(
        what: &Confine<'_>,
        cgroup: Option<File>,
        labels: &str,
    ) -> io::Result<Self> {
        let end = match what.jail {
            None => End::User,
            Some(_) => End::Jailer,
        };
        let mut cell = Self {
            cgroup,
            ..Self::empty(what.user, c_string(what.home)?, CString::new(labels)?, end)
        };
        cell.add_system()?;
        match &what.jail {
            None => cell.add_own(what)?,
            Some(jail) => cell.add_jail(what, jail, labels)?,
        }
        Ok(cell)
    }

    /// A confinement without files.
    pub(super) fn empty(user: u32, home: CString, labels: CString, end: End) -> Self {
        Self {
            user,
            cgroup: None,
            root: BUILD.into(),
            steps: Vec::new(),
            home,
            filter: filter::program(),
            labels,
            end,
        }
    }

    pub(super) fn add_system(&mut self) -> io::Result<()> {
        for path in SYSTEM.iter().chain(&LOADER).map(Path::new) {
            if path.exists() {
                self.bind(path, MountFlags::RDONLY, Below::All)?;
            }
        }
        Ok(())
    }

    pub(super) fn add_devices(&mut self, kvm: bool) -> io::Result<()> {
        for (path, major, minor) in DEVICES {
            let number = rustix::fs::makedev(major, minor);
            self.device(Path::new(path), FileType::CharacterDevice, 0o600, number)?;
        }
        // The kernel assigns the device number when the module is loaded.
        if let (true, Ok(found)) = (kvm, fs::metadata("/dev/kvm")) {
            let kind = FileType::CharacterDevice;
            self.device(Path::new("/dev/kvm"), kind, 0o600, found.rdev())?;
        }
        Ok(())
    }

    fn add_own(&mut self, what: &Confine<'_>) -> io::Result<()> {
        self.add_devices(what.kvm)?;
        let alone = LOCKED_DOWN | MountFlags::NOEXEC;
        let (proc, sys) = (Path::new("/proc"), Path::new(BUILD));
        self.fresh(("proc", "proc"), proc, alone, "hidepid=2")?;
        self.fresh(("sysfs", "sysfs"), sys, alone | MountFlags::RDONLY, "")?;
        for reach in what.reach {
            self.show(reach)?;
        }
        self.bind(what.home, MountFlags::NOEXEC, Below::Nothing)
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
            return self.show_named(named, path, reach, MountFlags::RDONLY);
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
                self.show_at(&reach, MountFlags::RDONLY)
            }
            (false, _, _) => self.show_at(reach, MountFlags::RDONLY),
        }
    }

    /// Mounts a file at its own path. `read`: the mount flags of a file that is not writable.
    pub(super) fn show_at(&mut self, reach: &Reach<'_>, read: MountFlags) -> io::Result<()> {
        if let Some(named) = reach.named {
            return self.show_named(named, reach.path, reach, read);
        }
        let found = fs::metadata(reach.path)?;
        if found.file_type().is_block_device() {
            let mode = if reach.writable { 0o600 } else { 0o400 };
            return self.device(reach.path, FileType::BlockDevice, mode, found.rdev());
        }
        let flags = match reach.writable {
            true => MountFlags::NOEXEC,
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
        read: MountFlags,
    ) -> io::Result<()> {
        if let Some(number) = named.device() {
            let mode = if reach.writable { 0o600 } else { 0o400 };
            return self.device(path, FileType::BlockDevice, mode, number);
        }
        let flags = match reach.writable {
            true => MountFlags::NOEXEC,
            false => read,
        };
        let mount = detached(named.as_fd(), attributes_of(flags | LOCKED_DOWN), reach.map)?;
        let to = self.target_path(path)?;
        self.steps
            .push(Step::File(to.clone(), Mode::from_raw_mode(0o644)));
        self.steps.push(Step::Attach { mount, to });
        Ok(())
    }

    pub(super) fn bind(&mut self, path: &Path, flags: MountFlags, below: Below) -> io::Result<()> {
        let to = self.target_path(path)?;
        self.steps.push(match path.is_dir() {
            true => Step::Dir(to.clone()),
            false => Step::File(to.clone(), Mode::from_raw_mode(0o644)),
        });
        self.steps.push(Step::Bind {
            from: c_string(path)?,
            to,
            flags: flags | LOCKED_DOWN,
            below,
        });
        Ok(())
    }

    fn device(&mut self, path: &Path, kind: FileType, mode: u32, number: Dev) -> io::Result<()> {
        let path = self.target_path(path)?;
        self.steps.push(Step::Device {
            path,
            kind,
            mode: Mode::from_raw_mode(mode),
            number,
        });
        Ok(())
    }

    /// Mounts a new file system of this type, with this source.
    pub(super) fn fresh(
        &mut self,
        (kind, source): (&str, &str),
        path: &Path,
        flags: MountFlags,
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

    /// Confines the calling process, between fork and exec: it makes only system calls. On an error the child must exit.
    pub(super) fn enter(&self) -> io::Result<()> {
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

    fn join(&self) -> io::Result<()> {
        match &self.cgroup {
            // "0" is the writing process (cgroup-v2.rst).
            Some(procs) => write_at_once(procs, b"0"),
            None => Ok(()),
        }
    }

    fn build(&self) -> io::Result<()> {
        unshare(UnshareFlags::NEWNS)?;
        let private = MountPropagationFlags::REC | MountPropagationFlags::PRIVATE;
        rustix::mount::mount_change(c"/", private)?;
        rustix::mount::mount(
            self.labels.as_c_str(),
            c"/sys",
            c"tmpfs",
            MountFlags::NOSUID | MountFlags::NOEXEC,
            c"mode=0755,size=1m",
        )?;
        umask(Mode::empty());
        for step in &self.steps {
            step.take(self.user)?;
        }
        umask(Mode::RWXG | Mode::RWXO);
        Ok(())
    }

    /// Stacks the old root on the new one and unmounts it (pivot_root(2), "pivot_root(".", ".")").
    fn pivot(&self) -> io::Result<()> {
        rustix::process::chdir(c"/sys")?;
        rustix::process::pivot_root(c".", c".")?;
        rustix::mount::unmount(c".", UnmountFlags::DETACH)?;
        let flags = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NOEXEC;
        rustix::mount::mount_remount(c"/", flags, c"")?;
        Ok(rustix::process::chdir(self.home.as_c_str())?)
    }

    /// Changes the user of the calling thread only, as setuid(2) of the kernel does; libc would signal all threads, and this process, the
    /// child of a fork, has no others.
    fn become_user(&self) -> io::Result<()> {
        let (user, group) = (Uid::from_raw(self.user), Gid::from_raw(self.user));
        drop_bounding(CapabilitySet::empty())?;
        rustix::thread::set_thread_groups(&[])?;
        rustix::thread::set_thread_res_gid(group, group, group)?;
        rustix::thread::set_thread_res_uid(user, user, user)?;
        // Leaving root empties all sets but the inheritable one (capabilities(7)).
        keep_capabilities(CapabilitySet::empty())?;
        rustix::thread::set_no_new_privs(true)?;
        install_seccomp_filter(&self.filter)
    }
}

/// Whether a path is below one of the system directories.
pub(super) fn is_system(path: &Path) -> bool {
    SYSTEM.iter().any(|system| path.starts_with(system))
}

fn limit() -> io::Result<()> {
    for (what, limit) in [
        (Resource::Nofile, OPEN_FILES),
        (Resource::Nproc, THREADS),
        (Resource::Memlock, LOCKED),
    ] {
        set_limit(what, limit)?;
    }
    Ok(())
}

/// Sets the soft and the hard limit of the calling process.
pub(super) fn set_limit(what: Resource, limit: u64) -> io::Result<()> {
    let both = Rlimit {
        current: Some(limit),
        maximum: Some(limit),
    };
    Ok(rustix::process::setrlimit(what, both)?)
}

/// Writes the bytes with one system call. EIO: the kernel accepted only a part of them.
pub(super) fn write_at_once(to: impl AsFd, bytes: &[u8]) -> io::Result<()> {
    match rustix::io::write(to, bytes)? {
        written if written == bytes.len() => Ok(()),
        _ => Err(Errno::IO.into()),
    }
}

/// Writes the failed step to the log: the parent receives only the errno.
fn log_failure(doing: &CStr, done: io::Result<()>) -> io::Result<()> {
    if done.is_err() {
        for text in [c"confinement: cannot ", doing, c"\n"] {
            // The handle itself takes no lock.
            let _ = rustix::io::write(io::stderr(), text.to_bytes());
        }
    }
    done
}
