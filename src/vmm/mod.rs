//! The VMMs: command lines and control sockets of Firecracker, Cloud Hypervisor and QEMU, and their programs on this host.
//! Out of scope: starting and stopping a VMM, its run directory, its resources ([`crate::reconcile::vmm`]).
//!
//! | file | content |
//! |---|---|
//! | `recipe`, `qemu`, `firecracker`, `cloud_hypervisor`, `cmdline`, `version` | pure: the spec of a VM to a command line |
//! | `initrd` | initrds with `slice-agent` |
//! | `jailer` | pure: Firecracker's command line to that of its jailer, and back |
//! | `control` | client of a VMM's control socket |
//! | `file_access` | opens the files that a manifest names, if the settings of the daemon allow it |
//! | `program` | finds the programs of the VMMs and their versions |
//! | `machine` | capabilities of this host: KVM or not, TSC rate |
//! | `kernel` | pure: a minimal kernel for testing KVM |

mod cloud_hypervisor;
mod cmdline;
mod control;
mod file_access;
mod firecracker;
mod initrd;
pub(crate) mod jailer;
mod kernel;
mod machine;
pub(crate) mod program;
mod qemu;
mod recipe;
mod version;

use crate::api::vm::{Hypervisor, VmSpec};

pub use cmdline::NAME_SERVERS;
pub use control::{Control, GuestState};
pub(crate) use file_access::inspect_blocking;
pub use file_access::{FileAccess, FileError};
pub use initrd::INIT as INJECTED_INIT;
pub use machine::{Accel, Machine, Machines, boots, tested_programs};
pub use program::Programs;
pub use qemu::{has_serial_port, machine_of};
pub use recipe::{Access, BackEnd, ConfinedBy, Disk, Launch, NewFile, RecipeError, Slot, Sys};
pub use version::{Program, Version};

/// The configuration that Firecracker reads when it starts.
pub const CONFIG: &str = "vm.json";
/// The pipe that Firecracker writes its metrics into.
pub const METRICS: &str = "metrics";
/// The host's side of a guest's vsock: a client writes `CONNECT <port>\n` and reads `OK <port>\n`.
pub const VSOCK: &str = "vsock.sock";
/// The socket between QEMU and the back end of its vsock device.
pub const VHOST_VSOCK: &str = "vhost-vsock.sock";
/// The host's side of a virtio-serial port, of a QEMU that an earlier version has started.
pub const AGENT: &str = "agent.sock";
/// A lock file that Cloud Hypervisor creates next to its control socket since version 53 and does not remove.
pub const CONTROL_LOCK: &str = "cloud-hypervisor.sock.lock";
/// Files that a VMM creates and may not remove. The next one fails if they exist.
pub const SOCKETS: [&str; 7] = [
    Control::Qmp.socket(),
    Control::Firecracker.socket(),
    Control::CloudHypervisor.socket(),
    CONTROL_LOCK,
    VSOCK,
    VHOST_VSOCK,
    AGENT,
];
/// Whether the serial port of the VM accepts input. Cloud Hypervisor reads only from a terminal, or from a socket that loses output
/// until a client connects.
pub const fn supports_serial_input(hypervisor: Hypervisor) -> bool {
    match hypervisor {
        Hypervisor::Qemu | Hypervisor::Firecracker => true,
        Hypervisor::CloudHypervisor | Hypervisor::None => false,
    }
}

/// How to run `spec` in `slot` with `program` on `machine`; `None` for hypervisor `none`.
pub fn recipe(
    spec: &VmSpec,
    slot: &Slot,
    program: &Program,
    machine: &Machine,
) -> Result<Option<Launch>, RecipeError> {
    let least = Version::oldest_supported(spec.hypervisor);
    if let Some(least) = least.filter(|least| program.version < *least) {
        return Err(RecipeError::TooOld {
            hypervisor: spec.hypervisor,
            found: program.version,
            oldest: least,
        });
    }
    let mut launch = match spec.hypervisor {
        Hypervisor::None => return Ok(None),
        Hypervisor::Qemu => qemu::recipe(spec, slot, program, machine),
        Hypervisor::Firecracker => firecracker::recipe(spec, slot, program),
        Hypervisor::CloudHypervisor => cloud_hypervisor::recipe(spec, slot, program),
    }?;
    launch.version = Some(program.version);
    Ok(Some(launch))
}
