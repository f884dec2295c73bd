//! The Vmm rung: its plans, its laws, real processes, and a real guest.
//! Not here: the other rungs, the daemon.

#[path = "vmm/guest.rs"]
mod guest;
#[path = "vmm/laws.rs"]
mod laws;
#[path = "vmm/plans.rs"]
mod plans;
#[path = "vmm/processes.rs"]
mod processes;
#[path = "vmm/support.rs"]
mod support;
