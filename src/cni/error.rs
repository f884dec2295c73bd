//! Errors of this module, with messages for users.
//! Out of scope: how a caller handles them.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::command::Command;
use super::json;

/// Error code: the configuration has a key that the plugin does not support (spec, section 5, Error).
pub const UNSUPPORTED_FIELD: u64 = 2;
/// Error code: the plugin does not know the container, so there is nothing to clean up (spec, section 5, Error).
pub const UNKNOWN_CONTAINER: u64 = 3;
/// Error code: invalid network configuration (spec, section 5, Error).
pub const INVALID_CONFIG: u64 = 7;
/// Error code: try again later (spec, section 5, Error).
pub const TRY_AGAIN: u64 = 11;
/// Error code of STATUS: the plugin cannot serve ADD.
pub const NOT_AVAILABLE: u64 = 50;
/// Error code of STATUS: in addition, existing containers may have limited connectivity.
pub const LIMITED: u64 = 51;

/// The errors of this module.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No file in the configuration directory describes a network of that name.
    #[error(
        "CNI network `{network}` not found: searched {}, found {}{}",
        .searched.display(), join_or(.found, "no network"), unreadable_suffix(.unreadable)
    )]
    NetworkNotFound {
        /// The requested name.
        network: String,
        /// The directory that was searched.
        searched: PathBuf,
        /// The names of the configured networks, sorted.
        found: Vec<String>,
        /// Files that could not be read, each with the reason.
        unreadable: Vec<String>,
    },
    /// A configuration does not conform to the spec.
    #[error("{}: expected {expected}, found {found}", .path.display())]
    InvalidConfig {
        /// The file.
        path: PathBuf,
        /// The invalid value: `` `plugins[1].type` = 7 ``.
        found: String,
        /// A description of a valid value.
        expected: String,
    },
    /// A name or an argument of the caller does not conform to the spec.
    #[error("invalid {what} `{value}`: {why}")]
    InvalidArgument {
        /// `container id`, `interface name`, `CNI argument`, …
        what: &'static str,
        /// The invalid value.
        value: String,
        /// The rule that the value violates: `must not be empty`.
        why: &'static str,
    },
    /// No directory contains the program of the plugin.
    #[error("CNI plugin `{plugin}` not found in {}", join_or(&display_all(.searched), "any directory: CNI_PATH is empty"))]
    PluginNotFound {
        /// The name of the plugin: `type` in the configuration.
        plugin: String,
        /// The directories, in search order.
        searched: Vec<PathBuf>,
    },
    /// A configuration or a plugin supports none of the expected versions of the spec.
    #[error("{what} supports no usable version of CNI: found {}, expected one of {}", join_or(.found, "none, which means 0.1.0"), join_or(.expected, "none"))]
    UnsupportedVersion {
        /// The path of a file, or a plugin.
        what: String,
        /// The versions that it supports.
        found: Vec<String>,
        /// The versions of which one is required.
        expected: Vec<String>,
    },
    /// The plugins of the network cannot provide what the VM requests.
    #[error("{0}")]
    UnsupportedRequest(String),
    /// The plugin failed and returned an error object.
    #[error(transparent)]
    Plugin(Failure),
    /// The plugin failed temporarily: code 11, for STATUS also 50 and 51.
    #[error("{0}; try again later")]
    TryAgain(Failure),
    /// The output of the plugin does not conform to the spec.
    #[error("CNI plugin `{plugin}` returned invalid output for {command} ({why}): {excerpt}")]
    InvalidOutput {
        /// The name of the plugin.
        plugin: String,
        /// The operation.
        command: Command,
        /// What is invalid in the output.
        why: String,
        /// The beginning of the output.
        excerpt: String,
    },
    /// The plugin exceeded its deadline. It was killed together with the processes that it had started.
    #[error("CNI plugin `{plugin}` did not finish {command} within {after:?} and was killed")]
    Deadline {
        /// The name of the plugin.
        plugin: String,
        /// The operation.
        command: Command,
        /// The deadline.
        after: Duration,
    },
    /// ADD of an attachment that was added before and not deleted since (spec, section 2, ADD).
    #[error(
        "interface {ifname} of container {container_id} is already attached to network `{network}`: it was added and not deleted since"
    )]
    AlreadyAdded {
        /// The network.
        network: String,
        /// The id of the container.
        container_id: String,
        /// The name of the interface.
        ifname: String,
    },
    /// CHECK of an attachment that was never added, or was deleted since (spec, section 2, CHECK).
    #[error(
        "interface {ifname} of container {container_id} is not attached to network `{network}`: no ADD is recorded"
    )]
    NotAdded {
        /// The network.
        network: String,
        /// The id of the container.
        container_id: String,
        /// The name of the interface.
        ifname: String,
    },
    /// A record of an ADD, written by us or by another user of libcni's cache, is invalid.
    #[error("the CNI cache record {} is damaged: {why}", .path.display())]
    DamagedCache {
        /// The file.
        path: PathBuf,
        /// What is invalid in it.
        why: String,
    },
    /// A system call failed.
    #[error("cannot {operation} {}", .path.display())]
    Io {
        /// The operation as a verb: `read`, `start`.
        operation: &'static str,
        /// The file or program.
        path: PathBuf,
        /// The error of the system call.
        #[source]
        source: io::Error,
    },
}

