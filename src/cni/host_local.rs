//! Stale reservations of the `host-local` IPAM plugin, which remain after a crash.
//! Out of scope: which containers exist.
//!
//! A reservation is a file in the directory of the network. Its name is the address; it contains the container id and the interface
//! name (containernetworking/plugins, `plugins/ipam/host-local/backend/disk`).

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::FlockOperation;
use rustix::io::Errno;

use super::{Error, Network, Plugin, Runtime};

/// The default of `ipam.dataDir`.
const FOLDER: &str = "/var/lib/cni/networks";

/// At most this many bytes of a reservation are read: it contains a container id and an interface name.
const LONGEST_RESERVATION: u64 = 4096;
/// How long to wait for the lock of `host-local`.
const LOCK_DEADLINE: Duration = Duration::from_secs(10);
const LOCK_STEP: Duration = Duration::from_millis(5);

impl Runtime {
    /// Removes the reservations of stale containers in a network, and returns their files. `judged` is called once per directory,
    /// under the lock of `host-local` and after the reservations were read; it returns a predicate for stale containers, which must be
    /// false for every container that is not the caller's. Waits for the lock of `host-local` for 10 s at most.
    pub async fn sweep_host_local<J: Fn(&str) -> bool>(
        &self,
        network: &Network,
        judged: impl Fn() -> J,
    ) -> Result<Vec<PathBuf>, Error> {
        let mut removed = Vec::new();
        let mut swept = Vec::new();
        for folder in folders(network) {
            if !swept.contains(&folder) {
                if let Some(reserved) = Reserved::wait_for(&folder).await? {
                    removed.extend(reserved.release(judged())?);
                }
                swept.push(folder);
            }
        }
        Ok(removed)
    }

    /// Returns the container for which `host-local` has reserved an address of a network. `None` if the address is not reserved, or if
    /// the network uses another IPAM plugin.
    pub fn holder_of(&self, network: &Network, address: IpAddr) -> Option<String> {
        let mut folders = folders(network);
        folders.find_map(|folder| holder(&folder.join(address.to_string())))
    }
}

/// Returns the directories of `host-local` with the reservations of a network, one for each plugin that delegates to it.
fn folders(network: &Network) -> impl Iterator<Item = PathBuf> + '_ {
    let folders = network.plugins.iter().filter_map(Plugin::host_local);
    folders.map(|folder| {
        let folder = match folder.as_os_str().is_empty() {
            true => PathBuf::from(FOLDER),
            false => folder,
        };
        folder.join(&network.name)
    })
}

/// All reservations in a directory. The lock of `host-local` is held until this is dropped.
struct Reserved {
    _lock: File,
    /// The files, each with the id of its container.
    all: Vec<(PathBuf, String)>,
}

impl Reserved {
    /// Runs on a blocking thread: `host-local` may hold its lock for the deadline of a plugin. `None`: the directory does not exist.
    async fn wait_for(folder: &Path) -> Result<Option<Self>, Error> {
        let its = folder.to_owned();
        match tokio::task::spawn_blocking(move || Self::read(&its)).await {
            Ok(read) => read,
            Err(failed) => match failed.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(cancelled) => Err(Error::io("lock", folder, io::Error::other(cancelled))),
            },
        }
    }

    fn read(folder: &Path) -> Result<Option<Self>, Error> {
        let wrap = |error| Error::io("list", folder, error);
        let entries = match fs::read_dir(folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(wrap(error)),
        };
        let lock = lock(folder)?;
        let mut all = Vec::new();
        for entry in entries {
            let path = entry.map_err(wrap)?.path();
            if let Some(container) = holder(&path) {
                all.push((path, container));
            }
        }
        all.sort();
        Ok(Some(Self { _lock: lock, all }))
    }

    fn release(&self, stale: impl Fn(&str) -> bool) -> Result<Vec<PathBuf>, Error> {
        let mut removed = Vec::new();
        for (path, _) in self.all.iter().filter(|(_, holder)| stale(holder)) {
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

/// Takes the lock that `host-local` takes for every operation. It is held until the file is closed.
fn lock(folder: &Path) -> Result<File, Error> {
    let path = folder.join("lock");
    let mut options = File::options();
    let file = options.read(true).append(true).create(true).open(&path);
    let file = file.map_err(|error| Error::io("open", &path, error))?;
    lock_in_time(&file).map_err(|error| Error::io("lock", &path, error))?;
    Ok(file)
}

/// A plugin holds the lock while it searches for a free address. If a process holds it longer than [`LOCK_DEADLINE`], the sweep fails
/// and is retried by the caller.
fn lock_in_time(file: &File) -> io::Result<()> {
    let mut waited = Duration::ZERO;
    loop {
        match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(()),
            Err(Errno::WOULDBLOCK) if waited < LOCK_DEADLINE => {}
            Err(Errno::WOULDBLOCK) => {
                let why = format!(
                    "another process has held the lock for {} s",
                    LOCK_DEADLINE.as_secs()
                );
                return Err(io::Error::new(io::ErrorKind::TimedOut, why));
            }
            Err(error) => return Err(error.into()),
        }
        std::thread::sleep(LOCK_STEP);
        waited += LOCK_STEP;
    }
}

/// The id of the container that owns a reservation; `None` for other files, such as `last_reserved_ip.0` and `lock`. Old versions
/// write only the container id.
fn holder(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_str()?;
    name.parse::<IpAddr>().ok()?;
    // The directory belongs to the plugin: a read of another kind of file may block (FIFO) or not end.
    let is_file = fs::symlink_metadata(path).ok()?.is_file();
    let file = is_file.then(|| fs::File::open(path).ok()).flatten()?;
    let mut text = String::new();
    file.take(LONGEST_RESERVATION)
        .read_to_string(&mut text)
        .ok()?;
    let container = text.lines().next()?.trim();
    (!container.is_empty()).then(|| container.to_owned())
}
