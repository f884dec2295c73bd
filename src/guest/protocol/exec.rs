//! Commands: requests, the lines of their output, commands in the background.
//! Out of scope: executing them.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::is_false;

/// How output is encoded in JSON.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "host", derive(utoipa::ToSchema))]
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
#[cfg_attr(feature = "host", derive(utoipa::IntoParams), into_params(parameter_in = Query))]
#[serde(default)]
pub struct ExecQuery {
    /// The program: a path, or a name that is looked up in `PATH`.
    #[cfg_attr(feature = "host", param(required = true))]
    pub cmd: String,
    /// Its arguments.
    pub args: Vec<String>,
    /// Additional environment variables, `NAME=VALUE`.
    pub env: Vec<String>,
    /// The name of the user, or its id; not with `uid`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
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
            user: None,
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
#[cfg_attr(feature = "host", derive(utoipa::ToSchema))]
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
#[cfg_attr(feature = "host", derive(utoipa::ToSchema))]
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
#[cfg_attr(feature = "host", derive(utoipa::ToSchema))]
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
#[cfg_attr(feature = "host", derive(utoipa::ToSchema))]
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
#[cfg_attr(feature = "host", derive(utoipa::ToSchema))]
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
#[cfg_attr(feature = "host", derive(utoipa::ToSchema))]
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
#[cfg_attr(feature = "host", derive(utoipa::ToSchema))]
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
#[cfg_attr(feature = "host", derive(utoipa::ToSchema))]
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
#[cfg_attr(feature = "host", derive(utoipa::ToSchema))]
pub struct Reaped {
    /// The command.
    pub exec_id: String,
    /// Always true.
    pub reaped: bool,
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
