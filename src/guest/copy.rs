//! The host's side of `slicectl vm cp`: copies files and directories into a guest and out of it.
//! Out of scope: connections ([`Requester`]); messages for users; the format of archives.
//!
//! What a guest sends is hostile. The name of a copy is that of the request, never one that the guest sends; a guest cannot answer with a
//! directory where a file was requested; archives are extracted as [`super::archive`] describes; the size can be limited.
//!
//! All or nothing for each file: it is renamed to its name after its last byte. If the future is dropped, nothing is left of the file
//! that was being written.

mod download;
mod location;
#[cfg(test)]
pub(crate) mod tests;
mod upload;

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures::StreamExt;
use hyper::{HeaderMap, Method};
use serde::de::DeserializeOwned;

use super::archive;
pub use super::archive::stream::ByteStream;

pub use self::download::{Destination, download};
pub use self::location::{GuestPath, Location};
pub use self::upload::{Source, upload};

/// The maximum size of JSON in a response, in bytes: a list of 100,000 files.
pub const JSON_LIMIT: usize = 64 << 20;

/// A response with a status 2xx.
pub struct Response {
    /// Its headers; the implementation limits their size.
    pub headers: HeaderMap,
    /// Its body. An item is an error if the body ends early.
    pub body: ByteStream,
}

impl Response {
    /// The body as JSON.
    ///
    /// # Errors
    /// It is longer than [`JSON_LIMIT`], is closed early, or has another form.
    pub async fn json<T: DeserializeOwned>(mut self) -> Result<T, RequestError> {
        let failed = |text: String| RequestError::Failed(text);
        let mut bytes = Vec::new();
        while let Some(part) = self.body.next().await {
            let part = part.map_err(|error| failed(error.to_string()))?;
            bytes.extend_from_slice(&part);
            if bytes.len() > JSON_LIMIT {
                return Err(failed(format!(
                    "invalid response of the agent: more than {JSON_LIMIT} bytes"
                )));
            }
        }
        serde_json::from_slice(&bytes)
            .map_err(|error| failed(format!("invalid response of the agent: {error}")))
    }
}

/// Why there is no such response.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// The agent or the daemon refuses the request.
    #[error("{message}")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// The error in the response.
        message: String,
    },
    /// There is no response.
    #[error("{0}")]
    Failed(String),
}

/// Sends requests to the agent of one VM.
pub trait Requester: Sync {
    /// Sends a request. `path` is that of [`super::protocol`], with its query.
    ///
    /// The response may come before the body of the request ends; then the body is sent while the response is read. There is no
    /// timeout for the body: a copy takes as long as it takes. An error item of `body` ends the request with [`RequestError::Failed`].
    fn request(
        &self,
        method: Method,
        path: String,
        body: Option<ByteStream>,
    ) -> impl Future<Output = Result<Response, RequestError>> + Send;
}

impl<R: Requester> Requester for &R {
    async fn request(
        &self,
        method: Method,
        path: String,
        body: Option<ByteStream>,
    ) -> Result<Response, RequestError> {
        (**self).request(method, path, body).await
    }
}

/// What users choose.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Whether directories are copied.
    pub recursive: bool,
    /// The owner in the guest, or of the home directory `~`.
    pub uid: Option<u32>,
    /// The group in the guest.
    pub gid: Option<u32>,
    /// The permissions of files, in place of those of the source.
    pub permissions: Option<u32>,
    /// Patterns of files that are left out.
    pub exclude: Vec<String>,
    /// The maximum number of bytes that are received.
    pub max_bytes: Option<u64>,
}

/// How far a copy is; to be read while it runs.
#[derive(Debug, Default)]
pub struct Progress {
    done: AtomicU64,
    total: AtomicU64,
}

impl Progress {
    /// Bytes that were sent or received.
    pub fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// All bytes; `None` if that is not known: of a directory, of standard input.
    pub fn total(&self) -> Option<u64> {
        Some(self.total.load(Ordering::Relaxed)).filter(|total| *total > 0)
    }

    fn set_total(&self, total: u64) {
        self.total.store(total, Ordering::Relaxed);
    }

    /// The same stream, counted.
    fn count(self: &Arc<Self>, stream: ByteStream) -> ByteStream {
        let progress = self.clone();
        stream
            .inspect(move |item| {
                let length = item.as_ref().map_or(0, |bytes| bytes.len() as u64);
                progress.done.fetch_add(length, Ordering::Relaxed);
            })
            .boxed()
    }
}

/// Why a copy failed.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// The request.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// A file of the host, or what was received.
    #[error(transparent)]
    File(#[from] archive::Error),
    /// The source is a directory.
    #[error("{0} is a directory: use -r to copy it")]
    IsDirectory(String),
    /// The source cannot be copied.
    #[error("{0} is neither a regular file nor a directory")]
    NotRegular(String),
    /// A name that the other side cannot have.
    #[error("the name of {0} is not UTF-8")]
    NotUtf8(String),
    /// A pattern.
    #[error(transparent)]
    Pattern(#[from] archive::exclude::InvalidPattern),
    /// A directory and standard output.
    #[error("a directory cannot be copied to standard output")]
    DirectoryToStdout,
    /// The agent breaks the protocol.
    #[error("invalid response of the agent: {0}")]
    InvalidResponse(String),
    /// The source could not be read to its end.
    #[error("{0}")]
    Source(String),
    /// Standard output could not be written, or the response not be read.
    #[error("{0}")]
    Stdio(io::Error),
    /// The runtime stops.
    #[error("the copy was interrupted")]
    Interrupted,
}

/// The path of a request.
fn path_with(query: &super::protocol::CopyQuery) -> String {
    // Texts, numbers and lists of texts can always be a query.
    let query = serde_html_form::to_string(query).unwrap_or_default();
    format!("/cp?{query}")
}
