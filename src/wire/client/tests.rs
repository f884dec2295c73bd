//! The client with daemons that respond and close before they have read a request.
//! Out of scope: the requests one by one (`tests/e2e`).

use http_body_util::StreamBody;
use hyper::body::Frame;
use tokio::io::AsyncReadExt;
use tokio::net::UnixListener;
use tokio::sync::oneshot;

use super::*;

/// Responds when the head of a request was received, closes, and then reports that.
async fn respond(listener: UnixListener, response: &'static str, closed: oneshot::Sender<()>) {
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    stream.try_write(response.as_bytes()).unwrap();
    drop(stream);
    closed.send(()).unwrap();
}

#[tokio::test]
async fn the_response_of_a_daemon_that_does_not_read_the_request_is_reported() {
    for (response, expected) in [
        (
            "HTTP/1.1 404 Not Found\r\nconnection: close\r\n\r\n{\"error\":\"no such vm\"}",
            "no such vm",
        ),
        (
            "HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\n\r\n{\"error\":\"sliced is busy\"}",
            "sliced is busy",
        ),
        (
            "HTTP/1.1 401 Unauthorized\r\ncontent-length: 0\r\n\r\n",
            "token",
        ),
        // Nothing at all.
        (
            "",
            "connection closed before message completed; the request may have been executed",
        ),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sliced.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let (closing, closed) = oneshot::channel();
        tokio::spawn(respond(listener, response, closing));
        let parts = stream::once(async move {
            closed.await.unwrap();
            Ok::<_, io::Error>(Frame::data(Bytes::from_static(&[0; 64 << 10])))
        });
        let request = Request::post("/").body(StreamBody::new(Box::pin(parts)));
        let client = Client::new(path);
        let answer = client.exchange(request.unwrap(), Some(PATIENCE)).await;
        let error = answer.expect_err("a refusal").to_string();
        assert!(error.contains(expected), "{response:?}: {error}");
    }
}
