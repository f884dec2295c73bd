//! Reads the manifest directory into the store, at every change and at least at every resync.
//! Out of scope: reading and validating manifests (`intake`, `api`); writing groups (`drafts`).
//!
//! # What triggers a read
//! inotify reports changes that are made through the VFS of this kernel. It does not report writes through a mapping, changes made by
//! other clients of a network file system or in a lower directory of an overlay, and mounts over the directory. So at every resync the
//! directory is watched and read again; changes of the mount table trigger a read; and a directory on a file system that reports no
//! changes, or that cannot be watched, is compared by `stat` every two seconds.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;
use tracing::{info, warn};

mod report;

use self::report::Findings;
use super::drafts::{delete_group, store_draft};
use super::group_events::GroupEvent;
use super::restrictions;
use crate::api::event::{EventReason, EventType, ObjectRef};
use crate::api::host_group::{DirectoryId, HostGroup, Origin};
use crate::api::view::Applied;
use crate::clock;
use crate::engine::Engine;
use crate::host::mounts::Mounts;
use crate::intake::{self, IntakePlan, ManifestDir, Watch};
use crate::store;

/// Interval between attempts to read or watch a directory that fails, and between polls of a directory that reports no changes.
const POLL_INTERVAL: Duration = Duration::from_secs(2);

/// Deadline for reading the directory, which may be on a file system with a server that does not respond.
const READ_DEADLINE: Duration = Duration::from_secs(30);

/// Delay after a change of the mount table. Many file systems are mounted at once (e.g. namespaces of VMs); one check covers all.
const MOUNT_DEBOUNCE: Duration = Duration::from_millis(100);

/// The directory with the result of a read. `Ok(None)`: the directory is unchanged.
type ReadOutcome = (ManifestDir, Result<Option<IntakePlan>, intake::Error>);

/// Whether an unchanged directory is read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Read {
    Always,
    IfChanged,
}

/// When the directory is read or polled without a notification.
#[derive(Clone, Copy, Default)]
struct Schedule {
    /// Time of the next read.
    again: Option<Instant>,
    /// Whether it is polled every [`POLL_INTERVAL`].
    polled: bool,
}

/// Reads the directory while the daemon runs.
pub struct IntakeLoop {
    engine: Arc<Engine>,
    dir: PathBuf,
    grace: Duration,
    folder: Mutex<Option<ManifestDir>>,
    /// A read that has not returned yet. It owns the [`ManifestDir`].
    hanging: Mutex<Option<JoinHandle<ReadOutcome>>>,
    findings: Mutex<Findings>,
    schedule: Mutex<Schedule>,
}

impl IntakeLoop {
    /// Creates a loop for `dir`, which need not exist yet. A file must be absent for `grace` before its groups are removed.
    pub fn new(dir: &Path, grace: Duration, engine: Arc<Engine>) -> Self {
        // A relative path would be another origin after a restart in another working directory.
        let dir = std::path::absolute(dir).unwrap_or_else(|_| dir.to_owned());
        let allowed = engine.processes.files().allowed.clone();
        Self {
            engine,
            folder: Mutex::new(Some(ManifestDir::new(&dir, allowed, grace))),
            hanging: Mutex::default(),
            dir,
            grace,
            findings: Mutex::default(),
            schedule: Mutex::default(),
        }
    }

    /// Why a group does not match its file, one message per cause.
    pub fn problems_of(&self, group: &HostGroup) -> Vec<String> {
        let Origin::File(path) = &group.origin else {
            return Vec::new();
        };
        let findings = self.findings.lock();
        let of_file = findings.problems.get(path).into_iter().flatten();
        let of_group = findings.kept.get(&group.meta.name);
        let of_folder = findings.unreadable.iter();
        of_file.chain(of_group).chain(of_folder).cloned().collect()
    }

    /// Whether a group cannot be removed by editing its file, because the file is missing or unreadable.
    pub fn has_no_file(&self, group: &HostGroup) -> bool {
        let findings = self.findings.lock();
        findings.kept.contains_key(&group.meta.name) || findings.unreadable.is_some()
    }

    /// Every problem of the directory and its files, with the name of the file.
    pub fn problems(&self) -> Vec<String> {
        let findings = self.findings.lock();
        let of_files = findings.problems.iter();
        let of_files = of_files.flat_map(|(path, lines)| {
            let object = ObjectRef::manifest(path);
            lines.iter().map(move |line| format!("{object}: {line}"))
        });
        let object = ObjectRef::manifest(&self.dir);
        let of_folder = findings.unreadable.iter();
        let of_folder = of_folder.map(|why| format!("{object}: {why}"));
        of_folder.chain(of_files).collect()
    }

