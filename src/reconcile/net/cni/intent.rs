//! The file with what an ADD is run with, which its DEL is run with as well.
//! Out of scope: whether the plugins were called.

use super::state::Intent;
use super::{Desired, INTENT};
use crate::host::Error;
use crate::host::fs::{self, Durability};

/// Reads it. An absent one is an error.
pub(super) fn read_intent(desired: &Desired) -> Result<Intent, Error> {
    let path = desired.vm_dir().join(INTENT);
    let bytes = fs::read(&path)?.unwrap_or_default();
    let intent = serde_json::from_slice(&bytes);
    intent.map_err(|error| Error::other("read", path.display().to_string(), error))
}

/// Writes it, before ADD.
pub(super) fn write_intent(desired: &Desired, intent: &Intent) -> Result<(), Error> {
    let dir = desired.vm_dir();
    let path = dir.join(INTENT);
    let bytes = serde_json::to_vec(intent)
        .map_err(|error| Error::other("write", path.display().to_string(), error))?;
    fs::make_dir(&dir, 0o700)?;
    // The attachment that it describes does not survive a power failure either.
    fs::write(&path, &bytes, 0o600, Durability::Process)
}
