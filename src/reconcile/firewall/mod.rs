//! The Firewall stage: restricts what a VM sends and receives, in one directory per mode.
//! Out of scope: the host's own rules (host network).

pub mod antispoof;
pub mod bridge;
pub mod cni;
pub mod isolated;