    /// Whether no file has problems.
    pub fn has_no_problems(&self) -> bool {
        self.findings.lock().problems.is_empty()
    }

    /// Reads until no further read is scheduled.
    pub async fn read_until_settled(&self) {
        let end = clock::monotonic() + 2 * self.grace + POLL_INTERVAL;
        self.read(Read::Always).await;
        loop {
            let next_read = self.schedule.lock().again;
            let Some(again) = next_read.filter(|again| *again <= end) else {
                return;
            };
            tokio::time::sleep_until(again.into()).await;
            self.read(Read::Always).await;
            if clock::monotonic() > end {
                return;
            }
        }
    }

    /// Reads at every change. Never returns.
    pub async fn run(&self, resync: Duration) {
        let mounts = Mounts::watch();
        let mut ticks = tokio::time::interval(resync);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ticks.tick().await;
        let mut was_watched = true;
        loop {
            // The watch is set up before the read, so that no change after the read is missed.
            let at = self.directory().await;
            let mut watch = match Watch::new(&self.dir).await {
                Ok(watch) => Some(watch),
                Err(error) => {
                    // A directory that does not exist is reported when it is read.
                    if was_watched && at.is_some() {
                        warn!(%error, "cannot watch the manifest directory; polling it every 2 s");
                    }
                    None
                }
            };
            was_watched = watch.is_some();
            self.read(Read::Always).await;
            self.follow(&mut watch, at, &mounts, &mut ticks).await;
        }
    }

    /// Reads at every change, until the directory must be watched again.
    async fn follow(
        &self,
        watch: &mut Option<Watch>,
        at: Option<DirectoryId>,
        mounts: &Mounts,
        ticks: &mut tokio::time::Interval,
    ) {
        loop {
            let (next_read, polled) = {
                let schedule = self.schedule.lock();
                (schedule.again, schedule.polled || watch.is_none())
            };
            let next_poll = polled.then(|| clock::monotonic() + POLL_INTERVAL);
            tokio::select! {
                changed = changed(watch) => {
                    if let Err(error) = changed {
                        warn!(%error, "the watch of the manifest directory failed; watching it again");
                        return;
                    }
                    self.read(Read::Always).await;
                }
                () = mounts.changed() => {
                    tokio::time::sleep(MOUNT_DEBOUNCE).await;
                    if self.was_replaced(&at).await {
                        return;
                    }
                    // The mount may cover one of its files.
                    self.read(Read::IfChanged).await;
                }
                _ = ticks.tick() => {
                    if !self.is_hanging() {
                        return;
                    }
                    self.read(Read::Always).await;
                }
                () = sleep_until(next_read) => self.read(Read::Always).await,
                () = sleep_until(next_poll) => {
                    // Where the inotify limit was reached, a watch may be available by now.
                    if !self.is_hanging() && (watch.is_none() || self.was_replaced(&at).await) {
                        *watch = Watch::new(&self.dir).await.ok();
                        if watch.is_some() {
                            return;
                        }
                    }
                    self.read(Read::IfChanged).await;
                }
            }
        }
    }

    /// Whether a read has not returned from the kernel. Every further access to the directory could block another thread.
    fn is_hanging(&self) -> bool {
        self.hanging.lock().is_some()
    }

    /// Whether the path resolves to another directory than `at`.
    async fn was_replaced(&self, at: &Option<DirectoryId>) -> bool {
        !self.is_hanging() && self.directory().await != *at
    }

    /// The directory that the path resolves to. `None` if it does not exist or its file system does not respond.
    async fn directory(&self) -> Option<DirectoryId> {
        if self.is_hanging() {
            return None;
        }
        let dir = self.dir.clone();
        let id = tokio::task::spawn_blocking(move || intake::id(&dir).ok());
        let answer = tokio::time::timeout(POLL_INTERVAL, id).await;
        answer.ok()?.ok()?
    }

    /// Reads the directory once and schedules the next read.
    async fn read(&self, which: Read) {
        let stored: Vec<HostGroup> = self
            .engine
            .store
            .read(|world| world.groups().cloned().collect());
        let schedule = Schedule {
            again: Some(clock::monotonic() + POLL_INTERVAL),
            polled: true,
        };
        let Some(mut folder) = self.folder().await else {
            self.report_unreadable("reading a file in it does not return".to_owned());
            *self.schedule.lock() = schedule;
            return;
        };
        let mut reading = tokio::task::spawn_blocking(move || {
            let unchanged = which == Read::IfChanged && folder.is_unchanged();
            let intake = match unchanged {
                true => Ok(None),
                false => folder.read(&stored, clock::monotonic()).map(Some),
            };
            (folder, intake)
        });
        let intake = match tokio::time::timeout(READ_DEADLINE, &mut reading).await {
            Ok(Ok((folder, intake))) => {
                *self.folder.lock() = Some(folder);
                intake
            }
            Ok(Err(_)) => {
                *self.folder.lock() = Some(self.new_folder());
                return;
            }
            Err(_) => {
                *self.hanging.lock() = Some(reading);
                *self.schedule.lock() = schedule;
                return;
            }
        };
        match intake {
            Ok(Some(intake)) => {
                *self.schedule.lock() = Schedule {
                    again: intake.again,
                    polled: intake.is_silent,
                };
                self.store_changes(intake).await;
            }
            Ok(None) => {}
            Err(error) => {
                self.report_unlistable(&error);
                // The change that makes it readable again (a mode, a server) may not be reported.
                *self.schedule.lock() = Schedule {
                    again: None,
                    polled: true,
                };
            }
        }
    }

