//! Commands in the foreground: input, output that nobody reads, clients that leave.
//! Out of scope: commands in the background.

use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use futures::StreamExt;
use http_body_util::BodyExt;
use slicectl::guest::protocol::{ExecQuery, FrameKind};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::{Agent, LIMIT, exec_path, process_exists, request, sh, text, until};

#[tokio::test]
async fn a_hundred_megabytes_pass_through_cat_in_both_directions_at_once_within_four_megabytes() {
    const BLOCK: usize = 64 << 10;
    const BLOCKS: usize = 1600;
    let agent = Agent::start().await;
    agent.buffered(sh("true")).await;
    let before = agent.memory("VmHWM:");
    let block: Bytes = (0..BLOCK)
        .map(|at| b'a' + u8::try_from(at % 26).expect("small"))
        .collect::<Vec<_>>()
        .into();
    let blocks = futures::stream::repeat(block.clone())
        .take(BLOCKS)
        .map(Ok::<_, std::io::Error>);
    let query = ExecQuery {
        stdin: true,
        cmd: "cat".to_owned(),
        args: Vec::new(),
        ..sh("")
    };
    let response = agent
        .request("POST", &exec_path(&query), Body::from_stream(blocks))
        .await;
    let (mut length, mut line, mut last) = (0, Vec::new(), None);
    let mut body = response.into_body();
    while let Some(part) = timeout(LIMIT, body.frame()).await.expect("in time") {
        line.extend_from_slice(&part.expect("a part").into_data().expect("data"));
        while let Some(end) = line.iter().position(|byte| *byte == b'\n') {
            let frame = super::parse_frames(&line.drain(..=end).collect::<Vec<_>>()).remove(0);
            for byte in frame.stdout.iter().flat_map(|text| text.bytes()) {
                assert_eq!(byte, block[length % BLOCK]);
                length += 1;
            }
            last = frame.exit_code;
        }
    }
    assert_eq!((length, last), (BLOCK * BLOCKS, Some(0)));
    let grown = agent.memory("VmHWM:") - before;
    assert!(grown < 4096, "{grown} KiB");
    println!("100 MiB through cat: {grown} KiB more memory, {before} KiB before");
}

#[tokio::test]
async fn a_reader_that_stops_stops_the_command_and_not_the_memory_of_the_agent() {
    let agent = Agent::start().await;
    agent.buffered(sh("true")).await;
    let before = agent.memory("VmHWM:");
    let response = agent
        .request("POST", &exec_path(&sh("yes")), Body::empty())
        .await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let grown = agent.memory("VmHWM:") - before;
    assert!(grown < 4096, "{grown} KiB");
    drop(response);
    agent.until_no_child().await;
}

#[tokio::test]
async fn output_is_received_while_input_is_still_sent() {
    let agent = Agent::start().await;
    let (sender, receiver) = mpsc::channel::<Result<Bytes, std::io::Error>>(1);
    let body = Body::from_stream(tokio_stream(receiver));
    let query = ExecQuery {
        stdin: true,
        ..sh("while read line; do echo got $line; done; echo end")
    };
    let response = agent.request("POST", &exec_path(&query), body).await;
    let mut body = response.into_body();
    let mut received = Vec::new();
    for number in 0..3 {
        sender
            .send(Ok(Bytes::from(format!("{number}\n"))))
            .await
            .expect("sent");
        let expected = format!("got {number}\\n");
        while !String::from_utf8_lossy(&received).contains(&expected) {
            let part = timeout(LIMIT, body.frame())
                .await
                .expect("in time")
                .expect("more")
                .expect("a part");
            received.extend_from_slice(&part.into_data().expect("data"));
        }
    }
    drop(sender);
    let rest = timeout(LIMIT, body.collect())
        .await
        .expect("in time")
        .expect("a body")
        .to_bytes();
    assert_eq!(
        text(
            &super::parse_frames(&[received, rest.to_vec()].concat()),
            FrameKind::Stdout
        ),
        "got 0\ngot 1\ngot 2\nend\n"
    );
}

