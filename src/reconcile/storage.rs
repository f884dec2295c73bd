//! Which disks a VM gets on this host, in which order, or why it cannot have them.
//! Not here: making its own ([`super::disk`]); holding them ([`crate::host::image`]).

use std::path::{Path, PathBuf};

use super::Reconcile;
use super::disk::{self, Want};
use super::vmm::{Access, Disk};
use crate::api::meta::Name;
use crate::api::storage::{Bytes, Storage};
use crate::host::image::{self, Edition, Found};
use crate::owner::Label;

/// The disks of one VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disks {
    /// Its own, to be made.
    pub own: disk::Desired,
    /// All of them: the first is the root disk, if there is one.
    pub all: Vec<Disk>,
}

/// Whose disks, and where this daemon keeps its own.
#[derive(Clone, Copy, Debug)]
pub struct Whose<'a> {
    /// `<state>/disks`.
    pub dir: &'a Path,
    /// Which boot of the host this is.
    pub boot: &'a str,
    /// The VM's name.
    pub name: &'a Name,
    /// The VM's label.
    pub label: &'a Label,
    /// The process that uses them now.
    pub user: Option<u32>,
}

impl Whose<'_> {
    /// No disk is wanted any more.
    pub fn nothing(&self) -> disk::Desired {
        disk::Desired {
            label: self.label.clone(),
            dir: self.dir.to_owned(),
            name: self.name.clone(),
            boot: self.boot.to_owned(),
            user: self.user,
            want: None,
        }
    }
}

/// What of `storage` is made and used. What a VMM has already is not judged again: it goes on with what it has opened.
///
/// # Errors
/// A file is not there, or is not what it should be; in words that name it.
pub fn disks(storage: &Storage, whose: &Whose<'_>) -> Result<Disks, String> {
    let lying = |own: &disk::Desired| look(&own.disk());
    choose(storage, whose, lying)
}

/// The same for a VM that is to replace the one that has the disks now: what goes with that one is not there then.
///
/// # Errors
/// As [`disks`]; or the disk that stays is none that it could take over.
pub fn anew(storage: &Storage, whose: &Whose<'_>) -> Result<Disks, String> {
    let kept = disk::kept(&whose.nothing()).map_err(|error| error.to_string())?;
    let lying = |own: &disk::Desired| match kept.disk {
        disk::Lies::Absent => Ok(Found::Absent),
        disk::Lies::File(_) | disk::Lies::Foreign => look(&own.disk()),
    };
    let disks = choose(storage, whose, lying)?;
    match disk::Disks::plan(&disks.own, &kept) {
        Ok(_) => Ok(disks),
        Err(conflict) => Err(conflict.to_string()),
    }
}

fn choose(
    storage: &Storage,
    whose: &Whose<'_>,
    lying: impl FnOnce(&disk::Desired) -> Result<Found, String>,
) -> Result<Disks, String> {
    let mut own = whose.nothing();
    let mut all = Vec::new();
    if let Some(path) = &storage.image {
        let (want, root) = root(storage, path, &own, lying)?;
        own.want = want;
        all.push(root);
    }
    for further in &storage.disks {
        let path = further.path.clone();
        let access = match further.read_only {
            true => Access::ReadOnly,
            false => Access::ReadWrite,
        };
        if whose.user.is_none() {
            judge(&path, access)?;
        }
        let disk = Disk { path, access };
        if all.contains(&disk) {
            let shown = disk.path.display();
            return Err(format!(
                "{shown} is a block device, and the VM's image already: found it in disks, too"
            ));
        }
        all.push(disk);
    }
    Ok(Disks { own, all })
}

/// Of one that the guest writes to, what is in it is the guest's affair.
fn judge(path: &Path, access: Access) -> Result<(), String> {
    match (look(path)?, access) {
        (Found::File(_), Access::ReadOnly) => raw(path),
        (Found::File(_), Access::ReadWrite) | (Found::Device, _) => Ok(()),
        (Found::Absent | Found::Other(_), _) => Err(unusable(path)),
    }
}

fn root(
    storage: &Storage,
    image: &Path,
    own: &disk::Desired,
    lying: impl FnOnce(&disk::Desired) -> Result<Found, String>,
) -> Result<(Option<Want>, Disk), String> {
    let found = look(image)?;
    if found == Found::Device {
        let shown = image.display();
        if storage.size_bytes.is_some() || storage.persistent {
            return Err(format!(
                "the image {shown} is a block device, which is used as it is, read-only: found storage_size or persistent, expected neither"
            ));
        }
        let root = Disk {
            path: image.to_owned(),
            access: Access::ReadOnly,
        };
        return Ok((None, root));
    }
    // Once the disk is made, its image may change or go.
    let edition = match (found, lying(own)?) {
        // In use: it is not made again.
        (Found::File(edition), _) if own.user.is_some() => Some(edition),
        (_, Found::Absent) if own.user.is_some() => None,
        (Found::File(edition), Found::Absent) => Some(fitting(storage, image, edition)?),
        (Found::File(edition), _) => Some(edition),
        (_, Found::Absent) => return Err(unusable(image)),
        (_, _) => None,
    };
    let want = Want {
        image: image.to_owned(),
        edition,
        at_least: storage.size_bytes.unwrap_or(0),
        persistent: storage.persistent,
    };
    let root = Disk {
        path: own.disk(),
        access: Access::ReadWrite,
    };
    Ok((Some(want), root))
}

fn fitting(storage: &Storage, image: &Path, edition: Edition) -> Result<Edition, String> {
    raw(image)?;
    let (shown, length) = (image.display(), edition.length);
    match storage.size_bytes {
        Some(size) if size < length => Err(format!(
            "storage_size: found {}, expected at least {}, the size of the image {shown}",
            Bytes(size),
            Bytes(length)
        )),
        None if length == 0 => Err(format!(
            "the image {shown} is empty; say with storage_size how large a blank disk is to be"
        )),
        Some(_) | None => Ok(edition),
    }
}

fn raw(path: &Path) -> Result<(), String> {
    match image::format(path).map_err(|error| format!("{error}: {}", error.source))? {
        None => Ok(()),
        Some(format) => {
            let shown = path.display();
            Err(format!(
                "{shown} is {format}, expected a raw image: unpack it, or `qemu-img convert -O raw {shown} …`"
            ))
        }
    }
}

fn look(path: &Path) -> Result<Found, String> {
    image::look(path).map_err(|error| format!("{error}: {}", error.source))
}

fn unusable(path: &Path) -> String {
    let shown = path.display();
    match image::look(path) {
        Ok(Found::Other(what)) => {
            format!("{shown} is {what}, expected a raw image or a block device")
        }
        Ok(Found::Absent | Found::File(_) | Found::Device) | Err(_) => {
            format!("{shown} is not there, expected a raw image or a block device")
        }
    }
}

/// Where a VM's own disk lies, if it is to have one and it is there.
pub fn lying(storage: &Storage, dir: &Path, name: &Name) -> Option<PathBuf> {
    storage.image.as_ref()?;
    let path = disk::disk_path(dir, name);
    matches!(image::look_at_ours(&path), Ok(Found::File(_))).then_some(path)
}
