//! Commands, files, shells and connections in a guest, as clients send them.
//! Out of scope: what the agent does beyond these (`agent`, `guest_access`).

use std::io::{Read, Write};
use std::net::TcpListener;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::client::{Answer, Api};
use super::{assert_error, with_agent};

fn decoded(value: &Value) -> Vec<u8> {
    STANDARD
        .decode(value.as_str().expect("a text"))
        .expect("base64")
}

#[test]
fn a_command_is_a_stream_of_frames_or_one_answer() {
    with_agent(|_, api, vm| {
        let exec = |query: &str| api.send("POST", &format!("/vm/{vm}/exec?{query}"), None);
        // Directly, without a shell; as its published URLs are.
        let answer = exec("cmd=uname&args=-s&buffered=true");
        assert_eq!(answer.status, 200, "{answer:?}");
        let answer = answer.json();
        assert_eq!(
            (answer["stdout"].as_str(), answer["exit_code"].as_i64()),
            (Some("Linux\n"), Some(0))
        );
        let answer = exec("cmd=/bin/bash&args=-lc&args=echo%20%24HOME&buffered=true&uid=0").json();
        assert_eq!(answer["stdout"], "/root\n");
        // Exit statuses are no errors of HTTP, and 0 is there.
        for code in [0, 7] {
            let frames = exec(&format!(
                "cmd=/bin/sh&args=-c&args=echo%20out;echo%20err%3E%262;exit%20{code}"
            ));
            assert_eq!(frames.status, 200);
            assert_eq!(frames.header("content-type"), Some("application/x-ndjson"));
            let frames = frames.lines();
            let (first, last) = (&frames[0], &frames[frames.len() - 1]);
            assert_eq!(first["type"], "started");
            assert!(
                first["pid"].as_u64().is_some_and(|pid| pid > 0) && first["started_at"].is_string()
            );
            assert_eq!(
                (last["type"].clone(), last["exit_code"].clone()),
                (json!("exit"), json!(code))
            );
            for frame in &frames[..frames.len() - 1] {
                let code = frame.get("exit_code").cloned().unwrap_or(json!(0));
                assert_eq!(code, json!(0), "only the last may have another: {frame}");
                assert!(
                    frame.get("data").is_none_or(Value::is_null),
                    "stdout or data: {frame}"
                );
            }
            let out: String = frames
                .iter()
                .filter_map(|frame| frame["stdout"].as_str())
                .collect();
            let err: String = frames
                .iter()
                .filter_map(|frame| frame["stderr"].as_str())
                .collect();
            assert_eq!((out.as_str(), err.as_str()), ("out\n", "err\n"));
        }
        // Bytes that are no text.
        let bytes =
            exec("cmd=/bin/sh&args=-c&args=printf%20%27%5C000%5C377%27&stdio=base64&buffered=true")
                .json();
        assert_eq!(
            (bytes["encoding"].as_str(), decoded(&bytes["stdout"])),
            (Some("base64"), vec![0, 255])
        );
        let frames = exec("cmd=head&args=-c&args=32768&args=/dev/zero&stdio=base64").lines();
        let parts = frames.iter().filter(|frame| frame["type"] == "stdout");
        let parts = parts.inspect(|frame| assert_eq!(frame["encoding"], "base64"));
        let out: Vec<u8> = parts.flat_map(|frame| decoded(&frame["stdout"])).collect();
        assert_eq!(out, vec![0; 32768]);
        // A program that is missing is no error of HTTP, either: a probe for chunked copies depends on it.
        let missing = exec("cmd=/usr/local/bin/slicer-agent&args=upload&args=check&buffered=true");
        assert_eq!(missing.status, 200, "{missing:?}");
        assert_eq!(missing.json()["exit_code"], 127);
        assert!(missing.json()["error"].is_string());
        for (query, status) in [
            ("", 400),
            ("cmd=", 400),
            ("cmd=id&buffered=true&stdin=true", 400),
            ("cmd=id&background=true&buffered=true", 400),
        ] {
            assert_error(&exec(query), status, "");
        }
        let used = api.get(&format!("/vm/{vm}")).json();
        assert!(used["last_agent_call"].is_string(), "{used}");
        assert_eq!(used["bg_execs"], json!([]));
    });
}

