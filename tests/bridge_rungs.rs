//! Bridge mode's rungs and its ground on a real kernel: bridges, ports, filters, gates, and frames through the TAPs.
//! Out of scope: the daemon; single calls to the kernel (`host_bridge.rs`).

mod support;

#[path = "bridge_rungs/ground.rs"]
mod ground;
#[path = "bridge_rungs/host.rs"]
mod host;
#[path = "bridge_rungs/ports.rs"]
mod ports;
#[path = "bridge_rungs/reach.rs"]
mod reach;
