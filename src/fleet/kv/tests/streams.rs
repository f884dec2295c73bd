//! Watches of a server that answers what etcd would and would not.
//! Out of scope: real changes.

use std::time::{Duration, Instant};

use futures::StreamExt;

use super::server::{Reply, Server};
use super::{HEADER, client, config, done, error};
use crate::fleet::kv::{Batch, Client, Error, Event, Revision, WatchTarget};

fn target(prefix: &str, from: u64) -> WatchTarget {
    WatchTarget {
        prefix: prefix.into(),
        from: Revision(from),
    }
}

/// A response with these fields.
fn result(fields: &str) -> String {
    format!(r#"{{"result":{{{HEADER}{fields}}}}}"#)
}

fn created(id: u32) -> String {
    result(&format!(r#","watch_id":"{id}","created":true"#))
}

/// Events of the key `/a` at these revisions.
fn events(id: u32, revisions: &[u64], more: &str) -> String {
    let events = revisions.iter().map(|revision| {
        format!(r#"{{"kv":{{"key":"L2E=","mod_revision":"{revision}","value":"MQ=="}}}}"#)
    });
    let events: Vec<_> = events.collect();
    let events = events.join(",");
    result(&format!(r#","watch_id":"{id}","events":[{events}]{more}"#))
}

/// All batches of a server with these lines, up to the first error.
async fn batches(lines: &[String], count: usize) -> Vec<Result<Batch, Error>> {
    let server = Server::always(Reply::lines(lines)).await;
    let client = client(&[&server]);
    let watch = client.watch(vec![target("/a", 3), target("/b", 0)]).await;
    watch.unwrap().take(count).collect().await
}

#[tokio::test]
async fn each_target_has_its_position_and_is_continued_at_its_own_revision() {
    let lines = [
        created(1),
        events(1, &[3], ""),
        created(2),
        events(1, &[4, 4], r#","fragment":true"#),
        events(1, &[4, 5], ""),
        result(r#","watch_id":"2""#),
        result(
            r#","watch_id":"1","events":[{"type":"DELETE","kv":{"key":"L2E=","mod_revision":"9"}}]"#,
        ),
    ];
    let found: Vec<_> = batches(&lines, 5)
        .await
        .into_iter()
        .map(Result::unwrap)
        .collect();
    let shape: Vec<_> = found
        .iter()
        .map(|batch| (batch.target, batch.next.0, batch.events.len()))
        .collect();
    assert_eq!(
        shape,
        [(0, 4, 1), (0, 4, 2), (0, 6, 2), (1, 6, 0), (0, 10, 1)]
    );
    let Event::Delete { key, mod_revision } = &found[4].events[0] else {
        panic!("{found:?}");
    };
    assert_eq!((key.to_string().as_str(), mod_revision.0), ("/a", 9));
}

#[tokio::test]
async fn a_watch_ends_with_the_first_error() {
    let begin = [created(1), created(2)];
    for (line, expected) in [
        (result(r#","watch_id":"1","canceled":true,"compact_revision":"7""#), "the oldest is 7"),
        (result(r#","watch_id":"1","canceled":true,"cancel_reason":"rpc error: code = PermissionDenied desc = etcdserver: permission denied""#), "denies this watch"),
        (result(r#","watch_id":"1","canceled":true"#), "the watch at http://127.0.0.1:"),
        (r#"{"error":{"grpc_code":14,"message":"etcdserver: no leader"}}"#.to_owned(), "no leader"),
        (r#"{"error":{"code":11,"message":"etcdserver: mvcc: required revision has been compacted"}}"#.to_owned(), "has compacted"),
        (events(1, &[2], ""), "order of events"),
        (events(1, &[5, 4], ""), "order of events"),
        (events(3, &[5], ""), "watch_id"),
        (events(0, &[5], ""), "watch_id"),
        (events(1, &[5], "").replace(r#""cluster_id":"1""#, r#""cluster_id":"9""#), "is of cluster 9, expected 1"),
        ("{}".to_owned(), "no result"),
        ("[]".to_owned(), "invalid"),
        (result(r#","watch_id":"1","events":[{"type":"MOVE","kv":{"key":"L2E="}}]"#), "unknown variant"),
        (result(r#","watch_id":"1","events":[{}]"#), "missing field"),
        ("x".repeat(17 << 20), "longer than"),
    ] {
        let lines = [&begin[..], &[line.clone(), events(1, &[8], "")]].concat();
        let found = batches(&lines, 9).await;
        let [Err(error)] = &found[..] else {
            panic!("{found:?}");
        };
        assert!(error.to_string().contains(expected), "{error}, not {expected}");
    }
}

#[tokio::test]
async fn a_watch_that_is_not_created_is_an_error_or_goes_elsewhere() {
    let denied = result(
        r#","watch_id":"-1","created":true,"canceled":true,"cancel_reason":"rpc error: code = PermissionDenied desc = etcdserver: permission denied""#,
    );
    let good = Server::always(Reply::lines(&[created(1)])).await;
    let server = Server::always(Reply::lines(&[denied])).await;
    let watch = client(&[&server, &good]).watch(vec![target("/", 1)]).await;
    assert!(matches!(watch.err(), Some(Error::Denied { .. })));
    for bad in [
        Reply::Silence,
        Reply::Close,
        error(503, 14, "etcdserver: no leader"),
        Reply::lines(&[]),
        Reply::lines(&[
            r#"{"error":{"grpc_code":14,"message":"etcdserver: no leader"}}"#.to_owned(),
        ]),
        Reply::lines(&vec![events(1, &[5], ""); 400]),
    ] {
        let server = Server::always(bad).await;
        let client = client(&[&server, &good]);
        let _watch = client.watch(vec![target("/", 1)]).await.unwrap();
        assert_eq!(server.paths(), ["/v3/watch"]);
    }
}

/// A server whose watch is silent after its creation, and that answers reads with `read`.
async fn silent(read: Reply) -> (Server, Client) {
    let server = Server::start(move |seen| match seen.path.as_str() {
        "/v3/watch" => Reply::lines(&[created(1)]),
        _ => read.clone(),
    })
    .await;
    let mut config = config(&[&server]);
    config.watch_check_interval = Duration::from_millis(100);
    let client = Client::new(&config).unwrap();
    (server, client)
}

#[tokio::test]
async fn a_silent_watch_goes_on_while_its_endpoint_answers_reads() {
    let (server, client) = silent(done()).await;
    let mut watch = client.watch(vec![target("/a", 1)]).await.unwrap();
    let next = tokio::time::timeout(Duration::from_millis(550), watch.next()).await;
    assert!(next.is_err(), "{next:?}");
    let reads = server
        .paths()
        .iter()
        .filter(|path| path.contains("range"))
        .count();
    assert!((2..=6).contains(&reads), "{reads}");
}

#[tokio::test]
async fn a_silent_watch_ends_when_its_endpoint_answers_no_reads_or_those_of_another_cluster() {
    let other = format!("{{{HEADER}}}").replace(r#""cluster_id":"1""#, r#""cluster_id":"2""#);
    for (read, expected) in [
        (Reply::Silence, "no answer within"),
        (Reply::Close, "closed unexpectedly"),
        (error(503, 14, "etcdserver: no leader"), "no leader"),
        (
            error(400, 3, "etcdserver: authentication failed"),
            "does not authenticate",
        ),
        (Reply::ok(other), "is of cluster 2, expected 1"),
    ] {
        let (_server, client) = silent(read).await;
        let mut watch = client.watch(vec![target("/a", 1)]).await.unwrap();
        let begin = Instant::now();
        let error = watch.next().await.unwrap().unwrap_err();
        assert!(
            error.to_string().contains(expected),
            "{error}, not {expected}"
        );
        assert!(
            begin.elapsed() < Duration::from_secs(2),
            "{:?}",
            begin.elapsed()
        );
        assert!(watch.next().await.is_none());
    }
}
