//! Opening a file that somebody has named who could not open it himself.
//! Out of scope: which directories are allowed.
//!
//! # How
//! The path is followed once, one component at a time (openat2(2), `O_PATH`), each step from the descriptor of the one before.
//! Nothing is opened for reading on the way: a FIFO does not block and a device driver is not called. The result is a descriptor of
//! the file itself, from which every later use starts: [`Named::open`] goes through `/proc/self/fd`, which leads to the inode
//! whatever its path has become; a confined process is given a mount of the descriptor ([`super::process::Reach`]).
//!
//! # What is accepted
//! - The allowed directory itself: root's, writable by root alone. Above it, symbolic links of root's in directories of root's are
//!   followed (usr-merge, `/etc/alternatives`), and a sticky directory (`/tmp`) will do: nobody removes another's entry there.
//! - Below it, for an image: no symbolic links; every directory is root's or the file's owner's, and writable by nobody else; a
//!   regular file of one name, or a block device. In a directory below `/dev` root's links are followed to a block device: udev
//!   names device-mapper nodes by links.
//! - Below it, for a program: the file and every directory are root's and writable by root alone, links are root's as well, and
//!   what they lead to lies below an allowed directory, too.
//!
//! In a user namespace root's files belong to nobody that has a number: there, the owner of `/` counts as root.

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
use refusal::{expected, kernel, open_to_others, shown};

/// Links followed for one path (path_resolution(7) has the same limit).
const MOST_LINKS: u32 = 40;
/// Bits of a mode: written by the group or by others, set-uid or set-gid, sticky.
const OTHERS_WRITE: u32 = 0o022;
const EVERYBODY_WRITES: u32 = 0o002;
const SET_ID: u32 = 0o6000;
const STICKY: u32 = 0o1000;

/// What a file is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// To be executed.
    Program,
    /// To be read or written as data.
    Image,
    /// A file that we made ourselves, in a directory of ours.
    Ours,
}

/// A file that was opened by its name, once.
#[derive(Debug)]
pub struct Named {
    fd: OwnedFd,
    real: PathBuf,
    stat: Stat,
}

impl Named {
    /// Where it is, without symbolic links.
    pub fn real(&self) -> &Path {
        &self.real
    }

    /// Its owner: user and group.
    pub fn owner(&self) -> (u32, u32) {
        (self.stat.st_uid, self.stat.st_gid)
    }

    /// Its permission bits.
    pub fn mode(&self) -> u32 {
        self.stat.st_mode & 0o7777
    }

    /// Of a block device, its number.
    pub fn device(&self) -> Option<u64> {
        let is_block = FileType::from_raw_mode(self.stat.st_mode) == FileType::BlockDevice;
        is_block.then_some(self.stat.st_rdev)
    }

    /// What tells this file and this content from any other: device, inode, bytes, and the times of both changes.
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

    /// Opens this very file for reading.
    pub fn open(&self) -> io::Result<File> {
        let path = self.through_proc();
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        Ok(File::from(rustix::fs::openat(
            CWD,
            path,
            flags,
            Mode::empty(),
        )?))
    }

    /// A path that leads to this very file for as long as this value lives, in this process.
    pub fn through_proc(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.fd.as_raw_fd()).into()
    }

    /// What it is now; the mode and the owner may have changed.
    pub fn metadata(&self) -> io::Result<std::fs::Metadata> {
        std::fs::metadata(self.through_proc())
    }
}

impl AsFd for Named {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Opens `path`, which lies below `dir`; what a program's links lead to may lie below any of `dirs`.
pub fn open(path: &Path, dir: &Path, dirs: &[PathBuf], kind: Kind) -> Result<Named, Refusal> {
    let mut walk = Walk::new(kind)?;
    walk.follow(dir, Part::Above)?;
    walk.check_allowed_dir()?;
    let rest = path.strip_prefix(dir).map_err(|_| Refusal::NotAccepted {
        path: path.to_owned(),
        found: "a path outside".to_owned(),
        expected: "a path below an allowed directory",
    })?;
    walk.follow(
        rest,
        Part::Below {
            in_dev: dir.starts_with("/dev"),
        },
    )?;
    walk.finish(dirs)
}

/// Whether a directory exists and is root's alone, all the way; else why not.
pub fn check_directory(dir: &Path) -> Result<(), Refusal> {
    let mut walk = Walk::new(Kind::Image)?;
    walk.follow(dir, Part::Above)?;
    walk.check_allowed_dir()
}

/// Which part of a path is followed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    /// Up to and with the allowed directory.
    Above,
    /// Below it.
    Below { in_dev: bool },
}

