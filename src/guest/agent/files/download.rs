//! `GET /cp`: a file or a directory of the guest.
//! Out of scope: how an archive is written.

use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use axum::body::Body;
use axum::http::response::Builder;
use axum::http::{Uri, header};
use axum::response::Response;
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;

use super::super::error::{Error, query};
use super::target::{self, Mode};
use super::{blocking, refusal};
use crate::guest::archive::beneath::Beneath;
use crate::guest::archive::exclude::Patterns;
use crate::guest::archive::{self, Mtime, Root, stream, write};
use crate::guest::protocol::{CopyQuery, copy_header};

/// What is sent.
enum Source {
    File(File, fs::Metadata),
    Directory(Beneath, fs::Metadata),
}

/// `GET /cp`.
pub async fn copy(uri: Uri) -> Result<Response, Error> {
    let query: CopyQuery = query(&uri)?;
    let mode = Mode::parse(query.mode.as_deref())?;
    let exclude =
        Patterns::parse(&query.exclude).map_err(|error| Error::bad_request(error.to_string()))?;
    let opening = blocking(move || {
        let user = target::user(query.uid, query.gid)?;
        let path = target::path(&query.path, &user)?;
        let source = open(&path, mode)?;
        Ok((source, path, query.copy_contents))
    });
    let (source, path, is_contents) = opening.await?;
    let mut response = Response::builder();
    if !matches!(mode, Mode::Binary | Mode::Tar) {
        response = names(response, &source, &path, is_contents)?;
    }
    let built = match source {
        Source::File(file, metadata) => send_file(response, file, &metadata, path),
        Source::Directory(root, metadata) => {
            let body =
                stream::written_by(move |output| write(&root, Root::Omitted, &exclude, output));
            attributes(response, &metadata)
                .header(header::CONTENT_TYPE, "application/x-tar")
                .body(Body::from_stream(body))
        }
    };
    built.map_err(|error| Error::bad_request(error.to_string()))
}

/// Opens what the mode can send. A link is followed.
fn open(path: &Path, mode: Mode) -> Result<Source, Error> {
    let fail = |error: io::Error| refusal(&archive::Error::file("open", path, error));
    let shown = path.display();
    let metadata = fs::metadata(path).map_err(fail)?;
    let accepts_dir = matches!(mode, Mode::Tar | Mode::CpTar | Mode::CpRecursive);
    let accepts_file = matches!(mode, Mode::Binary | Mode::CpBinary | Mode::CpRecursive);
    match (metadata.is_dir(), metadata.is_file()) {
        (true, _) if accepts_dir => {
            let root = Beneath::open(path).map_err(|error| refusal(&error))?;
            Ok(Source::Directory(root, metadata))
        }
        // Clients search for this text, and copy a directory instead.
        (true, _) => Err(Error::bad_request(format!(
            "{shown} is a directory: must specify a file not a directory"
        ))),
        (_, true) if accepts_file => {
            // It may have been replaced by a FIFO, which blocks.
            let mut options = File::options();
            let options = options.read(true).custom_flags(libc::O_NONBLOCK);
            let file = options.open(path).map_err(fail)?;
            let metadata = file.metadata().map_err(fail)?;
            match metadata.is_file() {
                true => Ok(Source::File(file, metadata)),
                false => Err(not_regular(path)),
            }
        }
        (_, true) => Err(Error::bad_request(format!("{shown} is not a directory"))),
        _ => Err(not_regular(path)),
    }
}

fn not_regular(path: &Path) -> Error {
    let path = path.display();
    Error::bad_request(format!("{path} is not a regular file"))
}

/// The headers of cp-v1. The content of a directory has no name.
fn names(
    response: Builder,
    source: &Source,
    path: &Path,
    is_contents: bool,
) -> Result<Builder, Error> {
    let kind = match source {
        Source::File(..) => "file",
        Source::Directory(..) => "directory",
    };
    let response = response.header(copy_header::SOURCE_TYPE, kind);
    match path.file_name() {
        Some(name) => {
            let name = BASE64_URL_SAFE_NO_PAD.encode(name.as_bytes());
            Ok(response.header(copy_header::SOURCE_NAME, name))
        }
        None if is_contents => Ok(response),
        None => Err(Error::bad_request(format!(
            "{} has no name: copy its contents",
            path.display()
        ))),
    }
}

fn attributes(response: Builder, metadata: &fs::Metadata) -> Builder {
    let mode = format!("{:04o}", metadata.mode() & 0o777);
    let mtime = Mtime::of(metadata).timestamp().to_string();
    response
        .header(copy_header::MODE, mode)
        .header(copy_header::MTIME, mtime)
}

/// The file as it is. A file in `/proc` has the size 0 and a content, so that size is not sent.
fn send_file(
    response: Builder,
    mut file: File,
    metadata: &fs::Metadata,
    path: PathBuf,
) -> Result<Response, axum::http::Error> {
    let mut response =
        attributes(response, metadata).header(header::CONTENT_TYPE, "application/octet-stream");
    let size = Some(metadata.len()).filter(|size| *size > 0);
    if let Some(size) = size {
        response = response.header(header::CONTENT_LENGTH, size);
    }
    let body = stream::written_by(move |output| match size {
        Some(size) => archive::copy(file, size, &path, output),
        None => io::copy(&mut file, output)
            .map(drop)
            .map_err(|error| archive::Error::file("read", &path, error)),
    });
    response.body(Body::from_stream(body))
}
