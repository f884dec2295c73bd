//! Tombstones: the VMs that are being deleted, in a file on the state disk and one in the run directory.
//! Out of scope: the removal itself.
//!
//! They are written before the database records the deletion.
//!
//! # Why
//! If the object of a VM is missing from the database, the VM was deleted, or the database is damaged. The VM's host objects may be
//! removed only in the first case, so that case must be proved by something that is not lost together with the database.
//!
//! # Order
//! The order is: tombstone, database, response, host. A crash between the first two leaves a tombstone of a VM that exists in the
//! database: the deletion was not acknowledged, and the tombstone is withdrawn at the next start. In the opposite order a crash would
//! leave a VM that is being removed without proof that this was requested.
//! A tombstone is withdrawn when the removal is complete. All tombstones are withdrawn after a reboot of the host, because no objects of
//! VMs of an earlier boot exist.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::api::meta::Uid;

/// The file's name, in the state directory and in the run directory.
pub const TOMBSTONES: &str = "tombstones";

/// The files are rewritten when they have this many more lines than there are tombstones.
const MAX_STALE_LINES: usize = 512;

/// The durable tombstones of this boot. Cheap to clone; all clones share the same set.
#[derive(Clone, Default)]
pub(super) struct TombstoneSet(Arc<Mutex<BTreeSet<Uid>>>);

impl TombstoneSet {
    pub(super) fn contains(&self, uid: Uid) -> bool {
        self.0.lock().contains(&uid)
    }

    pub(super) fn all(&self) -> Vec<Uid> {
        self.0.lock().iter().copied().collect()
    }
}

/// The files, written by the one thread that writes the database.
pub(super) struct Tombstones {
    boot: String,
    /// The file on the state disk, then the file in the run directory, if there is one.
    paths: Vec<PathBuf>,
    run_dir: Option<PathBuf>,
    known: TombstoneSet,
    lines: usize,
}

impl Tombstones {
    /// Reads both files. A tombstone counts if it is in one of them.
    ///
    /// # Errors
    /// A file cannot be read. Damaged lines are ignored.
    pub(super) fn read(state_dir: &Path, run_dir: Option<&Path>, boot: &str) -> io::Result<Self> {
        let mut paths = vec![state_dir.join(TOMBSTONES)];
        paths.extend(run_dir.map(|dir| dir.join(TOMBSTONES)));
        let (mut known, mut lines) = (BTreeSet::new(), 0);
        for path in &paths {
            let text = match fs::read(path) {
                Ok(text) => String::from_utf8_lossy(&text).into_owned(),
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            lines = lines.max(text.lines().filter(|line| !line.is_empty()).count());
            known.extend(text.lines().filter_map(|found| parse(found, boot)));
        }
        Ok(Self {
            boot: boot.to_owned(),
            paths,
            run_dir: run_dir.map(Path::to_owned),
            known: TombstoneSet(Arc::new(Mutex::new(known))),
            lines,
        })
    }

    pub(super) fn known(&self) -> TombstoneSet {
        self.known.clone()
    }

    /// Writes tombstones; they are durable when this returns.
    ///
    /// # Errors
    /// A message that names the file. The tombstones may be in one of the files, but have no effect.
    pub(super) fn put(&mut self, uids: &[Uid]) -> Result<(), String> {
        let new: Vec<Uid> = uids
            .iter()
            .copied()
            .filter(|uid| !self.known.contains(*uid))
            .collect();
        if new.is_empty() {
            return Ok(());
        }
        let text: String = new.iter().map(|uid| line(*uid, &self.boot)).collect();
        for path in &self.paths {
            append(path, &text).map_err(|error| format!("{}: {error}", path.display()))?;
        }
        self.lines += new.len();
        self.known.0.lock().extend(new);
        Ok(())
    }

    /// Withdraws tombstones; they have no effect when this returns.
    ///
    /// # Errors
    /// A message that names the file.
    pub(super) fn withdraw(&mut self, uids: &[Uid]) -> Result<(), String> {
        let (before, remaining) = {
            let mut known = self.known.0.lock();
            let before = known.len();
            known.retain(|uid| !uids.contains(uid));
            (before, known.len())
        };
        // Lines of removed VMs may remain in the file: uids are never used again.
        let has_stale_lines =
            self.lines > remaining + MAX_STALE_LINES || (remaining == 0 && self.lines > 0);
        match before != remaining && has_stale_lines {
            true => self.rewrite(),
            false => Ok(()),
        }
    }

    /// Withdraws tombstones that are no longer needed: of VMs with a deletion that was not recorded (`deleting` is false), of VMs without an
    /// object and a run directory (their removal is complete), and those of an earlier boot. The files are updated when this returns.
    ///
    /// # Errors
    /// A message that names the file.
    pub(super) fn withdraw_stale(
        &mut self,
        deleting: impl Fn(Uid) -> Option<bool>,
    ) -> Result<(), String> {
        let keep = |uid: &Uid| match deleting(*uid) {
            Some(deleting) => deleting,
            None => self.has_run_dir(*uid),
        };
        let kept: BTreeSet<Uid> = self.known.all().into_iter().filter(keep).collect();
        let changed = kept.len() != self.lines;
        *self.known.0.lock() = kept;
        match changed {
            true => self.rewrite(),
            false => Ok(()),
        }
    }

    /// Whether a VM has a directory in the run directory.
    pub(super) fn has_run_dir(&self, uid: Uid) -> bool {
        let dir = self.run_dir.as_ref();
        dir.is_some_and(|dir| dir.join("vm").join(uid.to_string()).exists())
    }

    fn rewrite(&mut self) -> Result<(), String> {
        let uids = self.known.all();
        let text: String = uids.iter().map(|uid| line(*uid, &self.boot)).collect();
        for path in &self.paths {
            replace(path, &text).map_err(|error| format!("{}: {error}", path.display()))?;
        }
        self.lines = uids.len();
        Ok(())
    }
}

/// `<boot> <uid> <hash of both>`
fn line(uid: Uid, boot: &str) -> String {
    let text = format!("{boot} {uid}");
    let hash = blake3::hash(text.as_bytes()).to_hex();
    format!("{text} {hash}\n")
}

fn parse(found: &str, boot: &str) -> Option<Uid> {
    let uid = found.split(' ').nth(1)?.parse().ok()?;
    (line(uid, boot).trim_end() == found).then_some(uid)
}

fn append(path: &Path, text: &str) -> io::Result<()> {
    let is_new = !path.exists();
    let mut file = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)?;
    let length = file.metadata()?.len();
    // The line feed ends an incomplete line that a crash may have left.
    let text = if length == 0 {
        text.to_owned()
    } else {
        format!("\n{text}")
    };
    let written = file
        .write_all(text.as_bytes())
        .and_then(|()| file.sync_data());
    if written.is_err() {
        // An incomplete line would damage the next one.
        let _ = file.set_len(length);
        return written;
    }
    match is_new {
        true => sync_parent(path),
        false => Ok(()),
    }
}

