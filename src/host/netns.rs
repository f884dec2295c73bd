//! Network namespaces: create, enter, open, delete.
//! Out of scope: the desired state.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use rustix::mount::UnmountFlags;
use rustix::thread::{LinkNameSpaceType, UnshareFlags};

use super::blocking::within;
use super::lock::{self, FileLock};
use super::netlink::Handle;
use super::syscall::unshare;
use super::{Error, Kind, private, sysctl};

/// The calling thread's namespace; `/proc/self` would be the main thread's.
const CURRENT_NETNS: &str = "/proc/thread-self/ns/net";

/// `NSFS_MAGIC` of `include/uapi/linux/magic.h`.
const NSFS: i64 = 0x6e73_6673;

/// `_IO(0xb7, 0x3)` of `include/uapi/linux/nsfs.h`: answers the `CLONE_NEW*` flag of a namespace.
const NS_GET_NSTYPE: libc::Ioctl = 0xb703;

/// The timeout for operations that wait for the kernel's locks (`pernet_ops_rwsem`, RTNL): long, because hundreds of namespaces may be
/// created and removed at once.
const LOCK_TIMEOUT: Duration = Duration::from_secs(60);

/// An open network namespace: it exists at least as long as this value. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Netns {
    // Dropped before `file`: afterwards the inode number may be reused by another namespace.
    sysctls: Arc<sysctl::Dirs>,
    file: Arc<File>,
    name: Arc<str>,
}

impl Netns {
    /// The calling THREAD's namespace.
    pub fn current() -> Result<Self, Error> {
        let file = File::open(CURRENT_NETNS).and_then(|file| Self::of(file, CURRENT_NETNS));
        file.map_err(|e| Error::io("open", CURRENT_NETNS, e))
    }

