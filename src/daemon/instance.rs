//! The instance id of this daemon: stored when the state is created, and claimed on the host while the daemon runs.
//! Out of scope: the names that are derived from it ([`crate::owner`]).
//!
//! # Why
//! Every link, chain, namespace and disk carries the id. An id derived from the path of the state directory changes when the directory
//! is moved, and the daemon then creates everything a second time, next to objects that it no longer recognises. So the id is stored in a
//! separate file: it depends neither on the path nor on the database.
//!
//! | location | purpose |
//! |---|---|
//! | `<state>/instance` | the id |
//! | `<run>/instance` | a copy for this boot, in case the state directory is lost |
//! | labels of links, namespaces and disks | the fallback for a state directory that predates the stored id and was moved since |
//! | `/run/slice-instances/<id>` | locked by the daemon that has the id: a copied state directory must not be used next to the original |

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tracing::{info, warn};

use super::Error;
use crate::host::fs::{self, Durability};
use crate::host::lock::FileLock;
use crate::host::netns::{self, Netns};
use crate::host::{self, holders, link, private};
use crate::owner::{self, Instance, Label, Owner, RunDir};
use crate::reconcile::disk;
use crate::store;
use crate::store::checked_line::{self, Line};

/// Name of the file in the state directory and in the run directory.
pub(super) const FILE: &str = "instance";

/// Directory of the claims of all daemons of this host.
const CLAIMS: &str = "/run/slice-instances";

const PREFIX: &str = "slicectl instance ";

/// How long to wait for the claim of a daemon that is exiting: a child between fork and exec holds the lock a little longer.
const PATIENCE: Duration = Duration::from_secs(2);
const RETRY_INTERVAL: Duration = Duration::from_millis(50);

/// A daemon's directories.
pub(super) struct Dirs<'a> {
    /// The state directory (canonical).
    pub(super) state: &'a Path,
    /// The run directory, with the files of this boot.
    pub(super) run: &'a RunDir,
    /// Id of the current boot.
    pub(super) boot_id: &'a str,
}

/// The claimed id. The claim is released on drop.
#[derive(Debug)]
pub(super) struct Claimed {
    pub(super) instance: Instance,
    /// Messages for the user about the source of the id.
    pub(super) notes: Vec<String>,
    pub(super) lock: FileLock,
}

/// The content of the file in the state directory.
enum Stored {
    Absent,
    Damaged,
    /// With a valid checksum, as this version writes it.
    Id(Instance),
    /// Without a checksum: written by an earlier version or by the administrator.
    Unchecked(Instance),
}

/// Finds or creates the id, claims it and stores it. This is the first step of the startup.
///
/// # Errors
/// [`Error`]: another daemon has it, or the files that record it cannot be read.
pub(super) async fn claim(dirs: &Dirs<'_>, home: &Netns) -> Result<Claimed, Error> {
    let mut notes = Vec::new();
    let stored = stored(&dirs.state.join(FILE))?;
    let run_copy = read_run_copy(dirs)?;
    let (instance, lock) = match (&stored, run_copy) {
        (Stored::Id(id) | Stored::Unchecked(id), of_run) => {
            if let Some(other) = of_run.filter(|other| other != id) {
                refuse_foreign_vms(dirs, &other)?;
            }
            (id.clone(), lock(dirs, id).await?)
        }
        (_, Some(id)) => {
            notes.push(format!(
                "the instance id {id} is taken from the run directory: {} does not exist",
                at(dirs)
            ));
            let lock = lock(dirs, &id).await?;
            (id, lock)
        }
        (missing, None) => {
            let derived = Instance::of(dirs.state);
            match from_labels(dirs, home, &derived).await? {
                Some(id) => {
                    if id != derived {
                        notes.push(format!(
                            "the instance id {id} is taken from labels of objects on this host: the state directory was moved"
                        ));
                    }
                    let lock = lock(dirs, &id).await?;
                    (id, lock)
                }
                None if is_fresh(dirs.state) => first(dirs, derived)?,
                None => {
                    if matches!(missing, Stored::Damaged) {
                        notes.push(format!(
                            "{} is damaged; the instance id {derived} is derived from its path",
                            at(dirs)
                        ));
                    }
                    let lock = lock(dirs, &derived).await?;
                    (derived, lock)
                }
            }
        }
    };
    if !matches!(stored, Stored::Id(_)) {
        store(dirs, &instance, &mut notes);
    }
    copy_to_run(dirs, &instance);
    Ok(Claimed {
        instance,
        notes,
        lock,
    })
}

/// The id of a daemon with this state directory: the stored one, or the one that it would choose.
pub(super) fn expected(state: &Path) -> Instance {
    match stored(&state.join(FILE)) {
        Ok(Stored::Id(id) | Stored::Unchecked(id)) => id,
        Ok(Stored::Absent | Stored::Damaged) | Err(_) => Instance::of(state),
    }
}

