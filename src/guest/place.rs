//! Where a copy is put: into a directory or onto a file, as cp(1) does. The agent and the host use it for what they receive.
//! Out of scope: archives; the source.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, BufRead, Read as _};
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use super::archive::beneath::{Beneath, open_parent};
use super::archive::draft::{Attributes, Draft};
use super::archive::{Error, Extraction, Mtime, Owner, component, extract};

/// What is copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source<'a> {
    /// A file with this name.
    File(&'a OsStr),
    /// A directory with this name.
    Directory(&'a OsStr),
    /// The content of a directory: `DIRECTORY/.`.
    Contents,
}

/// The path of the copy: in the directory `to` if there is one and the source has a name, else `to` itself, in a directory that exists.
///
/// # Errors
/// The name is invalid; or cp(1) would fail, too: the parent does not exist, a directory would replace a file or the reverse.
pub fn destination(to: &Path, source: Source<'_>) -> Result<PathBuf, Error> {
    let is_dir = match fs::metadata(to) {
        Ok(found) => Some(found.is_dir()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(Error::file("open", to, error)),
    };
    let target = match (is_dir, source) {
        (Some(true), Source::File(name) | Source::Directory(name)) => to.join(component(name)?),
        (Some(true), Source::Contents) => return Ok(to.to_owned()),
        // `file/` as the name of a new file.
        (None, Source::File(_)) if to.as_os_str().as_encoded_bytes().ends_with(b"/") => {
            return Err(Error::file("open the directory", to, Errno::NOENT));
        }
        _ => to.to_owned(),
    };
    open_parent(&target).map_err(|error| Error::file("copy to", &target, error))?;
    let found = fs::metadata(&target).map(|found| found.is_dir());
    match (source, found) {
        (Source::File(_), Ok(true)) => Err(Error::file("replace", &target, Errno::ISDIR)),
        (Source::Directory(_) | Source::Contents, Ok(false)) => {
            Err(Error::file("copy to", &target, Errno::NOTDIR))
        }
        _ => Ok(target),
    }
}

/// Writes a file, or replaces one. A symbolic link is replaced, not followed. Returns the size in bytes.
///
/// # Errors
/// There are more than `limit` bytes; the path is a directory or a special file.
pub fn put_file(
    target: &Path,
    input: &mut impl BufRead,
    attributes: Attributes,
    limit: Option<u64>,
) -> Result<u64, Error> {
    let fail = |error: io::Error| Error::file("create", target, error);
    let Some(name) = target.file_name() else {
        return Err(fail(Errno::ISDIR.into()));
    };
    let dir = open_parent(target).map_err(|error| fail(error.into()))?;
    let mut draft = Draft::create(dir).map_err(fail)?;
    let limit = limit.unwrap_or(u64::MAX - 1);
    let mut limited = input.take(limit + 1);
    let size = draft.fill(&mut limited);
    let size = size
        .map_err(|error| Error::file("write", target, error))?
        .map_err(Error::Stream)?;
    if size > limit {
        let unit = "bytes";
        return Err(Error::Limit { limit, unit });
    }
    draft.commit(name, attributes).map_err(fail)?;
    Ok(size)
}

/// Extracts an archive to a directory, which is created if it does not exist. Its attributes are those of the archive's root, or `of_root`;
/// an existing directory keeps its own.
pub fn put_tree(
    target: &Path,
    input: impl BufRead,
    extraction: &Extraction,
    of_root: Option<(u32, Option<Mtime>)>,
) -> Result<(), Error> {
    let is_new = make_dir(target, extraction.owner)?;
    let mut root = Beneath::open(target)?;
    let found = extract(input, &mut root, extraction)?;
    let found = found.map(|(mode, mtime)| (mode, Some(mtime)));
    match found.or(of_root) {
        Some((mode, mtime)) if is_new => root.set_dir(Path::new(""), mode, mtime),
        _ => Ok(()),
    }
}

/// Creates a directory; false if it exists.
pub fn make_dir(path: &Path, owner: Owner) -> Result<bool, Error> {
    let fail = |error| Error::file("create the directory", path, error);
    match fs::create_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            return match fs::metadata(path).map_err(fail)?.is_dir() {
                true => Ok(false),
                false => Err(Error::file("create the directory", path, Errno::NOTDIR)),
            };
        }
        created => created.map_err(fail)?,
    }
    if let Owner::New { uid, gid } | Owner::All { uid, gid } = owner {
        // It does not follow a link that has replaced the directory meanwhile.
        std::os::unix::fs::lchown(path, Some(uid), Some(gid)).map_err(fail)?;
    }
    Ok(true)
}

/// Creates a directory and its parents. Existing ones are not changed.
pub fn make_dirs(path: &Path, owner: Owner) -> Result<(), Error> {
    let mut missing: Vec<&Path> = Vec::new();
    for above in path.ancestors().filter(|path| !path.as_os_str().is_empty()) {
        match fs::metadata(above) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => missing.push(above),
            _ => break,
        }
    }
    // Also if it exists: it must be a directory.
    if missing.is_empty() {
        missing.push(path);
    }
    while let Some(path) = missing.pop() {
        make_dir(path, owner)?;
    }
    Ok(())
}
