//! What a user sees: `slicectl` at a terminal of a given size, with colours shown as text.
//! Out of scope: which commands are run; transcripts of pipes (`transcript`).

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::process::{Child, Command};

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use super::placeholders::MARKS;

/// The colours that `slicectl` uses, and how they are shown.
const COLOURS: [(&str, &str); 5] = [
    ("\u{1b}[0m", "⟨/⟩"),
    ("\u{1b}[1m", "⟨bold⟩"),
    ("\u{1b}[31m", "⟨red⟩"),
    ("\u{1b}[32m", "⟨green⟩"),
    ("\u{1b}[33m", "⟨yellow⟩"),
];

/// A terminal.
pub struct Screen {
    controller: File,
    user: OwnedFd,
}

impl Screen {
    /// A terminal of this width.
    pub fn new(columns: u16) -> Self {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let controller = openpt(flags).expect("a terminal");
        grantpt(&controller).expect("its rights");
        unlockpt(&controller).expect("its user side");
        let name = ptsname(&controller, Vec::new()).expect("its name");
        let flags =
            rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NOCTTY | rustix::fs::OFlags::CLOEXEC;
        let user = rustix::fs::open(name, flags, rustix::fs::Mode::empty()).expect("its user side");
        let size = Winsize {
            ws_row: 40,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(&user, size).expect("its size");
        Self {
            controller: controller.into(),
            user,
        }
    }

    fn spawn(&self, command: &mut Command) -> Child {
        let user = || self.user.try_clone().expect("a descriptor");
        command
            .env("TERM", "xterm")
            .stdin(user())
            .stdout(user())
            .stderr(user())
            .spawn()
            .expect("slicectl")
    }

    /// Runs a command to its end: what the terminal receives, with line feeds alone as ends of lines.
    pub fn run(self, command: &mut Command) -> String {
        let mut child = self.spawn(command);
        // With the last user the terminal ends: a read fails with EIO (pty(7)). The command has the descriptors of its streams.
        let Self {
            mut controller,
            user,
        } = self;
        drop(user);
        command.stdin(std::process::Stdio::null());
        command.stdout(std::process::Stdio::null());
        command.stderr(std::process::Stdio::null());
        let mut received = Vec::new();
        let mut buffer = [0; 4096];
        while let Ok(length @ 1..) = controller.read(&mut buffer) {
            received.extend_from_slice(&buffer[..length]);
        }
        child.wait().expect("its status");
        let text = String::from_utf8(received).expect("UTF-8");
        text.replace("\r\n", "\n")
    }
}

/// The text with a mark for each colour, for [`super::placeholders`].
pub fn mark(text: &str) -> String {
    let marks = MARKS.zip(COLOURS);
    marks.fold(text.to_owned(), |text, (mark, (sequence, _))| {
        text.replace(sequence, &mark.to_string())
    })
}

/// The text with a readable name for each mark and for all other escape sequences.
pub fn show(text: &str) -> String {
    let marks = MARKS.zip(COLOURS);
    let shown = marks.fold(text.to_owned(), |text, (mark, (_, name))| {
        text.replace(mark, name)
    });
    shown.replace('\u{1b}', "⟨ESC⟩").replace('\u{7}', "⟨BEL⟩")
}

/// The text without colours.
pub fn plain(text: &str) -> String {
    COLOURS.iter().fold(text.to_owned(), |text, (sequence, _)| {
        text.replace(sequence, "")
    })
}

/// A command that runs on a terminal while keys are typed.
pub struct Session {
    controller: File,
    user: OwnedFd,
    child: Child,
    before: rustix::termios::Termios,
    /// What the terminal has received and was not waited for yet.
    received: Vec<u8>,
}

impl Session {
    /// Starts a command on a terminal of this width and 40 rows, which is its controlling terminal.
    pub fn start(columns: u16, command: &mut Command) -> Self {
        use std::os::unix::process::CommandExt;
        let screen = Screen::new(columns);
        let before = rustix::termios::tcgetattr(&screen.user).expect("its state");
        // SAFETY: between fork and exec only system calls are made.
        unsafe {
            command.pre_exec(|| {
                rustix::process::setsid()?;
                // SAFETY: standard input is the terminal.
                rustix::process::ioctl_tiocsctty(std::io::stdin())?;
                Ok(())
            });
        }
        let child = screen.spawn(command);
        let Screen { controller, user } = screen;
        rustix::io::ioctl_fionbio(&controller, true).expect("it does not block");
        Self {
            controller,
            user,
            child,
            before,
            received: Vec::new(),
        }
    }

    /// Types keys.
    pub fn type_keys(&mut self, keys: &str) {
        std::io::Write::write_all(&mut self.controller, keys.as_bytes()).expect("typed");
    }

    /// Changes the size of the terminal.
    pub fn resize(&self, columns: u16, rows: u16) {
        let size = Winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(&self.controller, size).expect("its size");
    }

    /// Sends a signal to the command.
    pub fn signal(&self, signal: rustix::process::Signal) {
        super::harness::signal(self.child.id(), signal);
    }

    /// Waits until the terminal shows this text, after what was waited for before.
    #[track_caller]
    pub fn wait_for(&mut self, text: &str) {
        let begin = std::time::Instant::now();
        loop {
            self.receive();
            let shown = String::from_utf8_lossy(&self.received).into_owned();
            if let Some(at) = shown.find(text) {
                self.received = shown.as_bytes()[at + text.len()..].to_vec();
                return;
            }
            let has_ended = self.child.try_wait().expect("its status").is_some();
            let is_late = begin.elapsed() > super::harness::PATIENCE;
            assert!(!is_late && !has_ended, "{text:?} is not shown: {shown:?}");
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }

    /// Waits for the end of the command: its exit status, and whether the terminal has the same modes as at the start.
    #[track_caller]
    pub fn end(mut self) -> (Option<i32>, bool) {
        let begin = std::time::Instant::now();
        let status = loop {
            self.receive();
            if let Some(status) = self.child.try_wait().expect("its status") {
                break status;
            }
            let shown = String::from_utf8_lossy(&self.received).into_owned();
            if begin.elapsed() > super::harness::PATIENCE {
                let _ = self.child.kill();
                panic!("it does not end: {shown:?}");
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        };
        let after = rustix::termios::tcgetattr(&self.user).expect("its state");
        let modes = |state: &rustix::termios::Termios| {
            (state.local_modes, state.input_modes, state.output_modes)
        };
        (status.code(), modes(&after) == modes(&self.before))
    }

    fn receive(&mut self) {
        let mut buffer = [0; 4096];
        while let Ok(length @ 1..) = self.controller.read(&mut buffer) {
            self.received.extend_from_slice(&buffer[..length]);
        }
    }
}
