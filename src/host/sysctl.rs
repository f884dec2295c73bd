//! Values under /proc/sys.
//! Out of scope: the desired state.
//!
//! `net.*` keys are those of the calling thread's namespace: call from inside [`super::netns::Netns::run_here`] or
//! [`run`](super::netns::Netns::run).

mod mounts;

use std::fs;
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use parking_lot::Mutex;
use rustix::fs::{Mode, OFlags};

use super::error::absent_is_done;
use super::{Error, Kind, rtnl};

pub use mounts::MOUNTS;

/// Reads a key such as `net.ipv4.ip_forward`, without the newline. `Absent` when this kernel does not have it.
pub fn read(key: &str) -> Result<String, Error> {
    path(key)
        .and_then(fs::read_to_string)
        .map(|value| value.trim_end().to_owned())
        .map_err(|e| Error::io("read sysctl", key, e))
}

/// Writes a key. `Absent` when this kernel does not have it.
pub fn write(key: &str, value: &str) -> Result<(), Error> {
    path(key)
        .and_then(|path| fs::OpenOptions::new().write(true).open(path))
        .and_then(|mut file| {
            let _guard = rtnl::lock_for_sysctl(last_component(key));
            file.write_all(value.as_bytes())
        })
        .map_err(|e| Error::io("write sysctl", key, e))
}

/// The last part of a key.
fn last_component(key: &str) -> &str {
    key.rsplit(['.', '/']).next().unwrap_or(key)
}

/// Reads several keys, in order; `None` for a key that this kernel does not have.
pub fn read_many(keys: &[&str]) -> Result<Vec<Option<String>>, Error> {
    Dirs::default().read_many(keys)
}

/// Writes several keys, in order, up to the first that fails. Keys that this kernel does not have are skipped.
pub fn write_many(values: &[(&str, &str)]) -> Result<(), Error> {
    Dirs::default().write_many(values)
}

/// Directories of one namespace below /proc/sys, each looked up once: the cost of that lookup grows with the number of namespaces
/// (see `mounts`), the cost of a lookup in the directory does not.
///
/// The directory of a namespace appears empty to a thread in another one: only [`Netns`](super::netns::Netns) caches them.
#[derive(Debug, Default)]
pub(super) struct Dirs {
    /// The namespace's inode number; `None`: the calling thread's, for one operation.
    namespace: Option<u64>,
    dirs: Mutex<Vec<(PathBuf, OwnedFd)>>,
}

impl Dirs {
    /// The directories of the namespace with this inode number.
    pub(super) fn of(namespace: u64) -> Self {
        Self {
            namespace: Some(namespace),
            ..Self::default()
        }
    }

    pub(super) fn read_many(&self, keys: &[&str]) -> Result<Vec<Option<String>>, Error> {
        keys.iter()
            .map(|key| match self.read(key) {
                Ok(value) => Ok(Some(value)),
                Err(error) if Kind::of(&error) == Kind::Absent => Ok(None),
                Err(error) => Err(Error::io("read sysctl", *key, error)),
            })
            .collect()
    }

    pub(super) fn write_many(&self, values: &[(&str, &str)]) -> Result<(), Error> {
        values.iter().try_for_each(|(key, value)| {
            let written = self.write(key, value);
            absent_is_done(written.map_err(|e| Error::io("write sysctl", *key, e)))
        })
    }

    pub(super) fn read(&self, key: &str) -> io::Result<String> {
        // Longer than any value that is read here; a longer one is read in several parts.
        let mut value = Vec::with_capacity(64);
        let file = self.open(key, OFlags::RDONLY)?;
        loop {
            let (capacity, read) = (
                value.capacity() - value.len(),
                rustix::io::read(&file, rustix::buffer::spare_capacity(&mut value))?,
            );
            // A handler writes its whole value if the buffer has space for it, and the next read returns the end (`do_proc_dointvec`).
            if read < capacity {
                break;
            }
            value.reserve(64);
        }
        let value = String::from_utf8(value).map_err(io::Error::other)?;
        Ok(value.trim_end().to_owned())
    }

    pub(super) fn write(&self, key: &str, value: &str) -> io::Result<()> {
        let mut file = fs::File::from(self.open(key, OFlags::WRONLY)?);
        let _guard = rtnl::lock_for_sysctl(last_component(key));
        file.write_all(value.as_bytes())
    }

    fn open(&self, key: &str, flags: OFlags) -> io::Result<OwnedFd> {
        let flags = flags | OFlags::CLOEXEC;
        let path = path(key)?;
        let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let mut dirs = self.dirs.lock();
        let at = match dirs.iter().position(|(known, _)| known == dir) {
            Some(index) => index,
            None => {
                let opened = match self.namespace {
                    Some(namespace) => mounts::open_dir(namespace, dir)?,
                    None => {
                        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
                        rustix::fs::open(dir, flags, Mode::empty())?
                    }
                };
                dirs.push((dir.to_owned(), opened));
                dirs.len() - 1
            }
        };
        Ok(rustix::fs::openat(&dirs[at].1, name, flags, Mode::empty())?)
    }
}

/// As in `sysctl.d(5)`: dots separate the parts of a key, unless a slash comes first; then slashes do, and dots are part of names
/// (`net/ipv4/conf/eth0.7/rp_filter`).
fn path(key: &str) -> io::Result<PathBuf> {
    let separator = match key.find(['.', '/']) {
        Some(at) if key[at..].starts_with('/') => '/',
        _ => '.',
    };
    let mut path = PathBuf::from("/proc/sys");
    for part in key.split(separator) {
        if matches!(part, "" | "." | "..") || part.contains('/') {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        path.push(part);
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_cannot_escape_proc_sys() {
        for key in [
            "",
            "..",
            "net/../../etc/passwd",
            "net..ipv4",
            "/etc/passwd",
            "net.a/../../b",
        ] {
            assert!(path(key).is_err(), "{key}");
        }
    }

    #[test]
    fn dots_separate_a_key_unless_a_slash_comes_first() {
        let read = |key| path(key).map(|p| p.display().to_string()).ok();
        assert_eq!(
            read("net.ipv4.ip_forward").as_deref(),
            Some("/proc/sys/net/ipv4/ip_forward")
        );
        assert_eq!(
            read("net/ipv4/conf/eth0.7/rp_filter").as_deref(),
            Some("/proc/sys/net/ipv4/conf/eth0.7/rp_filter")
        );
    }

    #[test]
    fn a_key_unknown_to_the_kernel_is_absent() {
        assert_eq!(read("net.ipv4.no_such_key").unwrap_err().kind, Kind::Absent);
        assert_eq!(
            read_many(&["kernel.ostype", "kernel.no_such_key"]).unwrap(),
            [Some("Linux".into()), None]
        );
    }
}
