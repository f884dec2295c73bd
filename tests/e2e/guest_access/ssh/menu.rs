//! The menu and the console.
//! Out of scope: what the console of a real VMM shows.

use test_support::screen::Session;

use super::super::text;
use super::{exchange, with_ssh};

#[test]
fn a_client_that_names_no_vm_gets_a_list_or_a_menu() {
    with_ssh(|ssh| {
        let output = ssh.ssh(&["-T"], "alice", &[]).output().expect("ssh");
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert_eq!(text(&output.stdout), "   1  box-1  Running\n");
        assert_eq!(
            text(&output.stderr),
            "vm/alice not found; log in as VM, USER+VM or console+VM\n"
        );
        let output = ssh.ssh(&[], "alice", &["true"]).output().expect("ssh");
        assert_eq!(output.status.code(), Some(255), "{output:?}");
        let mut session = Session::start(80, &mut ssh.ssh(&["-tt"], "alice", &[]));
        session.wait_for("1  box-1  Running");
        session.wait_for("q to quit: ");
        session.type_keys("8\r");
        session.wait_for("There is no such VM.");
        session.wait_for("q to quit: ");
        session.type_keys("2\u{7f}1\r");
        session.wait_for("box-1: (c)onnect");
        session.type_keys("c\r");
        session.type_keys("echo shell-$((1 + 1))\r");
        session.wait_for("shell-2");
        session.type_keys("exit\r");
        session.wait_for("(b)ack: ");
        session.type_keys("p\r");
        session.wait_for("box-1: pause requested");
        ssh.harness.until("it is paused", || {
            let vm = ssh.harness.get("vm box-1");
            vm["power"]
                .as_str()?
                .eq_ignore_ascii_case("paused")
                .then_some(())
        });
        session.wait_for("(b)ack: ");
        session.type_keys("b\r");
        session.wait_for("box-1  Paused");
        session.type_keys("box-1\rr\r");
        session.wait_for("box-1: resume requested");
        session.type_keys("b\rq\r");
        assert_eq!(session.end(), (Some(0), true));
        let events = ssh.harness.messages("vm/box-1", "Power").join("\n");
        assert!(
            events.contains("by SSH key alice@test (SHA256:"),
            "{events}"
        );
    });
}

#[test]
fn the_console_is_that_of_the_vm() {
    with_ssh(|ssh| {
        let mut session = Session::start(80, &mut ssh.ssh(&["-tt"], "console+box-1", &[]));
        session.wait_for("connected to box-1; Ctrl-] leaves");
        session.type_keys("\u{1d}");
        assert_eq!(session.end(), (Some(0), true));
        let output = exchange(&mut ssh.ssh(&["-T"], "console+box-1", &[]), Vec::new());
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        let output = ssh
            .ssh(&["-T"], "console+box-9", &[])
            .output()
            .expect("ssh");
        assert_eq!(output.status.code(), Some(255), "{output:?}");
        assert!(
            text(&output.stderr).starts_with("vm/box-9 not found"),
            "{output:?}"
        );
    });
}