    /// The namespace mounted at `path`. `Absent` when the file does not exist or no namespace is mounted on it.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let name = path.display().to_string();
        let fail = |error| Error::io("open", &name, error);
        // NONBLOCK: opening it never waits, whatever kind of file it is.
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(path)
            .map_err(fail)?;
        if !is_nsfs(&file).map_err(fail)? {
            return Err(Error {
                operation: "open",
                object: name,
                kind: Kind::Absent,
                source: io::Error::other("no namespace is mounted on it"),
            });
        }
        // SAFETY: the descriptor is open, and the request takes no argument. rustix can make it only with an unsafe implementation of its trait
        // `Ioctl`, because its result is the answer of ioctl(2) itself.
        match unsafe { libc::ioctl(file.as_raw_fd(), NS_GET_NSTYPE) } {
            libc::CLONE_NEWNET => Self::of(file, &name).map_err(fail),
            -1 => Err(fail(io::Error::last_os_error())),
            _ => Err(Error::other("open", name, "not a network namespace")),
        }
    }

    /// The namespace's inode number, unique among the namespaces that exist.
    pub fn inode(&self) -> Result<u64, Error> {
        let meta = self.file.metadata();
        meta.map(|m| m.ino())
            .map_err(|e| Error::io("stat", &*self.name, e))
    }

    /// Runs `act` inside, on the calling thread. For short operations: synchronous code is not suspended, so the thread has returned to
    /// its own namespace before another task runs on it, and a few system calls cost less than a thread switch.
    pub fn run_here<T>(&self, act: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
        if Inside::is(self) {
            return act();
        }
        let previous = thread_namespace()?;
        let restore = match enter(self.as_fd()) {
            Ok(()) => Some(RestoreGuard(previous)),
            // A process without privileges cannot enter even the namespace that it is in.
            Err(error) if is_not_permitted(&error) && is_same(&previous, &self.file) => None,
            Err(error) => return Err(Error::io("enter", &*self.name, error)),
        };
        let _guard = Inside::of(self);
        let result = act();
        drop(restore);
        result
    }

    /// Runs `act` inside, on a thread that may block: for operations that wait for a process or for long work of the kernel.
    pub async fn run<T: Send + 'static>(
        &self,
        act: impl FnOnce() -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let this = self.clone();
        within(LOCK_TIMEOUT, "enter", &*self.name, move || {
            this.run_here(act)
        })
        .await
    }

    /// The same for an operation with its own deadline, such as a program.
    pub async fn run_for<T: Send + 'static>(
        &self,
        deadline: Duration,
        act: impl FnOnce() -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let this = self.clone();
        let timeout = deadline + LOCK_TIMEOUT;
        within(timeout, "enter", &*self.name, move || this.run_here(act)).await
    }

    /// Reads a key such as `net.ipv4.ip_forward`, without the newline. `Absent` when this kernel does not have it.
    pub fn read_sysctl(&self, key: &str) -> Result<String, Error> {
        let read = self.run_here(|| Ok(self.sysctls.read(key)))?;
        read.map_err(|e| Error::io("read sysctl", key, e))
    }

    /// Reads several keys such as `net.ipv4.ip_forward`, in order; `None` for a key that this kernel does not have.
    pub fn read_sysctls(&self, keys: &[&str]) -> Result<Vec<Option<String>>, Error> {
        self.run_here(|| self.sysctls.read_many(keys))
    }

    /// Writes a key. `Absent` when this kernel does not have it.
    pub fn write_sysctl(&self, key: &str, value: &str) -> Result<(), Error> {
        let written = self.run_here(|| Ok(self.sysctls.write(key, value)))?;
        written.map_err(|e| Error::io("write sysctl", key, e))
    }

    /// Writes several keys, in order, up to the first that fails. Keys that this kernel does not have are skipped.
    pub fn write_sysctls(&self, values: &[(&str, &str)]) -> Result<(), Error> {
        self.run_here(|| self.sysctls.write_many(values))
    }

    /// An rtnetlink handle for the namespace, for one request at a time. It holds a socket, which keeps the namespace in existence: do not
    /// keep it longer than needed.
    pub fn netlink(&self) -> Result<Handle, Error> {
        self.netlink_pool(NonZeroUsize::MIN)
    }

    /// The same for several concurrent requests: each has its own socket.
    pub fn netlink_pool(&self, concurrency: NonZeroUsize) -> Result<Handle, Error> {
        self.run_here(|| {
            let fail = |e| Error::io("open a netlink socket in", &*self.name, e);
            Handle::open(concurrency).map_err(fail)
        })
    }

    fn of(file: File, name: &str) -> io::Result<Self> {
        Ok(Self {
            sysctls: cached_sysctls(file.metadata()?.ino()),
            file: Arc::new(file),
            name: name.into(),
        })
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Creates a namespace and mounts it at `path` (also creates the directory). `prepare` runs inside before the namespace is
/// mounted, so a visible namespace is always prepared. `Exists` when a namespace is already mounted there, `Busy` when one
/// is being created there; a regular file left by a crash is reused.
pub async fn create(
    path: &Path,
    prepare: impl FnOnce(&Netns) -> Result<(), Error> + Send + 'static,
) -> Result<Netns, Error> {
    let path = path.to_owned();
    within(
        LOCK_TIMEOUT,
        "create",
        path.display().to_string(),
        move || create_blocking(&path, prepare),
    )
    .await
}

/// Unmounts the namespace from `path`; it ends when its last user closes it. `Absent` when the file does not exist.
pub async fn delete(path: &Path) -> Result<(), Error> {
    let path = path.to_owned();
    within(
        LOCK_TIMEOUT,
        "delete",
        path.display().to_string(),
        move || {
            delete_blocking(&path).map_err(|e| Error::io("delete", path.display().to_string(), e))
        },
    )
    .await
}

/// Creates a namespace that is mounted nowhere: it ends with its last `Netns`.
pub async fn unnamed() -> Result<Netns, Error> {
    let object = "an unnamed network namespace";
    within(LOCK_TIMEOUT, "create", object, move || {
        let fail = |e| Error::io("create", object, e);
        let previous = thread_namespace()?;
        unshare(UnshareFlags::NEWNET).map_err(fail)?;
        let restore = RestoreGuard(previous);
        let opened = File::open(CURRENT_NETNS).and_then(|file| Netns::of(file, object));
        drop(restore);
        opened.map_err(fail)
    })
    .await
}

/// The files in a directory of namespaces, whether or not a namespace is mounted on them, sorted. Empty if the directory does not exist.
pub fn list(dir: &Path) -> Result<Vec<PathBuf>, Error> {
    let fail = |e| Error::io("list", dir.display().to_string(), e);
    let entries = match fs::read_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(fail)?,
    };
    let mut paths = entries
        .map(|entry| entry.map(|e| e.path()))
        .collect::<io::Result<Vec<_>>>()
        .map_err(fail)?;
    paths.sort();
    Ok(paths)
}

fn create_blocking(
    path: &Path,
    prepare: impl FnOnce(&Netns) -> Result<(), Error>,
) -> Result<Netns, Error> {
    let name = path.display().to_string();
    let fail = |e| Error::io("create", &name, e);
    if let Some(dir) = path.parent() {
        // A user who can open the file below the mount could lock it.
        super::fs::make_dir(dir, 0o700)?;
    }
    // The lock on the regular file below the mount excludes a concurrent creation; a crash releases it.
    let _mount_point = lock_mount_point(path).map_err(fail)?;
    open_mount_point(path).map_err(fail)?;

    let previous = thread_namespace()?;
    unshare(UnshareFlags::NEWNET).map_err(fail)?;
    let restore = RestoreGuard(previous);
    let opened = File::open(CURRENT_NETNS).and_then(|file| Netns::of(file, &name));
    let created = opened.map_err(fail).and_then(|netns| {
        let _guard = Inside::of(&netns);
        prepare(&netns)?;
        rustix::mount::mount_bind(CURRENT_NETNS, path).map_err(|e| fail(e.into()))?;
        Ok(netns)
    });
    drop(restore);
    if created.is_err() {
        // Best effort: a regular file without a mount is not treated as a namespace.
        let _ = fs::remove_file(path);
    }
    created
}

