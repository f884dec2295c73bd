//! Files and directories, written atomically.
//! Out of scope: the desired state.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rustix::fs::IFlags;
use rustix::mount::UnmountFlags;
use serde::de::DeserializeOwned;

use super::error::absent_is_done;
use super::{Error, Kind};

/// Whether a file must survive a power failure, or only a crash of the daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// Survives the writing process: sufficient below `/run`.
    Process,
    /// Survives a power failure: `fsync` of the file and of its directory.
    Disk,
}

/// What exists at a path where a directory is expected. Symbolic links are not followed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Dir {
    /// Nothing.
    Absent,
    /// A directory, with the names in it, sorted.
    Present(Vec<String>),
    /// Another type of file.
    NotADirectory,
}

/// Writes `path` atomically: a temporary file in the same directory, then a rename, so that no reader sees a partial file.
/// `mode` is the file's permissions, e.g. `0o600`.
pub fn write(path: &Path, bytes: &[u8], mode: u32, durability: Durability) -> Result<(), Error> {
    let temp = temp_path(path);
    let written = write_temp(&temp, bytes, mode, durability)
        .and_then(|()| fs::rename(&temp, path))
        .and_then(|()| match durability {
            Durability::Process => Ok(()),
            Durability::Disk => File::open(parent(path))?.sync_all(),
        });
    written.map_err(|error| {
        // The draft is not needed any more; the first error is the one to return.
        let _ = fs::remove_file(&temp);
        Error::io("write", shown(path), error)
    })
}

fn write_temp(temp: &Path, bytes: &[u8], mode: u32, durability: Durability) -> io::Result<()> {
    // Left by a crash, or created by another user who may write here: it must not become the new file.
    match fs::remove_file(temp) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .custom_flags(libc::O_NOFOLLOW)
        .open(temp)?;
    file.write_all(bytes)?;
    match durability {
        Durability::Process => Ok(()),
        Durability::Disk => file.sync_all(),
    }
}

/// `.<name>.new` in the same directory, so that the rename stays within one file system.
fn temp_path(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.new"))
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// The whole file, or `None` if it does not exist. Does not block if it is a FIFO.
pub fn read(path: &Path) -> Result<Option<Vec<u8>>, Error> {
    let read_all = || -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let mut file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(path)?;
        file.read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    match read_all() {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) => absent_is_none(Error::io("read", shown(path), error)),
    }
}

/// The whole file as text (invalid UTF-8 is replaced), or `None` if it does not exist.
pub fn read_text(path: &Path) -> Result<Option<String>, Error> {
    Ok(read(path)?.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
}

/// A JSON file of the daemon; `None` if it does not exist.
///
/// # Errors
/// It cannot be read; or [`Undecodable`](Kind::Undecodable).
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, Error> {
    let Some(bytes) = read(path)? else {
        return Ok(None);
    };
    let decoded = serde_json::from_slice(&bytes);
    decoded
        .map(Some)
        .map_err(|error| Error::undecodable(shown(path), error))
}

/// As [`read_json`], where nothing may depend on a record that cannot be decoded: it is reported in the log and counts as absent.
pub fn read_json_or_ignore<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, Error> {
    match read_json(path) {
        Err(error) if error.kind == Kind::Undecodable => {
            tracing::warn!(%error, "a record is ignored");
            Ok(None)
        }
        other => other,
    }
}

/// At most the last `limit` bytes, as text; `None` if the file does not exist. Another user who may write in the directory cannot make
/// this read another file or block: see [`open_regular`].
pub fn tail(path: &Path, limit: u64) -> Result<Option<String>, Error> {
    let read_end = || -> io::Result<Vec<u8>> {
        let mut file = open_regular(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(limit)))?;
        let mut bytes = Vec::new();
        file.take(limit).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    match read_end() {
        Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
        Err(error) => absent_is_none(Error::io("read the end of", shown(path), error)),
    }
}

/// Opens a file in a directory that others may write to: does not follow symbolic links, and fails unless it is a regular file.
pub fn open_regular(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::other("not a regular file")),
    }
}

/// Creates a FIFO that only root can open, in place of an existing file, and opens it for reading and writing: while it is open, no
/// reader gets end-of-file and no writer is without a reader (fifo(7)).
pub fn create_fifo(path: &Path) -> io::Result<File> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let (mode, kind) = (
        rustix::fs::Mode::from_raw_mode(0o600),
        rustix::fs::FileType::Fifo,
    );
    rustix::fs::mknodat(rustix::fs::CWD, path, kind, mode, 0)?;
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)
}

/// What exists at `path`, without following a symbolic link.
pub fn read_dir(path: &Path) -> Result<Dir, Error> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => {}
        Ok(_) => return Ok(Dir::NotADirectory),
        Err(error) => {
            let absent = absent_is_none::<()>(Error::io("stat", shown(path), error))?;
            debug_assert!(absent.is_none());
            return Ok(Dir::Absent);
        }
    }
    let list = || -> io::Result<Vec<String>> {
        let mut names = fs::read_dir(path)?
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect::<io::Result<Vec<_>>>()?;
        names.sort();
        Ok(names)
    };
    match list() {
        Ok(names) => Ok(Dir::Present(names)),
        Err(error) => {
            Ok(absent_is_none(Error::io("list", shown(path), error))?.unwrap_or(Dir::Absent))
        }
    }
}

/// Creates a directory and its parents; existing ones are not changed.
pub fn make_dir(path: &Path, mode: u32) -> Result<(), Error> {
    DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(path)
        .map_err(|error| Error::io("create directory", shown(path), error))
}

/// Removes a file. It is not an error if the file does not exist.
pub fn remove(path: &Path) -> Result<(), Error> {
    absent_is_done(fs::remove_file(path).map_err(|error| Error::io("remove", shown(path), error)))
}

