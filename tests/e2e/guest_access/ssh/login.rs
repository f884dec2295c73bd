//! Who may log in, and how many may try.
//! Out of scope: what they then do.

use std::io::Read;
use std::net::TcpStream;
use std::process::Command;
use std::time::{Duration, Instant};

use super::super::text;
use super::{PORT, ROOT, pause, with_ssh};

#[test]
fn only_a_key_of_the_settings_logs_in() {
    with_ssh(|ssh| {
        ssh.keygen("mallory");
        let attempt = |words: &[&str], key: &str| {
            let mut command = Command::new("ssh");
            command
                .args(words)
                .args(ssh.options(key))
                .args([&format!("{ROOT}@127.0.0.1"), "echo in"])
                .env_remove("SSH_AUTH_SOCK");
            command.output().expect("ssh")
        };
        assert_eq!(text(&attempt(&[], "alice").stdout), "in\n");
        for (words, key) in [
            (&[][..], "mallory"),
            (&["-o", "PubkeyAuthentication=no"], "alice"),
            (&["-o", "PreferredAuthentications=password"], "alice"),
            (
                &["-o", "PreferredAuthentications=keyboard-interactive"],
                "alice",
            ),
        ] {
            let output = attempt(words, key);
            assert_eq!(output.status.code(), Some(255), "{words:?}");
            assert_eq!(text(&output.stdout), "");
            let error = text(&output.stderr);
            // The only method that is offered, and nothing about VMs.
            assert!(error.contains("Permission denied (publickey)"), "{error}");
            assert!(!error.replace(ROOT, "").contains("box"), "{error}");
        }
        let log = ssh.harness.log();
        assert!(log.contains("SSH login failed"), "{log}");
        assert!(
            log.contains("guest access over SSH") && log.contains("alice@test"),
            "{log}"
        );
    });
}

#[test]
fn rsa_and_ecdsa_keys_log_in_and_a_key_that_is_removed_does_not() {
    with_ssh(|ssh| {
        for (name, kind, bits) in [("rsa", "rsa", "3072"), ("ecdsa", "ecdsa", "384")] {
            let status = Command::new("ssh-keygen")
                .args(["-q", "-t", kind, "-b", bits, "-N", "", "-f"])
                .arg(ssh.path(name))
                .status();
            assert!(status.expect("ssh-keygen").success());
        }
        let attempt = |key: &str| {
            let mut command = Command::new("ssh");
            command
                .args(ssh.options(key))
                .args([&format!("{ROOT}@127.0.0.1"), "echo in"]);
            let output = command.output().expect("ssh");
            text(&output.stdout) == "in\n"
        };
        ssh.configure("{}", &["rsa", "ecdsa"]);
        ssh.harness
            .until("the key is known", || attempt("rsa").then_some(()));
        assert!(attempt("ecdsa") && !attempt("alice"));
        // Sessions that exist go on.
        ssh.configure("{}", &["alice"]);
        ssh.harness
            .until("the key is known", || attempt("alice").then_some(()));
        let mut child = ssh
            .ssh(&[], ROOT, &["sleep 3; echo still"])
            .spawn()
            .expect("ssh");
        pause(1000);
        ssh.configure("{}", &[]);
        ssh.harness
            .until("the key is removed", || (!attempt("alice")).then_some(()));
        let mut output = String::new();
        let mut stdout = child.stdout.take().expect("a pipe");
        stdout.read_to_string(&mut output).expect("its output");
        assert_eq!(output, "still\n");
        child.wait().expect("waited");
    });
}

#[test]
fn connections_that_do_not_log_in_are_closed_and_do_not_keep_others_out() {
    with_ssh(|ssh| {
        let start = Instant::now();
        let mut strangers: Vec<TcpStream> = (0..100)
            .map(|_| TcpStream::connect(("127.0.0.1", PORT)).expect("a connection"))
            .collect();
        // The rate of one address is limited.
        pause(1500);
        let output = ssh.run("echo in");
        assert_eq!(text(&output.stdout), "in\n", "{output:?}");
        for stream in &mut strangers {
            let timeout = Duration::from_secs(25).saturating_sub(start.elapsed());
            let timeout = timeout.max(Duration::from_millis(100));
            stream.set_read_timeout(Some(timeout)).expect("a timeout");
            let mut all = Vec::new();
            // Closed, with or without the banner of the server.
            let read = stream.read_to_end(&mut all);
            let is_reset =
                |error: &std::io::Error| error.kind() == std::io::ErrorKind::ConnectionReset;
            assert!(
                read.as_ref().is_ok() || read.as_ref().is_err_and(is_reset),
                "{read:?}"
            );
        }
        assert!(
            start.elapsed() > Duration::from_secs(15),
            "the last had their time"
        );
        let output = ssh.run("echo in");
        assert_eq!(text(&output.stdout), "in\n", "{output:?}");
    });
}
