//! What requests do. Relative paths begin at the working directory, which is the home directory of the user.
//! Out of scope: packets as a whole.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::FileExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::RenameFlags;
use rustix::fs::{
    AtFlags, CWD, Dir, Gid, Mode, OFlags, Stat, StatVfs, Timespec, Timestamps, Uid, chmodat,
    chownat, fchmod, fchown, fstat, fstatvfs, fsync, ftruncate, futimens, linkat, lstat, mkdir,
    open, openat, rename, renameat_with, rmdir, stat, statat, statvfs, symlink, unlink, utimensat,
};
use rustix::io::Errno;

use super::attributes::{Attributes, line};
use super::handles::{Handle, Handles};
use super::packet::Reader;
use super::{Answer, Failure, MAX_PACKET, MAX_READ, kind};

/// Flags of `open` (draft-ietf-secsh-filexfer-02, 6.3).
const READ: u32 = 1;
const WRITE: u32 = 2;
const APPEND: u32 = 4;
const CREATE: u32 = 8;
const TRUNCATE: u32 = 16;
const EXCLUSIVE: u32 = 32;

/// The maximum number of names in a response, and of their bytes with the lines of `ls`.
const MAX_NAMES: usize = 128;
const MAX_NAME_BYTES: usize = 64 << 10;

/// The state of a client.
#[derive(Debug, Default)]
pub struct Files {
    handles: Handles,
}

fn path<'p>(reader: &mut Reader<'p>) -> Result<&'p Path, Failure> {
    let bytes = reader.string()?;
    // An empty path is the working directory, as in OpenSSH.
    let bytes = if bytes.is_empty() { b"." } else { bytes };
    match bytes.contains(&0) {
        true => Err(Errno::INVAL.into()),
        false => Ok(Path::new(OsStr::from_bytes(bytes))),
    }
}

impl Files {
    /// Handles a request.
    pub fn handle(&mut self, kind: u8, reader: &mut Reader) -> Result<Answer, Failure> {
        match kind {
            kind::OPEN => self.open(reader),
            kind::CLOSE => self.handles.close(reader.string()?).map(|()| Answer::Done),
            kind::READ => self.read(reader),
            kind::WRITE => self.write(reader),
            kind::LSTAT => Ok(attributes(&lstat(path(reader)?)?)),
            kind::STAT => Ok(attributes(&stat(path(reader)?)?)),
            kind::FSTAT => Ok(attributes(&fstat(self.handles.get(reader.string()?)?)?)),
            kind::SETSTAT => set(path(reader)?, &Attributes::read(reader)?, AtFlags::empty()),
            kind::FSETSTAT => self.set_open(reader),
            kind::OPENDIR => self.open_directory(reader),
            kind::READDIR => self.read_directory(reader),
            kind::REMOVE => done(unlink(path(reader)?)),
            kind::MKDIR => {
                let (path, attributes) = (path(reader)?, Attributes::read(reader)?);
                done(mkdir(path, mode(&attributes, 0o777)))
            }
            kind::RMDIR => done(rmdir(path(reader)?)),
            kind::REALPATH => real_path(path(reader)?),
            kind::RENAME => done(rename_new(path(reader)?, path(reader)?)),
            kind::READLINK => {
                let target = fs::read_link(path(reader)?)?;
                Ok(name(target.into_os_string().into_vec()))
            }
            kind::SYMLINK => {
                // OpenSSH sends the target first, unlike the draft; all others do the same (PROTOCOL, 4.1).
                let (target, link) = (path(reader)?, path(reader)?);
                done(symlink(target, link))
            }
            kind::EXTENDED => {
                let name = reader.string()?;
                self.extended(name, reader)
            }
            _ => Err(Failure::Unsupported),
        }
    }

    fn extended(&mut self, name: &[u8], reader: &mut Reader) -> Result<Answer, Failure> {
        match name {
            b"posix-rename@openssh.com" => done(rename(path(reader)?, path(reader)?)),
            b"hardlink@openssh.com" => {
                let (target, link) = (path(reader)?, path(reader)?);
                done(linkat(CWD, target, CWD, link, AtFlags::empty()))
            }
            b"fsync@openssh.com" => done(fsync(self.handles.get(reader.string()?)?)),
            b"lsetstat@openssh.com" => {
                let (path, attributes) = (path(reader)?, Attributes::read(reader)?);
                set(path, &attributes, AtFlags::SYMLINK_NOFOLLOW)
            }
            b"statvfs@openssh.com" => Ok(file_system(&statvfs(path(reader)?)?)),
            b"fstatvfs@openssh.com" => {
                let handle = self.handles.get(reader.string()?)?;
                Ok(file_system(&fstatvfs(handle)?))
            }
            b"limits@openssh.com" => Ok(numbers(&[
                MAX_PACKET as u64,
                MAX_READ as u64,
                MAX_READ as u64,
                0,
            ])),
            b"expand-path@openssh.com" => expand(path(reader)?),
            _ => Err(Failure::Unsupported),
        }
    }

