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
//! | `GET /userdata/logs?`[`UserdataLogsQuery`] | bytes: the output of the userdata |
//! | `GET /shell?`[`ShellQuery`], upgrade to WebSocket | messages of [`super::shell_frame`] |
//! | `GET /sftp?`[`SftpQuery`], upgrade to WebSocket | the bytes of version 3 of SFTP, in binary messages; an empty one ends a direction |
//! | `GET /forward` with the header [`UPSTREAM`], upgrade to WebSocket | the bytes of a connection, in binary messages |
//!
//! Two requests are the daemon's own, and it forwards neither of them: `PUT /provision`, body [`Provision`], with the response
//! [`Provisioned`]; `GET /userdata/wait-exit`, which is answered with [`UserdataStatus`] when the userdata has ended.
//!
//! Lines are `application/x-ndjson`. Errors have the body [`AgentError`].

mod exec;
mod files;
mod provision;

use serde::{Deserialize, Serialize};

pub use exec::{
    Buffered, Encoding, ExecInfo, ExecQuery, Frame, FrameKind, Kill, Killed, Reaped, Started,
    Waited,
};
pub use files::{CopyQuery, FileInfo, FileType, Mkdir, RemoveQuery, WatchEvent, WatchQuery};

pub use provision::{
    PROVISION_LIMIT, Provision, Provisioned, Secret, UserdataLogsQuery, UserdataState,
    UserdataStatus,
};

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
#[cfg_attr(feature = "host", derive(utoipa::ToSchema))]
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
    /// The generation that the guest has got completely, empty if none; absent if the agent cannot provision the guest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generation: Option<String>,
    /// The state of the userdata.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub userdata: Option<UserdataStatus>,
    /// Whether the guest is still in its initrd although it has a root file system.
    #[serde(skip_serializing_if = "is_false")]
    pub in_initrd: bool,
}

/// Figures of the guest. Sizes are in bytes, totals since boot.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "host", derive(utoipa::ToSchema))]
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

/// The query of `shell`. With `cmd`, that program runs on the terminal instead of a login shell.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "host", derive(utoipa::IntoParams), into_params(parameter_in = Query))]
#[serde(default)]
pub struct ShellQuery {
    /// The name of the user, or its id; not with `uid`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
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
    /// The width of the terminal when the program starts; `None`: 80.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub columns: Option<u32>,
    /// The height of the terminal when the program starts; `None`: 24.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rows: Option<u32>,
    /// A program that runs on the terminal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cmd: Option<String>,
    /// Its arguments.
    pub args: Vec<String>,
    /// Additional environment variables, `NAME=VALUE`.
    pub env: Vec<String>,
}

/// The query of `sftp`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "host", derive(utoipa::IntoParams), into_params(parameter_in = Query))]
#[serde(default)]
pub struct SftpQuery {
    /// The name of the user, or its id; not with `uid`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// As in [`ShellQuery`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// As in [`ShellQuery`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gid: Option<u32>,
}

fn is_false(value: &bool) -> bool {
    !value
}
