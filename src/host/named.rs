//! Opens a file at a path that an unprivileged user specified.
//! Out of scope: which directories are allowed.
//!
//! # How
//! The path is resolved once, one component at a time (openat2(2), `O_PATH`), each step from the descriptor of the previous one.
//! No file is opened for reading during resolution: a FIFO does not block and a device driver is not called. The result is a descriptor
//! of the file itself, which every later use starts from: [`Named::open`] uses `/proc/self/fd`, which refers to the inode
//! even if its path has changed; a confined process is given a mount of the descriptor ([`super::process::Reach`]).
//!
//! # What is accepted
//! - The allowed directory itself is owned by root and writable by root only. Above it, symbolic links owned by root in directories owned
//!   by root are followed (usr-merge, `/etc/alternatives`), and sticky directories (`/tmp`) are accepted: users cannot remove the entries
//!   of other users there.
//! - Below it, for an image: no symbolic links; every directory is owned by root or by the file's owner and writable by its owner only; a
//!   regular file with one link, or a block device. In a directory below `/dev`, links owned by root are followed to a block device: udev
//!   refers to device-mapper nodes by links.
//! - Below it, for a program: the file and every directory are owned by root and writable by root only, links are owned by root, and
//!   their targets are below an allowed directory, too.
//!
//! In a user namespace, files of the host's root have the overflow user ID: there, the owner of `/` counts as root.

mod refusal;

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

pub use refusal::Refusal;
use refusal::{expected, kernel, shown, writable_by_others};

/// The maximum number of links followed for one path (as in path_resolution(7)).
const MAX_LINKS: u32 = 40;
/// Mode bits: writable by group or others, writable by others, set-uid or set-gid, sticky.
const GROUP_OR_OTHERS_WRITE: u32 = 0o022;
const WORLD_WRITABLE: u32 = 0o002;
const SET_ID: u32 = 0o6000;
const STICKY: u32 = 0o1000;

/// The purpose for which a file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// To be executed.
    Program,
    /// To be read or written as data.
    Image,
    /// A file that the daemon created, in its own directory.
    Internal,
}

/// A file with a path that was resolved once.
#[derive(Debug)]
pub struct Named {
    fd: OwnedFd,
    real_path: PathBuf,
    stat: Stat,
}

impl Named {
    /// Its real path, without symbolic links.
    pub fn real(&self) -> &Path {
        &self.real_path
    }

    /// Its owner: user and group.
    pub fn owner(&self) -> (u32, u32) {
        (self.stat.st_uid, self.stat.st_gid)
    }

    /// Its permission bits.
    pub fn mode(&self) -> u32 {
        self.stat.st_mode & 0o7777
    }

    /// The device number of a block device; `None` for a file.
    pub fn device(&self) -> Option<u64> {
        let is_block = FileType::from_raw_mode(self.stat.st_mode) == FileType::BlockDevice;
        is_block.then_some(self.stat.st_rdev)
    }

    /// Identifies the file and its content: device, inode, size in bytes, mtime and ctime in nanoseconds since 1970.
    pub fn stamp(&self) -> [i128; 5] {
        let nanos =
            |seconds: i64, nanos: u64| i128::from(seconds) * 1_000_000_000 + i128::from(nanos);
        [
            i128::from(self.stat.st_dev),
            i128::from(self.stat.st_ino),
            i128::from(self.stat.st_size),
            nanos(self.stat.st_mtime, self.stat.st_mtime_nsec),
            nanos(self.stat.st_ctime, self.stat.st_ctime_nsec),
        ]
    }

    /// Opens this file for reading.
    pub fn open(&self) -> io::Result<File> {
        let path = self.proc_path();
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        Ok(File::from(rustix::fs::openat(
            CWD,
            path,
            flags,
            Mode::empty(),
        )?))
    }

    /// A path that refers to this file in this process while this value exists.
    pub fn proc_path(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.fd.as_raw_fd()).into()
    }

    /// Its current metadata; the mode and the owner may have changed.
    pub fn metadata(&self) -> io::Result<std::fs::Metadata> {
        std::fs::metadata(self.proc_path())
    }
}

