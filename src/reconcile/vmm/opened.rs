//! All host files that one VMM is started with, opened once: its program, its boot files, its disks.
//! Out of scope: which files those are (`recipe`), which are allowed ([`crate::reconcile::places`]).

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::note::{Change, Given};
use super::{Access, Confined, ConfinedBy, Disk, Launch, confine, owners};
use crate::api::allowed::Purpose;
use crate::api::meta::Uid;
use crate::host::acl;
use crate::host::image::{self, Use};
use crate::host::named::Named;
use crate::host::process::{self, IdMap, Reach};
use crate::host::{Error, Kind};
use crate::reconcile::places::Places;

/// The open files of one VMM.
pub(super) struct Opened {
    /// Boot files and disks.
    files: Vec<OpenedFile>,
    /// The VMM's program.
    pub(super) program: Named,
    /// The jailer, if one starts the VMM.
    pub(super) jailer: Option<Named>,
}

struct OpenedFile {
    disk: Disk,
    named: Named,
    shown: Shown,
}

impl Opened {
    /// Opens all files without changing any.
    pub(super) fn of(places: &Places, confined: &Confined, launch: &Launch) -> Result<Self, Error> {
        let program = launch.argv.first().map(Path::new).unwrap_or(Path::new(""));
        let open = |path: &Path| {
            let opened = places.open(Purpose::Program, path);
            opened.map_err(|why| why.when("use the program", path))
        };
        let jailer = match &launch.confined_by {
            ConfinedBy::Jailer(jailer) => Some(open(&jailer.path)?),
            ConfinedBy::Sliced { .. } => None,
        };
        let files = confined.files.iter();
        let files = files.map(|disk| OpenedFile::of(places, confined.user, disk));
        Ok(Self {
            files: files.collect::<Result<_, _>>()?,
            program: open(program)?,
            jailer,
        })
    }

    /// Called when the disks are locked: changes the owner of disks that this daemon has created to the VMM's user. Users' files are not
    /// changed, except for the ACL of those that the user can access in no other way.
    pub(super) fn give(&self, places: &Places, uid: Uid, user: u32) -> Result<(), Error> {
        let shown = |how| self.files.iter().filter(move |file| file.shown == how);
        for file in shown(Shown::Own) {
            confine::give_own_disk(&file.named, &file.disk.path, user)?;
        }
        let by_acl: Vec<_> = shown(Shown::ByAcl)
            .map(|file| (&file.disk, &file.named))
            .collect();
        add_to_acls(places, &uid.to_string(), user, &by_acl)
    }

    /// Locks this disk.
    pub(super) fn hold(&self, disk: &Disk, how: Use) -> Result<File, Error> {
        match self.files.iter().find(|file| file.disk == *disk) {
            Some(file) => image::lock_file(&file.named, &disk.path, how),
            None => Err(Error::other(
                "lock",
                disk.path.display().to_string(),
                "it is not among the files of the VM",
            )),
        }
    }

    /// What is visible to a VMM in addition to its run directory: the files of the VM, and `beside`, which was installed with its program.
    pub(super) fn reach<'a>(&'a self, beside: &'a [PathBuf]) -> Vec<Reach<'a>> {
        let files = self.files.iter().map(|file| Reach {
            path: &file.disk.path,
            writable: file.disk.access == Access::ReadWrite,
            named: Some(&file.named),
            map: match file.shown {
                Shown::As(map) => Some(map),
                Shown::AsItIs | Shown::Own | Shown::ByAcl => None,
            },
        });
        let beside = beside.iter().map(|path| Reach {
            path,
            writable: false,
            named: None,
            map: None,
        });
        let program = Reach {
            path: self.program.real(),
            writable: false,
            named: Some(&self.program),
            map: None,
        };
        match self.jailer {
            // The program is visible to the jailer, which needs nothing else; the jail contains only the files of the VM.
            Some(_) => files.collect(),
            None => files.chain(beside).chain([program]).collect(),
        }
    }
}

impl OpenedFile {
    fn of(places: &Places, user: u32, disk: &Disk) -> Result<Self, Error> {
        let path = &disk.path;
        let (named, own) = match places.is_own(path) {
            true => (places.open_own(path), true),
            false => (places.open(Purpose::Image, path), false),
        };
        let named = named.map_err(|why| why.when("use", path))?;
        let shown = match own {
            true => Shown::Own,
            false => shown(&named, disk, user)?,
        };
        Ok(Self {
            disk: disk.clone(),
            named,
            shown,
        })
    }
}

/// How a VMM's user gets access to a file.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shown {
    /// The user has access already.
    AsItIs,
    /// This daemon created the file, and changes its owner to the user.
    Own,
    /// Through an id-mapped mount, in which the user is the owner.
    As(IdMap),
    /// By an entry in its ACL.
    ByAcl,
}

/// A file that is only read must be readable without changes; for a block device a VMM gets its own device node.
fn shown(named: &Named, disk: &Disk, user: u32) -> Result<Shown, Error> {
    let path = || disk.path.display().to_string();
    let fail = |error| Error::io("stat", path(), error);
    let found = named.metadata().map_err(fail)?;
    let owner = (found.uid(), found.gid());
    if disk.access == Access::ReadOnly || named.device().is_some() || owner.0 == user {
        return Ok(Shown::AsItIs);
    }
    let map = IdMap {
        owner,
        shown_as: user,
    };
    if named.mode() & 0o600 != 0o600 {
        let why = format!(
            "its owner has no read and write permission: chmod u+rw {}",
            path()
        );
        return Err(Error::other("use", path(), why));
    }
    match process::can_be_mapped(named.as_fd(), map).map_err(fail)? {
        true => Ok(Shown::As(map)),
        false => Ok(Shown::ByAcl),
    }
}

/// Adds the user to the ACLs of the files. The previous attributes are recorded on the state disk before that.
fn add_to_acls(
    places: &Places,
    uid: &str,
    user: u32,
    files: &[(&Disk, &Named)],
) -> Result<(), Error> {
    let fail = |path: &Path, error: io::Error| Error {
        operation: "add the VMM's user to the ACL of",
        object: path.display().to_string(),
        kind: Kind::of(&error),
        source: match error.raw_os_error() {
            Some(libc::EOPNOTSUPP) => io::Error::other(
                "its file system supports neither ACLs nor id-mapped mounts: move it to ext4, xfs or btrfs, or use it as `image`",
            ),
            _ => error,
        },
    };
    let mut given = Vec::new();
    let mut open = Vec::new();
    for (Disk { path, .. }, named) in files {
        let look = || -> io::Result<_> {
            let file = named.open()?;
            let (found, before) = (file.metadata()?, acl::get(&file)?);
            Ok((file, found, before))
        };
        let (file, found, before) = look().map_err(|error| fail(path, error))?;
        given.push(Given {
            path: named.real().to_owned(),
            user: found.uid(),
            group: found.gid(),
            mode: found.mode() & 0o7777,
            change: Change::Acl(before.clone()),
        });
        open.push((path, file, found.mode(), before));
    }
    if given.is_empty() {
        return Ok(());
    }
    owners::record(&places.disk_dir, uid, user, &given)?;
    for (path, file, mode, before) in open {
        let added = acl::grant(&file, mode, before.as_deref(), user);
        added.map_err(|error| fail(path, error))?;
    }
    Ok(())
}
