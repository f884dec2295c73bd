//! All host files that one VMM is started with, opened once: its program, its boot files, its disks.
//! Out of scope: which files those are (`recipe`), which are allowed ([`crate::vmm::FileAccess`]).

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::note::{Change, ChangedFile};
use super::{Confined, Injected, confine, owners};
use crate::api::allowed::Purpose;
use crate::api::meta::Uid;
use crate::host::acl;
use crate::host::image::{self, Use};
use crate::host::named::Named;
use crate::host::process::{self, IdMap, Reach};
use crate::host::{Error, Kind};
use crate::vmm::{Access, ConfinedBy, Disk, FileAccess, Launch};

/// The open files of one VMM.
pub(super) struct OpenFiles {
    /// Boot files and disks.
    files: Vec<OpenFile>,
    /// The VMM's program.
    pub(super) program: Named,
    /// The jailer, if one starts the VMM.
    pub(super) jailer: Option<Named>,
}

struct OpenFile {
    disk: Disk,
    named: Named,
    shown: DiskAccess,
}

impl OpenFiles {
    /// Opens all files without changing any.
    pub(super) fn of(
        places: &FileAccess,
        confined: &Confined,
        launch: &Launch,
    ) -> Result<Self, Error> {
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
        let files = files.map(|disk| OpenFile::of(places, confined.user, disk));
        let injected = confined.injected.iter();
        let injected = injected.map(|injected| OpenFile::injected(places, injected));
        Ok(Self {
            files: files.chain(injected).collect::<Result<_, _>>()?,
            program: open(program)?,
            jailer,
        })
    }

    /// Called when the disks are locked: changes the owner of disks that this daemon has created to the VMM's user. Users' files are not
    /// changed, except for the ACL of those that the user can access in no other way.
    pub(super) fn grant_access(
        &self,
        places: &FileAccess,
        uid: Uid,
        user: u32,
    ) -> Result<(), Error> {
        let with_access = |how| self.files.iter().filter(move |file| file.shown == how);
        for file in with_access(DiskAccess::OwnDisk) {
            confine::chown_own_disk(&file.named, &file.disk.path, user)?;
        }
        let by_acl: Vec<_> = with_access(DiskAccess::Acl)
            .map(|file| (&file.disk, &file.named))
            .collect();
        add_to_acls(places, &uid.to_string(), user, &by_acl)
    }

    /// Locks this disk.
    pub(super) fn lock(&self, disk: &Disk, usage: Use) -> Result<File, Error> {
        match self.files.iter().find(|file| file.disk == *disk) {
            Some(file) => image::hold_file(&file.named, &disk.path, usage),
            None => Err(Error::other(
                "lock",
                disk.path.display().to_string(),
                "it is not among the files of the VM",
            )),
        }
    }

    /// What is visible to a VMM in addition to its run directory: the files of the VM, and `beside`, which was installed with its program.
    pub(super) fn visible_files<'a>(&'a self, installed: &'a [PathBuf]) -> Vec<Reach<'a>> {
        let files = self.files.iter().map(|file| Reach {
            path: &file.disk.path,
            writable: file.disk.access == Access::ReadWrite,
            named: Some(&file.named),
            map: match file.shown {
                DiskAccess::IdMapped(map) => Some(map),
                DiskAccess::Direct | DiskAccess::OwnDisk | DiskAccess::Acl => None,
            },
        });
        let beside = installed.iter().map(|path| Reach {
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

impl OpenFile {
    fn of(places: &FileAccess, user: u32, disk: &Disk) -> Result<Self, Error> {
        let path = &disk.path;
        let (named, is_own) = match places.is_own_disk(path) {
            true => (places.open_own_disk(path), true),
            false => (places.open(Purpose::Image, path), false),
        };
        let named = named.map_err(|why| why.when("use", path))?;
        let access = match is_own {
            true => DiskAccess::OwnDisk,
            false => file_access(&named, disk, user)?,
        };
        Ok(Self {
            disk: disk.clone(),
            named,
            shown: access,
        })
    }

    /// The initrd with `slice-agent`, which every user can read.
    fn injected(places: &FileAccess, injected: &Injected) -> Result<Self, Error> {
        Ok(Self {
            disk: Disk {
                path: injected.path.clone(),
                access: Access::ReadOnly,
            },
            named: places.open_injected(injected.initrd.as_deref())?,
            shown: DiskAccess::Direct,
        })
    }
}

/// How a VMM's user gets access to a file.
#[derive(Clone, Copy, PartialEq, Eq)]
enum DiskAccess {
    /// The user has access already.
    Direct,
    /// This daemon created the file, and changes its owner to the user.
    OwnDisk,
    /// Through an id-mapped mount, in which the user is the owner.
    IdMapped(IdMap),
    /// By an entry in its ACL.
    Acl,
}

/// A file that is only read must be readable without changes; for a block device a VMM gets its own device node.
fn file_access(named: &Named, disk: &Disk, user: u32) -> Result<DiskAccess, Error> {
    let path = || disk.path.display().to_string();
    let fail = |error| Error::io("stat", path(), error);
    let found = named.metadata().map_err(fail)?;
    let owner = (found.uid(), found.gid());
    if disk.access == Access::ReadOnly || named.device().is_some() || owner.0 == user {
        return Ok(DiskAccess::Direct);
    }
    let map = IdMap {
        owner,
        shown_as: user,
    };
    if named.mode() & 0o600 != 0o600 {
        let reason = format!(
            "its owner has no read and write permission: chmod u+rw {}",
            path()
        );
        return Err(Error::other("use", path(), reason));
    }
    match process::can_be_mapped(named.as_fd(), map).map_err(fail)? {
        true => Ok(DiskAccess::IdMapped(map)),
        false => Ok(DiskAccess::Acl),
    }
}

/// Adds the user to the ACLs of the files. The previous attributes are recorded on the state disk before that.
fn add_to_acls(
    places: &FileAccess,
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
    let mut changed = Vec::new();
    let mut open = Vec::new();
    for (Disk { path, .. }, named) in files {
        let read_attributes = || -> io::Result<_> {
            let file = named.open()?;
            let (found, before) = (file.metadata()?, acl::get(&file)?);
            Ok((file, found, before))
        };
        let (file, found, before) = read_attributes().map_err(|error| fail(path, error))?;
        changed.push(ChangedFile {
            path: named.real().to_owned(),
            user: found.uid(),
            group: found.gid(),
            mode: found.mode() & 0o7777,
            change: Change::Acl(before.clone()),
        });
        open.push((path, file, found.mode(), before));
    }
    if changed.is_empty() {
        return Ok(());
    }
    owners::record(&places.disk_dir, uid, user, &changed)?;
    for (path, file, mode, before) in open {
        let added = acl::grant(&file, mode, before.as_deref(), user);
        added.map_err(|error| fail(path, error))?;
    }
    Ok(())
}
