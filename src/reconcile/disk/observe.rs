//! Reads the disk directory.
//! Out of scope: decisions based on its content.

use std::collections::HashSet;
use std::path::Path;

use super::{Desired, DiskSeen, Observed, Record};
use crate::api::meta::Name;
use crate::host::image::{self, Found};
use crate::host::{Error, fs};
use crate::owner::{Label, Owner};

pub(super) fn observe(desired: &Desired) -> Result<Observed, Error> {
    let path = desired.record();
    let record = match desired.spec {
        Some(_) => fs::read_json(&path)?,
        // A disk without a record is not removed: a deletion completes without it.
        None => fs::read_json_or_ignore(&path)?,
    };
    with_record(desired, record)
}

fn with_record(desired: &Desired, record: Option<Record>) -> Result<Observed, Error> {
    let disk = match image::inspect_nofollow(&desired.disk())? {
        Found::Absent => DiskSeen::Absent,
        Found::File(edition) => DiskSeen::File(edition.length),
        Found::Device | Found::Other(_) => DiskSeen::Foreign,
    };
    let draft = image::inspect_nofollow(&desired.draft())? != Found::Absent;
    Ok(Observed {
        disk,
        draft,
        record,
    })
}

/// The part of a VM's disk that is kept when the VM is deleted.
pub fn kept(desired: &Desired) -> Result<Observed, Error> {
    let now = with_record(desired, fs::read_json(&desired.record())?)?;
    Ok(match &now.record {
        Some(record) if !record.persistent && record.label == desired.label => Observed {
            disk: DiskSeen::Absent,
            draft: false,
            record: None,
        },
        Some(_) | None => now,
    })
}

/// The owners of all disks that are not persistent, except those of VMs with one of these names: these VMs exist and manage their disks.
pub fn claimed(dir: &Path, named: &HashSet<Name>) -> Result<Vec<Label>, Error> {
    let fs::Dir::Present(names) = fs::read_dir(dir)? else {
        return Ok(Vec::new());
    };
    let mut labels = Vec::new();
    for name in names {
        // Skip names that are not of a VM, such as those of partial copies.
        let vm = name
            .strip_suffix(".json")
            .and_then(|vm| vm.parse::<Name>().ok());
        if vm.is_some_and(|vm| !named.contains(&vm)) {
            // The others are listed nevertheless; this one has no known owner.
            let record = fs::read_json_or_ignore::<Record>(&dir.join(&name))?;
            labels.extend(record.filter(|r| !r.persistent).map(|r| r.label));
        }
    }
    Ok(labels)
}

/// Whether the record of this VM's disk is of this boot of the host.
pub fn is_of_boot(dir: &Path, label: &Label, boot: &str) -> Result<bool, Error> {
    let Owner::Vm { name, .. } = &label.owner else {
        return Ok(false);
    };
    let record = fs::read_json::<Record>(&dir.join(format!("{name}.json")))?;
    Ok(record.is_some_and(|record| record.label == *label && record.boot == boot))
}
