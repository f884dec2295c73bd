//! The sockets that `vm port-forward` listens on.
//! Out of scope: connections.

use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream as StdStream;
use std::path::{Path, PathBuf};

use tokio::net::{TcpListener, UnixListener};

use super::super::super::failure::Failure;
use super::bridge::Connection;
use super::spec::Listen;

/// A listening socket.
pub(super) enum Listener {
    Tcp(TcpListener),
    Unix(UnixSocket),
}

/// A Unix socket; its file is removed when it is dropped, unless it was replaced.
pub(super) struct UnixSocket {
    listener: UnixListener,
    path: PathBuf,
    inode: u64,
}

impl Listener {
    pub(super) async fn open(listen: &Listen) -> Result<Self, Failure> {
        match listen {
            Listen::Tcp { address, port } => {
                let bound = TcpListener::bind((address.as_str(), *port)).await;
                bound.map(Self::Tcp).map_err(|error| {
                    Failure::one(format!("cannot listen on {address} port {port}: {error}"))
                })
            }
            Listen::Unix(path) => open_unix(path).map(Self::Unix).map_err(|error| {
                Failure::one(format!("cannot listen on {}: {error}", path.display()))
            }),
        }
    }

    pub(super) async fn accept(&self) -> io::Result<Connection> {
        match self {
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                // Each message is sent when it is received.
                stream.set_nodelay(true)?;
                Ok(Connection::Tcp(stream))
            }
            Self::Unix(socket) => Ok(Connection::Unix(socket.listener.accept().await?.0)),
        }
    }
}

/// `127.0.0.1:8080`, or the path.
impl fmt::Display for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(listener) => match listener.local_addr() {
                Ok(address) => write!(f, "{address}"),
                Err(_) => f.write_str("an unknown address"),
            },
            Self::Unix(socket) => write!(f, "{}", socket.path.display()),
        }
    }
}

/// Binds a Unix socket for this user only. The socket of a process that has ended is replaced; any other file is an error.
fn open_unix(path: &Path) -> io::Result<UnixSocket> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
        Ok(found) if found.file_type().is_socket() => match StdStream::connect(path) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                fs::remove_file(path)?
            }
            Err(error) => return Err(error),
            Ok(_) => return Err(io::Error::other("another process listens on it")),
        },
        Ok(_) => return Err(io::Error::other("the file exists and is not a socket")),
    }
    // bind(2) creates the file with the mode of the umask: nobody else may connect before the mode is set.
    let umask = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
    let bound = UnixListener::bind(path);
    rustix::process::umask(umask);
    let listener = bound?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(UnixSocket {
        listener,
        path: path.to_owned(),
        inode: fs::symlink_metadata(path)?.ino(),
    })
}

impl Drop for UnixSocket {
    fn drop(&mut self) {
        let is_ours = fs::symlink_metadata(&self.path).is_ok_and(|meta| meta.ino() == self.inode);
        if is_ours {
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_unix_socket_is_of_this_user_and_replaces_only_one_of_an_ended_process() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let open = async || Listener::open(&Listen::Unix(path.clone())).await;
        let first = open().await.unwrap_or_else(|_| panic!("it is free"));
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(open().await.is_err(), "another listens");
        drop(first);
        assert!(!path.exists());
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(open().await.is_ok(), "nobody listens");
        fs::write(&path, "precious").unwrap();
        assert!(open().await.is_err(), "a file");
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }
}
