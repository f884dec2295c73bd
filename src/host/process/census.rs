//! Reads what a running process reports about itself in `/proc`, and finds processes by it.
//! Out of scope: the owner of a process. A process can forge what is read here; what it cannot forge is in [`super::Origin`].
//!
//! # Environment labels
//! A label is an environment variable that [`super::spawn()`] sets. A jailer clears the environment: a jailed process has the same variables
//! in the source of its root file system (`super::jail`), one per line. They are read there if the environment is empty.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::Identity;
use crate::host::{Error, Kind};

/// Set in the environment of every process that [`super::spawn()`] starts: the inode number of the daemon's mount namespace. A confined
/// process has a mount namespace of its own.
pub(super) const MOUNTS_VAR: &str = "SLICE_MOUNTS";

/// Buffer size in bytes: more than the command line of any VMM.
const AT_ONCE: usize = 32 << 10;

/// A process that has the requested label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The process.
    pub identity: Identity,
    /// The value of the label.
    pub value: String,
}

/// The TAP that a process has open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TapSlot {
    /// It has not opened `/dev/net/tun`.
    None,
    /// It is attached to the link of this name.
    Attached(String),
    /// It was attached, and the link was deleted: the descriptor cannot pass packets any more.
    Orphaned,
}

/// Returns all live processes of this host that have this label. A process is of this host if it is in the daemon's mount namespace or was
/// started from it: two hosts in namespaces of one machine may have their state at the same path, and so the same name, but not the
/// same mounts. One pass over `/proc`, about 10 µs per process.
pub fn find(variable: &str) -> Result<Vec<Found>, Error> {
    let our_mounts = our_mounts()?;
    let wrap = |error| Error::io("list the processes in", "/proc", error);
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").map_err(wrap)? {
        let name = entry.map_err(wrap)?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        // A process that ends during the pass is skipped, and so is one that cannot be read: it is not one of this host's.
        let Ok(Some(value)) = env_var(pid, variable) else {
            continue;
        };
        let started_here = || {
            let mount_ns_mark = env_var(pid, MOUNTS_VAR).ok().flatten();
            mount_ns_mark.is_some_and(|recorded| recorded == our_mounts.to_string())
        };
        if mounts_of(&pid.to_string()).ok() != Some(our_mounts) && !started_here() {
            continue;
        }
        if let Some(identity) = Identity::of(pid)? {
            found.push(Found { identity, value });
        }
    }
    Ok(found)
}

/// The inode number of the daemon's mount namespace.
pub(super) fn our_mounts() -> Result<u64, Error> {
    mounts_of("thread-self")
}

/// The inode number of a process' mount namespace.
fn mounts_of(process: &str) -> Result<u64, Error> {
    let path = format!("/proc/{process}/ns/mnt");
    let found = fs::metadata(&path).map_err(|error| Error::io("stat", path, error))?;
    Ok(found.ino())
}

/// The value of `variable` in the environment that the process was started with, or in the source of the root of its jail. `None` if it
/// is unset or the process has ended.
pub fn env_var(pid: u32, variable: &str) -> Result<Option<String>, Error> {
    let Some(environ) = read(pid, "environ")? else {
        return Ok(None);
    };
    let value = |entry: &[u8]| {
        let value = entry
            .strip_prefix(variable.as_bytes())?
            .strip_prefix(b"=")?;
        Some(String::from_utf8_lossy(value).into_owned())
    };
    let found = environ.split(|byte| *byte == 0).find_map(value);
    // Few processes have an empty environment: kernel threads, which have an empty command line too, and jailed processes.
    if found.is_some() || environ.iter().any(|byte| *byte != 0) || argv(pid)?.is_empty() {
        return Ok(found);
    }
    // The mounts of a process that is exiting cannot be read (EINVAL).
    let mounts = read(pid, "mountinfo").ok().flatten().unwrap_or_default();
    let root = root_source(&mounts).unwrap_or_default();
    Ok(root.split(|byte| *byte == b'\n').find_map(value))
}

/// The source of a root file system from which [`env_var`] reads these variables.
pub(super) fn labels(env: &[(&str, &str)]) -> String {
    let lines = env.iter().map(|(name, value)| format!("{name}={value}"));
    lines.collect::<Vec<_>>().join("\n")
}

/// The source of the topmost mount at `/`. In proc_pid_mountinfo(5): six fields, optional fields, a dash, the type, the source.
pub(super) fn root_source(mountinfo: &[u8]) -> Option<Vec<u8>> {
    let lines = mountinfo.split(|byte| *byte == b'\n');
    let mut fields = lines.map(|line| line.split(|byte| *byte == b' '));
    let root = fields.rfind(|fields| fields.clone().nth(4) == Some(b"/"))?;
    let source = root.skip_while(|field| field != b"-").nth(2)?;
    Some(plain(source))
}

