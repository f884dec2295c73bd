//! The config folder into the store, at every change and at least at every resync.
//! Not here: reading and judging manifests (`intake`, `api`).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::task::JoinHandle;
use tracing::{info, warn};

use crate::api::event::EventType;
use crate::api::host_group::{HostGroup, Origin};
use crate::api::manifest::Draft;
use crate::api::meta::{Meta, Name};
use crate::api::view::Applied;
use crate::api::vm::Vm;
use crate::clock;
use crate::intake::{self, Folder, Intake, SETTLE, Watch};
use crate::reconcile::engine::Engine;
use crate::store::{self, Txn};

/// Between two tries when the folder cannot be read or watched.
const PAUSE: Duration = Duration::from_secs(2);

/// For a reading of the folder, which may lie on a file system whose server does not answer.
const READ_DEADLINE: Duration = Duration::from_secs(30);

type Reading = (Folder, Result<Intake, intake::Error>);

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Reads the folder for as long as the daemon runs.
pub struct IntakeLoop {
    engine: Arc<Engine>,
    dir: PathBuf,
    folder: Mutex<Option<Folder>>,
    /// A reading that has not come back, with the folder.
    hanging: Mutex<Option<JoinHandle<Reading>>>,
    problems: Mutex<BTreeMap<PathBuf, Vec<String>>>,
}

impl IntakeLoop {
    /// For that folder, which need not be there yet.
    pub fn new(dir: &Path, engine: Arc<Engine>) -> Self {
        // A relative path would be another origin after a restart elsewhere.
        let dir = std::path::absolute(dir).unwrap_or_else(|_| dir.to_owned());
        let allowed = engine.processes.places().allowed.clone();
        Self {
            engine,
            folder: Mutex::new(Some(Folder::new(&dir, allowed))),
            hanging: Mutex::default(),
            dir,
            problems: Mutex::default(),
        }
    }

    /// What is wrong with a file now, one cause each.
    pub fn problems_of(&self, path: &Path) -> Vec<String> {
        let problems = self.problems.lock().unwrap_or_else(PoisonError::into_inner);
        problems.get(path).cloned().unwrap_or_default()
    }

    /// No file is broken.
    pub fn is_sound(&self) -> bool {
        let problems = self.problems.lock().unwrap_or_else(PoisonError::into_inner);
        problems.is_empty()
    }

    /// Until a reading misses nothing.
    pub async fn read_to_the_end(&self) {
        for _ in 0..3 {
            match self.read().await {
                true => tokio::time::sleep(SETTLE).await,
                false => return,
            }
        }
    }

