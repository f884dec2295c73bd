//! Which endpoint is tried, and what is sent twice.
//! Out of scope: tokens.

use std::time::{Duration, Instant};

use super::server::{Reply, Server};
use super::{HEADER, client, done, error};
use crate::fleet::kv::{Cause, Client, Config, Error, Op, Txn};

#[tokio::test]
async fn a_read_goes_to_the_next_endpoint_and_the_one_that_failed_is_last_from_then_on() {
    for bad in [
        Reply::Close,
        Reply::Silence,
        Reply::Raw(b"not HTTP\r\n\r\n".to_vec()),
        Reply::ok("{"),
        Reply::Status(502, "Bad Gateway".to_owned()),
        error(503, 14, "etcdserver: no leader"),
        error(503, 14, "etcdserver: request timed out"),
    ] {
        let (first, second) = (
            Server::always(bad.clone()).await,
            Server::always(done()).await,
        );
        let client = client(&[&first, &second]);
        for _ in 0..3 {
            client.get("/a").await.unwrap();
        }
        assert_eq!(first.paths().len(), 1, "{bad:?}");
        assert_eq!(second.paths().len(), 3, "{bad:?}");
        assert!(second.seen().iter().all(|seen| seen.has_leader));
    }
}

#[tokio::test]
async fn a_write_of_which_the_answer_is_lost_is_not_repeated_and_its_outcome_is_unknown() {
    for bad in [
        Reply::Close,
        Reply::Silence,
        Reply::Raw(b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n{".to_vec()),
        Reply::ok("{"),
        Reply::ok("{}"),
        Reply::ok("x".repeat(17 << 20)),
        Reply::Status(502, "Bad Gateway".to_owned()),
        error(503, 14, "etcdserver: request timed out"),
        error(503, 14, "etcdserver: no leader"),
        error(429, 8, "etcdserver: mvcc: database space exceeded"),
    ] {
        let (first, second) = (Server::always(bad).await, Server::always(done()).await);
        let client = client(&[&first, &second]);
        let put = client.put("/a", "1", None).await.unwrap_err();
        assert!(matches!(put, Error::OutcomeUnknown { .. }), "{put}");
        assert!(
            put.to_string()
                .starts_with("it is unknown whether http://127.0.0.1:")
        );
        assert_eq!((first.paths().len(), second.paths().len()), (1, 0), "{put}");
        assert!(!first.seen()[0].has_leader);
        // The next write goes to the other one.
        client.delete("/a").await.unwrap();
        client.txn(&Txn::default()).await.unwrap();
        assert_eq!((first.paths().len(), second.paths().len()), (1, 2));
    }
}

#[tokio::test]
async fn a_transaction_with_other_results_than_operations_has_an_unknown_outcome() {
    for responses in [
        "[]",
        r#"[{"response_put":{}},{"response_put":{}}]"#,
        r#"[{"response_range":{}}]"#,
        "[{}]",
        r#"[{"other":{}}]"#,
    ] {
        let body = format!(r#"{{{HEADER},"succeeded":true,"responses":{responses}}}"#);
        let server = Server::always(Reply::ok(body)).await;
        let txn = Txn {
            then: vec![Op::Put {
                key: "/a".into(),
                value: Vec::new(),
                lease: None,
            }],
            ..Txn::default()
        };
        let error = client(&[&server]).txn(&txn).await.unwrap_err();
        assert!(matches!(error, Error::OutcomeUnknown { .. }), "{error}");
    }
}

#[tokio::test]
async fn a_write_that_was_certainly_not_applied_is_sent_to_the_next_endpoint() {
    let closed = Server::always(Reply::Close).await;
    let url = closed.url();
    drop(closed);
    let refusing = Server::always(error(429, 8, "etcdserver: too many requests")).await;
    let good = Server::always(done()).await;
    let mut config = super::config(&[&refusing, &good]);
    config.endpoints.insert(0, url);
    let client = crate::fleet::kv::Client::new(&config).unwrap();
    client.put("/a", "1", None).await.unwrap();
    assert_eq!((refusing.paths().len(), good.paths().len()), (1, 1));
}

#[tokio::test]
async fn without_an_answer_a_read_ends_at_the_deadline_and_names_endpoint_and_cause() {
    let (first, second) = (
        Server::always(Reply::Silence).await,
        Server::always(Reply::Silence).await,
    );
    let client = client(&[&first, &second]);
    let begin = Instant::now();
    let error = client.get("/a").await.unwrap_err();
    assert!(
        begin.elapsed() < Duration::from_millis(1500),
        "{:?}",
        begin.elapsed()
    );
    let Error::Unreachable {
        endpoint,
        cause: Cause::Timeout(_),
    } = &error
    else {
        panic!("{error}");
    };
    assert_eq!(*endpoint, second.url());
    assert_eq!((first.paths().len(), second.paths().len()), (1, 1));
}

#[tokio::test]
async fn a_read_goes_on_until_a_leader_is_elected() {
    let count = std::sync::atomic::AtomicU32::new(0);
    let server =
        Server::start(
            move |_| match count.fetch_add(1, std::sync::atomic::Ordering::Relaxed) {
                0..3 => error(503, 14, "etcdserver: no leader"),
                _ => done(),
            },
        )
        .await;
    client(&[&server]).get("/a").await.unwrap();
    assert_eq!(server.paths().len(), 4);
}

#[tokio::test]
async fn what_every_endpoint_would_answer_is_the_result_at_once() {
    for (reply, expected) in [
        (
            error(403, 7, "etcdserver: permission denied"),
            "denies this",
        ),
        (
            error(400, 3, "etcdserver: user name is empty"),
            "does not authenticate",
        ),
        (
            error(
                400,
                11,
                "etcdserver: mvcc: required revision has been compacted",
            ),
            "has compacted",
        ),
        (
            error(400, 3, "etcdserver: request is too large"),
            "refuses this",
        ),
        (
            error(401, 16, "etcdserver: invalid auth token"),
            "does not authenticate",
        ),
    ] {
        let (first, second) = (Server::always(reply).await, Server::always(done()).await);
        let client = client(&[&first, &second]);
        for error in [
            client.get("/a").await.unwrap_err(),
            client.put("/a", "", None).await.unwrap_err(),
        ] {
            let text = error.to_string();
            assert!(
                text.contains(expected) && text.contains(&first.url().to_string()),
                "{text}"
            );
        }
        assert_eq!(second.paths().len(), 0);
    }
}

#[tokio::test]
async fn a_connection_is_used_again() {
    let server = Server::always(done()).await;
    let client = client(&[&server]);
    for _ in 0..20 {
        client.get("/a").await.unwrap();
    }
    assert_eq!(server.connections(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_request_ends_with_its_connection_at_whichever_moment_that_ends() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = tokio::spawn(async move {
        let mut turn = 0_u64;
        while let Ok((stream, _)) = listener.accept().await {
            turn += 1;
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_micros(turn % 7 * 20)).await;
                drop(stream);
            });
        }
    });
    let url = format!("http://127.0.0.1:{port}").parse().unwrap();
    let client = Client::new(&Config {
        deadline: Duration::from_secs(5),
        ..Config::new(vec![url])
    })
    .unwrap();
    let puts = (0..8).map(|_| async {
        for _ in 0..20 {
            let error = client.put("/a", "1", None).await.unwrap_err();
            assert!(!error.to_string().contains("no answer within"), "{error}");
        }
    });
    futures::future::join_all(puts).await;
    server.abort();
}
