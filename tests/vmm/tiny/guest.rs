//! The guest itself, in a QEMU of the test's own.
//! Out of scope: `sliced`.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use test_support::tiny;

/// A guest without network, its serial line at our end of two pipes.
struct Line {
    qemu: Child,
    keys: ChildStdin,
    output: Receiver<String>,
}

impl Line {
    fn to(words: &str) -> Self {
        let mut qemu = Command::new("qemu-system-x86_64")
            .args("-M microvm -accel tcg,tb-size=32 -m 32 -nodefaults -no-user-config -no-reboot -display none -serial stdio".split(' '))
            .args(["-kernel", tiny::kernel(), "-append", words])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("QEMU");
        let (received, output) = channel();
        let lines = BufReader::new(qemu.stdout.take().expect("a pipe")).lines();
        std::thread::spawn(move || {
            lines
                .map_while(Result::ok)
                .try_for_each(|line| received.send(line))
        });
        Self {
            keys: qemu.stdin.take().expect("a pipe"),
            qemu,
            output,
        }
    }

    /// The next line; none: QEMU has ended.
    fn next(&self) -> Option<String> {
        match self.output.recv_timeout(Duration::from_secs(60)) {
            Ok(line) => Some(line.trim_end().to_owned()),
            Err(RecvTimeoutError::Disconnected) => None,
            Err(RecvTimeoutError::Timeout) => panic!("a guest that says nothing"),
        }
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

#[test]
fn it_takes_its_name_from_the_command_line_and_answers_on_the_serial_line() {
    let mut line = Line::to("console=ttyS0 ip=10.0.0.2::10.0.0.1:255.255.255.0:web-1:eth0:off::");
    assert_eq!(line.next().as_deref(), Some("tiny: web-1 starts"));
    assert_eq!(line.next().as_deref(), Some("tiny: no network card"));
    line.keys.write_all(b"hello there\n").unwrap();
    assert_eq!(line.next().as_deref(), Some("heard: hello there"));
}

#[test]
fn it_crashes_and_floods_on_request() {
    let crash = Line::to("tiny=crash");
    assert_eq!(crash.next().as_deref(), Some("tiny: tiny starts"));
    assert_eq!(crash.next().as_deref(), Some("tiny: tiny crashes"));
    assert_eq!(crash.next(), None, "a reset ends QEMU");
    let flood = Line::to("quiet tiny=flood");
    let floods = std::iter::from_fn(|| flood.next()).filter(|line| line.contains("floods"));
    assert_eq!(floods.take(1000).count(), 1000);
}
