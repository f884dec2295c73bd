//! What goes wrong between a network configuration and an answer, for a person to read.
//! Out of scope: what to do about it.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::invoke::Command;
use super::json;

/// The code of a configuration with a key that the plugin does not support (spec, section 5, Error).
pub const UNSUPPORTED_FIELD: u64 = 2;
/// The code of a plugin that does not know the container, and so has nothing to clean up (spec, section 5, Error).
pub const UNKNOWN_CONTAINER: u64 = 3;
/// The code of a configuration that the plugin cannot use (spec, section 5, Error).
pub const INVALID_CONFIG: u64 = 7;
/// The code of "try again later" (spec, section 5, Error).
pub const TRY_AGAIN: u64 = 11;
/// Of STATUS: the plugin cannot serve ADD.
pub const NOT_AVAILABLE: u64 = 50;
/// Of STATUS: nor may the containers that there are be able to talk.
pub const LIMITED: u64 = 51;

/// Everything that this room fails with.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No file of the folder describes a network of that name.
    #[error(
        "no CNI network is called `{network}`: searched {}, found {}{}",
        .searched.display(), listed(.found, "no network"), besides(.unreadable)
    )]
    NoSuchNetwork {
        /// The name that was looked for.
        network: String,
        /// The folder that was searched.
        searched: PathBuf,
        /// The names that are there, sorted.
        found: Vec<String>,
        /// Files that could not be read, each with the reason.
        unreadable: Vec<String>,
    },
    /// A configuration is not what the spec says that it must be.
    #[error("{}: expected {expected}, found {found}", .path.display())]
    BadConfig {
        /// The file.
        path: PathBuf,
        /// What stands there: `` `plugins[1].type` = 7 ``.
        found: String,
        /// What should stand there.
        expected: String,
    },
    /// A name or an argument of the caller does not fit the protocol.
    #[error("{what} `{value}` {why}")]
    BadArgument {
        /// `container id`, `interface name`, `CNI argument`, …
        what: &'static str,
        /// What was given.
        value: String,
        /// The rule that it breaks.
        why: &'static str,
    },
    /// The plugin's program is in none of the folders.
    #[error("CNI plugin `{plugin}` was not found in {}", listed(&shown(.searched), "no folder: CNI_PATH is empty"))]
    NoSuchPlugin {
        /// Its name, the `type` in the configuration.
        plugin: String,
        /// The folders, in order.
        searched: Vec<PathBuf>,
    },
    /// No version of the spec is common to both sides.
    #[error("{what} speaks CNI {}, but {} is needed", listed(.found, "without a version, which means 0.1.0"), listed(.expected, "none"))]
    UnsupportedVersion {
        /// A file, or a plugin.
        what: String,
        /// Its versions.
        found: Vec<String>,
        /// The versions that would have done.
        expected: Vec<String>,
    },
    /// The plugins of the network cannot meet what the VM requests.
    #[error("{0}")]
    Unmet(String),
    /// The plugin said why it failed.
    #[error(transparent)]
    Plugin(Failure),
    /// The plugin said that the trouble will pass: code 11, for STATUS also 50 and 51.
    #[error("{0}; try again later")]
    TryAgain(Failure),
    /// The plugin's answer is not what the spec says that it must be.
    #[error("CNI plugin `{plugin}` answered {command} with garbage ({why}): {excerpt}")]
    Garbage {
        /// Its name.
        plugin: String,
        /// What it was asked.
        command: Command,
        /// What is wrong with the answer.
        why: String,
        /// The beginning of the answer, or of what it wrote to standard error when there was no answer.
        excerpt: String,
    },
    /// The plugin did not end in time. It and what it had started are dead.
    #[error("CNI plugin `{plugin}` did not finish {command} within {after:?} and was killed")]
    Deadline {
        /// Its name.
        plugin: String,
        /// What it was asked.
        command: Command,
        /// The deadline.
        after: Duration,
    },
    /// ADD, while the last ADD of this attachment was not followed by a DEL (spec, section 2, ADD).
    #[error(
        "interface {ifname} of container {container_id} was added to network `{network}` before and not deleted since"
    )]
    AddedBefore {
        /// The network.
        network: String,
        /// Whose attachment it is.
        container_id: String,
        /// Its interface.
        ifname: String,
    },
    /// CHECK of what was never added, or deleted since (spec, section 2, CHECK).
    #[error(
        "interface {ifname} of container {container_id} was never added to network `{network}`"
    )]
    NeverAdded {
        /// The network.
        network: String,
        /// Whose attachment it is.
        container_id: String,
        /// Its interface.
        ifname: String,
    },
    /// What we, or another user of libcni's cache, remembered of an ADD cannot be understood.
    #[error("the record {} of a CNI attachment is damaged: {why}", .path.display())]
    DamagedCache {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The system refused something.
    #[error("cannot {doing} {}", .path.display())]
    Io {
        /// A verb: `read`, `start`.
        doing: &'static str,
        /// The file or program.
        path: PathBuf,
        /// The refusal.
        #[source]
        source: io::Error,
    },
}

