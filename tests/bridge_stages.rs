//! The stages of bridge mode and its host network on a real kernel: bridges, ports, filters, link states, and frames through the TAPs.
//! Out of scope: the daemon; single calls to the kernel (`host_bridge.rs`).

mod support;

#[path = "bridge_stages/ground.rs"]
mod ground;
#[path = "bridge_stages/host.rs"]
mod host;
#[path = "bridge_stages/ports.rs"]
mod ports;
#[path = "bridge_stages/reach.rs"]
mod reach;
