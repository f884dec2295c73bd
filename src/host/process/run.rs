//! Runs a short-lived program with bounded time and output. It and all its descendants have ended when this returns.
//! Out of scope: programs that outlive the daemon; the set of running programs ([`super::helpers`]).
//!
//! # Why the end of a pipe is not awaited
//! A descendant may keep the program's standard output or error open long after the program has ended. So the end is detected with a
//! pidfd, not with the pipes.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStderr, ChildStdout, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags};
use tokio::io::AsyncReadExt;

use super::helpers::{self, Helper};
use crate::host::Error;

/// The result of [`run_until`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Standard output, at most 1 MiB.
    pub output: String,
    /// Whether `enough` was true, in contrast to the program's end or the deadline.
    pub matched: bool,
}

/// A program that has ended by itself.
#[derive(Debug)]
pub struct Ended {
    /// The exit status, or the signal that ended it.
    pub status: ExitStatus,
    /// Standard output, if it was a pipe: at most [`OUTPUT_LIMIT`] bytes, the rest was discarded.
    pub stdout: Vec<u8>,
    /// Standard error, with the same limit.
    pub stderr: Vec<u8>,
}

/// Maximum number of bytes that are kept of a stream.
pub const OUTPUT_LIMIT: usize = 1 << 20;

/// Deadline for processes to end after SIGKILL. A process that has not ended by then is in uninterruptible sleep and ends after it.
const DEATH: Duration = Duration::from_secs(2);
/// Deadline for the pipes of a killed process group to close.
const CLOSING: Duration = Duration::from_millis(100);

/// Children that did not end in time after SIGKILL: later calls reap them.
static LEFT: Mutex<Vec<Child>> = Mutex::new(Vec::new());

/// Runs a program until it ends or the deadline passes, in the calling thread's namespaces. Blocks. In every case the descendants of
/// the program are killed.
///
/// # Errors
/// The program cannot be started; or [`io::ErrorKind::TimedOut`]: it was killed at the deadline.
pub fn run(command: &mut Command, deadline: Duration) -> io::Result<Ended> {
    let until = Instant::now() + deadline;
    reap_the_left();
    let (variable, label) = helpers::label();
    command.process_group(0).env(variable, &label);
    let (helper, child) = Helper::start(label, || {
        let child = command.spawn()?;
        Ok((child.id(), child))
    })?;
    let mut running = Running {
        child: Some(child),
        helper: Some(helper),
    };
    let pidfd = running.pidfd()?;
    let mut streams = running.streams()?;
    let in_time = read_streams(&pidfd, &mut streams, until)?;
    running.kill(&mut streams, in_time)?;
    let status = running.reap(&pidfd)?;
    let [stdout, stderr] = streams.map(|stream| stream.kept);
    match in_time {
        true => Ok(Ended {
            status,
            stdout,
            stderr,
        }),
        false => Err(overdue(deadline, &stderr)),
    }
}

fn overdue(deadline: Duration, stderr: &[u8]) -> io::Error {
    let stderr_text = String::from_utf8_lossy(&stderr[stderr.len().saturating_sub(300)..]);
    let stderr_text = match stderr_text.trim() {
        "" => String::new(),
        stderr_text => format!("; last output: {stderr_text}"),
    };
    let deadline = humantime::format_duration(deadline);
    let why = format!(
        "it did not end within its deadline of {deadline} and was killed with its process group{stderr_text}"
    );
    io::Error::new(io::ErrorKind::TimedOut, why)
}

/// A running child and its registration. If it is dropped before it was reaped, it is killed and reaped by a later call.
struct Running {
    child: Option<Child>,
    helper: Option<Helper>,
}

impl Running {
    fn pidfd(&self) -> io::Result<OwnedFd> {
        let id = self.child.as_ref().map_or(0, Child::id);
        let pid = i32::try_from(id).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(rustix::process::pidfd_open(pid, PidfdFlags::empty())?)
    }

    fn streams(&mut self) -> io::Result<[Stream; 2]> {
        let child = self.child.as_mut();
        let (out, err) = child.map_or((None, None), |child| {
            (child.stdout.take(), child.stderr.take())
        });
        Ok([
            Stream::of(out.map(ChildStdout::into))?,
            Stream::of(err.map(ChildStderr::into))?,
        ])
    }

    /// Kills the process group. If the program ran until the deadline, or one of its pipes is still open, also kills the descendants that
    /// have left the group.
    fn kill(&self, streams: &mut [Stream; 2], in_time: bool) -> io::Result<()> {
        let Some(helper) = &self.helper else {
            return Ok(());
        };
        helper.kill_group();
        let closed = !streams.iter().any(Stream::is_open)
            || drain_streams(streams, Instant::now() + CLOSING)?;
        if !in_time || !closed {
            helper.kill_escaped();
        }
        Ok(())
    }

    fn reap(&mut self, pidfd: &OwnedFd) -> io::Result<ExitStatus> {
        let dead = wait_for(&mut [PollFd::new(pidfd, PollFlags::IN)], DEATH)?;
        if !dead {
            return Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "it was killed but has not ended: it is in uninterruptible sleep in the kernel",
            ));
        }
        if let Some(helper) = self.helper.take() {
            helper.forget();
        }
        match self.child.take() {
            Some(mut child) => child.wait(),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.helper.take());
        if let Some(child) = self.child.take() {
            LEFT.lock().push(child);
        }
    }
}

