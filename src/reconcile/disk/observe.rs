//! Looks into the disk directory.
//! Out of scope: judging what is found.

use std::collections::HashSet;
use std::path::Path;

use super::{Desired, Lies, Observed, Record};
use crate::api::meta::Name;
use crate::host::image::{self, Found};
use crate::host::{Error, fs};
use crate::owner::{Label, Owner};

pub(super) fn observe(desired: &Desired) -> Result<Observed, Error> {
    let disk = match image::inspect_nofollow(&desired.disk())? {
        Found::Absent => Lies::Absent,
        Found::File(edition) => Lies::File(edition.length),
        Found::Device | Found::Other(_) => Lies::Foreign,
    };
    let draft = image::inspect_nofollow(&desired.draft())? != Found::Absent;
    let record = read(&desired.record())?;
    Ok(Observed {
        disk,
        draft,
        record,
    })
}

/// What stays of a VM's disk when the VM goes.
pub fn kept(desired: &Desired) -> Result<Observed, Error> {
    let now = observe(desired)?;
    Ok(match &now.record {
        Some(record) if !record.persistent && record.label == desired.label => Observed {
            disk: Lies::Absent,
            draft: false,
            record: None,
        },
        Some(_) | None => now,
    })
}

/// Of every disk that goes with its VM: whose it is. The VMs of these names look after theirs by themselves.
pub fn claimed(dir: &Path, named: &HashSet<Name>) -> Result<Vec<Label>, Error> {
    let fs::Dir::Present(names) = fs::look_at_dir(dir)? else {
        return Ok(Vec::new());
    };
    let mut labels = Vec::new();
    for name in names {
        // A name that is no VM's, such as a draft's, is none of ours.
        let vm = name
            .strip_suffix(".json")
            .and_then(|vm| vm.parse::<Name>().ok());
        if vm.is_some_and(|vm| !named.contains(&vm)) {
            let record = read(&dir.join(&name))?;
            labels.extend(record.filter(|r| !r.persistent).map(|r| r.label));
        }
    }
    Ok(labels)
}

/// Whether this label's disk, or the note on it, is of this boot of the host.
pub fn is_of_boot(dir: &Path, label: &Label, boot: &str) -> Result<bool, Error> {
    let Owner::Vm { name, .. } = &label.owner else {
        return Ok(false);
    };
    let record = read(&dir.join(format!("{name}.json")))?;
    Ok(record.is_some_and(|record| record.label == *label && record.boot == boot))
}

fn read(path: &Path) -> Result<Option<Record>, Error> {
    let text = fs::read_text(path)?;
    Ok(text.and_then(|text| serde_json::from_str(&text).ok()))
}
