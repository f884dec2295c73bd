//! Everything of the host's that one VMM is started with, opened once: its program, its boot files, its disks.
//! Out of scope: which files those are (`recipe`), which are allowed ([`crate::reconcile::places`]).

use std::fs::File;
use std::path::{Path, PathBuf};

use super::{Access, Confined, ConfinedBy, Disk, Launch, confine};
use crate::api::allowed::Purpose;
use crate::host::image::{self, Use};
use crate::host::named::Named;
use crate::host::process::{self, IdMap, Reach};
use crate::host::{Error, Kind};
use crate::reconcile::places::Places;

/// The descriptors.
pub(super) struct Opened {
    /// Boot files and disks.
    files: Vec<OpenedFile>,
    /// The VMM's program.
    pub(super) program: Named,
    /// The jailer, where one starts it.
    pub(super) jailer: Option<Named>,
}

struct OpenedFile {
    disk: Disk,
    named: Named,
    /// Where it belongs to somebody else than the VMM's user and is to be written.
    map: Option<IdMap>,
}

impl Opened {
    /// Opens all of it. Own disks are given to the VMM's user; files of others stay as they are.
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

    /// Takes this disk.
    pub(super) fn hold(&self, disk: &Disk, how: Use) -> Result<File, Error> {
        match self.files.iter().find(|file| file.disk == *disk) {
            Some(file) => image::hold_named(&file.named, &disk.path, how),
            None => Err(Error::other(
                "take",
                disk.path.display().to_string(),
                "it is not among the files of the VM",
            )),
        }
    }

    /// What a VMM sees beside its run directory: the VM's files, and what was installed with its program.
    pub(super) fn reach<'a>(&'a self, beside: &'a [PathBuf]) -> Vec<Reach<'a>> {
        let files = self.files.iter().map(|file| Reach {
            path: &file.disk.path,
            writable: file.disk.access == Access::ReadWrite,
            named: Some(&file.named),
            map: file.map,
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
            // The jailer sees the program, what it starts does not see anything else.
            Some(_) => files.collect(),
            None => files.chain(beside).chain([program]).collect(),
        }
    }
}

impl OpenedFile {
    fn of(places: &Places, user: u32, disk: &Disk) -> Result<Self, Error> {
        let path = &disk.path;
        let named = match places.is_own(path) {
            true => {
                let own = places.open_own(path);
                let own = own.map_err(|why| why.when("use", path))?;
                confine::give_own_disk(&own, path, user)?;
                own
            }
            false => {
                let named = places.open(Purpose::Image, path);
                named.map_err(|why| why.when("use", path))?
            }
        };
        let map = map(&named, disk, user)?;
        Ok(Self {
            disk: disk.clone(),
            named,
            map,
        })
    }
}

/// What is only read must be readable as it is; of a block device a VMM gets a node of its own.
fn map(named: &Named, disk: &Disk, user: u32) -> Result<Option<IdMap>, Error> {
    let shown = || disk.path.display().to_string();
    let fail = |error| Error::io("look at", shown(), error);
    let owner = {
        use std::os::unix::fs::MetadataExt;
        let found = named.metadata().map_err(fail)?;
        (found.uid(), found.gid())
    };
    if disk.access == Access::ReadOnly || named.device().is_some() || owner.0 == user {
        return Ok(None);
    }
    let map = IdMap {
        owner,
        shown_as: user,
    };
    if named.mode() & 0o600 != 0o600 {
        let why = format!(
            "its owner may not read and write it: chmod u+rw {}",
            shown()
        );
        return Err(Error::other("use", shown(), why));
    }
    use std::os::fd::AsFd;
    match process::can_be_mapped(named.as_fd(), map).map_err(fail)? {
        true => Ok(Some(map)),
        false => Err(Error {
            doing: "use",
            thing: shown(),
            kind: Kind::Other,
            source: std::io::Error::other(
                "neither its owner is the VMM's user nor can its file system map owners (id-mapped mounts: ext4, xfs, btrfs; tmpfs since Linux 6.3): put it on one that can",
            ),
        }),
    }
}
