//! Starting a plugin, writing its input, reading its output, and the deadline (spec, section 2).
//! Out of scope: the content of its input; the meaning of its output.

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Resource, Rlimit, Signal, WaitId, WaitIdOptions};
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{self, Child};

use super::error::{Failure, LIMITED, NOT_AVAILABLE, TRY_AGAIN};
use super::{Error, json};
use crate::clock;

/// An answer is some kilobytes long. What is beyond this is read, so that the plugin does not hang, and forgotten.
const OUTPUT_LIMIT: usize = 1 << 20;

/// How much of the end of standard error is kept.
const ERROR_LIMIT: usize = 4 << 10;

/// For the pipes of a plugin that has ended to close.
const LINGER: Duration = Duration::from_millis(500);

/// Between two looks whether a plugin has ended that keeps its pipes open.
const END_STEP: Duration = Duration::from_millis(20);

/// For a plugin that was killed to be dead.
const DEATH: Duration = Duration::from_secs(2);

/// A plugin that is being replaced at this moment cannot be started (ETXTBSY); it can be shortly after.
const BUSY_TRIES: u32 = 10;
const BUSY_PAUSE: Duration = Duration::from_millis(100);

/// What a plugin is asked (spec, section 2, CNI operations).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Attach.
    Add,
    /// Detach.
    Del,
    /// Is the attachment as it should be?
    Check,
    /// Forget all attachments but these.
    Gc,
    /// Could you serve an ADD?
    Status,
    /// Which versions of the spec do you speak?
    Version,
}

