//! The daemon's own directories: closed to everybody else, however the daemon was started and whatever an earlier version left open.
//! Out of scope: what is kept in them.
//!
//! | directory | mode |
//! |---|---|
//! | the state directory, `db` and `disks` in it | 0700 |
//! | the run directory, in which the socket is | 0755 at most: the socket's group must reach it |
//! | `netns` and `vm` in it, and each VM's own | 0700 |
//! | `/run/slice-ranges` | 0700 |

use std::path::{Path, PathBuf};

use tracing::warn;

use super::Error;
use crate::host::{fs, private};
use crate::owner::RunDir;
use crate::reconcile::group::CLAIMS_DIR;

/// The part of a VM's own directory that belongs to its VMM.
const VMM: &str = "vmm";

/// The state directory, by one and the same name from here on.
pub(super) fn state(dir: &Path) -> Result<PathBuf, Error> {
    let dir = usable(dir, 0o700)?;
    if is_ours(&dir)? {
        private::dir(&dir, |_| false)?;
    } else {
        warn!(dir = %dir.display(), "the state directory holds more than our state and is left as it is; what is ours in it is closed");
    }
    close_state(&dir)?;
    let locked = dir.join("db/db");
    private::free(&locked)?;
    Ok(dir)
}

/// What is in the state directory, as far as it is there.
pub(super) fn close_state(dir: &Path) -> Result<(), Error> {
    for name in ["db", "disks"] {
        close_if_there(&dir.join(name))?;
    }
    Ok(())
}

/// The run directory with all that is in it.
pub(super) fn run(dir: &Path) -> Result<RunDir, Error> {
    let run_dir = RunDir(usable(dir, 0o755)?);
    private::open_dir(&run_dir.0)?;
    private::dir(&run_dir.netns_dir(), |_| false)?;
    let vms = run_dir.vm_dirs();
    private::dir(&vms, |_| false)?;
    if let fs::Dir::Present(names) = fs::look_at_dir(&vms)? {
        for name in names {
            let vm = vms.join(name);
            if vm.is_dir() {
                private::dir(&vm, |name| name == VMM)?;
            }
        }
    }
    close_if_there(Path::new(CLAIMS_DIR))?;
    Ok(run_dir)
}

fn close_if_there(dir: &Path) -> Result<(), Error> {
    match fs::look_at_dir(dir)? {
        fs::Dir::Absent => Ok(()),
        fs::Dir::Present(_) | fs::Dir::NotADirectory => Ok(private::dir(dir, |_| false)?),
    }
}

/// Whether nothing but the daemon's state is in a directory. Somebody may have named one that is also his home or all of `/var/lib`.
fn is_ours(dir: &Path) -> Result<bool, Error> {
    let fs::Dir::Present(names) = fs::look_at_dir(dir)? else {
        return Ok(true);
    };
    // That is how the database lays itself out.
    let used = dir.join("db/conf").is_file() && dir.join("db/db").is_file();
    let known = |name: &String| {
        let names = [
            "disks",
            "images",
            "seal",
            "format",
            "instance",
            ".instance.new",
            "tombstones",
            "lost+found",
        ];
        names.contains(&name.as_str()) || name.starts_with("db")
    };
    Ok(used || names.iter().all(known))
}

/// Made if need be, and by one and the same name from here on.
fn usable(dir: &Path, mode: u32) -> Result<PathBuf, Error> {
    if std::fs::symlink_metadata(dir).is_err() {
        match mode {
            0o700 => private::dir(dir, |_| false)?,
            _ => private::open_dir(dir)?,
        }
    }
    dir.canonicalize().map_err(|source| Error::Folder {
        path: dir.to_owned(),
        source,
    })
}
