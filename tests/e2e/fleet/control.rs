//! The connection of nodes and the scheduler against three real members: each node is a thread in a network namespace of its own.
//! Out of scope: VMs (a small agent reports them), and what a single request does (`kv`).

mod agent;
mod cluster;
mod contact;
mod election;
mod figures;
mod fleet;
mod node;
mod replacement;
mod schedule;