#[test]
fn standard_input_is_read_while_output_is_written() {
    with_agent(|_, api, vm| {
        let mut stream = api.connect();
        let head = format!(
            "POST /vm/{vm}/exec?cmd=cat&stdin=true HTTP/1.1\r\nHost: unix\r\nTransfer-Encoding: chunked\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).expect("sent");
        let mut received = Vec::new();
        for word in ["first", "second"] {
            let chunk = format!("{:x}\r\n{word}\r\n", word.len());
            stream.write_all(chunk.as_bytes()).expect("sent");
            let mut buffer = [0; 4096];
            while !String::from_utf8_lossy(&received).contains(word) {
                let count = stream
                    .read(&mut buffer)
                    .expect("output before the end of the input");
                assert!(count > 0, "{}", String::from_utf8_lossy(&received));
                received.extend_from_slice(&buffer[..count]);
            }
        }
        stream.write_all(b"0\r\n\r\n").expect("sent");
        stream.read_to_end(&mut received).expect("the rest");
        let frames = Answer::parse(&received).expect("an answer").lines();
        let out: String = frames
            .iter()
            .filter_map(|frame| frame["stdout"].as_str())
            .collect();
        assert_eq!(out, "firstsecond");
        assert_eq!(frames.last().expect("a frame")["exit_code"], 0);
    });
}

#[test]
fn a_command_ends_with_its_client() {
    with_agent(|harness, api, vm| {
        let seconds = format!("86{}", std::process::id());
        let mut stream = api.connect();
        let head =
            format!("POST /vm/{vm}/exec?cmd=sleep&args={seconds} HTTP/1.1\r\nHost: unix\r\n\r\n");
        stream.write_all(head.as_bytes()).expect("sent");
        let runs = || {
            let found = std::process::Command::new("pgrep")
                .args(["-f", &format!("^sleep {seconds}$")])
                .output();
            found.expect("pgrep").status.success()
        };
        harness.until("it runs", || runs().then_some(()));
        drop(stream);
        harness.within(Duration::from_secs(5), "it has ended", || {
            (!runs()).then_some(())
        });
    });
}

#[test]
fn commands_in_the_background_are_listed_waited_for_signalled_and_reaped() {
    with_agent(|_, api, vm| {
        let exec = format!("/vm/{vm}/exec");
        let started = api.send(
            "POST",
            &format!("{exec}?cmd=sleep&args=600&background=true&stdio=base64"),
            None,
        );
        assert_eq!(started.status, 201, "{started:?}");
        let started = started.json();
        let id = started["exec_id"].as_str().expect("an id").to_owned();
        assert!(id.starts_with("ex_"), "{id}");
        assert!(started["pid"].as_u64() > Some(0) && started["ring_bytes"].as_u64() > Some(0));
        assert!(started["started_at"].is_string());
        let listed = api.get(&exec).json();
        assert_eq!(
            (listed[0]["exec_id"].clone(), listed[0]["running"].clone()),
            (json!(id), json!(true))
        );
        let info = api.get(&format!("{exec}/{id}")).json();
        assert_eq!(
            (info["command"].clone(), info["args"].clone()),
            (json!("sleep"), json!(["600"]))
        );
        let described = api.get(&format!("/vm/{vm}")).json();
        assert_eq!(described["bg_execs"][0]["state"], "running", "{described}");
        assert_eq!(described["bg_execs"][0]["command"], "sleep 600");
        let waited = api.get(&format!("{exec}/{id}/wait-exit?timeout=1")).json();
        assert_eq!(
            (waited["running"].clone(), waited["timed_out"].clone()),
            (json!(true), json!(true))
        );
        assert_error(&api.delete(&format!("{exec}/{id}")), 409, "");
        let killed = api.send("POST", &format!("{exec}/{id}/kill"), None).json();
        assert!(
            killed["signal_sent"]
                .as_str()
                .is_some_and(|it| it.contains("TERM")),
            "{killed}"
        );
        let waited = api.get(&format!("{exec}/{id}/wait-exit?timeout=10")).json();
        assert_eq!(
            (waited["running"].clone(), waited["timed_out"].clone()),
            (json!(false), json!(false))
        );
        let reaped = api.delete(&format!("{exec}/{id}"));
        assert_eq!(
            (reaped.status, reaped.json()),
            (200, json!({"exec_id": id, "reaped": true}))
        );
        for path in [
            format!("{exec}/{id}"),
            format!("{exec}/{id}/logs"),
            format!("{exec}/{id}/wait-exit"),
        ] {
            assert_error(&api.get(&path), 410, "");
        }
        assert_eq!(api.get(&exec).json(), json!([]));
        // An exit status of 0 is there, and the log can be read afterwards.
        let started = api.send(
            "POST",
            &format!(
                "{exec}?cmd=echo%20%24FOO&shell=/bin/sh&env=FOO=bar&background=true&stdio=base64"
            ),
            None,
        );
        let id = started.json()["exec_id"]
            .as_str()
            .expect("an id")
            .to_owned();
        let waited = api.get(&format!("{exec}/{id}/wait-exit?timeout=10")).json();
        assert_eq!(waited["exit_code"], 0, "{waited}");
        let frames = api
            .get(&format!("{exec}/{id}/logs?follow=true&from_id=0"))
            .lines();
        let ids: Vec<_> = frames
            .iter()
            .filter_map(|frame| frame["id"].as_u64())
            .collect();
        assert!(ids.windows(2).all(|two| two[1] == two[0] + 1), "{ids:?}");
        let text = |frame: &Value| {
            let field = ["stdout", "data"]
                .into_iter()
                .find(|field| frame[*field].is_string());
            field
                .map(|field| decoded(&frame[field]))
                .unwrap_or_default()
        };
        let out: Vec<u8> = frames
            .iter()
            .filter(|frame| frame["type"] == "stdout")
            .flat_map(text)
            .collect();
        assert_eq!(out, b"bar\n");
    });
}

#[test]
fn files_are_copied_listed_and_removed() {
    with_agent(|harness, api, vm| {
        let dir = harness.dir.path().join("guest");
        let at = |path: &str| format!("{}/{path}", dir.display());
        let cp = |path: &str, query: &str| format!("/vm/{vm}/cp?path={}{query}", at(path));
        let body = json!({"path": at("a/b"), "recursive": true});
        assert_eq!(api.post(&format!("/vm/{vm}/fs/mkdir"), &body).status, 200);
        let bytes: Vec<u8> = (0..=255).cycle().take(64 << 10).collect();
        let put = api.send_bytes(
            "POST",
            &cp("a/file", "&mode=binary&permissions=0640&uid=0&gid=0"),
            Some(&bytes),
        );
        assert_eq!(put.expect("an answer").status, 200);
        let got = api.get(&cp("a/file", ""));
        assert_eq!((got.status, got.body == bytes), (200, true));
        assert_eq!(got.header("x-slicer-file-mode"), Some("0640"));
        let stat = api
            .get(&format!("/vm/{vm}/fs/stat?path={}", at("a/file")))
            .json();
        assert_eq!(
            (
                stat["type"].clone(),
                stat["size"].clone(),
                stat["mode"].clone()
            ),
            (json!("file"), json!(65536), json!("0640"))
        );
        let mtime = stat["mtime"].as_str().expect("a text, not a number");
        assert!(mtime.parse::<jiff::Timestamp>().is_ok(), "{mtime}");
        let listed = api
            .get(&format!("/vm/{vm}/fs/readdir?path={}", at("a")))
            .json();
        let names: Vec<_> = listed
            .as_array()
            .expect("a list")
            .iter()
            .map(|it| it["name"].clone())
            .collect();
        assert_eq!(names.len(), 2, "{listed}");
        assert_eq!(
            api.get(&format!("/vm/{vm}/fs/readdir?path={}", at("a/b")))
                .json(),
            json!([])
        );
        // tar: ustar, relative names, no entry of the root.
        let tar = api.get(&cp("a", "&mode=tar"));
        assert_eq!(tar.status, 200);
        assert_eq!(&tar.body[257..262], b"ustar");
        let entries = tar
            .body
            .chunks(512)
            .filter(|block| block.len() == 512 && &block[257..262] == b"ustar");
        let names: Vec<String> = entries
            .map(|block| {
                String::from_utf8_lossy(&block[..100])
                    .trim_end_matches('\0')
                    .to_owned()
            })
            .collect();
        assert!(
            names.contains(&"file".to_owned()) && names.contains(&"b/".to_owned()),
            "{names:?}"
        );
        assert!(
            names
                .iter()
                .all(|name| !name.starts_with(['/', '.']) && !name.is_empty()),
            "{names:?}"
        );
        assert_eq!(
            api.send_bytes("POST", &cp("copy", "&mode=tar"), Some(&tar.body))
                .expect("an answer")
                .status,
            200
        );
        assert_eq!(api.get(&cp("copy/file", "&mode=binary")).body, bytes);
        for (method, path, status, sentence) in [
            ("GET", cp("none", ""), 404, ""),
            (
                "GET",
                cp("a", "&mode=binary"),
                400,
                "must specify a file not a directory",
            ),
            (
                "GET",
                cp("a/file", "&mode=cp-v9-binary"),
                400,
                "invalid mode: cp-v9-binary",
            ),
            (
                "GET",
                format!("/vm/{vm}/fs/stat?path={}", at("none")),
                404,
                "",
            ),
            (
                "DELETE",
                format!("/vm/{vm}/fs/remove?path={}", at("none")),
                404,
                "",
            ),
            (
                "DELETE",
                format!("/vm/{vm}/fs/remove?path={}", at("a")),
                400,
                "",
            ),
        ] {
            assert_error(&api.send(method, &path, None), status, sentence);
        }
        // A refused upload is read to its end: a client that is still sending sees the error.
        let large = vec![7; 4 << 20];
        let refused = api.send_bytes("POST", &cp("x", "&mode=cp-v9-tar"), Some(&large));
        assert_error(&refused.expect("an answer"), 400, "invalid mode: cp-v9-tar");
        let remove = |path: &str| {
            api.delete(&format!(
                "/vm/{vm}/fs/remove?path={}&recursive=true",
                at(path)
            ))
        };
        assert_eq!(remove("a").status, 200);
        assert_error(&remove("a"), 404, "");
    });
}

#[test]
fn changes_of_files_are_server_sent_events() {
    with_agent(|harness, api, vm| {
        let dir = harness.dir.path().join("watched");
        std::fs::create_dir(&dir).expect("a directory");
        let path = format!(
            "/vm/{vm}/fs/watch?paths={}&events=create&one_shot=true&timeout=30s",
            dir.display()
        );
        let answer = std::thread::scope(|scope| {
            let watching = scope.spawn(|| api.get(&path));
            for number in 0..200 {
                std::thread::sleep(Duration::from_millis(50));
                std::fs::write(dir.join(number.to_string()), "").expect("written");
                if watching.is_finished() {
                    break;
                }
            }
            watching.join().expect("an answer")
        });
        assert_eq!(answer.status, 200);
        assert!(
            answer
                .header("content-type")
                .is_some_and(|it| it.starts_with("text/event-stream"))
        );
        let text = answer.text();
        assert!(
            text.contains("id: 1\n") && text.contains("event: watch\n"),
            "{text}"
        );
        let data = text
            .lines()
            .find_map(|line| line.strip_prefix("data: "))
            .expect("data");
        let event: Value = serde_json::from_str(data).expect("JSON");
        assert_eq!(
            (
                event["type"].clone(),
                event["isDir"].clone(),
                event["id"].clone()
            ),
            (json!("create"), json!(false), json!(1))
        );
    });
}

/// A connection that was upgraded to WebSocket.
fn upgrade(api: &Api, path: &str, headers: &str) -> (String, std::os::unix::net::UnixStream) {
    let mut stream = api.connect();
    let head = format!(
        "GET {path} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Extensions: permessage-deflate\r\n{headers}\r\n"
    );
    stream.write_all(head.as_bytes()).expect("sent");
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        assert_eq!(
            stream.read(&mut byte).expect("a byte"),
            1,
            "{}",
            String::from_utf8_lossy(&head)
        );
        head.push(byte[0]);
    }
    (String::from_utf8_lossy(&head).to_lowercase(), stream)
}