struct Walk {
    kind: Kind,
    /// Counts as root's.
    roots: [u32; 2],
    /// Where we are: the descriptors of all directories from `/` on, for `..` in a link.
    dirs: Vec<(OwnedFd, Stat, OsString)>,
    /// What was found last, if it is no directory.
    end: Option<(OwnedFd, Stat, OsString)>,
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
            roots: [0, stat.st_uid],
            dirs: vec![(fd, stat, OsString::from("/"))],
            end: None,
            links: 0,
            followed_below: false,
        })
    }

    /// Where we are.
    fn here(&self) -> PathBuf {
        let names = self.dirs.iter().chain(&self.end).map(|(_, _, name)| name);
        names.collect()
    }

    fn follow(&mut self, path: &Path, part: Part) -> Result<(), Refusal> {
        let mut rest: VecDeque<OsString> = names(path);
        while let Some(name) = rest.pop_front() {
            if self.end.is_some() {
                return Err(self.not_accepted("a file", "a directory"));
            }
            if name == OsStr::new("..") {
                // Only links have these; `/..` is `/`.
                if self.dirs.len() > 1 {
                    self.dirs.pop();
                }
                continue;
            }
            self.step(name, part, &mut rest)?;
        }
        Ok(())
    }

    fn step(
        &mut self,
        name: OsString,
        part: Part,
        rest: &mut VecDeque<OsString>,
    ) -> Result<(), Refusal> {
        let (fd, stat) = self.look(&name)?;
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
                    rest.push_front(name);
                }
                Ok(())
            }
            FileType::Directory => {
                self.dirs.push((fd, stat, name));
                match part {
                    Part::Above => self.check_above(),
                    // Whose the file is is known at its end.
                    Part::Below { .. } => Ok(()),
                }
            }
            _ => {
                self.end = Some((fd, stat, name));
                Ok(())
            }
        }
    }

    /// From the last directory, never through a link.
    fn look(&self, name: &OsStr) -> Result<(OwnedFd, Stat), Refusal> {
        let Some((dir, _, _)) = self.dirs.last() else {
            return Err(self.not_accepted("nothing", "a directory"));
        };
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let open = || -> Result<_, Errno> {
            // Not RESOLVE_NO_SYMLINKS: with O_PATH and O_NOFOLLOW the link itself is opened and judged by its owner.
            let how = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
            let fd = match rustix::fs::openat2(dir, name, flags, Mode::empty(), how) {
                // Linux before 5.6, or a filter of system calls that does not know it. One component is as safe without.
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

    fn is_roots(&self, stat: &Stat) -> bool {
        self.roots.contains(&stat.st_uid)
    }

    /// A link decides where to go: it and the directory that it is in must be root's alone.
    fn check_link(&mut self, name: &OsStr, link: &Stat, part: Part) -> Result<(), Refusal> {
        let firm = self.loose_dir(|dir| self.is_roots(dir)).is_none();
        let followed = match (part, self.kind) {
            (Part::Above, _) | (Part::Below { .. }, Kind::Program) => true,
            (Part::Below { in_dev }, Kind::Image) => in_dev,
            (Part::Below { .. }, Kind::Ours) => false,
        };
        self.links += 1;
        if part != Part::Above {
            self.followed_below = true;
        }
        if followed && firm && self.is_roots(link) && self.links <= MOST_LINKS {
            return Ok(());
        }
        Err(Refusal::NotAccepted {
            path: self.here().join(name),
            found: "a symbolic link".to_owned(),
            expected: match followed {
                true => {
                    "a path without symbolic links but root's own, in directories that only root can write"
                }
                false => "a path without symbolic links below the allowed directory",
            },
        })
    }

    /// Nobody but root may exchange what comes next; in a sticky directory nobody can exchange what is root's.
    fn check_above(&self) -> Result<(), Refusal> {
        let parent = self
            .dirs
            .len()
            .checked_sub(2)
            .and_then(|at| self.dirs.get(at));
        let (Some((_, dir, _)), Some((_, next, _))) = (parent, self.dirs.last()) else {
            return Ok(());
        };
        let sticky = dir.st_mode & STICKY != 0 && self.is_roots(next);
        match self.is_roots(dir) && (dir.st_mode & OTHERS_WRITE == 0 || sticky) {
            true => Ok(()),
            false => {
                let above = self.here();
                let above = above.parent().unwrap_or(Path::new("/"));
                Err(open_to_others(above, dir))
            }
        }
    }

    fn check_allowed_dir(&self) -> Result<(), Refusal> {
        match (&self.end, self.dirs.last()) {
            (None, Some((_, dir, _))) if self.is_roots(dir) && dir.st_mode & OTHERS_WRITE == 0 => {
                Ok(())
            }
            (None, Some((_, dir, _))) => Err(open_to_others(&self.here(), dir)),
            _ => Err(self.not_accepted("a file", "a directory")),
        }
    }

    fn finish(self, dirs: &[PathBuf]) -> Result<Named, Refusal> {
        let real = self.here();
        let Some((_, stat, _)) = &self.end else {
            return Err(self.not_accepted("a directory", expected(self.kind)));
        };
        let kind = FileType::from_raw_mode(stat.st_mode);
        let fits = matches!(
            (kind, self.kind),
            (FileType::RegularFile, _) | (FileType::BlockDevice, Kind::Image)
        );
        if !fits
            || (self.followed_below && self.kind == Kind::Image && kind != FileType::BlockDevice)
        {
            return Err(self.not_accepted(shown(kind), expected(self.kind)));
        }
        self.check_dirs(stat)?;
        if kind == FileType::RegularFile {
            self.check_file(stat)?;
        }
        // Root's links are no way out: a program lies below an allowed directory, a device below /dev.
        let allowed = match self.kind {
            Kind::Ours => true,
            Kind::Image if self.followed_below => real.starts_with("/dev"),
            Kind::Image | Kind::Program => dirs.iter().any(|dir| lies_below(&real, dir)),
        };
        if !allowed {
            return Err(self.not_accepted(
                "a file outside of the allowed directories",
                expected(self.kind),
            ));
        }
        let Self { end, .. } = self;
        match end {
            Some((fd, stat, _)) => Ok(Named { fd, real, stat }),
            None => Err(Refusal::Absent(real)),
        }
    }

    /// Every directory down to the file: root's, or of an image its owner's. The sticky ones are above the allowed directory alone.
    fn check_dirs(&self, file: &Stat) -> Result<(), Refusal> {
        let owner = |dir: &Stat| self.kind == Kind::Image && dir.st_uid == file.st_uid;
        match self.loose_dir(|dir| self.is_roots(dir) || owner(dir)) {
            None => Ok(()),
            Some((path, dir)) => Err(open_to_others(&path, &dir)),
        }
    }

    /// The first directory on the way that is not of such an owner, or that others can write. In a sticky one nobody can exchange a
    /// directory of root's; what lies in it itself must be in a directory that is not.
    fn loose_dir(&self, fits: impl Fn(&Stat) -> bool) -> Option<(PathBuf, Stat)> {
        let mut path = PathBuf::new();
        let following = self.dirs.iter().skip(1).map(|(_, next, _)| Some(next));
        for ((_, dir, name), next) in self.dirs.iter().zip(following.chain([None])) {
            path.push(name);
            let sticky = dir.st_mode & STICKY != 0 && next.is_some_and(|next| self.is_roots(next));
            if !(fits(dir) && (dir.st_mode & OTHERS_WRITE == 0 || sticky)) {
                return Some((path, *dir));
            }
        }
        None
    }

    fn check_file(&self, file: &Stat) -> Result<(), Refusal> {
        let refuse = |found: &str, expected| Err(self.not_accepted(found, expected));
        if self.kind == Kind::Ours {
            return Ok(());
        }
        if file.st_mode & SET_ID != 0 {
            return refuse("a set-user-ID or set-group-ID file", expected(self.kind));
        }
        match self.kind {
            Kind::Program if !self.is_roots(file) || file.st_mode & OTHERS_WRITE != 0 => refuse(
                "a file that others than root can write",
                expected(self.kind),
            ),
            Kind::Program if file.st_mode & 0o111 == 0 => {
                refuse("a file that cannot be executed", expected(self.kind))
            }
            Kind::Image if file.st_mode & EVERYBODY_WRITES != 0 => {
                refuse("a file that everybody can write", expected(self.kind))
            }
            // Its other names may be where nothing is allowed.
            Kind::Image if file.st_nlink > 1 => refuse(
                "a file with several names (hard links)",
                expected(self.kind),
            ),
            Kind::Program | Kind::Image | Kind::Ours => Ok(()),
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

/// As the real paths: `/bin` may be a link to `/usr/bin`.
fn lies_below(real: &Path, dir: &Path) -> bool {
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
