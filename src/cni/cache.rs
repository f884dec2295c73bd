//! Records of attachments, in the format of libcni's cache (libcni, `cachedInfo`).
//! Out of scope: when a record is written and removed.
//!
//! We read the records of other runtimes, and `cnitool` reads ours if its cache is our directory. Ours is a separate directory within
//! libcni's: `GCNetworkList` of libcni calls DEL for every record of the network in its cache that its caller does not list, and no
//! other runtime lists ours.
//!
//! Between the plugins of an ADD, the result so far is recorded in the same format in a directory of its own: a plugin such as
//! `firewall` finds the rules that it created only by `prevResult`, so a DEL after a crash needs one.
//!
//! # Atomic writes
//! A record is written outside its directory and then renamed into it, so a reader never sees a partial record. It is not synced to
//! the disk: a power failure also removes the attachment that it describes, and DEL works without a readable record.

use std::ffi::{OsStr, OsString};
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::{Attachment, CniResult, Error, Network, Version};

const KIND: &str = "cniCacheV1";

/// The directory of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RecordDir {
    /// A successful ADD of ours.
    Results,
    /// An ADD of another runtime, or of an old version of ours, which kept its records there.
    Libcni,
    /// An ADD of ours that is in progress, failed or was interrupted.
    Unfinished,
    /// An abandoned attachment: plugins failed to release it, and its interface is removed.
    Abandoned,
}

/// Where the record of a successful ADD may be, in order of precedence.
pub(super) const ADDED: [RecordDir; 2] = [RecordDir::Results, RecordDir::Libcni];

/// All directories in which an attachment may have a record, in order of precedence.
pub(super) const ALL: [RecordDir; 4] = [
    RecordDir::Results,
    RecordDir::Libcni,
    RecordDir::Unfinished,
    RecordDir::Abandoned,
];

impl RecordDir {
    fn in_cache(self, cache_dir: &Path) -> PathBuf {
        cache_dir.join(match self {
            Self::Results => "slice/results",
            Self::Libcni => "results",
            Self::Unfinished => "unfinished",
            Self::Abandoned => "slice/abandoned",
        })
    }
}

/// The record of an ADD.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cached {
    /// The name of the network.
    pub network: String,
    /// The parameters of the ADD. Old versions of libcni do not write `netns`.
    pub attachment: Attachment,
    /// The configuration that ADD used, as JSON text.
    config: String,
    /// The final result, as JSON text.
    result: String,
    path: PathBuf,
}

impl Cached {
    /// The configuration that ADD used.
    pub fn config(&self) -> Result<Network, Error> {
        Network::parse(&self.path, &self.config).map_err(|error| self.damaged(&error.to_string()))
    }

    /// The final result, converted to a version of the spec.
    pub fn result(&self, version: Version) -> Result<CniResult, Error> {
        CniResult::parse(&self.result, version).map_err(|reason| self.damaged(&reason))
    }

    /// Whether the record belongs to this attachment. `a-b` + `c` and `a` + `b-c` have the same file name.
    fn is_of(&self, network: &str, attachment: &Attachment) -> bool {
        self.network == network
            && self.attachment.container_id == attachment.container_id
            && self.attachment.ifname == attachment.ifname
    }

    fn damaged(&self, reason: &str) -> Error {
        damaged(&self.path, reason)
    }
}

/// The JSON format of libcni.
#[derive(Serialize, Deserialize)]
struct Record {
    kind: String,
    #[serde(rename = "containerId")]
    container_id: String,
    /// Base64, as Go encodes bytes.
    config: String,
    #[serde(rename = "ifName")]
    ifname: String,
    #[serde(rename = "networkName")]
    network: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    netns: Option<PathBuf>,
    #[serde(rename = "cniArgs", default, skip_serializing_if = "Option::is_none")]
    args: Option<Vec<(String, String)>>,
    #[serde(
        rename = "capabilityArgs",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    capability_args: Option<Map<String, Value>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    result: Option<Box<RawValue>>,
}

/// Writes the record of an ADD atomically.
pub(super) fn write(
    cache_dir: &Path,
    shelf: RecordDir,
    network: &Network,
    attachment: &Attachment,
    result: &CniResult,
) -> Result<(), Error> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let record = Record {
        kind: KIND.to_owned(),
        container_id: attachment.container_id.clone(),
        config: BASE64_STANDARD.encode(network.config()),
        ifname: attachment.ifname.clone(),
        network: network.name.clone(),
        netns: attachment.netns.clone(),
        args: Some(attachment.args.clone()).filter(|args| !args.is_empty()),
        capability_args: Some(attachment.capability_args.clone()).filter(|args| !args.is_empty()),
        result: Some(result.to_raw()),
    };
    let path = path(cache_dir, shelf, &network.name, attachment);
    let wrap = |error| Error::io("write", &path, error);
    let bytes = serde_json::to_vec(&record).map_err(|error| wrap(error.into()))?;
    create_dir(cache_dir, shelf)?;
    // Not in the directory of records: after a crash it would be read as one.
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let temp = cache_dir.join(format!(".result-{}-{count}", std::process::id()));
    let written = create(&temp, &bytes).and_then(|()| fs::rename(&temp, &path));
    if written.is_err() {
        let _ = fs::remove_file(&temp);
    }
    written.map_err(wrap)
}

