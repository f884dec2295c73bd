//! Reports what a read of the manifest directory found, in events and in the log; each finding once.
//! Out of scope: reading, and storing what was read.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::PathBuf;

use tracing::{info, warn};

use super::IntakeLoop;
use crate::api::event::{EventReason, EventType, ObjectRef};
use crate::api::host_group::{HostGroup, Origin};
use crate::api::meta::Name;
use crate::clock;
use crate::intake::{self, IntakePlan};

/// Findings of the last read, which are reported to users.
#[derive(Default, PartialEq)]
pub(super) struct Findings {
    pub(super) problems: BTreeMap<PathBuf, Vec<String>>,
    pub(super) warnings: BTreeMap<PathBuf, Vec<String>>,
    pub(super) others: Vec<PathBuf>,
    pub(super) kept: BTreeMap<Name, String>,
    /// Why the directory cannot be read.
    pub(super) unreadable: Option<String>,
}

impl IntakeLoop {
    /// Reports, once, that the directory cannot be listed. That it does not exist is no fault if no group is defined in it.
    pub(super) fn report_unlistable(&self, error: &intake::Error) {
        let cause = &error.source;
        let defines_groups = self.engine.store.read(|world| {
            let from_file = |group: &HostGroup| matches!(group.origin, Origin::File(_));
            world.groups().any(from_file)
        });
        if defines_groups || cause.kind() != ErrorKind::NotFound {
            return self.report_unreadable(format!("{error}: {cause}"));
        }
        let why = format!(
            "{} does not exist: no manifests are read until it is created",
            self.dir.display()
        );
        let before = self.findings.lock().unreadable.replace(why.clone());
        if before.as_ref() != Some(&why) {
            self.engine.store.view_changed();
            info!(dir = %self.dir.display(), "the manifest directory does not exist");
            let object = ObjectRef::manifest(&self.dir);
            self.note(EventType::Normal, &object, EventReason::FolderMissing, &why);
        }
    }

    /// Reports, once, that the directory cannot be read. No group is changed then.
    pub(super) fn report_unreadable(&self, message: String) {
        let why = format!("{message}: nothing is changed or deleted until it can be read");
        let before = self.findings.lock().unreadable.replace(why.clone());
        if before.as_ref() != Some(&why) {
            self.engine.store.view_changed();
            warn!(%why, "cannot read the manifest directory");
            let object = ObjectRef::manifest(&self.dir);
            self.note(
                EventType::Warning,
                &object,
                EventReason::FolderUnreadable,
                &why,
            );
        }
    }

    /// Reports findings that the previous read did not have.
    pub(super) fn report_findings(&self, intake: &IntakePlan) {
        let lines = |problems: &Vec<_>| problems.iter().map(ToString::to_string).collect();
        let problems = intake.problems.iter();
        let kept = intake.kept.iter();
        let now = Findings {
            problems: problems.map(|(path, p)| (path.clone(), lines(p))).collect(),
            warnings: intake.warnings.iter().cloned().collect(),
            others: intake.others.clone(),
            kept: kept
                .map(|(name, why)| (name.clone(), why.to_string()))
                .collect(),
            unreadable: None,
        };
        let mut findings = self.findings.lock();
        self.report_fixed(&findings, intake);
        for (path, lines) in &now.problems {
            if findings.problems.get(path) == Some(lines) {
                continue;
            }
            for line in lines {
                warn!(problem = %line, "invalid manifest; the last valid version stays in effect");
                let object = ObjectRef::manifest(path);
                self.note(
                    EventType::Warning,
                    &object,
                    EventReason::ManifestInvalid,
                    line,
                );
            }
        }
        for (path, lines) in &now.warnings {
            if findings.warnings.get(path) == Some(lines) {
                continue;
            }
            for line in lines {
                let object = ObjectRef::manifest(path);
                self.note(EventType::Warning, &object, EventReason::NeverMatches, line);
            }
        }
        for path in now.others.iter().filter(|p| !findings.others.contains(p)) {
            let message = "not a manifest: only *.yaml and *.yml in lower case are read";
            warn!(path = %path.display(), "{message}");
            self.note(
                EventType::Warning,
                &ObjectRef::manifest(path),
                EventReason::NotAManifest,
                message,
            );
        }
        for (name, reason) in &now.kept {
            if findings.kept.get(name) != Some(reason) {
                warn!(group = %name, %reason, "group kept without a file");
                self.note_group(
                    EventType::Warning,
                    name,
                    EventReason::KeptWithoutFile,
                    reason,
                );
            }
        }
        let is_changed = *findings != now;
        *findings = now;
        drop(findings);
        if is_changed {
            self.engine.store.view_changed();
        }
    }

    /// Reports what the previous read found and this one does not.
    fn report_fixed(&self, before: &Findings, intake: &IntakePlan) {
        if before.unreadable.is_some() {
            let object = ObjectRef::manifest(&self.dir);
            let message = "the directory can be read";
            info!(dir = %self.dir.display(), "the manifest directory can be read");
            self.note(
                EventType::Normal,
                &object,
                EventReason::FolderReadable,
                message,
            );
        }
        let is_fixed = |path: &&PathBuf| intake.sound.contains(*path);
        for path in before.problems.keys().filter(is_fixed) {
            info!(path = %path.display(), "the manifest is valid again");
            let object = ObjectRef::manifest(path);
            let message = "the manifest is valid again";
            self.note(
                EventType::Normal,
                &object,
                EventReason::ManifestFixed,
                message,
            );
        }
    }

    pub(super) fn note_group(
        &self,
        kind: EventType,
        group: &Name,
        reason: EventReason,
        message: &str,
    ) {
        self.note(kind, &ObjectRef::host_group(group), reason, message);
    }

    pub(super) fn note(
        &self,
        kind: EventType,
        object: &ObjectRef,
        reason: EventReason,
        message: &str,
    ) {
        let events = self.engine.store.events();
        events.note(clock::now(), kind, object, reason, message);
    }
}
