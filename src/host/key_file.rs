//! Files of keys, tokens and certificates, which decide who may do what; random bytes for new ones.
//! Out of scope: what the files contain.

use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

/// Who may have access to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Its owner only, who is root or the user of this process: it contains a secret.
    Owner,
    /// Others, too: a certificate.
    Others,
}

/// Why a file is not used. The text contains nothing of the file.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// A directory, a FIFO, a socket or a device.
    #[error("it is not a file")]
    NotAFile,
    /// Other users may read or write it: its mode.
    #[error("others may access it (mode {0:04o}); chmod 0600 it")]
    Accessible(u32),
    /// It belongs to this user, who can change it.
    #[error("it belongs to user {0}, expected root")]
    Owner(u32),
    /// The limit, in bytes.
    #[error("it is larger than {0} bytes")]
    TooLarge(u64),
    /// It cannot be read.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// The content of a file of at most `limit` bytes; `None` if it does not exist.
///
/// # Errors
/// It is no file, is too large, is accessible to users who must not have access, or cannot be read.
pub fn read(path: &Path, access: Access, limit: u64) -> Result<Option<Vec<u8>>, KeyFileError> {
    let opened = OpenOptions::new()
        .read(true)
        // A FIFO must not block.
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open(path);
    let file = match opened {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        // A socket cannot be opened at all.
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => {
            return Err(KeyFileError::NotAFile);
        }
        Err(error) => return Err(error.into()),
    };
    let meta = file.metadata()?;
    if !meta.is_file() {
        return Err(KeyFileError::NotAFile);
    }
    if access == Access::Owner {
        if meta.mode() & 0o077 != 0 {
            return Err(KeyFileError::Accessible(meta.mode() & 0o7777));
        }
        let own = rustix::process::geteuid().as_raw();
        if meta.uid() != 0 && meta.uid() != own {
            return Err(KeyFileError::Owner(meta.uid()));
        }
    }
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes)?;
    match bytes.len() as u64 > limit {
        true => Err(KeyFileError::TooLarge(limit)),
        false => Ok(Some(bytes)),
    }
}

/// Random bytes of the kernel, getrandom(2).
///
/// # Errors
/// The kernel has none.
pub fn random<const SIZE: usize>() -> io::Result<[u8; SIZE]> {
    let mut bytes = [0; SIZE];
    let mut rest = bytes.as_mut_slice();
    while !rest.is_empty() {
        // A signal may interrupt it.
        let flags = rustix::rand::GetRandomFlags::empty();
        match rustix::rand::getrandom(&mut *rest, flags) {
            Ok(count) => rest = &mut rest[count..],
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn a_file_is_read_only_if_nobody_else_may_access_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        fs::write(&path, "hunter2").unwrap();
        for (mode, limit, owner, others) in [
            (0o600, 7, None, None),
            (0o400, 7, None, None),
            (0o640, 7, Some("others may access it (mode 0640)"), None),
            (0o604, 7, Some("others may access it (mode 0604)"), None),
            (0o602, 7, Some("others may access it (mode 0602)"), None),
            (0o600, 6, Some("larger than 6"), Some("larger than 6")),
        ] {
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            for (access, expected) in [(Access::Owner, owner), (Access::Others, others)] {
                let read = read(&path, access, limit);
                match expected {
                    None => assert_eq!(read.unwrap().as_deref(), Some(&b"hunter2"[..])),
                    Some(expected) => {
                        let error = read.unwrap_err().to_string();
                        assert!(error.contains(expected), "{expected}: {error}");
                    }
                }
            }
        }
        let absent = read(&dir.path().join("absent"), Access::Owner, 7);
        assert!(absent.unwrap().is_none());
    }

    #[test]
    fn what_is_not_a_file_is_refused_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        let socket = dir.path().join("socket");
        let _listener = UnixListener::bind(&socket).unwrap();
        let device = Path::new("/dev/zero");
        for path in [dir.path(), &fifo, &socket, device] {
            for access in [Access::Owner, Access::Others] {
                let error = read(path, access, 7).unwrap_err().to_string();
                assert_eq!(error, "it is not a file", "{}", path.display());
            }
        }
    }

    #[test]
    fn random_bytes_differ() {
        let (first, second) = (random::<32>().unwrap(), random::<32>().unwrap());
        assert_ne!(first, second);
        assert_ne!(first, [0; 32]);
    }
}
