//! `/run/slice/secrets`: a file for each secret, in memory only. `/run/slicer/secrets` leads there.
//! Out of scope: who may read them, which their owner and permissions say.

use std::fs;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustix::mount::{MountFlags, mount};

use super::place::Place;
use crate::guest::agent::error::{Error, reason};
use crate::guest::archive::beneath::Beneath;
use crate::guest::archive::draft::Attributes;
use crate::guest::archive::{self, Owner};
use crate::guest::protocol::Secret;

const RUN: &str = "run";
/// Below it.
const DIRECTORY: &str = "slice/secrets";
const COMPATIBLE: &str = "slicer/secrets";
const COMPATIBLE_TARGET: &str = "../slice/secrets";

/// `statfs(2)`: file systems in memory.
const TMPFS: u64 = 0x0102_1994;
const RAMFS: u64 = 0x8584_58f6;

/// A secret with its value.
pub struct Decoded<'s> {
    secret: &'s Secret,
    value: Vec<u8>,
}

/// Decodes the values and checks the names.
///
/// # Errors
/// 400, without values.
pub fn decode(secrets: &[Secret]) -> Result<Vec<Decoded<'_>>, Error> {
    let decoded = secrets.iter().map(|secret| {
        let name = &secret.name;
        let is_valid = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        let is_name =
            (1..=255).contains(&name.len()) && name.bytes().all(is_valid) && !name.starts_with('.');
        let value = STANDARD.decode(&secret.data).ok();
        match (is_name, value) {
            (true, Some(value)) => Ok(Decoded { secret, value }),
            (false, _) => Err(Error::invalid("name of a secret")),
            (true, None) => Err(Error::invalid(&format!("value of the secret {name}"))),
        }
    });
    decoded.collect()
}

/// Makes these the only secrets. A file that is right already is not replaced.
///
/// # Errors
/// What could not be done, as a sentence.
pub fn write(place: &Place, secrets: &[Decoded<'_>]) -> Result<(), String> {
    let run = place.at(RUN);
    let directory = run.join(DIRECTORY);
    // Nothing is created in a guest without secrets.
    if secrets.is_empty() && !directory.exists() {
        return Ok(());
    }
    let mut beneath = prepare(place, &run).map_err(|error| sentence(&error))?;
    let found = fs::read_dir(&directory)
        .map_err(|error| format!("cannot read the secrets: {}", reason(&error)))?;
    for entry in found.flatten() {
        let name = entry.file_name();
        let is_wanted = secrets.iter().any(|it| name == it.secret.name.as_str());
        if !is_wanted && let Err(error) = fs::remove_file(entry.path()) {
            return Err(format!("cannot remove a secret: {}", reason(&error)));
        }
    }
    for secret in secrets {
        store(&mut beneath, secret).map_err(|error| sentence(&error))?;
    }
    Ok(())
}

/// Creates the directories. They are root's, so their users cannot replace them.
fn prepare(place: &Place, run: &Path) -> Result<Beneath, archive::Error> {
    if !run.exists() {
        fs::create_dir(run).map_err(|error| archive::Error::file("create", run, error))?;
    }
    let mut beneath = Beneath::open(run)?;
    for directory in ["slice", DIRECTORY] {
        let path = Path::new(directory);
        if beneath.make_dir(path, Owner::Process)? {
            beneath.set_dir(path, 0o755, None)?;
        }
    }
    let directory = run.join(DIRECTORY);
    if place.is_own && !is_in_memory(&directory) {
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        mount("tmpfs", &directory, "tmpfs", flags, c"mode=755,size=32m")
            .map_err(|error| archive::Error::file("mount a tmpfs on", &directory, error))?;
    }
    if fs::symlink_metadata(run.join(COMPATIBLE)).is_err() {
        let attributes = Attributes {
            owner: Owner::Process,
            ..Attributes::default()
        };
        beneath.link(
            Path::new(COMPATIBLE),
            Path::new(COMPATIBLE_TARGET),
            attributes,
        )?;
    }
    Ok(beneath)
}

fn is_in_memory(directory: &Path) -> bool {
    rustix::fs::statfs(directory).is_ok_and(|found| {
        let kind = found.f_type as u64 & 0xffff_ffff;
        kind == TMPFS || kind == RAMFS
    })
}

fn store(beneath: &mut Beneath, decoded: &Decoded<'_>) -> Result<(), archive::Error> {
    let secret = decoded.secret;
    let path = Path::new(DIRECTORY).join(&secret.name);
    let (uid, gid) = (secret.uid, secret.gid);
    let attributes = Attributes {
        mode: Some(secret.permissions & 0o777),
        mtime: None,
        owner: Owner::All { uid, gid },
    };
    if is_right(beneath, &path, decoded) {
        return Ok(());
    }
    // Nobody but root can read it before its owner and permissions are set.
    let mut draft = beneath.draft(&path, Owner::Process)?;
    let failed = |error| archive::Error::file("write", &path, error);
    draft
        .fill(&mut decoded.value.as_slice())
        .map_err(failed)?
        .map_err(failed)?;
    beneath.commit(draft, &path, attributes)
}

fn is_right(beneath: &Beneath, path: &Path, decoded: &Decoded<'_>) -> bool {
    use std::io::Read;
    use std::os::unix::fs::MetadataExt;
    let Ok(file) = beneath.read_file(path) else {
        return false;
    };
    let secret = decoded.secret;
    let has_attributes = file.metadata().is_ok_and(|found| {
        (found.uid(), found.gid()) == (secret.uid, secret.gid)
            && found.mode() & 0o7777 == secret.permissions & 0o777
            && found.len() == decoded.value.len() as u64
    });
    let mut content = Vec::new();
    let limit = decoded.value.len() as u64 + 1;
    has_attributes && file.take(limit).read_to_end(&mut content).is_ok() && content == decoded.value
}

fn sentence(error: &archive::Error) -> String {
    match error {
        archive::Error::File { doing, source, .. } => {
            format!("cannot {doing} the secrets: {}", reason(source))
        }
        other => format!("cannot write the secrets: {other}"),
    }
}
