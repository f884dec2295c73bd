//! Requests to the agent of a VM, for copies and files.
//! Out of scope: what is requested (`cp`, `fs`).

use futures::StreamExt;
use http_body_util::BodyExt;
use hyper::Method;

use crate::api::meta::Name;
use crate::guest::copy::{ByteStream, RequestError, Requester, Response};
use crate::wire::client::ClientError;
use crate::wire::{AgentRequest, Client};

/// The agent of a VM.
pub struct Agent<'c> {
    client: &'c Client,
    vm: Name,
}

impl<'c> Agent<'c> {
    /// The agent of `vm`, through the daemon of `client`.
    pub fn new(client: &'c Client, vm: Name) -> Self {
        Self { client, vm }
    }
}

impl Requester for Agent<'_> {
    async fn request(
        &self,
        method: Method,
        path: String,
        body: Option<ByteStream>,
    ) -> Result<Response, RequestError> {
        let request = AgentRequest::new(method, &self.vm, path);
        let request = match body {
            // The response comes when all of the body is written.
            Some(body) => request.stream(body).without_timeout(),
            None => request,
        };
        let response = self.client.agent(request).await.map_err(request_error)?;
        let (head, body) = response.into_parts();
        let body = body.into_data_stream();
        let body = body.map(|part| part.map_err(std::io::Error::other)).boxed();
        Ok(Response {
            headers: head.headers,
            body,
        })
    }
}

fn request_error(error: ClientError) -> RequestError {
    let message = error.to_string();
    match error {
        ClientError::Refused { status, .. } => RequestError::Refused { status, message },
        _ => RequestError::Failed(message),
    }
}
