//! The secrets of the host: a file for each in `<state>/secrets`, which only root can read.
//! Out of scope: which guests get them ([`crate::engine`]); their requests ([`crate::wire`]).
//!
//! A file is one record, so that a crash cannot separate the value from its owner: a line of JSON ([`Header`]), then the value. It is
//! written under another name, synchronized and renamed. A record that is damaged is an error, not an absent secret. Nothing of a value is
//! part of an error or of the log.
//!
//! Each write gives a secret another random revision. It is what is compared with the guests: a hash of the value, which an agent could
//! report to anybody, would allow to guess short values.

use std::io;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::api::meta::Timestamp;
use crate::api::secret::{
    DEFAULT_PERMISSIONS, MAX_SIZE, SecretChange, SecretName, SecretValue, SecretView,
};
use crate::clock;
use crate::host::{self, fs, private};

/// The maximum number of secrets.
pub const MAX_COUNT: usize = 1024;

/// The maximum size of all values, in bytes: a guest gets those that it may have in one request.
pub const MAX_TOTAL: u64 = 8 << 20;

/// The name of the directory.
const DIRECTORY: &str = "secrets";

/// Why a secret could not be read or changed. The messages contain nothing of a value.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is none of this name.
    #[error("secret \"{0}\" not found")]
    NotFound(SecretName),
    /// There is one of this name.
    #[error("secret \"{0}\" already exists: change it with slicectl secret update {0}")]
    Exists(SecretName),
    /// A limit is reached.
    #[error("{0}")]
    Limit(String),
    /// Its file is damaged.
    #[error("the file of the secret \"{0}\" is damaged: delete the secret and create it again")]
    Damaged(SecretName),
    /// A file cannot be read or written.
    #[error(transparent)]
    Host(#[from] host::Error),
}

/// A secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Secret {
    /// Identifies the last write.
    pub revision: Uuid,
    /// The value.
    pub value: SecretValue,
    /// The permissions of its file in guests.
    pub permissions: u32,
    /// The owner of its file in guests.
    pub uid: u32,
    /// The group of its file in guests.
    pub gid: u32,
    /// When it was written.
    pub modified: Timestamp,
}

/// The first line of a file.
#[derive(Debug, Serialize, Deserialize)]
struct Header {
    revision: Uuid,
    permissions: u32,
    uid: u32,
    gid: u32,
    modified: Timestamp,
    size: usize,
}

/// The maximum length of the first line.
const HEADER_LIMIT: usize = 1024;

/// All secrets.
#[derive(Debug)]
pub struct Secrets {
    dir: PathBuf,
    /// One writer: it decides on the state that it has read.
    writer: Mutex<()>,
}

impl Secrets {
    /// The secrets in a state directory. The directory is created with the first secret.
    pub fn new(state_dir: &Path) -> Self {
        Self {
            dir: state_dir.join(DIRECTORY),
            writer: Mutex::default(),
        }
    }

    /// All secrets, by name, without their values.
    ///
    /// # Errors
    /// One cannot be read.
    pub fn list(&self) -> Result<Vec<SecretView>, Error> {
        let mut views = Vec::new();
        for name in self.names()? {
            if let Some(secret) = self.get(&name)? {
                views.push(secret.view(&name));
            }
        }
        Ok(views)
    }