fn at(dirs: &Dirs<'_>) -> String {
    dirs.state.join(FILE).display().to_string()
}

fn stored(path: &Path) -> Result<Stored, Error> {
    Ok(match fs::read_text(path)? {
        None => Stored::Absent,
        Some(text) => parse(&text),
    })
}

fn text(id: &Instance) -> String {
    checked_line::write(&format!("{PREFIX}{id}"))
}

fn parse(text: &str) -> Stored {
    let id = |line: &str| Instance::parse(line.strip_prefix(PREFIX)?);
    match checked_line::read(text) {
        Line::Checked(line) => id(line).map_or(Stored::Damaged, Stored::Id),
        Line::Unchecked(line) => id(line).map_or(Stored::Damaged, Stored::Unchecked),
        Line::Damaged => Stored::Damaged,
    }
}

/// The id of this boot in the run directory. One of an earlier boot, in a run directory that is not a tmpfs, is ignored.
fn read_run_copy(dirs: &Dirs<'_>) -> Result<Option<Instance>, Error> {
    let text = fs::read_text(&dirs.run.0.join(FILE))?;
    Ok(text.and_then(|text| {
        let (id, boot) = text.split_once("\nboot ")?;
        let is_current = boot.strip_suffix('\n')? == dirs.boot_id;
        match parse(&format!("{id}\n")) {
            Stored::Id(id) | Stored::Unchecked(id) => Some(id).filter(|_| is_current),
            Stored::Absent | Stored::Damaged => None,
        }
    }))
}

/// Fails if the run directory contains VMs of another instance: they would be adopted under wrong names.
fn refuse_foreign_vms(dirs: &Dirs<'_>, other: &Instance) -> Result<(), Error> {
    match vms_of(dirs)?.is_empty() {
        true => Ok(()),
        false => Err(Error::Host(format!(
            "the run directory {} contains VMs of another sliced (instance {other}): use a separate --run-dir, or start sliced with the state directory that they belong to",
            dirs.run.0.display()
        ))),
    }
}

/// Names of the directories of VMs in the run directory.
fn vms_of(dirs: &Dirs<'_>) -> Result<Vec<String>, Error> {
    Ok(match fs::read_dir(&dirs.run.vm_dirs())? {
        fs::Dir::Present(names) => names,
        fs::Dir::Absent | fs::Dir::NotADirectory => Vec::new(),
    })
}

/// Whether the state directory has neither a database nor a file that indicates an earlier one.
fn is_fresh(state: &Path) -> bool {
    let exists = |name: &str| std::fs::symlink_metadata(state.join(name)).is_ok();
    !["db", "seal", "format", "disks"].into_iter().any(exists)
}

