//! Guests through the second listener of the API: TCP and TLS, with the options of `slicectl` from its environment.
//! Out of scope: the listener (`api_listener`), what the agent does (`exec`, `copy`, `forward`).

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::{Command, Stdio};

use super::{Host, Killed, VM, text, with_agent};
use crate::api_listener::tls::{authority, with_tls};
use crate::api_listener::{PORT, configure, listens};

/// Runs a test with a command line of slicectl that reaches the daemon without, and with TLS.
fn with_both(test: impl Fn(&Host, &dyn Fn(&[&str]) -> Command) + Send + Sync) {
    with_agent(|host| {
        for is_tls in [false, true] {
            let harness = &host.harness;
            let token = harness.state().join("api/token");
            let url = match is_tls {
                true => {
                    with_tls(harness, &authority("one"));
                    format!("https://localhost:{PORT}")
                }
                false => {
                    configure(harness, "api: {}\n");
                    listens(harness, PORT);
                    format!("http://127.0.0.1:{PORT}")
                }
            };
            let ctl = |arguments: &[&str]| {
                let mut command = host.ctl(arguments);
                command
                    .env("SLICE_URL", &url)
                    .env("SLICE_TOKEN_FILE", &token)
                    .env("SLICE_CA", harness.dir.path().join("ca.pem"));
                command
            };
            host.harness.until("the listener", || {
                let output = ctl(&["version"]).output().expect("slicectl");
                output.status.success().then_some(())
            });
            test(host, &ctl);
        }
    });
}

#[test]
fn commands_and_copies_work_over_tcp_and_tls() {
    with_both(|host, ctl| {
        let arguments = ["vm", "exec", VM, "--uid", "0", "--", "wc", "-c"];
        let mut child = ctl(&arguments)
            .stdin(Stdio::piped())
            .spawn()
            .expect("slicectl");
        let mut input = child.stdin.take().expect("a pipe");
        let data = vec![b'x'; 3 << 20];
        input.write_all(&data).expect("sent");
        drop(input);
        let output = child.wait_with_output().expect("its output");
        assert!(output.status.success(), "{output:?}");
        assert_eq!(text(&output.stdout).trim(), data.len().to_string());
        let arguments = ["vm", "exec", VM, "--uid", "0", "--", "sh", "-c", "exit 7"];
        let status = ctl(&arguments).status().expect("slicectl");
        assert_eq!(status.code(), Some(7));
        let dir = host.harness.dir.path();
        let bytes: Vec<u8> = (0..5_000_000_u32).map(|n| (n * 7 / 3) as u8).collect();
        let (local, remote, back) = (dir.join("local"), dir.join("remote"), dir.join("back"));
        fs::write(&local, &bytes).expect("written");
        let _ = fs::remove_file(&remote);
        let _ = fs::remove_file(&back);
        let path = |path: &std::path::Path| path.display().to_string();
        let there = format!("{VM}:{}", remote.display());
        for arguments in [
            ["vm", "cp", &path(&local), &there],
            ["vm", "cp", &there, &path(&back)],
        ] {
            let output = ctl(&arguments).output().expect("slicectl");
            assert!(output.status.success(), "{arguments:?}: {output:?}");
        }
        assert!(fs::read(&back).expect("a file") == bytes);
    });
}

#[test]
fn a_command_ends_with_its_client_over_tcp_and_tls() {
    with_both(|host, ctl| {
        let pid_file = host.harness.dir.path().join("pid");
        let _ = fs::remove_file(&pid_file);
        let script = format!("echo $$ > {}; exec sleep 1000", pid_file.display());
        let arguments = ["vm", "exec", VM, "--uid", "0", "--", "sh", "-c", &script];
        let client = Killed(ctl(&arguments).spawn().expect("slicectl"));
        let pid = host.harness.until("the command", || {
            let text = fs::read_to_string(&pid_file).ok()?;
            text.trim().parse::<u32>().ok()
        });
        let process = format!("/proc/{pid}/cmdline");
        assert!(fs::read(&process).is_ok_and(|line| !line.is_empty()));
        drop(client);
        host.harness.until("it ends", || {
            let line = fs::read(&process).unwrap_or_default();
            line.is_empty().then_some(())
        });
    });
}

#[test]
fn ports_are_forwarded_over_tcp_and_tls_with_half_closes() {
    with_both(|_, ctl| {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
        let port = listener.local_addr().expect("an address").port();
        // The agent runs on this host: a server that answers after the end of its input.
        let server = std::thread::spawn(move || {
            for _ in 0..8 {
                let (mut stream, _) = listener.accept().expect("a connection");
                let mut all = Vec::new();
                stream.read_to_end(&mut all).expect("read");
                all.reverse();
                stream.write_all(&all).expect("written");
            }
        });
        let arguments = ["vm", "port-forward", VM, &format!("0:{port}")];
        let mut child = ctl(&arguments).spawn().expect("slicectl");
        let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        let _forward = Killed(child);
        let line = lines.next().expect("a line").expect("a line");
        let local = line.split(' ').nth(1).expect("an address").to_owned();
        let data: Vec<u8> = (0..2_000_000_u32).map(|n| (n % 251) as u8).collect();
        let clients: Vec<_> = (0..8)
            .map(|_| {
                let (local, data) = (local.clone(), data.clone());
                std::thread::spawn(move || {
                    let mut stream = TcpStream::connect(local).expect("a connection");
                    stream.write_all(&data).expect("sent");
                    stream.shutdown(Shutdown::Write).expect("half-closed");
                    let mut answer = Vec::new();
                    stream.read_to_end(&mut answer).expect("an answer");
                    let expected: Vec<u8> = data.iter().rev().copied().collect();
                    assert!(answer == expected, "{} bytes", answer.len());
                })
            })
            .collect();
        for client in clients {
            client.join().expect("an answer");
        }
        server.join().expect("served");
    });
}
