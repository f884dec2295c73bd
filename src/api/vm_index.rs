//! The index of a VM in its group.
//! Out of scope: names that are derived from it ([`super::host_group`]).

/// The maximum `count`. VMs made on demand have higher indexes, so that they never collide with VMs of a group that grows.
pub const MAX_COUNT: u32 = 65_536;
