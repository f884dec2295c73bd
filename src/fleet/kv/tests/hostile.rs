//! Answers that etcd would not give.
//! Out of scope: watches.

use super::server::{Reply, Server};
use super::{HEADER, PAGE, client};
use crate::fleet::kv::{Error, Revision};

/// A list with these keys, of one letter.
fn page(keys: &str, more: bool) -> String {
    use base64::Engine;
    let kvs = keys.chars().map(|key| {
        let key = base64::prelude::BASE64_STANDARD.encode(format!("/{key}"));
        format!(r#"{{"key":"{key}","mod_revision":"4"}}"#)
    });
    let kvs: Vec<_> = kvs.collect();
    format!(r#"{{{HEADER},"kvs":[{}],"more":{more}}}"#, kvs.join(","))
}

#[tokio::test]
async fn a_list_is_read_in_pages_at_the_revision_of_the_first() {
    let server = Server::start(|seen| {
        let is_first = seen.body.contains(r#""revision":"0""#);
        Reply::ok(if is_first {
            page("ab", true)
        } else {
            page("c", false)
        })
    })
    .await;
    let listing = client(&[&server]).range("/", None, PAGE).await.unwrap();
    let keys: Vec<_> = listing.kvs.iter().map(|kv| kv.key.to_string()).collect();
    assert_eq!(keys, ["/a", "/b", "/c"]);
    assert_eq!(listing.revision, Revision(5));
    let bodies: Vec<_> = server.seen().into_iter().map(|seen| seen.body).collect();
    assert_eq!(
        bodies,
        [
            r#"{"key":"Lw==","range_end":"MA==","limit":"2","revision":"0"}"#,
            r#"{"key":"L2IA","range_end":"MA==","limit":"2","revision":"5"}"#,
        ]
    );
}

#[tokio::test]
async fn a_list_without_end_is_an_error() {
    for keys in ["", "ab", "ba", "aa"] {
        let server = Server::always(Reply::ok(page(keys, true))).await;
        let error = client(&[&server]).range("/", None, PAGE).await.unwrap_err();
        assert!(matches!(error, Error::Malformed { .. }), "{keys}: {error}");
    }
}

#[tokio::test]
async fn pages_of_another_cluster_are_an_error() {
    let server = Server::start(|seen| {
        let is_first = seen.body.contains(r#""revision":"0""#);
        let other = page("c", false).replace(r#""cluster_id":"1""#, r#""cluster_id":"7""#);
        Reply::ok(if is_first { page("ab", true) } else { other })
    })
    .await;
    let error = client(&[&server]).range("/", None, PAGE).await.unwrap_err();
    assert!(matches!(error, Error::ClusterChanged { .. }), "{error}");
}

#[tokio::test]
async fn a_page_that_is_too_large_is_read_in_smaller_pages() {
    let server = Server::start(|seen| {
        let is_small = seen.body.contains(r#""limit":"1""#);
        Reply::ok(match is_small {
            true => page("a", false),
            false => "x".repeat(17 << 20),
        })
    })
    .await;
    let client = client(&[&server]);
    assert_eq!(client.range("/", None, PAGE).await.unwrap().kvs.len(), 1);
    let server = Server::always(Reply::ok("x".repeat(17 << 20))).await;
    let client = super::client(&[&server]);
    let error = client.range("/", None, PAGE).await.unwrap_err();
    assert!(matches!(error, Error::TooLarge { .. }), "{error}");
}

#[tokio::test]
async fn answers_of_other_types_are_errors_of_this_endpoint() {
    for body in [
        "",
        "null",
        "[]",
        "{}",
        r#"{"header":{}}"#,
        &format!(r#"{{{HEADER},"kvs":[{{"key":"%%"}}]}}"#),
        &format!(r#"{{{HEADER},"kvs":[{{"key":"YQ==","lease":"x"}}]}}"#),
        &page("a", false)[..40],
        &"[".repeat(100_000),
    ] {
        let server = Server::always(Reply::ok(body)).await;
        let error = client(&[&server]).get("/a").await.unwrap_err();
        let text = error.to_string();
        assert!(text.contains("invalid answer"), "{text}");
        assert!(text.len() < 500, "{text}");
    }
}
