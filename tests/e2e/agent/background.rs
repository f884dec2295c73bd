//! Commands in the background.
//! Out of scope: the buffer alone, which has unit tests.

use std::time::Duration;

use axum::body::Body;
use hyper::StatusCode;
use slicectl::guest::protocol::{
    ExecInfo, ExecQuery, Frame, FrameKind, Killed, Reaped, Started, Waited,
};
use tokio::time::timeout;

use super::{Agent, bytes, exec_path, frames, parse_frames, process_exists, sh, text, until};

impl Agent {
    async fn background(&self, query: ExecQuery) -> Started {
        let query = ExecQuery {
            background: true,
            ..query
        };
        let response = self
            .request("POST", &exec_path(&query), Body::empty())
            .await;
        assert_eq!(response.status(), StatusCode::CREATED);
        serde_json::from_slice(&bytes(response).await).expect("an object")
    }

    async fn wait(&self, id: &str, seconds: u64) -> Waited {
        self.get("GET", &format!("/exec/{id}/wait-exit?timeout={seconds}"))
            .await
    }

    async fn logs(&self, id: &str, query: &str) -> Vec<Frame> {
        frames(
            self.request("GET", &format!("/exec/{id}/logs?{query}"), Body::empty())
                .await,
        )
        .await
    }
}

fn ids(frames: &[Frame]) -> Vec<u64> {
    frames
        .iter()
        .map(|frame| frame.id.expect("an id"))
        .collect()
}

#[tokio::test]
async fn a_command_outlives_its_request_and_is_listed_waited_for_read_and_removed() {
    let agent = Agent::start().await;
    assert_eq!(agent.get::<Vec<ExecInfo>>("GET", "/exec").await, []);
    let started = agent
        .background(sh(
            "echo 1; sleep 0.3; echo 2 >&2; sleep 0.3; echo 3; exit 5",
        ))
        .await;
    assert!(started.exec_id.starts_with("ex_") && started.pid > 0 && started.ring_bytes == 1 << 20);
    let id = &started.exec_id;
    let info: ExecInfo = agent.get("GET", &format!("/exec/{id}")).await;
    assert!(
        info.running && info.exit_code.is_none() && info.command == "sh" && info.uid == Some(0)
    );
    assert_eq!(agent.get::<Vec<ExecInfo>>("GET", "/exec").await.len(), 1);
    assert!(agent.wait(id, 0).await.timed_out);
    let waited = agent.wait(id, 30).await;
    assert_eq!(
        (waited.running, waited.exit_code, waited.timed_out),
        (false, Some(5), false)
    );
    let all = agent.logs(id, "").await;
    assert_eq!(ids(&all), [1, 2, 3, 4, 5]);
    assert_eq!(
        (text(&all, FrameKind::Stdout), text(&all, FrameKind::Stderr)),
        ("1\n3\n".to_owned(), "2\n".to_owned())
    );
    assert_eq!(all.last().expect("frames").exit_code, Some(5));
    assert_eq!(ids(&agent.logs(id, "from_id=4").await), [4, 5]);
    assert_eq!(ids(&agent.logs(id, "from_id=4&follow=true").await), [4, 5]);
    assert_eq!(agent.logs(id, "from_id=99&follow=true").await, []);
    let info: ExecInfo = agent.get("GET", &format!("/exec/{id}")).await;
    assert_eq!(
        (
            info.bytes_written,
            info.bytes_dropped,
            info.next_id,
            info.exit_code
        ),
        (6, 0, 6, Some(5))
    );
    let reaped: Reaped = agent.get("DELETE", &format!("/exec/{id}")).await;
    assert!(reaped.reaped && reaped.exec_id == *id);
    for (method, path) in [
        ("GET", ""),
        ("DELETE", ""),
        ("GET", "/logs"),
        ("POST", "/kill"),
        ("GET", "/wait-exit"),
    ] {
        let (status, _) = agent.error(method, &format!("/exec/{id}{path}")).await;
        assert_eq!(status, StatusCode::GONE, "{method} {path}");
    }
}

