//! `slicectl secret` and `/v1/secrets`: what is refused, who is recorded, and that no value is found anywhere.
//! Out of scope: guests (`provision`).

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;
use std::{fs, thread};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use test_support::harness::{Harness, with_daemon};
use test_support::programs;

/// A value, which is unlikely to be found by chance.
pub const VALUE: &str = "s3cr3t-qX7-value";

/// `slicectl secret …` with a value on standard input: exit status and both outputs.
pub fn secret(harness: &Harness, words: &str, value: &[u8]) -> (Option<i32>, String) {
    let mut child = std::process::Command::new(programs::built("slicectl"))
        .arg("secret")
        .args(words.split(' '))
        .env("SLICE_SOCKET", harness.run.join("sliced.sock"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("slicectl");
    // A command that does not read it closes the pipe.
    let _ = child.stdin.take().expect("a pipe").write_all(value);
    let output = child.wait_with_output().expect("slicectl");
    let text = [output.stdout, output.stderr].concat();
    (
        output.status.code(),
        String::from_utf8(text).expect("UTF-8"),
    )
}

/// The status and the body of a response of the daemon.
fn request(harness: &Harness, method: &str, path: &str, body: &str) -> (u16, String) {
    let mut stream = UnixStream::connect(harness.run.join("sliced.sock")).expect("a connection");
    let timeout = Some(Duration::from_secs(20));
    stream.set_read_timeout(timeout).expect("a timeout");
    let length = body.len();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n"
    );
    let _ = stream.write_all(&[head.as_bytes(), body.as_bytes()].concat());
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    let status = answer.split(' ').nth(1).and_then(|word| word.parse().ok());
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    (status.unwrap_or(0), body.to_owned())
}

#[test]
fn secrets_are_created_listed_changed_and_deleted() {
    with_daemon(|mut harness| {
        let run = |words: &str, value: &[u8]| secret(&harness, words, value);
        let created = run(
            "create token --uid 1000 --permissions 0440",
            VALUE.as_bytes(),
        );
        assert_eq!(created, (Some(0), "secret/token created\n".to_owned()));
        let path = harness.write("file", "from a file\n");
        let created = run(&format!("create other --from-file {path}"), b"");
        assert_eq!(created.0, Some(0), "{}", created.1);
        let table = run("list", b"").1;
        assert!(
            table.contains("token") && table.contains("1000:0"),
            "{table}"
        );
        let list: serde_json::Value =
            serde_json::from_str(&run("list -o json", b"").1).expect("JSON");
        assert_eq!(list[0]["name"], "other");
        assert_eq!(list[0]["size"], 12);
        assert_eq!(list[1]["permissions"], "0440");
        assert_eq!(list[1]["modified_at"], list[1]["mod_time"]);
        for (words, value, status, why) in [
            ("create token", "x", 1, "already exists"),
            ("create ../x", "x", 2, "invalid name"),
            ("create .x", "x", 2, "invalid name"),
            ("create a/b", "x", 2, "invalid name"),
            ("create x --permissions 9", "x", 2, "invalid permissions"),
            ("create x --from-file /nowhere", "", 1, "cannot read"),
            ("update absent", "x", 1, "not found"),
            ("delete absent", "", 1, "not found"),
        ] {
            let (found, text) = run(words, value.as_bytes());
            assert_eq!(found, Some(status), "{words}: {text}");
            assert!(text.contains(why), "{words}: {text}");
        }
        let large = vec![b'x'; (1 << 20) + 1];
        let (status, text) = run("create large", &large);
        assert_eq!(status, Some(1));
        assert!(text.contains("more than 1048576 bytes"), "{text}");
        assert_eq!(run("create largest", &large[1..]).0, Some(0));
        let updated = run("update token --gid 7", b"");
        assert_eq!(updated.0, Some(0), "{}", updated.1);
        assert_eq!(run("update token", b"changed").0, Some(0));
        harness.kill();
        harness.start();
        let run = |words: &str| secret(&harness, words, b"");
        let table = run("list").1;
        assert!(
            table.contains("1000:7") && table.contains("0440"),
            "{table}"
        );
        assert_eq!(run("delete token other").0, Some(0));
        assert!(!run("list").1.contains("token"));
        let messages = harness.messages("host", "SecretDeleted");
        assert!(
            messages[0].ends_with("deleted by root (uid 0)"),
            "{messages:?}"
        );
    });
}

#[test]
fn requests_have_the_statuses_of_the_published_api_and_errors_no_value() {
    with_daemon(|harness| {
        let data = STANDARD.encode(VALUE);
        let body = |name: &str, data: &str| format!("{{\"name\":\"{name}\",\"data\":\"{data}\"}}");
        let wrong_type = format!("{{\"name\":\"b\",\"uid\":\"{VALUE}\"}}");
        let bad_mode = format!("{{\"name\":\"b\",\"permissions\":\"{VALUE}\"}}");
        let large = STANDARD.encode(vec![0; (1 << 20) + 1]);
        let huge = "x".repeat(2 << 20);
        let create = "/v1/secrets";
        for (method, path, body, status) in [
            ("GET", create, String::new(), 200),
            ("POST", create, body("a", &data), 201),
            ("POST", create, body("a", &data), 409),
            ("POST", create, body("b", VALUE), 400),
            ("POST", create, body("", &data), 400),
            ("POST", create, body("../b", &data), 400),
            ("POST", create, body("b\\u0000", &data), 400),
            ("POST", create, wrong_type, 400),
            ("POST", create, bad_mode, 400),
            ("POST", create, VALUE.to_owned(), 400),
            ("POST", create, String::new(), 400),
            ("POST", create, body("b", &large), 400),
            ("POST", create, body("b", &huge), 413),
            (
                "POST",
                create,
                "{\"name\":\"c\",\"more\":1}".to_owned(),
                201,
            ),
            ("PATCH", "/v1/secrets/a", "{\"uid\":1}".to_owned(), 200),
            ("PATCH", "/v1/secrets/absent", "{}".to_owned(), 404),
            ("PATCH", "/v1/secrets/..%2fdb", "{}".to_owned(), 400),
            ("PUT", "/v1/secrets/a", "{}".to_owned(), 405),
            ("DELETE", "/v1/secrets/absent", String::new(), 404),
            (
                "DELETE",
                "/v1/secrets/%2e%2e%2finstance",
                String::new(),
                400,
            ),
            ("DELETE", "/v1/secrets/a", String::new(), 200),
            ("DELETE", "/v1/secrets/a", String::new(), 404),
        ] {
            let (found, answer) = request(&harness, method, path, &body);
            assert_eq!(found, status, "{method} {path}: {answer}");
            for secret in [VALUE, data.as_str()] {
                assert!(!answer.contains(secret), "{method} {path}: {answer}");
            }
        }
        assert!(
            harness.state().join("db").exists(),
            "nothing else was deleted"
        );
    });
}

/// Fails if a value is found in a text.
fn assert_free(what: &str, text: &[u8]) {
    let encoded = STANDARD.encode(VALUE);
    for needle in [VALUE.as_bytes(), encoded.trim_end_matches('=').as_bytes()] {
        let found = text.windows(needle.len()).any(|part| part == needle);
        assert!(!found, "{what} contains the value");
    }
}

/// Fails if a value is found in what the daemon has printed, answered and stored, except for what only root can read in its directory of secrets.
pub fn assert_no_value(harness: &Harness) {
    for words in [
        "get vms -o json",
        "get vms -o yaml",
        "get hostgroups -o json",
        "get hostgroups -o manifest",
        "describe hostgroup box",
        "describe vm box-1",
        "events -o json",
        "secret list -o json",
        "doctor",
    ] {
        let output = harness.try_ctl(words);
        assert_free(words, &[output.stdout, output.stderr].concat());
    }
    assert_free("the log", harness.log().as_bytes());
    let secrets = harness.state().join("secrets");
    let mode = |path: &Path| fs::metadata(path).map(|found| found.permissions().mode() & 0o777);
    assert_eq!(mode(&secrets).expect("a directory"), 0o700);
    for directory in [harness.state(), harness.run.clone()] {
        for file in files(&directory) {
            match file.starts_with(&secrets) {
                true => assert_eq!(mode(&file).expect("a file"), 0o600, "{}", file.display()),
                false => assert_free(
                    &file.display().to_string(),
                    &fs::read(&file).unwrap_or_default(),
                ),
            }
        }
    }
}

/// All regular files below a directory.
fn files(directory: &Path) -> Vec<std::path::PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let found = entries.flat_map(|entry| {
        let kind = entry.file_type().expect("a type");
        match (kind.is_dir(), kind.is_file()) {
            (true, _) => files(&entry.path()),
            (_, true) => vec![entry.path()],
            _ => Vec::new(),
        }
    });
    found.collect()
}

/// Reads the command lines of all processes while a test runs. Fails at its end if one contained a value.
pub fn while_command_lines_are_read(test: impl FnOnce()) {
    use std::sync::atomic::{AtomicBool, Ordering};
    /// Ends the reader also if the test fails.
    struct End<'e>(&'e AtomicBool);
    impl Drop for End<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let ended = AtomicBool::new(false);
    thread::scope(|scope| {
        let end = End(&ended);
        let reader = scope.spawn(|| {
            while !ended.load(Ordering::Relaxed) {
                for entry in fs::read_dir("/proc").expect("processes").flatten() {
                    let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
                    assert_free("a command line", &line);
                }
                thread::sleep(Duration::from_millis(2));
            }
        });
        test();
        drop(end);
        reader.join().expect("no value in a command line");
    });
}