    /// A secret; `None` if there is none of this name.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn get(&self, name: &SecretName) -> Result<Option<Secret>, Error> {
        match fs::read(&self.path(name))? {
            None => Ok(None),
            Some(bytes) => decode(&bytes)
                .map(Some)
                .ok_or_else(|| Error::Damaged(name.clone())),
        }
    }

    /// Stores a new secret, on the disk when this returns.
    ///
    /// # Errors
    /// It exists, or a limit is reached.
    pub fn create(&self, name: &SecretName, change: SecretChange) -> Result<SecretView, Error> {
        let _writer = self.writer.lock();
        let path = self.path(name);
        if fs::read(&path)?.is_some() {
            return Err(Error::Exists(name.clone()));
        }
        let secret = Secret {
            revision: Uuid::new_v4(),
            value: change.value.unwrap_or_else(|| SecretValue(Vec::new())),
            permissions: change.permissions.unwrap_or(DEFAULT_PERMISSIONS),
            uid: change.uid.unwrap_or(0),
            gid: change.gid.unwrap_or(0),
            modified: clock::now(),
        };
        self.check_limits(name, &secret)?;
        self.store(&path, &secret)?;
        Ok(secret.view(name))
    }

    /// Changes a secret, on the disk when this returns. What the request does not contain stays.
    ///
    /// # Errors
    /// It does not exist, or a limit is reached.
    pub fn update(&self, name: &SecretName, change: SecretChange) -> Result<SecretView, Error> {
        let _writer = self.writer.lock();
        let Some(before) = self.get(name)? else {
            return Err(Error::NotFound(name.clone()));
        };
        let secret = Secret {
            revision: Uuid::new_v4(),
            value: change.value.unwrap_or(before.value),
            permissions: change.permissions.unwrap_or(before.permissions),
            uid: change.uid.unwrap_or(before.uid),
            gid: change.gid.unwrap_or(before.gid),
            modified: clock::now(),
        };
        self.check_limits(name, &secret)?;
        self.store(&self.path(name), &secret)?;
        Ok(secret.view(name))
    }

    /// Deletes a secret.
    ///
    /// # Errors
    /// It does not exist.
    pub fn delete(&self, name: &SecretName) -> Result<(), Error> {
        let _writer = self.writer.lock();
        let path = self.path(name);
        if fs::read(&path)?.is_none() {
            return Err(Error::NotFound(name.clone()));
        }
        fs::force_remove(&path)?;
        // A deleted secret does not come back after a power failure.
        let synced = std::fs::File::open(&self.dir).and_then(|dir| dir.sync_all());
        synced.map_err(|error| self.failed("synchronize", error))
    }

    fn path(&self, name: &SecretName) -> PathBuf {
        self.dir.join(name.as_str())
    }

    fn names(&self) -> Result<Vec<SecretName>, Error> {
        Ok(match fs::read_dir(&self.dir)? {
            fs::Dir::Absent => Vec::new(),
            // Temporary files begin with a dot, which is no name.
            fs::Dir::Present(names) => names.iter().filter_map(|name| name.parse().ok()).collect(),
            fs::Dir::NotADirectory => {
                let error = io::Error::from(io::ErrorKind::NotADirectory);
                return Err(self.failed("read", error));
            }
        })
    }

    fn store(&self, path: &Path, secret: &Secret) -> Result<(), Error> {
        if !self.dir.exists() {
            private::dir(&self.dir, |_| false)?;
            let parent = self.dir.parent().unwrap_or(Path::new("/"));
            let synced = std::fs::File::open(parent).and_then(|dir| dir.sync_all());
            synced.map_err(|error| self.failed("synchronize", error))?;
        }
        let bytes = encode(secret).map_err(|error| self.failed("write", error.into()))?;
        Ok(fs::write(path, &bytes, 0o600, fs::Durability::Disk)?)
    }

    /// Checks the limits, with `secret` in place of what has its name.
    fn check_limits(&self, name: &SecretName, secret: &Secret) -> Result<(), Error> {
        let size = secret.value.0.len();
        if size > MAX_SIZE {
            let message = format!("the value has {size} bytes, expected at most {MAX_SIZE}");
            return Err(Error::Limit(message));
        }
        let (mut count, mut total) = (1, size as u64);
        for other in self.names()?.iter().filter(|other| *other != name) {
            let found = self.path(other).metadata();
            total += found.map_or(0, |found| found.len());
            count += 1;
        }
        if count > MAX_COUNT {
            let message = format!("there are {MAX_COUNT} secrets, which is the maximum");
            return Err(Error::Limit(message));
        }
        if total > MAX_TOTAL {
            let message =
                format!("all secrets would have {total} bytes, expected at most {MAX_TOTAL}");
            return Err(Error::Limit(message));
        }
        Ok(())
    }

    fn failed(&self, operation: &'static str, error: io::Error) -> Error {
        host::Error::io(operation, self.dir.display().to_string(), error).into()
    }
}

impl Secret {
    fn view(&self, name: &SecretName) -> SecretView {
        SecretView {
            name: name.clone(),
            size: self.value.0.len() as u64,
            permissions: format!("{:04o}", self.permissions),
            uid: self.uid,
            gid: self.gid,
            mod_time: self.modified,
            modified_at: self.modified,
        }
    }
}

fn encode(secret: &Secret) -> serde_json::Result<Vec<u8>> {
    let mut bytes = serde_json::to_vec(&Header {
        revision: secret.revision,
        permissions: secret.permissions,
        uid: secret.uid,
        gid: secret.gid,
        modified: secret.modified,
        size: secret.value.0.len(),
    })?;
    bytes.push(b'\n');
    bytes.extend(&secret.value.0);
    Ok(bytes)
}

