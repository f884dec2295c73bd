//! The daemon is killed (SIGKILL) while it forwards: what ends, what goes on, what is left.
//! Out of scope: the condition `Agent` across a crash (`e2e::vsock`).

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use super::{Killed, VM, text, with_agent};

/// How long a client may take to notice that the daemon has ended.
const NOTICED: Duration = Duration::from_secs(5);

/// Waits for the end of a client: its status and standard error.
fn ended(mut client: Child) -> (Option<i32>, String) {
    let begin = Instant::now();
    while client.try_wait().expect("a child").is_none() {
        assert!(begin.elapsed() < NOTICED, "the client still runs");
        std::thread::sleep(Duration::from_millis(20));
    }
    let output = client.wait_with_output().expect("its output");
    (output.status.code(), text(&output.stderr))
}

/// Whether the process with this id, as text, exists.
fn exists(pid: &str) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

#[test]
fn a_command_in_the_foreground_ends_and_one_in_the_background_is_found_again() {
    with_agent(|host| {
        let script = "echo $$; exec sleep 1000";
        let background = host
            .ctl(&[
                "vm", "bg", "start", VM, "--uid", "0", "--", "sh", "-c", script,
            ])
            .output()
            .expect("slicectl");
        let id = text(&background.stdout).trim().to_owned();
        let mut client = host
            .ctl(&["vm", "exec", VM, "--uid", "0", "--", "sh", "-c", script])
            .spawn()
            .expect("slicectl");
        let mut line = String::new();
        BufReader::new(client.stdout.as_mut().expect("a pipe"))
            .read_line(&mut line)
            .expect("a line");
        let foreground = line.trim();
        assert!(exists(foreground));

        host.harness.kill();
        let (status, stderr) = ended(client);
        assert_eq!(status, Some(1), "{stderr}");
        assert!(
            stderr.contains("the exit status of the command is unknown"),
            "{stderr}"
        );
        host.harness.until("the command has ended", || {
            (!exists(foreground)).then_some(())
        });

        host.harness.start();
        let list = host
            .ctl(&["vm", "bg", "list", VM])
            .output()
            .expect("slicectl");
        assert!(text(&list.stdout).contains(&id), "{list:?}");
        let logs = host
            .ctl(&["vm", "bg", "logs", VM, &id])
            .output()
            .expect("slicectl");
        let of_background = text(&logs.stdout).trim().to_owned();
        assert!(exists(&of_background), "{logs:?}");
        let kill = host
            .ctl(&["vm", "bg", "kill", VM, &id])
            .output()
            .expect("slicectl");
        assert!(kill.status.success(), "{kill:?}");
    });
}

#[test]
fn a_copy_is_an_error_and_leaves_no_file_under_its_name() {
    with_agent(|host| {
        let dir = host.harness.dir.path().join("copies");
        fs::create_dir(&dir).expect("a directory");
        let at = |name: &str| dir.join(name).display().to_string();
        // Into the guest: the source is a pipe that does not end.
        let mut client = host
            .ctl(&[
                "vm",
                "cp",
                "-",
                &format!("{VM}:{}", at("into")),
                "--uid",
                "0",
            ])
            .stdin(Stdio::piped())
            .spawn()
            .expect("slicectl");
        let mut input = client.stdin.take().expect("a pipe");
        input.write_all(&[b'x'; 3 << 20]).expect("written");
        // Out of the guest: the source has more than all buffers, and nobody reads the copy.
        fs::File::create(dir.join("large"))
            .expect("created")
            .set_len(1 << 30)
            .expect("set");
        let out = format!("{VM}:{}", at("large"));
        let mut reader = host
            .ctl(&["vm", "cp", &out, "-"])
            .spawn()
            .expect("slicectl");
        let mut first = [0; 1 << 16];
        reader
            .stdout
            .as_mut()
            .expect("a pipe")
            .read_exact(&mut first)
            .expect("bytes");

        host.harness.kill();
        for (name, mut client) in [("into", client), ("out", reader)] {
            let mut stdout = client.stdout.take().expect("a pipe");
            let drained =
                std::thread::spawn(move || std::io::copy(&mut stdout, &mut std::io::sink()));
            let (status, stderr) = ended(client);
            assert_eq!(status, Some(1), "{name}: {stderr}");
            assert!(stderr.starts_with("error: "), "{name}: {stderr}");
            drained.join().expect("a thread").expect("read");
        }
        drop(input);
        host.harness.until("no part of the copy is left", || {
            let mut names = fs::read_dir(&dir).expect("a directory");
            names
                .all(|name| name.expect("a name").file_name() == "large")
                .then_some(())
        });

        host.harness.start();
        let again = host
            .ctl(&["vm", "cp", &at("large"), &format!("{VM}:{}", at("into"))])
            .output();
        assert!(again.expect("slicectl").status.success());
    });
}

#[test]
fn a_port_forward_loses_its_connections_and_opens_new_ones_through_the_next_daemon() {
    with_agent(|host| {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let port = listener.local_addr().expect("an address").port();
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                std::thread::spawn(move || std::io::copy(&mut stream.try_clone()?, &mut stream));
            }
        });
        let mut client = host
            .ctl(&["vm", "port-forward", VM, &format!("0:{port}")])
            .spawn()
            .expect("slicectl");
        let mut line = String::new();
        BufReader::new(client.stdout.as_mut().expect("a pipe"))
            .read_line(&mut line)
            .expect("a line");
        let _client = Killed(client);
        let local = line.split(' ').nth(1).expect("an address").to_owned();
        let echo = || {
            let mut stream = TcpStream::connect(&local).expect("a connection");
            stream.set_read_timeout(Some(NOTICED)).expect("set");
            let _ = stream.write_all(b"x");
            (stream.read(&mut [0]).is_ok_and(|count| count == 1), stream)
        };
        let (is_echoed, mut open) = echo();
        assert!(is_echoed);

        host.harness.kill();
        let end = open.read(&mut [0]);
        assert!(!matches!(end, Ok(1..)), "{end:?}");
        assert!(
            !matches!(&end, Err(error) if error.kind() == std::io::ErrorKind::WouldBlock),
            "{end:?}"
        );
        host.harness.start();
        assert!(echo().0);
    });
}

#[test]
fn thirty_two_guests_answer_at_once() {
    with_agent(|host| {
        let clients: Vec<_> = (0..32)
            .map(|number| {
                let words = [
                    "vm",
                    "exec",
                    VM,
                    "--uid",
                    "0",
                    "--",
                    "sh",
                    "-c",
                    &format!("sleep 1; echo {number}"),
                ];
                host.ctl(&words).spawn().expect("slicectl")
            })
            .collect();
        for (number, client) in clients.into_iter().enumerate() {
            let output = client.wait_with_output().expect("its output");
            assert_eq!(text(&output.stdout), format!("{number}\n"), "{output:?}");
        }
    });
}
