//! `/fs/watch`: what is reported, and when a stream ends.
//! Out of scope: merging of changes (`watch::merge`).

use std::fs;
use std::path::Path;
use std::time::Duration;

use axum::body::Body;
use axum::http::Request;
use futures::StreamExt;
use tower::ServiceExt;

use super::{call, encoded};
use crate::guest::agent::files::router;
use crate::guest::protocol::WatchEvent;

/// A stream of changes.
struct Stream {
    body: axum::body::BodyDataStream,
    text: String,
}

impl Stream {
    async fn open(paths: &[&Path], more: &str) -> Self {
        let paths: Vec<String> = paths
            .iter()
            .map(|path| format!("paths={}", encoded(path)))
            .collect();
        let uri = format!("/fs/watch?{}&{more}", paths.join("&"));
        let request = Request::get(uri)
            .header("last-event-id", "7")
            .body(Body::empty());
        let response = router().oneshot(request.unwrap()).await.unwrap();
        assert_eq!(response.status(), 200);
        let kind = response.headers()["content-type"].to_str().unwrap();
        assert!(kind.starts_with("text/event-stream"), "{kind}");
        Self {
            body: response.into_body().into_data_stream(),
            text: String::new(),
        }
    }

    /// The next event; `None` at the end.
    async fn next(&mut self) -> Option<WatchEvent> {
        let read = async {
            loop {
                if let Some((frame, rest)) = self.text.split_once("\n\n") {
                    let (frame, rest) = (frame.to_owned(), rest.to_owned());
                    self.text = rest;
                    assert!(frame.contains("event: watch"), "{frame}");
                    let data = frame.lines().find_map(|line| line.strip_prefix("data: "));
                    let event: WatchEvent = serde_json::from_str(data.unwrap()).unwrap();
                    assert!(frame.contains(&format!("id: {}", event.id)), "{frame}");
                    return Some(event);
                }
                let part = self.body.next().await?.unwrap();
                self.text.push_str(str::from_utf8(&part).unwrap());
            }
        };
        let read = tokio::time::timeout(Duration::from_secs(20), read);
        read.await.expect("an event or the end")
    }

    async fn expect(&mut self, kind: &str, path: &Path) -> WatchEvent {
        let event = self.next().await.expect("an event");
        assert_eq!(
            (event.kind.as_str(), event.path.as_str()),
            (kind, path.to_str().unwrap())
        );
        event
    }
}

