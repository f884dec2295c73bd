//! Commands and shells.
//! Out of scope: files.

use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;
use std::time::{Duration, Instant};

use test_support::screen::Session;

use super::super::text;
use super::{ROOT, exchange, noise, pause, with_ssh};

#[test]
fn a_command_has_separate_output_and_its_exit_status() {
    with_ssh(|ssh| {
        let output = ssh.run("echo out; echo err >&2; exit 7");
        assert_eq!(output.status.code(), Some(7), "{output:?}");
        assert_eq!(text(&output.stdout), "out\n");
        assert_eq!(text(&output.stderr), "err\n");
        // The shell of the user reads it, as with sshd.
        let output = ssh.run("echo \"$HOME\" '$HOME' $0; printf '%s|' 'a  b' \"c\"");
        assert_eq!(text(&output.stdout), "/root $HOME /bin/bash\na  b|c|");
        for (command, status) in [
            ("true", 0),
            ("exit 255", 255),
            ("no-such-program", 127),
            ("/etc/passwd", 126),
        ] {
            let output = ssh.run(command);
            assert_eq!(output.status.code(), Some(status), "{command}: {output:?}");
        }
        // A signal is reported as one: the exit status of ssh is then 255.
        let output = ssh.run("kill -TERM $$");
        assert_eq!(output.status.code(), Some(255), "{output:?}");
        let verbose = ssh
            .ssh(&["-v", "-o", "LogLevel=DEBUG1"], ROOT, &["kill -KILL $$"])
            .output()
            .expect("ssh");
        let log = text(&verbose.stderr);
        assert!(log.contains("exit-signal"), "{log}");
    });
}

#[test]
fn large_data_passes_in_both_directions_at_once() {
    with_ssh(|ssh| {
        let data = noise(20 << 20);
        let output = exchange(&mut ssh.ssh(&[], ROOT, &["cat"]), data.clone());
        assert!(output.status.success(), "{}", text(&output.stderr));
        assert!(output.stdout == data, "{} bytes", output.stdout.len());
        // The end of the input is passed on although output follows.
        let output = exchange(&mut ssh.ssh(&[], ROOT, &["wc -c; echo later"]), data);
        assert_eq!(text(&output.stdout).trim(), "20971520\nlater");
    });
}

/// The client reads no output for a while, so windows in both directions are used up.
#[test]
fn a_client_that_reads_slowly_gets_everything_and_the_daemon_does_not_grow() {
    with_ssh(|ssh| {
        let count = 24 << 20;
        let before = super::super::memory(ssh.harness.pid());
        let mut child = ssh
            .ssh(&[], ROOT, &["cat"])
            .stdin(Stdio::piped())
            .spawn()
            .expect("ssh");
        let (mut stdin, data) = (child.stdin.take().expect("a pipe"), noise(count));
        let sent = data.clone();
        let writer = std::thread::spawn(move || {
            std::io::Write::write_all(&mut stdin, &sent).expect("written");
        });
        pause(3000);
        let grown = super::super::memory(ssh.harness.pid()) - before;
        let output = child.wait_with_output().expect("its output");
        writer.join().expect("written");
        assert!(output.stdout == data, "{} bytes", output.stdout.len());
        assert!(grown < 24 << 20, "{grown} bytes");
    });
}

#[test]
fn a_command_ends_with_its_client() {
    with_ssh(|ssh| {
        let file = ssh.path("pid");
        let command = format!("echo $$ >{}; exec sleep 600", file.display());
        let mut child = ssh.ssh(&[], ROOT, &[&command]).spawn().expect("ssh");
        let pid = ssh.harness.until("it has started", || {
            let text = std::fs::read_to_string(&file).ok()?;
            text.trim().parse::<u32>().ok()
        });
        child.kill().expect("killed");
        child.wait().expect("waited");
        ssh.harness.until("it has ended", || {
            let path = format!("/proc/{pid}/cmdline");
            std::fs::read(path)
                .map_or(true, |line| line.is_empty())
                .then_some(())
        });
    });
}

