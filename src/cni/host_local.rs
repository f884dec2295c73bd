//! Stale reservations of the `host-local` IPAM plugin, which remain after a crash.
//! Out of scope: which containers exist.
//!
//! A reservation is a file in the directory of the network. Its name is the address; it contains the container id and the interface
//! name (containernetworking/plugins, `plugins/ipam/host-local/backend/disk`).

use std::fs::{self, File, TryLockError};
use std::io::{self, Read as _};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Error, Network, Plugin, Runtime};

/// The default of `ipam.dataDir`.
const DEFAULT_DATA_DIR: &str = "/var/lib/cni/networks";

/// At most this many bytes of a reservation are read: it contains a container id and an interface name.
const MAX_RESERVATION_SIZE: u64 = 4096;
/// How long to wait for the lock of `host-local`.
const LOCK_DEADLINE: Duration = Duration::from_secs(10);
const LOCK_POLL_INTERVAL: Duration = Duration::from_millis(5);

impl Runtime {
    /// Removes the reservations of stale containers in a network, and returns their files. `stale_containers` is called once per directory,
    /// under the lock of `host-local` and after the reservations were read; it returns a predicate for stale containers, which must be
    /// false for every container that is not the caller's. Waits for the lock of `host-local` for 10 s at most.
    pub async fn sweep_host_local<J: Fn(&str) -> bool>(
        &self,
        network: &Network,
        stale_containers: impl Fn() -> J,
    ) -> Result<Vec<PathBuf>, Error> {
        let mut removed = Vec::new();
        let mut done = Vec::new();
        for dir in reservation_dirs(network) {
            if !done.contains(&dir) {
                if let Some(reservations) = Reservations::lock_and_read(&dir).await? {
                    removed.extend(reservations.release(stale_containers())?);
                }
                done.push(dir);
            }
        }
        Ok(removed)
    }

    /// Returns the container for which `host-local` has reserved an address of a network. `None` if the address is not reserved, or if
    /// the network uses another IPAM plugin.
    pub fn container_of(&self, network: &Network, address: IpAddr) -> Option<String> {
        let mut dirs = reservation_dirs(network);
        dirs.find_map(|dir| container_of_file(&dir.join(address.to_string())))
    }
}

/// Returns the directories of `host-local` with the reservations of a network, one for each plugin that delegates to it.
fn reservation_dirs(network: &Network) -> impl Iterator<Item = PathBuf> + '_ {
    let dirs = network
        .plugins
        .iter()
        .filter_map(Plugin::host_local_data_dir);
    dirs.map(|dir| {
        let data_dir = match dir.as_os_str().is_empty() {
            true => PathBuf::from(DEFAULT_DATA_DIR),
            false => dir,
        };
        data_dir.join(&network.name)
    })
}

/// All reservations in a directory. The lock of `host-local` is held until this is dropped.
struct Reservations {
    lock: File,
    /// The files, each with the id of its container.
    all: Vec<(PathBuf, String)>,
}

impl Reservations {
    /// Runs on a blocking thread: `host-local` may hold its lock for the deadline of a plugin. `None`: the directory does not exist.
    async fn lock_and_read(dir: &Path) -> Result<Option<Self>, Error> {
        let path = dir.to_owned();
        match tokio::task::spawn_blocking(move || Self::read(&path)).await {
            Ok(read) => read,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(cancelled) => Err(Error::io("lock", dir, io::Error::other(cancelled))),
            },
        }
    }

    fn read(dir: &Path) -> Result<Option<Self>, Error> {
        let wrap = |error| Error::io("list", dir, error);
        let entries = match fs::read_dir(dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(wrap(error)),
        };
        let lock = lock(dir)?;
        let mut files = Vec::new();
        for entry in entries {
            let path = entry.map_err(wrap)?.path();
            if let Some(container) = container_of_file(&path) {
                files.push((path, container));
            }
        }
        files.sort();
        Ok(Some(Self { lock, all: files }))
    }

    fn release(&self, stale: impl Fn(&str) -> bool) -> Result<Vec<PathBuf>, Error> {
        let mut removed = Vec::new();
        for (path, _) in self.all.iter().filter(|(_, container)| stale(container)) {
            match fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(Error::io("remove", path, error));
                }
                _ => removed.push(path.clone()),
            }
        }
        Ok(removed)
    }
}

impl Drop for Reservations {
    /// Closing the file is not enough: until its exec, a forked child has a copy of the descriptor, which keeps the lock (`flock(2)`).
    fn drop(&mut self) {
        if let Err(error) = self.lock.unlock() {
            tracing::warn!(%error, "cannot unlock the reservations of host-local");
        }
    }
}

/// Acquires the lock that `host-local` acquires for every operation.
fn lock(dir: &Path) -> Result<File, Error> {
    let path = dir.join("lock");
    let mut options = File::options();
    let file = options.read(true).append(true).create(true).open(&path);
    let file = file.map_err(|error| Error::io("open", &path, error))?;
    lock_with_deadline(&file).map_err(|error| Error::io("lock", &path, error))?;
    Ok(file)
}

/// A plugin holds the lock while it searches for a free address. If a process holds it longer than [`LOCK_DEADLINE`], the sweep fails
/// and is retried by the caller.
fn lock_with_deadline(file: &File) -> io::Result<()> {
    let mut waited = Duration::ZERO;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(error)) => return Err(error),
        }
        if waited >= LOCK_DEADLINE {
            let reason = format!(
                "another process has held the lock for {} s",
                LOCK_DEADLINE.as_secs()
            );
            return Err(io::Error::new(io::ErrorKind::TimedOut, reason));
        }
        std::thread::sleep(LOCK_POLL_INTERVAL);
        waited += LOCK_POLL_INTERVAL;
    }
}

/// The id of the container that owns a reservation; `None` for other files, such as `last_reserved_ip.0` and `lock`. Old versions
/// write only the container id.
fn container_of_file(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_str()?;
    name.parse::<IpAddr>().ok()?;
    // The directory belongs to the plugin: a read of another kind of file may block (FIFO) or not end.
    let is_file = fs::symlink_metadata(path).ok()?.is_file();
    let file = is_file.then(|| fs::File::open(path).ok()).flatten()?;
    let mut text = String::new();
    file.take(MAX_RESERVATION_SIZE)
        .read_to_string(&mut text)
        .ok()?;
    let container = text.lines().next()?.trim();
    (!container.is_empty()).then(|| container.to_owned())
}
