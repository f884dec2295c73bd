//! The stages of bridge mode and its host network on a real kernel: bridges, ports, filters, link states, and frames through the TAPs.
//! Out of scope: the daemon; single calls to the kernel (`host_bridge.rs`).

mod bridges;
mod host;
mod ports;
mod reach;
