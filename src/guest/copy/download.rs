//! From a guest to the host.
//! Out of scope: how an archive is extracted.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hyper::{HeaderMap, Method, header};
use jiff::Timestamp;

use super::location::GuestPath;
use super::{ByteStream, CopyError, Options, Progress, Requester, Response};
use crate::guest::archive::draft::Attributes;
use crate::guest::archive::exclude::Patterns;
use crate::guest::archive::stream::{Reader, guarded};
use crate::guest::archive::{Error, Extraction, Limits, Mtime, Owner};
use crate::guest::place::{self, destination, put_file, put_tree};
use crate::guest::protocol::{CopyQuery, copy_header};

/// Where to.
pub enum Destination {
    /// A file or a directory.
    Path(PathBuf),
    /// Standard output, or another writer in its place. It is written from a thread that may block.
    Stream(Box<dyn Write + Send>),
}

/// What the agent sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    File,
    Directory,
}

/// Copies out of a guest. Files belong to the caller; permissions and modification times are kept, without setuid and setgid.
///
/// # Errors
/// See [`CopyError`]. After an error, a directory contains what was copied before it.
pub async fn download(
    agent: &impl Requester,
    from: &GuestPath,
    to: Destination,
    options: &Options,
    progress: &Arc<Progress>,
) -> Result<(), CopyError> {
    // Before a request: with the same errors as for an upload.
    Patterns::parse(&options.exclude)?;
    let mode = match options.recursive {
        true => "cp-v1-recursive",
        false => "cp-v1-binary",
    };
    let query = CopyQuery {
        path: from.as_str().to_owned(),
        mode: Some(mode.to_owned()),
        uid: options.uid,
        gid: options.gid,
        exclude: options.exclude.clone(),
        copy_contents: from.name().is_none(),
        ..CopyQuery::default()
    };
    let response = agent.request(Method::GET, super::path_with(&query), None);
    let Response { headers, body } = match response.await {
        // The message of the agent for clients of any kind.
        Err(super::RequestError::Refused {
            status: 400,
            message,
        }) if !options.recursive && message.contains("must specify a file") => {
            return Err(CopyError::IsDirectory(from.as_str().to_owned()));
        }
        response => response?,
    };
    let kind = kind(&headers, options.recursive)?;
    if let Some(size) = size(&headers).filter(|_| kind == Kind::File) {
        progress.set_total(size);
    }
    let (body, _guard) = guarded(progress.count(body));
    let received = Received {
        kind,
        name: from.name().map(str::to_owned),
        mode: permissions(&headers),
        permissions: options.permissions,
        mtime: mtime(&headers),
        max_bytes: options.max_bytes,
    };
    let receive = move || received.store(to, body);
    let stored = tokio::task::spawn_blocking(receive).await;
    stored.map_err(|_| CopyError::Interrupted)?
}

/// A guest that sends a directory although a file is requested is refused.
fn kind(headers: &HeaderMap, is_recursive: bool) -> Result<Kind, CopyError> {
    let kind = headers.get(copy_header::SOURCE_TYPE);
    match kind.map(header::HeaderValue::as_bytes) {
        Some(b"file") => Ok(Kind::File),
        Some(b"directory") if is_recursive => Ok(Kind::Directory),
        Some(b"directory") => {
            let text = "a directory where a file is requested";
            Err(CopyError::InvalidResponse(text.to_owned()))
        }
        _ => Err(CopyError::InvalidResponse(format!(
            "the header {} is neither file nor directory",
            copy_header::SOURCE_TYPE
        ))),
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

fn size(headers: &HeaderMap) -> Option<u64> {
    text(headers, header::CONTENT_LENGTH.as_str())?.parse().ok()
}

/// Those of the source; other clients of the protocol do without them, so malformed ones are left out.
fn permissions(headers: &HeaderMap) -> Option<u32> {
    let mode = text(headers, copy_header::MODE)?;
    let mode = u32::from_str_radix(mode, 8).ok()?;
    Some(mode & 0o777)
}

fn mtime(headers: &HeaderMap) -> Option<Mtime> {
    let time: Timestamp = text(headers, copy_header::MTIME)?.parse().ok()?;
    Some(time.into())
}

/// A response of the agent.
struct Received {
    kind: Kind,
    /// Of the requested path.
    name: Option<String>,
    /// Of the source.
    mode: Option<u32>,
    /// Of all files, if the user requests them.
    permissions: Option<u32>,
    mtime: Option<Mtime>,
    max_bytes: Option<u64>,
}

impl Received {
    /// Stores it. Blocks.
    fn store(self, to: Destination, body: ByteStream) -> Result<(), CopyError> {
        let mut input = Reader::new(body);
        match (to, self.kind) {
            (Destination::Stream(_), Kind::Directory) => Err(CopyError::DirectoryToStdout),
            (Destination::Stream(output), Kind::File) => self.print(&mut input, output),
            (Destination::Path(to), kind) => Ok(self.put(&to, kind, &mut input)?),
        }
    }

    fn put(&self, to: &Path, kind: Kind, input: &mut Reader) -> Result<(), Error> {
        let name = self.name.as_deref().map(std::ffi::OsStr::new);
        let source = match (kind, name) {
            (Kind::File, Some(name)) => place::Source::File(name),
            (Kind::Directory, Some(name)) => place::Source::Directory(name),
            (Kind::Directory, None) => place::Source::Contents,
            (Kind::File, None) => {
                let text = "a file where the contents of a directory are requested";
                return Err(Error::Invalid(text.to_owned()));
            }
        };
        let target = destination(to, source)?;
        if kind == Kind::Directory {
            let extraction = Extraction {
                limits: Limits {
                    bytes: self.max_bytes.unwrap_or(Limits::default().bytes),
                    ..Limits::default()
                },
                owner: Owner::Process,
                mode: self.permissions,
            };
            let of_root = (self.mode.unwrap_or(0o755), self.mtime);
            return put_tree(&target, input, &extraction, Some(of_root));
        }
        let attributes = Attributes {
            mode: self.permissions.or(self.mode),
            mtime: self.mtime,
            owner: Owner::Process,
        };
        put_file(&target, input, attributes, self.max_bytes).map(drop)
    }

    fn print(
        &self,
        input: &mut Reader,
        mut output: Box<dyn Write + Send>,
    ) -> Result<(), CopyError> {
        let limit = self.max_bytes.unwrap_or(u64::MAX - 1);
        let mut input = io::Read::take(input, limit);
        io::copy(&mut input, &mut output).map_err(CopyError::Stdio)?;
        output.flush().map_err(CopyError::Stdio)?;
        let rest = io::Read::read(input.get_mut(), &mut [0]).map_err(CopyError::Stdio)?;
        match rest {
            0 => Ok(()),
            _ => Err(Error::Limit {
                limit,
                unit: "bytes",
            }
            .into()),
        }
    }
}
