//! The endpoints for files: `/cp` and `/fs/…`.
//! Out of scope: commands, shells; who may call them.
//!
//! # Permissions
//! Files are read and changed with the permissions of the agent, and what is created gets the requested owner (chown(2)). The agent does
//! not change its file-system user (setfsuid(2)), because that would restrict nobody: who may copy may also execute commands as root,
//! the requests of `/fs` name no user, and published clients write to directories of the system without naming one.
//!
//! Links to directories in the path of a request are followed, as by every program of root: a copy into a directory of a user of the guest
//! trusts that user. A link at the end of a path is replaced by a file and not followed, and no link is followed below the source or the
//! destination of an archive.
//!
//! All system calls are made on threads that may block; a file is never in memory as a whole.

mod download;
mod fs;
mod target;
#[cfg(test)]
mod tests;
mod upload;
mod watch;

use std::io;

use axum::Router;
use axum::http::StatusCode;
use axum::routing::{delete, get, post};

use super::error::Error;
use crate::guest::archive;

/// The routes.
pub fn router() -> Router {
    Router::new()
        .route("/cp", get(download::copy).post(upload::copy))
        .route("/fs/stat", get(fs::stat))
        .route("/fs/readdir", get(fs::readdir))
        .route("/fs/mkdir", post(fs::mkdir))
        .route("/fs/remove", delete(fs::remove))
        .route("/fs/watch", get(watch::watch))
        .with_state(watch::Slots::default())
}

/// The response to an error with a file or an archive.
fn refusal(error: &archive::Error) -> Error {
    let status = match error {
        archive::Error::File { source, .. } => status(source),
        _ => StatusCode::BAD_REQUEST,
    };
    Error::new(status, error.to_string())
}

/// 404 if a file does not exist, 409 if it exists already, 400 for other errors that the request causes.
fn status(error: &io::Error) -> StatusCode {
    use io::ErrorKind;
    match error.kind() {
        ErrorKind::NotFound => StatusCode::NOT_FOUND,
        ErrorKind::AlreadyExists => StatusCode::CONFLICT,
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => StatusCode::INSUFFICIENT_STORAGE,
        _ => StatusCode::BAD_REQUEST,
    }
}

/// Runs what makes system calls on a thread that may block.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|_| {
        let text = "the request was interrupted";
        Err(Error::new(StatusCode::INTERNAL_SERVER_ERROR, text))
    })
}