impl Command {
    /// As it is written in `CNI_COMMAND`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Gc => "GC",
            Self::Status => "STATUS",
            Self::Version => "VERSION",
        }
    }

    /// Whether a plugin that fails so will do it when asked again (spec, section 5, Error; section 2, STATUS).
    fn may_pass(self, code: u64) -> bool {
        match self {
            Self::Status => matches!(code, TRY_AGAIN | NOT_AVAILABLE | LIMITED),
            Self::Add | Self::Del | Self::Check | Self::Gc | Self::Version => code == TRY_AGAIN,
        }
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One start of one plugin.
pub(super) struct Call<'a> {
    pub plugin: &'a str,
    pub program: &'a Path,
    pub command: Command,
    /// Beside what is inherited.
    pub environment: Vec<(&'static str, OsString)>,
    pub stdin: String,
    pub deadline: Duration,
    pub file_limit: Option<(u64, u64)>,
}

impl Call<'_> {
    /// Its standard output, if it succeeded. Whatever comes of it, the plugin has ended and is reaped, except when this
    /// future is dropped: then it is killed, and reaped in a moment.
    pub(super) async fn run(self) -> Result<String, Error> {
        let began = clock::monotonic();
        let mut running = Running::of(self.start().await?);
        let heard = running.hear(self.stdin.as_bytes());
        let heard = match tokio::time::timeout(self.deadline, heard).await {
            Ok(heard) => heard.map_err(|error| Error::io("talk to", self.program, error))?,
            Err(_) => {
                running.end().await;
                return Err(Error::Deadline {
                    plugin: self.plugin.to_owned(),
                    command: self.command,
                    after: self.deadline,
                });
            }
        };
        let microseconds = clock::monotonic().duration_since(began).as_micros();
        let stderr = heard.stderr.text();
        tracing::debug!(plugin = self.plugin, command = %self.command, status = %heard.status, microseconds, stderr, "a CNI plugin ended");
        self.judge(heard, stderr)
    }

    async fn start(&self) -> Result<Child, Error> {
        let mut tries = 0;
        loop {
            match self.prepare().spawn() {
                Ok(child) => {
                    self.limit_files(&child);
                    go_first_no_more(&child);
                    return Ok(child);
                }
                Err(error)
                    if error.kind() == io::ErrorKind::ExecutableFileBusy && tries < BUSY_TRIES =>
                {
                    tries += 1;
                    tokio::time::sleep(BUSY_PAUSE).await;
                }
                Err(error) => return Err(Error::io("start", self.program, error)),
            }
        }
    }

    /// It runs already, but counts no descriptors in its first microseconds.
    fn limit_files(&self, child: &Child) {
        let pid = child.id().and_then(|id| i32::try_from(id).ok());
        if let (Some((soft, hard)), Some(pid)) = (self.file_limit, pid.and_then(Pid::from_raw)) {
            let limit = Rlimit {
                current: Some(soft),
                maximum: Some(hard),
            };
            // One that has ended needs no limit.
            let _ = rustix::process::prlimit(Some(pid), Resource::Nofile, limit);
        }
    }

    /// In a process group of its own: what the plugin starts, such as the plugins that it delegates to, can be killed with it.
    fn prepare(&self) -> process::Command {
        let mut command = process::Command::new(self.program);
        for (key, _) in std::env::vars_os() {
            if key.as_encoded_bytes().starts_with(b"CNI_") {
                command.env_remove(key);
            }
        }
        command
            .envs(self.environment.iter().map(|(key, value)| (key, value)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true);
        command
    }

    fn judge(&self, heard: Heard, stderr: String) -> Result<String, Error> {
        let whole = heard.stdout.seen <= OUTPUT_LIMIT;
        let stdout = String::from_utf8(heard.stdout.bytes);
        match (stdout, heard.status.success()) {
            (Ok(stdout), true) if whole => Ok(stdout),
            (Ok(stdout), false) if whole => Err(self.failure(&stdout, stderr, heard.status)),
            (Ok(stdout), _) => Err(self.garbage("it is longer than 1 MiB", &stdout)),
            (Err(error), _) => {
                let text = String::from_utf8_lossy(error.as_bytes()).into_owned();
                Err(self.garbage("it is no UTF-8", &text))
            }
        }
    }

    /// The error object that should be on standard output.
    fn failure(&self, stdout: &str, stderr: String, status: ExitStatus) -> Error {
        let said = match stdout.trim() {
            "" => Said {
                msg: format!("it said nothing ({status})"),
                ..Said::default()
            },
            text => match serde_json::from_str::<Said>(text) {
                Ok(said) => said,
                Err(error) => {
                    return self.garbage(&format!("it failed, {status}, and {error}"), text);
                }
            },
        };
        let failure = Failure {
            plugin: self.plugin.to_owned(),
            command: self.command,
            code: said.code,
            msg: said.msg,
            details: match said.details.is_empty() {
                true => stderr,
                false => said.details,
            },
            version: said.cni_version,
        };
        match self.command.may_pass(failure.code) {
            true => Error::TryAgain(failure),
            false => Error::Plugin(failure),
        }
    }

    /// An answer that is none.
    pub(super) fn garbage(&self, why: &str, answer: &str) -> Error {
        garbage(self.plugin, self.command, why, answer)
    }
}

/// Raises a negative nice value of a plugin to 0. The daemon may run at a higher priority than other processes (`Nice=`), but its
/// plugins do not inherit it. The value is set for the process group, because `setpriority(PRIO_PROCESS)` changes one thread, and a
/// plugin written in Go has several threads soon after its start. It is set after exec, because a hook between fork and exec costs a
/// copy of the daemon's page tables: the standard library uses `CLONE_VFORK` only if there is no hook.
fn go_first_no_more(child: &Child) {
    let group = child.id().and_then(|id| i32::try_from(id).ok());
    // `None` would mean the daemon's own process group.
    let Some(group) = group.and_then(Pid::from_raw) else {
        return;
    };
    if matches!(rustix::process::getpriority_process(None), Ok(..0)) {
        // ESRCH: the plugin has exited.
        let _ = rustix::process::setpriority_pgrp(Some(group), 0);
    }
}

/// An answer that is none.
pub(super) fn garbage(plugin: &str, command: Command, why: &str, answer: &str) -> Error {
    Error::Garbage {
        plugin: plugin.to_owned(),
        command,
        why: why.to_owned(),
        excerpt: json::excerpt(answer),
    }
}

/// The error object (spec, section 5, Error). All is optional: a bad report of an error is a report, too.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Said {
    #[serde(rename = "cniVersion")]
    cni_version: String,
    code: u64,
    msg: String,
    details: String,
}

