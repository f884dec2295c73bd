//! Determines the disks of a VM on this host and their order.
//! Out of scope: creating the VM's own disk ([`super::disk`]); locking disks ([`crate::host::image`]).

use std::path::{Path, PathBuf};

use super::Reconcile;
use super::disk::{self, Want};
use super::places::Places;
use super::vmm::{Access, Disk};
use crate::api::allowed::Purpose;
use crate::api::meta::Name;
use crate::api::storage::{Bytes, Storage};
use crate::host::image::{self, Edition, Found};
use crate::host::named::Named;
use crate::owner::Label;

/// The disks of one VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disks {
    /// The VM's own disk, which is created from the image.
    pub own: disk::Desired,
    /// All disks. The first one is the root disk, if there is one.
    pub all: Vec<Disk>,
}

/// The VM that owns the disks, and the daemon's directories.
#[derive(Clone, Copy, Debug)]
pub struct Whose<'a> {
    /// `<state>/disks`.
    pub dir: &'a Path,
    /// The boot ID of the host.
    pub boot: &'a str,
    /// The VM's name.
    pub name: &'a Name,
    /// The VM's label.
    pub label: &'a Label,
    /// The process that uses the disks now.
    pub user: Option<u32>,
    /// The directories of images.
    pub places: &'a Places,
}

impl Whose<'_> {
    /// The desired state without a disk.
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

/// Returns the disks of a VM. Disks that a running VMM has opened are not checked again.
///
/// # Errors
/// A file is missing or not usable, as text for users that names the file.
pub fn disks(storage: &Storage, whose: &Whose<'_>) -> Result<Disks, String> {
    let lying = |own: &disk::Desired| look_at_ours(&own.disk());
    choose(storage, whose, lying)
}

/// The same for a VM that is to replace the one that has the disks now: a disk that is deleted with that VM does not count.
///
/// # Errors
/// Those of [`disks`]; or the kept disk cannot be used by the new VM.
pub fn anew(storage: &Storage, whose: &Whose<'_>) -> Result<Disks, String> {
    let kept = disk::kept(&whose.nothing()).map_err(|error| error.to_string())?;
    let lying = |own: &disk::Desired| match kept.disk {
        disk::Lies::Absent => Ok(Found::Absent),
        disk::Lies::File(_) | disk::Lies::Foreign => look_at_ours(&own.disk()),
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
        let (want, root) = root(storage, whose.places, path, &own, lying)?;
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
            judge(whose.places, &path, access)?;
        }
        let disk = Disk { path, access };
        if all.contains(&disk) {
            let shown = disk.path.display();
            return Err(format!(
                "duplicate disk {shown}: it is a block device, and both the VM's image and in disks"
            ));
        }
        all.push(disk);
    }
    Ok(Disks { own, all })
}

/// Checks an additional disk. The contents of a disk that the guest writes are not checked.
fn judge(places: &Places, path: &Path, access: Access) -> Result<(), String> {
    let named = open(places, path)?;
    match (look(&named, path)?, access) {
        (Found::File(_), Access::ReadOnly) => raw(&named, path),
        (Found::File(_), Access::ReadWrite) | (Found::Device, _) => Ok(()),
        (Found::Absent | Found::Other(_), _) => Err(not_there(path)),
    }
}

fn open(places: &Places, path: &Path) -> Result<Named, String> {
    places
        .open(Purpose::Image, path)
        .map_err(|why| match why.is_absent() {
            true => not_there(path),
            false => why.to_string(),
        })
}

