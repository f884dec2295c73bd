//! One connection, from accept(2) to its end.
//! Out of scope: what the client requests (`handler`).

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use russh::server;
use tokio::net::TcpStream;
use tracing::{debug, info};

use super::admission::Permit;
use super::flow::Flow;
use super::handler::Handler;
use super::shared::Shared;
use super::stream::Stream;
use crate::clock;
use crate::wire::Backend;

/// The time for a client to log in.
const LOGIN_TIME: Duration = Duration::from_secs(20);

/// The time for a connection to end when the daemon stops.
const STOP_TIME: Duration = Duration::from_millis(500);

/// Serves a connection until it ends.
pub async fn serve<B: Backend>(
    shared: Arc<Shared<B>>,
    config: Arc<server::Config>,
    socket: TcpStream,
    peer: SocketAddr,
    permit: Permit,
) {
    // An error only delays small packets.
    let _ = socket.set_nodelay(true);
    let (permit, flow) = (Arc::new(permit), Arc::new(Flow::default()));
    let stream = Stream::new(socket, Arc::clone(&flow), permit.end.clone());
    let handler = Handler::new(Arc::clone(&shared), Arc::clone(&permit), flow, peer);
    let (login, logged_in) = (handler.login(), handler.logged_in());
    let deadline = tokio::time::sleep(LOGIN_TIME);
    tokio::pin!(deadline);
    let start = server::run_stream(config, stream, handler);
    let session = tokio::select! {
        started = start => match started {
            Ok(session) => session,
            Err(error) => {
                debug!(%peer, %error, "SSH connection not established");
                return;
            }
        },
        () = &mut deadline => return,
        () = shared.stop.cancelled() => return,
    };
    let handle = session.handle();
    tokio::pin!(session);
    let mut is_waiting = true;
    loop {
        tokio::select! {
            ended = &mut session => {
                if let Err(error) = ended {
                    debug!(%peer, %error, "SSH connection closed");
                }
                break;
            }
            () = &mut deadline, if is_waiting => {
                // It ends with an error of its socket.
                permit.end.cancel();
                is_waiting = false;
            }
            () = logged_in.cancelled(), if is_waiting => is_waiting = false,
            () = shared.stop.cancelled() => {
                let reason = russh::Disconnect::ByApplication;
                let text = "sliced is shutting down".to_owned();
                let goodbye = async {
                    let _ = handle.disconnect(reason, text, String::new()).await;
                    let _ = (&mut session).await;
                };
                let _ = tokio::time::timeout(STOP_TIME, goodbye).await;
                permit.end.cancel();
                return;
            }
        }
    }
    let login = login.lock();
    if let (false, Some(key)) = (login.succeeded, &login.refused)
        && let Some(suppressed) = shared.log_rate.permits(clock::monotonic())
    {
        info!(%peer, %key, suppressed, "SSH login failed");
    }
}
