//! The database itself. The only file that knows sled.
//! Not here: what the keys mean beyond their first word.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;

use super::journal::{Entries, Journal};
use super::world::World;
use super::{Error, Recalled, readonly};
use crate::api::lease::Lease;
use crate::api::meta::Uid;
use crate::api::vm::Vm;

/// The database.
pub(super) type Db = sled::Db;

/// The layout that this program writes. Another one is refused, not guessed at.
const FORMAT: &str = "1";

/// How long a database that somebody is just closing is waited for.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);

/// What was found on opening.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Opened {
    /// Nothing was there.
    Fresh,
    /// What an earlier run wrote.
    Existing,
    /// Something unreadable, now under another name.
    SetAside {
        /// Where it is now.
        path: PathBuf,
        /// Why it could not be read.
        why: String,
    },
}

/// Why the database is not open.
pub(super) enum Failed {
    /// It is not to be.
    Refused(Error),
    /// Its disk takes no more; nothing is known to be wrong with what it has.
    Unwritable(std::io::Error),
}

pub(super) fn open(dir: &Path) -> Result<(Db, World, Opened), Failed> {
    let path = path(dir);
    let refuse = |why: String| {
        // sled says it in words of its own, in a panic, or not at all.
        match readonly::probe(dir) {
            Err(error) if readonly::is_no_room(&error) => Failed::Unwritable(error),
            Ok(()) | Err(_) => Failed::Refused(Error::Open {
                path: path.display().to_string(),
                why,
            }),
        }
    };
    std::fs::create_dir_all(dir).map_err(|e| refuse(e.to_string()))?;
    let existed = path.exists();
    let why = match open_patiently(&path) {
        Ok(db) => match load(&db) {
            Ok(world) => {
                let opened = if existed {
                    Opened::Existing
                } else {
                    Opened::Fresh
                };
                return Ok((db, world, opened));
            }
            Err(why) => why,
        },
        Err(OpenError::Held) => {
            return Err(refuse(
                "another sliced is using it; give each daemon its own --state-dir".into(),
            ));
        }
        Err(OpenError::Io(why)) => return Err(refuse(why)),
        Err(OpenError::Corrupt(why)) => why,
    };
    if let full @ Failed::Unwritable(_) = refuse(why.clone()) {
        return Err(full);
    }
    let aside = set_aside(&path).map_err(|e| refuse(format!("{why}; setting it aside: {e}")))?;
    let db = open_patiently(&path).map_err(|e| refuse(e.to_string()))?;
    let world = load(&db).map_err(refuse)?;
    Ok((db, world, Opened::SetAside { path: aside, why }))
}

#[derive(Debug, thiserror::Error)]
enum OpenError {
    #[error("another process holds it")]
    Held,
    #[error("{0}")]
    Io(String),
    #[error("{0}")]
    Corrupt(String),
}

/// sled says "would block" of a lock that is held, in its own words inside an I/O error.
fn open_patiently(path: &Path) -> Result<Db, OpenError> {
    let deadline = Instant::now_for_lock() + LOCK_PATIENCE;
    loop {
        let opened = std::panic::catch_unwind(|| {
            sled::Config::new()
                .path(path)
                .cache_capacity(8 << 20)
                .flush_every_ms(None)
                .open()
        });
        match opened {
            Ok(Ok(db)) => return Ok(db),
            Ok(Err(sled::Error::Io(e))) if e.to_string().contains("could not acquire lock") => {
                if Instant::now_for_lock() >= deadline {
                    return Err(OpenError::Held);
                }
                std::thread::sleep(Duration::from_millis(50));
            }
            Ok(Err(sled::Error::Io(e))) if e.raw_os_error().is_some() => {
                return Err(OpenError::Io(e.to_string()));
            }
            Ok(Err(e)) => return Err(OpenError::Corrupt(e.to_string())),
            // sled 0.34 asserts on some damaged files.
            Err(_) => return Err(OpenError::Corrupt("its files are damaged".into())),
        }
    }
}

/// Waiting for a lock is real time, whatever a test does with tokio's clock.
trait LockClock {
    fn now_for_lock() -> Instant;
}

impl LockClock for Instant {
    #[allow(clippy::disallowed_methods)]
    fn now_for_lock() -> Instant {
        Instant::now()
    }
}

/// Renames what is at `path`.
pub(super) fn set_aside(path: &Path) -> std::io::Result<PathBuf> {
    for n in 1.. {
        let aside = path.with_file_name(format!("db.corrupt-{n}"));
        if !aside.exists() {
            std::fs::rename(path, &aside)?;
            return Ok(aside);
        }
    }
    unreachable!("the integers do not end")
}

