//! One request after another on a Unix socket.
//! Out of scope: what they mean.

use std::os::unix::net::UnixListener;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use tokio::signal::unix::{SignalKind, signal};

/// A status, and what goes with it.
pub struct Answer {
    pub status: u16,
    pub body: String,
}

impl Answer {
    pub fn empty(status: u16) -> Self {
        Self {
            status,
            body: String::new(),
        }
    }

    pub fn json(status: u16, body: &serde_json::Value) -> Self {
        Self {
            status,
            body: body.to_string(),
        }
    }
}

/// Whoever is behind a socket.
pub trait Service: Send + 'static {
    /// Whether SIGTERM is an order to leave, and not the end.
    const HEARS_SIGTERM: bool;

    fn answer(&mut self, method: &str, path: &str, body: &[u8]) -> Answer;

    /// On SIGTERM.
    fn leave(&mut self) -> !;
}

/// Serves until the process ends.
pub fn serve<S: Service>(listener: UnixListener, service: Arc<Mutex<S>>) -> ! {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let ended = runtime.block_on(async {
        listener.set_nonblocking(true)?;
        let listener = tokio::net::UnixListener::from_std(listener)?;
        let router = Router::new()
            .fallback(answer::<S>)
            .with_state(Arc::clone(&service));
        if S::HEARS_SIGTERM {
            let mut told = signal(SignalKind::terminate())?;
            tokio::spawn(async move {
                told.recv().await;
                service.lock().expect("no answer panics").leave()
            });
        }
        axum::serve(listener, router).await
    });
    panic!("the server has ended: {ended:?}");
}

async fn answer<S: Service>(
    State(service): State<Arc<Mutex<S>>>,
    method: Method,
    uri: Uri,
    body: Bytes,
) -> Response {
    let answer =
        service
            .lock()
            .expect("no answer panics")
            .answer(method.as_str(), uri.path(), &body);
    let status = StatusCode::from_u16(answer.status).expect("a status");
    let kind = [(header::CONTENT_TYPE, "application/json")];
    (status, kind, answer.body).into_response()
}
