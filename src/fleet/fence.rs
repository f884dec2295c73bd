//! `sliced fence`, the guard that stops VMs with `stop_after` when the daemon does not: the file that it reads, and its decision.
//! Out of scope: reading and writing the file, and signals.
//!
//! # Why
//! A daemon that has failed, or that has received SIGSTOP, does not stop its VMs, and the scheduler replaces them nevertheless. The
//! guard is another process. A host that is frozen as a whole and continues can run a copy until the guard reads the file; only a
//! watchdog device or a lease on the storage prevents that.
//!
//! # Requirements on the daemon
//! - The file is replaced by `rename`, in a directory that a boot empties (`/run`). It need not be synchronized: another boot makes
//!   it void.
//! - A VM is in the file before its VMM is started, and until the VMM has exited.
//! - The file is written after each confirmed renewal. A file that is too old is safe: its times are earlier.
//! - The times of a VM are shortened in the file before they are reported to the scheduler.
//!
//! # Requirements on the guard
//! - It runs at least every [`INTERVAL`].
//! - It sends SIGKILL to all processes of the user: it opens a pidfd, then compares the user, then sends the signal by the pidfd.
//! - If it is not one process, it stores [`Guard::last`] and passes it to the next.
//!
//! # A file that cannot be read
//! The guard does not know which VMMs to stop then. It does not stop all: VMs that are never replaced run through any outage, and
//! may have disks that a SIGKILL damages. It goes by the last file that it has read: times in it are earlier than those in the one
//! that it cannot read, so every VM of it that may be replaced is stopped in time. A VM that was started since is not covered; the error
//! is reported until the file can be read. A file that is missing is one that cannot be read, if there was one in this boot.

use std::io;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::contact::{Boottime, Contact, StopTimes};
use crate::api::meta::Uid;

mod run;
#[cfg(test)]
mod tests;

pub use run::main;

/// The version of the format.
const VERSION: u32 = 1;

/// How often the guard runs.
pub const INTERVAL: Duration = Duration::from_secs(2);

/// The user that the VMM of a VM runs as, and no other process. It is known before the VMM is started, its PID is not; and it covers the
/// processes beside the VMM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct VmmUser(pub u32);

/// A VM that the daemon puts into the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Guarded {
    /// The VM.
    pub uid: Uid,
    /// The user of its VMM.
    pub user: VmmUser,
    /// See [`super::node::LocalVm::stop`].
    pub stop: StopTimes,
    /// The daemon stops or deletes it. Its time is then not postponed when contact is restored: it may run on another node.
    pub is_ending: bool,
}

/// A VM in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FencedVm {
    /// The VM.
    pub uid: Uid,
    /// The user of its VMM.
    pub user: VmmUser,
    /// When the guard stops it, in nanoseconds of `CLOCK_BOOTTIME`.
    pub kill_at: Boottime,
}

/// The file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FenceFile {
    version: u32,
    /// `/proc/sys/kernel/random/boot_id`: times and pids of another boot are void.
    pub boot_id: String,
    /// When the last confirmed renewal was sent, for a daemon that starts again: [`Contact::new`].
    pub renewed: Option<Boottime>,
    /// The VMs.
    pub vms: Vec<FencedVm>,
}

/// The error of a file that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum FenceError {
    /// It is missing, and there was one in this boot.
    #[error("the file of the guard is missing; the last one that was read is used")]
    Missing,
    /// It cannot be read.
    #[error("cannot read the file of the guard: {0}")]
    Unreadable(io::Error),
    /// It is not such a file.
    #[error("invalid file of the guard: {0}")]
    Invalid(#[from] serde_json::Error),
    /// It is of a later version.
    #[error(
        "the file of the guard has the version {found}, and this guard reads {VERSION}: restart it"
    )]
    TooNew {
        /// The version of the file.
        found: u32,
    },
}

impl FenceFile {
    /// The file that the daemon writes. `before`: the one that it has written last, or has found when it started.
    pub fn new(
        contact: &Contact,
        boot_id: String,
        vms: impl IntoIterator<Item = Guarded>,
        before: Option<&Self>,
    ) -> Self {
        let before = before.filter(|before| before.boot_id == boot_id);
        let earlier = |vm: &Guarded| {
            let mut vms = before.iter().flat_map(|before| &before.vms);
            let found = vms.find(|found| found.user == vm.user)?;
            Some(found.kill_at)
        };
        let fenced = |vm: Guarded| {
            let grace = vm.stop.within.saturating_sub(vm.stop.after);
            let kill_at = contact.stop_due(vm.stop.after).plus(grace);
            let limit = earlier(&vm).filter(|_| vm.is_ending);
            FencedVm {
                uid: vm.uid,
                user: vm.user,
                kill_at: limit.map_or(kill_at, |limit| limit.min(kill_at)),
            }
        };
        Self {
            version: VERSION,
            boot_id,
            renewed: contact.renewed(),
            vms: vms.into_iter().map(fenced).collect(),
        }
    }

    /// Keeps entries of an earlier file, with their times: their VMMs run, and the daemon has lost what it had stored of them.
    #[must_use]
    pub fn keeping(mut self, entries: impl IntoIterator<Item = FencedVm>) -> Self {
        self.vms.extend(entries);
        self
    }

    /// The content of the file.
    ///
    /// # Errors
    /// It cannot be expressed in JSON.
    pub fn encode(&self) -> Result<Vec<u8>, serde_json::Error> {
        serde_json::to_vec_pretty(self)
    }

    /// The file with this content.
    ///
    /// # Errors
    /// [`FenceError`]
    pub fn decode(content: &[u8]) -> Result<Self, FenceError> {
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        let Version { version } = serde_json::from_slice(content)?;
        if version > VERSION {
            return Err(FenceError::TooNew { found: version });
        }
        Ok(serde_json::from_slice(content)?)
    }
}

/// The guard.
#[derive(Clone, Debug, Default)]
pub struct Guard {
    last: Option<FenceFile>,
}

/// What the guard does now.
#[derive(Debug, Default)]
pub struct Decision {
    /// The VMs to stop.
    pub stop: Vec<FencedVm>,
    /// The file cannot be read; this is reported after the VMs are stopped.
    pub error: Option<FenceError>,
}

impl Guard {
    /// A guard that has read this file before.
    pub fn new(last: Option<FenceFile>) -> Self {
        Self { last }
    }

    /// The last file that was read.
    pub fn last(&self) -> Option<&FenceFile> {
        self.last.as_ref()
    }

    /// Decides. `content`: of the file; `now`: of `CLOCK_BOOTTIME`, read after the file.
    pub fn decide(
        &mut self,
        content: Result<Vec<u8>, io::Error>,
        boot_id: &str,
        now: Boottime,
    ) -> Decision {
        self.last.take_if(|last| last.boot_id != boot_id);
        let read = match content {
            Ok(content) => FenceFile::decode(&content).map(Some),
            Err(error) if error.kind() == io::ErrorKind::NotFound => match self.last {
                Some(_) => Err(FenceError::Missing),
                None => Ok(None),
            },
            Err(error) => Err(FenceError::Unreadable(error)),
        };
        let error = match read {
            Ok(file) => {
                self.last = file.filter(|file| file.boot_id == boot_id);
                None
            }
            Err(error) => Some(error),
        };
        let vms = self.last.iter().flat_map(|last| &last.vms);
        let stop = vms.filter(|vm| vm.kill_at <= now).copied().collect();
        Decision { stop, error }
    }
}
