//! Computes the actions from the actual disk to the desired disk. Pure.
//! Out of scope: observation, copying.

use super::{Action, Desired, DiskSeen, DiskSpec, Observed, Record};
use crate::reconcile::Conflict;

pub(super) fn plan(desired: &Desired, observed: &Observed) -> Result<Vec<Action>, Conflict> {
    match &desired.spec {
        Some(spec) => build(desired, spec, observed),
        None => Ok(clear(desired, observed)),
    }
}

/// A note for users if a persistent disk differs from what its image would create now.
pub fn image_note(desired: &Desired, observed: &Observed) -> Option<String> {
    let (spec, record) = (desired.spec.as_ref()?, observed.record.as_ref()?);
    let (made_of, edition) = (record.image.as_ref()?, record.edition.as_ref()?);
    let disk = desired.disk();
    let disk = disk.display();
    if !record.persistent {
        None
    } else if *made_of != spec.image {
        let made_of = made_of.display();
        Some(format!(
            "the persistent disk {disk} is kept unchanged: it was created from {made_of}"
        ))
    } else if spec.edition.is_some_and(|now| now != *edition) {
        Some(format!(
            "the persistent disk {disk} is kept unchanged: its image has changed since"
        ))
    } else {
        None
    }
}

fn build(desired: &Desired, spec: &DiskSpec, observed: &Observed) -> Result<Vec<Action>, Conflict> {
    let mut actions = Vec::new();
    if observed.draft {
        match observed.record {
            Some(_) => actions.push(Action::RemoveDraft),
            None => {
                return Err(foreign(
                    desired,
                    "a file at the path of its partial copy has no disk record; move it away",
                ));
            }
        }
    }
    match (&observed.disk, &observed.record) {
        (DiskSeen::Foreign, _) => {
            return Err(foreign(desired, "it is not a regular file; move it away"));
        }
        (DiskSeen::File(length), None) if spec.persistent => {
            actions.push(Action::Note(found(desired)));
            actions.extend(grow(desired, spec, *length));
        }
        (DiskSeen::File(_), None) => {
            return Err(foreign(
                desired,
                "it has no disk record, and this VM's disk is not persistent; set `persistent: true` to use it, or move it away",
            ));
        }
        (DiskSeen::File(_), Some(record)) if record.persistent && !spec.persistent => {
            return Err(foreign(
                desired,
                "it is a persistent disk, and this VM's disk is not; set `persistent: true` to use it, or move it away",
            ));
        }
        (DiskSeen::File(length), Some(record)) if is_ours(desired, record) => {
            actions.extend(take_over(desired, spec, record));
            actions.extend(grow(desired, spec, *length));
        }
        (DiskSeen::File(_), Some(_)) => {
            actions.push(Action::RemoveDisk(desired.disk()));
            actions.extend(make(desired, spec, observed));
        }
        (DiskSeen::Absent, _) => match desired.user {
            Some(pid) => return Err(removed(desired, pid)),
            None => actions.extend(make(desired, spec, observed)),
        },
    }
    Ok(actions)
}

/// A persistent disk belongs to the VM's name, another one to this VM in this boot.
fn is_ours(desired: &Desired, record: &Record) -> bool {
    record.persistent || (record.label == desired.label && record.boot == desired.boot)
}

fn make(desired: &Desired, spec: &DiskSpec, observed: &Observed) -> impl Iterator<Item = Action> {
    let record = Record {
        image: Some(spec.image.clone()),
        edition: spec.edition,
        persistent: spec.persistent,
        ..found(desired)
    };
    let noted = observed.record.as_ref() == Some(&record);
    let copy = Action::Copy {
        image: spec.image.clone(),
        to: desired.disk(),
        at_least: spec.at_least,
    };
    (!noted)
        .then_some(Action::Note(record))
        .into_iter()
        .chain([copy])
}

/// Changes the owner in the record; its image and edition are kept.
fn take_over(desired: &Desired, spec: &DiskSpec, record: &Record) -> Option<Action> {
    let taken = Record {
        label: desired.label.clone(),
        persistent: spec.persistent,
        ..record.clone()
    };
    (taken != *record).then_some(Action::Note(taken))
}

/// The record of an existing disk that the daemon has not created.
fn found(desired: &Desired) -> Record {
    Record {
        label: desired.label.clone(),
        persistent: true,
        boot: desired.boot.clone(),
        image: None,
        edition: None,
    }
}

/// A disk is never truncated: there may be data at its end.
fn grow(desired: &Desired, spec: &DiskSpec, length: u64) -> Option<Action> {
    (length < spec.at_least).then(|| Action::Grow {
        disk: desired.disk(),
        to: spec.at_least,
    })
}

/// No disk is desired: removes a disk that belongs to this VM and is not persistent, and then its record.
fn clear(desired: &Desired, observed: &Observed) -> Vec<Action> {
    let Some(record) = observed.record.as_ref() else {
        return Vec::new();
    };
    if record.label != desired.label {
        return Vec::new();
    }
    let draft = observed.draft.then_some(Action::RemoveDraft);
    let (disk, forget) = match (&observed.disk, record.persistent) {
        (DiskSeen::File(_), true) => (None, None),
        (DiskSeen::File(_), false) => (
            Some(Action::RemoveDisk(desired.disk())),
            Some(Action::Forget),
        ),
        (DiskSeen::Absent | DiskSeen::Foreign, _) => (None, Some(Action::Forget)),
    };
    draft.into_iter().chain(disk).chain(forget).collect()
}

/// The disk was removed during its use. A new disk would hide that the data is lost when the VMM ends.
fn removed(desired: &Desired, pid: u32) -> Conflict {
    let disk = desired.disk().display().to_string();
    let remedy = format!(
        "it was removed while the VM uses it: stop all writes in the guest and copy it back from /proc/{pid}/fd (`ls -l` shows the descriptor), or stop the VM and lose the data"
    );
    Conflict {
        object: disk,
        remedy,
    }
}

fn foreign(desired: &Desired, why: &str) -> Conflict {
    Conflict {
        object: desired.disk().display().to_string(),
        remedy: why.to_owned(),
    }
}