/// A binary message of a client, with a mask of zeros.
fn message(payload: &[u8]) -> Vec<u8> {
    let length = u8::try_from(payload.len()).expect("a short message");
    [&[0x82, 0x80 | length, 0, 0, 0, 0], payload].concat()
}

fn receive(stream: &mut impl Read) -> Vec<u8> {
    let mut head = [0; 2];
    stream.read_exact(&mut head).expect("a message");
    assert_eq!(head[0], 0x82, "binary, and not compressed");
    let length = match head[1] {
        126 => {
            let mut long = [0; 2];
            stream.read_exact(&mut long).expect("a length");
            usize::from(u16::from_be_bytes(long))
        }
        length => usize::from(length),
    };
    let mut payload = vec![0; length];
    stream.read_exact(&mut payload).expect("a payload");
    payload
}

#[test]
fn a_connection_into_the_guest_is_a_websocket_without_framing() {
    with_agent(|_, api, vm| {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a connection");
            let mut buffer = [0; 4];
            stream.read_exact(&mut buffer).expect("data");
            buffer.reverse();
            stream.write_all(&buffer).expect("sent");
        });
        let path = format!("/vm/{vm}/forward");
        let to = |port| {
            format!(
                "X-Inlets-Client-ID: host\r\nX-Inlets-Mode: local\r\nX-Inlets-Upstream: 127.0.0.1:{port}\r\n"
            )
        };
        let (head, mut stream) = upgrade(api, &path, &to(port));
        assert!(head.starts_with("http/1.1 101"), "{head}");
        assert!(
            head.contains("sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo="),
            "{head}"
        );
        assert!(
            !head.contains("sec-websocket-protocol") && !head.contains("sec-websocket-extensions")
        );
        stream.write_all(&message(b"abcd")).expect("sent");
        assert_eq!(receive(&mut stream), b"dcba");
        // Nobody listens: an answer before the upgrade.
        let (head, _) = upgrade(api, &path, &to(1));
        assert!(head.starts_with("http/1.1 502"), "{head}");
    });
}