    fn open(&mut self, reader: &mut Reader) -> Result<Answer, Failure> {
        let (path, flags, attributes) = (path(reader)?, reader.u32()?, Attributes::read(reader)?);
        self.handles.check_limit()?;
        let has = |flag| flags & flag != 0;
        let mut open_flags = match (has(READ), has(WRITE)) {
            (true, true) => OFlags::RDWR,
            (false, true) => OFlags::WRONLY,
            _ => OFlags::RDONLY,
        };
        for (flag, of_system) in [
            (APPEND, OFlags::APPEND),
            (CREATE, OFlags::CREATE),
            (TRUNCATE, OFlags::TRUNC),
            (EXCLUSIVE, OFlags::EXCL),
        ] {
            open_flags.set(of_system, has(flag));
        }
        // A FIFO without a peer must not block all requests; a terminal must not become the server's.
        let open_flags = open_flags | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let file = File::from(open(path, open_flags, mode(&attributes, 0o666))?);
        Ok(Answer::Handle(
            self.handles.add(Handle::File(file, has(APPEND))),
        ))
    }

    fn read(&mut self, reader: &mut Reader) -> Result<Answer, Failure> {
        let handle = self.handles.get(reader.string()?)?;
        let (offset, length) = (reader.u64()?, reader.u32()? as usize);
        let Handle::File(file, _) = handle else {
            return Err(Errno::ISDIR.into());
        };
        let mut data = vec![0; length.min(MAX_READ)];
        let count = file.read_at(&mut data, offset)?;
        if count == 0 && length > 0 {
            return Err(Failure::Eof);
        }
        data.truncate(count);
        Ok(Answer::Data(data))
    }

    fn write(&mut self, reader: &mut Reader) -> Result<Answer, Failure> {
        let handle = self.handles.get(reader.string()?)?;
        let (offset, data) = (reader.u64()?, reader.string()?);
        let Handle::File(file, is_appended) = handle else {
            return Err(Errno::ISDIR.into());
        };
        match is_appended {
            true => std::io::Write::write_all(file, data)?,
            false => file.write_all_at(data, offset)?,
        }
        Ok(Answer::Done)
    }