fn create(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    options.open(path)?.write_all(bytes)
}

/// Reads the record of an attachment; `None` if there is none.
pub(super) fn read(
    cache_dir: &Path,
    shelf: RecordDir,
    network: &str,
    attachment: &Attachment,
) -> Result<Option<Cached>, Error> {
    let path = path(cache_dir, shelf, network, attachment);
    let Some(cached) = open(&path)? else {
        return Ok(None);
    };
    match cached.is_of(network, attachment) {
        true => Ok(Some(cached)),
        false => Err(damaged(&path, "it belongs to another attachment")),
    }
}

/// The records in a directory, sorted by file name, including those of other runtimes. Only files with names that match `filter` are read.
/// Unreadable records are skipped.
pub(super) fn list(
    cache_dir: &Path,
    shelf: RecordDir,
    filter: impl Fn(&str) -> bool,
) -> Result<Vec<Cached>, Error> {
    let records_dir = shelf.in_cache(cache_dir);
    let wrap = |error| Error::io("list", &records_dir, error);
    let entries = match fs::read_dir(&records_dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(wrap(error)),
    };
    let mut paths = Vec::new();
    for entry in entries {
        let entry = entry.map_err(wrap)?;
        if filter(&entry.file_name().to_string_lossy()) {
            paths.push(entry.path());
        }
    }
    paths.sort();
    let read = |path: &PathBuf| match open(path) {
        Ok(cached) => cached,
        Err(error) => {
            tracing::debug!(%error, "skipped an unreadable CNI cache record");
            None
        }
    };
    Ok(paths.iter().filter_map(read).collect())
}

/// Removes the record of an attachment if there is one, readable or not. A record of another attachment is kept.
pub(super) fn remove(
    cache_dir: &Path,
    shelf: RecordDir,
    network: &str,
    attachment: &Attachment,
) -> Result<(), Error> {
    let path = path(cache_dir, shelf, network, attachment);
    if let Ok(Some(cached)) = open(&path)
        && !cached.is_of(network, attachment)
    {
        return Ok(());
    }
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::io("remove", &path, error))
        }
        _ => Ok(()),
    }
}

/// Moves a record of ours from libcni's cache into our own cache.
pub(super) fn migrate_record(cache_dir: &Path, cached: &Cached) -> Result<(), Error> {
    let destination = path(
        cache_dir,
        RecordDir::Results,
        &cached.network,
        &cached.attachment,
    );
    create_dir(cache_dir, RecordDir::Results)?;
    match fs::rename(&cached.path, &destination) {
        // It was moved or removed in the meantime.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result.map_err(|error| Error::io("move", &cached.path, error)),
    }
}

fn create_dir(cache_dir: &Path, dir: RecordDir) -> Result<(), Error> {
    let records_dir = dir.in_cache(cache_dir);
    let mut builder = DirBuilder::new();
    let created = builder.recursive(true).mode(0o700).create(&records_dir);
    created.map_err(|error| Error::io("create", &records_dir, error))
}

fn path(cache_dir: &Path, dir: RecordDir, network: &str, attachment: &Attachment) -> PathBuf {
    let mut name = OsString::from(network);
    for part in [&attachment.container_id, &attachment.ifname] {
        name.push("-");
        name.push(OsStr::new(part));
    }
    dir.in_cache(cache_dir).join(name)
}

fn open(path: &Path) -> Result<Option<Cached>, Error> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io("read", path, error)),
    };
    let damaged = |reason: String| damaged(path, &reason);
    let record: Record =
        serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))?;
    if record.kind != KIND {
        return Err(damaged(format!(
            "found kind `{}`, expected `cniCacheV1`",
            record.kind
        )));
    }
    let config = BASE64_STANDARD
        .decode(&record.config)
        .map_err(|error| damaged(error.to_string()))?;
    let config = String::from_utf8(config).map_err(|error| damaged(error.to_string()))?;
    Ok(Some(Cached {
        network: record.network,
        attachment: Attachment {
            container_id: record.container_id,
            netns: record.netns.filter(|path| !path.as_os_str().is_empty()),
            ifname: record.ifname,
            args: record.args.unwrap_or_default(),
            capability_args: record.capability_args.unwrap_or_default(),
        },
        config,
        result: record
            .result
            .map_or("{}".to_owned(), |raw| raw.get().to_owned()),
        path: path.to_owned(),
    }))
}

fn damaged(path: &Path, reason: &str) -> Error {
    Error::DamagedCache {
        path: path.to_owned(),
        why: reason.to_owned(),
    }
}
