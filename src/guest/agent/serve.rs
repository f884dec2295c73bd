//! Serves HTTP/1.1 on connections: their number, their deadlines, and the end of a request after its client has left.
//! Out of scope: requests.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use axum::Router;
use axum::response::IntoResponse;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};

use super::error::Error;
use super::socket::{Connection, Listener};
use crate::guest::protocol::PORT;

/// The maximum number of connections that are served, with those of shells and of forwarded ports.
const CONNECTIONS: usize = 2048;

/// The maximum number of further connections; their requests are answered with 503. All others wait in the queue of the socket.
const REFUSED: usize = 64;

/// The time for the head of a request, from the start of the connection or from the response before.
const HEAD_TIME: Duration = Duration::from_secs(30);

/// The maximum number of headers, and the size of the buffer for a head. hyper limits a URI to 65,534 bytes.
const HEADERS: usize = 64;
const BUFFER: usize = 96 << 10;

/// The time for the handshake before HTTP, and the maximum length of its line.
const HANDSHAKE_TIME: Duration = Duration::from_secs(5);
const HANDSHAKE_LIMIT: usize = 32;

/// The pause after accept(2) has failed, for example because there are no more descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What precedes HTTP on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handshake {
    /// Nothing: the VMM has spoken with the host.
    None,
    /// `CONNECT PORT` and `OK NUMBER`, as a VMM speaks with the host.
    Connect,
}

/// Serves connections without end.
pub async fn serve(listener: Listener, router: Router, handshake: Handshake) -> Infallible {
    let served = Arc::new(Semaphore::new(CONNECTIONS));
    let refused = Arc::new(Semaphore::new(REFUSED));
    let busy = Router::new().fallback(busy);
    loop {
        let socket = match listener.accept().await {
            Ok(socket) => socket,
            Err(error) => {
                eprintln!("slice-agent: accept: {error}");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let (permit, router) = tokio::select! {
            biased;
            permit = place_of(&served) => (permit, &router),
            permit = place_of(&refused) => (permit, &busy),
        };
        match Connection::new(socket, permit) {
            Ok(connection) => {
                tokio::spawn(run(connection, router.clone(), handshake));
            }
            Err(error) => eprintln!("slice-agent: register a connection: {error}"),
        }
    }
}

async fn place_of(semaphore: &Arc<Semaphore>) -> OwnedSemaphorePermit {
    match Arc::clone(semaphore).acquire_owned().await {
        Ok(permit) => permit,
        // It is never closed.
        Err(_) => std::future::pending().await,
    }
}

async fn busy() -> impl IntoResponse {
    Error::unavailable(format!(
        "the agent serves {CONNECTIONS} connections, which is the maximum: try again later"
    ))
}

async fn run(mut connection: Connection, router: Router, handshake: Handshake) {
    if handshake == Handshake::Connect {
        match timeout(HANDSHAKE_TIME, greet(&mut connection)).await {
            Ok(Ok(())) => {}
            // As a VMM does for a port on which nothing listens.
            _ => return,
        }
    }
    let app = TowerToHyperService::new(router);
    let copy = connection.clone();
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(copy.clone());
        let response = app.call(request);
        async move { response.await as Result<Response<_>, Infallible> }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .max_headers(HEADERS)
        .max_buf_size(BUFFER)
        .serve_connection(TokioIo::new(connection.clone()), service)
        .with_upgrades();
    tokio::select! {
        // An error is that of a client which has left or does not speak HTTP.
        _ = served => {}
        // hyper notices this only while it reads. The request is dropped, and what depends on it ends.
        () = connection.hangup() => {}
    }
}

async fn greet(connection: &mut Connection) -> io::Result<()> {
    static NUMBER: AtomicU32 = AtomicU32::new(1024);
    let mut line = Vec::new();
    // Byte by byte: the request may follow in the same packet.
    loop {
        match connection.read_u8().await? {
            b'\n' => break,
            _ if line.len() >= HANDSHAKE_LIMIT => return Err(io::ErrorKind::InvalidData.into()),
            byte => line.push(byte),
        }
    }
    if line != format!("CONNECT {PORT}").as_bytes() {
        return Err(io::ErrorKind::ConnectionRefused.into());
    }
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    connection
        .write_all(format!("OK {number}\n").as_bytes())
        .await
}