/// What came of it.
struct Heard {
    status: ExitStatus,
    stdout: Kept,
    stderr: Kept,
}

/// A child, killed with its group unless it was reaped.
struct Running {
    child: Child,
    group: Option<Pid>,
    reaped: bool,
}

impl Running {
    fn of(child: Child) -> Self {
        let id = child.id().and_then(|id| i32::try_from(id).ok());
        Self {
            group: id.and_then(Pid::from_raw),
            child,
            reaped: false,
        }
    }

    /// Reaps it last: until then its process id, which is its group's, can be no other's. What the plugin has started may hold its
    /// pipes open after its end: they are read until its end, and [`LINGER`] longer.
    async fn hear(&mut self, stdin: &[u8]) -> io::Result<Heard> {
        let input = self.child.stdin.take();
        let feed = async {
            if let Some(mut input) = input {
                // A plugin need not read what it has no use for.
                let _ = input.write_all(stdin).await;
            }
        };
        let (its_stdout, its_stderr) = (self.child.stdout.take(), self.child.stderr.take());
        let ended = Self::ended(self.group);
        let (mut stdout, mut stderr) = (Kept::default(), Kept::default());
        {
            let talk = async {
                let ((), out, err) = tokio::join!(
                    feed,
                    stdout.read(its_stdout, Keep::Head(OUTPUT_LIMIT)),
                    stderr.read(its_stderr, Keep::Tail(ERROR_LIMIT))
                );
                out.and(err)
            };
            tokio::pin!(talk);
            tokio::select! {
                talked = &mut talk => talked?,
                () = ended => {
                    if let Ok(talked) = tokio::time::timeout(LINGER, &mut talk).await {
                        talked?;
                    }
                }
            }
        }
        let status = self.child.wait().await?;
        self.reaped = true;
        Ok(Heard {
            status,
            stdout,
            stderr,
        })
    }

    /// Comes back when it has ended; does not reap it.
    async fn ended(group: Option<Pid>) {
        let Some(pid) = group else { return };
        let how = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        while matches!(rustix::process::waitid(WaitId::Pid(pid), how), Ok(None)) {
            tokio::time::sleep(END_STEP).await;
        }
    }

    /// Past its deadline. One that sleeps uninterruptibly in the kernel dies when that lets it, and is reaped by the runtime then.
    async fn end(&mut self) {
        self.kill();
        let dead = tokio::time::timeout(DEATH, self.child.wait()).await;
        self.reaped = dead.is_ok();
    }

    fn kill(&self) {
        if let Some(group) = self.group {
            // ESRCH: the group is gone.
            let _ = rustix::process::kill_process_group(group, Signal::KILL);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.reaped {
            self.kill();
        }
    }
}

/// Which end of a stream is worth keeping.
#[derive(Clone, Copy)]
enum Keep {
    Head(usize),
    Tail(usize),
}

/// What was kept of a stream.
#[derive(Default)]
struct Kept {
    bytes: Vec<u8>,
    /// How many bytes there were.
    seen: usize,
}

impl Kept {
    async fn read(&mut self, stream: Option<impl AsyncRead + Unpin>, keep: Keep) -> io::Result<()> {
        let Some(mut stream) = stream else {
            return Ok(());
        };
        let mut buffer = vec![0; 8 << 10];
        loop {
            let read = stream.read(&mut buffer).await?;
            if read == 0 {
                return Ok(());
            }
            self.seen = self.seen.saturating_add(read);
            self.bytes.extend_from_slice(&buffer[..read]);
            match keep {
                Keep::Head(limit) => self.bytes.truncate(limit),
                Keep::Tail(limit) => {
                    self.bytes.drain(..self.bytes.len().saturating_sub(limit));
                }
            }
        }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).trim().to_owned()
    }
}
