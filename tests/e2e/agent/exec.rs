//! Commands in the foreground: their end, output, user, environment and directory.
//! Out of scope: their input and clients that leave (`streaming`), commands in the background.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use axum::body::Body;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hyper::StatusCode;
use slicectl::guest::protocol::{Encoding, ExecQuery, FrameKind};

use super::{Agent, SOCKET, exec_path, sh, text};

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
async fn a_command_ignores_no_signal_that_its_agent_was_started_with_as_ignored() {
    let directory = tempfile::tempdir().expect("a directory");
    let script = directory.path().join("agent");
    let content = format!(
        "#!/bin/sh\ntrap '' HUP INT QUIT USR1 TERM WINCH\nexec {} \"$@\"\n",
        env!("CARGO_BIN_EXE_slice-agent")
    );
    fs::write(&script, content).expect("written");
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).expect("set");
    let agent = Agent::start_program(&script).await;
    // Not of a shell, which has handlers of its own.
    let query = ExecQuery {
        cmd: "cat".to_owned(),
        args: vec!["/proc/self/status".to_owned()],
        ..ExecQuery::default()
    };
    let frames = agent.frames(&query, Body::empty()).await;
    let status = text(&frames, FrameKind::Stdout);
    for name in ["SigIgn:", "SigBlk:"] {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let mask = u64::from_str_radix(line.expect("a mask").trim(), 16).expect("a number");
        // The C library keeps signals 32 and 33 for itself.
        assert_eq!(mask & !(3 << 31), 0, "{status}");
    }
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

#[tokio::test]
async fn an_agent_without_privileges_starts_programs_as_its_own_user_only() {
    // The program of the tests may be in a directory that others cannot enter.
    let directory = tempfile::tempdir().expect("a directory");
    fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o777)).expect("changed");
    let program = directory.path().join("slice-agent");
    fs::copy(env!("CARGO_BIN_EXE_slice-agent"), &program).expect("copied");
    let socket = directory.path().join(SOCKET);
    let mut command = Command::new(&program);
    command.args(["serve", "--unix"]).arg(&socket);
    let child = command.uid(65534).gid(65534).spawn().expect("an agent");
    let agent = Agent::of_child(child, directory).await;
    let own = |uid, gid| ExecQuery {
        uid,
        gid,
        ..sh("id -u; id -g; pwd")
    };
    for (uid, gid) in [(None, None), (Some(65534), None), (None, Some(65534))] {
        let found = agent.buffered(own(uid, gid)).await;
        assert_eq!(found.stdout, "65534\n65534\n/\n", "{uid:?} {gid:?}");
    }
    for (uid, gid) in [(Some(0), None), (Some(1), None), (None, Some(0))] {
        let (status, error) = agent.error("POST", &exec_path(&own(uid, gid))).await;
        assert_eq!(status, StatusCode::FORBIDDEN);
        assert!(error.contains("the agent runs as 65534:65534"), "{error}");
    }
}
