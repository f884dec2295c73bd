//! Requests and responses of the agent, and the limits of what the host reads from one.
//! Out of scope: sending and serving them; the messages of a shell (`shell_frame`).
//!
//! # Endpoints
//! | request | response |
//! |---|---|
//! | `GET /health` | [`Health`] |
//! | `GET /stats` | [`Stats`] |
//! | `POST /exec?`[`ExecQuery`], body: standard input | lines of [`Frame`]; with `buffered` one [`Buffered`]; with `background` 201 [`Started`] |
//! | `GET /exec` | array of [`ExecInfo`], the commands in the background |
//! | `GET /exec/{id}` | [`ExecInfo`]; 410 if it was removed |
//! | `GET /exec/{id}/logs?follow=false&from_id=0` | lines of [`Frame`] with `id` |
//! | `POST /exec/{id}/kill`, body [`Kill`] | [`Killed`]; also for commands in the foreground |
//! | `GET /exec/{id}/wait-exit?timeout=30` | [`Waited`]; the timeout is in seconds |
//! | `DELETE /exec/{id}` | [`Reaped`]; 409 while it runs |
//! | `GET /cp?`[`CopyQuery`] | bytes of a file, or a tar archive |
//! | `POST /cp?`[`CopyQuery`], body: bytes of a file, or a tar archive | empty |
//! | `GET /fs/stat?path=` | [`FileInfo`], of a link itself |
//! | `GET /fs/readdir?path=` | array of [`FileInfo`] |
//! | `POST /fs/mkdir`, body [`Mkdir`] | empty |
//! | `DELETE /fs/remove?path=&recursive=false` | empty |
//! | `GET /fs/watch?`[`WatchQuery`] | Server-Sent Events with a [`WatchEvent`] each |
//! | `GET /shell?`[`ShellQuery`], upgrade to WebSocket | messages of [`super::shell_frame`] |
//! | `GET /forward` with the header [`UPSTREAM`], upgrade to WebSocket | the bytes of a connection, in binary messages |
//!
//! Lines are `application/x-ndjson`. Errors have the body [`AgentError`].

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// The vsock port of the agent.
pub const PORT: u32 = 516;

/// The maximum size of the head of an HTTP response, and of a line before it, in bytes.
pub const HEAD_LIMIT: usize = 16 << 10;

/// The maximum size of a line of JSON, in bytes.
pub const LINE_LIMIT: usize = 1 << 20;

/// The maximum number of output bytes in one [`Frame`]: with base64 and JSON it stays far below [`LINE_LIMIT`].
pub const CHUNK: usize = 64 << 10;

/// The header of `GET /forward`: `HOST:PORT`, or `unix:PATH`, which the agent connects to in the guest.
pub const UPSTREAM: &str = "x-inlets-upstream";

/// A header of `GET /forward`: with the value `true`, an empty binary message ends the data of its direction, as `shutdown(2)` does. A
/// WebSocket itself has no half-close.
pub const HALF_CLOSE: &str = "x-slice-half-close";

/// The headers of a copied file.
pub mod copy_header {
    /// The permissions of a copied file, in octal, such as `0644`.
    pub const MODE: &str = "x-slicer-file-mode";
    /// Whether the source of a copy with cp-v1 is a `file` or a `directory`.
    pub const SOURCE_TYPE: &str = "x-slicer-source-type";
    /// The name of the source of a copy with cp-v1, in URL-safe base64 without padding.
    pub const SOURCE_NAME: &str = "x-slicer-source-name-base64";
    /// The modification time of a copied file, RFC 3339.
    pub const MTIME: &str = "x-slice-file-mtime";
}

/// The body of an error.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentError {
    /// The error, a sentence.
    pub error: String,
}

/// The state of the agent and of the guest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Health {
    /// The guest's host name.
    pub hostname: String,
    /// The version of the agent.
    pub agent_version: String,
    /// Time since the agent started, in nanoseconds.
    pub agent_uptime: u64,
    /// Time since the guest booted, in nanoseconds.
    pub system_uptime: u64,
    /// Whether the userdata has ended; true without userdata.
    pub userdata_ran: bool,
    /// The exit status of the userdata; absent while it runs, or if there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub userdata_exit_code: Option<i32>,
}

