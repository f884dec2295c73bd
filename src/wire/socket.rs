//! The listening socket with its mode and group, and the peer of each connection.
//! Out of scope: the requests on a connection.
//!
//! # Why
//! `bind(2)` creates the file with the mode of the umask, and a later `chmod` would leave it accessible to others in between. So the socket
//! is bound under another name in the same directory, its mode and group are set, and it is renamed. The rename also replaces the socket
//! of a daemon that has exited. A connect(2) to the old socket comes first, so that two running daemons never use the same path.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown};
use std::os::unix::net::UnixStream as StdStream;
use std::path::{Path, PathBuf};

use tokio::net::{UnixListener, UnixStream};

/// A listening socket. Dropping it removes its file, unless the file has been replaced.
#[derive(Debug)]
pub struct Listener {
    listener: UnixListener,
    path: PathBuf,
    inode: u64,
    group: u32,
}

/// The operation on the socket that failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {doing} the socket {}", path.display())]
pub struct ListenerError {
    doing: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// The peer of a connection at the time of its `connect(2)` (unix(7), `SO_PEERCRED`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// User id.
    pub uid: u32,
    /// Process id, if the process is visible in our PID namespace.
    pub pid: Option<i32>,
    /// Whether the peer is root, our own user, or a member of the socket's group.
    pub is_permitted: bool,
}

impl Listener {
    /// Binds `path` with mode 0660 and the given group, or our own group if that does not exist. Replaces the socket of a
    /// daemon that has exited; any other file at `path` is an error. Must run in a tokio runtime.
    pub fn open(path: &Path, group: &str) -> Result<Self, ListenerError> {
        let socket_error = |doing| {
            move |source| ListenerError {
                doing,
                path: path.to_owned(),
                source,
            }
        };
        ensure_free(path).map_err(socket_error("create"))?;
        let temporary = temporary_path(path);
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(socket_error("replace")(error));
            }
            _ => {}
        }
        let bound = UnixListener::bind(&temporary).or_else(|error| match error.kind() {
            // The directory has no space for one more file. No process listens on the old socket, so its file is removed.
            io::ErrorKind::StorageFull => {
                fs::remove_file(path)?;
                UnixListener::bind(&temporary)
            }
            _ => Err(error),
        });
        let listener = bound.map_err(socket_error("bind"))?;
        let opened = set_group_and_mode(&temporary, group)
            .map_err(socket_error("set the mode and group of"))
            .and_then(|meta| {
                fs::rename(&temporary, path).map_err(socket_error("rename"))?;
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
                let _ = fs::remove_file(&temporary);
                Err(error)
            }
        }
    }

    /// The path of the socket.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Accepts the next connection and determines its peer.
    ///
    /// # Errors
    /// The errors of accept(2), for example EMFILE.
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
                is_permitted: cred.uid() == 0
                    || cred.uid() == rustix::process::geteuid().as_raw()
                    || cred.gid() == self.group
                    || cred
                        .pid()
                        .is_some_and(|pid| has_group(pid, cred.uid(), self.group)),
            },
            // A peer without readable credentials is not permitted.
            Err(_) => Peer {
                uid: u32::MAX,
                pid: None,
                is_permitted: false,
            },
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let is_ours = fs::symlink_metadata(&self.path).is_ok_and(|meta| meta.ino() == self.inode);
        if is_ours {
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl Peer {
    /// Whether the peer is root or the daemon's own user: connections are reserved for them.
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
        let message = "the file exists and is not a socket";
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, message));
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
            "another sliced is listening on it",
        )),
    }
}

fn temporary_path(path: &Path) -> PathBuf {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(format!(".{}", std::process::id()));
    path.with_file_name(name)
}

/// Sets the group before the mode, so that no other group gets the rights meant for this one. If the group cannot be set (we are neither
/// root nor a member, or it is not mapped in our user namespace), fewer users have access, so this is not an error.
fn set_group_and_mode(path: &Path, group: &str) -> io::Result<fs::Metadata> {
    match group_id(group) {
        Some(gid) => {
            if let Err(error) = chown(path, None, Some(gid)) {
                tracing::warn!(group, %error, "cannot set the group of the socket");
            }
        }
        None => tracing::debug!(
            group,
            "group not found: the socket has the daemon's own group"
        ),
    }
    fs::set_permissions(path, fs::Permissions::from_mode(0o660))?;
    fs::symlink_metadata(path)
}

/// Reads the group id from group(5). Groups of a directory service must be specified by id.
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

/// Whether the process has `gid` among its supplementary groups (proc_pid_status(5)). The process may have exited since
/// it connected and its pid may have been reused; so the process must at least have the same user.
fn has_group(pid: i32, uid: u32, gid: u32) -> bool {
    let Ok(status) = fs::read_to_string(format!("/proc/{pid}/status")) else {
        return false;
    };
    let ids = |key: &str| -> Vec<u32> {
        status
            .lines()
            .find_map(|line| line.strip_prefix(key))
            .map(|values| {
                values
                    .split_whitespace()
                    .filter_map(|n| n.parse().ok())
                    .collect()
            })
            .unwrap_or_default()
    };
    ids("Uid:").contains(&uid) && ids("Groups:").contains(&gid)
}
