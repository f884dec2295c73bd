//! The Vmm stage: its laws, real processes, and a real guest.
//! Out of scope: the other stages, the daemon.

#[path = "vmm/api.rs"]
mod api;
#[path = "vmm/confine.rs"]
mod confine;
#[path = "support/descriptors.rs"]
mod descriptors;
#[path = "vmm/disks.rs"]
mod disks;
#[path = "vmm/guest.rs"]
mod guest;
#[path = "vmm/identity.rs"]
mod identity;
#[path = "vmm/jail.rs"]
mod jail;
#[path = "vmm/kvm.rs"]
mod kvm;
#[path = "vmm/laws.rs"]
mod laws;
#[path = "vmm/named.rs"]
mod named;
#[path = "vmm/processes.rs"]
mod processes;
#[path = "vmm/real.rs"]
mod real;
#[path = "vmm/recipes.rs"]
mod recipes;
#[path = "vmm/strange.rs"]
mod strange;
#[path = "vmm/support.rs"]
mod support;
#[path = "support/vmm.rs"]
mod vmm;
