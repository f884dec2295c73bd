//! Evidence that a database is older than what was acknowledged, if the run directory's copy of the seal does not show it.
//! Out of scope: the seals ([`super::evidence`]).
//!
//! # Why
//! The state disk's own seal may be as old as the database: both come from the same copy. The journal is written before the
//! database, and a tombstone before the VM's deletion, so neither can be older than an undamaged database of the same boot. The
//! journal is read for this only when the copy of the seal is missing or damaged: it is long.

use super::journal::Journal;
use super::mark::Mark;
use super::tombstones::Known;
use super::world::World;

/// The witnesses of this boot.
pub(super) struct Witnesses<'a> {
    /// None: there is no run directory.
    pub journal: Option<&'a Journal>,
    /// VMs that were to be deleted.
    pub deleted: Known,
}

impl Witnesses<'_> {
    /// Why the database at this mark is not the last one; `None`: there is no evidence of that.
    pub fn objection(&self, mark: &Mark, world: &World) -> Option<String> {
        // While what was lost is put back, the journal is what it is put back from.
        if world.recovery.is_some() {
            return None;
        }
        match self.journal.map(Journal::position) {
            Some(Ok(Some(position))) if position.id != mark.id => Some(
                "it is not the database that was used last in this boot: the journal is of another one"
                    .into(),
            ),
            Some(Ok(Some(position))) if position.seq > mark.seq => Some(format!(
                "it ends at change {}, and the journal of this boot at change {}",
                mark.seq, position.seq
            )),
            Some(Ok(Some(_))) => None,
            // Tombstones are of this boot alone, and each was acknowledged unless the daemon was killed in that moment.
            Some(Ok(None) | Err(_)) | None => self.resurrected(world),
        }
    }

    fn resurrected(&self, world: &World) -> Option<String> {
        let lives = |uid| world.vm(uid).filter(|vm| !vm.meta.deleting);
        let vm = self.deleted.all().into_iter().find_map(lives)?;
        Some(format!(
            "it does not know that vm/{} is deleted, and a tombstone of this boot does",
            vm.meta.name
        ))
    }
}
