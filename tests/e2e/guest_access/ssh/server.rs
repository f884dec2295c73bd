//! The host key, changes of the settings, the end of the daemon.
//! Out of scope: keys of users.

use std::fs;
use std::net::TcpStream;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::Command;

use test_support::harness::{Harness, empty};

use super::super::text;
use super::{PORT, ROOT, Ssh, with_agent, with_ssh};

fn is_open(port: u16) -> bool {
    TcpStream::connect(("127.0.0.1", port)).is_ok()
}

#[test]
fn there_is_no_server_unless_it_is_configured_and_its_port_follows_the_settings() {
    with_agent(|host| {
        let ssh = Ssh {
            harness: &host.harness,
        };
        assert!(!is_open(PORT));
        assert!(!host.harness.state().join("ssh_host_ed25519_key").exists());
        ssh.keygen("alice");
        ssh.configure("{}", &["alice"]);
        ssh.listens();
        ssh.configure("{port: 2223}", &["alice"]);
        host.harness
            .until("the new port", || is_open(2223).then_some(()));
        assert!(!is_open(PORT));
        // An invalid file changes nothing.
        ssh.save_settings("ssh: {port: x}\nssh_keys: []\n");
        host.harness.until("it is reported", || {
            host.harness
                .log()
                .contains("the settings file is invalid")
                .then_some(())
        });
        assert!(is_open(2223));
        ssh.save_settings("# no server\n");
        host.harness
            .until("it is off", || (!is_open(2223)).then_some(()));
        let events = host.harness.messages("host", "SshServerChanged").join("\n");
        assert!(
            events.contains("SSH server listens on 127.0.0.1:2223, host key SHA256:"),
            "{events}"
        );
        assert!(events.contains("SSH server no longer listens"), "{events}");
    });
}

#[test]
fn the_host_key_is_kept_and_a_damaged_one_is_not_replaced() {
    with_agent(|host| {
        let ssh = Ssh {
            harness: &host.harness,
        };
        ssh.keygen("alice");
        ssh.configure("{}", &["alice"]);
        ssh.listens();
        let path = host.harness.state().join("ssh_host_ed25519_key");
        assert_eq!(fs::metadata(&path).expect("a key").mode() & 0o7777, 0o600);
        // The host key is remembered by the client, which does not accept another one.
        assert_eq!(text(&ssh.run("echo in").stdout), "in\n");
        let before = fs::read(&path).expect("a key");
        fs::write(&path, &before[..100]).expect("damaged");
        ssh.configure("{port: 2223}", &["alice"]);
        let failed = host.harness.until("it is reported", || {
            host.harness.messages("host", "SshServerFailed").pop()
        });
        assert!(failed.contains("cannot use the host key"), "{failed}");
        assert!(failed.contains("not a private key"), "{failed}");
        assert!(!is_open(PORT) && !is_open(2223));
        assert_eq!(fs::read(&path).expect("a key"), before[..100]);
        // It is tried again.
        fs::write(&path, &before).expect("repaired");
        ssh.configure("{}", &["alice"]);
        ssh.listens();
        assert_eq!(text(&ssh.run("echo in").stdout), "in\n");
        for (name, words, expected) in [
            (
                "rsa",
                &["-t", "rsa", "-N", ""],
                "type ssh-rsa, expected Ed25519",
            ),
            (
                "locked",
                &["-t", "ed25519", "-N", "secret"],
                "has a passphrase",
            ),
        ] {
            let mut command = Command::new("ssh-keygen");
            command.arg("-q").args(words).arg("-f").arg(ssh.path(name));
            assert!(command.status().expect("ssh-keygen").success());
            let host_key = format!("{{host_key: {}}}", ssh.path(name).display());
            ssh.configure(&host_key, &["alice"]);
            host.harness.until("it is reported", || {
                let messages = host.harness.messages("host", "SshServerFailed");
                messages.iter().any(|m| m.contains(expected)).then_some(())
            });
        }
        fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).expect("changed");
        ssh.configure("{port: 2223}", &["alice"]);
        host.harness.until("it is reported", || {
            let messages = host.harness.messages("host", "SshServerFailed");
            messages
                .iter()
                .any(|m| m.contains("others may access it"))
                .then_some(())
        });
    });
}

#[test]
fn sessions_end_with_the_daemon() {
    with_ssh(|ssh| {
        let mut child = ssh
            .ssh(&[], ROOT, &["echo in; exec sleep 600"])
            .spawn()
            .expect("ssh");
        let mut line = [0; 3];
        std::io::Read::read_exact(child.stdout.as_mut().expect("a pipe"), &mut line).unwrap();
        let pid = ssh.harness.pid();
        test_support::harness::signal(pid, rustix::process::Signal::KILL);
        assert_eq!(child.wait().expect("its status").code(), Some(255));
    });
}

#[test]
fn the_host_key_outlives_the_daemon() {
    empty(|mut harness| {
        let list = |ssh: &Ssh| {
            let output = ssh.ssh(&["-T"], "alice", &[]).output().expect("ssh");
            assert_eq!(text(&output.stdout), "There are no VMs.\n", "{output:?}");
        };
        let ssh = Ssh { harness: &harness };
        ssh.keygen("alice");
        ssh.configure("{}", &["alice"]);
        harness.start();
        for end in [Harness::kill, |harness: &mut Harness| {
            harness.stop();
        }] {
            let ssh = Ssh { harness: &harness };
            ssh.listens();
            // The client has stored the key, and would not accept another one.
            list(&ssh);
            end(&mut harness);
            harness.start();
        }
        let ssh = Ssh { harness: &harness };
        ssh.listens();
        list(&ssh);
    });
}