    fn new_folder(&self) -> ManifestDir {
        let allowed = self.engine.processes.files().allowed.clone();
        ManifestDir::new(&self.dir, allowed, self.grace)
    }

    /// Takes the [`ManifestDir`] for a read. `None` if the previous read has not returned.
    async fn folder(&self) -> Option<ManifestDir> {
        let hanging = self.hanging.lock().take();
        let Some(mut hanging) = hanging else {
            return self.folder.lock().take();
        };
        match tokio::time::timeout(POLL_INTERVAL, &mut hanging).await {
            // Its result is outdated.
            Ok(Ok((folder, _))) => Some(folder),
            Ok(Err(_)) => Some(self.new_folder()),
            Err(_) => {
                *self.hanging.lock() = Some(hanging);
                None
            }
        }
    }

    async fn store_changes(&self, intake: IntakePlan) {
        self.report_findings(&intake);
        let seen_in = intake.directory.as_ref();
        let stored = self
            .engine
            .store
            .write(|txn| {
                let mut events = Vec::new();
                for (draft, origin) in &intake.upserts {
                    let event = GroupEvent::of(txn, draft, &format!("from {origin}"));
                    let applied = store_draft(txn, draft, origin, seen_in)?;
                    events.extend((applied != Applied::Unchanged).then_some(event));
                }
                for name in &intake.relocated {
                    if let Some(mut group) = txn.world().group(name).cloned() {
                        group.seen_in = seen_in.cloned();
                        txn.put_group(group)?;
                    }
                }
                for name in &intake.deletions {
                    delete_group(txn, name)?;
                }
                Ok::<_, store::Error>(events)
            })
            .await;
        let events = match stored {
            Ok(events) => events,
            Err(error) => return self.keep_for_later(&intake, &error).await,
        };
        for (draft, origin) in &intake.upserts {
            info!(group = %draft.name, %origin, "group configured");
        }
        let log = self.engine.store.events();
        events.iter().for_each(|event| event.record(log, ""));
        for name in &intake.deletions {
            info!(group = %name, "group removed: no file defines it");
            let message = "no file defines it";
            self.note_group(EventType::Normal, name, EventReason::Deleting, message);
        }
    }

    /// The changes of a read cannot be stored now.
    async fn keep_for_later(&self, intake: &IntakePlan, error: &store::Error) {
        warn!(%error, "cannot store the manifests of the manifest directory");
        self.store_restrictions(intake).await;
        // The directory has not changed, so that no notification triggers the retry.
        let retry_at = clock::monotonic() + POLL_INTERVAL;
        self.schedule.lock().again.get_or_insert(retry_at);
    }

    /// If the changes cannot be stored together, stores each change that only restricts its group, in a transaction of its own.
    async fn store_restrictions(&self, intake: &IntakePlan) {
        let store = &self.engine.store;
        let seen_in = intake.directory.as_ref();
        for (draft, origin) in &intake.upserts {
            for _ in 0..restrictions::RETRIES {
                if !restrictions::only_restricts(store, draft, Some(origin)) {
                    break;
                }
                let stored = store
                    .write(|txn| {
                        let event = GroupEvent::of(txn, draft, &format!("from {origin}"));
                        let applied = store_draft(txn, draft, origin, seen_in)?;
                        Ok::<_, store::Error>((applied, event))
                    })
                    .await;
                if let Ok((applied, event)) = stored {
                    if applied != Applied::Unchanged {
                        info!(group = %draft.name, %origin, "group configured: the change only restricts it");
                        let note = "; other changes are applied when they can be stored";
                        event.record(store.events(), note);
                    }
                    break;
                }
            }
        }
    }
}

async fn changed(watch: &mut Option<Watch>) -> Result<(), intake::WatchError> {
    match watch {
        Some(watch) => watch.changed().await,
        None => std::future::pending().await,
    }
}

/// Sleeps until `at`; for ever if it is `None`.
async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}