#[tokio::test]
async fn logs_after_the_wait_are_complete_however_short_the_command_is() {
    let agent = Agent::start().await;
    for round in 0..50 {
        let started = agent.background(sh("echo a; echo b")).await;
        let waited = agent.wait(&started.exec_id, 30).await;
        assert_eq!(waited.exit_code, Some(0));
        let logs = agent.logs(&started.exec_id, "").await;
        assert_eq!(text(&logs, FrameKind::Stdout), "a\nb\n", "{round}");
        assert_eq!(
            logs.last().expect("frames").kind,
            FrameKind::Exit,
            "{round}"
        );
        let _: Reaped = agent
            .get("DELETE", &format!("/exec/{}", started.exec_id))
            .await;
    }
    agent.until_no_child().await;
}

#[tokio::test]
async fn followers_receive_output_as_it_is_written_and_the_end() {
    let agent = Agent::start().await;
    let started = agent
        .background(sh("for i in 1 2 3 4 5; do echo $i; sleep 0.1; done"))
        .await;
    let path = format!("/exec/{}/logs?follow=true", started.exec_id);
    let followers =
        (0..10).map(|_| async { frames(agent.request("GET", &path, Body::empty()).await).await });
    for followed in futures::future::join_all(followers).await {
        assert_eq!(text(&followed, FrameKind::Stdout), "1\n2\n3\n4\n5\n");
        assert_eq!(followed.last().expect("frames").exit_code, Some(0));
    }
}

#[tokio::test]
async fn output_that_is_no_longer_in_the_buffer_is_a_gap() {
    let agent = Agent::start().await;
    let query = ExecQuery {
        ring_bytes: Some(4096),
        ..sh("seq 1 20000")
    };
    let started = agent.background(query).await;
    agent.wait(&started.exec_id, 30).await;
    let logs = agent.logs(&started.exec_id, "").await;
    assert_eq!(logs[1].kind, FrameKind::Gap);
    let kept = text(&logs, FrameKind::Stdout);
    assert!(
        kept.ends_with("20000\n") && kept.len() <= 4096,
        "{}",
        kept.len()
    );
    let info: ExecInfo = agent
        .get("GET", &format!("/exec/{}", started.exec_id))
        .await;
    assert_eq!(logs[1].dropped_bytes, Some(info.bytes_dropped));
    assert_eq!(info.bytes_written, info.bytes_dropped + kept.len() as u64);
    assert_eq!(logs[2].id.expect("an id"), logs[1].id.expect("an id") + 1);
}