/// Figures of the guest. Sizes are in bytes, totals since boot.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Stats {
    /// The guest's host name.
    pub hostname: String,
    /// The architecture, as `uname -m`.
    pub arch: String,
    /// When the figures were read.
    pub timestamp: String,
    /// Time since the guest booted, such as `6m53s`.
    pub uptime: String,
    /// Number of CPUs.
    pub total_cpus: u64,
    /// `MemTotal`.
    pub total_memory: u64,
    /// `MemTotal` without `MemAvailable`.
    pub memory_used: u64,
    /// `MemAvailable`.
    pub memory_available: u64,
    /// Used memory in percent.
    pub memory_used_percent: f64,
    /// Load average of one minute.
    #[serde(rename = "loadAvg1")]
    pub load_avg_1: f64,
    /// Load average of five minutes.
    #[serde(rename = "loadAvg5")]
    pub load_avg_5: f64,
    /// Load average of fifteen minutes.
    #[serde(rename = "loadAvg15")]
    pub load_avg_15: f64,
    /// Bytes read from disks.
    pub disk_read_total: u64,
    /// Bytes written to disks.
    pub disk_write_total: u64,
    /// Bytes received by all links but `lo`.
    pub network_read_total: u64,
    /// Bytes sent by all links but `lo`.
    pub network_write_total: u64,
    /// Requests to disks in progress.
    #[serde(rename = "diskIOInflight")]
    pub disk_io_inflight: u64,
    /// TCP connections.
    pub open_connections: u64,
    /// Open files, `/proc/sys/fs/file-nr`.
    pub open_files: u64,
    /// `/proc/sys/kernel/random/entropy_avail`.
    pub entropy: u64,
    /// Size of the root file system.
    pub disk_space_total: u64,
    /// Used part of the root file system.
    pub disk_space_used: u64,
    /// Free part of the root file system.
    pub disk_space_free: u64,
    /// Used part of the root file system in percent.
    pub disk_space_used_percent: f64,
}

/// How output is encoded in JSON.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Encoding {
    /// As text; bytes that are not UTF-8 are replaced by U+FFFD.
    #[default]
    Text,
    /// In base64, without loss.
    Base64,
}

/// The query of `POST /exec`. Repeated keys are lists.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ExecQuery {
    /// The program: a path, or a name that is looked up in `PATH`.
    pub cmd: String,
    /// Its arguments.
    pub args: Vec<String>,
    /// Additional environment variables, `NAME=VALUE`.
    pub env: Vec<String>,
    /// The user; `None`: the normal user of the image, or root if there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// The group; `None`: the first group of the user.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gid: Option<u32>,
    /// The working directory; `~` is the user's home directory. `None`: the home directory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// A shell that runs `cmd` and `args`, joined by blanks, as a login shell; `None` or empty: they are executed directly.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shell: Option<String>,
    /// Whether the body of the request is the standard input.
    #[serde(skip_serializing_if = "is_false")]
    pub stdin: bool,
    /// Whether standard output is returned.
    pub stdout: bool,
    /// Whether standard error is returned.
    pub stderr: bool,
    /// How output is encoded.
    pub stdio: Encoding,
    /// Whether the response is one JSON object after the command has ended.
    #[serde(skip_serializing_if = "is_false")]
    pub buffered: bool,
    /// Whether the command outlives the request.
    #[serde(skip_serializing_if = "is_false")]
    pub background: bool,
    /// Size of the buffer for output of a command in the background, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ring_bytes: Option<u64>,
}

impl Default for ExecQuery {
    fn default() -> Self {
        Self {
            cmd: String::new(),
            args: Vec::new(),
            env: Vec::new(),
            uid: None,
            gid: None,
            cwd: None,
            shell: None,
            stdin: false,
            stdout: true,
            stderr: true,
            stdio: Encoding::default(),
            buffered: false,
            background: false,
            ring_bytes: None,
        }
    }
}

/// The kind of a [`Frame`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FrameKind {
    /// The command was started.
    Started,
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
    /// The command has ended.
    Exit,
    /// Earlier output is no longer in the buffer.
    Gap,
}

/// A line of the response of `exec`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frame {
    /// The position, for commands in the background: the first is 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<u64>,
    /// When it was sent.
    pub timestamp: Timestamp,
    /// The kind.
    #[serde(rename = "type")]
    pub kind: FrameKind,
    /// The id for requests about the command; in `started`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exec_id: Option<String>,
    /// The process id in the guest; in `started`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// When the command was started; in `started`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Timestamp>,
    /// The encoding of `stdout` and `stderr`; absent: text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encoding: Option<Encoding>,
    /// Standard output.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stdout: Option<String>,
    /// Standard error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stderr: Option<String>,
    /// The exit status; in `exit`. 128 and the number of the signal if a signal ended the command, 127 if the program does not exist, 126 if
    /// it cannot be executed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// When the command ended; in `exit`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<Timestamp>,
    /// The signal that ended the command, such as `SIGKILL`; in `exit`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<String>,
    /// Why the command could not be started; in `exit`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Lost bytes; in `gap`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dropped_bytes: Option<u64>,
    /// Lost frames; in `gap`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dropped_frames: Option<u64>,
}