/// Decodes a mountinfo field: the kernel writes blanks, line ends and backslashes as `\` and three octal digits.
fn plain(shown: &[u8]) -> Vec<u8> {
    let mut plain = Vec::new();
    let mut rest = shown;
    while let Some((first, more)) = rest.split_first() {
        let digits = more.get(..3).and_then(|digits| str::from_utf8(digits).ok());
        let octal = digits.and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match (first, octal) {
            (b'\\', Some(byte)) => {
                plain.push(byte);
                rest = &more[3..];
            }
            _ => {
                plain.push(*first);
                rest = more;
            }
        }
    }
    plain
}

/// The program and arguments that the process was started with; empty if it has ended.
pub fn argv(pid: u32) -> Result<Vec<String>, Error> {
    let line = read_cmdline(pid)?;
    let line = line.strip_suffix(&[0]).unwrap_or(&line);
    if line.is_empty() {
        return Ok(Vec::new());
    }
    Ok(line
        .split(|byte| *byte == 0)
        .map(|arg| String::from_utf8_lossy(arg).into_owned())
        .collect())
}

/// Whether the process is in the network namespace that is mounted at `netns`. `false` if either does not exist.
pub fn shares_netns(pid: u32, netns: &Path) -> Result<bool, Error> {
    let own = format!("/proc/{pid}/ns/net");
    let inode = |path: &Path| match fs::metadata(path) {
        Ok(found) => Ok(Some((found.dev(), found.ino()))),
        Err(error) => match Kind::of(&error) {
            Kind::Absent => Ok(None),
            Kind::Exists | Kind::Busy | Kind::Denied | Kind::Undecodable | Kind::Other => Err(
                Error::io("stat the namespace", path.display().to_string(), error),
            ),
        },
    };
    let (own, target) = (inode(Path::new(&own))?, inode(netns)?);
    Ok(own.is_some() && own == target)
}

/// The TAP that the process has open: the `iff:` line of a tun descriptor in `/proc/<pid>/fdinfo` (drivers/net/tun.c,
/// `tun_chr_show_fdinfo`). The line is empty after the device was unregistered.
pub fn tap_slot(pid: u32) -> Result<TapSlot, Error> {
    let dir = format!("/proc/{pid}/fd");
    let descriptors = match fs::read_dir(&dir) {
        Ok(descriptors) => descriptors,
        Err(error) if Kind::of(&error) == Kind::Absent => return Ok(TapSlot::None),
        Err(error) => return Err(Error::io("list", dir, error)),
    };
    for descriptor in descriptors.flatten() {
        if !fs::read_link(descriptor.path()).is_ok_and(|target| target == Path::new("/dev/net/tun"))
        {
            continue;
        }
        let info = format!(
            "/proc/{pid}/fdinfo/{}",
            descriptor.file_name().to_string_lossy()
        );
        // Closed since.
        let Ok(info) = fs::read_to_string(info) else {
            continue;
        };
        if let Some(name) = info.lines().find_map(|line| line.strip_prefix("iff:")) {
            return Ok(match name.trim() {
                "" => TapSlot::Orphaned,
                name => TapSlot::Attached(name.to_owned()),
            });
        }
    }
    Ok(TapSlot::None)
}

/// Reads `/proc/<pid>/cmdline` with one read(2), which is atomic: between two calls the process may execute another program, and parts of
/// two command lines would be mixed.
fn read_cmdline(pid: u32) -> Result<Vec<u8>, Error> {
    let path = format!("/proc/{pid}/cmdline");
    let read_once = || -> io::Result<Vec<u8>> {
        let mut file = File::open(&path)?;
        let mut bytes = vec![0; AT_ONCE];
        let length = file.read(&mut bytes)?;
        bytes.truncate(length);
        if length == AT_ONCE {
            file.read_to_end(&mut bytes)?;
        }
        Ok(bytes)
    };
    match read_once() {
        Ok(bytes) => Ok(bytes),
        Err(error) if Kind::of(&error) == Kind::Absent => Ok(Vec::new()),
        Err(error) => Err(Error::io("read", path, error)),
    }
}

fn read(pid: u32, what: &str) -> Result<Option<Vec<u8>>, Error> {
    let path = format!("/proc/{pid}/{what}");
    let read_all = || -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        File::open(&path)?.read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    match read_all() {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if Kind::of(&error) == Kind::Absent => Ok(None),
        Err(error) => Err(Error::io("read", path, error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_source_of_the_topmost_root_mount_is_read() {
        let mounts = b"30 1 0:1 / / rw - ext4 /dev/vda rw\n\
            31 30 0:2 / / rw,nosuid master:3 - tmpfs A=1\\012B=two\\040words\\134 rw,size=1m\n\
            32 31 0:3 / /proc rw - proc proc rw\n";
        let source = root_source(mounts).unwrap();
        assert_eq!(
            source,
            labels(&[("A", "1"), ("B", "two words\\")]).as_bytes()
        );
        assert_eq!(root_source(b"1 2 3 4 /x rw - a b c"), None);
        assert_eq!(root_source(b"1 2 3 4 / rw"), None);
        assert_eq!(plain(b"\\9ab\\01"), b"\\9ab\\01");
    }
}
