//! Creates the daemon's directories and restricts their permissions, also of those that an earlier version created with wider ones.
//! Out of scope: the content of the directories.
//!
//! | directory | mode |
//! |---|---|
//! | the state directory, `db`, `disks` and `secrets` in it | 0700 |
//! | the run directory, in which the socket is | 0755 at most: the socket's group must reach it |
//! | `netns` and `vm` in it, and each VM's own | 0700 |
//! | `/run/slice-ranges` | 0700 |

use std::path::{Path, PathBuf};

use tracing::warn;

use super::Error;
use crate::host::{fs, private};
use crate::owner::RunDir;
use crate::reconcile::group::CLAIMS_DIR;

/// The entry of a VM's directory that its VMM owns.
const VMM: &str = "vmm";

/// Creates and restricts the state directory; returns its canonical path.
pub(super) fn state(dir: &Path) -> Result<PathBuf, Error> {
    let dir = usable(dir, 0o700)?;
    if is_ours(&dir)? {
        private::dir(&dir, |_| false)?;
    } else {
        warn!(
            dir = %dir.display(),
            "the state directory contains other files: its mode is left unchanged, and only our entries in it are restricted"
        );
    }
    restrict_state(&dir)?;
    let locked = dir.join("db/db");
    private::free(&locked)?;
    Ok(dir)
}

/// Restricts the entries of the state directory that exist.
pub(super) fn restrict_state(dir: &Path) -> Result<(), Error> {
    for name in ["db", "disks", "secrets"] {
        restrict_if_exists(&dir.join(name))?;
    }
    Ok(())
}

/// Creates and restricts the run directory and its entries; returns its canonical path.
pub(super) fn run(dir: &Path) -> Result<RunDir, Error> {
    let run_dir = RunDir(usable(dir, 0o755)?);
    private::shared_dir(&run_dir.0)?;
    private::dir(&run_dir.netns_dir(), |_| false)?;
    let vms = run_dir.vm_dirs();
    private::dir(&vms, |_| false)?;
    if let fs::Dir::Present(names) = fs::read_dir(&vms)? {
        for name in names {
            let vm = vms.join(name);
            if vm.is_dir() {
                private::dir(&vm, |name| name == VMM)?;
            }
        }
    }
    restrict_if_exists(Path::new(CLAIMS_DIR))?;
    Ok(run_dir)
}

fn restrict_if_exists(dir: &Path) -> Result<(), Error> {
    match fs::read_dir(dir)? {
        fs::Dir::Absent => Ok(()),
        fs::Dir::Present(_) | fs::Dir::NotADirectory => Ok(private::dir(dir, |_| false)?),
    }
}

/// Whether a directory contains only the daemon's state. The user may have specified a home directory or all of `/var/lib`.
fn is_ours(dir: &Path) -> Result<bool, Error> {
    let fs::Dir::Present(names) = fs::read_dir(dir)? else {
        return Ok(true);
    };
    // The file layout of the database.
    let has_database = dir.join("db/conf").is_file() && dir.join("db/db").is_file();
    let known = |name: &String| {
        let names = [
            "disks",
            "images",
            "seal",
            "format",
            "instance",
            ".instance.new",
            "secrets",
            "tombstones",
            "lost+found",
        ];
        names.contains(&name.as_str()) || name.starts_with("db")
    };
    Ok(has_database || names.iter().all(known))
}

/// Creates the directory if it does not exist; returns its canonical path.
fn usable(dir: &Path, mode: u32) -> Result<PathBuf, Error> {
    if std::fs::symlink_metadata(dir).is_err() {
        match mode {
            0o700 => private::dir(dir, |_| false)?,
            _ => private::shared_dir(dir)?,
        }
    }
    dir.canonicalize().map_err(|source| Error::Folder {
        path: dir.to_owned(),
        source,
    })
}
