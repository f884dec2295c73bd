//! Authentication, and what becomes of the password.
//! Out of scope: which endpoint is tried.

use std::sync::atomic::{AtomicU32, Ordering};

use super::server::{Reply, Seen, Server};
use super::{client_of_user, done, error};
use crate::fleet::kv::{Error, LeaseId};

/// Answers with the tokens `t1`, `t2` and so on, of which only the last is valid.
fn with_tokens(valid_from: u32) -> impl Fn(&Seen) -> Reply + Send + Sync + 'static {
    let issued = AtomicU32::new(0);
    move |seen| {
        if seen.path == "/v3/auth/authenticate" {
            let number = issued.fetch_add(1, Ordering::Relaxed) + 1;
            return Reply::ok(format!(r#"{{"token":"t{number}"}}"#));
        }
        let token = seen.authorization.as_deref().unwrap_or_default();
        let number: u32 = token.trim_start_matches('t').parse().unwrap_or_default();
        match number >= valid_from && number == issued.load(Ordering::Relaxed) {
            true => done(),
            false => error(401, 16, "etcdserver: invalid auth token"),
        }
    }
}

#[tokio::test]
async fn a_token_is_obtained_once_and_sent_with_each_request() {
    let server = Server::start(with_tokens(1)).await;
    let client = client_of_user(&[&server]);
    let gets = (0..8).map(|_| client.get("/a"));
    for result in futures::future::join_all(gets).await {
        result.unwrap();
    }
    let paths = server.paths();
    let count = paths.iter().filter(|path| path.contains("auth")).count();
    assert_eq!((count, paths.len()), (1, 9));
    let seen = server.seen();
    assert_eq!(seen[0].body, r#"{"name":"node-a","password":"s3cret"}"#);
    assert_eq!(seen[0].authorization, None);
}

#[tokio::test]
async fn a_token_that_is_not_accepted_is_replaced_once_also_for_a_write() {
    let server = Server::start(with_tokens(2)).await;
    client_of_user(&[&server])
        .put("/a", "1", None)
        .await
        .unwrap();
    let expected = ["auth/authenticate", "kv/put", "auth/authenticate", "kv/put"];
    assert_eq!(server.paths(), expected.map(|path| format!("/v3/{path}")));

    let server = Server::start(with_tokens(9)).await;
    let error = client_of_user(&[&server])
        .put("/a", "1", None)
        .await
        .unwrap_err();
    assert!(matches!(error, Error::Unauthenticated { .. }), "{error}");
    assert_eq!(server.paths(), expected.map(|path| format!("/v3/{path}")));
}

#[tokio::test]
async fn the_password_is_in_no_error_whatever_a_server_repeats() {
    for reply in [
        error(
            400,
            3,
            "etcdserver: authentication failed, invalid user ID or password",
        ),
        error(400, 3, "invalid character in {\"password\":\"s3cret\"}"),
        error(500, 2, "s3cret"),
        error(401, 16, "s3cret"),
        error(412, 9, "etcdserver: authentication is not enabled"),
        Reply::Status(500, "s3cret".to_owned()),
        Reply::ok(r#"{"token":{"s3cret":1}}"#),
        Reply::ok(r#"{"s3cret":"#),
        Reply::ok(r#"{"token":"a\r\nx: s3cret"}"#),
    ] {
        let server = Server::always(reply).await;
        let client = client_of_user(&[&server]);
        let error = client.put("/a", "1", None).await.unwrap_err();
        let text = format!("{error} {error:?} {client:?}");
        assert!(!text.contains("s3cret"), "{text}");
        // A put that was never sent has a known outcome.
        assert!(!matches!(error, Error::OutcomeUnknown { .. }), "{text}");
    }
}

/// The gateway sends the errors of a stream nested, and after a success.
#[tokio::test]
async fn a_token_that_a_stream_does_not_accept_is_replaced() {
    let issued = AtomicU32::new(0);
    let server = Server::start(move |seen: &Seen| {
        if seen.path == "/v3/auth/authenticate" {
            let number = issued.fetch_add(1, Ordering::Relaxed) + 1;
            return Reply::ok(format!(r#"{{"token":"t{number}"}}"#));
        }
        match seen.authorization.as_deref() {
            Some("t1") => Reply::ok(
                r#"{"error":{"grpc_code":16,"http_code":401,"message":"etcdserver: invalid auth token","http_status":"Unauthorized"}}"#.to_owned(),
            ),
            _ => Reply::ok(
                r#"{"result":{"header":{"cluster_id":"1","member_id":"2","revision":"3","raft_term":"4"},"ID":"7","TTL":"40"}}"#.to_owned(),
            ),
        }
    })
    .await;
    let renewed = client_of_user(&[&server]).keep_alive(LeaseId(7)).await;
    let (_, remaining) = renewed.expect("renewed with another token");
    assert_eq!(remaining, Some(std::time::Duration::from_secs(40)));
}
