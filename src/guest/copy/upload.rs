//! From the host into a guest.
//! Out of scope: where the agent puts it.

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::StreamExt;
use hyper::Method;
use parking_lot::Mutex;

use super::location::{GuestPath, name};
use super::{ByteStream, CopyError, Options, Progress, Requester};
use crate::guest::archive::beneath::Beneath;
use crate::guest::archive::exclude::Patterns;
use crate::guest::archive::{self, Error, Mtime, Root, stream};
use crate::guest::protocol::CopyQuery;

/// What is copied.
pub enum Source {
    /// A file or a directory.
    Path(PathBuf),
    /// Bytes, such as those of standard input.
    Stream(ByteStream),
}

impl Source {
    /// Standard input.
    pub fn stdin() -> Self {
        Self::Stream(stream::stdin())
    }
}

/// Copies into a guest.
///
/// # Errors
/// See [`CopyError`]. An error of the agent is returned as soon as it is received.
pub async fn upload(
    agent: &impl Requester,
    source: Source,
    to: &GuestPath,
    options: &Options,
    progress: &Arc<Progress>,
) -> Result<(), CopyError> {
    let query = CopyQuery {
        path: to.as_str().to_owned(),
        uid: options.uid,
        gid: options.gid,
        permissions: options.permissions.map(octal),
        ..CopyQuery::default()
    };
    let (query, body) = match source {
        Source::Stream(body) => (query, body),
        Source::Path(path) => {
            let (options, progress) = (options.clone(), progress.clone());
            let open = move || open(&path, query, &options, &progress);
            let opened = tokio::task::spawn_blocking(open).await;
            opened.map_err(|_| CopyError::Interrupted)??
        }
    };
    let path = super::path_with(&query);
    let (body, failure) = observed(progress.count(body));
    let response = agent.request(Method::POST, path, Some(body)).await;
    // The other side only knows that the body has ended early.
    if let Some(reason) = failure.lock().take() {
        return Err(CopyError::Source(reason));
    }
    response.map(drop).map_err(CopyError::Request)
}

/// The same stream, and its error as soon as there is one.
fn observed(body: ByteStream) -> (ByteStream, Arc<Mutex<Option<String>>>) {
    let failure = Arc::new(Mutex::new(None));
    let seen = failure.clone();
    let body = body.inspect(move |item| {
        if let Err(error) = item {
            *seen.lock() = Some(error.to_string());
        }
    });
    (body.boxed(), failure)
}

fn octal(mode: u32) -> String {
    format!("{mode:04o}")
}

/// Opens a file or a directory. A symbolic link that the user names is followed.
fn open(
    path: &Path,
    query: CopyQuery,
    options: &Options,
    progress: &Progress,
) -> Result<(CopyQuery, ByteStream), CopyError> {
    let fail = |error| Error::file("open", path, error);
    let shown = || path.display().to_string();
    let metadata = fs::metadata(path).map_err(fail)?;
    let name = match name(path).map(|name| name.to_str().map(str::to_owned)) {
        Some(None) => return Err(CopyError::NotUtf8(shown())),
        name => name.flatten(),
    };
    let query = CopyQuery {
        mtime: Some(Mtime::of(&metadata).timestamp()),
        copy_contents: name.is_none(),
        source_name: name,
        ..query
    };
    if metadata.is_dir() {
        if !options.recursive {
            return Err(CopyError::IsDirectory(shown()));
        }
        return open_dir(path, query, options);
    }
    if !metadata.is_file() {
        return Err(CopyError::NotRegular(shown()));
    }
    // Not blocked by a FIFO that has replaced it.
    let mut file = File::options();
    let file = file.read(true).custom_flags(libc::O_NONBLOCK);
    let mut file = file.open(path).map_err(fail)?;
    let metadata = file.metadata().map_err(fail)?;
    let size = metadata.len();
    progress.set_total(size);
    let path = path.to_owned();
    // A file in /proc has the size 0 and a content.
    let body = stream::written_by(move |output| match size {
        0 => std::io::copy(&mut file, output)
            .map(drop)
            .map_err(|error| Error::file("read", &path, error)),
        size => archive::copy(file, size, &path, output),
    });
    let query = CopyQuery {
        mode: Some("cp-v1-binary".to_owned()),
        source_type: Some("file".to_owned()),
        permissions: query
            .permissions
            .or_else(|| Some(octal(metadata.mode() & 0o777))),
        copy_contents: false,
        ..query
    };
    Ok((query, body))
}

fn open_dir(
    path: &Path,
    query: CopyQuery,
    options: &Options,
) -> Result<(CopyQuery, ByteStream), CopyError> {
    let exclude = Patterns::parse(&options.exclude)?;
    let root = Beneath::open(path)?;
    // The contents of a directory have the attributes of the directory that they are copied to.
    let of_root = match query.copy_contents {
        true => Root::Omitted,
        false => Root::Included,
    };
    let body = stream::written_by(move |output| archive::write(&root, of_root, &exclude, output));
    let query = CopyQuery {
        mode: Some("cp-v1-tar".to_owned()),
        source_type: Some("directory".to_owned()),
        ..query
    };
    Ok((query, body))
}
