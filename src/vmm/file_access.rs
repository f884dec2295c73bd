//! Opens the host files that a VM may use, according to the daemon's settings. They are opened once and used through their descriptors.
//! Out of scope: safe path resolution ([`crate::host::named`]); the settings ([`crate::api::allowed`]).

use std::path::{Path, PathBuf};

use super::{Access, Disk, initrd};
use crate::api::allowed::{AllowedDirectories, Purpose};
use crate::api::storage::Storage;
use crate::api::vm::VmSpec;
use crate::host;
use crate::host::blocking::{self, FILE_TIMEOUT, MAX_SAME_FILES};
use crate::host::named::{self, Kind, Named, Refusal};

/// The allowed directories, and that of the daemon's disks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FileAccess {
    /// The directories for programs and images.
    pub allowed: AllowedDirectories,
    /// `<state>/disks`: the disks that the daemon creates for VMs.
    pub disk_dir: PathBuf,
    /// The program of this daemon, which is also the back end of a vsock device ([`crate::vsock`]).
    pub sliced: PathBuf,
    /// Where `slice-agent` for `agent: inject` may be; the first that exists is used.
    pub agents: Vec<PathBuf>,
    /// `<state>/initrds`: initrds with `slice-agent`.
    pub initrd_dir: PathBuf,
}

/// The reason why a file is not used, as text for users.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FileError {
    /// Its path is not below an allowed directory.
    #[error("{0}")]
    NotAllowed(String),
    /// The file is not accepted.
    #[error(transparent)]
    NotAccepted(#[from] Refusal),
}

impl FileError {
    /// The file does not exist.
    pub fn is_absent(&self) -> bool {
        matches!(self, Self::NotAccepted(error) if error.is_absent())
    }

    /// Converts this to an error of the operation `doing`.
    pub fn when(self, operation: &'static str, path: &Path) -> host::Error {
        let path_text = path.display().to_string();
        match self.is_absent() {
            true => {
                let error = std::io::Error::new(std::io::ErrorKind::NotFound, "not found");
                host::Error::io(operation, path_text, error)
            }
            false => host::Error::other(operation, path_text, self),
        }
    }
}

impl FileAccess {
    /// Opens a file that a manifest names.
    pub fn open(&self, purpose: Purpose, path: &Path) -> Result<Named, FileError> {
        let dir = self
            .allowed
            .check(purpose, path)
            .map_err(FileError::NotAllowed)?;
        let kind = match purpose {
            Purpose::Program => Kind::Program,
            Purpose::Image => Kind::Image,
        };
        Ok(named::open(path, dir, self.allowed.of(purpose), kind)?)
    }

    /// Opens a disk that the daemon created.
    pub fn open_own_disk(&self, disk: &Path) -> Result<Named, FileError> {
        Ok(named::open(disk, &self.disk_dir, &[], Kind::Internal)?)
    }

    /// Opens the initrd with `slice-agent` for a VM with the initrd `initrd`, and builds it before if necessary.
    pub fn open_injected(&self, initrd: Option<&Path>) -> Result<Named, host::Error> {
        let open = |path: &Path| {
            let opened = self.open(Purpose::Image, path);
            let named = opened.map_err(|why| why.when("use", path))?;
            // The copy is readable for the VMM, so the file must be, too.
            match named.mode() & WORLD_READABLE {
                0 => Err(host::Error::other(
                    "use",
                    path.display().to_string(),
                    unreadable(path),
                )),
                _ => Ok(named),
            }
        };
        let user = initrd.map(open).transpose()?;
        initrd::open(&self.initrd_dir, &self.agents, user.as_ref())
    }

    /// Removes all initrds with `slice-agent` that no VMM uses any more.
    pub fn clear_injected(&self) -> std::io::Result<()> {
        initrd::clear(&self.initrd_dir)
    }

    /// Checks that a `slice-agent` for `agent: inject` exists on this host.
    ///
    /// # Errors
    /// The reason, as text for users.
    pub async fn check_agent(&self) -> Result<(), String> {
        let (access, key) = (self.clone(), format!("slice-agent {:?}", self.agents));
        inspect_blocking(key, move || access.find_agent()).await
    }