fn reap_the_left() {
    let mut left = LEFT.lock();
    left.retain_mut(|child| matches!(child.try_wait(), Ok(None)));
}

/// A non-blocking pipe of the program, and the output read from it.
struct Stream {
    pipe: Option<OwnedFd>,
    kept: Vec<u8>,
}

impl Stream {
    fn of(pipe: Option<OwnedFd>) -> io::Result<Self> {
        if let Some(pipe) = &pipe {
            rustix::io::ioctl_fionbio(pipe, true)?;
        }
        Ok(Self {
            pipe,
            kept: Vec::new(),
        })
    }

    fn is_open(&self) -> bool {
        self.pipe.is_some()
    }

    /// Reads the available output, at most the capacity of a pipe: an endless writer must not keep this call busy.
    fn read(&mut self) {
        let mut buffer = [0_u8; 16 << 10];
        for _ in 0..8 {
            let Some(pipe) = &self.pipe else { return };
            match rustix::io::read(pipe, &mut buffer) {
                Ok(0) => self.pipe = None,
                Ok(count) => {
                    let length = OUTPUT_LIMIT.saturating_sub(self.kept.len()).min(count);
                    self.kept.extend_from_slice(&buffer[..length]);
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => return,
                Err(_) => self.pipe = None,
            }
        }
    }
}

/// Reads until the program has ended (true) or the deadline has passed.
fn read_streams(pidfd: &OwnedFd, streams: &mut [Stream; 2], until: Instant) -> io::Result<bool> {
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(false);
        }
        let open = streams.iter().filter_map(|stream| stream.pipe.as_ref());
        let mut watched: Vec<PollFd<'_>> = [pidfd]
            .into_iter()
            .chain(open)
            .map(|fd| PollFd::new(fd, PollFlags::IN))
            .collect();
        wait_for(&mut watched, left)?;
        let ended = !watched[0].revents().is_empty();
        streams.iter_mut().for_each(Stream::read);
        if ended {
            return Ok(true);
        }
    }
}

/// Reads until all pipes are closed (true) or the deadline has passed.
fn drain_streams(streams: &mut [Stream; 2], until: Instant) -> io::Result<bool> {
    loop {
        streams.iter_mut().for_each(Stream::read);
        let open = streams.iter().filter_map(|stream| stream.pipe.as_ref());
        let mut watched: Vec<PollFd<'_>> = open.map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
        if watched.is_empty() {
            return Ok(true);
        }
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(false);
        }
        wait_for(&mut watched, left)?;
    }
}

/// Waits until one of the descriptors is ready (true) or the time has passed.
fn wait_for(watched: &mut [PollFd<'_>], time: Duration) -> io::Result<bool> {
    let time = Timespec {
        tv_sec: time.as_secs().try_into().unwrap_or(i64::MAX),
        tv_nsec: time.subsec_nanos().into(),
    };
    match rustix::event::poll(watched, Some(&time)) {
        Ok(ready) => Ok(ready > 0),
        Err(rustix::io::Errno::INTR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Runs a program until `enough` is true of its standard output, until it ends, or until the deadline. The program is killed with its
/// process group and reaped when this returns. Standard error is discarded: the program should write to standard output.
pub async fn run_until(
    argv: &[&str],
    deadline: Duration,
    enough: impl Fn(&str) -> bool,
) -> Result<Outcome, Error> {
    let program = argv.first().copied().unwrap_or_default();
    let mut command = tokio::process::Command::new(program);
    command
        .args(argv.get(1..).unwrap_or_default())
        .stdin(Stdio::null());
    listen_to(command, program, deadline, enough).await
}

/// Like [`run_until`], for a command that is configured except for its output.
pub(super) async fn listen_to(
    mut command: tokio::process::Command,
    program: &str,
    deadline: Duration,
    enough: impl Fn(&str) -> bool,
) -> Result<Outcome, Error> {
    let wrap = |error| Error::io("run", program, error);
    let (variable, label) = helpers::label();
    command
        .env(variable, &label)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .process_group(0)
        .kill_on_drop(true);
    let start = || {
        let child = command.spawn()?;
        Ok((child.id().unwrap_or_default(), child))
    };
    // The drop order matters: the group is killed before the child can be reaped.
    let (mut child, helper);
    (helper, child) = Helper::start(label, start).map_err(wrap)?;
    let mut outcome = Outcome {
        output: String::new(),
        matched: false,
    };
    let mut overdue = false;
    if let Some(mut stdout) = child.stdout.take() {
        let listen = async {
            let mut bytes = Vec::new();
            while bytes.len() < OUTPUT_LIMIT && stdout.read_buf(&mut bytes).await.unwrap_or(0) > 0 {
                outcome.output = String::from_utf8_lossy(&bytes).into_owned();
                outcome.matched = enough(&outcome.output);
                if outcome.matched {
                    break;
                }
            }
        };
        // After the deadline, the result is the output until then.
        overdue = tokio::time::timeout(deadline, listen).await.is_err();
    }
    helper.kill_group();
    if overdue {
        helper.kill_escaped();
    }
    drop(helper);
    // An error such as ESRCH: it has ended by itself and was reaped. A process in uninterruptible sleep is reaped by tokio later.
    let _ = tokio::time::timeout(DEATH, child.kill()).await;
    Ok(outcome)
}

#[cfg(test)]
mod tests;
