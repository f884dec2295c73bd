//! Looks at files that a user named, each on a thread that may block: they may lie on a file system whose server does not answer.
//! Not here: which files.

use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::host::blocking::{self, FILE_DEADLINE};
use crate::reconcile::vmm::{Access, Disk};

/// A look at files that a user named.
pub(super) async fn off_thread<T: Send + 'static>(
    look: impl FnOnce() -> Result<T, String> + Send + 'static,
) -> Result<T, String> {
    let looked = blocking::within(FILE_DEADLINE, "look at", "the files of the VM", || {
        Ok(look())
    });
    looked
        .await
        .map_err(|error| format!("{error}: {}", error.source))?
}

/// Whether a VMM may read them.
pub(super) async fn all_readable(files: impl Iterator<Item = Disk>) -> Result<(), String> {
    let files: Vec<Disk> = files.collect();
    off_thread(move || files.iter().try_for_each(readable)).await
}

/// Whether they are files of this host.
pub(super) async fn are_there(files: [Option<&Path>; 2]) -> Result<(), String> {
    let files: Vec<PathBuf> = files.into_iter().flatten().map(Path::to_owned).collect();
    off_thread(move || all_there(&files)).await
}

fn all_there(files: &[PathBuf]) -> Result<(), String> {
    let missing = files.iter().find(|file| !file.is_file());
    match missing {
        Some(missing) => Err(format!("{} is no file on this host", missing.display())),
        None => Ok(()),
    }
}

/// What is written is given to the VMM, and of a block device it gets a node; what is only read stays its owner's.
fn readable(file: &Disk) -> Result<(), String> {
    let found = std::fs::metadata(&file.path)
        .map_err(|error| format!("{}: {error}", file.path.display()))?;
    let everybody = found.permissions().mode() & 0o004 != 0;
    match file.access {
        Access::ReadOnly if !everybody && !found.file_type().is_block_device() => Err(format!(
            "{0} cannot be read by the user of its own that every VMM runs as: chmod o+r {0}",
            file.path.display()
        )),
        Access::ReadOnly | Access::ReadWrite => Ok(()),
    }
}
