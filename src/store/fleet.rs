//! What the store has of a fleet in addition to groups and VMs: the etcd cluster, and the VMs that this node has refused.
//! Out of scope: what they mean.

use std::collections::BTreeMap;

use super::load::CLUSTER_KEY;
use super::txn::{Txn, restore};
use super::world::World;
use super::{Change, Error};
use crate::api::fleet::{Facts, LocalRefusal};
use crate::api::meta::Uid;

impl World {
    /// The cluster of the fleet, as it was seen last.
    pub fn fleet_facts(&self) -> Option<Facts> {
        self.fleet.facts
    }

    /// The VMs that this node has refused, by the uid of their objects in the fleet.
    pub fn fleet_refusals(&self) -> &BTreeMap<Uid, LocalRefusal> {
        &self.fleet.refusals
    }
}

impl Txn<'_> {
    /// Writes what was seen of the cluster of the fleet.
    ///
    /// # Errors
    /// [`Error::Write`].
    pub fn put_fleet_facts(&mut self, facts: Facts) -> Result<(), Error> {
        self.write(CLUSTER_KEY.to_owned(), Some(&facts))?;
        let before = self.world_mut().fleet.facts.replace(facts);
        // Only the caller needs them.
        self.record([], move |world| world.fleet.facts = before);
        Ok(())
    }

    /// Writes the refusal of a VM, or removes it.
    ///
    /// # Errors
    /// [`Error::Write`].
    pub fn put_fleet_refusal(
        &mut self,
        uid: Uid,
        refusal: Option<LocalRefusal>,
    ) -> Result<(), Error> {
        self.write(format!("fleet-refusal/{uid}"), refusal.as_ref())?;
        let refusals = &mut self.world_mut().fleet.refusals;
        let before = match refusal {
            Some(refusal) => refusals.insert(uid, refusal),
            None => refusals.remove(&uid),
        };
        self.record(std::iter::empty::<Change>(), move |world| {
            restore(&mut world.fleet.refusals, uid, before);
        });
        Ok(())
    }

    /// Writes what another world has of a fleet.
    ///
    /// # Errors
    /// [`Error::Write`].
    pub fn restore_fleet(&mut self, world: &World) -> Result<(), Error> {
        if let Some(facts) = world.fleet.facts {
            self.put_fleet_facts(facts)?;
        }
        let refusals = world.fleet.refusals.iter();
        for (uid, refusal) in refusals {
            self.put_fleet_refusal(*uid, Some(refusal.clone()))?;
        }
        Ok(())
    }
}
