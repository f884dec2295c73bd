//! Opens a store: the database or a copy of it, and what the run directory knows beside it.
//! Not here: opening the database itself ([`super::open`], [`super::readonly`]).

use std::path::Path;

use super::backing::{Backing, Batch};
use super::journal::{JOURNAL, Journal};
use super::open::Opened;
use super::seal::RunCopy;
use super::tombstones::{TOMBSTONES, Tombstones};
use super::witness::Witnesses;
use super::{Beginning, Error, Recalled, Store, readonly, writer};

impl Store {
    /// Opens, or creates, the database in `dir`. One that is not what was acknowledged is set aside, never overwritten; one
    /// that cannot be read, or that another version wrote, is refused and left as it is.
    ///
    /// # Errors
    /// [`Error::Open`] when another daemon holds it, or the folder cannot be used.
    pub fn open(dir: &Path) -> Result<(Self, Opened), Error> {
        Self::open_with(dir, None)
    }

    /// The same, with a copy of the seal that is good for one boot: with it even a state directory that was replaced as a
    /// whole by an older one is noticed.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open_with(dir: &Path, run: Option<&RunCopy>) -> Result<(Self, Opened), Error> {
        let (store, opened, _) = Self::open_all(dir, run, None)?;
        Ok((store, opened))
    }

    /// The same for a daemon, with all that the run directory knows. A database that cannot be written because its disk is full
    /// or read-only is opened all the same: see [`Store::read_only`].
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
            format!("{field} was stored by a newer version; it is kept, and has no effect")
        });
        let notes = notes.into_iter().chain(unknown).collect();
        let recalled = match (&opened, &journal) {
            (Opened::Existing, _) | (_, None) => Recalled::Nothing,
            (Opened::Fresh | Opened::SetAside { .. }, Some(journal)) => journal.recall(),
        };
        let trusted = match &recalled {
            Recalled::World(world) => Some(&**world),
            Recalled::Nothing if opened == Opened::Existing => Some(&world),
            Recalled::Nothing | Recalled::Unreadable(_) => None,
        };
        let withdrawn = trusted.map_or(Ok(()), |world| {
            tombstones.withdraw_useless(|uid| world.vm(uid).map(|vm| vm.meta.deleting))
        });
        let known = tombstones.known();
        let mut backing = Backing::new(dir, seal, database, journal, tombstones);
        backing.journal_from_now(opened == Opened::Existing);
        let why = why.or(withdrawn.err()).or_else(|| backing.probe().err());
        let write = move |batch: Batch| backing.write(&batch);
        let state = Beginning {
            world,
            tombstones: known,
            why_read_only: why,
            notes,
        };
        let store = Self::start(state, write, writer::PATIENCE)
            .map_err(|error| refuse(error.to_string()))?;
        Ok((store, opened, recalled))
    }
}
