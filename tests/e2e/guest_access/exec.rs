//! `vm exec`: streams, exit status, signals, memory, and the end of a command after its client has gone.
//! Out of scope: commands on a terminal (`shell`).

use std::fs;
use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use test_support::harness::signal;

use super::{Host, VM, memory, text, with_agent};

#[test]
fn a_command_has_the_streams_and_the_exit_status_of_a_local_one() {
    with_agent(|host| {
        // Command, exit status, standard output, standard error.
        let table: [(&[&str], i32, &[u8], &str); 9] = [
            (&["true"], 0, b"", ""),
            (&["false"], 1, b"", ""),
            (&["echo", "a b", "c\nd"], 0, b"a b c\nd\n", ""),
            (&["sh", "-c", "exit 7"], 7, b"", ""),
            (
                &["sh", "-c", "echo out; echo err >&2; exit 3"],
                3,
                b"out\n",
                "err\n",
            ),
            (
                &["printf", "\\000\\377\\n\\033[31m"],
                0,
                b"\0\xff\n\x1b[31m",
                "",
            ),
            (&["sh", "-c", "kill -TERM $$"], 143, b"", ""),
            (&["sh", "-c", "kill -KILL $$"], 137, b"", ""),
            (&["cat"], 0, b"", ""),
        ];
        for (words, status, stdout, stderr) in table {
            let output = host.exec(words);
            assert_eq!(output.status.code(), Some(status), "{words:?}: {output:?}");
            assert_eq!(output.stdout, stdout, "{words:?}: {output:?}");
            assert_eq!(text(&output.stderr), stderr, "{words:?}: {output:?}");
        }
        for (words, status) in [(["/nowhere/program"], 127), (["/etc/passwd"], 126)] {
            let output = host.exec(&words);
            assert_eq!(output.status.code(), Some(status), "{output:?}");
            assert!(text(&output.stderr).starts_with("error: "), "{output:?}");
        }
    });
}

#[test]
fn a_command_has_the_requested_environment_directory_user_and_shell() {
    with_agent(|host| {
        let run = |options: &[&str], command: &[&str]| {
            let words = [&["exec", VM], options, &["--"], command].concat();
            let output = host.ctl(&words).output().expect("slicectl");
            assert!(output.status.success(), "{output:?}");
            text(&output.stdout)
        };
        assert_eq!(
            run(&["--uid", "0", "--cwd", "/usr/lib"], &["pwd"]),
            "/usr/lib\n"
        );
        let both = ["--uid", "0", "-e", "A=1 2", "--env", "B="];
        assert_eq!(run(&both, &["sh", "-c", "echo \"$A-$B\""]), "1 2-\n");
        assert_eq!(
            run(
                &["--uid", "7", "--gid", "8", "--cwd", "/"],
                &["sh", "-c", "id -u; id -g"]
            ),
            "7\n8\n"
        );
        assert_eq!(
            run(
                &["--uid", "0", "--shell", "/bin/sh"],
                &["echo $((1 + 2)) |", "cat"]
            ),
            "3\n"
        );
    });
}

