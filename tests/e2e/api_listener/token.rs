//! The token: required, created, rotated, damaged, and never shown.
//! Out of scope: the check of a header (`src/wire/auth.rs`).

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};

use test_support::harness::with_daemon;

use super::{PORT, bearer, configure, connect, is_open, listens, options, reported, request, text};

/// Replaces a file, as `mv` does.
fn replace(path: &std::path::Path, content: &str, mode: u32) {
    let new = path.with_extension("new");
    fs::write(&new, content).expect("written");
    fs::set_permissions(&new, PermissionsExt::from_mode(mode)).expect("changed");
    fs::rename(&new, path).expect("renamed");
}

#[test]
fn tcp_requires_the_token_for_everything_but_its_health_and_the_files_of_the_page() {
    with_daemon(|harness| {
        configure(&harness, "api: {}\n");
        listens(&harness, PORT);
        let valid = bearer(&harness);
        for (line, authorization, expected) in [
            ("GET /v1/version", valid.as_str(), 200),
            ("GET /v1/version", "", 401),
            ("GET /v1/version", "Bearer ", 401),
            (
                "GET /v1/version",
                "Bearer 0123456789abcdef0123456789abcdef",
                401,
            ),
            ("GET /v1/version", &valid[..valid.len() - 1], 401),
            ("GET /nowhere", "", 401),
            ("GET /nowhere", &valid, 404),
            ("POST /v1/gc", "", 401),
            ("GET /v1/vms/a/agent/health", "", 401),
            ("GET /healthz", "", 200),
            ("HEAD /healthz", "", 200),
            ("GET /healthz", "Bearer wrong", 200),
            ("GET /", "", 200),
            ("HEAD /ui/app.js", "Bearer wrong", 200),
            ("GET /ui/other", "", 401),
            ("GET /ui/other", &valid, 404),
            ("POST /", "", 401),
            ("POST /", &valid, 405),
            ("DELETE /healthz", "", 401),
            ("DELETE /healthz", &valid, 405),
        ] {
            let (status, answer) = request(PORT, line, authorization);
            assert_eq!(status, expected, "{line}: {answer}");
            if status == 401 {
                let head = answer.to_lowercase();
                assert!(head.contains("www-authenticate: bearer"), "{answer}");
                assert!(answer.contains("{\"error\":"), "{answer}");
                // Each API has its own form of an error.
                let has_code = answer.contains("\"code\":\"unauthorized\"");
                assert_eq!(has_code, !line.contains("/v1/"), "{line}: {answer}");
            }
        }
        let (_, health) = request(PORT, "GET /healthz", "");
        assert!(
            health.to_lowercase().contains("content-type: text/plain"),
            "{health}"
        );
        assert!(health.ends_with("\r\n\r\nOK"), "{health}");
        // Guesses are limited, and whoever has the token is not.
        let statuses: Vec<u16> = (0..40)
            .map(|_| request(PORT, "GET /nowhere", "Bearer guess").0)
            .collect();
        assert_eq!(statuses[39], 429, "{statuses:?}");
        let (_, limited) = request(PORT, "GET /nowhere", "Bearer guess");
        assert!(
            limited.contains("\"code\":\"too_many_requests\"")
                && limited.to_lowercase().contains("retry-after: 1"),
            "{limited}"
        );
        assert_eq!(request(PORT, "GET /v1/version", &valid).0, 200);
        let lines = harness.log();
        let lines = lines.matches("without a valid token").count();
        assert!((1..20).contains(&lines), "{lines}");
    });
}

