//! Which file system is provisioned.
//! Out of scope: its files.

use std::path::{Path, PathBuf};

/// Which file system is provisioned.
#[derive(Clone, Debug)]
pub struct Place {
    /// Its root.
    root: PathBuf,
    /// Whether it is that of the agent itself, with its mounts and its host name.
    pub is_own: bool,
}

impl Place {
    /// The file system of the agent.
    pub fn own() -> Self {
        Self {
            root: PathBuf::from("/"),
            is_own: true,
        }
    }

    /// A directory in its place, for tests.
    pub fn directory(root: PathBuf) -> Self {
        Self {
            root,
            is_own: false,
        }
    }

    /// A path in it.
    pub fn at(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    /// Its root.
    pub fn root(&self) -> &Path {
        &self.root
    }
}
