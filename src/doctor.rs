//! EXAMINES: whether this host can do what is asked of it, and what to do if not.
//! Not here: mending anything.

use std::path::PathBuf;

/// What is examined.
pub struct Host {
    /// The namespace that the daemon was started in.
    pub home: crate::host::netns::Netns,
    /// A socket in it.
    pub netlink: crate::host::Handle,
    /// Whose things.
    pub instance: crate::owner::Instance,
    /// Where what dies with the host's uptime is kept.
    pub run_dir: crate::owner::RunDir,
    /// Where manifests are read.
    pub config_dir: PathBuf,
}

/// Looks.
pub async fn examine(_: &Host) -> Vec<crate::api::view::Check> {
    Vec::new()
}

/// Writes.
pub fn write_unmanaged(_: &str) -> Result<(), crate::host::Error> {
    Ok(())
}
