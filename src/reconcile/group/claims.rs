//! Stores the claims of the daemons of a host, in one file per daemon, which all daemons read before they choose.
//! Out of scope: the claims themselves ([`super::claim`]), the choice ([`super::range`], [`super::subnet`]).
//!
//! | file in `/run/slice-ranges` | content |
//! |---|---|
//! | `<instance>.json` | the claims of one daemon; replaced by `rename(2)`, so it is always complete |
//! | `<instance>.lock` | locked while that daemon runs |
//! | `lock` | locked while the files are read and changed |
//!
//! # Why
//! A claim is valid from before its choice is stored until after its removal is stored, also while its daemon is down, because the VMs
//! keep running. Therefore it is a file and not a lock, which ends with its process. A claim ends with the boot (`/run` is a tmpfs), or
//! when its daemon cannot return: it does not run, has neither state nor a copy of the state, and no link on the host has its label.
//!
//! No file is accessed under the lock of the store's world. A transaction is committed only if everything that it chose is already claimed
//! ([`Claims::lacking`]); otherwise it is rolled back, the claim is made, and the transaction runs again.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use serde::{Deserialize, Serialize};

use super::claim::{Claim, needed};
use super::range_error::RangeError;
use crate::host::lock::FileLock;
use crate::host::netlink::Handle;
use crate::host::{self, fs, link, private};
use crate::owner::{Instance, Label};
use crate::store::{self, JOURNAL, Store, World};

/// The directory of the claims of all daemons of a host.
pub const CLAIMS_DIR: &str = "/run/slice-ranges";

/// Timeout for the lock of the directory. Other daemons hold it for a few system calls only.
const LOCK_DEADLINE: Duration = Duration::from_secs(5);

/// The daemon that owns the claims.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClaimOwner {
    /// The daemon.
    pub instance: Instance,
    /// Its state directory.
    pub state_dir: PathBuf,
    /// Its run directory, with the copy of its state.
    pub run_dir: PathBuf,
    /// The boot ID of the host when the claims were made.
    pub boot_id: String,
}

/// The file of a daemon.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct ClaimFile {
    #[serde(flatten)]
    owner: ClaimOwner,
    claims: BTreeSet<Claim>,
}

/// The claims of this daemon.
pub struct Claims {
    dir: PathBuf,
    owner: ClaimOwner,
    state: Mutex<ClaimState>,
    /// Serializes access of this process to the files.
    files: tokio::sync::Mutex<Files>,
}

/// The known content of our file.
#[derive(Default)]
struct ClaimState {
    /// The claims, each with the sequence number of its last use by a transaction.
    claims: BTreeMap<Claim, u64>,
    last: u64,
    /// Claims for transactions that have not run yet, with their number.
    awaited: BTreeMap<Claim, usize>,
    /// Claims of an earlier run with lost state: VMs that are not in the store may use them.
    kept: BTreeSet<Claim>,
}

#[derive(Default)]
struct Files {
    /// The lock that shows that this daemon runs.
    alive: Option<FileLock>,
    loaded: bool,
}

impl Claims {
    /// Creates the claims of a daemon in `dir`, which all daemons of the host share.
    pub fn new(dir: &Path, owner: ClaimOwner) -> Self {
        Self {
            dir: dir.to_owned(),
            owner,
            state: Mutex::default(),
            files: tokio::sync::Mutex::default(),
        }
    }

    /// Returns those of `required` that are not claimed. A choice may be stored only if all of it is claimed, in the transaction that calls
    /// this.
    pub fn lacking(&self, required: BTreeSet<Claim>) -> Vec<Claim> {
        let mut state = self.state();
        state.last += 1;
        let last = state.last;
        let lacking = |claim: &Claim| match state.claims.get_mut(claim) {
            Some(relied) => {
                *relied = last;
                false
            }
            None => true,
        };
        required.into_iter().filter(lacking).collect()
    }