/// Removes a file of the daemon, even if removal was prevented: mounts on it are detached (processes that use them keep them), and the
/// immutable and append-only attributes (`chattr +i`, `+a`) are cleared. It is not an error if the file does not exist.
pub fn force_remove(path: &Path) -> Result<(), Error> {
    match remove(path) {
        Err(error) if matches!(error.kind, Kind::Busy | Kind::Denied) => {
            free(path)?;
            remove(path)
        }
        removed => removed,
    }
}

/// The same for a directory, as [`remove_empty_dir`].
pub fn force_remove_empty_dir(path: &Path) -> Result<(), Error> {
    match remove_empty_dir(path) {
        Err(error) if matches!(error.kind, Kind::Busy | Kind::Denied) => {
            free(path)?;
            remove_empty_dir(path)
        }
        removed => removed,
    }
}

/// Detaches mounts from a path of the daemon, and makes the path and its directory changeable.
pub fn free(path: &Path) -> Result<(), Error> {
    let fail = |error: io::Error| Error::io("make removable", shown(path), error);
    // There may be several mounts on top of each other; EINVAL: none is left.
    loop {
        let flags = UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
        match rustix::mount::unmount(path, flags) {
            Ok(()) => {}
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => break,
            Err(error) => return Err(fail(error.into())),
        }
    }
    for path in [parent(path), path] {
        match clear_immutable(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(fail(error)),
            Ok(()) | Err(_) => {}
        }
    }
    Ok(())
}

/// Clears the attributes of ioctl_iflags(2) that prevent changes to a file or directory.
fn clear_immutable(path: &Path) -> io::Result<()> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)?;
    let immutable = IFlags::IMMUTABLE | IFlags::APPEND;
    match rustix::fs::ioctl_getflags(&file) {
        Ok(flags) if flags.intersects(immutable) => {
            rustix::fs::ioctl_setflags(&file, flags.difference(immutable))?;
            Ok(())
        }
        // Not every file system supports these attributes.
        Ok(_) | Err(_) => Ok(()),
    }
}

/// Removes the temporary file that a crash in [`write()`] of this file may have left.
pub fn remove_temp(path: &Path) -> Result<(), Error> {
    remove(&temp_path(path))
}

/// Removes a directory if it is empty. It is not an error if it is not empty or does not exist.
pub fn remove_empty_dir(path: &Path) -> Result<(), Error> {
    match fs::remove_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
        other => {
            absent_is_done(other.map_err(|error| Error::io("remove directory", shown(path), error)))
        }
    }
}

/// The kernel's ID of the current boot (`/proc/sys/kernel/random/boot_id`, a UUID).
/// It cannot change while the process runs, so it is read once.
pub fn boot_id() -> Result<&'static str, Error> {
    const PATH: &str = "/proc/sys/kernel/random/boot_id";
    static BOOT_ID: OnceLock<String> = OnceLock::new();
    if let Some(cached) = BOOT_ID.get() {
        return Ok(cached);
    }
    let text = fs::read_to_string(PATH).map_err(|error| Error::io("read", PATH, error))?;
    Ok(BOOT_ID.get_or_init(|| text.trim().to_owned()))
}

fn absent_is_none<T>(error: Error) -> Result<Option<T>, Error> {
    match error.kind {
        Kind::Absent => Ok(None),
        Kind::Exists | Kind::Busy | Kind::Denied | Kind::Undecodable | Kind::Other => Err(error),
    }
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_written_atomically_and_leaves_no_draft() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        write(&path, b"one", 0o600, Durability::Process).unwrap();
        write(&path, b"two", 0o600, Durability::Disk).unwrap();
        assert_eq!(read_text(&path).unwrap().as_deref(), Some("two"));
        assert_eq!(
            read_dir(dir.path()).unwrap(),
            Dir::Present(vec!["a".into()])
        );
        assert_eq!(tail(&path, 2).unwrap().as_deref(), Some("wo"));
    }

    #[test]
    fn a_failed_write_leaves_the_old_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        fs::create_dir(&path).unwrap();
        let error = write(&path, b"one", 0o600, Durability::Process).unwrap_err();
        assert_eq!(error.kind, Kind::Other, "the path is a directory");
        assert_eq!(
            read_dir(dir.path()).unwrap(),
            Dir::Present(vec!["a".into()])
        );
    }

    #[test]
    fn links_and_pipes_of_other_users_are_neither_read_nor_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let (secret, path) = (dir.path().join("secret"), dir.path().join("log"));
        fs::write(&secret, "key").unwrap();
        std::os::unix::fs::symlink(&secret, &path).unwrap();
        assert!(tail(&path, 9).is_err(), "a link");
        fs::remove_file(&path).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &path,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RWXU,
            0,
        )
        .unwrap();
        assert!(tail(&path, 9).is_err(), "a pipe");
        let temp = dir.path().join(".a.new");
        fs::hard_link(&secret, &temp).unwrap();
        write(&dir.path().join("a"), b"ours", 0o600, Durability::Process).unwrap();
        assert_eq!(
            fs::read(&secret).unwrap(),
            b"key",
            "a link at the draft's path"
        );
    }

    #[test]
    fn absent_and_unreadable_files_are_distinguished() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        assert_eq!(read(&path).unwrap(), None);
        assert_eq!(read_dir(&path).unwrap(), Dir::Absent);
        remove(&path).unwrap();
        remove_empty_dir(&path).unwrap();
        assert!(read(dir.path()).is_err(), "a directory cannot be read");
        std::os::unix::fs::symlink(dir.path(), &path).unwrap();
        assert_eq!(read_dir(&path).unwrap(), Dir::NotADirectory);
    }
}