fn decode(bytes: &[u8]) -> Option<Secret> {
    let head = &bytes[..bytes.len().min(HEADER_LIMIT)];
    let end = head.iter().position(|byte| *byte == b'\n')?;
    let header: Header = serde_json::from_slice(&bytes[..end]).ok()?;
    let value = &bytes[end + 1..];
    (value.len() == header.size).then(|| Secret {
        revision: header.revision,
        value: SecretValue(value.to_vec()),
        permissions: header.permissions,
        uid: header.uid,
        gid: header.gid,
        modified: header.modified,
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn name(text: &str) -> SecretName {
        text.parse().expect("a name")
    }

    fn value(bytes: &[u8]) -> SecretChange {
        SecretChange {
            value: Some(SecretValue(bytes.to_vec())),
            ..SecretChange::default()
        }
    }

    #[test]
    fn a_secret_is_created_changed_and_deleted() {
        let dir = tempfile::tempdir().expect("a directory");
        let secrets = Secrets::new(dir.path());
        assert_eq!(secrets.list().expect("a list"), []);
        let bytes = b"line\n\0\xff";
        secrets.create(&name("a"), value(bytes)).expect("created");
        let stored = secrets.get(&name("a")).expect("read").expect("a secret");
        assert_eq!(stored.value.0, bytes);
        let change = SecretChange {
            uid: Some(1000),
            permissions: Some(0o640),
            ..SecretChange::default()
        };
        let view = secrets.update(&name("a"), change).expect("changed");
        assert_eq!(
            (view.uid, view.gid, view.size),
            (1000, 0, bytes.len() as u64)
        );
        assert_eq!(view.permissions, "0640");
        let changed = secrets.get(&name("a")).expect("read").expect("a secret");
        assert_eq!(changed.value, stored.value);
        assert_ne!(changed.revision, stored.revision);
        assert!(matches!(
            secrets.create(&name("a"), value(b"")),
            Err(Error::Exists(_))
        ));
        assert!(matches!(
            secrets.update(&name("b"), value(b"")),
            Err(Error::NotFound(_))
        ));
        // Another daemon reads the same.
        assert_eq!(Secrets::new(dir.path()).list().expect("a list"), [view]);
        secrets.delete(&name("a")).expect("deleted");
        assert!(matches!(
            secrets.delete(&name("a")),
            Err(Error::NotFound(_))
        ));
        assert_eq!(secrets.list().expect("a list"), []);
    }

    #[test]
    fn only_root_can_read_the_files() {
        let dir = tempfile::tempdir().expect("a directory");
        let secrets = Secrets::new(dir.path());
        secrets.create(&name("a"), value(b"x")).expect("created");
        for (path, mode) in [("secrets", 0o700), ("secrets/a", 0o600)] {
            let found = std::fs::metadata(dir.path().join(path)).expect(path);
            assert_eq!(found.permissions().mode() & 0o7777, mode, "{path}");
        }
    }

    #[test]
    fn a_damaged_record_is_an_error_and_can_be_deleted() {
        let dir = tempfile::tempdir().expect("a directory");
        let secrets = Secrets::new(dir.path());
        secrets
            .create(&name("a"), value(b"value"))
            .expect("created");
        let path = dir.path().join("secrets/a");
        let whole = std::fs::read(&path).expect("read");
        for bytes in [
            Vec::new(),
            whole[..whole.len() - 1].to_vec(),
            [&whole[..], b"x"].concat(),
            b"value".to_vec(),
            vec![b'x'; 1 << 16],
        ] {
            std::fs::write(&path, &bytes).expect("written");
            let error = secrets.get(&name("a")).expect_err("damaged");
            assert!(matches!(error, Error::Damaged(_)));
            assert!(!error.to_string().contains("value"));
        }
        secrets.delete(&name("a")).expect("deleted");
    }

    #[test]
    fn what_a_crash_left_is_no_secret() {
        let dir = tempfile::tempdir().expect("a directory");
        let secrets = Secrets::new(dir.path());
        secrets.create(&name("a"), value(b"x")).expect("created");
        std::fs::write(dir.path().join("secrets/.b.new"), "half").expect("written");
        let names: Vec<String> = secrets
            .list()
            .expect("a list")
            .iter()
            .map(|view| view.name.to_string())
            .collect();
        assert_eq!(names, ["a"]);
    }

    #[test]
    fn sizes_are_limited() {
        let dir = tempfile::tempdir().expect("a directory");
        let secrets = Secrets::new(dir.path());
        let large = vec![7; MAX_SIZE];
        let too_large = vec![7; MAX_SIZE + 1];
        assert!(matches!(
            secrets.create(&name("x"), value(&too_large)),
            Err(Error::Limit(_))
        ));
        let mut stored = 0;
        let refused = loop {
            match secrets.create(&name(&format!("s{stored}")), value(&large)) {
                Ok(_) => stored += 1,
                Err(error) => break error,
            }
        };
        assert!(matches!(refused, Error::Limit(_)));
        assert!(stored as u64 >= MAX_TOTAL / MAX_SIZE as u64 - 1, "{stored}");
        // One that is replaced does not count twice.
        secrets.update(&name("s0"), value(&large)).expect("changed");
    }
}
