//! From the disk that is there to the one that is to be. Pure.
//! Out of scope: looking, copying.

use super::{Action, Desired, Lies, Observed, Record, Want};
use crate::reconcile::Conflict;

pub(super) fn plan(desired: &Desired, observed: &Observed) -> Result<Vec<Action>, Conflict> {
    match &desired.want {
        Some(want) => build(desired, want, observed),
        None => Ok(clear(desired, observed)),
    }
}

/// Why a kept disk is not what its image would give now, if it is not.
pub fn remark(desired: &Desired, observed: &Observed) -> Option<String> {
    let (want, record) = (desired.want.as_ref()?, observed.record.as_ref()?);
    let (made_of, edition) = (record.image.as_ref()?, record.edition.as_ref()?);
    let disk = desired.disk();
    let disk = disk.display();
    if !record.persistent {
        None
    } else if *made_of != want.image {
        let made_of = made_of.display();
        Some(format!(
            "the persistent disk {disk} stays as it is: it was made from {made_of}"
        ))
    } else if want.edition.is_some_and(|now| now != *edition) {
        Some(format!(
            "the persistent disk {disk} stays as it is: its image has changed since"
        ))
    } else {
        None
    }
}

fn build(desired: &Desired, want: &Want, observed: &Observed) -> Result<Vec<Action>, Conflict> {
    let mut actions = Vec::new();
    if observed.draft {
        match observed.record {
            Some(_) => actions.push(Action::RemoveDraft),
            None => {
                return Err(foreign(
                    desired,
                    "it is none of ours, and its place is needed",
                ));
            }
        }
    }
    match (&observed.disk, &observed.record) {
        (Lies::Foreign, _) => return Err(foreign(desired, "it is no file")),
        (Lies::File(length), None) if want.persistent => {
            actions.push(Action::Note(found(desired)));
            actions.extend(grow(desired, want, *length));
        }
        (Lies::File(_), None) => {
            return Err(foreign(
                desired,
                "nothing tells whose it is, and this VM's disk is not persistent",
            ));
        }
        (Lies::File(_), Some(record)) if record.persistent && !want.persistent => {
            return Err(foreign(
                desired,
                "it was kept as a persistent disk, and this VM's is not; say `persistent: true`",
            ));
        }
        (Lies::File(length), Some(record)) if is_ours(desired, record) => {
            actions.extend(take_over(desired, want, record));
            actions.extend(grow(desired, want, *length));
        }
        (Lies::File(_), Some(_)) => {
            actions.push(Action::RemoveDisk(desired.disk()));
            actions.extend(make(desired, want, observed));
        }
        (Lies::Absent, _) => match desired.user {
            Some(pid) => return Err(removed(desired, pid)),
            None => actions.extend(make(desired, want, observed)),
        },
    }
    Ok(actions)
}

/// A persistent disk is its name's, another this VM's in this boot.
fn is_ours(desired: &Desired, record: &Record) -> bool {
    record.persistent || (record.label == desired.label && record.boot == desired.boot)
}

fn make(desired: &Desired, want: &Want, observed: &Observed) -> impl Iterator<Item = Action> {
    let record = Record {
        image: Some(want.image.clone()),
        edition: want.edition,
        persistent: want.persistent,
        ..found(desired)
    };
    let noted = observed.record.as_ref() == Some(&record);
    let copy = Action::Copy {
        image: want.image.clone(),
        to: desired.disk(),
        at_least: want.at_least,
    };
    (!noted)
        .then_some(Action::Note(record))
        .into_iter()
        .chain([copy])
}

/// What it was made of stays noted.
fn take_over(desired: &Desired, want: &Want, record: &Record) -> Option<Action> {
    let taken = Record {
        label: desired.label.clone(),
        persistent: want.persistent,
        ..record.clone()
    };
    (taken != *record).then_some(Action::Note(taken))
}

/// A disk that somebody put there to be used.
fn found(desired: &Desired) -> Record {
    Record {
        label: desired.label.clone(),
        persistent: true,
        boot: desired.boot.clone(),
        image: None,
        edition: None,
    }
}

/// Never shorter: there may be something at its end.
fn grow(desired: &Desired, want: &Want, length: u64) -> Option<Action> {
    (length < want.at_least).then(|| Action::Grow {
        disk: desired.disk(),
        to: want.at_least,
    })
}

/// Nothing is wanted: what is this VM's and not to be kept goes, its record last.
fn clear(desired: &Desired, observed: &Observed) -> Vec<Action> {
    let Some(record) = observed.record.as_ref() else {
        return Vec::new();
    };
    if record.label != desired.label {
        return Vec::new();
    }
    let draft = observed.draft.then_some(Action::RemoveDraft);
    let (disk, forget) = match (&observed.disk, record.persistent) {
        (Lies::File(_), true) => (None, None),
        (Lies::File(_), false) => (
            Some(Action::RemoveDisk(desired.disk())),
            Some(Action::Forget),
        ),
        (Lies::Absent | Lies::Foreign, _) => (None, Some(Action::Forget)),
    };
    draft.into_iter().chain(disk).chain(forget).collect()
}

/// A new one would hide that what the guest writes now is lost with its VMM.
fn removed(desired: &Desired, pid: u32) -> Conflict {
    let disk = desired.disk().display().to_string();
    let remedy = format!(
        "it was removed while the VM runs on it: stop the guest's writing and copy it back from /proc/{pid}/fd (`ls -l` there shows which), or stop the VM and lose it"
    );
    Conflict {
        thing: disk,
        remedy,
    }
}

fn foreign(desired: &Desired, why: &str) -> Conflict {
    Conflict {
        thing: desired.disk().display().to_string(),
        remedy: format!("{why}; or move it away"),
    }
}
