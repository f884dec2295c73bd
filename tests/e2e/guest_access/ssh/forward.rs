//! Connections to ports of the guest; everything else that a client may ask to forward.
//! Out of scope: names that the agent resolves.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::process::Stdio;

use super::super::{Killed, text};
use super::{PORT, ROOT, exchange, noise, with_ssh};

/// A server in the guest that answers with all it has received, in reverse, after the end of the input. Its port.
fn reverser() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let port = listener.local_addr().expect("an address").port();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let mut all = Vec::new();
                let _ = stream.read_to_end(&mut all);
                all.reverse();
                let _ = stream.write_all(&all);
            });
        }
    });
    port
}

#[test]
fn ports_of_the_guest_are_reached_with_half_close() {
    with_ssh(|ssh| {
        let port = reverser();
        let mut data = noise(2 << 20);
        let target = format!("127.0.0.1:{port}");
        let output = exchange(&mut ssh.ssh(&["-W", &target], ROOT, &[]), data.clone());
        let sent = data.clone();
        data.reverse();
        assert!(
            output.stdout == data,
            "{} bytes: {}",
            output.stdout.len(),
            text(&output.stderr)
        );
        let forward = format!("127.0.0.1:4444:{target}");
        let child = ssh
            .ssh(
                &["-N", "-o", "ExitOnForwardFailure=yes", "-L", &forward],
                ROOT,
                &[],
            )
            .spawn();
        let _child = Killed(child.expect("ssh"));
        let connect = || TcpStream::connect(("127.0.0.1", 4444)).ok();
        let mut streams: Vec<TcpStream> = (0..8)
            .map(|_| ssh.harness.until("ssh listens", connect))
            .collect();
        for stream in &mut streams {
            stream.write_all(&sent).expect("sent");
            stream.shutdown(Shutdown::Write).expect("shut down");
        }
        for stream in &mut streams {
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).expect("an answer");
            assert!(answer == data, "{} bytes", answer.len());
        }
        // Nothing listens there.
        let output = ssh
            .ssh(&["-o", "LogLevel=INFO", "-W", "127.0.0.1:1"], ROOT, &[])
            .output()
            .expect("ssh");
        assert_eq!(output.status.code(), Some(255));
        assert!(
            text(&output.stderr).contains("open failed: connect failed"),
            "{output:?}"
        );
    });
}

#[test]
fn everything_else_is_refused() {
    with_ssh(|ssh| {
        for (words, user, expected) in [
            (
                &[
                    "-N",
                    "-o",
                    "ExitOnForwardFailure=yes",
                    "-R",
                    "4445:127.0.0.1:22",
                ][..],
                ROOT,
                "remote port forwarding failed",
            ),
            (
                &[
                    "-N",
                    "-o",
                    "ExitOnForwardFailure=yes",
                    "-R",
                    "/tmp/s:127.0.0.1:22",
                ],
                ROOT,
                "remote port forwarding failed",
            ),
            (
                &["-o", "LogLevel=INFO", "-W", "127.0.0.1:22"],
                "Alice",
                "administratively prohibited",
            ),
            (
                &["-o", "LogLevel=INFO", "-W", "127.0.0.1:22"],
                "console+box-1",
                "administratively prohibited",
            ),
            (
                &["-o", "LogLevel=INFO", "-W", "127.0.0.1:22"],
                "root+box-9",
                "connect failed",
            ),
            (&["-s", "-T"], ROOT, "subsystem request failed"),
        ] {
            let command: &[&str] = if words[0] == "-s" { &["netconf"] } else { &[] };
            let child = ssh.ssh(words, user, command).stdin(Stdio::null()).output();
            let output = child.expect("ssh");
            assert_eq!(output.status.code(), Some(255), "{words:?}: {output:?}");
            assert!(
                text(&output.stderr).contains(expected),
                "{words:?}: {output:?}"
            );
        }
        let words = ["-A", "-o", "ForwardAgent=yes", "-o", "LogLevel=INFO"];
        let output = ssh
            .ssh(&words, ROOT, &["echo $SSH_AUTH_SOCK."])
            .output()
            .expect("ssh");
        assert_eq!(text(&output.stdout), ".\n");
        let words = ["-Y", "-o", "LogLevel=INFO"];
        let mut command = ssh.ssh(&words, ROOT, &["echo $DISPLAY."]);
        let output = command.env("DISPLAY", ":9").output().expect("ssh");
        assert_eq!(text(&output.stdout), ".\n");
        assert!(
            text(&output.stderr).contains("X11 forwarding request failed"),
            "{output:?}"
        );
    });
}

#[test]
fn a_client_reaches_ports_by_socks_and_servers_by_a_jump() {
    with_ssh(|ssh| {
        let port = reverser();
        let words = ["-N", "-o", "ExitOnForwardFailure=yes", "-D", "4446"];
        let child = ssh.ssh(&words, ROOT, &[]).spawn();
        let _child = Killed(child.expect("ssh"));
        let connect = || TcpStream::connect(("127.0.0.1", 4446)).ok();
        let mut stream = ssh.harness.until("ssh listens", connect);
        // SOCKS 5 (RFC 1928) without authentication: CONNECT to an IPv4 address.
        let [high, low] = port.to_be_bytes();
        let mut answer = [0; 2];
        stream.write_all(&[5, 1, 0]).expect("sent");
        stream.read_exact(&mut answer).expect("an answer");
        assert_eq!(answer, [5, 0]);
        let request = [5, 1, 0, 1, 127, 0, 0, 1, high, low];
        stream.write_all(&request).expect("sent");
        let mut answer = [0; 10];
        stream.read_exact(&mut answer).expect("an answer");
        assert_eq!(answer[..2], [5, 0]);
        stream.write_all(b"abc").expect("sent");
        stream.shutdown(Shutdown::Write).expect("shut down");
        let mut reversed = String::new();
        stream.read_to_string(&mut reversed).expect("an answer");
        assert_eq!(reversed, "cba");

        // The agent runs on this machine, so the second server is the first one. `-J` does not pass options on.
        let jump = ssh.options("alice").join(" ");
        let proxy = format!("ProxyCommand=ssh {jump} -W %h:{PORT} {ROOT}@127.0.0.1");
        let output = ssh.ssh(&["-o", &proxy], ROOT, &["echo there"]).output();
        let output = output.expect("ssh");
        assert_eq!(text(&output.stdout), "there\n", "{output:?}");
    });
}