#[test]
fn a_shell_has_a_terminal_that_follows_the_one_of_the_client() {
    with_ssh(|ssh| {
        let mut session = Session::start(100, &mut ssh.ssh(&["-tt"], ROOT, &[]));
        session.type_keys("PS1='# '; stty size; echo $((6 * 7))-$TERM\r");
        session.wait_for("40 100");
        session.wait_for("42-xterm");
        session.resize(120, 50);
        session.type_keys("sleep 0.5; stty size\r");
        session.wait_for("50 120");
        session.type_keys("echo before; sleep 600\r");
        session.wait_for("before\r\n");
        session.type_keys("\u{3}");
        session.wait_for("^C");
        session.type_keys("exit 9\r");
        assert_eq!(session.end(), (Some(9), true));
        // A command on a terminal.
        let command = ["tty >/dev/null && echo tty; stty size; exit 4"];
        let mut session = Session::start(90, &mut ssh.ssh(&["-tt"], ROOT, &command));
        session.wait_for("tty");
        session.wait_for("40 90");
        assert_eq!(session.end(), (Some(4), true));
    });
}

#[test]
fn a_shell_without_a_terminal_reads_its_commands() {
    with_ssh(|ssh| {
        let input = b"echo piped-$((2 + 3)); shopt -q login_shell && echo login; exit 3\n".to_vec();
        let output = exchange(&mut ssh.ssh(&["-T"], ROOT, &[]), input);
        assert_eq!(output.status.code(), Some(3), "{output:?}");
        assert_eq!(text(&output.stdout), "piped-5\nlogin\n");
    });
}

#[test]
fn a_user_of_the_guest_is_chosen_by_name_or_number_and_only_locales_are_passed_on() {
    with_ssh(|ssh| {
        let run = |user: &str, command: &str| {
            let mut command = ssh.ssh(
                &["-o", "SendEnv=LANG LC_* LD_PRELOAD FOO"],
                user,
                &[command],
            );
            command
                .env("LANG", "xx_YY")
                .env("LC_TIME", "zz")
                .env("FOO", "bar")
                .output()
                .expect("ssh")
        };
        let output = run("root+box-1", "id -u; echo $LANG $LC_TIME $FOO.");
        assert_eq!(text(&output.stdout), "0\nxx_YY zz .\n");
        // nologin(8).
        assert_eq!(run("daemon+box-1", "id").status.code(), Some(1));
        assert_eq!(text(&run("4711+box-1", "id -u").stdout), "4711\n");
        let output = run("nobody-here+box-1", "id");
        assert_eq!(output.status.code(), Some(255));
        assert_eq!(text(&output.stderr), "user \"nobody-here\" not found\n");
    });
}

#[test]
fn a_vm_that_cannot_answer_is_refused_at_once_with_the_reason() {
    with_ssh(|ssh| {
        let harness = &ssh.harness;
        let refused = |user: &str| {
            let start = Instant::now();
            let output = ssh.ssh(&[], user, &["true"]).output().expect("ssh");
            assert_eq!(output.status.code(), Some(255), "{user}: {output:?}");
            assert!(start.elapsed() < Duration::from_secs(8), "{user}");
            text(&output.stderr)
        };
        assert_eq!(
            refused("box-11"),
            "vm/box-11 not found; did you mean vm/box-1?\n"
        );
        assert_eq!(refused("root+nobody"), "vm/nobody not found\n");
        assert_eq!(
            refused("a b+box-1"),
            "invalid user name: found \"a b\", expected VM, USER+VM or console+VM\n"
        );
        assert_eq!(refused("console+box-1"), "a console runs no commands\n");
        harness.ctl("vm pause box-1 --wait");
        assert_eq!(
            refused(ROOT),
            "vm/box-1 is paused: resume it with slicectl vm resume box-1\n"
        );
        harness.ctl("vm resume box-1 --wait");
        // A session of a VM that is stopped.
        let mut child = ssh
            .ssh(&[], ROOT, &["echo started; exec sleep 600"])
            .spawn()
            .expect("ssh");
        let mut line = [0; 8];
        std::io::Read::read_exact(child.stdout.as_mut().expect("a pipe"), &mut line).unwrap();
        harness.ctl("vm stop box-1 --wait");
        assert_eq!(
            refused(ROOT),
            "vm/box-1 is stopped: start it with slicectl vm start box-1\n"
        );
        child.kill().expect("killed");
        let status = child.wait().expect("its status");
        assert_eq!(
            status.signal(),
            Some(9),
            "the double's agent outlives its VM"
        );
    });
}