/// A plugin's own words: the error object of the spec's section 5.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("CNI plugin `{plugin}` failed {command} with code {code}: {}{}", json::ends(.msg), aside(.details))]
pub struct Failure {
    /// The name of the plugin.
    pub plugin: String,
    /// What it was asked.
    pub command: Command,
    /// 0 when it gave none; below 100 the codes of the spec; from 100 on the plugin's own.
    pub code: u64,
    /// The short message; may be ours when it gave none.
    pub msg: String,
    /// The longer message or, without one, the last of what it wrote to standard error. May be empty.
    pub details: String,
    /// The version of the spec that it wrote the error in; empty when it did not say.
    pub version: String,
}

impl Error {
    pub(super) fn io(doing: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io {
            doing,
            path: path.to_owned(),
            source,
        }
    }

    pub(super) fn bad_config(
        path: &Path,
        found: impl Into<String>,
        expected: impl Into<String>,
    ) -> Self {
        Self::BadConfig {
            path: path.to_owned(),
            found: found.into(),
            expected: expected.into(),
        }
    }

    /// A configuration that cannot even be read.
    pub(super) fn not_a(path: &Path, expected: &str, why: &dyn std::error::Error) -> Self {
        Self::bad_config(path, format!("something else ({why})"), expected)
    }

    /// Whether a DEL that failed with this error may succeed if it is repeated at once. The bridge and ptp plugins up to 1.5 delete the
    /// interface, then fail if the iptables chain that they remove next is gone, and succeed if there is no interface any more. It is no
    /// use to repeat DEL of a plugin that answered "try again later" (code 11), does not terminate, or is not installed.
    pub fn may_be_done_now(&self) -> bool {
        matches!(self, Self::Plugin(_) | Self::Garbage { .. })
    }

    /// Whether the plugin of this name exceeded its deadline.
    pub(super) fn is_deadline_of(&self, name: &str) -> bool {
        matches!(self, Self::Deadline { plugin, .. } if plugin == name)
    }

    /// The code of a plugin that gave one.
    pub fn code(&self) -> Option<u64> {
        match self {
            Self::Plugin(failure) | Self::TryAgain(failure) => Some(failure.code),
            Self::NoSuchNetwork { .. }
            | Self::BadConfig { .. }
            | Self::BadArgument { .. }
            | Self::NoSuchPlugin { .. }
            | Self::UnsupportedVersion { .. }
            | Self::Unmet(_)
            | Self::Garbage { .. }
            | Self::Deadline { .. }
            | Self::AddedBefore { .. }
            | Self::NeverAdded { .. }
            | Self::DamagedCache { .. }
            | Self::Io { .. } => None,
        }
    }
}

impl Error {
    /// Whether ADD fails in the same way until the network's configuration or the request changes.
    pub fn waits_for_a_change(&self) -> bool {
        match self {
            Self::Unmet(_) | Self::BadConfig { .. } => true,
            Self::Plugin(failure) => {
                let of_config = matches!(failure.code, UNSUPPORTED_FIELD | INVALID_CONFIG);
                failure.command == Command::Add && of_config
            }
            Self::TryAgain(_)
            | Self::NoSuchNetwork { .. }
            | Self::BadArgument { .. }
            | Self::NoSuchPlugin { .. }
            | Self::UnsupportedVersion { .. }
            | Self::Garbage { .. }
            | Self::Deadline { .. }
            | Self::AddedBefore { .. }
            | Self::NeverAdded { .. }
            | Self::DamagedCache { .. }
            | Self::Io { .. } => false,
        }
    }
}

fn listed(items: &[String], none: &str) -> String {
    match items.is_empty() {
        true => none.to_owned(),
        false => items.join(", "),
    }
}

fn shown(paths: &[PathBuf]) -> Vec<String> {
    paths
        .iter()
        .map(|path| path.display().to_string())
        .collect()
}

fn besides(files: &[String]) -> String {
    match files.is_empty() {
        true => String::new(),
        false => format!("; could not read {}", files.join("; ")),
    }
}

fn aside(details: &str) -> String {
    match details.is_empty() {
        true => String::new(),
        false => format!(" ({})", json::ends(details)),
    }
}