impl AsFd for Named {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Opens `path`, which must be below `dir`; the target of a program's links may be below any of `dirs`.
pub fn open(path: &Path, dir: &Path, dirs: &[PathBuf], kind: Kind) -> Result<Named, Refusal> {
    let mut resolver = Walk::new(kind)?;
    resolver.follow(dir, Part::AllowedDir)?;
    resolver.check_allowed_dir()?;
    let relative = path.strip_prefix(dir).map_err(|_| Refusal::NotAccepted {
        path: path.to_owned(),
        found: "a path outside".to_owned(),
        expected: "a path below an allowed directory",
    })?;
    resolver.follow(
        relative,
        Part::BelowAllowedDir {
            in_dev: dir.starts_with("/dev"),
        },
    )?;
    resolver.finish(dirs)
}

/// Checks that a directory exists and that only root can change it or the path to it.
pub fn check_directory(dir: &Path) -> Result<(), Refusal> {
    let mut resolver = Walk::new(Kind::Image)?;
    resolver.follow(dir, Part::AllowedDir)?;
    resolver.check_allowed_dir()
}

/// The part of a path that is being resolved.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    /// Up to and including the allowed directory.
    AllowedDir,
    /// Below it.
    BelowAllowedDir { in_dev: bool },
}

struct Walk {
    kind: Kind,
    /// User IDs that count as root.
    root_uids: [u32; 2],
    /// The current position: the descriptors of all directories from `/` on, needed for `..` in a link.
    dirs: Vec<(OwnedFd, Stat, OsString)>,
    /// The last component, if it is not a directory.
    file: Option<(OwnedFd, Stat, OsString)>,
    links: u32,
    followed_below: bool,
}

impl Walk {
    fn new(kind: Kind) -> Result<Self, Refusal> {
        let root = Path::new("/");
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let open = || -> Result<_, Errno> {
            let fd = rustix::fs::openat(CWD, root, flags, Mode::empty())?;
            let stat = rustix::fs::fstat(&fd)?;
            Ok((fd, stat))
        };
        let (fd, stat) = open().map_err(|error| kernel(root, error))?;
        Ok(Self {
            kind,
            root_uids: [0, stat.st_uid],
            dirs: vec![(fd, stat, OsString::from("/"))],
            file: None,
            links: 0,
            followed_below: false,
        })
    }

    /// The path of the current position.
    fn here(&self) -> PathBuf {
        let names = self.dirs.iter().chain(&self.file).map(|(_, _, name)| name);
        names.collect()
    }

    fn follow(&mut self, path: &Path, part: Part) -> Result<(), Refusal> {
        let mut pending: VecDeque<OsString> = names(path);
        while let Some(name) = pending.pop_front() {
            if self.file.is_some() {
                return Err(self.not_accepted("a file", "a directory"));
            }
            if name == OsStr::new("..") {
                // Only link targets contain `..`; `/..` is `/`.
                if self.dirs.len() > 1 {
                    self.dirs.pop();
                }
                continue;
            }
            self.step(name, part, &mut pending)?;
        }
        Ok(())
    }

