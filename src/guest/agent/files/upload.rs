//! `POST /cp`: a file or a directory for the guest.
//! Out of scope: how an archive is extracted.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::time::Duration;

use axum::body::Body;
use axum::http::{StatusCode, Uri};
use futures::{StreamExt, TryStreamExt};

use super::super::error::{Error, query};
use super::target::{self, Mode};
use super::{blocking, refusal};
use crate::guest::archive::draft::Attributes;
use crate::guest::archive::stream::{ByteStream, Reader};
use crate::guest::archive::{Extraction, Limits, Owner};
use crate::guest::place::{Source, destination, make_dirs, put_file, put_tree};
use crate::guest::protocol::CopyQuery;

/// How long the rest of a refused upload is read.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(60);

/// What is received.
struct Request {
    mode: Mode,
    path: PathBuf,
    owner: Owner,
    permissions: Option<u32>,
    query: CopyQuery,
}

/// `POST /cp`.
///
/// A client that sends everything before it reads the response would see a reset connection in place of an error, because the kernel
/// discards what was sent when unread data is closed. So the rest of a refused body is read, while the response is sent.
pub async fn copy(uri: Uri, body: Body) -> Result<StatusCode, Error> {
    let body = body.into_data_stream().map_err(std::io::Error::other);
    let body: ByteStream = body.boxed();
    let received = match query(&uri).and_then(check) {
        Err(error) => Err((error, body)),
        Ok((query, mode, permissions)) => {
            blocking(move || Ok(receive(query, mode, permissions, body))).await?
        }
    };
    match received {
        Ok(()) => Ok(StatusCode::OK),
        Err((error, rest)) => {
            tokio::spawn(tokio::time::timeout(DRAIN_TIMEOUT, drain(rest)));
            Err(error)
        }
    }
}

async fn drain(mut body: ByteStream) {
    while let Some(Ok(_)) = body.next().await {}
}

fn check(query: CopyQuery) -> Result<(CopyQuery, Mode, Option<u32>), Error> {
    let mode = Mode::parse(query.mode.as_deref())?;
    let permissions = query.permissions.as_deref().filter(|text| !text.is_empty());
    let permissions = permissions.map(target::permissions).transpose()?;
    if !query.exclude.is_empty() {
        let text = "the parameter \"exclude\" has no effect with an upload: leave the files out";
        return Err(Error::bad_request(text));
    }
    Ok((query, mode, permissions))
}

/// Stores the body; after an error, returns the rest of it.
fn receive(
    query: CopyQuery,
    mode: Mode,
    permissions: Option<u32>,
    body: ByteStream,
) -> Result<(), (Error, ByteStream)> {
    let resolved = target::user(query.uid, query.gid).and_then(|user| {
        let path = target::path(&query.path, &user)?;
        Ok((path, target::owner(query.uid, query.gid, &user)))
    });
    let (path, owner) = match resolved {
        Ok(resolved) => resolved,
        Err(error) => return Err((error, body)),
    };
    let request = Request {
        mode,
        path,
        owner,
        permissions,
        query,
    };
    let mut input = Reader::new(body);
    store(&request, &mut input).map_err(|error| (error, input.into_stream()))
}

fn store(request: &Request, input: &mut Reader) -> Result<(), Error> {
    let stored = match source(request)? {
        // The modes without cp(1): missing directories are created.
        None if request.mode == Mode::Binary => {
            if request.query.path.ends_with('/') {
                let path = request.path.display();
                return Err(Error::bad_request(format!(
                    "{path} is not the name of a file"
                )));
            }
            let parent = request
                .path
                .parent()
                .map(|path| make_dirs(path, request.owner));
            parent
                .unwrap_or(Ok(()))
                .and_then(|()| file(request, &request.path, input))
        }
        None => make_dirs(&request.path, request.owner)
            .and_then(|()| put_tree(&request.path, input, &extraction(request), None)),
        Some(source) => destination(&request.path, source).and_then(|path| match source {
            Source::File(_) => file(request, &path, input),
            Source::Directory(_) | Source::Contents => {
                let of_root = (0o755, request.query.mtime.map(Into::into));
                put_tree(&path, input, &extraction(request), Some(of_root))
            }
        }),
    };
    stored.map_err(|error| refusal(&error))
}

/// What cp(1) copies; `None` in the other modes.
fn source(request: &Request) -> Result<Option<Source<'_>>, Error> {
    let query = &request.query;
    let kind = match (request.mode, query.source_type.as_deref()) {
        (Mode::Binary | Mode::Tar, _) => return Ok(None),
        (Mode::CpBinary, None | Some("" | "file")) => "file",
        (Mode::CpTar, None | Some("" | "directory")) => "directory",
        (Mode::CpRecursive, Some(kind @ ("file" | "directory"))) => kind,
        (_, kind) => {
            let kind = kind.unwrap_or_default();
            return Err(Error::bad_request(format!(
                "invalid source_type \"{kind}\" for this mode"
            )));
        }
    };
    let name = query.source_name.as_deref().filter(|name| !name.is_empty());
    match (kind, name) {
        ("directory", _) if query.copy_contents => Ok(Some(Source::Contents)),
        (_, None) => Err(Error::bad_request(
            "the parameter \"source_name\" is missing",
        )),
        ("directory", Some(name)) => Ok(Some(Source::Directory(OsStr::new(name)))),
        (_, Some(name)) => Ok(Some(Source::File(OsStr::new(name)))),
    }
}

fn file(
    request: &Request,
    path: &std::path::Path,
    input: &mut Reader,
) -> Result<(), crate::guest::archive::Error> {
    let attributes = Attributes {
        mode: request.permissions,
        mtime: request.query.mtime.map(Into::into),
        owner: request.owner,
    };
    put_file(path, input, attributes, None).map(drop)
}

fn extraction(request: &Request) -> Extraction {
    Extraction {
        limits: Limits::default(),
        owner: request.owner,
        mode: request.permissions,
    }
}