/// The error object of a plugin (spec, section 5, Error).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("CNI plugin `{plugin}` failed {command} with code {code}: {}{}", json::abbreviate(.msg), in_parentheses(.details))]
pub struct Failure {
    /// The name of the plugin.
    pub plugin: String,
    /// The operation.
    pub command: Command,
    /// 0 if it is missing; codes below 100 are defined by the spec, codes from 100 on by the plugin.
    pub code: u64,
    /// The short message; ours if the plugin wrote none.
    pub msg: String,
    /// The long message or, without one, the end of standard error. May be empty.
    pub details: String,
    /// `cniVersion` of the error object; empty if it is missing.
    pub version: String,
}

impl Error {
    pub(super) fn io(operation: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io {
            operation,
            path: path.to_owned(),
            source,
        }
    }

    pub(super) fn invalid_config(
        path: &Path,
        found: impl Into<String>,
        expected: impl Into<String>,
    ) -> Self {
        Self::InvalidConfig {
            path: path.to_owned(),
            found: found.into(),
            expected: expected.into(),
        }
    }

    /// A configuration that cannot be parsed.
    pub(super) fn unparsable(path: &Path, expected: &str, error: &dyn std::error::Error) -> Self {
        Self::invalid_config(path, format!("invalid data ({error})"), expected)
    }

    /// Whether a DEL that failed with this error may succeed if it is repeated at once. The bridge and ptp plugins up to 1.5 delete the
    /// interface, then fail if the iptables chain that they remove next does not exist, and succeed if the interface does not exist. A DEL
    /// should not be repeated at once if the plugin returned code 11 (try again later), does not terminate, or is not installed.
    pub fn should_retry_now(&self) -> bool {
        matches!(self, Self::Plugin(_) | Self::InvalidOutput { .. })
    }

    /// Whether the plugin of this name exceeded its deadline.
    pub(super) fn is_deadline_of(&self, name: &str) -> bool {
        matches!(self, Self::Deadline { plugin, .. } if plugin == name)
    }

    /// The code of the plugin's error object.
    pub fn code(&self) -> Option<u64> {
        match self {
            Self::Plugin(failure) | Self::TryAgain(failure) => Some(failure.code),
            Self::NetworkNotFound { .. }
            | Self::InvalidConfig { .. }
            | Self::InvalidArgument { .. }
            | Self::PluginNotFound { .. }
            | Self::UnsupportedVersion { .. }
            | Self::UnsupportedRequest(_)
            | Self::InvalidOutput { .. }
            | Self::Deadline { .. }
            | Self::AlreadyAdded { .. }
            | Self::NotAdded { .. }
            | Self::DamagedCache { .. }
            | Self::Io { .. } => None,
        }
    }
}

impl Error {
    /// Whether ADD fails in the same way until the network's configuration or the request changes.
    pub fn is_permanent(&self) -> bool {
        match self {
            Self::UnsupportedRequest(_) | Self::InvalidConfig { .. } => true,
            Self::Plugin(failure) => {
                let is_config_error = matches!(failure.code, UNSUPPORTED_FIELD | INVALID_CONFIG);
                failure.command == Command::Add && is_config_error
            }
            Self::TryAgain(_)
            | Self::NetworkNotFound { .. }
            | Self::InvalidArgument { .. }
            | Self::PluginNotFound { .. }
            | Self::UnsupportedVersion { .. }
            | Self::InvalidOutput { .. }
            | Self::Deadline { .. }
            | Self::AlreadyAdded { .. }
            | Self::NotAdded { .. }
            | Self::DamagedCache { .. }
            | Self::Io { .. } => false,
        }
    }
}

fn join_or(items: &[String], if_empty: &str) -> String {
    match items.is_empty() {
        true => if_empty.to_owned(),
        false => items.join(", "),
    }
}

fn display_all(paths: &[PathBuf]) -> Vec<String> {
    paths
        .iter()
        .map(|path| path.display().to_string())
        .collect()
}

fn unreadable_suffix(files: &[String]) -> String {
    match files.is_empty() {
        true => String::new(),
        false => format!("; could not read {}", files.join("; ")),
    }
}

fn in_parentheses(details: &str) -> String {
    match details.is_empty() {
        true => String::new(),
        false => format!(" ({})", json::abbreviate(details)),
    }
}