#[tokio::test]
async fn a_kill_reaches_the_whole_group_and_is_repeated_with_kill_after_the_grace() {
    let agent = Agent::start().await;
    let ignoring = "trap '' TERM; sleep 1000 & echo $!; wait; sleep 1000";
    let polite = "sleep 1000 & echo $!; wait; sleep 1000";
    for (script, body, sent, signal) in [
        (polite, "", "SIGTERM", "SIGTERM"),
        (polite, "null", "SIGTERM", "SIGTERM"),
        (polite, "{}", "SIGTERM", "SIGTERM"),
        (polite, r#"{"signal":"SIGKILL"}"#, "SIGKILL", "SIGKILL"),
        (polite, r#"{"signal":"INT"}"#, "SIGINT", "SIGINT"),
        (
            polite,
            r#"{"signal":"HUP","unknown":1}"#,
            "SIGHUP",
            "SIGHUP",
        ),
        (
            ignoring,
            r#"{"signal":"TERM","grace_ms":200}"#,
            "SIGTERM",
            "SIGKILL",
        ),
        // The leader ends at once, its child ignores the signal.
        (
            "sh -c \"trap '' TERM; sleep 1000\" & echo $!; sleep 0.2; exec sleep 1000",
            r#"{"grace_ms":500}"#,
            "SIGTERM",
            "SIGTERM",
        ),
    ] {
        let started = agent.background(sh(script)).await;
        let id = started.exec_id;
        let child = until("the child runs", || async {
            let output = text(&agent.logs(&id, "").await, FrameKind::Stdout);
            if output.is_empty() {
                Err(())
            } else {
                Ok(output)
            }
        })
        .await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        let response = agent
            .request("POST", &format!("/exec/{id}/kill"), body)
            .await;
        let killed: Killed = serde_json::from_slice(&bytes(response).await).expect("an object");
        assert!(
            killed.running && killed.signal_sent == sent,
            "{body}: {killed:?}"
        );
        // A child of a shell in the background ignores SIGINT.
        if sent != "SIGINT" {
            until("the child has ended", || async {
                (!process_exists(&child)).then_some(()).ok_or(())
            })
            .await;
        }
        let waited = agent.wait(&id, 30).await;
        assert_eq!(waited.signal.as_deref(), Some(signal), "{script} {body}");
        let again: Killed = agent.get("POST", &format!("/exec/{id}/kill")).await;
        assert!(!again.running && again.signal_sent.is_empty());
        agent
            .buffered(sh(&format!("kill -KILL {child} 2>/dev/null")))
            .await;
    }
    agent.until_no_child().await;
}

#[tokio::test]
async fn a_command_in_the_foreground_is_killed_by_its_id() {
    let agent = Agent::start().await;
    let response = agent
        .request("POST", &exec_path(&sh("sleep 1000")), Body::empty())
        .await;
    let mut body = response.into_body();
    let first = timeout(super::LIMIT, http_body_util::BodyExt::frame(&mut body))
        .await
        .expect("in time");
    let started = parse_frames(
        &first
            .expect("more")
            .expect("a part")
            .into_data()
            .expect("data"),
    )
    .remove(0);
    let id = started.exec_id.expect("an id");
    let killed: Killed = agent.get("POST", &format!("/exec/{id}/kill")).await;
    assert_eq!((killed.running, Some(killed.pid)), (true, started.pid));
    let rest = http_body_util::BodyExt::collect(body)
        .await
        .expect("a body")
        .to_bytes();
    let exit = parse_frames(&rest).pop().expect("frames");
    assert_eq!(
        (exit.exit_code, exit.signal.as_deref()),
        (Some(143), Some("SIGTERM"))
    );
    assert_eq!(
        agent.error("POST", &format!("/exec/{id}/kill")).await.0,
        StatusCode::GONE
    );
}

#[tokio::test]
async fn requests_that_cannot_be_done_are_refused() {
    let agent = Agent::start().await;
    let started = agent.background(sh("sleep 1000")).await;
    let id = started.exec_id;
    assert_eq!(
        agent.error("DELETE", &format!("/exec/{id}")).await.0,
        StatusCode::CONFLICT
    );
    for body in [
        r#"{"signal":"STOP"}"#,
        r#"{"signal":"9"}"#,
        "[",
        r#"{"grace_ms":99999999}"#,
        r#"{"grace_ms":-1}"#,
    ] {
        let response = agent
            .request("POST", &format!("/exec/{id}/kill"), body)
            .await;
        assert_eq!(response.status(), StatusCode::BAD_REQUEST, "{body}");
    }
    assert_eq!(
        agent.error("GET", "/exec/ex_unknown").await.0,
        StatusCode::GONE
    );
}

#[tokio::test]
async fn memory_for_output_and_the_number_of_commands_are_limited() {
    let agent = Agent::start().await;
    let large = |script| ExecQuery {
        ring_bytes: Some(64 << 20),
        ..sh(script)
    };
    for _ in 0..4 {
        agent.background(large("sleep 1000")).await;
    }
    let query = ExecQuery {
        background: true,
        ring_bytes: Some(4096),
        ..sh("true")
    };
    let (status, error) = agent.error("POST", &exec_path(&query)).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{error}");
    // One that has ended needs only what its output takes.
    let first = agent
        .get::<Vec<ExecInfo>>("GET", "/exec")
        .await
        .remove(0)
        .exec_id;
    let _: Killed = agent.get("POST", &format!("/exec/{first}/kill")).await;
    agent.wait(&first, 30).await;
    for _ in 0..1030 {
        let query = ExecQuery {
            ring_bytes: Some(4096),
            cmd: "true".to_owned(),
            args: Vec::new(),
            ..sh("")
        };
        agent.background(query).await;
    }
    let all: Vec<ExecInfo> = agent.get("GET", "/exec").await;
    assert_eq!(all.len(), 1024);
    assert!(
        all.iter()
            .filter(|info| info.ring_bytes == 64 << 20)
            .count()
            == 3
    );
}
