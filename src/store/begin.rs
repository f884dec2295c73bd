//! Opens a store: the database or a copy of it, and the files of the run directory.
//! Out of scope: opening the database itself ([`super::open`], [`super::readonly`]).

use std::path::Path;

use super::backing::{Batch, StoreFiles};
use super::failure::Failure;
use super::integrity::RunCopy;
use super::journal::{JOURNAL, Journal};
use super::open::Opened;
use super::reserve::Reserve;
use super::tombstones::{TOMBSTONES, Tombstones};
use super::witness::BootEvidence;
use super::world::World;
use super::{Error, InitialState, RunDirState, Store, load, readonly, writer};
use crate::api::meta::Name;

impl Store {
    /// Groups that were restricted while the database could not be written: the restriction may not be applied to their VMs yet.
    pub fn restricted_groups(&self) -> &[Name] {
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
    pub fn open_for_daemon(
        dir: &Path,
        run_dir: &Path,
        run_copy: &RunCopy,
    ) -> Result<(Self, Opened, RunDirState), Error> {
        Self::open_all(dir, Some(run_copy), Some(run_dir))
    }

    fn open_all(
        dir: &Path,
        run_copy: Option<&RunCopy>,
        run_dir: Option<&Path>,
    ) -> Result<(Self, Opened, RunDirState), Error> {
        let error_of = |reason: String| Error::Open {
            path: dir.display().to_string(),
            why: reason,
        };
        let boot_id = run_copy.map_or("", |record_copy| record_copy.boot_id.as_str());
        let journal = run_dir.map(|run_dir| Journal::new(run_dir, boot_id));
        let has_journal = run_dir.is_some_and(|dir| dir.join(JOURNAL).exists());
        let mut tombstones = Tombstones::read(dir, run_dir, boot_id)
            .map_err(|error| error_of(format!("{TOMBSTONES}: {error}")))?;
        let witnesses = BootEvidence {
            journal: journal.as_ref(),
            deleted: tombstones.known(),
        };
        let readonly::OpenResult {
            database,
            world,
            opened,
            notes,
            why,
        } = readonly::open(dir, run_copy, &witnesses, has_journal)?;
        let unknown = world.unknown.fields().into_iter().map(|field| {
            format!("{field} was stored by a newer version; it is kept, but has no effect")
        });
        let mut notes: Vec<String> = notes.into_iter().chain(unknown).collect();
        let mut world = world;
        let recovered = match (&opened, &journal) {
            (Opened::Existing, _) | (_, None) => RunDirState::Nothing,
            (Opened::Fresh | Opened::SetAside { .. }, Some(journal)) => journal.recover(),
        };
        let mut recalled = recovered;
        let reserve = run_dir.map(|_| {
            let mut reserve = Reserve::open(dir, reserve_number(&world, &recalled), why.is_none());
            match opened == Opened::Existing {
                true => {
                    apply_reserve(&mut world, &reserve, &mut notes);
                    reserve.mark_all_due();
                }
                false => apply_reserve_to_recovered(&mut recalled, &reserve, &mut notes),
            }
            reserve
        });
        let restricted = reserve.as_ref().map(restricted).unwrap_or_default();
        let has_entries = reserve
            .as_ref()
            .is_some_and(|reserve| !reserve.entries().is_empty());
        let trusted = match &recalled {
            RunDirState::World(world) => Some(&**world),
            RunDirState::Nothing if opened == Opened::Existing => Some(&world),
            RunDirState::Nothing | RunDirState::Unreadable(_) => None,
        };
        let withdrawn = trusted.map_or(Ok(()), |world| {
            tombstones.withdraw_stale(|uid| world.vm(uid).map(|vm| vm.meta.deleting))
        });
        let known = tombstones.known();
        let mut backing =
            StoreFiles::new(dir, run_copy, database, journal, tombstones).with_reserve(reserve);
        backing.enable_journal(opened == Opened::Existing);
        let mut why = why.or(withdrawn.err()).or_else(|| backing.probe().err());
        if has_entries && why.is_none() && opened == Opened::Existing {
            why = match backing.write(&Batch::default()) {
                Ok(()) => None,
                Err(Failure::Refused(why) | Failure::Unknown(why)) => Some(why),
                Err(Failure::TimedOut) => Some("the database does not answer".into()),
            };
        }
        let write = move |batch: Batch| backing.write(&batch);
        let state = InitialState {
            world,
            tombstones: known,
            read_only_reason: why,
            notes,
            restricted,
        };
        let store = Self::start(state, write, writer::TIMEOUT)
            .map_err(|error| error_of(error.to_string()))?;
        Ok((store, opened, recalled))
    }
}

/// The number of the reserve that the state contains, whether it comes from the database or from the journal.
fn reserve_number(world: &World, recovered: &RunDirState) -> u64 {
    let recalled = match recovered {
        RunDirState::World(world) => world.reserve_number,
        RunDirState::Nothing | RunDirState::Unreadable(_) => 0,
    };
    world.reserve_number.max(recalled)
}

/// The groups that the reserve has entries for.
fn restricted(reserve: &Reserve) -> Vec<Name> {
    let names = reserve.entries().keys();
    names
        .filter_map(|key| key.strip_prefix("group/")?.parse().ok())
        .collect()
}

/// Adds the entries of the reserve to a state.
fn apply_reserve(world: &mut World, reserve: &Reserve, notes: &mut Vec<String>) {
    for (key, value) in reserve.entries() {
        let Some(value) = value else { continue };
        if let Err(reason) = load::decode_into(world, key, value) {
            notes.push(format!("cannot decode {key} in the reserve: {reason}"));
        }
    }
}

/// As [`apply_reserve`], for a state that is restored from the run directory.
fn apply_reserve_to_recovered(
    recovered: &mut RunDirState,
    reserve: &Reserve,
    notes: &mut Vec<String>,
) {
    if reserve.entries().is_empty() {
        return;
    }
    let mut world = match std::mem::replace(recovered, RunDirState::Nothing) {
        RunDirState::World(world) => *world,
        RunDirState::Nothing => World::default(),
        RunDirState::Unreadable(why) => {
            notes.push(why);
            World::default()
        }
    };
    apply_reserve(&mut world, reserve, notes);
    *recovered = RunDirState::World(Box::new(world));
}
