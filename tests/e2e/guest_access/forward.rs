//! `vm port-forward`: TCP and Unix sockets on either side, half-closes, a thousand connections.
//! Out of scope: what the agent refuses.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use test_support::harness::signal;

use super::{Host, Killed, VM, memory, text, with_agent};

/// A running `vm port-forward`, and the local sides that it prints.
fn forward(host: &Host, forwards: &[&str]) -> (Killed, Vec<String>) {
    let words = [&["vm", "port-forward", VM], forwards].concat();
    let mut child = host.ctl(&words).spawn().expect("slicectl");
    let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
    let local = |line: String| {
        let local = line.split(' ').nth(1).map(str::to_owned);
        local.unwrap_or_else(|| panic!("{line}"))
    };
    let locals: Vec<String> = lines
        .by_ref()
        .take(forwards.len())
        .map(|line| local(line.expect("a line")))
        .collect();
    if locals.len() < forwards.len() {
        let output = child.wait_with_output().expect("its output");
        panic!("{}", text(&output.stderr));
    }
    (Killed(child), locals)
}

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

fn reversed(mut stream: impl Read + Write, end: impl FnOnce(), sent: &[u8]) -> Vec<u8> {
    stream.write_all(sent).expect("sent");
    end();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("an answer");
    answer
}

fn over_tcp(to: &str, sent: &[u8]) -> Vec<u8> {
    let stream = TcpStream::connect(to).expect("a connection");
    let copy = stream.try_clone().expect("a descriptor");
    reversed(
        stream,
        || copy.shutdown(Shutdown::Write).expect("half-closed"),
        sent,
    )
}

fn over_unix(to: &str, sent: &[u8]) -> Vec<u8> {
    let stream = UnixStream::connect(to).expect("a connection");
    let copy = stream.try_clone().expect("a descriptor");
    reversed(
        stream,
        || copy.shutdown(Shutdown::Write).expect("half-closed"),
        sent,
    )
}

#[test]
fn ports_and_unix_sockets_are_forwarded_and_a_half_close_is_kept() {
    with_agent(|host| {
        let port = reverser();
        let dir = host.harness.dir.path();
        let (local, guest) = (dir.join("local.sock"), dir.join("guest.sock"));
        let listener = UnixListener::bind(&guest).expect("a socket");
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let mut all = Vec::new();
                let _ = stream.read_to_end(&mut all);
                all.reverse();
                let _ = stream.write_all(&all);
            }
        });
        let specs = [
            format!("0:{port}"),
            format!("127.0.0.1:0:127.0.0.1:{port}"),
            format!("0:{}", guest.display()),
            format!("{}:{port}", local.display()),
        ];
        let specs: Vec<&str> = specs.iter().map(String::as_str).collect();
        let (mut child, locals) = forward(host, &specs);
        let large: Vec<u8> = (0..3 << 20).map(|at: u32| (at % 253) as u8).collect();
        for sent in [&b"abc"[..], b"", &large] {
            let expected: Vec<u8> = sent.iter().rev().copied().collect();
            for local in &locals[..3] {
                assert!(over_tcp(local, sent) == expected, "{local}");
            }
            assert!(over_unix(&locals[3], sent) == expected, "{}", locals[3]);
        }
        assert_eq!(locals[3], local.display().to_string());
        signal(child.0.id(), Signal::INT);
        let status = child.0.wait().expect("a status");
        assert!(status.success(), "{status}");
        assert!(!local.exists(), "its socket is removed");
    });
}

#[test]
fn a_port_on_which_nothing_listens_ends_one_connection_and_says_why() {
    with_agent(|host| {
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let port = free.local_addr().expect("an address").port();
        drop(free);
        let (mut child, locals) = forward(host, &[&format!("0:{port}")]);
        for _ in 0..2 {
            assert_eq!(over_tcp_lossy(&locals[0]), b"");
        }
        signal(child.0.id(), Signal::TERM);
        child.0.wait().expect("a status");
        let mut stderr = String::new();
        child
            .0
            .stderr
            .take()
            .expect("a pipe")
            .read_to_string(&mut stderr)
            .expect("UTF-8");
        assert_eq!(
            stderr.matches("error: connection to").count(),
            2,
            "{stderr}"
        );
    });
}

/// What is received of a connection that may be reset.
fn over_tcp_lossy(to: &str) -> Vec<u8> {
    let mut stream = TcpStream::connect(to).expect("a connection");
    let mut received = Vec::new();
    let _ = stream.read_to_end(&mut received);
    received
}

#[test]
fn a_thousand_connections_are_forwarded_at_once_and_end_with_the_command() {
    with_agent(|host| {
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
        let raised = rustix::process::Rlimit {
            current: limit.maximum,
            maximum: limit.maximum,
        };
        rustix::process::setrlimit(rustix::process::Resource::Nofile, raised)
            .expect("more descriptors");
        host.harness.ctl("version");
        let (before, before_memory) = (host.descriptors(), memory(host.harness.pid()));
        let port = echo();
        let (mut child, locals) = forward(host, &[&format!("0:{port}")]);
        let begin = Instant::now();
        let mut streams: Vec<TcpStream> = (0..1000)
            .map(|_| TcpStream::connect(&locals[0]).expect("a connection"))
            .collect();
        for (number, stream) in streams.iter_mut().enumerate() {
            stream
                .set_read_timeout(Some(Duration::from_secs(60)))
                .expect("a timeout");
            write!(stream, "{number:05}").expect("sent");
        }
        for (number, stream) in streams.iter_mut().enumerate() {
            let mut answer = [0; 5];
            stream.read_exact(&mut answer).expect("an answer");
            assert_eq!(text(&answer), format!("{number:05}"));
        }
        eprintln!(
            "1,000 connections: {:?}; sliced: {} bytes, slicectl: {} bytes",
            begin.elapsed(),
            memory(host.harness.pid()).saturating_sub(before_memory),
            memory(child.0.id())
        );
        // All of them are open, and the API answers others at once.
        let begin = Instant::now();
        host.harness.ctl("get vms");
        assert!(begin.elapsed() < Duration::from_secs(2));
        signal(child.0.id(), Signal::INT);
        assert!(child.0.wait().expect("a status").success());
        host.harness.until("all connections are closed", || {
            (host.descriptors() <= before).then_some(())
        });
        drop(streams);
    });
}

/// A server in the guest that sends back what it receives. Its port.
fn echo() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let port = listener.local_addr().expect("an address").port();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let echo = move || {
                let mut buffer = [0; 64];
                while let Ok(count @ 1..) = stream.read(&mut buffer) {
                    if stream.write_all(&buffer[..count]).is_err() {
                        break;
                    }
                }
            };
            std::thread::Builder::new()
                .stack_size(64 << 10)
                .spawn(echo)
                .expect("a thread");
        }
    });
    port
}

#[test]
fn what_cannot_be_listened_on_is_an_error_before_anything_is_forwarded() {
    with_agent(|host| {
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let port = taken.local_addr().expect("an address").port();
        let file = host.harness.dir.path().join("file");
        fs::write(&file, "precious").expect("written");
        for (spec, expected) in [
            (format!("{port}:80"), "cannot listen on 127.0.0.1 port"),
            (format!("{}:80", file.display()), "is not a socket"),
        ] {
            let output = host
                .ctl(&["port-forward", VM, &spec])
                .output()
                .expect("slicectl");
            assert_eq!(output.status.code(), Some(1), "{output:?}");
            assert!(text(&output.stderr).contains(expected), "{output:?}");
        }
        assert_eq!(fs::read_to_string(&file).expect("a file"), "precious");
    });
}
