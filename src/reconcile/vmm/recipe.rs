//! From a VM's spec to a command line. Pure.
//! Not here: whether it runs; each VMM's own words (`qemu`).

use std::net::Ipv4Addr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{Machine, qemu};
use crate::api::meta::Name;
use crate::api::network::Mac;
use crate::api::vm::{Hypervisor, VmSpec};

/// What a VM is connected to, and where its VMM keeps its things.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slot {
    /// The VM's name, and the guest's host name.
    pub name: Name,
    /// The run directory.
    pub dir: PathBuf,
    /// The VM's network namespace.
    pub netns: PathBuf,
    /// The TAP in it.
    pub tap: String,
    /// The guest's address.
    pub ip: Ipv4Addr,
    /// Its prefix length.
    pub prefix_len: u8,
    /// Its gateway.
    pub gateway: Ipv4Addr,
    /// The guest's Ethernet address.
    pub mac: Mac,
}

/// How to start a VMM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Launch {
    /// The program and its arguments.
    pub argv: Vec<String>,
    /// The network namespace it is to live in.
    pub netns: PathBuf,
    /// The TAP that must be there first.
    pub tap: String,
}

/// Why a spec cannot be carried out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// A VMM boots nothing from nothing.
    #[error("hypervisor {0} needs a `kernel_file`")]
    NoKernel(Hypervisor),
}

/// How to run `spec` in `slot` on `machine`; `None` when nothing is to be run.
pub fn recipe(spec: &VmSpec, slot: &Slot, machine: &Machine) -> Result<Option<Launch>, Unfit> {
    match spec.hypervisor {
        Hypervisor::None => Ok(None),
        Hypervisor::Qemu => qemu::recipe(spec, slot, machine).map(Some),
    }
}