    fn set_open(&mut self, reader: &mut Reader) -> Result<Answer, Failure> {
        let handle = self.handles.get(reader.string()?)?;
        let attributes = Attributes::read(reader)?;
        if let (Some(size), Handle::File(file, _)) = (attributes.size, &*handle) {
            ftruncate(file, size)?;
        }
        let file = handle.as_fd();
        if let Some(mode) = attributes.mode {
            fchmod(file, permissions(mode))?;
        }
        if let Some(times) = attributes.times {
            futimens(file, &timestamps(times))?;
        }
        if let Some((uid, gid)) = attributes.owner {
            fchown(file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
        }
        Ok(Answer::Done)
    }

    fn open_directory(&mut self, reader: &mut Reader) -> Result<Answer, Failure> {
        let path = path(reader)?;
        self.handles.check_limit()?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = openat(CWD, path, flags, Mode::empty())?;
        let names = Dir::read_from(&directory)?;
        let handle = Handle::Directory(directory, names);
        Ok(Answer::Handle(self.handles.add(handle)))
    }

    fn read_directory(&mut self, reader: &mut Reader) -> Result<Answer, Failure> {
        let Handle::Directory(directory, entries) = self.handles.get(reader.string()?)? else {
            return Err(Errno::NOTDIR.into());
        };
        let (mut names, mut bytes) = (Vec::new(), 0);
        while names.len() < MAX_NAMES && bytes < MAX_NAME_BYTES {
            let Some(entry) = entries.next() else {
                break;
            };
            let entry = entry?;
            // It may have been removed since.
            let Ok(stat) = statat(&*directory, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW) else {
                continue;
            };
            let name = entry.file_name().to_bytes().to_vec();
            let line = line(&name, &stat);
            bytes += name.len() + line.len();
            names.push((name, line, Attributes::of(&stat)));
        }
        match names.is_empty() {
            true => Err(Failure::Eof),
            false => Ok(Answer::Names(names)),
        }
    }
}

fn done(result: Result<(), Errno>) -> Result<Answer, Failure> {
    result.map(|()| Answer::Done).map_err(Failure::from)
}

fn attributes(stat: &Stat) -> Answer {
    Answer::Attributes(Attributes::of(stat))
}

/// A name without attributes.
fn name(name: Vec<u8>) -> Answer {
    Answer::Names(vec![(name.clone(), name, Attributes::default())])
}

/// The permissions of a new file, which the umask restricts.
fn mode(attributes: &Attributes, default: u32) -> Mode {
    attributes
        .mode
        .map_or(Mode::from_bits_retain(default), permissions)
}

fn permissions(mode: u32) -> Mode {
    Mode::from_bits_retain(mode & 0o7777)
}

fn timestamps((access, modification): (u32, u32)) -> Timestamps {
    let time = |seconds: u32| Timespec {
        tv_sec: seconds.into(),
        tv_nsec: 0,
    };
    Timestamps {
        last_access: time(access),
        last_modification: time(modification),
    }
}

/// Sets attributes of a path; with `SYMLINK_NOFOLLOW`, of a link itself.
fn set(path: &Path, attributes: &Attributes, flags: AtFlags) -> Result<Answer, Failure> {
    if let Some(size) = attributes.size {
        let flags = OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        ftruncate(open(path, flags, Mode::empty())?, size)?;
    }
    if let Some(mode) = attributes.mode {
        chmodat(CWD, path, permissions(mode), flags)?;
    }
    if let Some(times) = attributes.times {
        utimensat(CWD, path, &timestamps(times), flags)?;
    }
    if let Some((uid, gid)) = attributes.owner {
        let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        chownat(CWD, path, uid, gid, flags)?;
    }
    Ok(Answer::Done)
}

/// Renames; in version 3 of the protocol, an existing file is not replaced.
fn rename_new(from: &Path, to: &Path) -> Result<(), Errno> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // A file system without this flag (renameat2(2)).
        Err(Errno::INVAL | Errno::NOSYS) if lstat(to).err() == Some(Errno::NOENT) => {
            rename(from, to)
        }
        result => result,
    }
}

/// The canonical path. The last part need not exist.
fn real_path(path: &Path) -> Result<Answer, Failure> {
    let found = match fs::canonicalize(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let above = path.parent().filter(|above| !above.as_os_str().is_empty());
            let above = fs::canonicalize(above.unwrap_or(Path::new(".")))?;
            match path.components().next_back() {
                Some(Component::Normal(last)) => above.join(last),
                _ => return Err(Errno::NOENT.into()),
            }
        }
        found => found?,
    };
    Ok(name(found.into_os_string().into_vec()))
}

/// As a shell expands `~` and `~/PATH`; another path is that of [`real_path`].
fn expand(path: &Path) -> Result<Answer, Failure> {
    let bytes = path.as_os_str().as_bytes();
    match bytes.strip_prefix(b"~") {
        Some(rest) if rest.is_empty() || rest.starts_with(b"/") => {
            let home = std::env::var_os("HOME").map_or(PathBuf::from("/"), PathBuf::from);
            let rest = rest.strip_prefix(b"/").unwrap_or(rest);
            real_path(&home.join(OsStr::from_bytes(rest)))
        }
        _ => real_path(path),
    }
}

fn numbers(numbers: &[u64]) -> Answer {
    Answer::Extended(numbers.iter().flat_map(|n| n.to_be_bytes()).collect())
}

/// The response to `statvfs@openssh.com`.
fn file_system(found: &StatVfs) -> Answer {
    let read_only = u64::from(found.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY));
    let no_suid = u64::from(found.f_flag.contains(rustix::fs::StatVfsMountFlags::NOSUID)) * 2;
    numbers(&[
        found.f_bsize,
        found.f_frsize,
        found.f_blocks,
        found.f_bfree,
        found.f_bavail,
        found.f_files,
        found.f_ffree,
        found.f_favail,
        found.f_fsid,
        read_only | no_suid,
        found.f_namemax,
    ])
}
