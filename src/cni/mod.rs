//! CALLS: a CNI runtime according to the spec, for configurations of 0.3.0, 0.3.1, 0.4.0, 1.0.0 and 1.1.0.
//! Out of scope: the owners of the containers; what a result is used for; the host.
//!
//! The text is <https://github.com/containernetworking/cni/blob/main/SPEC.md>, the habits are libcni's: the places of files,
//! the cache, the environment.
//!
//! # The life of an attachment
//! 1. [`Runtime::find`] reads the network's configuration, [`Runtime::negotiate`] settles the version that all its plugins
//!    speak. The caller keeps the [`Network`] (it is serialised whole) *before* he goes on.
//! 2. [`Runtime::add`]. When it fails, or the caller dies in it, something may be left, and no result of it in the cache:
//!    [`Runtime::del`] with the kept network. [`Runtime::add_or_undo`] does so at once.
//! 3. [`Runtime::check`] at any time.
//! 4. [`Runtime::del`], again and again until it succeeds. While there is a record of the ADD, it goes by this. Where it does not
//!    succeed, [`Runtime::abandon`].
//!
//! Keep the namespace until DEL has succeeded: the bridge and ptp plugins find their masquerade rules by the addresses on the
//! interface inside. Where it is gone they succeed and leave these rules, which bear the name of a chain that is made of the
//! network's name and the container's id: whoever uses this module removes them.
//!
//! After a crash: DEL before ADD; then [`Runtime::sweep_host_local`], for no official plugin implements GC.

mod attachment;
mod cache;
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

use std::env;
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

pub use attachment::{Attachment, Valid};
pub use cache::Cached;
pub use error::{
    Error, Failure, INVALID_CONFIG, LIMITED, NOT_AVAILABLE, TRY_AGAIN, UNKNOWN_CONTAINER,
};
pub use invoke::Command;
pub use network::{Network, Plugin};
pub use operations::Outcome;
pub use result::{CniResult, Dns, Interface, Ip, Route};
pub use turns::RepairTurn;
pub use version::Version;

/// Where configurations are, unless `SLICE_CNI_CONF_DIR` says otherwise.
pub const CONF_DIR: &str = "/etc/cni/net.d";
/// Where plugins are, unless `CNI_PATH` says otherwise.
pub const BIN_DIRS: &str = "/opt/cni/bin:/usr/lib/cni";
/// Where libcni's cache is, unless `SLICE_CNI_CACHE_DIR` says otherwise.
pub const CACHE_DIR: &str = "/var/lib/cni";
/// How long a plugin may take.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// Finds networks and runs their plugins, in the network namespace of the calling process. Cheap to clone; all clones take
/// turns with each other: one operation at a time per container, GC alone, and as many repairs at a time as there are processors.
#[derive(Clone, Debug)]
pub struct Runtime {
    /// The folder of network configurations.
    pub conf_dir: PathBuf,
    /// The folders of plugins, the first goes first.
    pub bin_dirs: Vec<PathBuf>,
    /// The folder of libcni's cache, with its records in `results` below it and ours in `slice`.
    pub cache_dir: PathBuf,
    /// How long one plugin may take for one operation.
    pub deadline: Duration,
    /// RLIMIT_NOFILE of plugins, soft and hard; none: ours.
    pub file_limit: Option<(u64, u64)>,
    turns: Arc<turns::Turns>,
    probed: Arc<probe::Probed>,
    serving: Arc<serving::Serving>,
}

impl Runtime {
    /// With the usual places.
    pub fn new() -> Self {
        Self {
            conf_dir: CONF_DIR.into(),
            bin_dirs: env::split_paths(BIN_DIRS).collect(),
            cache_dir: CACHE_DIR.into(),
            deadline: DEADLINE,
            file_limit: None,
            turns: Arc::default(),
            probed: Arc::default(),
            serving: Arc::default(),
        }
    }

    /// With the places that `SLICE_CNI_CONF_DIR`, `CNI_PATH` and `SLICE_CNI_CACHE_DIR` name, and the usual ones for those
    /// that are unset or empty.
    pub fn from_env() -> Self {
        let set = |key: &str| env::var_os(key).filter(|value| !value.is_empty());
        let mut this = Self::new();
        if let Some(folder) = set("SLICE_CNI_CONF_DIR") {
            this.conf_dir = folder.into();
        }
        if let Some(folders) = set("CNI_PATH") {
            let folders = env::split_paths(&folders);
            this.bin_dirs = folders
                .filter(|folder| !folder.as_os_str().is_empty())
                .collect();
        }
        if let Some(folder) = set("SLICE_CNI_CACHE_DIR") {
            this.cache_dir = folder.into();
        }
        this
    }

    /// Waits for a turn to repair an attachment: to detach a guest that runs and to attach it again.
    ///
    /// # Why
    /// From the first DEL to the end of the ADD a guest has no network. Plugins that run at the same time share the processors, so the
    /// repair of every VM at once, after a flush of all rules, would disconnect each of them for as long as all repairs take. `None`:
    /// others have not ended in time, and the repair is not to wait for them any longer.
    pub async fn repair_turn(&self) -> Option<RepairTurn> {
        self.turns.repair().await
    }

    /// Reads the configuration of a network. Of several files with its name the first goes, sorted by file name, lists
    /// (`.conflist`) before single plugins (`.conf`, `.json`).
    pub fn find(&self, network: &str) -> Result<Network, Error> {
        find::network(&self.conf_dir, network)
    }

    /// The names of all networks that are configured, sorted.
    pub fn networks(&self) -> Result<Vec<String>, Error> {
        find::names(&self.conf_dir)
    }

    /// Why plugins of a network cannot be run, a line each; none: all are there.
    pub fn lacking(&self, network: &Network) -> Vec<String> {
        let plugins = network.plugins.iter();
        let missing =
            plugins.filter_map(|plugin| find::program(&self.bin_dirs, &plugin.name).err());
        missing.map(|error| error.to_string()).collect()
    }

    /// `CNI_PATH`.
    fn search_path(&self) -> OsString {
        request::search_path(&self.bin_dirs)
    }
}

impl Default for Runtime {
    fn default() -> Self {
        Self::new()
    }
}
