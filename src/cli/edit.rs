//! `edit`: opens a host group in the user's editor and applies what is saved.
//! Out of scope: groups that a file defines, which is edited instead.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::disks::confirm_change;
use super::failure::{Failure, note, warn};
use super::group_manifest;
use super::target::{self, Target};
use super::{confirm, print};
use crate::api::host_group::Origin;
use crate::api::view::{Applied, GroupView, Kind, Object, Source};
use crate::wire::{Client, Effect};

const INTRODUCTION: &str = "\
# The changes are applied when you save this file and leave the editor. An unchanged or empty file changes nothing.
";

/// Arguments of `edit`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The editor is $VISUAL, $EDITOR or vi. The group is applied when the editor ends; if that fails, the text is kept in a temporary file. \
A group that a file of the manifest directory defines is not edited here: edit that file.

Examples:
  slicectl edit hg/sandbox
  EDITOR='code --wait' slicectl edit hostgroup sandbox")]
pub struct EditArgs {
    /// hostgroup NAME or hostgroup/NAME
    #[arg(value_name = "TARGET", required = true, num_args = 1..=2)]
    pub target: Vec<String>,
    /// Do not ask before VMs are replaced or deleted with disks that are not persistent
    #[arg(short, long)]
    pub yes: bool,
}

/// `edit hg/NAME`.
pub async fn edit(client: &Client, args: EditArgs) -> Result<(), Failure> {
    let target = match target::targets(&args.target)?.as_slice() {
        [target] if target.kind == Kind::HostGroup => target.clone(),
        [other] => {
            return Err(Failure::Usage(format!(
                "{other} cannot be edited: edit its host group"
            )));
        }
        _ => return Err(Failure::Usage("expected one host group".to_owned())),
    };
    let group = group(client, &target).await?;
    if let Origin::File(path) = &group.origin {
        return Err(Failure::one(format!(
            "{target} is defined by {}: edit this file",
            path.display()
        )));
    }
    if matches!(group.origin, Origin::Fleet { .. }) {
        return Err(Failure::one(format!(
            "{target} is of the fleet: change it with `slicectl apply --fleet`"
        )));
    }
    let manifest = group_manifest::text([(&group.metadata.name, &group.spec)])?;
    let before = format!("{INTRODUCTION}{manifest}");
    let path = write(&target, &before)
        .map_err(|error| Failure::one(format!("cannot write a temporary file: {error}")))?;
    let after = open_editor(&path)?;
    if after == before || after.trim().is_empty() {
        let _ = fs::remove_file(&path);
        note("no changes");
        return Ok(());
    }
    let source = Source {
        name: path.display().to_string(),
        text: after,
    };
    match apply(client, &target, &group, source, args.yes).await {
        Ok(()) => {
            let _ = fs::remove_file(&path);
            Ok(())
        }
        Err(failure) => Err(kept(failure, &path)),
    }
}

async fn group(client: &Client, target: &Target) -> Result<GroupView, Failure> {
    let found = client.get(target.kind, Some(&target.name)).await?.items;
    let group = found.into_iter().find_map(|object| match object {
        Object::HostGroup(group) => Some(*group),
        Object::Vm(_) | Object::Lease(_) => None,
    });
    group.ok_or_else(|| Failure::one(format!("{target} not found")))
}

async fn apply(
    client: &Client,
    target: &Target,
    before: &GroupView,
    source: Source,
    yes: bool,
) -> Result<(), Failure> {
    let names = client.names(vec![source.clone()]).await?;
    if names != [target.name.clone()] {
        return Err(Failure::one(format!(
            "the file must define {target} and no other group"
        )));
    }
    let mut warned = BTreeSet::new();
    if !yes && confirm::can_ask() {
        warned = confirm_change(client, std::slice::from_ref(&source)).await?;
    }
    let now = group(client, target).await?;
    let version = |group: &GroupView| (group.metadata.uid, group.metadata.generation);
    if version(&now) != version(before) {
        return Err(Failure::one(format!(
            "{target} was changed by someone else meanwhile"
        )));
    }
    let results = client.apply(vec![source], Effect::Commit).await?;
    for result in results {
        let warnings = result.warnings.iter();
        let new = warnings.filter(|text| !warned.contains(*text));
        new.for_each(|text| warn(text));
        let action = match result.applied {
            Applied::Unchanged => "unchanged",
            Applied::Created | Applied::Configured | Applied::Deleted => "edited",
        };
        print::out(&format!("{target} {action}\n"))?;
    }
    Ok(())
}

/// The failure, with the file that has the user's text.
fn kept(failure: Failure, path: &Path) -> Failure {
    let message = format!("the edited text is kept in {}", path.display());
    match failure {
        Failure::Failed(mut causes) => {
            causes.push(message);
            Failure::Failed(causes)
        }
        other => other,
    }
}

/// A new file that only the user can read.
fn write(target: &Target, text: &str) -> io::Result<PathBuf> {
    let name = format!(
        "slicectl-edit-{}-{}.yaml",
        target.name,
        uuid::Uuid::new_v4()
    );
    let path = std::env::temp_dir().join(name);
    let mut options = File::options();
    let mut file = options
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&path)?;
    file.write_all(text.as_bytes())?;
    Ok(path)
}

/// Runs the editor and returns the text that it leaves.
#[allow(
    clippy::disallowed_methods,
    reason = "an editor runs in the user's session, with the user's rights and terminal"
)]
fn open_editor(path: &Path) -> Result<String, Failure> {
    let variables = ["VISUAL", "EDITOR"].iter().filter_map(std::env::var_os);
    let editor = variables.into_iter().find(|value| !value.is_empty());
    let editor = editor.unwrap_or_else(|| "vi".into());
    let mut script = editor.clone();
    // The variable may contain options, such as `code --wait`.
    script.push(" \"$1\"");
    let shown = editor.to_string_lossy();
    let status = std::process::Command::new("sh")
        .arg("-c")
        .arg(script)
        .arg("sh")
        .arg(path)
        .status();
    match status {
        Ok(status) if status.success() => {}
        Ok(status) => {
            let error = Failure::one(format!("the editor \"{shown}\" failed: {status}"));
            return Err(kept(error, path));
        }
        Err(error) => {
            let error = Failure::one(format!("cannot start the editor \"{shown}\": {error}"));
            return Err(kept(error, path));
        }
    }
    let read = fs::read_to_string(path);
    read.map_err(|error| Failure::one(format!("cannot read {}: {error}", path.display())))
}
