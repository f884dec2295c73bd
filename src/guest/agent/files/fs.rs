//! `/fs/stat`, `readdir`, `mkdir`, `remove`.
//! Out of scope: contents of files.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use axum::Json;
use axum::body::Bytes;
use axum::http::{StatusCode, Uri};
use rustix::io::Errno;

use super::super::error::{Error, query};
use super::target;
use super::{blocking, refusal};
use crate::guest::archive::{self, Mtime};
use crate::guest::place::{make_dir, make_dirs};
use crate::guest::protocol::{FileInfo, FileType, Mkdir, RemoveQuery};

/// The maximum number of files in a response.
const FILES_LIMIT: usize = 100_000;

/// The query of `stat` and `readdir`.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(default)]
struct PathQuery {
    path: String,
}

fn resolve(path: &str) -> Result<PathBuf, Error> {
    target::path(path, &target::user(None, None)?)
}

fn failed(doing: &'static str, path: &Path, error: impl Into<io::Error>) -> Error {
    refusal(&archive::Error::file(doing, path, error))
}

/// `GET /fs/stat`.
pub async fn stat(uri: Uri) -> Result<Json<FileInfo>, Error> {
    let query: PathQuery = query(&uri)?;
    let stat = move || {
        let path = resolve(&query.path)?;
        let metadata = fs::symlink_metadata(&path).map_err(|error| failed("stat", &path, error))?;
        let name = path.file_name().unwrap_or(path.as_os_str());
        Ok(Json(info(name.to_string_lossy().into_owned(), &metadata)))
    };
    blocking(stat).await
}

/// `GET /fs/readdir`, sorted by name.
pub async fn readdir(uri: Uri) -> Result<Json<Vec<FileInfo>>, Error> {
    let query: PathQuery = query(&uri)?;
    let read = move || {
        let path = resolve(&query.path)?;
        list(&path).map(Json)
    };
    blocking(read).await
}

fn list(path: &Path) -> Result<Vec<FileInfo>, Error> {
    let fail = |error| failed("read the directory", path, error);
    let mut files = Vec::new();
    for entry in fs::read_dir(path).map_err(fail)? {
        let entry = entry.map_err(fail)?;
        if files.len() == FILES_LIMIT {
            return Err(Error::bad_request(format!(
                "{} contains more than {FILES_LIMIT} files",
                path.display()
            )));
        }
        match entry.metadata() {
            Ok(metadata) => {
                let name = entry.file_name().to_string_lossy().into_owned();
                files.push(info(name, &metadata));
            }
            // It was removed meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(fail(error)),
        }
    }
    files.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(files)
}

/// `POST /fs/mkdir`. The directory belongs to the normal user of the image, like copied files.
pub async fn mkdir(body: Bytes) -> Result<StatusCode, Error> {
    let request: Mkdir = serde_json::from_slice(&body)
        .map_err(|error| Error::bad_request(format!("invalid body: {error}")))?;
    let mode = request.mode.as_deref().filter(|mode| !mode.is_empty());
    let mode = mode.map_or(Ok(0o755), target::permissions)?;
    let make = move || {
        let user = target::user(None, None)?;
        let path = target::path(&request.path, &user)?;
        let owner = target::owner(None, None, &user);
        if request.recursive
            && let Some(parent) = path.parent()
        {
            make_dirs(parent, owner).map_err(|error| refusal(&error))?;
        }
        match make_dir(&path, owner).map_err(|error| refusal(&error))? {
            true => set_mode(&path, mode),
            false if request.recursive => Ok(()),
            false => Err(failed("create the directory", &path, Errno::EXIST)),
        }
    };
    blocking(make).await?;
    Ok(StatusCode::OK)
}

/// The umask of the agent does not count.
fn set_mode(path: &Path, mode: u32) -> Result<(), Error> {
    let root = archive::beneath::Beneath::open(path).map_err(|error| refusal(&error))?;
    let set = root.set_dir(Path::new(""), mode, None);
    set.map_err(|error| refusal(&error))
}

/// `DELETE /fs/remove`. A link is removed itself, and none is followed.
pub async fn remove(uri: Uri) -> Result<StatusCode, Error> {
    let query: RemoveQuery = query(&uri)?;
    let remove = move || {
        let path = resolve(&query.path)?;
        // `/`, `/x/..` and `/x/.`, as rm(1).
        let is_named = matches!(path.components().next_back(), Some(Component::Normal(_)));
        if !is_named || query.path.ends_with("/.") {
            let path = path.display();
            return Err(Error::bad_request(format!("{path} cannot be removed")));
        }
        let fail = |error| failed("remove", &path, error);
        let is_dir = fs::symlink_metadata(&path).map_err(fail)?.is_dir();
        let removed = match (is_dir, query.recursive) {
            (false, _) => fs::remove_file(&path),
            (true, false) => fs::remove_dir(&path),
            (true, true) => fs::remove_dir_all(&path),
        };
        removed.map_err(fail)
    };
    blocking(remove).await?;
    Ok(StatusCode::OK)
}

/// A file for a response.
fn info(name: String, metadata: &Metadata) -> FileInfo {
    let kind = metadata.file_type();
    FileInfo {
        name,
        kind: match () {
            () if kind.is_dir() => FileType::Directory,
            () if kind.is_symlink() => FileType::Symlink,
            () => FileType::File,
        },
        size: metadata.len(),
        mtime: Mtime::of(metadata).timestamp(),
        mode: format!("{:04o}", metadata.mode() & 0o7777),
    }
}