fn replace(path: &Path, text: &str) -> io::Result<()> {
    if text.is_empty() {
        return match fs::remove_file(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
            Ok(()) => sync_parent(path),
        };
    }
    let draft = path.with_extension("new");
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&draft)?;
    file.write_all(text.as_bytes())?;
    file.sync_data()?;
    fs::rename(&draft, path)?;
    sync_parent(path)
}

fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn either_file_is_sufficient_and_lines_of_another_boot_or_damaged_lines_are_ignored() {
        let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let read = |boot: &str| {
            Tombstones::read(dirs[0].path(), Some(dirs[1].path()), boot)
                .unwrap()
                .known()
                .all()
        };
        let mut uids = [Uid::random(), Uid::random()];
        uids.sort();
        let mut tombs = Tombstones::read(dirs[0].path(), Some(dirs[1].path()), "one").unwrap();
        tombs.put(&uids).unwrap();
        assert_eq!(read("one"), uids);
        assert_eq!(read("two"), []);
        let path = dirs[0].path().join(TOMBSTONES);
        let whole = fs::read(&path).unwrap();
        fs::remove_file(&path).unwrap();
        assert_eq!(read("one"), uids);
        fs::remove_file(dirs[1].path().join(TOMBSTONES)).unwrap();
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 4;
            fs::write(&path, &damaged).unwrap();
            let found = read("one");
            assert!(found.iter().all(|uid| uids.contains(uid)), "byte {at}");
            assert!(found.len() < 2, "byte {at}");
        }
    }

    #[test]
    fn the_files_are_removed_when_every_removal_is_complete() {
        let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let mut tombs = Tombstones::read(dirs[0].path(), Some(dirs[1].path()), "one").unwrap();
        let uids = [Uid::random(), Uid::random(), Uid::random()];
        tombs.put(&uids).unwrap();
        tombs.withdraw(&uids[..1]).unwrap();
        assert_eq!(tombs.known().all().len(), 2);
        // One is not being deleted, one still is.
        let deleting = |uid| Some(uid == uids[2]);
        tombs.withdraw_stale(deleting).unwrap();
        assert_eq!(tombs.known().all(), [uids[2]]);
        // The tombstone of a VM without an object is needed while its run directory exists.
        let remaining = dirs[1].path().join("vm").join(uids[2].to_string());
        fs::create_dir_all(&remaining).unwrap();
        tombs.withdraw_stale(|_| None).unwrap();
        assert_eq!(tombs.known().all(), [uids[2]]);
        tombs.withdraw(&uids).unwrap();
        for dir in &dirs {
            assert!(!dir.path().join(TOMBSTONES).exists());
        }
    }
}