impl Frame {
    /// A frame without content.
    pub fn new(kind: FrameKind, timestamp: Timestamp) -> Self {
        Self {
            id: None,
            timestamp,
            kind,
            exec_id: None,
            pid: None,
            started_at: None,
            encoding: None,
            stdout: None,
            stderr: None,
            exit_code: None,
            ended_at: None,
            signal: None,
            error: None,
            dropped_bytes: None,
            dropped_frames: None,
        }
    }
}

/// The response of `exec` with `buffered`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Buffered {
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// See [`Frame::exit_code`].
    pub exit_code: i32,
    /// The encoding of `stdout` and `stderr`; absent: text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encoding: Option<Encoding>,
    /// The process id in the guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// When the command was started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Timestamp>,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<Timestamp>,
    /// The signal that ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<String>,
    /// Why it could not be started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// The response of `exec` with `background`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Started {
    /// `ex_` and a random text.
    pub exec_id: String,
    /// The process id in the guest.
    pub pid: u32,
    /// When the command was started.
    pub started_at: Timestamp,
    /// Size of the buffer for its output, in bytes.
    pub ring_bytes: u64,
}

/// A command in the background.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecInfo {
    /// Its id.
    pub exec_id: String,
    /// The process id in the guest.
    pub pid: u32,
    /// The program.
    pub command: String,
    /// Its arguments.
    #[serde(default)]
    pub args: Vec<String>,
    /// The working directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// The user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// When it was started.
    pub started_at: Timestamp,
    /// Whether it runs.
    pub running: bool,
    /// See [`Frame::exit_code`]; absent while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// The signal that ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<String>,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<Timestamp>,
    /// Bytes of output.
    pub bytes_written: u64,
    /// Bytes of output that are no longer in the buffer.
    pub bytes_dropped: u64,
    /// The id of the next frame.
    pub next_id: u64,
    /// Size of the buffer, in bytes.
    pub ring_bytes: u64,
}

/// The body of `kill`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Kill {
    /// `TERM`, `KILL`, `INT`, `HUP`, `QUIT`, `USR1` or `USR2`, also with the prefix `SIG`; `None`: `TERM`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signal: Option<String>,
    /// Time before `KILL` is sent after `TERM`, in milliseconds; `None`: 5000.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grace_ms: Option<u64>,
}

/// The response of `kill`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Killed {
    /// The command.
    pub exec_id: String,
    /// Its process id in the guest.
    pub pid: u32,
    /// Whether it runs.
    pub running: bool,
    /// The signal, such as `SIGTERM`; empty if the command had ended already.
    pub signal_sent: String,
}

/// The response of `wait-exit`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waited {
    /// The command.
    pub exec_id: String,
    /// Whether it runs.
    pub running: bool,
    /// See [`Frame::exit_code`]; absent while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// The signal that ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<String>,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<Timestamp>,
    /// Whether the timeout ended the wait.
    pub timed_out: bool,
}

/// The response of the removal of a command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reaped {
    /// The command.
    pub exec_id: String,
    /// Always true.
    pub reaped: bool,
}

/// The query of `cp`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CopyQuery {
    /// The path in the guest; `~` is the user's home directory.
    pub path: String,
    /// `binary` (also if absent), `tar`, `cp-v1-binary`, `cp-v1-tar` or `cp-v1-recursive`. It is a text, because the error for another
    /// value is part of the protocol: `invalid mode: MODE`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
    /// The owner of new files; `None`: the normal user of the image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// The group of new files; `None`: the first group of the user.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gid: Option<u32>,
    /// The permissions of a new file, in octal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub permissions: Option<String>,
    /// The modification time of a new file, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtime: Option<Timestamp>,
    /// Patterns of paths that an archive does not contain; they match a whole relative path or its last component.
    pub exclude: Vec<String>,
    /// cp-v1: the name of the source, which is the name of the copy within an existing directory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_name: Option<String>,
    /// cp-v1: `file` or `directory`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_type: Option<String>,
    /// cp-v1: whether the content of the source directory is copied, not the directory itself.
    #[serde(skip_serializing_if = "is_false")]
    pub copy_contents: bool,
}