    /// As [`Self::check_agent`]. Blocks.
    ///
    /// # Errors
    /// The reason, as text for users.
    pub fn find_agent(&self) -> Result<(), String> {
        initrd::agent(&self.agents).map(drop)
    }

    /// Whether this is the path of a disk that the daemon creates.
    pub fn is_own_disk(&self, disk: &Path) -> bool {
        !self.disk_dir.as_os_str().is_empty() && disk.parent() == Some(&self.disk_dir)
    }

    /// Returns a note if the settings no longer allow the paths of a running VM, so that it could not be started again.
    pub fn restart_note(&self, spec: &VmSpec) -> Option<String> {
        let programs = spec.lifecycle.program.iter().chain(&spec.lifecycle.jailer);
        let programs = programs.map(|path| (Purpose::Program, path));
        let Storage { image, disks, .. } = &spec.storage;
        let images = spec
            .kernel_file
            .iter()
            .chain(&spec.initrd_file)
            .chain(image);
        let images = images.chain(disks.iter().map(|disk| &disk.path));
        let images = images.map(|path| (Purpose::Image, path));
        let reason = programs
            .chain(images)
            .find_map(|(purpose, path)| self.allowed.check(purpose, path).err())?;
        Some(format!("keeps running, but is not started again: {reason}"))
    }

    /// Checks that a VM may boot from these files.
    ///
    /// # Errors
    /// The file that cannot be used and the reason, as text for users.
    pub async fn check_boot_files(&self, files: [Option<&Path>; 2]) -> Result<(), String> {
        let files: Vec<PathBuf> = files.into_iter().flatten().map(Path::to_owned).collect();
        let access = self.clone();
        let key = format!("files {files:?}");
        inspect_blocking(key, move || check_images(&access, &files)).await
    }

    /// Checks that the user of a VMM may use these files.
    ///
    /// # Errors
    /// The file that cannot be used and the reason, as text for users.
    pub async fn check_readable(&self, files: Vec<Disk>) -> Result<(), String> {
        let access = self.clone();
        let key = format!("use of {files:?}");
        inspect_blocking(key, move || {
            files
                .iter()
                .try_for_each(|file| check_file_readable(&access, file))
        })
        .await
    }
}

/// The mode bit that lets all users read a file.
const WORLD_READABLE: u32 = 0o004;

fn unreadable(path: &Path) -> String {
    format!(
        "{0}: permission denied for the user that the VMM runs as (each VMM has its own): chmod o+r {0}",
        path.display()
    )
}

fn not_a_file(path: &Path) -> String {
    format!("{} is not a file on this host", path.display())
}

/// Inspects files that a user named, on a thread that may block; one call at a time with the same key.
pub(crate) async fn inspect_blocking<T: Send + 'static>(
    key: String,
    look: impl FnOnce() -> Result<T, String> + Send + 'static,
) -> Result<T, String> {
    let result = blocking::limited(
        MAX_SAME_FILES,
        key,
        FILE_TIMEOUT,
        "inspect",
        "the files of the VM",
        || Ok(look()),
    );
    result.await.map_err(|error| error.to_string())?
}

fn check_images(access: &FileAccess, files: &[PathBuf]) -> Result<(), String> {
    files.iter().try_for_each(|path| {
        let file = access.open(Purpose::Image, path);
        let named = file.map_err(|error| match error.is_absent() {
            true => not_a_file(path),
            false => error.to_string(),
        })?;
        match named.device() {
            None => Ok(()),
            Some(_) => Err(not_a_file(path)),
        }
    })
}

/// A file that the VMM writes is owned by the VMM's user, and a block device gets a node with this owner. A file that the VMM only reads
/// keeps its owner, so its mode must allow all users to read it.
fn check_file_readable(access: &FileAccess, file: &Disk) -> Result<(), String> {
    let opened = access.open(Purpose::Image, &file.path);
    let named = opened.map_err(|error| error.to_string())?;
    let is_world_readable = named.mode() & WORLD_READABLE != 0;
    match file.access {
        Access::ReadOnly if !is_world_readable && named.device().is_none() => {
            Err(unreadable(&file.path))
        }
        Access::ReadOnly | Access::ReadWrite => Ok(()),
    }
}