/// The id in the labels of our VMs' links, namespaces and disks, for a state directory without a stored id.
async fn from_labels(
    dirs: &Dirs<'_>,
    home: &Netns,
    derived: &Instance,
) -> Result<Option<Instance>, Error> {
    let ours: BTreeSet<String> = vms_of(dirs)?.into_iter().collect();
    let mut labels: Vec<Label> = disk::claimed(&dirs.state.join("disks"), &Default::default())?;
    let mut add_label = |alias: Option<String>| {
        let label = alias.and_then(|alias| alias.parse::<Label>().ok());
        labels.extend(label.filter(|label| ours.contains(&owner::uid_of(label).to_string())));
    };
    if !ours.is_empty() {
        for link in link::list(&home.netlink()?).await? {
            add_label(link.alias);
        }
        for path in netns::list(&dirs.run.netns_dir())? {
            match Netns::open(&path) {
                Ok(inside) => add_label(
                    link::get(&inside.netlink()?, "lo")
                        .await?
                        .and_then(|lo| lo.alias),
                ),
                // An empty file left by a crash.
                Err(error) if error.kind == host::Kind::Absent => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    let of_vms = labels
        .into_iter()
        .filter(|label| matches!(label.owner, Owner::Vm { .. }));
    let ids: BTreeSet<Instance> = of_vms.map(|label| label.instance).collect();
    if ids.contains(derived) {
        return Ok(Some(derived.clone()));
    }
    let mut ids = ids.into_iter();
    match (ids.next(), ids.next()) {
        (first, None) => Ok(first),
        (Some(one), Some(other)) => Err(Error::Host(format!(
            "objects on this host for the VMs of {} carry several instance ids ({one}, {other}); write the correct one to {}: `echo '{PREFIX}{one}' > {}`",
            dirs.state.display(),
            at(dirs),
            at(dirs)
        ))),
        (None, Some(_)) => Ok(None),
    }
}

/// The id of a new state. It is the one derived from the path, which orphans of a lost state carry, unless another daemon has that id
/// because its state directory was moved from this path.
fn first(dirs: &Dirs<'_>, derived: Instance) -> Result<(Instance, FileLock), Error> {
    let mut id = derived;
    loop {
        let path = claim_path(&id);
        let is_taken =
            || holder(&path).is_some_and(|dir| is_stored_elsewhere(&dir, dirs.state, &id));
        if !is_taken()
            && let Some(lock) = try_lock(dirs, &path)?
        {
            return Ok((id, lock));
        }
        info!(%id, "another sliced has this instance id; generating a new one");
        id = Instance::new(uuid::Uuid::new_v4().as_bytes());
    }
}

/// Whether another state directory has stored this id.
fn is_stored_elsewhere(dir: &Path, ours: &Path, id: &Instance) -> bool {
    !is_same_dir(dir, ours)
        && matches!(stored(&dir.join(FILE)), Ok(Stored::Id(theirs) | Stored::Unchecked(theirs)) if theirs == *id)
}

fn is_same_dir(one: &Path, other: &Path) -> bool {
    let id = |dir: &Path| std::fs::metadata(dir).map(|found| (found.dev(), found.ino()));
    matches!((id(one), id(other)), (Ok(one), Ok(other)) if one == other)
}

fn claim_path(id: &Instance) -> PathBuf {
    Path::new(CLAIMS).join(id.as_str())
}

/// The state directory of the daemon that claimed the id last, as the claim records it.
fn holder(claim: &Path) -> Option<PathBuf> {
    let text = fs::read_text(claim).ok().flatten()?;
    let line = text.lines().find_map(|line| line.strip_prefix("state "))?;
    Some(PathBuf::from(line))
}

fn try_lock(dirs: &Dirs<'_>, path: &Path) -> Result<Option<FileLock>, Error> {
    private::dir(Path::new(CLAIMS), |_| false)?;
    let Some(mut lock) = private::try_lock(path)? else {
        return Ok(None);
    };
    // Read by a daemon that finds the claim locked. A full /run leaves it empty.
    let content = format!("state {}\n", dirs.state.display());
    let mut previous = String::new();
    let _ = lock.read_to_string(&mut previous);
    if previous != content {
        let written = lock
            .set_len(0)
            .and_then(|()| lock.rewind())
            .and_then(|()| lock.write_all(content.as_bytes()));
        if let Err(error) = written {
            warn!(path = %path.display(), %error, "cannot record the owner of the instance id");
        }
    }
    Ok(Some(lock))
}

async fn lock(dirs: &Dirs<'_>, id: &Instance) -> Result<FileLock, Error> {
    let path = claim_path(id);
    let tries = PATIENCE.as_millis() / RETRY_INTERVAL.as_millis();
    for _ in 0..tries {
        if let Some(lock) = try_lock(dirs, &path)? {
            return Ok(lock);
        }
        tokio::time::sleep(RETRY_INTERVAL).await;
    }
    Err(in_use(dirs, id, &path))
}

fn in_use(dirs: &Dirs<'_>, id: &Instance, claim: &Path) -> Error {
    let holder_dir = holder(claim);
    let process = File::open(claim).ok().and_then(|file| {
        let holders = holders::of(&file);
        let holder = holders.iter().find(|holder| holder.has_lock)?;
        Some(format!("process {} ({})", holder.pid, holder.name))
    });
    let process = process.unwrap_or_else(|| "a process that cannot be seen from here".into());
    match holder_dir {
        Some(theirs) if !is_same_dir(&theirs, dirs.state) => Error::Host(format!(
            "the state directory {} is a copy of {}, which {process} is using; both contain the same VMs (instance {id}): stop the other sliced, or use a separate state directory",
            dirs.state.display(),
            theirs.display()
        )),
        Some(_) | None => store::Error::Open {
            path: dirs.state.join("db").display().to_string(),
            why: format!("another sliced is using it; give each daemon its own --state-dir ({process} has the instance id {id})"),
        }
        .into(),
    }
}

/// Stores the id. A state disk that is not writable does not keep the daemon from running: the run directory has the id for this boot.
fn store(dirs: &Dirs<'_>, id: &Instance, notes: &mut Vec<String>) {
    let path = dirs.state.join(FILE);
    match fs::write(&path, text(id).as_bytes(), 0o600, Durability::Disk) {
        Ok(()) => info!(%id, path = %path.display(), "instance id stored"),
        Err(error) => {
            let error = error.to_string();
            notes.push(format!("the instance id {id} cannot be stored: {error}; do not move the state directory before the next start"));
        }
    }
}

fn copy_to_run(dirs: &Dirs<'_>, id: &Instance) {
    let path = dirs.run.0.join(FILE);
    let content = format!("{}boot {}\n", text(id), dirs.boot_id);
    if matches!(fs::read_text(&path), Ok(Some(text)) if text == content) {
        return;
    }
    if let Err(error) = fs::write(&path, content.as_bytes(), 0o600, Durability::Process) {
        warn!(path = %path.display(), %error, "cannot keep a copy of the instance id");
    }
}
