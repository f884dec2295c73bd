//! The user ids of VMMs.
//! Out of scope: which range they are from.

use super::Error;
use super::txn::Txn;
use super::world::World;
use crate::api::meta::Uid;
use crate::api::vmm_ids::IdRange;

impl World {
    /// Whether the VMM of a VM has this user.
    pub fn is_vmm_user(&self, user: u32) -> bool {
        self.vms_by_vmm_id.contains_key(&user)
    }
}

impl Txn<'_> {
    /// Assigns a unique user id to the VMM of a VM: its current one, else the next free one. `in_use`: whether the id is used on the
    /// host. `None`: the range is exhausted.
    ///
    /// # Errors
    /// [`Error::Write`].
    pub fn assign_vmm_id(
        &mut self,
        uid: Uid,
        range: &IdRange,
        start: u32,
        in_use: impl Fn(u32) -> bool,
    ) -> Result<Option<u32>, Error> {
        if let Some(id) = self.world().vmm_id(uid) {
            return Ok(Some(id));
        }
        let start = self
            .world()
            .id_cursor
            .map_or(start, |id| id.saturating_add(1));
        let taken = |id: u32| self.world().vms_by_vmm_id.contains_key(&id) || in_use(id);
        let Some(id) = range.next_free(start, taken) else {
            return Ok(None);
        };
        self.put_vmm_id(uid, id)?;
        Ok(Some(id))
    }

    /// Writes the user id of a VM's VMM. No change is reported: only the caller needs the id.
    pub fn put_vmm_id(&mut self, uid: Uid, id: u32) -> Result<(), Error> {
        self.write(format!("vmm-id/{uid}"), Some(&id))?;
        let world = self.world_mut();
        let before = world.remove_vmm_id(uid);
        world.insert_vmm_id(uid, id);
        // Rolled back with the id: a transaction that is repeated assigns the same one.
        let cursor = world.id_cursor.replace(id);
        self.record([], move |world| {
            world.id_cursor = cursor;
            world.remove_vmm_id(uid);
            if let Some(before) = before {
                world.insert_vmm_id(uid, before);
            }
        });
        Ok(())
    }
}
