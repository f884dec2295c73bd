//! The menu and the console.
//! Out of scope: `slicectl console`.

use test_support::harness::{slots, with_daemon};
use test_support::screen::Session;

use super::super::text;
use super::{Ssh, exchange, with_ssh};
use crate::guests::{initrd, kernel, wait_for_output};

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
        session.wait_for("(q)uit: ");
        session.type_keys("p\r");
        session.wait_for("box-1: pause requested");
        ssh.harness.until("it is paused", || {
            let vm = ssh.harness.get("vm box-1");
            vm["power"]
                .as_str()?
                .eq_ignore_ascii_case("paused")
                .then_some(())
        });
        session.wait_for("(q)uit: ");
        session.type_keys("b\r");
        session.wait_for("box-1  Paused");
        session.type_keys("box-1\rr\r");
        session.wait_for("box-1: resume requested");
        session.wait_for("(q)uit: ");
        session.type_keys("q\r");
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
    with_daemon(|harness| {
        let image = initrd(&harness, "ping host 203.0.113.1\n");
        let qemu = format!(
            "hypervisor: qemu\n      kernel_file: {}\n      initrd_file: {image}",
            kernel()
        );
        harness.apply(&slots(1, "").replace("hypervisor: none", &qemu));
        let ssh = Ssh { harness: &harness };
        ssh.keygen("alice");
        ssh.configure("{}", &["alice"]);
        ssh.listens();
        wait_for_output(&harness, "sandbox-1", "GUEST sandbox-1", 1);
        let mut session = Session::start(80, &mut ssh.ssh(&["-tt"], "console+sandbox-1", &[]));
        session.wait_for("connected to sandbox-1; Ctrl-] leaves");
        session.wait_for("GUEST sandbox-1");
        session.type_keys("echo keys\r");
        session.type_keys("\u{1d}");
        assert_eq!(session.end(), (Some(0), true));
        // The end of the input leaves, too.
        let output = exchange(
            &mut ssh.ssh(&["-T"], "console+sandbox-1", &[]),
            b"\r".to_vec(),
        );
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        harness.ctl("vm stop sandbox-1 --wait");
        for (user, expected) in [
            ("console+sandbox-1", "vm/sandbox-1 is not running\n"),
            ("console+sandbox-9", "vm/sandbox-9 not found"),
        ] {
            let output = ssh.ssh(&["-T"], user, &[]).output().expect("ssh");
            assert_eq!(output.status.code(), Some(255), "{output:?}");
            assert!(text(&output.stderr).starts_with(expected), "{output:?}");
        }
    });
}