#[test]
fn a_websocket_has_the_subprotocol_that_is_offered_and_no_page_of_another_origin() {
    with_agent(|_, api, vm| {
        let path = format!("/vm/{vm}/shell?uid=0&shell=/bin/sh");
        let selected = "sec-websocket-protocol: v1.slice\r\n";
        for (headers, expected, is_selected) in [
            ("Sec-WebSocket-Protocol: chat\r\n", "101", false),
            ("Sec-WebSocket-Protocol: chat, v1.slice\r\n", "101", true),
            ("Origin: http://localhost\r\n", "101", false),
            ("Origin: http://localhost:80\r\n", "101", false),
            ("Origin: http://localhost.example\r\n", "403", false),
            (
                "Origin: null\r\nSec-WebSocket-Protocol: v1.slice\r\n",
                "403",
                false,
            ),
        ] {
            let (head, _) = upgrade(api, &path, headers);
            let start = format!("http/1.1 {expected}");
            assert!(head.starts_with(&start), "{headers}: {head}");
            assert_eq!(head.contains(selected), is_selected, "{headers}: {head}");
            let others = head.replace(selected, "");
            assert!(!others.contains("sec-websocket-protocol"), "{head}");
        }
    });
}

#[test]
fn a_shell_is_a_websocket_with_one_frame_in_each_message() {
    with_agent(|_, api, vm| {
        let (head, mut stream) = upgrade(api, &format!("/vm/{vm}/shell?uid=0&shell=/bin/sh"), "");
        assert!(head.starts_with("http/1.1 101"), "{head}");
        assert!(!head.contains("sec-websocket-protocol"), "{head}");
        let frame = |kind: u8, payload: &[u8]| {
            let length = u32::try_from(payload.len()).expect("a short frame");
            message(&[&[kind], &length.to_be_bytes()[..], payload].concat())
        };
        stream
            .write_all(&frame(2, &[0, 0, 0, 90, 0, 0, 0, 30]))
            .expect("sent");
        stream.write_all(&frame(4, b"")).expect("sent");
        stream
            .write_all(&frame(1, b"stty size; echo $((40 + 2)) $TERM; exit\n"))
            .expect("sent");
        let mut text = String::new();
        loop {
            let payload = receive(&mut stream);
            let length = u32::from_be_bytes([payload[1], payload[2], payload[3], payload[4]]);
            assert_eq!(payload.len(), 5 + length as usize, "one frame in a message");
            match payload[0] {
                1 => text.push_str(&String::from_utf8_lossy(&payload[5..])),
                // The exit status is one of slicectl; clients ignore what they do not know.
                kind if kind >= 0x80 => {}
                kind => {
                    assert!([3, 5].contains(&kind), "{kind}");
                    break;
                }
            }
        }
        assert!(
            text.contains("30 90") && text.contains("42 xterm-256color"),
            "{text}"
        );
    });
}

#[test]
fn the_figures_of_guests_are_an_array() {
    with_agent(|_, api, vm| {
        let all = api.get("/nodes/stats").json();
        let one = api.get(&format!("/node/{vm}/stats")).json();
        for stats in [&all, &one] {
            let stats = &stats.as_array().expect("a list")[0];
            assert_eq!(stats["hostname"], vm);
            assert!(stats["created_at"].is_string() && stats["ip"].is_string());
            let snapshot = &stats["snapshot"];
            for field in [
                "totalMemory",
                "memoryAvailable",
                "loadAvg15",
                "diskIOInflight",
                "openFiles",
                "diskSpaceFree",
            ] {
                assert!(snapshot[field].is_number(), "{field}: {snapshot}");
            }
            assert_eq!(snapshot["hostname"], vm);
            assert!(snapshot["uptime"].is_string());
        }
    });
}
