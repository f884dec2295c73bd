//! VMMs: their recipes, processes, control sockets and confinement, and dozens of real guests.
//! Out of scope: the other stages (`kernel`), the daemon with other networks and guests (`e2e`).

mod api;
mod confine;
mod disks;
mod echo;
mod fixture;
mod guest;
mod identity;
mod jail;
mod kvm;
mod laws;
mod misbehaving;
mod named;
mod processes;
mod programs;
mod real;
mod recipes;
mod tiny;
mod vsock;
