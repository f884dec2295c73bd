//! `/sftp`: starts a server of SFTP as a user, and passes on its bytes as messages of a WebSocket.
//! Out of scope: the server (`sftp_server`).
//!
//! It is a process of its own, as that of sshd(8): the kernel checks the permissions of the user.

use std::io;
use std::sync::Arc;

use axum::extract::ws::WebSocket;
use axum::http::Uri;
use axum::response::Response;
use axum::routing::get;
use axum::{Extension, Router};
use tokio::net::unix::pipe;

use super::child::Streams;
use super::error::{Error, query};
use super::forward::{Stream, copy};
use super::process::{Abandoned, Scope, start};
use super::socket::Connection;
use super::spec::Spec;
use super::state::Agent;
use super::websocket::{Upgrade, accept};
use crate::guest::protocol::SftpQuery;

/// The route.
pub fn router() -> Router<Arc<Agent>> {
    Router::new().route("/sftp", get(sftp))
}

async fn sftp(
    Extension(connection): Extension<Connection>,
    uri: Uri,
    upgrade: Upgrade,
) -> Result<Response, Error> {
    let upgrade = accept(upgrade)?;
    let query: SftpQuery = query(&uri)?;
    let streams = Streams::Pipes {
        stdin: true,
        stdout: true,
        stderr: false,
    };
    let spawned = start(Spec::of_sftp(&query)?, streams, Scope::Group).await?;
    let failed = |error: io::Error| Error::system("start the SFTP server", &error);
    let missing = || failed(io::ErrorKind::BrokenPipe.into());
    let (stdin, stdout) = (spawned.stdin, spawned.stdout);
    let stdin = pipe::Sender::from_owned_fd(stdin.ok_or_else(missing)?).map_err(failed)?;
    let stdout = pipe::Receiver::from_owned_fd(stdout.ok_or_else(missing)?).map_err(failed)?;
    let (stream, abandoned) = (Stream::new(stdout, stdin), spawned.abandoned);
    Ok(upgrade.on_upgrade(move |socket| serve(socket, stream, abandoned, connection)))
}

async fn serve(socket: WebSocket, stream: Stream, abandoned: Abandoned, connection: Connection) {
    copy(socket, stream, true, connection).await;
    // Terminates the server if it still runs.
    drop(abandoned);
}
