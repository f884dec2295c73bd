//! Starts a plugin, writes its input, reads its output and enforces the deadline (spec, section 2).
//! Out of scope: the content of the input; the meaning of the output.

use std::ffi::OsString;
use std::io;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Resource, Rlimit, Signal, WaitId, WaitIdOptions};
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{self, Child};

use super::command::Command;
use super::error::{Failure, LIMITED, NOT_AVAILABLE, TRY_AGAIN};
use super::{Error, json};
use crate::clock;

/// The output of a plugin has some kilobytes. Bytes beyond this limit are read, so that the plugin does not block, and discarded.
const OUTPUT_LIMIT: usize = 1 << 20;

/// The last bytes of standard error that are kept.
const ERROR_LIMIT: usize = 4 << 10;

/// How long to read from the pipes after the plugin has exited.
const PIPE_GRACE_PERIOD: Duration = Duration::from_millis(500);

/// The interval of checks whether a plugin that keeps its pipes open has exited.
const EXIT_POLL_INTERVAL: Duration = Duration::from_millis(20);

/// How long to wait for the exit of a plugin that was killed.
const KILL_DEADLINE: Duration = Duration::from_secs(2);

/// A plugin that is open for writing cannot be started (ETXTBSY): it is being replaced, and the start is retried.
const BUSY_TRIES: u32 = 10;
const BUSY_DELAY: Duration = Duration::from_millis(100);

/// Whether an error code is temporary (spec, section 5, Error; section 2, STATUS).
fn is_temporary(command: Command, code: u64) -> bool {
    match command {
        Command::Status => matches!(code, TRY_AGAIN | NOT_AVAILABLE | LIMITED),
        Command::Add | Command::Del | Command::Check | Command::Gc | Command::Version => {
            code == TRY_AGAIN
        }
    }
}

/// One call of one plugin.
pub(super) struct Call<'a> {
    pub plugin: &'a str,
    pub program: &'a Path,
    pub command: Command,
    /// In addition to what is inherited.
    pub environment: Vec<(&'static str, OsString)>,
    pub stdin: String,
    pub deadline: Duration,
    pub file_limit: Option<(u64, u64)>,
}

impl Call<'_> {
    /// Returns the standard output of a plugin that succeeded. In every case the plugin has exited and was reaped, unless it sleeps
    /// uninterruptibly past its deadline. If this future is dropped, the plugin is killed, and reaped later.
    pub(super) async fn run(self) -> Result<String, Error> {
        let start = clock::monotonic();
        let mut running = RunningPlugin::of(self.start().await?);
        let communication = running.communicate(self.stdin.as_bytes());
        let output = match tokio::time::timeout(self.deadline, communication).await {
            Ok(result) => {
                result.map_err(|error| Error::io("communicate with", self.program, error))?
            }
            Err(_) => {
                running.kill_and_wait().await;
                return Err(Error::Deadline {
                    plugin: self.plugin.to_owned(),
                    command: self.command,
                    after: self.deadline,
                });
            }
        };
        let microseconds = clock::monotonic().duration_since(start).as_micros();
        let stderr = output.stderr.text();
        tracing::debug!(plugin = self.plugin, command = %self.command, status = %output.status, microseconds, stderr, "a CNI plugin ended");
        self.check_output(output, stderr)
    }

    async fn start(&self) -> Result<Child, Error> {
        let mut tries = 0;
        loop {
            match self.prepare().spawn() {
                Ok(child) => {
                    self.set_file_limit(&child);
                    reset_nice(&child);
                    return Ok(child);
                }
                Err(error)
                    if error.kind() == io::ErrorKind::ExecutableFileBusy && tries < BUSY_TRIES =>
                {
                    tries += 1;
                    tokio::time::sleep(BUSY_DELAY).await;
                }
                Err(error) => return Err(Error::io("start", self.program, error)),
            }
        }
    }

    /// Sets RLIMIT_NOFILE of a running child: it does not read the limit in its first microseconds.
    fn set_file_limit(&self, child: &Child) {
        let pid = child.id().and_then(|id| i32::try_from(id).ok());
        if let (Some((soft, hard)), Some(pid)) = (self.file_limit, pid.and_then(Pid::from_raw)) {
            let limit = Rlimit {
                current: Some(soft),
                maximum: Some(hard),
            };
            // ESRCH: the plugin has exited.
            let _ = rustix::process::prlimit(Some(pid), Resource::Nofile, limit);
        }
    }

    /// The plugin gets a process group of its own, so that its children, such as plugins that it delegates to, are killed with it.
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

    fn check_output(&self, output: Output, stderr: String) -> Result<String, Error> {
        let is_complete = output.stdout.total <= OUTPUT_LIMIT;
        let stdout = String::from_utf8(output.stdout.bytes);
        match (stdout, output.status.success()) {
            (Ok(stdout), true) if is_complete => Ok(stdout),
            (Ok(stdout), false) if is_complete => Err(self.failure(&stdout, stderr, output.status)),
            (Ok(stdout), _) => Err(self.invalid_output("longer than 1 MiB", &stdout)),
            (Err(error), _) => {
                let text = String::from_utf8_lossy(error.as_bytes()).into_owned();
                Err(self.invalid_output("invalid UTF-8", &text))
            }
        }
    }

    /// Parses the error object, which the plugin writes to standard output.
    fn failure(&self, stdout: &str, stderr: String, status: ExitStatus) -> Error {
        let error_object = match stdout.trim() {
            "" => ErrorObject {
                msg: format!("the plugin wrote no error object ({status})"),
                ..ErrorObject::default()
            },
            text => match serde_json::from_str::<ErrorObject>(text) {
                Ok(parsed) => parsed,
                Err(error) => {
                    return self
                        .invalid_output(&format!("{status}, invalid error object: {error}"), text);
                }
            },
        };
        let failure = Failure {
            plugin: self.plugin.to_owned(),
            command: self.command,
            code: error_object.code,
            msg: error_object.msg,
            details: match error_object.details.is_empty() {
                true => stderr,
                false => error_object.details,
            },
            version: error_object.cni_version,
        };
        match is_temporary(self.command, failure.code) {
            true => Error::TryAgain(failure),
            false => Error::Plugin(failure),
        }
    }

    /// The error for invalid output.
    pub(super) fn invalid_output(&self, reason: &str, output: &str) -> Error {
        invalid_output(self.plugin, self.command, reason, output)
    }
}

