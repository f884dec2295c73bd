//! Runs a command on a pseudo-terminal and answers its question.
//! Out of scope: what the command asks.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{FromRawFd, OwnedFd};
use std::process::{Command, Stdio};

/// The end of the input, typed on a terminal (VEOF).
pub const END: &str = "\u{4}";

/// One run on a terminal.
#[derive(Debug)]
pub struct Run {
    pub code: i32,
    pub stdout: String,
    /// What the terminal shows: standard error and the echo of the input.
    pub screen: String,
}

/// Runs a command whose standard input and error are a terminal. When the terminal shows `question`, `answer` is typed.
pub fn run(mut command: Command, question: &str, answer: &str) -> Run {
    let (mut own, terminal) = open();
    let input = terminal.try_clone().expect("a descriptor");
    let mut child = command
        .stdin(Stdio::from(input))
        .stderr(Stdio::from(terminal))
        .stdout(Stdio::piped())
        .spawn()
        .expect("a process");
    // It holds the descriptors of the terminal: without it, a read after the end of the child fails (EIO).
    drop(command);
    let mut screen = Vec::new();
    let mut is_answered = false;
    let mut buffer = [0; 4096];
    while let Ok(length @ 1..) = own.read(&mut buffer) {
        screen.extend_from_slice(&buffer[..length]);
        if !is_answered && String::from_utf8_lossy(&screen).contains(question) {
            is_answered = true;
            own.write_all(answer.as_bytes()).expect("typed");
        }
    }
    let mut stdout = String::new();
    let mut pipe = child.stdout.take().expect("a pipe");
    pipe.read_to_string(&mut stdout).expect("UTF-8");
    Run {
        code: child.wait().expect("ended").code().expect("not killed"),
        stdout,
        screen: String::from_utf8_lossy(&screen).into_owned(),
    }
}

fn open() -> (File, OwnedFd) {
    let (mut own, mut terminal) = (-1, -1);
    // SAFETY: both descriptors are written by the call; the other arguments may be null.
    let result = unsafe {
        libc::openpty(
            &raw mut own,
            &raw mut terminal,
            std::ptr::null_mut(),
            std::ptr::null(),
            std::ptr::null(),
        )
    };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    // SAFETY: the call has succeeded, so both are open and nobody else owns them.
    unsafe { (File::from_raw_fd(own), OwnedFd::from_raw_fd(terminal)) }
}
