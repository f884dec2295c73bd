//! Directories, files and links below a directory; nothing outside of it is reached, whatever its links are.
//! Out of scope: archives.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::draft::{Attributes, Draft, link, modified, set_owner};
use super::entry::shown;
use super::{Error, Mtime, Owner};

/// The permissions of a directory that an archive needs but does not contain.
const PARENT_MODE: u32 = 0o755;

/// A directory. Paths are relative to it, without `.` and `..`.
pub struct Beneath {
    root: OwnedFd,
    /// The directory of the last operation: most entries of an archive are in the same directory as the one before.
    last: Option<(PathBuf, Arc<OwnedFd>)>,
}

/// How a directory is opened: for the `*at` functions, which needs no permission to read it, or to be read or changed.
const HANDLE: OFlags = OFlags::PATH;
const READ: OFlags = OFlags::RDONLY;

impl Beneath {
    /// Opens the directory; links in `path` itself are followed.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let flags = HANDLE | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(path, flags, Mode::empty())
            .map_err(|error| Error::file("open the directory", path, error))?;
        Ok(Self { root, last: None })
    }

    /// Opens a directory to read it.
    pub fn read_dir(&self, path: &Path) -> Result<OwnedFd, Error> {
        self.resolve(path, READ)
            .map_err(|error| Error::file("read the directory", shown(path), error))
    }

    /// Opens a regular file to read it. A FIFO does not block.
    pub fn read_file(&self, path: &Path) -> Result<File, Error> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        rustix::fs::openat2(
            &self.root,
            path,
            flags | OFlags::NOFOLLOW,
            Mode::empty(),
            RESOLVE,
        )
        .map(File::from)
        .map_err(|error| Error::file("read", path, error))
    }

    fn resolve(&self, path: &Path, access: OFlags) -> rustix::io::Result<OwnedFd> {
        let flags = access | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::openat2(&self.root, shown(path), flags, Mode::empty(), RESOLVE)
    }

    /// The directory that contains `path`, and its name in it. Missing directories are created.
    fn parent<'a>(
        &mut self,
        path: &'a Path,
        owner: Owner,
    ) -> Result<(Arc<OwnedFd>, &'a OsStr), Error> {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(Error::file("create", shown(path), Errno::INVAL));
        };
        if let Some((last, dir)) = &self.last
            && last == parent
        {
            return Ok((dir.clone(), name));
        }
        let dir = match self.resolve(parent, HANDLE) {
            Err(Errno::NOENT) => {
                self.make_parents(parent, owner)?;
                self.resolve(parent, HANDLE)
            }
            opened => opened,
        };
        let dir = dir.map_err(|error| Error::file("open the directory", shown(parent), error))?;
        let dir = Arc::new(dir);
        self.last = Some((parent.to_owned(), dir.clone()));
        Ok((dir, name))
    }

    /// The first missing directory is the first that can be created in its parent, so there is no search.
    fn make_parents(&mut self, path: &Path, owner: Owner) -> Result<(), Error> {
        let mut above: Vec<&Path> = path
            .ancestors()
            .filter(|path| !path.as_os_str().is_empty())
            .collect();
        while let Some(path) = above.pop() {
            if self.make_dir(path, owner)? {
                self.set_dir(path, PARENT_MODE, None)?;
            }
        }
        Ok(())
    }

    /// Creates a directory that only the process can use until [`Self::set_dir`]; false if it exists.
    pub fn make_dir(&mut self, path: &Path, owner: Owner) -> Result<bool, Error> {
        let fail = |error: Errno| Error::file("create the directory", shown(path), error);
        if path.as_os_str().is_empty() {
            return Ok(false);
        }
        let (dir, name) = self.parent(path, owner)?;
        match rustix::fs::mkdirat(&*dir, name, Mode::RWXU) {
            Ok(()) => {}
            Err(Errno::EXIST) => {
                let stat = rustix::fs::statat(&*dir, name, AtFlags::SYMLINK_NOFOLLOW);
                let kind = FileType::from_raw_mode(stat.map_err(fail)?.st_mode);
                return match kind {
                    FileType::Directory => Ok(false),
                    _ => Err(fail(Errno::NOTDIR)),
                };
            }
            Err(error) => return Err(fail(error)),
        }
        let created = File::from(self.resolve(path, READ).map_err(fail)?);
        set_owner(&created, owner, None)
            .map_err(|error| Error::file("create the directory", path, error))?;
        Ok(true)
    }

    /// Sets permissions and modification time of a directory.
    pub fn set_dir(&self, path: &Path, mode: u32, mtime: Option<Mtime>) -> Result<(), Error> {
        let set = || -> Result<(), Errno> {
            let dir = self.resolve(path, READ)?;
            rustix::fs::fchmod(&dir, Mode::from_raw_mode(mode & 0o777))?;
            match mtime {
                Some(mtime) => rustix::fs::futimens(&dir, &modified(mtime)),
                None => Ok(()),
            }
        };
        set().map_err(|error| Error::file("change the directory", shown(path), error))
    }

    /// Begins a file.
    pub fn draft(&mut self, path: &Path, owner: Owner) -> Result<Draft, Error> {
        let (dir, _) = self.parent(path, owner)?;
        Draft::create(dir).map_err(|error| Error::file("create", path, error))
    }

    /// Ends a file that [`Self::draft`] began.
    pub fn commit(&self, draft: Draft, path: &Path, attributes: Attributes) -> Result<(), Error> {
        draft
            .commit(path.file_name().unwrap_or_default(), attributes)
            .map_err(|error| Error::file("create", path, error))
    }

    /// Creates a symbolic link.
    pub fn link(
        &mut self,
        path: &Path,
        target: &Path,
        attributes: Attributes,
    ) -> Result<(), Error> {
        let (dir, name) = self.parent(path, attributes.owner)?;
        link(dir, name, target.as_os_str(), attributes)
            .map_err(|error| Error::file("create the link", path, error))
    }
}

/// Neither above the directory nor through a link.
const RESOLVE: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS);

/// Opens the directory that contains a path; links are followed. For a single file.
pub fn open_parent(path: &Path) -> rustix::io::Result<Arc<OwnedFd>> {
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let flags = HANDLE | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(CWD, parent, flags, Mode::empty()).map(Arc::new)
}
