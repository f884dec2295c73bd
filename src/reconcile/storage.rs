//! Determines the disks of a VM on this host and their order.
//! Out of scope: creating the VM's own disk ([`super::disk`]); locking disks ([`crate::host::image`]).

use std::path::{Path, PathBuf};

use super::Reconcile;
use super::disk::{self, DiskSpec};
use crate::api::allowed::Purpose;
use crate::api::meta::Name;
use crate::api::storage::{Bytes, Storage};
use crate::host::image::{self, Edition, Found};
use crate::host::named::Named;
use crate::owner::Label;
use crate::vmm::{Access, Disk, FileAccess};

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
pub struct DiskContext<'a> {
    /// `<state>/disks`.
    pub dir: &'a Path,
    /// The boot ID of the host.
    pub boot_id: &'a str,
    /// The VM's name.
    pub name: &'a Name,
    /// The VM's label.
    pub label: &'a Label,
    /// The process that uses the disks now.
    pub user: Option<u32>,
    /// The directories of images.
    pub files: &'a FileAccess,
}

impl DiskContext<'_> {
    /// The desired state without a disk.
    pub fn nothing(&self) -> disk::Desired {
        disk::Desired {
            label: self.label.clone(),
            dir: self.dir.to_owned(),
            name: self.name.clone(),
            boot: self.boot_id.to_owned(),
            user: self.user,
            spec: None,
        }
    }
}

/// Returns the disks of a VM. Disks that a running VMM has opened are not checked again.
///
/// # Errors
/// A file is missing or not usable, as text for users that names the file.
pub fn disks(storage: &Storage, context: &DiskContext<'_>) -> Result<Disks, String> {
    let inspect_existing = |own: &disk::Desired| inspect_own(&own.disk());
    resolve(storage, context, inspect_existing)
}

/// The same for a VM that is to replace the one that has the disks now: a disk that is deleted with that VM does not count.
///
/// # Errors
/// Those of [`disks`]; or the kept disk cannot be used by the new VM.
pub fn disks_for_replacement(
    storage: &Storage,
    context: &DiskContext<'_>,
) -> Result<Disks, String> {
    let kept = disk::kept(&context.nothing()).map_err(|error| error.to_string())?;
    let inspect_existing = |own: &disk::Desired| match kept.disk {
        disk::DiskSeen::Absent => Ok(Found::Absent),
        disk::DiskSeen::File(_) | disk::DiskSeen::Foreign => inspect_own(&own.disk()),
    };
    let disks = resolve(storage, context, inspect_existing)?;
    match disk::Disks::plan(&disks.own, &kept) {
        Ok(_) => Ok(disks),
        Err(conflict) => Err(conflict.to_string()),
    }
}

fn resolve(
    storage: &Storage,
    context: &DiskContext<'_>,
    inspect_existing: impl FnOnce(&disk::Desired) -> Result<Found, String>,
) -> Result<Disks, String> {
    let mut own = context.nothing();
    let mut all = Vec::new();
    if let Some(path) = &storage.image {
        let (new_spec, root) = root(storage, context.files, path, &own, inspect_existing)?;
        own.spec = new_spec;
        all.push(root);
    }
    for additional in &storage.disks {
        let path = additional.path.clone();
        let access = match additional.read_only {
            true => Access::ReadOnly,
            false => Access::ReadWrite,
        };
        if context.user.is_none() {
            check_additional(context.files, &path, access)?;
        }
        let disk = Disk { path, access };
        if all.contains(&disk) {
            let path_text = disk.path.display();
            return Err(format!(
                "duplicate disk {path_text}: it is a block device, and both the VM's image and in disks"
            ));
        }
        all.push(disk);
    }
    Ok(Disks { own, all })
}

/// Checks an additional disk. The contents of a disk that the guest writes are not checked.
fn check_additional(files: &FileAccess, path: &Path, access: Access) -> Result<(), String> {
    let file = open(files, path)?;
    match (inspect(&file, path)?, access) {
        (Found::File(_), Access::ReadOnly) => check_raw(&file, path),
        (Found::File(_), Access::ReadWrite) | (Found::Device, _) => Ok(()),
        (Found::Absent | Found::Other(_), _) => Err(not_found(path)),
    }
}

fn open(files: &FileAccess, path: &Path) -> Result<Named, String> {
    files
        .open(Purpose::Image, path)
        .map_err(|error| match error.is_absent() {
            true => not_found(path),
            false => error.to_string(),
        })
}