#[test]
fn a_token_is_rotated_without_a_restart_and_ends_what_the_old_one_has_opened() {
    with_daemon(|harness| {
        configure(&harness, "api: {}\n");
        listens(&harness, PORT);
        let path = harness.state().join("api/token");
        let old = bearer(&harness);
        let mut stream = connect(PORT);
        let watch = text("GET /v1/events?follow=true", &old);
        stream.write_all(watch.as_bytes()).expect("sent");
        let mut head = [0; 12];
        stream.read_exact(&mut head).expect("a head");
        assert_eq!(&head, b"HTTP/1.1 200");
        let new = "A_new-token.of~32+characters/0123456789=";
        replace(&path, &format!("{new}\n"), 0o600);
        harness.until("the new token", || {
            let (status, _) = request(PORT, "GET /v1/version", &format!("Bearer {new}"));
            (status == 200).then_some(())
        });
        assert_eq!(request(PORT, "GET /v1/version", &old).0, 401);
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest);
        reported(&harness, "ApiListenerChanged", "API has another token");
        // A file that has no token for root alone is never "no token".
        for (content, mode, why) in [
            ("", 0o600, "it is empty"),
            ("short", 0o600, "it has 5 characters"),
            (
                "a b c d e f g h i j k l m",
                0o600,
                "it has characters other than",
            ),
            (new, 0o644, "others may access it (mode 0644)"),
        ] {
            replace(&path, content, mode);
            reported(&harness, "ApiListenerFailed", why);
            assert!(!is_open(PORT), "{why}");
        }
        // Whoever owns it may change it.
        let foreign = path.with_extension("foreign");
        fs::write(&foreign, new).expect("written");
        fs::set_permissions(&foreign, PermissionsExt::from_mode(0o600)).expect("changed");
        chown(&foreign, Some(65534), None).expect("another owner");
        fs::rename(&foreign, &path).expect("renamed");
        reported(&harness, "ApiListenerFailed", "it belongs to user 65534");
        assert!(!is_open(PORT));
        replace(&path, new, 0o600);
        listens(&harness, PORT);
        // A file that was removed is created again.
        fs::remove_file(&path).expect("removed");
        harness.until("another token", || {
            let text = fs::read_to_string(&path).ok()?;
            (text.trim().len() == 43).then_some(())
        });
        let next = bearer(&harness);
        harness.until("it is valid", || {
            (request(PORT, "GET /v1/version", &next).0 == 200).then_some(())
        });
        assert_eq!(
            request(PORT, "GET /v1/version", &format!("Bearer {new}")).0,
            401
        );
        // Another file.
        let other = harness.dir.path().join("other-token");
        let settings = format!("api: {{auth: {{token_file: {}}}}}\n", other.display());
        configure(&harness, &settings);
        harness.until("the other file", || other.exists().then_some(()));
        harness.until("the token before is invalid", || {
            (request(PORT, "GET /v1/version", &next).0 == 401).then_some(())
        });
    });
}

#[test]
fn a_restart_keeps_the_token_and_it_is_shown_nowhere() {
    with_daemon(|mut harness| {
        configure(&harness, "api: {}\n");
        listens(&harness, PORT);
        let path = harness.state().join("api/token");
        let meta = fs::metadata(&path).expect("a token");
        assert_eq!((meta.mode() & 0o7777, meta.uid()), (0o600, 0));
        let before = bearer(&harness);
        let options = options(&harness);
        harness.ctl(&format!("{options} get vms"));
        harness.refused(&format!("{options} get vm/none"), 1);
        request(PORT, "GET /nowhere", &before);
        request(PORT, "GET /v1/version", &format!("{before}x"));
        harness.restart();
        listens(&harness, PORT);
        assert_eq!(bearer(&harness), before);
        assert_eq!(request(PORT, "GET /v1/version", &before).0, 200);
        let token = before.trim_start_matches("Bearer ");
        let arguments = fs::read(format!("/proc/{}/cmdline", harness.pid())).expect("arguments");
        for (place, text) in [
            ("the log", harness.log()),
            ("events", harness.ctl("events -o json")),
            ("version", harness.ctl("version -o json")),
            (
                "doctor",
                String::from_utf8_lossy(&harness.try_ctl("doctor -o json").stdout).into(),
            ),
            (
                "the command line",
                String::from_utf8_lossy(&arguments).into(),
            ),
            ("a response", request(PORT, "GET /v1/version", &before).1),
            ("an error", request(PORT, "GET /nowhere", &before).1),
            (
                "a refusal",
                request(PORT, "GET /nowhere", &format!("{before}x")).1,
            ),
        ] {
            assert!(!text.is_empty() && !text.contains(token), "{place}: {text}");
        }
    });
}
