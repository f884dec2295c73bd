//! Bridges, their ports and entries, and filters on links, over a real kernel.
//! Out of scope: other links, see `host_net.rs`.

mod support;

#[path = "host_bridge/filters.rs"]
mod filters;
#[path = "../src/reconcile/firewall/antispoof/tests/oracle.rs"]
#[allow(dead_code, reason = "shared with the unit tests")]
mod oracle;
#[path = "host_bridge/ports.rs"]
mod ports;
#[path = "host_bridge/redirect.rs"]
mod redirect;
#[path = "host_bridge/spoof.rs"]
mod spoof;
#[path = "host_bridge/wire.rs"]
mod wire;