fn root(
    storage: &Storage,
    places: &Places,
    image: &Path,
    own: &disk::Desired,
    lying: impl FnOnce(&disk::Desired) -> Result<Found, String>,
) -> Result<(Option<Want>, Disk), String> {
    // A disk in use is inspected by its name and not opened: a running VM continues even if the settings no longer allow the path.
    if own.user.is_some() {
        return root_in_use(storage, image, own, lying);
    }
    let named = match places.open(Purpose::Image, image) {
        Ok(named) => Some(named),
        // Once the disk exists, its image may be removed.
        Err(why) if why.is_absent() => None,
        Err(why) => return Err(why.to_string()),
    };
    let found = match &named {
        Some(named) => look(named, image)?,
        None => Found::Absent,
    };
    if found == Found::Device {
        return device(storage, image);
    }
    // Once the disk exists, its image may change or be removed.
    let edition = match (found, lying(own)?) {
        (Found::File(edition), Found::Absent) => match &named {
            Some(named) => Some(fitting(storage, named, image, edition)?),
            None => return Err(not_there(image)),
        },
        (Found::File(edition), _) => Some(edition),
        (_, Found::Absent) => return Err(not_there(image)),
        (_, _) => None,
    };
    Ok(made_of(storage, image, own, edition))
}

fn root_in_use(
    storage: &Storage,
    image: &Path,
    own: &disk::Desired,
    lying: impl FnOnce(&disk::Desired) -> Result<Found, String>,
) -> Result<(Option<Want>, Disk), String> {
    let found = image::look(image).unwrap_or(Found::Absent);
    if found == Found::Device {
        return device(storage, image);
    }
    let edition = match (found, lying(own)?) {
        (Found::File(edition), _) => Some(edition),
        (_, _) => None,
    };
    Ok(made_of(storage, image, own, edition))
}

fn device(storage: &Storage, image: &Path) -> Result<(Option<Want>, Disk), String> {
    if storage.size_bytes.is_some() || storage.persistent {
        let shown = image.display();
        return Err(format!(
            "the image {shown} is a block device, used directly and read-only: storage_size and persistent have no effect with it"
        ));
    }
    let root = Disk {
        path: image.to_owned(),
        access: Access::ReadOnly,
    };
    Ok((None, root))
}

fn made_of(
    storage: &Storage,
    image: &Path,
    own: &disk::Desired,
    edition: Option<Edition>,
) -> (Option<Want>, Disk) {
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
    (Some(want), root)
}

fn fitting(
    storage: &Storage,
    named: &Named,
    image: &Path,
    edition: Edition,
) -> Result<Edition, String> {
    raw(named, image)?;
    let (shown, length) = (image.display(), edition.length);
    match storage.size_bytes {
        Some(size) if size < length => Err(format!(
            "storage_size: found {}, expected at least {}, the size of the image {shown}",
            Bytes(size),
            Bytes(length)
        )),
        None if length == 0 => Err(format!(
            "the image {shown} is empty: specify the size of the blank disk with storage_size"
        )),
        Some(_) | None => Ok(edition),
    }
}

fn raw(named: &Named, path: &Path) -> Result<(), String> {
    match image::format(named, path).map_err(|error| format!("{error}: {}", error.source))? {
        None => Ok(()),
        Some(format) => {
            let shown = path.display();
            Err(format!(
                "{shown} is {format}, expected a raw image: unpack it, or `qemu-img convert -O raw {shown} …`"
            ))
        }
    }
}

fn look(named: &Named, path: &Path) -> Result<Found, String> {
    image::inspect_file(named, path).map_err(|error| format!("{error}: {}", error.source))
}

fn look_at_ours(path: &Path) -> Result<Found, String> {
    image::inspect_nofollow(path).map_err(|error| format!("{error}: {}", error.source))
}

fn not_there(path: &Path) -> String {
    let shown = path.display();
    format!("{shown} not found, expected a raw image or a block device")
}

/// The path of a VM's own disk, if the spec has one and the disk exists.
pub fn lying(storage: &Storage, dir: &Path, name: &Name) -> Option<PathBuf> {
    storage.image.as_ref()?;
    let path = disk::disk_path(dir, name);
    matches!(image::inspect_nofollow(&path), Ok(Found::File(_))).then_some(path)
}