fn root(
    storage: &Storage,
    files: &FileAccess,
    image: &Path,
    own: &disk::Desired,
    inspect_existing: impl FnOnce(&disk::Desired) -> Result<Found, String>,
) -> Result<(Option<DiskSpec>, Disk), String> {
    // A disk in use is inspected by its name and not opened: a running VM continues even if the settings no longer allow the path.
    if own.user.is_some() {
        return root_in_use(storage, image, own, inspect_existing);
    }
    let file = match files.open(Purpose::Image, image) {
        Ok(named) => Some(named),
        // Once the disk exists, its image may be removed.
        Err(error) if error.is_absent() => None,
        Err(why) => return Err(why.to_string()),
    };
    let found = match &file {
        Some(named) => inspect(named, image)?,
        None => Found::Absent,
    };
    if found == Found::Device {
        return device(storage, image);
    }
    // Once the disk exists, its image may change or be removed.
    let version = match (found, inspect_existing(own)?) {
        (Found::File(edition), Found::Absent) => match &file {
            Some(named) => Some(check_image(storage, named, image, edition)?),
            None => return Err(not_found(image)),
        },
        (Found::File(edition), _) => Some(edition),
        (_, Found::Absent) => return Err(not_found(image)),
        (_, _) => None,
    };
    Ok(copied_root(storage, image, own, version))
}

fn root_in_use(
    storage: &Storage,
    image: &Path,
    own: &disk::Desired,
    inspect_existing: impl FnOnce(&disk::Desired) -> Result<Found, String>,
) -> Result<(Option<DiskSpec>, Disk), String> {
    let found = image::inspect(image).unwrap_or(Found::Absent);
    if found == Found::Device {
        return device(storage, image);
    }
    let version = match (found, inspect_existing(own)?) {
        (Found::File(edition), _) => Some(edition),
        (_, _) => None,
    };
    Ok(copied_root(storage, image, own, version))
}

fn device(storage: &Storage, image: &Path) -> Result<(Option<DiskSpec>, Disk), String> {
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

fn copied_root(
    storage: &Storage,
    image: &Path,
    own: &disk::Desired,
    version: Option<Edition>,
) -> (Option<DiskSpec>, Disk) {
    let spec = DiskSpec {
        image: image.to_owned(),
        edition: version,
        at_least: storage.size_bytes.unwrap_or(0),
        persistent: storage.persistent,
    };
    let root = Disk {
        path: own.disk(),
        access: Access::ReadWrite,
    };
    (Some(spec), root)
}

fn check_image(
    storage: &Storage,
    file: &Named,
    image: &Path,
    version: Edition,
) -> Result<Edition, String> {
    check_raw(file, image)?;
    let (shown, length) = (image.display(), version.length);
    match storage.size_bytes {
        Some(size) if size < length => Err(format!(
            "storage_size: found {}, expected at least {}, the size of the image {shown}",
            Bytes(size),
            Bytes(length)
        )),
        None if length == 0 => Err(format!(
            "the image {shown} is empty: specify the size of the blank disk with storage_size"
        )),
        Some(_) | None => Ok(version),
    }
}

fn check_raw(file: &Named, path: &Path) -> Result<(), String> {
    match image::format(file, path).map_err(|error| error.to_string())? {
        None => Ok(()),
        Some(format) => {
            let shown = path.display();
            Err(format!(
                "{shown} is {format}, expected a raw image: unpack it, or `qemu-img convert -O raw {shown} …`"
            ))
        }
    }
}

fn inspect(file: &Named, path: &Path) -> Result<Found, String> {
    image::inspect_file(file, path).map_err(|error| error.to_string())
}

fn inspect_own(path: &Path) -> Result<Found, String> {
    image::inspect_nofollow(path).map_err(|error| error.to_string())
}

fn not_found(path: &Path) -> String {
    let shown = path.display();
    format!("{shown} not found, expected a raw image or a block device")
}

/// The path of a VM's own disk, if the spec has one and the disk exists.
pub fn existing_disk(storage: &Storage, dir: &Path, name: &Name) -> Option<PathBuf> {
    storage.image.as_ref()?;
    let path = disk::disk_path(dir, name);
    matches!(image::inspect_nofollow(&path), Ok(Found::File(_))).then_some(path)
}
