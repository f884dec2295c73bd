//! Bridges, their ports and entries, and filters on links, over a real kernel.
//! Out of scope: other links, see `host_net.rs`.

mod filters;
mod ports;
mod redirect;
mod spoof;
mod wire;
