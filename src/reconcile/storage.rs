//! Which disks a VM gets on this host, in which order, or why it cannot have them.
//! Out of scope: making its own ([`super::disk`]); holding them ([`crate::host::image`]).

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
    /// Where images may lie.
    pub places: &'a Places,
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
    let lying = |own: &disk::Desired| look_at_ours(&own.disk());
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
                "{shown} is a block device, and the VM's image already: found it in disks, too"
            ));
        }
        all.push(disk);
    }
    Ok(Disks { own, all })
}

/// Of one that the guest writes to, what is in it is the guest's affair.
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
    // In use, it is looked at by its name and not opened: whatever the settings have become, what runs goes on.
    if own.user.is_some() {
        return root_in_use(storage, image, own, lying);
    }
    let named = match places.open(Purpose::Image, image) {
        Ok(named) => Some(named),
        // Once the disk is made, its image may go.
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
    // Once the disk is made, its image may change or go.
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
            "the image {shown} is a block device, which is used as it is, read-only: found storage_size or persistent, expected neither"
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
            "the image {shown} is empty; say with storage_size how large a blank disk is to be"
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
    image::look_at_named(named, path).map_err(|error| format!("{error}: {}", error.source))
}

fn look_at_ours(path: &Path) -> Result<Found, String> {
    image::look_at_ours(path).map_err(|error| format!("{error}: {}", error.source))
}

fn not_there(path: &Path) -> String {
    let shown = path.display();
    format!("{shown} is not there, expected a raw image or a block device")
}

/// Where a VM's own disk lies, if it is to have one and it is there.
pub fn lying(storage: &Storage, dir: &Path, name: &Name) -> Option<PathBuf> {
    storage.image.as_ref()?;
    let path = disk::disk_path(dir, name);
    matches!(image::look_at_ours(&path), Ok(Found::File(_))).then_some(path)
}
