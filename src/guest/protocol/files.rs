//! Files: copies, attributes, changes.
//! Out of scope: reading and writing them.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::is_false;

/// The query of `cp`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "host", derive(utoipa::IntoParams), into_params(parameter_in = Query))]
#[serde(default)]
pub struct CopyQuery {
    /// The path in the guest; `~` is the user's home directory.
    #[cfg_attr(feature = "host", param(required = true))]
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
#[cfg_attr(feature = "host", derive(utoipa::ToSchema))]
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
#[cfg_attr(feature = "host", derive(utoipa::ToSchema))]
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
#[cfg_attr(feature = "host", derive(utoipa::ToSchema))]
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
#[cfg_attr(feature = "host", derive(utoipa::IntoParams), into_params(parameter_in = Query))]
#[serde(default)]
pub struct RemoveQuery {
    /// The file or directory.
    #[cfg_attr(feature = "host", param(required = true))]
    pub path: String,
    /// Whether the content of a directory is removed.
    pub recursive: bool,
}

/// The query of `watch`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "host", derive(utoipa::IntoParams), into_params(parameter_in = Query))]
#[serde(default)]
pub struct WatchQuery {
    /// Files and directories.
    #[cfg_attr(feature = "host", param(required = true))]
    pub paths: Vec<String>,
    /// Glob patterns of names; empty: all.
    pub patterns: Vec<String>,
    /// `create`, `write`, `remove`, `rename`, `chmod` or `all`; empty: all.
    pub events: Vec<String>,
    /// The owner of the home directory, for `~` in a path.
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
#[cfg_attr(feature = "host", derive(utoipa::ToSchema))]
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
