//! Opens the host files that a VM may use, according to the daemon's settings. They are opened once and used through their descriptors.
//! Out of scope: safe path resolution ([`crate::host::named`]); the settings ([`crate::api::allowed`]).

use std::path::{Path, PathBuf};

use super::vmm::{Access, Disk};
use crate::api::allowed::{Allowed, Purpose};
use crate::api::storage::Storage;
use crate::api::vm::VmSpec;
use crate::host;
use crate::host::blocking::{self, FILE_TIMEOUT, MAX_SAME_FILES};
use crate::host::named::{self, Kind, Named, Refusal};

/// The allowed directories, and that of the daemon's disks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Places {
    /// The directories for programs and images.
    pub allowed: Allowed,
    /// `<state>/disks`: the disks that the daemon creates for VMs.
    pub disk_dir: PathBuf,
}

/// The reason why a file is not used, as text for users.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotUsed {
    /// Its path is not below an allowed directory.
    #[error("{0}")]
    Outside(String),
    /// The file is not accepted.
    #[error(transparent)]
    Refused(#[from] Refusal),
}

impl NotUsed {
    /// The file does not exist.
    pub fn is_absent(&self) -> bool {
        matches!(self, Self::Refused(refusal) if refusal.is_absent())
    }

    /// Converts this to an error of the operation `doing`.
    pub fn when(self, doing: &'static str, path: &Path) -> host::Error {
        let shown = path.display().to_string();
        match self.is_absent() {
            true => {
                let why = std::io::Error::new(std::io::ErrorKind::NotFound, "not found");
                host::Error::io(doing, shown, why)
            }
            false => host::Error::other(doing, shown, self),
        }
    }
}

impl Places {
    /// Opens a file that a manifest names.
    pub fn open(&self, purpose: Purpose, path: &Path) -> Result<Named, NotUsed> {
        let dir = self
            .allowed
            .check(purpose, path)
            .map_err(NotUsed::Outside)?;
        let kind = match purpose {
            Purpose::Program => Kind::Program,
            Purpose::Image => Kind::Image,
        };
        Ok(named::open(path, dir, self.allowed.of(purpose), kind)?)
    }

    /// Opens a disk that the daemon created.
    pub fn open_own(&self, disk: &Path) -> Result<Named, NotUsed> {
        Ok(named::open(disk, &self.disk_dir, &[], Kind::Internal)?)
    }

    /// Whether this is the path of a disk that the daemon creates.
    pub fn is_own(&self, disk: &Path) -> bool {
        !self.disk_dir.as_os_str().is_empty() && disk.parent() == Some(&self.disk_dir)
    }

    /// Returns a note if the settings no longer allow the paths of a running VM, so that it could not be started again.
    pub fn not_again(&self, spec: &VmSpec) -> Option<String> {
        let programs = spec.life.program.iter().chain(&spec.life.jailer);
        let programs = programs.map(|path| (Purpose::Program, path));
        let Storage { image, disks, .. } = &spec.storage;
        let images = spec
            .kernel_file
            .iter()
            .chain(&spec.initrd_file)
            .chain(image);
        let images = images.chain(disks.iter().map(|disk| &disk.path));
        let images = images.map(|path| (Purpose::Image, path));
        let why = programs
            .chain(images)
            .find_map(|(purpose, path)| self.allowed.check(purpose, path).err())?;
        Some(format!("keeps running, but is not started again: {why}"))
    }

    /// Checks that a VM may boot from these files.
    ///
    /// # Errors
    /// The file that cannot be used and the reason, as text for users.
    pub async fn are_there(&self, files: [Option<&Path>; 2]) -> Result<(), String> {
        let files: Vec<PathBuf> = files.into_iter().flatten().map(Path::to_owned).collect();
        let places = self.clone();
        let key = format!("files {files:?}");
        off_thread(key, move || all_there(&places, &files)).await
    }

    /// Checks that the user of a VMM may use these files.
    ///
    /// # Errors
    /// The file that cannot be used and the reason, as text for users.
    pub async fn all_readable(&self, files: Vec<Disk>) -> Result<(), String> {
        let places = self.clone();
        let key = format!("use of {files:?}");
        off_thread(key, move || {
            files.iter().try_for_each(|file| readable(&places, file))
        })
        .await
    }
}

fn no_file(path: &Path) -> String {
    format!("{} is not a file on this host", path.display())
}

/// Inspects files that a user named, on a thread that may block; one call at a time with the same key.
pub(super) async fn off_thread<T: Send + 'static>(
    key: String,
    look: impl FnOnce() -> Result<T, String> + Send + 'static,
) -> Result<T, String> {
    let looked = blocking::limited(
        MAX_SAME_FILES,
        key,
        FILE_TIMEOUT,
        "inspect",
        "the files of the VM",
        || Ok(look()),
    );
    looked
        .await
        .map_err(|error| format!("{error}: {}", error.source))?
}

fn all_there(places: &Places, files: &[PathBuf]) -> Result<(), String> {
    files.iter().try_for_each(|path| {
        let named = places.open(Purpose::Image, path);
        let named = named.map_err(|why| match why.is_absent() {
            true => no_file(path),
            false => why.to_string(),
        })?;
        match named.device() {
            None => Ok(()),
            Some(_) => Err(no_file(path)),
        }
    })
}

/// A file that the VMM writes is owned by the VMM's user, and a block device gets a node with this owner. A file that the VMM only reads
/// keeps its owner, so its mode must allow all users to read it.
fn readable(places: &Places, file: &Disk) -> Result<(), String> {
    let named = places.open(Purpose::Image, &file.path);
    let named = named.map_err(|why| why.to_string())?;
    let everybody = named.mode() & 0o004 != 0;
    match file.access {
        Access::ReadOnly if !everybody && named.device().is_none() => Err(format!(
            "{0}: permission denied for the user that the VMM runs as (each VMM has its own): chmod o+r {0}",
            file.path.display()
        )),
        Access::ReadOnly | Access::ReadWrite => Ok(()),
    }
}