/// The type of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FileType {
    /// A regular file, or a special file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
}

/// A file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileInfo {
    /// Its name, without the directory.
    pub name: String,
    /// Its type.
    #[serde(rename = "type")]
    pub kind: FileType,
    /// Its size in bytes.
    pub size: u64,
    /// When it was modified.
    pub mtime: Timestamp,
    /// Its permissions, in octal, such as `0644`.
    pub mode: String,
}

/// The body of `mkdir`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mkdir {
    /// The directory.
    pub path: String,
    /// Whether its parents are created, too, and an existing directory is no error.
    #[serde(default)]
    pub recursive: bool,
    /// Its permissions, in octal; `None`: `0755`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
}

/// The query of `remove`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RemoveQuery {
    /// The file or directory.
    pub path: String,
    /// Whether the content of a directory is removed.
    pub recursive: bool,
}

/// The query of `watch`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct WatchQuery {
    /// Files and directories.
    pub paths: Vec<String>,
    /// Glob patterns of names; empty: all.
    pub patterns: Vec<String>,
    /// `create`, `write`, `remove`, `rename`, `chmod` or `all`; empty: all.
    pub events: Vec<String>,
    /// Whose files, for `~` in a path.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// Whether subdirectories are watched.
    #[serde(skip_serializing_if = "is_false")]
    pub recursive: bool,
    /// Whether the stream ends after the first event.
    #[serde(skip_serializing_if = "is_false")]
    pub one_shot: bool,
    /// Events of a file within this time are one event, such as `200ms`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub debounce: Option<String>,
    /// When the stream ends, such as `60s`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<String>,
    /// After how many events the stream ends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_events: Option<u64>,
}

/// A change of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WatchEvent {
    /// The position: the first is 1.
    pub id: u64,
    /// `create`, `write`, `remove`, `rename` or `chmod`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The file.
    pub path: String,
    /// When the event was read.
    pub timestamp: Timestamp,
    /// The size of the file in bytes; 0 if it does not exist.
    pub size: u64,
    /// Whether it is a directory.
    #[serde(rename = "isDir")]
    pub is_dir: bool,
}

/// The query of `shell`. With `cmd`, that program runs on the terminal instead of a login shell.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ShellQuery {
    /// The user; `None`: the normal user of the image, or root if there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// The group; `None`: the first group of the user.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gid: Option<u32>,
    /// The shell; `None`: the user's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shell: Option<String>,
    /// The working directory; `None`: the home directory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// A program that runs on the terminal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cmd: Option<String>,
    /// Its arguments.
    pub args: Vec<String>,
    /// Additional environment variables, `NAME=VALUE`.
    pub env: Vec<String>,
}

fn is_false(value: &bool) -> bool {
    !value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_read_as_they_are_written() {
        let exec = ExecQuery {
            cmd: "sh".to_owned(),
            args: vec!["-c".to_owned(), "echo a&b=c 100%".to_owned()],
            env: vec!["A=1".to_owned(), "B=ü".to_owned()],
            uid: Some(0),
            stdin: true,
            stdio: Encoding::Base64,
            ..ExecQuery::default()
        };
        let text = serde_html_form::to_string(&exec).expect("a query");
        assert_eq!(serde_html_form::from_str::<ExecQuery>(&text).unwrap(), exec);
    }

    /// The forms that published clients send.
    #[test]
    fn the_queries_of_other_clients_are_read() {
        let read = |text| serde_html_form::from_str::<ExecQuery>(text).unwrap();
        let direct = read("cmd=uname&args=-a&stdio=base64&buffered=true");
        assert_eq!(
            (direct.cmd.as_str(), direct.args.as_slice()),
            ("uname", &["-a".to_owned()][..])
        );
        assert!(direct.buffered && direct.stdout && direct.uid.is_none());
        let other = read("cmd=x&uid=0&permissions=0644&stdout=false&unknown=1");
        assert!(!other.stdout && other.uid == Some(0));
    }

    #[test]
    fn the_exit_status_0_is_part_of_the_last_frame_only() {
        let text = |frame: &Frame| serde_json::to_string(frame).expect("JSON");
        let mut frame = Frame::new(FrameKind::Exit, Timestamp::UNIX_EPOCH);
        frame.exit_code = Some(0);
        assert!(text(&frame).contains(r#""exit_code":0"#));
        let output = Frame::new(FrameKind::Stdout, Timestamp::UNIX_EPOCH);
        assert!(!text(&output).contains("exit_code"));
    }
}