/// The regular file to mount on, locked. If an unprivileged process holds a lock (taken while it could still open the file), the file is
/// created again.
fn lock_mount_point(path: &Path) -> io::Result<FileLock> {
    let try_lock = || FileLock::exclusive(open_mount_point(path)?);
    let held = match try_lock()? {
        Ok(lock) => return Ok(lock),
        Err(file) => file,
    };
    if !private::is_held_by_privileged(&held) {
        fs::remove_file(path)?;
        if let Ok(lock) = try_lock()? {
            return Ok(lock);
        }
    }
    Err(lock::held())
}

/// The regular file to mount on; `AlreadyExists` when a namespace is mounted on it.
fn open_mount_point(path: &Path) -> io::Result<File> {
    let place = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o400)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path);
    match place {
        // A mounted namespace can't be opened for writing.
        Err(e) if Netns::open(path).is_ok() => Err(io::Error::new(io::ErrorKind::AlreadyExists, e)),
        Ok(file) if is_nsfs(&file)? => Err(io::ErrorKind::AlreadyExists.into()),
        other => other,
    }
}

fn delete_blocking(path: &Path) -> io::Result<()> {
    // There may be several mounts on top of each other; EINVAL: none is left.
    loop {
        match rustix::mount::unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) => {}
            Err(rustix::io::Errno::INVAL) => break,
            Err(error) => return Err(error.into()),
        }
    }
    super::fs::force_remove(path).map_err(|error| error.source)
}

/// The sysctl directories of a namespace, shared by all its handles. While a handle is open, the inode number refers to this namespace
/// only.
fn cached_sysctls(inode: u64) -> Arc<sysctl::Dirs> {
    static CACHE: Mutex<BTreeMap<u64, Weak<sysctl::Dirs>>> = Mutex::new(BTreeMap::new());
    let mut cache = CACHE.lock();
    if let Some(found) = cache.get(&inode).and_then(Weak::upgrade) {
        return found;
    }
    cache.retain(|_, dirs| dirs.strong_count() > 0);
    let dirs = Arc::new(sysctl::Dirs::of(inode));
    cache.insert(inode, Arc::downgrade(&dirs));
    dirs
}

fn is_nsfs(file: &File) -> io::Result<bool> {
    Ok(rustix::fs::fstatfs(file)?.f_type == NSFS)
}

thread_local! {
    /// The namespaces that the thread has entered and not left; the last one is the current one.
    static ENTERED: RefCell<Vec<Arc<File>>> = const { RefCell::new(Vec::new()) };
}

/// Records that the thread is inside a namespace, so that entering another one does not need to open the current one.
struct Inside;

impl Inside {
    /// Whether the thread is already in this namespace, so that it need not be entered.
    fn is(netns: &Netns) -> bool {
        ENTERED.with_borrow(|entered| {
            let current = entered.last();
            current.is_some_and(|here| Arc::ptr_eq(here, &netns.file))
        })
    }

    fn of(netns: &Netns) -> Self {
        ENTERED.with_borrow_mut(|entered| entered.push(Arc::clone(&netns.file)));
        Self
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        ENTERED.with_borrow_mut(Vec::pop);
    }
}

/// Returns the thread to its previous namespace on drop, also on panic.
struct RestoreGuard(Arc<File>);

/// The namespace of the calling thread.
fn thread_namespace() -> Result<Arc<File>, Error> {
    match ENTERED.with_borrow(|entered| entered.last().cloned()) {
        Some(current) => Ok(current),
        None => match File::open(CURRENT_NETNS) {
            Ok(file) => Ok(Arc::new(file)),
            Err(error) => Err(Error::io("open", CURRENT_NETNS, error)),
        },
    }
}

fn is_not_permitted(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::PermissionDenied
}

fn is_same(one: &File, other: &File) -> bool {
    let id = |file: &File| file.metadata().map(|meta| (meta.dev(), meta.ino())).ok();
    id(one).is_some_and(|one| id(other) == Some(one))
}

impl Drop for RestoreGuard {
    fn drop(&mut self) {
        if let Err(error) = enter(self.0.as_fd()) {
            // A pool thread that stays in a VM's namespace would run the operations of another VM, or of the host, there.
            eprintln!("sliced: cannot leave a network namespace, aborting: {error}");
            std::process::abort();
        }
    }
}

fn enter(namespace: BorrowedFd<'_>) -> io::Result<()> {
    Ok(rustix::thread::move_into_link_name_space(
        namespace,
        Some(LinkNameSpaceType::Network),
    )?)
}
