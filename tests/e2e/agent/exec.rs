//! Commands in the foreground.
//! Out of scope: commands in the background.

use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;

use axum::body::Body;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::StreamExt;
use http_body_util::BodyExt;
use hyper::StatusCode;
use slicectl::guest::protocol::{Encoding, ExecQuery, FrameKind};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::{Agent, LIMIT, exec_path, process_exists, request, sh, text, until};

#[tokio::test]
async fn a_command_ends_with_its_status_its_signal_or_the_reason_why_it_did_not_start() {
    let agent = Agent::start().await;
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("plain");
    fs::write(&file, "text").expect("written");
    let interpreter = directory.path().join("no-interpreter");
    fs::write(&interpreter, "#!/absent\n").expect("written");
    fs::set_permissions(
        &interpreter,
        std::os::unix::fs::PermissionsExt::from_mode(0o755),
    )
    .expect("changed");
    let direct = |cmd: &str| ExecQuery {
        cmd: cmd.to_owned(),
        uid: Some(0),
        ..ExecQuery::default()
    };
    let plain = file.display().to_string();
    let table = [
        (sh("exit 0"), 0, None, None),
        (sh("exit 7"), 7, None, None),
        (sh("exit 255"), 255, None, None),
        (sh("kill -KILL $$"), 137, Some("SIGKILL"), None),
        (sh("kill -TERM $$"), 143, Some("SIGTERM"), None),
        (sh("kill -SEGV $$"), 139, Some("SIGSEGV"), None),
        (
            direct("absent"),
            127,
            None,
            Some("exec: \"absent\": executable file not found in $PATH"),
        ),
        (
            direct("/absent"),
            127,
            None,
            Some("exec: \"/absent\": no such file or directory"),
        ),
        (direct(&plain), 126, None, Some("permission denied")),
        (direct("/tmp"), 126, None, Some("permission denied")),
        (
            direct(&interpreter.display().to_string()),
            127,
            None,
            Some("no such file or directory"),
        ),
    ];
    for (query, code, signal, error) in table {
        let frames = agent.frames(&query, Body::empty()).await;
        let exit = frames.last().expect("frames");
        assert_eq!(
            (exit.kind, exit.exit_code),
            (FrameKind::Exit, Some(code)),
            "{query:?}"
        );
        assert_eq!(exit.signal.as_deref(), signal, "{query:?}");
        let found = exit.error.as_deref().unwrap_or_default();
        assert!(
            found.contains(error.unwrap_or_default()),
            "{query:?}: {found}"
        );
        assert_eq!(
            frames.len(),
            if error.is_some() { 1 } else { 2 },
            "{frames:?}"
        );
        let buffered = agent.buffered(query.clone()).await;
        assert_eq!(
            (buffered.exit_code, buffered.signal.as_deref()),
            (code, signal),
            "{query:?}"
        );
        assert_eq!(buffered.error.is_some(), error.is_some(), "{query:?}");
    }
    agent.until_no_child().await;
}

#[tokio::test]
async fn frames_are_the_start_the_output_of_both_streams_and_the_exit() {
    let agent = Agent::start().await;
    let frames = agent
        .frames(&sh("echo out; echo err >&2"), Body::empty())
        .await;
    assert_eq!(frames[0].kind, FrameKind::Started);
    assert!(frames[0].pid.is_some() && frames[0].started_at.is_some());
    assert!(
        frames[0]
            .exec_id
            .as_ref()
            .is_some_and(|id| id.starts_with("ex_"))
    );
    assert_eq!(text(&frames, FrameKind::Stdout), "out\n");
    assert_eq!(text(&frames, FrameKind::Stderr), "err\n");
    for (stdout, stderr, expected) in [
        (true, false, "out\n"),
        (false, true, "err\n"),
        (false, false, ""),
    ] {
        let query = ExecQuery {
            stdout,
            stderr,
            ..sh("echo out; echo err >&2")
        };
        let buffered = agent.buffered(query).await;
        assert_eq!(buffered.stdout + &buffered.stderr, expected);
    }
}

#[tokio::test]
async fn text_keeps_characters_whole_and_base64_keeps_all_bytes() {
    let agent = Agent::start().await;
    for (script, expected) in [
        (
            "printf '\\342'; sleep 0.2; printf '\\202'; sleep 0.2; printf '\\254'",
            "€",
        ),
        (
            "printf 'a\\360\\237'; sleep 0.2; printf '\\246\\200b'",
            "a🦀b",
        ),
        ("printf 'a\\377b'", "a\u{fffd}b"),
        ("printf 'a\\342\\202'", "a\u{fffd}"),
    ] {
        let frames = agent.frames(&sh(script), Body::empty()).await;
        assert_eq!(text(&frames, FrameKind::Stdout), expected, "{script}");
        assert!(frames.iter().all(|frame| frame.encoding.is_none()));
    }
    // Longer than a chunk, and no chunk ends with a whole character.
    let long = agent
        .frames(
            &sh("printf x; yes € | head -n 50000 | tr -d '\\n'"),
            Body::empty(),
        )
        .await;
    assert_eq!(
        text(&long, FrameKind::Stdout),
        format!("x{}", "€".repeat(50_000))
    );
    let query = ExecQuery {
        stdio: Encoding::Base64,
        ..sh("printf 'a\\377\\342'; sleep 0.2; printf '\\202'")
    };
    let frames = agent.frames(&query, Body::empty()).await;
    let output: Vec<u8> = frames
        .iter()
        .filter_map(|frame| frame.stdout.as_ref())
        .flat_map(|text| STANDARD.decode(text).expect("base64"))
        .collect();
    assert_eq!(output, b"a\xff\xe2\x82");
    assert_eq!(frames[1].encoding, Some(Encoding::Base64));
    let buffered = agent.buffered(query).await;
    assert_eq!(STANDARD.decode(buffered.stdout).expect("base64"), output);
    assert_eq!(buffered.encoding, Some(Encoding::Base64));
}

