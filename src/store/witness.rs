//! Other evidence that a database is older than what was acknowledged, used if the run directory has no copy of the integrity record.
//! Out of scope: the integrity records ([`super::evidence`]).
//!
//! # Why
//! The integrity record on the state disk may be as old as the database if both were restored from the same copy. The journal is
//! written before the database, and a tombstone before the VM's deletion, so neither can be older than an undamaged database of the same
//! boot. The journal is long, so it is read for this only if the copy of the integrity record is missing or damaged.

use super::journal::Journal;
use super::position::LogPosition;
use super::tombstones::TombstoneSet;
use super::world::World;

/// The evidence of this boot.
pub(super) struct BootEvidence<'a> {
    /// `None`: there is no run directory.
    pub journal: Option<&'a Journal>,
    /// VMs with a tombstone.
    pub deleted: TombstoneSet,
}

impl BootEvidence<'_> {
    /// Why a database at this position is outdated. `None`: there is no evidence that it is.
    pub fn outdated_reason(
        &self,
        database_position: &LogPosition,
        world: &World,
    ) -> Option<String> {
        // While lost state is restored, it is restored from the journal.
        if world.recovery.is_some() {
            return None;
        }
        match self.journal.map(Journal::position) {
            Some(Ok(Some(position))) if position.id != database_position.id => Some(
                "it is not the database that was used last in this boot: the journal belongs to another one"
                    .into(),
            ),
            Some(Ok(Some(position))) if position.seq > database_position.seq => Some(format!(
                "it ends at change {}, but the journal of this boot ends at change {}",
                database_position.seq, position.seq
            )),
            Some(Ok(Some(_))) => None,
            // All tombstones are of this boot, and each was acknowledged, unless the daemon was killed at that moment.
            Some(Ok(None) | Err(_)) | None => self.undeleted_vm(world),
        }
    }

    fn undeleted_vm(&self, world: &World) -> Option<String> {
        let not_deleting = |uid| world.vm(uid).filter(|vm| !vm.meta.deleting);
        let vm = self.deleted.all().into_iter().find_map(not_deleting)?;
        Some(format!(
            "vm/{} is not deleted in it, but has a tombstone of this boot",
            vm.meta.name
        ))
    }
}
