//! What shells and forwarded connections have in common: the upgrade, limits of messages, and the end of a WebSocket.
//! Out of scope: the content of messages.

use std::time::Duration;

use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade, close_code};
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt, StreamExt};
use tokio::time::timeout;

use super::error::Error;

/// The maximum size of a message from the client, in bytes.
const MESSAGE_LIMIT: usize = 4 << 20;

/// The size of the buffer for received bytes. The WebSocket library allocates it for each connection.
const BUFFER: usize = 16 << 10;

/// The time for the client to answer a close frame.
const CLOSE_TIME: Duration = Duration::from_secs(2);

/// The result of the extractor; its rejection is an [`Error`].
pub type Upgrade = Result<WebSocketUpgrade, WebSocketUpgradeRejection>;

/// Sets the limits.
///
/// # Errors
/// The request is no upgrade to a WebSocket.
pub fn accept(upgrade: Upgrade) -> Result<WebSocketUpgrade, Error> {
    let upgrade = upgrade.map_err(|error| Error::new(error.status(), error.body_text()))?;
    Ok(upgrade
        .max_message_size(MESSAGE_LIMIT)
        .max_frame_size(MESSAGE_LIMIT)
        .read_buffer_size(BUFFER)
        .write_buffer_size(0))
}

/// Closes the WebSocket, with the code 1000, or with 1011 and a reason, and waits for the client to do the same.
pub async fn close(
    mut sink: SplitSink<WebSocket, Message>,
    mut source: SplitStream<WebSocket>,
    error: Option<&str>,
) {
    let frame = CloseFrame {
        code: if error.is_some() {
            close_code::ERROR
        } else {
            close_code::NORMAL
        },
        reason: error.unwrap_or_default().into(),
    };
    let closed = async {
        // An error is that of a client which has left.
        if sink.send(Message::Close(Some(frame))).await.is_ok() {
            while let Some(Ok(_)) = source.next().await {}
        }
    };
    let _ = timeout(CLOSE_TIME, closed).await;
}