#[tokio::test]
async fn each_kind_of_change_is_reported() {
    let root = tempfile::tempdir().unwrap();
    let at = |path: &str| root.path().join(path);
    let mut stream = Stream::open(&[root.path()], "").await;
    fs::write(at("a"), "text").unwrap();
    assert_eq!(stream.expect("create", &at("a")).await.id, 1);
    let written = stream.expect("write", &at("a")).await;
    assert_eq!((written.id, written.size, written.is_dir), (2, 4, false));
    fs::set_permissions(at("a"), std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    stream.expect("chmod", &at("a")).await;
    fs::rename(at("a"), at("b")).unwrap();
    stream.expect("rename", &at("a")).await;
    stream.expect("create", &at("b")).await;
    fs::remove_file(at("b")).unwrap();
    assert_eq!(stream.expect("remove", &at("b")).await.size, 0);
    fs::create_dir(at("dir")).unwrap();
    assert!(stream.expect("create", &at("dir")).await.is_dir);
    fs::write(at("dir/not-recursive"), "").unwrap();
    fs::remove_dir_all(root.path()).unwrap();
    stream.expect("remove", &at("dir")).await;
    stream.expect("remove", root.path()).await;
    assert_eq!(stream.next().await, None, "nothing is watched any more");
}

#[tokio::test]
async fn new_directories_are_watched_with_what_is_in_them_already() {
    let root = tempfile::tempdir().unwrap();
    let at = |path: &str| root.path().join(path);
    fs::create_dir_all(at("old/deep")).unwrap();
    let mut stream =
        Stream::open(&[root.path()], "recursive=true&events=create&events=rename").await;
    fs::write(at("old/deep/a"), "").unwrap();
    stream.expect("create", &at("old/deep/a")).await;
    let outside = tempfile::tempdir_in(root.path().parent().unwrap()).unwrap();
    fs::create_dir_all(outside.path().join("x/y")).unwrap();
    fs::write(outside.path().join("x/y/file"), "").unwrap();
    fs::rename(outside.path().join("x"), at("x")).unwrap();
    for path in ["x", "x/y", "x/y/file"] {
        stream.expect("create", &at(path)).await;
    }
    fs::write(at("x/y/later"), "").unwrap();
    stream.expect("create", &at("x/y/later")).await;
    // Outside, it is not watched any more.
    fs::rename(at("x"), outside.path().join("x")).unwrap();
    stream.expect("rename", &at("x")).await;
    fs::write(outside.path().join("x/y/more"), "").unwrap();
    fs::write(at("end"), "").unwrap();
    stream.expect("create", &at("end")).await;
}

#[tokio::test]
async fn a_file_is_watched_before_it_exists_and_after_it_is_replaced() {
    let root = tempfile::tempdir().unwrap();
    let (result, draft) = (root.path().join("result"), root.path().join("draft"));
    let mut stream = Stream::open(&[&result], "events=create").await;
    for text in ["1", "22"] {
        fs::write(&draft, text).unwrap();
        fs::rename(&draft, &result).unwrap();
        assert_eq!(
            stream.expect("create", &result).await.size,
            text.len() as u64
        );
    }
}

#[tokio::test]
async fn a_stream_ends_when_the_request_says_so() {
    let root = tempfile::tempdir().unwrap();
    let at = |path: &str| root.path().join(path);
    let mut stream = Stream::open(&[root.path()], "timeout=100ms").await;
    assert_eq!(stream.next().await, None);
    let mut stream = Stream::open(&[root.path()], "one_shot=true&patterns=*.json").await;
    fs::write(at("other"), "x").unwrap();
    fs::write(at("result.json"), "x").unwrap();
    stream.expect("create", &at("result.json")).await;
    assert_eq!(stream.next().await, None);
    let mut stream = Stream::open(&[root.path()], "max_events=2&debounce=50ms").await;
    fs::write(at("one"), "x").unwrap();
    fs::write(at("two"), "x").unwrap();
    stream.expect("create", &at("one")).await;
    stream.expect("create", &at("two")).await;
    assert_eq!(stream.next().await, None);
}

#[tokio::test]
async fn malformed_requests_are_refused() {
    let root = tempfile::tempdir().unwrap();
    let dir = encoded(root.path());
    for (query, status, expected) in [
        (String::new(), 400, "\"paths\" are required"),
        ("paths=/slice-none/x".to_owned(), 404, "No such file"),
        (
            "paths=relative".to_owned(),
            400,
            "expected an absolute path",
        ),
        (
            format!("paths={dir}&events=open"),
            400,
            "invalid event \"open\"",
        ),
        (format!("paths={dir}&patterns=%5B"), 400, "invalid pattern"),
        (
            format!("paths={dir}&debounce=1"),
            400,
            "invalid duration \"1\"",
        ),
        (format!("paths={dir}&debounce=61s"), 400, "at most 60s"),
        (format!("paths={dir}&timeout=soon"), 400, "invalid duration"),
        (format!("paths={dir}&max_events=-1"), 400, "invalid query"),
    ] {
        let answer = call("GET", &format!("/fs/watch?{query}"), "").await;
        assert_eq!(answer.status, status, "{query}");
        assert!(
            answer.error().contains(expected),
            "{query}: {}",
            answer.error()
        );
    }
    let request = Request::get(format!("/fs/watch?paths={dir}")).header("last-event-id", "x");
    let response = router()
        .oneshot(request.body(Body::empty()).unwrap())
        .await
        .unwrap();
    assert_eq!(response.status(), 400);
}

#[tokio::test]
async fn the_number_of_streams_and_of_directories_is_limited() {
    let root = tempfile::tempdir().unwrap();
    let app = router();
    let open = || {
        let request = Request::get(format!("/fs/watch?paths={}", encoded(root.path())));
        app.clone().oneshot(request.body(Body::empty()).unwrap())
    };
    let mut streams = Vec::new();
    for _ in 0..32 {
        streams.push(open().await.unwrap());
    }
    assert_eq!(open().await.unwrap().status(), 503);
    streams.clear();
    assert_eq!(open().await.unwrap().status(), 200);
    for number in 0..8192 {
        fs::create_dir(root.path().join(number.to_string())).unwrap();
    }
    let uri = format!("/fs/watch?recursive=true&paths={}", encoded(root.path()));
    let answer = call("GET", &uri, "").await;
    assert_eq!(answer.status, 400, "{}", answer.error());
}
