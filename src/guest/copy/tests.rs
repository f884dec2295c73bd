//! Copies between a host and an agent, over a Unix socket; agents that break the protocol.
//! Out of scope: archives of which single entries are wrong (`archive::tests`).

mod large;
mod rules;

use std::io;
use std::path::PathBuf;

use axum::Router;
use futures::StreamExt;
use futures::stream;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, BodyStream, StreamBody};
use hyper::body::{Bytes, Frame};
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use tokio::net::{UnixListener, UnixStream};

use super::{ByteStream, RequestError, Requester, Response};
use crate::guest::protocol::AgentError;

/// An agent that listens on a socket.
pub struct Agent(PathBuf);

impl Agent {
    /// Serves in this process.
    pub fn serve(dir: &std::path::Path, router: Router) -> Self {
        let path = dir.join("agent.sock");
        let listener = UnixListener::bind(&path).expect("a socket");
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self(path)
    }

    async fn send(
        &self,
        method: Method,
        path: String,
        body: Option<ByteStream>,
    ) -> Result<Response, Box<dyn std::error::Error + Send + Sync>> {
        let stream = UnixStream::connect(&self.0).await?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let body = body.unwrap_or_else(|| stream::empty().boxed());
        let body: UnsyncBoxBody<Bytes, io::Error> =
            StreamBody::new(body.map(|item| item.map(Frame::data))).boxed_unsync();
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "agent");
        let response = sender.send_request(request.body(body)?).await?;
        let (head, body) = response.into_parts();
        if !head.status.is_success() {
            let body = body.collect().await?.to_bytes();
            let error: AgentError = serde_json::from_slice(&body)?;
            return Err(Box::new(RequestError::Refused {
                status: head.status.as_u16(),
                message: error.error,
            }));
        }
        let body = BodyStream::new(body).filter_map(async |frame| match frame {
            Ok(frame) => frame.into_data().ok().map(Ok),
            Err(error) => Some(Err(io::Error::other(error))),
        });
        Ok(Response {
            headers: head.headers,
            body: body.boxed(),
        })
    }
}

impl Requester for Agent {
    async fn request(
        &self,
        method: Method,
        path: String,
        body: Option<ByteStream>,
    ) -> Result<Response, RequestError> {
        let response = self.send(method, path, body).await;
        response.map_err(|error| match error.downcast::<RequestError>() {
            Ok(error) => *error,
            Err(error) => RequestError::Failed(error.to_string()),
        })
    }
}
