//! The limits and names of values, for the parser and for the table.
//! Out of scope: limits of several groups together ([`super::super::super::validate`]).

use std::ops::RangeInclusive;
use std::time::Duration;

use super::super::super::cni::Transport;
use super::super::super::guest_access::Agent;
use super::super::super::host_group::UpdatePolicy;
use super::super::super::life::{MachineType, Restart};
use super::super::super::placement::{Reconcile, Strategy};
use super::super::super::policy::OnDeny;
use super::super::super::vm::Hypervisor;
use super::Mode;

/// The maximum number of members of an etcd cluster that are named.
pub const MAX_ENDPOINTS: usize = 9;
/// The maximum number of labels of a node.
pub const MAX_LABELS: usize = 32;
/// vCPUs of VMs of a fleet for each CPU of a node, and the default: KubeVirt takes 10, OpenStack 4.
pub const VCPUS_PER_CPU: RangeInclusive<u64> = 1..=64;
/// See [`VCPUS_PER_CPU`].
pub const DEFAULT_VCPUS_PER_CPU: u64 = 4;

/// One MiB.
pub const MIB: u64 = 1 << 20;
/// One GiB.
pub const GIB: u64 = 1 << 30;

/// The only value of `apiVersion`.
pub const API_VERSION: &str = "slice/v1";
/// The only value of `kind`.
pub const KIND: &str = "Config";

/// Virtual CPUs.
pub const VCPU: RangeInclusive<u64> = 1..=255;
/// Virtual CPUs of a group that does not set them.
pub const DEFAULT_VCPU: u32 = 2;
/// 16 TiB: more than any supported host has, and small enough to exclude overflows.
const MAX_RAM: u64 = 16 << 40;
/// Memory of a group that does not set it.
pub const DEFAULT_RAM: u64 = 4 * GIB;
/// The keys that set the memory, with their units.
pub const RAM_UNITS: [(&str, u64); 3] = [("ram_mb", MIB), ("ram_gb", GIB), ("ram_bytes", 1)];

/// The valid amounts of memory in `unit`.
pub const fn ram_range(unit: u64) -> RangeInclusive<u64> {
    MIB.div_ceil(unit)..=MAX_RAM / unit
}

/// The maximum number of name servers: the kernel parameter `ip=` has two fields for them
/// (kernel, Documentation/admin-guide/nfs/nfsroot.rst: `<dns0-ip>:<dns1-ip>`).
pub const MAX_DNS_SERVERS: usize = 2;

/// 16 TiB, the largest file of ext4 with blocks of 4 KiB.
pub const MAX_DISK_SIZE: u64 = 16 << 40;
/// The units of sizes, each with its power of two.
pub const SIZE_UNITS: [(&str, u32); 9] = [
    ("M", 20),
    ("Mi", 20),
    ("MiB", 20),
    ("G", 30),
    ("Gi", 30),
    ("GiB", 30),
    ("T", 40),
    ("Ti", 40),
    ("TiB", 40),
];

/// Fewer than 16 connections are unusable for a guest; the upper bound is the kernel's default table size on the largest hosts.
pub const MAX_CONNECTIONS: RangeInclusive<u64> = 16..=262_144;
/// Prefix lengths of an isolated group's range with more than one /30, within the link-local range.
pub const RANGE_PREFIXES: RangeInclusive<u8> = 16..=29;
/// Prefix lengths of a bridge. A /31 has no network and broadcast address (RFC 3021 applies to point-to-point links).
pub const GATEWAY_PREFIXES: RangeInclusive<u8> = 8..=30;
/// Prefix lengths of `placement.subnets.pool`.
pub const POOL_PREFIXES: RangeInclusive<u8> = 8..=30;
/// Prefix lengths of the subnets of a pool.
pub const SUBNET_PREFIXES: RangeInclusive<u8> = GATEWAY_PREFIXES;
/// The spec sets no limit, but the name is part of a file name (`<name>-<container>-<interface>` in libcni's cache).
pub const MAX_NETWORK_NAME_LEN: usize = 128;
/// Transport ports.
pub const PORTS: RangeInclusive<u64> = 1..=65_535;
/// The port of the SSH server if it is not set.
pub const DEFAULT_SSH_PORT: u16 = 2222;
/// The port of the API if it is not set.
pub const DEFAULT_API_PORT: u16 = 8080;

/// The minimum removal grace: programs that save a file in several steps need time between them.
pub const MIN_REMOVAL_GRACE: Duration = Duration::from_millis(150);
/// The maximum removal grace.
pub const MAX_REMOVAL_GRACE: Duration = Duration::from_secs(24 * 3600);

/// Values of `hypervisor`.
pub const HYPERVISORS: [(&str, Hypervisor); 4] = [
    ("qemu", Hypervisor::Qemu),
    ("none", Hypervisor::None),
    ("firecracker", Hypervisor::Firecracker),
    ("cloud-hypervisor", Hypervisor::CloudHypervisor),
];
/// Values of `machine`.
pub const MACHINES: [(&str, MachineType); 2] =
    [("microvm", MachineType::Microvm), ("q35", MachineType::Q35)];
/// Values of `restart`.
pub const RESTARTS: [(&str, Restart); 3] = [
    ("always", Restart::Always),
    ("on-failure", Restart::OnFailure),
    ("never", Restart::Never),
];
/// Values of `agent`.
pub const AGENTS: [(&str, Agent); 3] = [
    ("baked", Agent::Baked),
    ("inject", Agent::Inject),
    ("none", Agent::None),
];
/// Values of `update`.
pub const UPDATES: [(&str, UpdatePolicy); 2] = [
    ("rolling", UpdatePolicy::Rolling),
    ("on-delete", UpdatePolicy::OnDelete),
];
/// Values of `placement.strategy`.
pub const STRATEGIES: [(&str, Strategy); 2] =
    [("spread", Strategy::Spread), ("pack", Strategy::Pack)];
/// Values of `placement.architecture`: those of `uname -m` on which there are VMMs.
pub const ARCHITECTURES: [(&str, &str); 2] = [("x86_64", "x86_64"), ("aarch64", "aarch64")];
/// Values of `replacement.reconcile`.
pub const RECONCILES: [(&str, Reconcile); 2] = [
    ("keep_replacement", Reconcile::KeepReplacement),
    ("keep_original", Reconcile::KeepOriginal),
];
/// Values of `network.mode`.
pub const MODES: [(&str, Mode); 3] = [
    ("isolated", Mode::Isolated),
    ("bridge", Mode::Bridge),
    ("cni", Mode::Cni),
];
/// Values of `network.on_deny`.
pub const ON_DENY: [(&str, OnDeny); 2] = [("drop", OnDeny::Drop), ("reject", OnDeny::Reject)];
/// Values of `protocol` of a port mapping.
pub const TRANSPORTS: [(&str, Transport); 3] = [
    ("tcp", Transport::Tcp),
    ("udp", Transport::Udp),
    ("sctp", Transport::Sctp),
];
