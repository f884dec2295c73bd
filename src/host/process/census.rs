//! What a running process reports about itself through `/proc`, and finding processes by it.
//! Out of scope: the owner of a process. A process may report anything: what it cannot forge is in [`super::Origin`].
//!
//! # Marks
//! Variables of the environment that [`super::spawn`] started it with. A jailer clears that: a jailed process has the same variables in the
//! source of its root file system (`super::jail`), one per line. These are read if the environment does not contain the variable.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::Identity;
use crate::host::{Error, Kind};

/// In the environment of every process that [`super::spawn`] starts: the number of our mount namespace. A confined one has another
/// of its own.
pub(super) const MOUNTS_VAR: &str = "SLICE_MOUNTS";

/// Bytes: more than the environment of any VMM.
const AT_ONCE: usize = 32 << 10;

/// A process that bears the mark that was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Which.
    pub identity: Identity,
    /// Its value.
    pub value: String,
}

/// A process' hold on a TAP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TapSlot {
    /// It has not opened `/dev/net/tun`.
    None,
    /// It is attached to the link of this name.
    Attached(String),
    /// It was attached, and the link is gone: no packet will ever pass again.
    Orphaned,
}

/// All live processes of this host that bear this mark. This host is whoever shares
/// our mount namespace, or was started from it: two hosts in namespaces of one machine may keep their state under the same path and so have the
/// same name, but not the same mounts. One pass over `/proc`, about 10 µs a process.
pub fn find(variable: &str) -> Result<Vec<Found>, Error> {
    let our_mounts = our_mounts()?;
    let wrap = |error| Error::io("list the processes in", "/proc", error);
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").map_err(wrap)? {
        let name = entry.map_err(wrap)?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        // One that ends while we look is not there; one that is not ours to read carries no mark of ours.
        let Ok(Some(value)) = env_var(pid, variable) else {
            continue;
        };
        let born_here = || {
            let told = env_var(pid, MOUNTS_VAR).ok().flatten();
            told.is_some_and(|told| told == our_mounts.to_string())
        };
        if mounts_of(&pid.to_string()).ok() != Some(our_mounts) && !born_here() {
            continue;
        }
        if let Some(identity) = Identity::of(pid)? {
            found.push(Found { identity, value });
        }
    }
    Ok(found)
}

/// The number of our own mount namespace.
pub(super) fn our_mounts() -> Result<u64, Error> {
    mounts_of("thread-self")
}

/// The number of a process' mount namespace.
fn mounts_of(process: &str) -> Result<u64, Error> {
    let path = format!("/proc/{process}/ns/mnt");
    let found = fs::metadata(&path).map_err(|error| Error::io("look at", path, error))?;
    Ok(found.ino())
}

/// The value of `variable` in the environment that the process was started with, or on the root of its jail; `None` if unset or the
/// process is gone.
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
    let told = environ.split(|byte| *byte == 0).find_map(value);
    // Few have no environment at all: the kernel's own, which have no words either, and what is in a jail.
    if told.is_some() || environ.iter().any(|byte| *byte != 0) || argv(pid)?.is_empty() {
        return Ok(told);
    }
    // Its mounts cannot be read any more when it is about to end (EINVAL).
    let mounts = read(pid, "mountinfo").ok().flatten().unwrap_or_default();
    let root = root_source(&mounts).unwrap_or_default();
    Ok(root.split(|byte| *byte == b'\n').find_map(value))
}

/// What a root file system is to be called, so that [`env_var`] finds this in it.
pub(super) fn marks(env: &[(&str, &str)]) -> String {
    let lines = env.iter().map(|(name, value)| format!("{name}={value}"));
    lines.collect::<Vec<_>>().join("\n")
}

/// Of the topmost mount at `/` (proc_pid_mountinfo(5)): six fields, some more, a dash, then its type, then its source.
pub(super) fn root_source(mountinfo: &[u8]) -> Option<Vec<u8>> {
    let lines = mountinfo.split(|byte| *byte == b'\n');
    let mut fields = lines.map(|line| line.split(|byte| *byte == b' '));
    let root = fields.rfind(|fields| fields.clone().nth(4) == Some(b"/"))?;
    let source = root.skip_while(|field| field != b"-").nth(2)?;
    Some(plain(source))
}

/// Blanks, line ends and backslashes are shown as `\` and three octal digits.
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

/// The program and arguments that the process was started with; empty if it is gone.
pub fn argv(pid: u32) -> Result<Vec<String>, Error> {
    let line = words(pid)?;
    let line = line.strip_suffix(&[0]).unwrap_or(&line);
    if line.is_empty() {
        return Ok(Vec::new());
    }
    Ok(line
        .split(|byte| *byte == 0)
        .map(|word| String::from_utf8_lossy(word).into_owned())
        .collect())
}

/// Whether the process lives in the network namespace that is mounted at `netns`. `false` if either is gone.
pub fn shares_netns(pid: u32, netns: &Path) -> Result<bool, Error> {
    let own = format!("/proc/{pid}/ns/net");
    let inode = |path: &Path| match fs::metadata(path) {
        Ok(found) => Ok(Some((found.dev(), found.ino()))),
        Err(error) => match Kind::of(&error) {
            Kind::Absent => Ok(None),
            Kind::Exists | Kind::Busy | Kind::Denied | Kind::Other => Err(Error::io(
                "look at namespace",
                path.display().to_string(),
                error,
            )),
        },
    };
    let (own, wanted) = (inode(Path::new(&own))?, inode(netns)?);
    Ok(own.is_some() && own == wanted)
}

/// Which TAP the process holds: the `iff:` line of a tun descriptor in `/proc/<pid>/fdinfo` (drivers/net/tun.c,
/// `tun_chr_show_fdinfo`), which is empty once the device was unregistered.
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
        // Closed since: not a hold.
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

/// What one call reads is of one moment: between two the process may become another program (exec), whose words would cut off, or
/// follow, those of the one before.
fn words(pid: u32) -> Result<Vec<u8>, Error> {
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
    fn what_a_root_is_called_is_read_off_the_topmost_mount_at_slash() {
        let mounts = b"30 1 0:1 / / rw - ext4 /dev/vda rw\n\
            31 30 0:2 / / rw,nosuid master:3 - tmpfs A=1\\012B=two\\040words\\134 rw,size=1m\n\
            32 31 0:3 / /proc rw - proc proc rw\n";
        let source = root_source(mounts).unwrap();
        assert_eq!(
            source,
            marks(&[("A", "1"), ("B", "two words\\")]).as_bytes()
        );
        assert_eq!(root_source(b"1 2 3 4 /x rw - a b c"), None);
        assert_eq!(root_source(b"1 2 3 4 / rw"), None);
        assert_eq!(plain(b"\\9ab\\01"), b"\\9ab\\01");
    }
}
