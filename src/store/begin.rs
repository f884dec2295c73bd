//! Opens a store: the database or a copy of it, and the files of the run directory.
//! Out of scope: opening the database itself ([`super::open`], [`super::readonly`]).

use std::path::Path;

use super::backing::{Backing, Batch};
use super::journal::{JOURNAL, Journal};
use super::open::Opened;
use super::reserve::Reserve;
use super::seal::RunCopy;
use super::tombstones::{TOMBSTONES, Tombstones};
use super::witness::Witnesses;
use super::world::World;
use super::writer::Failure;
use super::{Beginning, Error, Recalled, Store, load, readonly, writer};
use crate::api::meta::Name;

impl Store {
    /// Groups that were restricted while the database could not be written: the restriction may not be applied to their VMs yet.
    pub fn restricted(&self) -> &[Name] {
        &self.shared.restricted
    }

    /// Opens or creates the database in `dir`. A database that is not what was acknowledged is set aside, never overwritten; one
    /// that cannot be read, or that another version wrote, is refused and not changed.
    ///
    /// # Errors
    /// [`Error::Open`] if another daemon uses it, or the directory cannot be used.
    pub fn open(dir: &Path) -> Result<(Self, Opened), Error> {
        Self::open_with(dir, None)
    }

    /// As [`Store::open`], with a copy of the integrity record that is valid for one boot: it also detects a state directory that was
    /// replaced as a whole with an older one.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open_with(dir: &Path, run: Option<&RunCopy>) -> Result<(Self, Opened), Error> {
        let (store, opened, _) = Self::open_all(dir, run, None)?;
        Ok((store, opened))
    }

    /// As [`Store::open_with`], for a daemon: uses all files of the run directory. A database that cannot be written because its
    /// disk is full or read-only is opened, too: see [`Store::read_only`].
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open_in(
        dir: &Path,
        run_dir: &Path,
        seal: &RunCopy,
    ) -> Result<(Self, Opened, Recalled), Error> {
        Self::open_all(dir, Some(seal), Some(run_dir))
    }

    fn open_all(
        dir: &Path,
        seal: Option<&RunCopy>,
        run_dir: Option<&Path>,
    ) -> Result<(Self, Opened, Recalled), Error> {
        let refuse = |why: String| Error::Open {
            path: dir.display().to_string(),
            why,
        };
        let boot = seal.map_or("", |seal| seal.boot_id.as_str());
        let journal = run_dir.map(|run_dir| Journal::new(run_dir, boot));
        let recallable = run_dir.is_some_and(|dir| dir.join(JOURNAL).exists());
        let mut tombstones = Tombstones::read(dir, run_dir, boot)
            .map_err(|error| refuse(format!("{TOMBSTONES}: {error}")))?;
        let witnesses = Witnesses {
            journal: journal.as_ref(),
            deleted: tombstones.known(),
        };
        let readonly::Found {
            database,
            world,
            opened,
            notes,
            why,
        } = readonly::open(dir, seal, &witnesses, recallable)?;
        let unknown = world.unknown.fields().into_iter().map(|field| {
            format!("{field} was stored by a newer version; it is kept, but has no effect")
        });
        let mut notes: Vec<String> = notes.into_iter().chain(unknown).collect();
        let mut world = world;
        let recalled = match (&opened, &journal) {
            (Opened::Existing, _) | (_, None) => Recalled::Nothing,
            (Opened::Fresh | Opened::SetAside { .. }, Some(journal)) => journal.recall(),
        };
        let mut recalled = recalled;
        let reserve = run_dir.map(|_| {
            let mut reserve = Reserve::open(dir, taken_over(&world, &recalled), why.is_none());
            match opened == Opened::Existing {
                true => {
                    put_restrictions(&mut world, &reserve, &mut notes);
                    reserve.all_are_due();
                }
                false => recall_restrictions(&mut recalled, &reserve, &mut notes),
            }
            reserve
        });
        let restricted = reserve.as_ref().map(restricted).unwrap_or_default();
        let owes = reserve
            .as_ref()
            .is_some_and(|reserve| !reserve.entries().is_empty());
        let trusted = match &recalled {
            Recalled::World(world) => Some(&**world),
            Recalled::Nothing if opened == Opened::Existing => Some(&world),
            Recalled::Nothing | Recalled::Unreadable(_) => None,
        };
        let withdrawn = trusted.map_or(Ok(()), |world| {
            tombstones.withdraw_useless(|uid| world.vm(uid).map(|vm| vm.meta.deleting))
        });
        let known = tombstones.known();
        let mut backing =
            Backing::new(dir, seal, database, journal, tombstones).with_reserve(reserve);
        backing.journal_from_now(opened == Opened::Existing);
        let mut why = why.or(withdrawn.err()).or_else(|| backing.probe().err());
        if owes && why.is_none() && opened == Opened::Existing {
            why = match backing.write(&Batch::default()) {
                Ok(()) => None,
                Err(Failure::Refused(why) | Failure::Unknown(why)) => Some(why),
                Err(Failure::Silent) => Some("the database does not answer".into()),
            };
        }
        let write = move |batch: Batch| backing.write(&batch);
        let state = Beginning {
            world,
            tombstones: known,
            why_read_only: why,
            notes,
            restricted,
        };
        let store = Self::start(state, write, writer::PATIENCE)
            .map_err(|error| refuse(error.to_string()))?;
        Ok((store, opened, recalled))
    }
}

/// The number of the reserve that the state contains, whether it comes from the database or from the journal.
fn taken_over(world: &World, recalled: &Recalled) -> u64 {
    let recalled = match recalled {
        Recalled::World(world) => world.reserve_taken,
        Recalled::Nothing | Recalled::Unreadable(_) => 0,
    };
    world.reserve_taken.max(recalled)
}

/// The groups that the reserve has entries for.
fn restricted(reserve: &Reserve) -> Vec<Name> {
    let names = reserve.entries().keys();
    names
        .filter_map(|key| key.strip_prefix("group/")?.parse().ok())
        .collect()
}

/// Adds the entries of the reserve to a state.
fn put_restrictions(world: &mut World, reserve: &Reserve, notes: &mut Vec<String>) {
    for (key, value) in reserve.entries() {
        let Some(value) = value else { continue };
        if let Err(why) = load::take_in(world, key, value) {
            notes.push(format!("cannot decode {key} in the reserve: {why}"));
        }
    }
}

/// As [`put_restrictions`], for a state that is restored from the run directory.
fn recall_restrictions(recalled: &mut Recalled, reserve: &Reserve, notes: &mut Vec<String>) {
    if reserve.entries().is_empty() {
        return;
    }
    let mut world = match std::mem::replace(recalled, Recalled::Nothing) {
        Recalled::World(world) => *world,
        Recalled::Nothing => World::default(),
        Recalled::Unreadable(why) => {
            notes.push(why);
            World::default()
        }
    };
    put_restrictions(&mut world, reserve, notes);
    *recalled = Recalled::World(Box::new(world));
}