#[tokio::test]
async fn a_command_has_the_user_the_environment_and_the_directory_of_its_request() {
    let agent = Agent::start().await;
    let nobody = |script: &str| ExecQuery {
        uid: Some(65534),
        ..sh(script)
    };
    let with = |script: &str, change: fn(&mut ExecQuery)| {
        let mut query = sh(script);
        change(&mut query);
        query
    };
    let table = [
        (
            sh("id -u; id -g; echo $HOME $USER $LOGNAME"),
            "0\n0\n/root root root\n",
        ),
        (nobody("id -u; id -G; echo $USER"), "65534\n65534\nnobody\n"),
        (nobody("kill -0 1 2>/dev/null || echo denied"), "denied\n"),
        (
            with("id -u; id -g; pwd", |q| {
                (q.uid, q.gid) = (Some(4711), Some(4712))
            }),
            "4711\n4712\n/\n",
        ),
        (with("pwd", |q| q.cwd = Some("/tmp".to_owned())), "/tmp\n"),
        (with("pwd", |q| q.cwd = Some("~".to_owned())), "/root\n"),
        (with("pwd", |q| q.cwd = Some("~/../root".to_owned())), "400"),
        (with("pwd", |q| q.cwd = Some("/absent".to_owned())), "400"),
        (
            with("pwd", |q| {
                (q.uid, q.cwd) = (Some(65534), Some("/root".to_owned()))
            }),
            "400",
        ),
        (
            with("echo $A-$B", |q| {
                q.env = vec!["A=1=2".to_owned(), "B= x".to_owned()]
            }),
            "1=2- x\n",
        ),
        (
            with("echo $HOME", |q| q.env = vec!["HOME=/h".to_owned()]),
            "/h\n",
        ),
        (with("true", |q| q.env = vec!["A".to_owned()]), "400"),
        (with("true", |q| q.cmd = String::new()), "400"),
        (
            with("umask; ulimit -Sn", |_| {}),
            &format!("0022\n{}\n", soft_limit()),
        ),
        (
            sh("env | sort | cut -d= -f1 | grep -v -e ^_ -e PWD -e SHLVL | tr '\\n' ' '"),
            "HOME LOGNAME PATH SHELL USER ",
        ),
        (
            sh("ps -o sid= -p $$ | grep -qw $$ && ps -o pgid= -p $$ | grep -qw $$ && echo own"),
            "own\n",
        ),
        (sh(DESCRIPTORS), &inherited()),
        (
            with("ignored", |q| {
                (q.cmd, q.args) = ("echo".to_owned(), vec!["$FOO".to_owned()]);
                (q.shell, q.env) = (
                    Some("/bin/sh".to_owned()),
                    vec!["FOO=in a shell".to_owned()],
                );
            }),
            "in a shell\n",
        ),
    ];
    for (query, expected) in table {
        if expected == "400" {
            let query = ExecQuery {
                buffered: true,
                ..query
            };
            let (status, _) = agent.error("POST", &exec_path(&query)).await;
            assert_eq!(status, StatusCode::BAD_REQUEST, "{query:?}");
            continue;
        }
        let found = agent.buffered(query.clone()).await;
        assert_eq!(found.stdout, expected, "{query:?} {}", found.stderr);
    }
}

const DESCRIPTORS: &str = "ls /proc/self/fd | wc -l";

/// The number of descriptors that a program inherits from this process: cargo leaves some open.
fn inherited() -> String {
    let mut command = Command::new("sh");
    let output = command
        .args(["-c", DESCRIPTORS])
        .stdin(Stdio::null())
        .output()
        .expect("run");
    String::from_utf8(output.stdout).expect("text")
}

/// The soft limit of descriptors of this process, which the agent has inherited.
fn soft_limit() -> String {
    let limits = fs::read_to_string("/proc/self/limits").expect("limits");
    let line = limits
        .lines()
        .find(|line| line.starts_with("Max open files"))
        .expect("a line");
    line.split_ascii_whitespace()
        .nth(3)
        .expect("a limit")
        .to_owned()
}

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

#[tokio::test]
async fn buffered_output_has_a_limit_and_an_error_that_says_so() {
    let agent = Agent::start().await;
    let found = agent
        .buffered(sh(
            "head -c 9000000 /dev/zero | tr '\\0' x; echo err >&2; exit 4",
        ))
        .await;
    assert_eq!(
        (found.stdout.len(), found.stderr.as_str(), found.exit_code),
        (8 << 20, "err\n", 4)
    );
    assert!(
        found
            .error
            .expect("an error")
            .starts_with("stdout is larger than 8388608 bytes")
    );
    let exact = agent
        .buffered(sh("head -c 8388608 /dev/zero | tr '\\0' x"))
        .await;
    assert_eq!((exact.stdout.len(), exact.error), (8 << 20, None));
}

#[tokio::test]
async fn options_that_exclude_each_other_are_refused() {
    let agent = Agent::start().await;
    for path in [
        "/exec?cmd=true&stdin=true&buffered=true",
        "/exec?cmd=true&stdin=true&background=true",
        "/exec?cmd=true&background=true&buffered=true",
        "/exec?cmd=true&uid=x",
        "/exec?cmd=true&stdio=other",
        "/exec?cmd=true&background=true&ring_bytes=1",
        "/exec?cmd=true&background=true&ring_bytes=99999999999",
        "/exec?cmd=absent&background=true",
        "/exec",
    ] {
        let (status, error) = agent.error("POST", path).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{path}: {error}");
    }
}
