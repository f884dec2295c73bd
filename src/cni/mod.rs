//! A CNI runtime according to the spec, for configurations of versions 0.3.0, 0.3.1, 0.4.0, 1.0.0 and 1.1.0.
//! Out of scope: the owners of the containers; how a result is used; the host.
//!
//! The spec is <https://github.com/containernetworking/cni/blob/main/SPEC.md>. The paths of files, the cache and the environment are
//! those of libcni.
//!
//! # Lifecycle of an attachment
//! 1. [`Runtime::find`] reads the configuration of a network, and [`Runtime::negotiate`] selects the version that all its plugins
//!    support. The caller must store the [`Network`], which is serialized completely, *before* the next step.
//! 2. [`Runtime::add`]. After an error or a crash, resources may exist without a result in the cache: call [`Runtime::del`] with the
//!    stored network. [`Runtime::add_or_undo`] does this.
//! 3. [`Runtime::check`] at any time.
//! 4. [`Runtime::del`], repeated until it succeeds. It uses the record of the ADD, if there is one. If it does not succeed,
//!    [`Runtime::abandon`].
//!
//! Keep the namespace until DEL has succeeded: the bridge and ptp plugins find their masquerade rules by the addresses of the
//! interface in the namespace. Without the namespace they succeed without removing these rules, which contain the name of a chain that
//! is derived from the network name and the container id: the caller of this module must remove them.
//!
//! After a crash: DEL before ADD; then [`Runtime::sweep_host_local`], because no official plugin implements GC.

mod attachment;
mod cache;
mod command;
mod error;
mod find;
mod host_local;
mod invoke;
mod json;
mod names;
mod network;
mod operations;
mod probe;
mod removal;
mod request;
mod result;
mod serving;
mod turns;
mod version;

use std::collections::BTreeSet;
use std::env;
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

pub use attachment::{Attachment, ValidAttachment};
pub use cache::Cached;
pub use command::Command;
pub use error::{
    Error, Failure, INVALID_CONFIG, LIMITED, NOT_AVAILABLE, TRY_AGAIN, UNKNOWN_CONTAINER,
};
pub use network::{Network, Plugin};
pub use operations::Outcome;
pub use result::{CniResult, Dns, Interface, Ip, Route};
pub use turns::RepairPermit;
pub use version::Version;

/// The default directory of configurations (`SLICE_CNI_CONF_DIR`).
pub const CONF_DIR: &str = "/etc/cni/net.d";
/// The default directories of plugins (`CNI_PATH`).
pub const BIN_DIRS: &str = "/opt/cni/bin:/usr/lib/cni";
/// The default directory of libcni's cache (`SLICE_CNI_CACHE_DIR`).
pub const CACHE_DIR: &str = "/var/lib/cni";
/// The default deadline of a plugin.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// Finds networks and runs their plugins, in the network namespace of the calling process. Cheap to clone. All clones share their
/// locks: one operation at a time per container, GC exclusively, and as many repairs at a time as there are processors.
#[derive(Clone, Debug)]
pub struct Runtime {
    /// The directory of network configurations.
    pub conf_dir: PathBuf,
    /// The directories of plugins, in search order.
    pub bin_dirs: Vec<PathBuf>,
    /// The directory of libcni's cache: libcni's records are in `results`, ours in `slice`.
    pub cache_dir: PathBuf,
    /// The deadline of one call of a plugin.
    pub deadline: Duration,
    /// RLIMIT_NOFILE of plugins, soft and hard; `None`: inherited.
    pub file_limit: Option<(u64, u64)>,
    locks: Arc<turns::Locks>,
    version_cache: Arc<probe::VersionCache>,
    status_cache: Arc<serving::StatusCache>,
}

impl Runtime {
    /// A runtime with the default directories.
    pub fn new() -> Self {
        Self {
            conf_dir: CONF_DIR.into(),
            bin_dirs: env::split_paths(BIN_DIRS).collect(),
            cache_dir: CACHE_DIR.into(),
            deadline: DEADLINE,
            file_limit: None,
            locks: Arc::default(),
            version_cache: Arc::default(),
            status_cache: Arc::default(),
        }
    }

    /// A runtime with the directories in `SLICE_CNI_CONF_DIR`, `CNI_PATH` and `SLICE_CNI_CACHE_DIR`, and the default for each variable
    /// that is unset or empty.
    pub fn from_env() -> Self {
        let env_var = |key: &str| env::var_os(key).filter(|value| !value.is_empty());
        let mut this = Self::new();
        if let Some(dir) = env_var("SLICE_CNI_CONF_DIR") {
            this.conf_dir = dir.into();
        }
        if let Some(folders) = env_var("CNI_PATH") {
            let dirs = env::split_paths(&folders);
            this.bin_dirs = dirs
                .filter(|folder| !folder.as_os_str().is_empty())
                .collect();
        }
        if let Some(folder) = env_var("SLICE_CNI_CACHE_DIR") {
            this.cache_dir = folder.into();
        }
        this
    }

    /// Waits for a permit to repair an attachment: to detach and attach a running guest. `None`: other repairs have not ended in time,
    /// and the repair should start without a permit.
    ///
    /// # Why
    /// From the first DEL to the end of the ADD a guest has no network. Plugins that run at the same time share the processors, so a
    /// concurrent repair of all VMs, after a flush of all rules, would disconnect each of them for the duration of all repairs.
    pub async fn repair_permit(&self) -> Option<RepairPermit> {
        self.locks.repair().await
    }

    /// Reads the configuration of a network. If several files describe it, the first is used, sorted by file name, lists (`.conflist`)
    /// before single plugins (`.conf`, `.json`).
    pub fn find(&self, network: &str) -> Result<Network, Error> {
        find::network(&self.conf_dir, network)
    }

    /// The names of all configured networks, sorted.
    pub fn networks(&self) -> Result<Vec<String>, Error> {
        find::names(&self.conf_dir)
    }

    /// The names of the networks that can be read and have all of their plugins. One that cannot be read hides no other.
    pub fn complete_networks(&self) -> BTreeSet<String> {
        let is_complete = |name: &String| {
            let found = self.find(name);
            found.is_ok_and(|network| self.missing_plugins(&network).is_empty())
        };
        let names = find::readable_names(&self.conf_dir).into_iter();
        names.filter(is_complete).collect()
    }

    /// The missing plugins of a network, one message each; empty if all are installed.
    pub fn missing_plugins(&self, network: &Network) -> Vec<String> {
        let plugins = network.plugins.iter();
        let missing =
            plugins.filter_map(|plugin| find::program(&self.bin_dirs, &plugin.name).err());
        missing.map(|error| error.to_string()).collect()
    }

    /// The value of `CNI_PATH`.
    fn search_path(&self) -> OsString {
        request::search_path(&self.bin_dirs)
    }
}

impl Default for Runtime {
    fn default() -> Self {
        Self::new()
    }
}