fn load(db: &Db) -> Result<World, String> {
    match db.get("format").map_err(|e| e.to_string())? {
        Some(format) if format == FORMAT.as_bytes() => {}
        Some(format) => {
            let format = String::from_utf8_lossy(&format).into_owned();
            return Err(format!(
                "its format is {format:?}, this sliced reads {FORMAT:?}"
            ));
        }
        None if db.is_empty() => {
            db.insert("format", FORMAT).map_err(|e| e.to_string())?;
            db.flush().map_err(|e| e.to_string())?;
        }
        None => return Err("it has no format mark".into()),
    }
    let mut world = World::default();
    for entry in db.iter() {
        let (key, value) = entry.map_err(|e| e.to_string())?;
        let key = std::str::from_utf8(&key).map_err(|_| "a key is no text".to_owned())?;
        take_in(&mut world, key, &value).map_err(|e| format!("{key}: {e}"))?;
    }
    Ok(world)
}

pub(super) fn take_in(world: &mut World, key: &str, value: &[u8]) -> Result<(), String> {
    let (kind, id) = key.split_once('/').unwrap_or((key, ""));
    let name = || id.parse().map_err(|e| format!("{e}"));
    match kind {
        "format" => {}
        "group" => {
            world.groups.insert(name()?, json(value)?);
        }
        "pool" => {
            world.pools.insert(name()?, json(value)?);
        }
        "vm" => {
            let vm: Vm = json(value)?;
            let place = world.by_group.entry(vm.group.clone()).or_default();
            place.insert(vm.index, vm.meta.uid);
            if vm.on_demand.is_some() {
                world.on_demand.insert(vm.meta.name.clone(), vm.meta.uid);
            }
            world.vms.insert(vm.meta.uid, vm);
        }
        "lease" => {
            let lease: Lease = json(value)?;
            world.note_lease(lease);
        }
        "page" => {
            let (uid, rung) = id.split_once('/').ok_or("no rung")?;
            let uid: Uid = uid.parse().map_err(|e| format!("{e}"))?;
            let rung = json(format!("\"{rung}\"").as_bytes())?;
            world
                .pages
                .entry(uid)
                .or_default()
                .insert(rung, json(value)?);
        }
        "vmm-id" => {
            let uid: Uid = id.parse().map_err(|e| format!("{e}"))?;
            world.note_vmm_id(uid, json(value)?);
        }
        "ground" => world.ground = Some(json(value)?),
        other => return Err(format!("{other:?} is no kind of this program")),
    }
    Ok(())
}

fn json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    serde_json::from_slice(bytes).map_err(|e| e.to_string())
}

/// Writes it and flushes. On a full disk sled 0.34 may lose a wake-up, and then this never returns.
pub(super) fn write(db: &Db, entries: &Entries) -> Result<(), String> {
    let mut batch = sled::Batch::default();
    for (key, value) in entries {
        match value {
            Some(value) => batch.insert(key.as_bytes(), value.as_slice()),
            None => batch.remove(key.as_bytes()),
        }
    }
    // A batch that changes nothing is a question whether anything can be written.
    if entries.is_empty() {
        batch.insert("format", FORMAT);
    }
    db.apply_batch(batch)
        .and_then(|()| db.flush())
        .map(drop)
        .map_err(|e| e.to_string())
}

/// Where the database is.
pub(super) fn path(dir: &Path) -> PathBuf {
    dir.join("db")
}

/// Everything that it has.
pub(super) fn entries(db: &Db) -> Result<BTreeMap<String, Vec<u8>>, String> {
    let mut all = BTreeMap::new();
    for entry in db.iter() {
        let (key, value) = entry.map_err(|e| e.to_string())?;
        let key = String::from_utf8(key.to_vec()).map_err(|e| e.to_string())?;
        all.insert(key, value.to_vec());
    }
    Ok(all)
}

/// Opens again a database that could not be written, once there is room.
pub(super) fn reopen(dir: &Path) -> Result<Db, String> {
    let path = path(dir);
    let fail = |why: String| format!("{}: {why}", path.display());
    readonly::probe(dir).map_err(|error| fail(error.to_string()))?;
    let db = open_patiently(&path).map_err(|error| fail(error.to_string()))?;
    if db.is_empty() {
        db.insert("format", FORMAT)
            .map_err(|error| fail(error.to_string()))?;
    }
    Ok(db)
}

/// What the journal says.
pub(super) fn recall(journal: &Journal) -> Recalled {
    let all = match journal.read() {
        Ok(Some(all)) => all,
        Ok(None) => return Recalled::Nothing,
        Err(why) => return Recalled::Unreadable(why),
    };
    let mut world = World::default();
    for (key, value) in all {
        if let Err(why) = take_in(&mut world, &key, &value) {
            return Recalled::Unreadable(format!("{key}: {why}"));
        }
    }
    Recalled::World(Box::new(world))
}
