//! Which files of the host a VM may use: opened once, by the rules of the daemon's settings, and used through their descriptors.
//! Out of scope: following a path safely ([`crate::host::named`]); which settings there are ([`crate::api::allowed`]).

use std::path::{Path, PathBuf};

use super::vmm::{Access, Disk};
use crate::api::allowed::{Allowed, Purpose};
use crate::api::storage::Storage;
use crate::api::vm::VmSpec;
use crate::host;
use crate::host::blocking::{self, FILE_DEADLINE, SAME_FILES};
use crate::host::named::{self, Kind, Named, Refusal};

/// The directories that are allowed, and the daemon's own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Places {
    /// Below which directories programs and images may lie.
    pub allowed: Allowed,
    /// `<state>/disks`: the VMs' own disks.
    pub disk_dir: PathBuf,
}

/// Why a file is not used. For people.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotUsed {
    /// Its path is not below an allowed directory.
    #[error("{0}")]
    Outside(String),
    /// What is there is not accepted.
    #[error(transparent)]
    Refused(#[from] Refusal),
}

impl NotUsed {
    /// Nothing is there.
    pub fn is_absent(&self) -> bool {
        matches!(self, Self::Refused(refusal) if refusal.is_absent())
    }

    /// The same as an error of what we were doing.
    pub fn when(self, doing: &'static str, path: &Path) -> host::Error {
        let shown = path.display().to_string();
        match self.is_absent() {
            true => {
                let why = std::io::Error::new(std::io::ErrorKind::NotFound, "it is not there");
                host::Error::io(doing, shown, why)
            }
            false => host::Error::other(doing, shown, self),
        }
    }
}

impl Places {
    /// Opens what a manifest has named.
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

    /// Opens a disk that we have made.
    pub fn open_own(&self, disk: &Path) -> Result<Named, NotUsed> {
        Ok(named::open(disk, &self.disk_dir, &[], Kind::Ours)?)
    }

    /// Whether this is the place of a disk that we make.
    pub fn is_own(&self, disk: &Path) -> bool {
        !self.disk_dir.as_os_str().is_empty() && disk.parent() == Some(&self.disk_dir)
    }

    /// Why a VM with this spec would not be started now, by its paths alone: the settings may have changed while it runs.
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
        Some(format!("runs on, and is not started again: {why}"))
    }

    /// Whether these are files that a VM may boot from.
    ///
    /// # Errors
    /// Which is not, and why. For people.
    pub async fn are_there(&self, files: [Option<&Path>; 2]) -> Result<(), String> {
        let files: Vec<PathBuf> = files.into_iter().flatten().map(Path::to_owned).collect();
        let places = self.clone();
        let key = format!("files {files:?}");
        off_thread(key, move || all_there(&places, &files)).await
    }

    /// Whether a VMM's user may use them as they are.
    ///
    /// # Errors
    /// Which it may not, and why. For people.
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
    format!("{} is no file on this host", path.display())
}

/// A look at files that a user named; one at a time with the same key.
pub(super) async fn off_thread<T: Send + 'static>(
    key: String,
    look: impl FnOnce() -> Result<T, String> + Send + 'static,
) -> Result<T, String> {
    let looked = blocking::limited(
        SAME_FILES,
        key,
        FILE_DEADLINE,
        "look at",
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

/// What is written is shown to the VMM as its own, and of a block device it gets a node; what is only read stays its owner's.
fn readable(places: &Places, file: &Disk) -> Result<(), String> {
    let named = places.open(Purpose::Image, &file.path);
    let named = named.map_err(|why| why.to_string())?;
    let everybody = named.mode() & 0o004 != 0;
    match file.access {
        Access::ReadOnly if !everybody && named.device().is_none() => Err(format!(
            "{0} cannot be read by the user of its own that every VMM runs as: chmod o+r {0}",
            file.path.display()
        )),
        Access::ReadOnly | Access::ReadWrite => Ok(()),
    }
}
