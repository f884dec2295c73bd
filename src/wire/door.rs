//! The listening socket: the wrong people can open it at no moment; and the peer of each connection.
//! Out of scope: the requests on a connection.
//!
//! # Why
//! `bind(2)` makes the file with the umask's mode, and `chmod` comes later; so the socket is bound under another name in
//! the same directory, given its mode and group there, and renamed. The rename also replaces a dead daemon's socket in
//! one step. That nobody answers on the old one is asked first: two live daemons never share a path.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown};
use std::os::unix::net::UnixStream as StdStream;
use std::path::{Path, PathBuf};

use tokio::net::{UnixListener, UnixStream};

/// A listening socket. The file goes with it, unless another has taken its place.
#[derive(Debug)]
pub struct Door {
    listener: UnixListener,
    path: PathBuf,
    inode: u64,
    group: u32,
}

/// What we were doing to the socket when it failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {doing} the socket {}", path.display())]
pub struct DoorError {
    doing: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// Who is on the other end of a connection, as the kernel saw it at `connect(2)` (unix(7), `SO_PEERCRED`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its user.
    pub uid: u32,
    /// Its process, when it is in a process namespace that we see.
    pub pid: Option<i32>,
    /// Root, our own user, or in the socket's group.
    pub admitted: bool,
}

impl Door {
    /// Binds `path`, mode 0660, for `group` when such a group exists and else for our own. Replaces the socket of a
    /// daemon that is gone; anything else at `path` is an error. Must run inside a tokio runtime.
    pub fn open(path: &Path, group: &str) -> Result<Self, DoorError> {
        let fail = |doing| {
            move |source| DoorError {
                doing,
                path: path.to_owned(),
                source,
            }
        };
        ensure_free(path).map_err(fail("take"))?;
        let cradle = cradle(path);
        match fs::remove_file(&cradle) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(fail("replace")(error));
            }
            _ => {}
        }
        let bound = UnixListener::bind(&cradle).or_else(|error| match error.kind() {
            // The directory has no space for one more file. Nobody answers on the old socket, so its file is removed.
            io::ErrorKind::StorageFull => {
                fs::remove_file(path)?;
                UnixListener::bind(&cradle)
            }
            _ => Err(error),
        });
        let listener = bound.map_err(fail("bind"))?;
        let opened = dress(&cradle, group)
            .map_err(fail("set the mode and group of"))
            .and_then(|meta| {
                fs::rename(&cradle, path).map_err(fail("put into place"))?;
                Ok(meta)
            });
        match opened {
            Ok(meta) => Ok(Self {
                listener,
                path: path.to_owned(),
                inode: meta.ino(),
                group: meta.gid(),
            }),
            Err(error) => {
                let _ = fs::remove_file(&cradle);
                Err(error)
            }
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The next connection, and its peer.
    ///
    /// # Errors
    /// accept(2)'s, EMFILE and its like among them.
    pub async fn accept(&self) -> io::Result<(UnixStream, Peer)> {
        let (stream, _) = self.listener.accept().await?;
        let peer = self.peer(&stream);
        Ok((stream, peer))
    }

    fn peer(&self, stream: &UnixStream) -> Peer {
        match stream.peer_cred() {
            Ok(cred) => Peer {
                uid: cred.uid(),
                pid: cred.pid(),
                admitted: cred.uid() == 0
                    || cred.uid() == rustix::process::geteuid().as_raw()
                    || cred.gid() == self.group
                    || cred
                        .pid()
                        .is_some_and(|pid| has_group(pid, cred.uid(), self.group)),
            },
            // Who cannot be seen is not let in.
            Err(_) => Peer {
                uid: u32::MAX,
                pid: None,
                admitted: false,
            },
        }
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path).is_ok_and(|meta| meta.ino() == self.inode);
        if ours {
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl Peer {
    /// Root or the daemon's own user: places are kept for them.
    pub fn is_privileged(&self) -> bool {
        self.uid == 0 || self.uid == rustix::process::geteuid().as_raw()
    }
}

fn ensure_free(path: &Path) -> io::Result<()> {
    let meta = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    if !meta.file_type().is_socket() {
        let what = "something that is no socket is there";
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, what));
    }
    match StdStream::connect(path) {
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound
            ) =>
        {
            Ok(())
        }
        Err(error) => Err(error),
        Ok(_) => Err(io::Error::new(
            io::ErrorKind::AddrInUse,
            "another sliced answers on it",
        )),
    }
}

fn cradle(path: &Path) -> PathBuf {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(format!(".{}", std::process::id()));
    path.with_file_name(name)
}

/// Group before mode: the group must not gain rights that were meant for another. A group that cannot be given (we are
/// not root and not in it, or it has no number in our user namespace) lets fewer people in, so it does not stop us.
fn dress(path: &Path, group: &str) -> io::Result<fs::Metadata> {
    match group_id(group) {
        Some(gid) => {
            if let Err(error) = chown(path, None, Some(gid)) {
                tracing::warn!(group, %error, "cannot give the socket to its group");
            }
        }
        None => tracing::debug!(group, "no such group: the socket is for our own alone"),
    }
    fs::set_permissions(path, fs::Permissions::from_mode(0o660))?;
    fs::symlink_metadata(path)
}

/// From group(5). Groups of a directory service are given by number.
fn group_id(name: &str) -> Option<u32> {
    if let Ok(gid) = name.parse() {
        return Some(gid);
    }
    let text = fs::read_to_string("/etc/group").ok()?;
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(name)).then(|| fields.nth(1)?.parse().ok())?
    })
}

/// Whether the process has `gid` among its supplementary groups (proc_pid_status(5)). The process may have ended since
/// it connected and its number gone to another; so that one must at least be the same user's.
fn has_group(pid: i32, uid: u32, gid: u32) -> bool {
    let Ok(status) = fs::read_to_string(format!("/proc/{pid}/status")) else {
        return false;
    };
    let numbers = |key: &str| -> Vec<u32> {
        status
            .lines()
            .find_map(|line| line.strip_prefix(key))
            .map(|rest| {
                rest.split_whitespace()
                    .filter_map(|n| n.parse().ok())
                    .collect()
            })
            .unwrap_or_default()
    };
    numbers("Uid:").contains(&uid) && numbers("Groups:").contains(&gid)
}