/// Raises a negative nice value of a plugin to 0. The daemon may run at a higher priority than other processes (`Nice=`), but its
/// plugins do not inherit it. The value is set for the process group, because `setpriority(PRIO_PROCESS)` changes one thread, and a
/// plugin written in Go has several threads soon after its start. It is set after exec, because a hook between fork and exec costs a
/// copy of the daemon's page tables: the standard library uses `CLONE_VFORK` only if there is no hook.
fn reset_nice(child: &Child) {
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

/// The error for invalid output.
pub(super) fn invalid_output(plugin: &str, command: Command, reason: &str, output: &str) -> Error {
    Error::InvalidOutput {
        plugin: plugin.to_owned(),
        command,
        why: reason.to_owned(),
        excerpt: json::excerpt(output),
    }
}

/// The error object (spec, section 5, Error). All keys are optional: an incomplete error object is reported, too.
#[derive(Default, Deserialize)]
#[serde(default)]
struct ErrorObject {
    #[serde(rename = "cniVersion")]
    cni_version: String,
    code: u64,
    msg: String,
    details: String,
}

/// The exit status and the output of a plugin.
struct Output {
    status: ExitStatus,
    stdout: Captured,
    stderr: Captured,
}

/// A running plugin. On drop, its process group is killed unless it was reaped.
struct RunningPlugin {
    child: Child,
    group: Option<Pid>,
    reaped: bool,
}

impl RunningPlugin {
    fn of(child: Child) -> Self {
        let id = child.id().and_then(|id| i32::try_from(id).ok());
        Self {
            group: id.and_then(Pid::from_raw),
            child,
            reaped: false,
        }
    }

    /// Writes the input, reads the output, then reaps the plugin: until then its process id, which is that of its group, is not reused.
    /// Children of the plugin may keep its pipes open: they are read for at most [`PIPE_GRACE_PERIOD`] after the plugin has exited.
    async fn communicate(&mut self, stdin: &[u8]) -> io::Result<Output> {
        let input = self.child.stdin.take();
        let write_stdin = async {
            if let Some(mut input) = input {
                // EPIPE: a plugin is not required to read its input.
                let _ = input.write_all(stdin).await;
            }
        };
        let (stdout_pipe, stderr_pipe) = (self.child.stdout.take(), self.child.stderr.take());
        let exit = Self::wait_for_exit(self.group);
        let (mut stdout, mut stderr) = (Captured::default(), Captured::default());
        {
            let exchange = async {
                let ((), out, err) = tokio::join!(
                    write_stdin,
                    stdout.read(stdout_pipe, Keep::Head(OUTPUT_LIMIT)),
                    stderr.read(stderr_pipe, Keep::Tail(ERROR_LIMIT))
                );
                out.and(err)
            };
            tokio::pin!(exchange);
            tokio::select! {
                talked = &mut exchange => talked?,
                () = exit => {
                    if let Ok(result) = tokio::time::timeout(PIPE_GRACE_PERIOD, &mut exchange).await {
                        result?;
                    }
                }
            }
        }
        let status = self.child.wait().await?;
        self.reaped = true;
        Ok(Output {
            status,
            stdout,
            stderr,
        })
    }

    /// Waits until the plugin has exited, without reaping it.
    async fn wait_for_exit(group: Option<Pid>) {
        let Some(pid) = group else { return };
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        while matches!(rustix::process::waitid(WaitId::Pid(pid), options), Ok(None)) {
            tokio::time::sleep(EXIT_POLL_INTERVAL).await;
        }
    }

    /// Kills a plugin that has exceeded its deadline. If it sleeps uninterruptibly, it exits later and is reaped by the tokio runtime.
    async fn kill_and_wait(&mut self) {
        self.kill();
        let exited = tokio::time::timeout(KILL_DEADLINE, self.child.wait()).await;
        self.reaped = exited.is_ok();
    }

    fn kill(&self) {
        if let Some(group) = self.group {
            // ESRCH: all processes of the group have exited.
            let _ = rustix::process::kill_process_group(group, Signal::KILL);
        }
    }
}

impl Drop for RunningPlugin {
    fn drop(&mut self) {
        if !self.reaped {
            self.kill();
        }
    }
}

/// Which bytes of a stream are kept.
#[derive(Clone, Copy)]
enum Keep {
    Head(usize),
    Tail(usize),
}

/// The kept bytes of a stream.
#[derive(Default)]
struct Captured {
    bytes: Vec<u8>,
    /// The total number of bytes in the stream.
    total: usize,
}

impl Captured {
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
            self.total = self.total.saturating_add(read);
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
