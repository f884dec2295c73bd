//! Connections of bytes in both directions: sftp, and ports of the guest (`direct-tcpip`).
//! Out of scope: what the bytes mean.

use std::sync::Arc;

use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use russh::ChannelOpenFailure;
use russh::server::ChannelOpenHandle;
use tokio_tungstenite::tungstenite::Message;

use super::agent::{Agent, Socket};
use super::channel::{Gone, Output, Parts};
use super::flow::Input;
use super::shared::Shared;
use super::target::Target;
use super::visitor::{FAILED, Login, Visitor, audit};
use crate::guest::endpoint::Access;
use crate::guest::protocol::{HALF_CLOSE, SftpQuery, UPSTREAM};
use crate::wire::Backend;

/// The maximum length of a host name (RFC 1035).
const MAX_HOST: usize = 253;

/// What the guest connects to, as its agent expects it; `None` if it is not valid.
pub fn upstream(host: &str, port: u32) -> Option<String> {
    let is_permitted = |byte: u8| byte.is_ascii_alphanumeric() || b".-_:".contains(&byte);
    let is_host = (1..=MAX_HOST).contains(&host.len()) && host.bytes().all(is_permitted);
    let port = u16::try_from(port).ok().filter(|port| *port != 0)?;
    match (is_host, host.contains(':')) {
        (false, _) => None,
        (true, true) => Some(format!("[{host}]:{port}")),
        (true, false) => Some(format!("{host}:{port}")),
    }
}

/// Connects to a port in the guest, then passes on bytes.
pub async fn forward<B: Backend>(
    shared: Arc<Shared<B>>,
    visitor: Visitor,
    upstream: Option<String>,
    mut parts: Parts,
    reply: ChannelOpenHandle,
) {
    let (Some(upstream), Target::Guest { vm, .. }) = (upstream, &visitor.target) else {
        return reply
            .reject(ChannelOpenFailure::AdministrativelyProhibited)
            .await;
    };
    let connect = async {
        let agent = Agent::of(shared.backend.as_ref(), vm, Access::Forward).await;
        let agent = agent.map_err(|reason| reason.into_text())?;
        audit(&visitor, vm, Access::Forward);
        let headers = [(UPSTREAM, upstream.as_str()), (HALF_CLOSE, "true")];
        agent.socket("/forward", &(), &headers).await
    };
    match connect.await {
        Ok(socket) => {
            reply.accept().await;
            let _ = pump(socket, &mut parts.input, &parts.output).await;
            parts.output.close().await;
        }
        Err(error) => {
            tracing::debug!(%vm, %error, "cannot forward a connection");
            reply.reject(ChannelOpenFailure::ConnectFailed).await;
        }
    }
}

/// Serves the subsystem: the agent runs a server as the user.
pub async fn sftp<B: Backend>(backend: &B, agent: &Agent, login: &Login, mut parts: Parts) {
    let query = SftpQuery {
        user: login.user.clone(),
        ..SftpQuery::default()
    };
    let status = match agent.socket("/sftp", &query, &[]).await {
        Ok(socket) => match pump(socket, &mut parts.input, &parts.output).await {
            Ok(true) => 0,
            Ok(false) => {
                let text = agent.lost(backend).await;
                let _ = parts.output.message(&text).await;
                FAILED
            }
            Err(Gone) => return,
        },
        Err(text) => {
            let _ = parts.output.message(&text).await;
            FAILED
        }
    };
    parts.output.exit(status).await;
}

/// Passes on bytes until both directions have ended, or one side has left. An empty message ends a direction, as [`HALF_CLOSE`] says.
/// False if the agent has left before it ended its direction.
async fn pump(socket: Socket, input: &mut Input, output: &Output) -> Result<bool, Gone> {
    let (mut sink, mut source) = socket.split();
    let upload = async {
        while let Some(data) = input.next().await {
            if sink.send(Message::Binary(data)).await.is_err() {
                return;
            }
        }
        let _ = sink.send(Message::Binary(Bytes::new())).await;
    };
    let download = async {
        while let Some(Ok(message)) = source.next().await {
            match message {
                Message::Binary(data) if data.is_empty() => {
                    output.end().await;
                    return Ok(true);
                }
                Message::Binary(data) => output.data(data).await?,
                Message::Close(_) => break,
                _ => {}
            }
        }
        Ok(false)
    };
    tokio::pin!(upload, download);
    tokio::select! {
        ended = &mut download => match ended {
            Ok(true) => {
                // What the client still sends is passed on.
                upload.await;
                Ok(true)
            }
            ended => ended,
        },
        () = &mut upload => download.await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_upstream_is_a_host_and_a_port() {
        let long = "a".repeat(254);
        for (host, port, expected) in [
            ("127.0.0.1", 80, Some("127.0.0.1:80")),
            ("::1", 65535, Some("[::1]:65535")),
            ("db.internal", 5432, Some("db.internal:5432")),
            ("", 80, None),
            ("a b", 80, None),
            ("a\r\nx: y", 80, None),
            ("[::1]", 80, None),
            ("/run/x", 80, None),
            ("a", 0, None),
            ("a", 65536, None),
            (&long, 80, None),
        ] {
            assert_eq!(upstream(host, port).as_deref(), expected, "{host}");
        }
    }
}