    fn step(
        &mut self,
        name: OsString,
        part: Part,
        pending: &mut VecDeque<OsString>,
    ) -> Result<(), Refusal> {
        let (fd, stat) = self.open_component(&name)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Symlink => {
                self.check_link(&name, &stat, part)?;
                let target = rustix::fs::readlinkat(&fd, "", Vec::new());
                let target = target.map_err(|error| kernel(&self.here().join(&name), error))?;
                let target = PathBuf::from(OsStr::from_bytes(target.to_bytes()));
                if target.is_absolute() {
                    self.dirs.truncate(1);
                }
                for name in names(&target).into_iter().rev() {
                    pending.push_front(name);
                }
                Ok(())
            }
            FileType::Directory => {
                self.dirs.push((fd, stat, name));
                match part {
                    Part::AllowedDir => self.check_parent(),
                    // The file's owner is not known before the end of the path.
                    Part::BelowAllowedDir { .. } => Ok(()),
                }
            }
            _ => {
                self.file = Some((fd, stat, name));
                Ok(())
            }
        }
    }

    /// Opens a component of the last directory, without following links.
    fn open_component(&self, name: &OsStr) -> Result<(OwnedFd, Stat), Refusal> {
        let Some((dir, _, _)) = self.dirs.last() else {
            return Err(self.not_accepted("nothing", "a directory"));
        };
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let open = || -> Result<_, Errno> {
            // Not RESOLVE_NO_SYMLINKS: with O_PATH and O_NOFOLLOW the link itself is opened, and its owner is checked.
            let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
            let fd = match rustix::fs::openat2(dir, name, flags, Mode::empty(), resolve) {
                // Linux before 5.6, or a seccomp filter that does not allow it. For one component, openat is equally safe.
                Err(Errno::NOSYS | Errno::PERM) => {
                    rustix::fs::openat(dir, name, flags, Mode::empty())?
                }
                other => other?,
            };
            let stat = rustix::fs::fstat(&fd)?;
            Ok((fd, stat))
        };
        open().map_err(|error| match error {
            Errno::NOENT => Refusal::Absent(self.here().join(name)),
            error => kernel(&self.here().join(name), error),
        })
    }

    fn is_owned_by_root(&self, stat: &Stat) -> bool {
        self.root_uids.contains(&stat.st_uid)
    }

    /// A followed link determines the target: the link and its directory must be writable by root only.
    fn check_link(&mut self, name: &OsStr, link: &Stat, part: Part) -> Result<(), Refusal> {
        let trusted = self
            .untrusted_dir(|dir| self.is_owned_by_root(dir))
            .is_none();
        let followed = match (part, self.kind) {
            (Part::AllowedDir, _) | (Part::BelowAllowedDir { .. }, Kind::Program) => true,
            (Part::BelowAllowedDir { in_dev }, Kind::Image) => in_dev,
            (Part::BelowAllowedDir { .. }, Kind::Internal) => false,
        };
        self.links += 1;
        if part != Part::AllowedDir {
            self.followed_below = true;
        }
        if followed && trusted && self.is_owned_by_root(link) && self.links <= MAX_LINKS {
            return Ok(());
        }
        Err(Refusal::NotAccepted {
            path: self.here().join(name),
            found: "a symbolic link".to_owned(),
            expected: match followed {
                true => {
                    "a path with symbolic links that root owns, in directories that only root can write"
                }
                false => "a path without symbolic links below the allowed directory",
            },
        })
    }

    /// Only root may be able to replace the next component; in a sticky directory other users cannot replace entries of root.
    fn check_parent(&self) -> Result<(), Refusal> {
        let parent = self
            .dirs
            .len()
            .checked_sub(2)
            .and_then(|at| self.dirs.get(at));
        let (Some((_, dir, _)), Some((_, next, _))) = (parent, self.dirs.last()) else {
            return Ok(());
        };
        let sticky = dir.st_mode & STICKY != 0 && self.is_owned_by_root(next);
        match self.is_owned_by_root(dir) && (dir.st_mode & GROUP_OR_OTHERS_WRITE == 0 || sticky) {
            true => Ok(()),
            false => {
                let above = self.here();
                let above = above.parent().unwrap_or(Path::new("/"));
                Err(writable_by_others(above, dir))
            }
        }
    }

    fn check_allowed_dir(&self) -> Result<(), Refusal> {
        match (&self.file, self.dirs.last()) {
            (None, Some((_, dir, _)))
                if self.is_owned_by_root(dir) && dir.st_mode & GROUP_OR_OTHERS_WRITE == 0 =>
            {
                Ok(())
            }
            (None, Some((_, dir, _))) => Err(writable_by_others(&self.here(), dir)),
            _ => Err(self.not_accepted("a file", "a directory")),
        }
    }

    fn finish(self, dirs: &[PathBuf]) -> Result<Named, Refusal> {
        let real = self.here();
        let Some((_, stat, _)) = &self.file else {
            return Err(self.not_accepted("a directory", expected(self.kind)));
        };
        let kind = FileType::from_raw_mode(stat.st_mode);
        let acceptable = matches!(
            (kind, self.kind),
            (FileType::RegularFile, _) | (FileType::BlockDevice, Kind::Image)
        );
        if !acceptable
            || (self.followed_below && self.kind == Kind::Image && kind != FileType::BlockDevice)
        {
            return Err(self.not_accepted(shown(kind), expected(self.kind)));
        }
        self.check_dirs(stat)?;
        if kind == FileType::RegularFile {
            self.check_file(stat)?;
        }
        // Links of root must not lead outside: a program must be below an allowed directory, a device below /dev.
        let allowed = match self.kind {
            Kind::Internal => true,
            Kind::Image if self.followed_below => real.starts_with("/dev"),
            Kind::Image | Kind::Program => dirs.iter().any(|dir| is_below(&real, dir)),
        };
        if !allowed {
            return Err(self.not_accepted(
                "a file outside the allowed directories",
                expected(self.kind),
            ));
        }
        let Self { file: end, .. } = self;
        match end {
            Some((fd, stat, _)) => Ok(Named {
                fd,
                real_path: real,
                stat,
            }),
            None => Err(Refusal::Absent(real)),
        }
    }

    /// Checks every directory on the path: owned by root or, for an image, by its owner. Sticky ones are accepted above the allowed
    /// directory only.
    fn check_dirs(&self, file: &Stat) -> Result<(), Refusal> {
        let owner = |dir: &Stat| self.kind == Kind::Image && dir.st_uid == file.st_uid;
        match self.untrusted_dir(|dir| self.is_owned_by_root(dir) || owner(dir)) {
            None => Ok(()),
            Some((path, dir)) => Err(writable_by_others(&path, &dir)),
        }
    }

    /// The first directory on the path with an owner that `fits` rejects, or that others can write. A sticky one is accepted if the next
    /// component is a directory owned by root, because other users cannot replace it.
    fn untrusted_dir(&self, is_acceptable: impl Fn(&Stat) -> bool) -> Option<(PathBuf, Stat)> {
        let mut path = PathBuf::new();
        let following = self.dirs.iter().skip(1).map(|(_, next, _)| Some(next));
        for ((_, dir, name), next) in self.dirs.iter().zip(following.chain([None])) {
            path.push(name);
            let sticky =
                dir.st_mode & STICKY != 0 && next.is_some_and(|next| self.is_owned_by_root(next));
            if !(is_acceptable(dir) && (dir.st_mode & GROUP_OR_OTHERS_WRITE == 0 || sticky)) {
                return Some((path, *dir));
            }
        }
        None
    }

    fn check_file(&self, file: &Stat) -> Result<(), Refusal> {
        let refuse = |found: &str, expected| Err(self.not_accepted(found, expected));
        if self.kind == Kind::Internal {
            return Ok(());
        }
        if file.st_mode & SET_ID != 0 {
            return refuse("a set-user-ID or set-group-ID file", expected(self.kind));
        }
        match self.kind {
            Kind::Program
                if !self.is_owned_by_root(file) || file.st_mode & GROUP_OR_OTHERS_WRITE != 0 =>
            {
                refuse(
                    "a file that users other than root can write",
                    expected(self.kind),
                )
            }
            Kind::Program if file.st_mode & 0o111 == 0 => {
                refuse("a file that is not executable", expected(self.kind))
            }
            Kind::Image if file.st_mode & WORLD_WRITABLE != 0 => {
                refuse("a world-writable file", expected(self.kind))
            }
            // Its other links may be outside the allowed directories.
            Kind::Image if file.st_nlink > 1 => {
                refuse("a file with several hard links", expected(self.kind))
            }
            Kind::Program | Kind::Image | Kind::Internal => Ok(()),
        }
    }

    fn not_accepted(&self, found: &str, expected: &'static str) -> Refusal {
        Refusal::NotAccepted {
            path: self.here(),
            found: found.to_owned(),
            expected,
        }
    }
}

/// Compares real paths: `/bin` may be a link to `/usr/bin`.
fn is_below(real: &Path, dir: &Path) -> bool {
    real.starts_with(dir) || dir.canonicalize().is_ok_and(|dir| real.starts_with(dir))
}

fn names(path: &Path) -> VecDeque<OsString> {
    let name = |part: Component<'_>| match part {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    };
    path.components().filter_map(name).collect()
}
