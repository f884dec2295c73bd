//! Terminals.
//! Out of scope: the terminal of a client.

use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use hyper::StatusCode;
use slicectl::guest::protocol::ShellQuery;
use slicectl::guest::shell_frame::{MESSAGE_LIMIT, ShellFrame};
use tokio::net::UnixStream;
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use super::{Agent, LIMIT, process_exists, query, until};

/// A shell and what it has written.
struct Shell {
    stream: WebSocketStream<UnixStream>,
    text: String,
}

impl Shell {
    async fn open(agent: &Agent, shell: &ShellQuery) -> Self {
        let stream = agent
            .websocket(&format!("/shell?{}", query(shell)), &[])
            .await
            .expect("a shell");
        let text = String::new();
        Self { stream, text }
    }

    async fn send(&mut self, frame: ShellFrame) {
        self.stream
            .send(Message::Binary(frame.encode()))
            .await
            .expect("sent");
    }

    async fn type_in(&mut self, text: &str) {
        self.send(ShellFrame::Data(Bytes::from(text.to_owned())))
            .await;
    }

    async fn next(&mut self) -> Message {
        let next = timeout(LIMIT, self.stream.next()).await;
        next.unwrap_or_else(|_| panic!("no message after {}", self.text))
            .expect("a message")
            .expect("a message")
    }

    async fn until(&mut self, expected: &str) {
        while !self.text.contains(expected) {
            match self.next().await {
                Message::Binary(bytes) => {
                    assert!(bytes.len() <= MESSAGE_LIMIT);
                    match ShellFrame::decode(&bytes) {
                        Some(ShellFrame::Data(data)) => {
                            self.text.push_str(&String::from_utf8_lossy(&data))
                        }
                        other => panic!("{other:?} before {expected}: {}", self.text),
                    }
                }
                other => panic!("{other:?} before {expected}: {}", self.text),
            }
        }
    }

    /// Reads to the end: the exit status.
    async fn exit(&mut self) -> i32 {
        let mut status = None;
        loop {
            match self.next().await {
                Message::Binary(bytes) => match ShellFrame::decode(&bytes).expect("a frame") {
                    ShellFrame::Data(data) if status.is_none() => {
                        self.text.push_str(&String::from_utf8_lossy(&data))
                    }
                    ShellFrame::ExitStatus(code) => status = Some(code),
                    ShellFrame::Close => break,
                    other => panic!("{other:?}"),
                },
                other => panic!("{other:?} before the end"),
            }
        }
        match self.next().await {
            Message::Close(Some(frame)) => assert_eq!(frame.code, CloseCode::Normal),
            other => panic!("{other:?}"),
        }
        status.expect("an exit status before the end")
    }
}

fn root() -> ShellQuery {
    ShellQuery {
        uid: Some(0),
        shell: Some("/bin/sh".to_owned()),
        ..ShellQuery::default()
    }
}

#[tokio::test]
async fn a_shell_is_a_login_shell_on_a_terminal_of_80_by_24_and_sees_new_sizes() {
    let agent = Agent::start().await;
    let mut shell = Shell::open(&agent, &root()).await;
    shell
        .type_in("stty size; echo \"[$0:$TERM:$HOME:$PWD]\"; tty\n")
        .await;
    shell.until("24 80").await;
    shell.until("[-sh:xterm-256color:/root:/root]").await;
    shell.until("/dev/pts/").await;
    shell
        .send(ShellFrame::Window {
            columns: 132,
            rows: 50,
        })
        .await;
    shell.send(ShellFrame::Heartbeat).await;
    shell
        .stream
        .send(Message::Text("ignored".into()))
        .await
        .expect("sent");
    shell
        .stream
        .send(Message::Binary(Bytes::from_static(&[9, 9])))
        .await
        .expect("sent");
    shell.type_in("stty size\n").await;
    shell.until("50 132").await;
    // Control-C reaches the program, and the shell goes on.
    let program = "trap 'echo interrupted; exit' INT; echo rea''dy; while :; do sleep 0.1; done";
    shell.type_in(&format!("sh -c \"{program}\"\n")).await;
    shell.until("ready").await;
    shell.type_in("\x03").await;
    shell.until("interrupted\r\n").await;
    shell.type_in("echo go-$((1+1))-on; exit 7\n").await;
    shell.until("go-2-on").await;
    assert_eq!(shell.exit().await, 7);
    agent.until_no_child().await;
}