    /// Claims all of `required`, or none. They are not released before the returned guard is dropped.
    ///
    /// # Errors
    /// [`RangeError::Claimed`], or the files cannot be read or written.
    pub async fn hold(&self, required: Vec<Claim>) -> Result<Awaited<'_>, super::Error> {
        let awaited = Awaited::new(self, required);
        self.locked(|claims| {
            let others = claims.others()?;
            for claim in &awaited.required {
                claims.check(claim, &others)?;
            }
            claims.add(awaited.required.iter().cloned())
        })
        .await?;
        Ok(awaited)
    }

    /// Whether all of `required` could be claimed now. Claims nothing.
    ///
    /// # Errors
    /// As [`Claims::hold`].
    pub(super) fn could_hold(&self, required: &BTreeSet<Claim>) -> Result<(), super::Error> {
        let others = self.others()?;
        required
            .iter()
            .try_for_each(|claim| self.check(claim, &others))
    }

    /// Claims what this daemon has stored, except what another daemon has claimed. Called at startup.
    ///
    /// # Errors
    /// The files cannot be used.
    pub async fn hold_stored(&self, stored: BTreeSet<Claim>) -> Result<(), super::Error> {
        self.locked(|claims| {
            let others = claims.others()?;
            let free = |claim: &Claim| match claims.check(claim, &others) {
                Ok(()) => true,
                Err(error) => {
                    tracing::warn!(%claim, %error, "cannot claim a stored address or range");
                    false
                }
            };
            claims.add(stored.into_iter().filter(free))
        })
        .await
    }

    /// Keeps everything that was claimed in an earlier run until the next start, stored or not, because the state is lost.
    pub fn keep_all(&self) {
        let mut state = self.state();
        state.kept = state.claims.keys().cloned().collect();
    }

    /// Releases claims that are no longer needed, after their removal from the store is on disk: a removal that cannot be written is rolled
    /// back, and the claim must not be released meanwhile. What cannot be released now is released by a later call.
    pub async fn release_unused(&self, store: &Store) {
        let unused = store.read(|world| self.unused(world));
        if unused.is_empty() {
            return self.restore().await;
        }
        if store.read_only().is_some() {
            return;
        }
        // Changes nothing, and waits until all earlier changes are on disk.
        let settled = store.write(|_| Ok::<_, store::Error>(())).await;
        if settled.is_err() || store.read_only().is_some() {
            return;
        }
        // Under the world's lock: no transaction relies on a claim at the same time.
        store.read(|world| self.forget(&unused, &needed(world)));
        if let Err(error) = self.locked(|claims| claims.add([])).await {
            tracing::warn!(%error, "a claim cannot be released");
        }
    }

    /// Writes our file again if another program has removed it: we rely on its content.
    async fn restore(&self) {
        let path = self.path(&self.owner.instance, "json");
        if self.state().claims.is_empty() || path.exists() {
            return;
        }
        match self.locked(|claims| claims.add([])).await {
            Ok(()) => {
                tracing::warn!(path = %shown(&path), "the file with our claims was removed and is written again")
            }
            Err(error) => {
                tracing::warn!(%error, "the file with our claims was removed and cannot be written")
            }
        }
    }

    /// The claims of other daemons.
    ///
    /// # Errors
    /// A file cannot be read.
    pub(super) fn foreign(&self) -> Result<Vec<Claim>, host::Error> {
        let others = self.others()?.into_iter();
        Ok(others.flat_map(|other| other.claims).collect())
    }

    /// Removes the claims of daemons that cannot return. `netlink` is a socket in the host namespace.
    ///
    /// # Errors
    /// The files cannot be used, or the links of the host cannot be listed.
    pub async fn reap(&self, netlink: &Handle) -> Result<(), super::Error> {
        // Usually there is no other daemon.
        if self.others()?.is_empty() {
            return Ok(());
        }
        let links = link::list(netlink).await?;
        let labels = links.iter().filter_map(|link| link.alias.as_deref());
        let labelled: BTreeSet<Instance> = labels
            .filter_map(|alias| alias.parse::<Label>().ok())
            .map(|label| label.instance)
            .collect();
        self.locked(|claims| {
            for other in claims.others()? {
                if claims.is_abandoned(&other.owner, &labelled)? {
                    let instance = &other.owner.instance;
                    tracing::info!(%instance, "removing the claims of a daemon that cannot return");
                    claims.remove(instance)?;
                }
            }
            Ok(())
        })
        .await
    }

    fn unused(&self, world: &World) -> Vec<(Claim, u64)> {
        let needed = needed(world);
        let state = self.state();
        let unused = state.claims.iter();
        let unused = unused.filter(|(claim, _)| !needed.contains(claim));
        unused
            .filter(|(claim, _)| !state.kept.contains(claim) && !state.awaited.contains_key(claim))
            .map(|(claim, relied)| (claim.clone(), *relied))
            .collect()
    }

    /// Removes claims that no transaction has used since they were found to be unused.
    fn forget(&self, unused: &[(Claim, u64)], needed: &BTreeSet<Claim>) {
        let mut state = self.state();
        for (claim, relied) in unused {
            let awaited = state.awaited.contains_key(claim);
            if state.claims.get(claim) == Some(relied) && !needed.contains(claim) && !awaited {
                state.claims.remove(claim);
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, ClaimState> {
        self.state.lock()
    }

    /// Runs `act` while no other daemon reads or changes the files.
    async fn locked<T>(
        &self,
        act: impl FnOnce(&Self) -> Result<T, super::Error>,
    ) -> Result<T, super::Error> {
        let mut files = self.files.lock().await;
        private::dir(&self.dir, |_| false)?;
        let _lock = private::lock(&self.dir.join("lock"), LOCK_DEADLINE).await?;
        self.load(&mut files).and_then(|()| act(self))
    }

    /// Loads the claims of earlier runs of this daemon, under any instance name: a daemon with our state or run directory that does not run
    /// is an earlier run.
    fn load(&self, files: &mut Files) -> Result<(), super::Error> {
        if files.alive.is_none() {
            files.alive = private::try_lock(&self.path(&self.owner.instance, "lock"))?;
        }
        if files.loaded {
            return Ok(());
        }
        let mut earlier = BTreeSet::new();
        let mut renamed = Vec::new();
        if let Some(own) = self.own() {
            earlier.extend(own);
        }
        for other in self.others()? {
            let moved = other.owner.state_dir == self.owner.state_dir
                || other.owner.run_dir == self.owner.run_dir;
            if moved && !self.runs(&other.owner.instance)? {
                earlier.extend(other.claims);
                renamed.push(other.owner.instance);
            }
        }
        self.add(earlier)?;
        for instance in renamed {
            self.remove(&instance)?;
        }
        files.loaded = true;
        Ok(())
    }

    /// Adds claims to our file, then to the known content.
    fn add(&self, more: impl IntoIterator<Item = Claim>) -> Result<(), super::Error> {
        let more: BTreeSet<Claim> = more.into_iter().collect();
        let current = self.state().claims.keys().cloned().collect::<BTreeSet<_>>();
        let file = ClaimFile {
            owner: self.owner.clone(),
            claims: current.union(&more).cloned().collect(),
        };
        let path = self.path(&self.owner.instance, "json");
        // A file that another user has created at this path is not overwritten.
        private::read_text(&path)?;
        match file.claims.is_empty() {
            true => fs::remove(&path)?,
            false => {
                let text = serde_json::to_vec(&file)
                    .map_err(|error| host::Error::other("write", shown(&path), error))?;
                fs::write(&path, &text, 0o600, fs::Durability::Process)?;
            }
        }
        let mut state = self.state();
        state.last += 1;
        let last = state.last;
        state
            .claims
            .extend(more.into_iter().map(|claim| (claim, last)));
        Ok(())
    }

    fn check(&self, claim: &Claim, others: &[ClaimFile]) -> Result<(), super::Error> {
        let conflict = |other: &&ClaimFile| other.claims.iter().any(|c| c.conflicts(claim));
        let Some(other) = others.iter().find(conflict) else {
            return Ok(());
        };
        Err(RangeError::Claimed {
            claim: claim.clone(),
            state_dir: shown(&other.owner.state_dir),
            running: self.runs(&other.owner.instance)?,
        }
        .into())
    }

    /// The claims in our file, if it is of this boot. They are also known from the state, so a file that cannot be read is ignored.
    fn own(&self) -> Option<BTreeSet<Claim>> {
        match self.file(&self.path(&self.owner.instance, "json")) {
            Ok(file) => file.map(|file| file.claims),
            Err(error) => {
                tracing::warn!(%error, "cannot read the file with our claims; writing it again from the state");
                None
            }
        }
    }

    /// The files of all other daemons. A file that cannot be decoded is an error, because it may claim anything.
    fn others(&self) -> Result<Vec<ClaimFile>, host::Error> {
        let fs::Dir::Present(names) = fs::read_dir(&self.dir)? else {
            return Ok(Vec::new());
        };
        let own = self.path(&self.owner.instance, "json");
        let files = names
            .iter()
            .filter(|name| name.ends_with(".json") && !name.starts_with('.'))
            .map(|name| self.dir.join(name))
            .filter(|path| *path != own);
        files
            .filter_map(|path| self.file(&path).transpose())
            .collect()
    }

    /// `None`: there is no file of this boot.
    fn file(&self, path: &Path) -> Result<Option<ClaimFile>, host::Error> {
        let Some(text) = private::read_text(path)? else {
            return Ok(None);
        };
        let file: ClaimFile = serde_json::from_str(&text).map_err(|error| {
            let why =
                format!("{error}; if the sliced that wrote it is no longer used, remove the file");
            host::Error::other("decode the claims in", shown(path), why)
        })?;
        Ok(Some(file).filter(|file| file.owner.boot_id == self.owner.boot_id))
    }

    /// Whether the daemon with these claims cannot return. If its files cannot be inspected, it may return.
    fn is_abandoned(
        &self,
        owner: &ClaimOwner,
        labelled: &BTreeSet<Instance>,
    ) -> Result<bool, host::Error> {
        let left = [owner.state_dir.join("db"), owner.run_dir.join(JOURNAL)];
        let gone = |path: &PathBuf| {
            let found = std::fs::symlink_metadata(path);
            found.is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound)
        };
        Ok(left.iter().all(gone)
            && !labelled.contains(&owner.instance)
            && !self.runs(&owner.instance)?)
    }

    /// Whether a daemon runs: it holds its lock.
    fn runs(&self, instance: &Instance) -> Result<bool, host::Error> {
        Ok(private::try_lock(&self.path(instance, "lock"))?.is_none())
    }

    fn remove(&self, instance: &Instance) -> Result<(), host::Error> {
        fs::remove(&self.path(instance, "json"))?;
        fs::remove(&self.path(instance, "lock"))
    }

    fn path(&self, instance: &Instance, kind: &str) -> PathBuf {
        self.dir.join(format!("{instance}.{kind}"))
    }
}

/// Claims that a transaction is about to use. They are not released while this exists.
pub struct Awaited<'c> {
    claims: &'c Claims,
    required: Vec<Claim>,
}

impl<'c> Awaited<'c> {
    fn new(claims: &'c Claims, required: Vec<Claim>) -> Self {
        let mut state = claims.state();
        for claim in &required {
            *state.awaited.entry(claim.clone()).or_default() += 1;
        }
        drop(state);
        Self { claims, required }
    }
}

impl Drop for Awaited<'_> {
    fn drop(&mut self) {
        let mut state = self.claims.state();
        for claim in &self.required {
            if let Some(count) = state.awaited.get_mut(claim) {
                *count -= 1;
                if *count == 0 {
                    state.awaited.remove(claim);
                }
            }
        }
    }
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}
