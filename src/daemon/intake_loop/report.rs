//! Reports what a read of the manifest directory found, in events and in the log; each finding once.
//! Out of scope: reading, and storing what was read.

use std::collections::BTreeMap;
use std::path::PathBuf;

use tracing::warn;

use super::IntakeLoop;
use crate::api::event::{EventReason, EventType, ObjectRef};
use crate::api::meta::Name;
use crate::clock;
use crate::intake::IntakePlan;

/// Findings of the last read, which are reported to users.
#[derive(Default)]
pub(super) struct Findings {
    pub(super) problems: BTreeMap<PathBuf, Vec<String>>,
    pub(super) warnings: BTreeMap<PathBuf, Vec<String>>,
    pub(super) others: Vec<PathBuf>,
    pub(super) kept: BTreeMap<Name, String>,
    /// Why the directory cannot be read.
    pub(super) unreadable: Option<String>,
}

impl IntakeLoop {
    /// Reports, once, that the directory cannot be read. No group is changed then.
    pub(super) fn report_unreadable(&self, message: String) {
        let why = format!("{message}: nothing is changed or deleted until it can be read");
        let before = self.findings.lock().unreadable.replace(why.clone());
        if before.as_ref() != Some(&why) {
            warn!(%why, "cannot read the manifest directory");
            let object = ObjectRef::Manifest(self.dir.display().to_string());
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
        *findings = now;
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