    /// For ever.
    pub async fn run(&self) {
        loop {
            let mut watch = match Watch::new(&self.dir).await {
                Ok(watch) => watch,
                Err(error) => {
                    warn!(%error, "cannot watch the config folder; it is read now and then");
                    self.read_to_the_end().await;
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            };
            loop {
                self.read_to_the_end().await;
                while lock(&self.hanging).is_some() {
                    tokio::time::sleep(PAUSE).await;
                    self.read_to_the_end().await;
                }
                if let Err(error) = watch.changed().await {
                    warn!(%error, "the config folder's watch broke; watching anew");
                    break;
                }
            }
        }
    }

    /// One reading. True: it missed groups, and must be repeated before that is believed.
    async fn read(&self) -> bool {
        let stored: Vec<HostGroup> = self
            .engine
            .store
            .read(|world| world.groups().cloned().collect());
        let Some(mut folder) = self.folder().await else {
            let why = "a file of it does not come back from the kernel: what was read last stays";
            self.note(EventType::Warning, &self.object(), "FolderUnreadable", why);
            return true;
        };
        let mut reading = tokio::task::spawn_blocking(move || {
            let intake = folder.read(&stored);
            (folder, intake)
        });
        let intake = match tokio::time::timeout(READ_DEADLINE, &mut reading).await {
            Ok(Ok((folder, intake))) => {
                *lock(&self.folder) = Some(folder);
                intake
            }
            Ok(Err(_)) => return false,
            Err(_) => {
                *lock(&self.hanging) = Some(reading);
                return true;
            }
        };
        match intake {
            Ok(intake) => {
                let missed = !intake.missing.is_empty();
                self.carry_out(intake).await;
                missed
            }
            Err(error) => {
                self.note(
                    EventType::Warning,
                    &self.object(),
                    "FolderUnreadable",
                    &error.to_string(),
                );
                false
            }
        }
    }

    /// The folder, to be read. None: the reading before does not come back.
    async fn folder(&self) -> Option<Folder> {
        let hanging = lock(&self.hanging).take();
        let Some(mut hanging) = hanging else {
            return lock(&self.folder).take();
        };
        match tokio::time::timeout(PAUSE, &mut hanging).await {
            // What it has read is old by now.
            Ok(Ok((folder, _))) => Some(folder),
            Ok(Err(_)) => {
                let allowed = self.engine.processes.places().allowed.clone();
                Some(Folder::new(&self.dir, allowed))
            }
            Err(_) => {
                *lock(&self.hanging) = Some(hanging);
                None
            }
        }
    }

    fn object(&self) -> String {
        format!("manifest/{}", self.dir.display())
    }

    async fn carry_out(&self, intake: Intake) {
        self.tell_problems(&intake);
        let stored = self
            .engine
            .store
            .write(|txn| {
                for (draft, origin) in &intake.upserts {
                    store_draft(txn, draft, origin)?;
                }
                for name in &intake.deletions {
                    delete_group(txn, name)?;
                }
                Ok::<_, store::Error>(())
            })
            .await;
        if let Err(error) = stored {
            warn!(%error, "cannot store what the config folder says");
            return;
        }
        for (draft, origin) in &intake.upserts {
            info!(group = %draft.name, %origin, "taken in");
            let object = format!("hostgroup/{}", draft.name);
            self.note(
                EventType::Normal,
                &object,
                "Configured",
                &format!("from {origin}"),
            );
        }
        for name in &intake.kept {
            let object = format!("hostgroup/{name}");
            self.note(
                EventType::Warning,
                &object,
                "KeptWithoutFile",
                "it was adopted after the state was lost, and no file names it: it stays until its file was seen again, or `slicectl delete` removes it",
            );
        }
        for name in &intake.deletions {
            info!(group = %name, "its file is gone");
            let object = format!("hostgroup/{name}");
            self.note(
                EventType::Normal,
                &object,
                "Deleted",
                "no file names it any more",
            );
        }
    }

    fn tell_problems(&self, intake: &Intake) {
        let now: BTreeMap<PathBuf, Vec<String>> = intake
            .problems
            .iter()
            .map(|(path, problems)| {
                let lines = problems.iter().map(ToString::to_string).collect();
                (path.clone(), lines)
            })
            .collect();
        let before = {
            let mut problems = self.problems.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::replace(&mut *problems, now.clone())
        };
        for (path, lines) in now {
            if before.get(&path) == Some(&lines) {
                continue;
            }
            let object = manifest_object(&path);
            for line in &lines {
                warn!(problem = %line, "a manifest is refused; what runs is unchanged");
                self.note(EventType::Warning, &object, "ManifestInvalid", line);
            }
        }
        for (path, lines) in &intake.warnings {
            for line in lines {
                self.note(
                    EventType::Warning,
                    &manifest_object(path),
                    "NeverMatches",
                    line,
                );
            }
        }
    }

    fn note(&self, kind: EventType, object: &str, reason: &str, message: &str) {
        let events = self.engine.store.events();
        events.note(clock::now(), kind, object, reason, message);
    }
}

fn manifest_object(path: &Path) -> String {
    let name = path.file_name().unwrap_or(path.as_os_str());
    format!("manifest/{}", name.to_string_lossy())
}

/// Writes a group as a person wants it.
///
/// # Errors
/// The store's.
pub fn store_draft(
    txn: &mut Txn<'_>,
    draft: &Draft,
    origin: &Origin,
) -> Result<Applied, store::Error> {
    let living = txn.world().group(&draft.name).cloned();
    let (group, applied) = match living.filter(|group| !group.meta.deleting) {
        None => {
            let group = HostGroup {
                meta: Meta::new(draft.name.clone(), clock::now()),
                origin: origin.clone(),
                spec: draft.spec.clone(),
                orders: BTreeMap::new(),
                adopted: false,
            };
            (group, Applied::Created)
        }
        Some(group) if group.spec == draft.spec && group.origin == *origin && !group.adopted => {
            return Ok(Applied::Unchanged);
        }
        Some(mut group) => {
            if group.spec != draft.spec {
                group.meta.generation += 1;
            }
            if group.spec.update != draft.spec.update || group.origin != *origin {
                renew_records(txn, &draft.name)?;
            }
            group.spec = draft.spec.clone();
            group.origin = origin.clone();
            group.adopted = false;
            (group, Applied::Configured)
        }
    };
    txn.put_group(group)?;
    Ok(applied)
}

/// Each VM's record tells of its group: writing it anew is a new wish, and no drift.
fn renew_records(txn: &mut Txn<'_>, group: &Name) -> Result<(), store::Error> {
    let vms: Vec<Vm> = txn.world().vms_of(group).cloned().collect();
    for mut vm in vms {
        vm.meta.generation += 1;
        txn.put_vm(vm)?;
    }
    Ok(())
}

/// Marks a group as to be removed. False: there is none.
///
/// # Errors
/// The store's.
pub fn delete_group(txn: &mut Txn<'_>, name: &Name) -> Result<bool, store::Error> {
    match txn.world().group(name).cloned() {
        None => Ok(false),
        Some(mut group) => {
            group.meta.deleting = true;
            // A group of this name that comes before the last VM has gone begins with none.
            group.orders.clear();
            txn.put_group(group)?;
            Ok(true)
        }
    }
}