fn tokio_stream<T>(receiver: mpsc::Receiver<T>) -> impl futures::Stream<Item = T> {
    futures::stream::unfold(receiver, |mut receiver| async {
        Some((receiver.recv().await?, receiver))
    })
}

#[tokio::test]
async fn input_that_the_command_does_not_read_is_discarded() {
    let agent = Agent::start().await;
    for script in [
        "exit 3",
        "exec 0<&-; sleep 0.3; exit 3",
        "head -c 1 >/dev/null; exit 3",
    ] {
        let block = Bytes::from(vec![b'x'; 64 << 10]);
        let blocks = futures::stream::repeat(block)
            .take(160)
            .map(Ok::<_, std::io::Error>);
        let query = ExecQuery {
            stdin: true,
            ..sh(script)
        };
        let frames = agent.frames(&query, Body::from_stream(blocks)).await;
        assert_eq!(
            frames.last().expect("frames").exit_code,
            Some(3),
            "{script}"
        );
    }
}

#[tokio::test]
async fn a_client_that_leaves_ends_the_whole_process_group_also_if_it_ignores_the_signal() {
    let agent = Agent::start().await;
    let endless = |stdin| ExecQuery {
        stdin,
        ..sh("trap '' TERM; sleep 1000 & echo $! $$; wait; sleep 1000")
    };
    // With input that nobody reads, the agent does not read the connection either.
    for (stdin, size) in [(false, 0), (true, 0), (true, 4 << 20)] {
        let blocks = futures::stream::repeat(Bytes::from(vec![b'x'; 64 << 10])).take(size >> 16);
        let body = Body::from_stream(
            blocks
                .map(Ok::<_, std::io::Error>)
                .chain(futures::stream::pending()),
        );
        let body = if stdin { body } else { Body::empty() };
        let (response, connection) = agent
            .request_until_abort("POST", &exec_path(&endless(stdin)), body)
            .await;
        let mut body = response.into_body();
        let mut received = Vec::new();
        while !String::from_utf8_lossy(&received).contains("stdout") {
            let part = timeout(LIMIT, body.frame())
                .await
                .expect("in time")
                .expect("more")
                .expect("a part");
            received.extend_from_slice(&part.into_data().expect("data"));
        }
        let pids = text(&super::parse_frames(&received), FrameKind::Stdout);
        assert!(
            pids.split_whitespace().count() == 2 && pids.split_whitespace().all(process_exists)
        );
        connection.abort();
        until("the processes have ended", || async {
            (!pids.split_whitespace().any(process_exists))
                .then_some(())
                .ok_or(())
        })
        .await;
        agent.until_no_child().await;
    }
    // The same for a response that has not begun.
    let query = ExecQuery {
        buffered: true,
        ..endless(false)
    };
    let stream = agent.connect().await;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(hyper_util::rt::TokioIo::new(stream))
            .await
            .expect("HTTP");
    let task = tokio::spawn(connection);
    let pending = tokio::spawn(async move {
        sender
            .send_request(request("POST", &exec_path(&query), Body::empty()))
            .await
    });
    until("it runs", || async {
        (!agent.children().is_empty()).then_some(()).ok_or(())
    })
    .await;
    task.abort();
    pending.abort();
    agent.until_no_child().await;
}

#[tokio::test]
async fn processes_that_outlive_the_command_do_not_delay_its_end_and_are_not_killed() {
    let agent = Agent::start().await;
    let found = timeout(
        Duration::from_secs(20),
        agent.buffered(sh("sleep 30 & echo $!")),
    )
    .await
    .expect("in time");
    assert!(process_exists(&found.stdout), "{found:?}");
    let endless = timeout(
        Duration::from_secs(20),
        agent.buffered(sh("yes & echo $! >&2")),
    )
    .await
    .expect("in time");
    assert_eq!(endless.exit_code, 0);
    assert!(process_exists(&found.stdout));
    for pid in [found.stdout, endless.stderr] {
        agent.buffered(sh(&format!("kill {pid} 2>/dev/null"))).await;
    }
}
