//! The file of the guard on the disk, and whether a guard runs.
//! Out of scope: its content ([`crate::fleet::fence`]).

use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;

use crate::api::meta::Uid;
use crate::fleet::contact::{Boottime, Contact};
use crate::fleet::fence::{FenceFile, FencedVm, Guarded, VmmUser};
use crate::fleet::node::GuardState;
use crate::host::lock::FileLock;
use crate::host::process::user_lives;
use crate::host::{Error, fs};
use crate::store::World;

/// The name of the file in the run directory.
pub const FILE: &str = "fence.json";
/// The name of the lock that a guard holds.
pub const LOCK: &str = "fence.lock";

/// The file, as this daemon has written it last.
pub(super) struct FenceWriter {
    path: PathBuf,
    lock: PathBuf,
    boot_id: String,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    last: Option<FenceFile>,
    /// There is a file; its content may be another one, if it could not be read.
    exists: bool,
}

/// The users in the file that an earlier daemon of this boot has written. A VM with one of them could be stopped in place of another.
pub fn users(run_dir: &Path, boot_id: &str) -> BTreeSet<u32> {
    let last = State::read(&run_dir.join(FILE), boot_id).last;
    let vms = last.into_iter().flat_map(|last| last.vms);
    vms.map(|vm| vm.user.0).collect()
}

impl State {
    /// A file that cannot be read is as one without VMs: those that may be replaced are then stopped at once.
    fn read(path: &Path, boot_id: &str) -> Self {
        let content = fs::read(path);
        let exists = !matches!(content, Ok(None));
        let last = content.ok().flatten();
        let last = last.and_then(|content| FenceFile::decode(&content).ok());
        Self {
            last: last.filter(|last| last.boot_id == boot_id),
            exists,
        }
    }
}

impl FenceWriter {
    /// Reads the file that the daemon before has written.
    pub(super) fn new(run_dir: &Path, boot_id: &str) -> Self {
        let path = run_dir.join(FILE);
        Self {
            state: Mutex::new(State::read(&path, boot_id)),
            lock: run_dir.join(LOCK),
            path,
            boot_id: boot_id.to_owned(),
        }
    }

    /// When the last confirmed renewal of this boot was sent.
    pub(super) fn renewed(&self) -> Option<Boottime> {
        self.state.lock().last.as_ref()?.renewed
    }

    /// Writes the file if it changes. Without VMs in it, the time of the renewal alone is no change. `read` is called while no other
    /// write is under way: otherwise an earlier content could follow a later one.
    ///
    /// # Errors
    /// It cannot be written; the times before stay in effect.
    pub(super) fn write(&self, read: impl FnOnce(&[FencedVm]) -> Content) -> Result<(), Error> {
        let mut state = self.state.lock();
        let before = state.last.as_ref();
        let entries = before.map(|last| last.vms.as_slice()).unwrap_or_default();
        let Content {
            contact,
            guarded,
            unknown,
        } = read(entries);
        let runs = unknown.into_iter().filter(|vm| user_lives(vm.user.0));
        let file = FenceFile::new(&contact, self.boot_id.clone(), guarded, before).keeping(runs);
        let is_needed = match before {
            Some(before) => !(file.vms.is_empty() && before.vms.is_empty()) && *before != file,
            None => !file.vms.is_empty() || state.exists,
        };
        if !is_needed {
            return Ok(());
        }
        let content = file
            .encode()
            .map_err(|error| Error::other("encode", "the file of the guard", error.to_string()))?;
        fs::write(&self.path, &content, 0o600, fs::Durability::Process)?;
        *state = State {
            last: Some(file),
            exists: true,
        };
        Ok(())
    }

    /// Whether a guard runs, and the VMs that it stops.
    pub(super) fn guard(&self) -> GuardState {
        let vms = match &self.state.lock().last {
            Some(last) => last.vms.iter().map(|vm| vm.uid).collect(),
            None => BTreeSet::new(),
        };
        GuardState {
            runs: self.is_locked(),
            vms,
        }
    }

    /// A guard holds the lock.
    fn is_locked(&self) -> bool {
        let Ok(file) = File::open(&self.lock) else {
            return false;
        };
        matches!(FileLock::shared(file), Ok(Err(_)))
    }
}

/// The VMs that do not get more time than they have in the file.
pub(super) enum Ending {
    /// All: it is not decided yet which of them may go on to run. New ones are added, and those that have ended are removed.
    All,
    /// These, by their uids in the fleet: they are about to be stopped or deleted.
    These(BTreeSet<Uid>),
}

impl Ending {
    fn contains(&self, vm: &Uid) -> bool {
        match self {
            Self::All => true,
            Self::These(vms) => vms.contains(vm),
        }
    }
}

/// What the file is computed from.
pub(super) struct Content {
    /// The contact.
    pub(super) contact: Contact,
    /// The VMs that may be replaced.
    pub(super) guarded: Vec<Guarded>,
    /// The entries of the previous file with users that the store does not know.
    pub(super) unknown: Vec<FencedVm>,
}

impl Content {
    /// Of the store.
    pub(super) fn of(
        world: &World,
        contact: Contact,
        before: &[FencedVm],
        ending: &Ending,
    ) -> Self {
        let entry = |vm: &crate::api::vm::Vm| {
            let fleet = vm.fleet()?;
            Some(Guarded {
                uid: fleet.uid,
                user: VmmUser(world.vmm_id(vm.meta.uid).filter(|user| *user != 0)?),
                stop: fleet.stop?,
                is_ending: fleet.stopped || vm.meta.deleting || ending.contains(&fleet.uid),
            })
        };
        let unknown = before.iter().filter(|vm| !world.is_vmm_user(vm.user.0));
        Self {
            contact,
            guarded: world.vms().filter_map(entry).collect(),
            unknown: unknown.copied().collect(),
        }
    }
}
