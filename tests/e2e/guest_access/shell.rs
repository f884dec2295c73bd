//! `vm shell` and `vm exec -t` at a terminal.
//! Out of scope: the terminal in the guest.

use std::process::Stdio;

use test_support::screen::Session;

use super::{VM, text, with_agent};

#[test]
fn a_shell_has_the_size_of_the_terminal_follows_it_and_its_exit_status_is_returned() {
    with_agent(|host| {
        let mut session = Session::start(
            100,
            &mut host.ctl(&["vm", "shell", VM, "--uid", "0", "--shell", "/bin/sh"]),
        );
        session.wait_for("Ctrl-] leaves");
        session.type_keys("stty size; echo $((6 * 7))-done\r");
        session.wait_for("40 100");
        session.wait_for("42-done");
        session.resize(120, 50);
        session.type_keys("sleep 0.3; stty size\r");
        session.wait_for("50 120");
        // Ctrl-C is a key of the guest.
        session.type_keys("echo before; sleep 600\r");
        session.wait_for("before\r\n");
        session.type_keys("\u{3}");
        session.wait_for("^C");
        session.wait_for("# ");
        session.type_keys("echo after-$((1 + 1))\r");
        session.wait_for("after-2");
        session.type_keys("exit 9\r");
        let (status, is_restored) = session.end();
        assert_eq!((status, is_restored), (Some(9), true));
    });
}

#[test]
fn the_detach_key_and_a_signal_leave_and_restore_the_terminal() {
    with_agent(|host| {
        let mut session = Session::start(
            80,
            &mut host.ctl(&["vm", "shell", VM, "--uid", "0", "--shell", "/bin/sh"]),
        );
        session.wait_for("Ctrl-] leaves");
        session.type_keys("\u{1d}");
        assert_eq!(session.end(), (Some(0), true));
        let mut session = Session::start(
            80,
            &mut host.ctl(&["vm", "shell", VM, "--uid", "0", "--shell", "/bin/sh"]),
        );
        session.wait_for("Ctrl-] leaves");
        session.signal(rustix::process::Signal::TERM);
        assert_eq!(session.end(), (Some(143), true));
    });
}

#[test]
fn a_command_on_a_terminal_has_one() {
    with_agent(|host| {
        let words = [
            "exec",
            VM,
            "-it",
            "--uid",
            "0",
            "-e",
            "A=b",
            "--",
            "sh",
            "-c",
            "test -t 0 && echo tty-$A; stty size; exit 4",
        ];
        let mut session = Session::start(90, &mut host.ctl(&words));
        session.wait_for("tty-b");
        session.wait_for("40 90");
        assert_eq!(session.end(), (Some(4), true));
        let output = host
            .ctl(&["exec", VM, "-t", "--", "sh"])
            .output()
            .expect("slicectl");
        assert_eq!(output.status.code(), Some(2), "{output:?}");
    });
}

#[test]
fn a_shell_reads_a_script_from_a_pipe() {
    with_agent(|host| {
        // One reads lines from the terminal, the other one edits them itself.
        for shell in ["/bin/sh", "/bin/bash"] {
            for script in ["", "echo piped-$((2 + 3))\n"] {
                let words = ["vm", "shell", VM, "--uid", "0", "--shell", shell];
                let mut command = host.ctl(&words);
                let mut child = command.stdin(Stdio::piped()).spawn().expect("slicectl");
                let mut input = child.stdin.take().expect("a pipe");
                std::io::Write::write_all(&mut input, script.as_bytes()).expect("written");
                drop(input);
                let output = child.wait_with_output().expect("its output");
                assert!(output.status.success(), "{shell}: {output:?}");
                let is_complete = script.is_empty() || text(&output.stdout).contains("piped-5");
                assert!(is_complete, "{shell}: {output:?}");
            }
        }
    });
}
