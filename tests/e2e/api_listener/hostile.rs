//! Clients of the listener that are slow, idle, many or wrong.
//! Out of scope: the same on the daemon's socket (`liveness`).

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use test_support::harness::{Harness, group, with_daemon};

use super::{PORT, bearer, configure, connect, exchange, listens, request};

/// Resident memory of the daemon, in bytes.
pub fn memory(harness: &Harness) -> u64 {
    let text = fs::read_to_string(format!("/proc/{}/status", harness.pid())).expect("a status");
    let line = text.lines().find(|line| line.starts_with("VmRSS:"));
    let size = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
    size.expect("a size") << 10
}

/// Whether the other side has closed the connection.
fn is_closed(stream: &TcpStream) -> bool {
    stream.set_nonblocking(true).expect("a mode");
    let mut buffer = [0; 256];
    loop {
        match (&mut &*stream).read(&mut buffer) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) => return error.kind() != std::io::ErrorKind::WouldBlock,
        }
    }
}

#[test]
fn a_thousand_idle_connections_neither_delay_others_nor_last() {
    with_daemon(|harness| {
        configure(&harness, "api: {}\n");
        listens(&harness, PORT);
        let token = bearer(&harness);
        let before = memory(&harness);
        let idle: Vec<TcpStream> = (0..1000).map(|_| connect(PORT)).collect();
        // Heads that arrive byte by byte.
        let mut slow: Vec<TcpStream> = (0..50).map(|_| connect(PORT)).collect();
        for stream in &mut slow {
            let _ = stream.write_all(b"GET /v1/version HTTP/1.1\r\nhost: ");
        }
        for _ in 0..20 {
            for stream in &mut slow {
                let _ = stream.write_all(b"x");
            }
            let begin = Instant::now();
            assert_eq!(request(PORT, "GET /v1/version", &token).0, 200);
            assert_eq!(request(PORT, "GET /healthz", "").0, 200);
            harness.ctl("get vms");
            assert!(
                begin.elapsed() < Duration::from_secs(5),
                "{:?}",
                begin.elapsed()
            );
        }
        // The engine works, too.
        harness.apply(&group("a", 1, "169.254.100.0/22", ""));
        let growth = memory(&harness).saturating_sub(before);
        assert!(growth < 64 << 20, "{growth}");
        for streams in [&idle, &slow] {
            harness.until("all are closed", || {
                streams.iter().all(is_closed).then_some(())
            });
        }
    });
}

#[test]
fn heads_and_bodies_are_bounded_and_a_body_without_a_token_is_not_read() {
    with_daemon(|harness| {
        configure(&harness, "api: {}\n");
        listens(&harness, PORT);
        let token = bearer(&harness);
        let post = |authorization: &str, length: u64, body: &str| {
            let text = format!(
                "POST /v1/apply HTTP/1.1\r\nhost: x\r\nauthorization: {authorization}\r\n\
                 content-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
            );
            exchange(connect(PORT), &text).0
        };
        let begin = Instant::now();
        assert_eq!(post("Bearer wrong", 1 << 40, "{"), 401);
        assert_eq!(post("Bearer wrong", 100, "{"), 401);
        assert_eq!(post(&token, 1 << 40, "{"), 413);
        assert!(
            begin.elapsed() < Duration::from_secs(5),
            "{:?}",
            begin.elapsed()
        );
        let long = "x".repeat(1 << 20);
        let (status, answer) = request(PORT, &format!("GET /{long}"), &token);
        assert!([0, 400, 414, 431].contains(&status), "{answer}");
        let (status, answer) = request(PORT, "GET /v1/version", &format!("Bearer {long}"));
        assert!([0, 400, 431].contains(&status), "{answer}");
        for garbage in [
            "\r\n\r\n\r\n",
            "GET\r\n\r\n",
            "\u{0}\u{1}\u{2}\r\n\r\n",
            "GET / HTTP/9.9\r\n\r\n",
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        ] {
            let (status, answer) = exchange(connect(PORT), garbage);
            assert!(
                [0, 400, 401, 505].contains(&status),
                "{garbage:?}: {answer}"
            );
        }
        assert_eq!(request(PORT, "GET /v1/version", &token).0, 200);
    });
}

#[test]
fn a_body_that_does_not_end_is_ended() {
    with_daemon(|harness| {
        configure(&harness, "api: {}\n");
        listens(&harness, PORT);
        let token = bearer(&harness);
        let mut stream = connect(PORT);
        let head = format!(
            "POST /v1/apply HTTP/1.1\r\nhost: x\r\nauthorization: {token}\r\n\
             content-type: application/json\r\ncontent-length: 1000\r\n\r\n{{"
        );
        stream.write_all(head.as_bytes()).expect("sent");
        let begin = Instant::now();
        harness.until("it is closed", || {
            let _ = stream.write_all(b" ");
            std::thread::sleep(Duration::from_millis(200));
            is_closed(&stream).then_some(())
        });
        assert!(
            begin.elapsed() > Duration::from_secs(20),
            "{:?}",
            begin.elapsed()
        );
        assert_eq!(request(PORT, "GET /v1/version", &token).0, 200);
    });
}

#[test]
fn the_daemon_stops_within_2_s_with_clients_that_do_not() {
    with_daemon(|mut harness| {
        configure(&harness, "api: {}\n");
        listens(&harness, PORT);
        let token = bearer(&harness);
        let _idle: Vec<TcpStream> = (0..50).map(|_| connect(PORT)).collect();
        let mut streams = Vec::new();
        for _ in 0..10 {
            let mut stream = connect(PORT);
            let head = format!(
                "GET /v1/events?follow=true HTTP/1.1\r\nhost: x\r\nauthorization: {token}\r\n\r\n"
            );
            stream.write_all(head.as_bytes()).expect("sent");
            let mut start = [0; 12];
            stream.read_exact(&mut start).expect("a head");
            assert_eq!(&start, b"HTTP/1.1 200");
            streams.push(stream);
        }
        let (status, took) = harness.stop();
        assert!(status.success());
        assert!(took < Duration::from_secs(4), "{took:?}");
    });
}
