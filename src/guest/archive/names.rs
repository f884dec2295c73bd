//! Which names of files an archive may contain.
//! Out of scope: what exists under a name.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use super::Error;

/// `NAME_MAX` and `PATH_MAX`, which contains the terminating NUL byte.
const NAME_LIMIT: usize = 255;
const PATH_LIMIT: usize = 4096 - 1;

/// The path of an entry, relative and without `.`; empty for the root of the archive.
pub fn relative(bytes: &[u8]) -> Result<PathBuf, Error> {
    let invalid = |why: &str| {
        let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(NAME_LIMIT)]);
        Err(Error::Invalid(format!("the name \"{shown}\" {why}")))
    };
    if bytes.is_empty() {
        return invalid("is empty");
    }
    if bytes.contains(&0) {
        return invalid("contains a NUL byte");
    }
    if bytes.len() > PATH_LIMIT {
        return invalid("is longer than 4095 bytes");
    }
    let mut path = PathBuf::new();
    for part in Path::new(OsStr::from_bytes(bytes)).components() {
        match part {
            Component::CurDir => {}
            Component::Normal(name) if name.len() > NAME_LIMIT => {
                return invalid("has a component of more than 255 bytes");
            }
            Component::Normal(name) => path.push(name),
            Component::ParentDir => return invalid("contains \"..\""),
            Component::RootDir | Component::Prefix(_) => return invalid("is absolute"),
        }
    }
    Ok(path)
}

/// The name of a file in a directory: a single component.
///
/// # Errors
/// The name is empty, `.` or `..`, too long, or contains `/` or NUL.
pub fn component(name: &OsStr) -> Result<&OsStr, Error> {
    let path = relative(name.as_bytes())?;
    match path.as_os_str() == name && path.components().count() == 1 {
        true => Ok(name),
        false => Err(Error::Invalid(format!(
            "\"{}\" is not the name of a file",
            name.display()
        ))),
    }
}

/// The target of a symbolic link. It is not restricted, because it is never followed.
pub fn target(bytes: &[u8]) -> Result<PathBuf, Error> {
    match bytes {
        [] => Err(Error::Invalid("a symbolic link has no target".to_owned())),
        _ if bytes.len() > PATH_LIMIT || bytes.contains(&0) => Err(Error::Invalid(
            "the target of a symbolic link is longer than 4095 bytes, or contains a NUL byte"
                .to_owned(),
        )),
        _ => Ok(PathBuf::from(OsStr::from_bytes(bytes))),
    }
}