#[tokio::test]
async fn a_program_runs_on_the_terminal_with_its_arguments_environment_and_user() {
    let agent = Agent::start().await;
    let run = |cmd: &str, args: &[&str]| ShellQuery {
        cmd: Some(cmd.to_owned()),
        args: args.iter().map(|arg| (*arg).to_owned()).collect(),
        env: vec!["TERM=dumb".to_owned(), "A=b c".to_owned()],
        uid: Some(65534),
        cwd: Some("/tmp".to_owned()),
        ..ShellQuery::default()
    };
    let user = "echo $TERM:$A:$(id -u):$PWD; test -w $(tty) && echo writable; exit 3";
    let in_shell = ShellQuery {
        shell: Some("/bin/sh".to_owned()),
        ..run("echo", &["$A"])
    };
    for (query, text, status) in [
        (
            run("sh", &["-c", user]),
            "dumb:b c:65534:/tmp\r\nwritable\r\n",
            3,
        ),
        (run("sh", &["-c", "kill -KILL $$"]), "", 137),
        (run("true", &[]), "", 0),
        (in_shell, "b c\r\n", 0),
        (run("seq", &["1", "3"]), "1\r\n2\r\n3\r\n", 0),
        (run("sh", &["-c", "sleep 1000 & echo end"]), "end\r\n", 0),
    ] {
        let mut shell = Shell::open(&agent, &query).await;
        assert_eq!(shell.exit().await, status, "{query:?}");
        assert_eq!(shell.text, text, "{query:?}");
    }
    // Nothing is lost at the end.
    let mut shell = Shell::open(&agent, &run("seq", &["1", "100000"])).await;
    assert_eq!(shell.exit().await, 0);
    assert_eq!(shell.text.lines().count(), 100_000);
    assert!(shell.text.ends_with("100000\r\n"));
    agent.until_no_child().await;
}

#[tokio::test]
async fn the_end_of_the_client_ends_the_session_however_it_leaves_and_whatever_runs() {
    let agent = Agent::start().await;
    for leave in ["drop", "close", "shutdown"] {
        for job in [
            "sleep 1000 &",
            "set -m; sleep 1000 &",
            "trap '' HUP TERM; sleep 1000 &",
        ] {
            let mut shell = Shell::open(&agent, &root()).await;
            shell
                .type_in(&format!("{job} echo pids-$$-$!-end; sleep 1001\n"))
                .await;
            while !shell.text.contains("-end")
                || shell
                    .text
                    .rfind("pids-$$")
                    .is_some_and(|at| !shell.text[at + 7..].contains("pids-"))
            {
                let length = shell.text.len();
                match shell.next().await {
                    Message::Binary(bytes) => {
                        if let Some(ShellFrame::Data(data)) = ShellFrame::decode(&bytes) {
                            shell.text.push_str(&String::from_utf8_lossy(&data));
                        }
                    }
                    other => panic!("{other:?}"),
                }
                assert!(shell.text.len() > length);
            }
            let ids = shell.text.rsplit_once("pids-").expect("ids").1.to_owned();
            let pids: Vec<&str> = ids.split('-').take(2).collect();
            assert!(pids.iter().all(|pid| process_exists(pid)), "{}", shell.text);
            match leave {
                "close" => shell.stream.close(None).await.expect("closed"),
                "shutdown" => shell.send(ShellFrame::Shutdown).await,
                _ => {}
            }
            if leave != "shutdown" {
                drop(shell);
            }
            until(&format!("{leave} {job}"), || async {
                (!pids.iter().any(|pid| process_exists(pid)))
                    .then_some(())
                    .ok_or(())
            })
            .await;
        }
    }
    agent.until_no_child().await;
}

#[tokio::test]
async fn a_client_that_leaves_is_noticed_while_the_program_does_not_read() {
    let agent = Agent::start().await;
    let query = ShellQuery {
        cmd: Some("sh".to_owned()),
        args: vec![
            "-c".to_owned(),
            "stty raw -echo; echo ready; exec sleep 1000".to_owned(),
        ],
        ..root()
    };
    let mut shell = Shell::open(
        &agent,
        &ShellQuery {
            shell: None,
            ..query
        },
    )
    .await;
    shell.until("ready").await;
    let block = ShellFrame::Data(Bytes::from(vec![b'x'; 32_000])).encode();
    let send = async {
        loop {
            shell
                .stream
                .send(Message::Binary(block.clone()))
                .await
                .expect("sent");
        }
    };
    let blocked: Result<(), _> = timeout(std::time::Duration::from_secs(2), send).await;
    assert!(
        blocked.is_err(),
        "the agent takes only what the program reads"
    );
    assert!(agent.memory("VmRSS:") < 16 << 10);
    drop(shell);
    agent.until_no_child().await;
}

#[tokio::test]
async fn what_cannot_be_started_is_an_error_before_the_upgrade() {
    let agent = Agent::start().await;
    for (path, expected) in [
        (
            "/shell?uid=0&cmd=absent",
            "executable file not found in $PATH",
        ),
        (
            "/shell?uid=0&shell=/absent",
            "exec: \\\"/absent\\\": no such file or directory",
        ),
        ("/shell?uid=0&cwd=/absent", "chdir"),
        ("/shell?uid=0&cwd=..", "invalid cwd"),
        ("/shell?uid=x", "invalid query"),
    ] {
        let (status, body) = agent.websocket(path, &[]).await.expect_err("an error");
        assert_eq!(status, StatusCode::BAD_REQUEST, "{path}");
        assert!(body.contains(expected), "{path}: {body}");
    }
    let (status, _) = agent.error("GET", "/shell").await;
    assert!(status.is_client_error());
}
