//! `/sftp`: starts a server of SFTP as a user, and passes on its bytes as messages of a WebSocket.
//! Out of scope: the server (`sftp_server`).
//!
//! It is a process of its own, as that of sshd(8): the kernel checks the permissions of the user.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::extract::ws::WebSocket;
use axum::http::Uri;
use axum::response::Response;
use axum::routing::get;
use axum::{Extension, Router};
use tokio::io::AsyncWrite;
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
    let stream = Stream::new(stdout, Closing(Some(stdin)));
    let abandoned = spawned.abandoned;
    Ok(upgrade.on_upgrade(move |socket| serve(socket, stream, abandoned, connection)))
}

async fn serve(socket: WebSocket, stream: Stream, abandoned: Abandoned, connection: Connection) {
    copy(socket, stream, true, connection).await;
    // Terminates the server if it still runs.
    drop(abandoned);
}

/// A pipe that is closed when it is shut down: the server then reads the end of its input.
struct Closing(Option<pipe::Sender>);

impl AsyncWrite for Closing {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.0 {
            Some(pipe) => Pin::new(pipe).poll_write(context, bytes),
            None => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0 = None;
        Poll::Ready(Ok(()))
    }
}