#[test]
fn input_is_passed_from_a_pipe_and_both_directions_are_open_at_once() {
    with_agent(|host| {
        let mut command = host.ctl(&["exec", VM, "--uid", "0", "--", "cat"]);
        let mut child = command.stdin(Stdio::piped()).spawn().expect("slicectl");
        let (mut input, mut output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        for round in 0..5 {
            let line = format!("line {round}\n");
            input.write_all(line.as_bytes()).expect("written");
            let mut answer = vec![0; line.len()];
            output
                .read_exact(&mut answer)
                .expect("an answer while the input is open");
            assert_eq!(text(&answer), line);
        }
        drop(input);
        assert!(child.wait().expect("a status").success());
    });
}

#[test]
fn a_hundred_megabytes_there_and_back_take_little_memory() {
    with_agent(|host| {
        const SIZE: usize = 100 << 20;
        // The first run sets the level.
        host.exec(&["head", "-c", "1000000", "/dev/zero"]);
        let before = memory(host.harness.pid());
        let mut command = host.ctl(&["exec", VM, "--uid", "0", "--", "cat"]);
        let mut child = command.stdin(Stdio::piped()).spawn().expect("slicectl");
        let (mut input, mut output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let pid = child.id();
        let writer = std::thread::spawn(move || {
            let part: Vec<u8> = (0..1 << 20).map(|at: u32| (at % 251) as u8).collect();
            for _ in 0..SIZE >> 20 {
                input.write_all(&part).expect("written");
            }
        });
        let (mut received, mut sum, mut first) = (0, 0_u64, 0);
        let mut buffer = vec![0; 1 << 16];
        let begin = Instant::now();
        while let Ok(count @ 1..) = output.read(&mut buffer) {
            if received == 0 {
                first = memory(pid);
            }
            received += count;
            sum += buffer[..count]
                .iter()
                .map(|byte| u64::from(*byte))
                .sum::<u64>();
            if received == SIZE {
                let grown = memory(pid).saturating_sub(first);
                assert!(grown < 4 << 20, "slicectl: {grown} bytes");
            }
        }
        writer.join().expect("all is written");
        assert!(child.wait().expect("a status").success());
        assert_eq!(received, SIZE);
        let of_part: u64 = (0..1_u64 << 20).map(|at| at % 251).sum();
        assert_eq!(sum, of_part * 100);
        let grown = memory(host.harness.pid()).saturating_sub(before);
        eprintln!("100 MB in {:?}; sliced: {grown} bytes", begin.elapsed());
        assert!(grown < 4 << 20, "sliced: {grown} bytes");
    });
}

/// A command that writes its process id into a file, then runs this.
fn with_pid(host: &Host, rest: &str) -> (std::process::Child, u32) {
    let file = host.harness.dir.path().join("pid");
    let _ = fs::remove_file(&file);
    let script = format!("echo $$ >{0}.new && mv {0}.new {0}; {rest}", file.display());
    let mut command = host.ctl(&["exec", VM, "--uid", "0", "--", "sh", "-c", &script]);
    let child = command.spawn().expect("slicectl");
    let pid = host.harness.until("it is started", || {
        fs::read_to_string(&file).ok()?.trim().parse().ok()
    });
    (child, pid)
}

fn is_alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat
        .rsplit_once(") ")
        .map(|(_, rest)| rest.starts_with('Z'));
    state == Some(false)
}

#[test]
fn signals_are_passed_to_the_command_and_its_exit_status_is_returned() {
    with_agent(|host| {
        for (sent, expected) in [
            (Signal::INT, 130),
            (Signal::TERM, 143),
            (Signal::HUP, 129),
            (Signal::QUIT, 131),
        ] {
            let (mut child, pid) = with_pid(host, "exec sleep 600");
            signal(child.id(), sent);
            let status = child.wait().expect("a status");
            assert_eq!(
                (status.code(), status.signal()),
                (Some(expected), None),
                "{sent:?}"
            );
            // slicectl leaves at once if the signal comes before the response that the command was started.
            host.harness
                .until("the command has ended", || (!is_alive(pid)).then_some(()));
        }
        let (mut child, _) = with_pid(host, "trap 'exit 5' INT; while :; do sleep 0.1; done");
        signal(child.id(), Signal::INT);
        assert_eq!(
            child.wait().expect("a status").code(),
            Some(5),
            "it handles the signal"
        );
    });
}

#[test]
fn a_second_interrupt_leaves_and_the_command_ends() {
    with_agent(|host| {
        let (mut child, pid) = with_pid(host, "trap '' INT; while :; do sleep 0.1; done");
        signal(child.id(), Signal::INT);
        std::thread::sleep(Duration::from_millis(500));
        assert!(is_alive(pid) && child.try_wait().expect("a status").is_none());
        signal(child.id(), Signal::INT);
        assert_eq!(child.wait().expect("a status").code(), Some(130));
        host.harness
            .until("the command has ended", || (!is_alive(pid)).then_some(()));
    });
}

#[test]
fn a_command_ends_with_its_client_whatever_it_does() {
    with_agent(|host| {
        // One that waits, one that writes, and one that does not read what it is sent.
        for rest in ["exec sleep 600", "exec yes", "exec sleep 600 </dev/zero"] {
            let (mut child, pid) = with_pid(host, rest);
            child.kill().expect("killed");
            child.wait().expect("a status");
            host.harness
                .until("the command has ended", || (!is_alive(pid)).then_some(()));
        }
        let zero = fs::File::open("/dev/zero").expect("a file");
        let file = host.harness.dir.path().join("unread");
        let script = format!("echo $$ >{}; exec sleep 600", file.display());
        let mut command = host.ctl(&["exec", VM, "--uid", "0", "--", "sh", "-c", &script]);
        let mut child = command.stdin(zero).spawn().expect("slicectl");
        let pid = host.harness.until("it is started", || {
            fs::read_to_string(&file).ok()?.trim().parse().ok()
        });
        // All buffers between the client and the command are full.
        std::thread::sleep(Duration::from_secs(1));
        child.kill().expect("killed");
        child.wait().expect("a status");
        host.harness
            .until("the command has ended", || (!is_alive(pid)).then_some(()));
    });
}

#[test]
fn a_reader_that_stops_ends_the_command() {
    with_agent(|host| {
        let (mut child, pid) = with_pid(host, "exec yes");
        let mut output = child.stdout.take().expect("a pipe");
        output.read_exact(&mut [0; 2]).expect("output");
        drop(output);
        assert!(child.wait().expect("a status").success(), "as with | head");
        host.harness
            .until("the command has ended", || (!is_alive(pid)).then_some(()));
    });
}

#[test]
fn output_waits_for_its_reader_and_the_daemon_stops_nevertheless() {
    with_agent(|host| {
        let (mut child, pid) = with_pid(host, "exec yes");
        // Longer than a client of the API may read nothing.
        std::thread::sleep(Duration::from_secs(12));
        assert!(is_alive(pid), "it is not a slow client");
        let begin = Instant::now();
        signal(host.harness.pid(), Signal::TERM);
        host.harness.until("the daemon has ended", || {
            (!is_alive(host.harness.pid())).then_some(())
        });
        assert!(begin.elapsed() < Duration::from_secs(3));
        let mut rest = Vec::new();
        child
            .stdout
            .take()
            .expect("a pipe")
            .read_to_end(&mut rest)
            .expect("output");
        let status = child.wait().expect("a status");
        assert_eq!(status.code(), Some(1), "what is cut off is no success");
        host.harness
            .until("the command has ended", || (!is_alive(pid)).then_some(()));
    });
}
