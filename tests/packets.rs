//! Packets through a real TAP, the test being the guest, and neighbours that see all that arrives.
//! Out of scope: random lists (`oracle`), a guest with a kernel of its own (`vmm`).

mod support;

#[path = "packets/answers.rs"]
mod answers;
#[path = "packets/bridge.rs"]
mod bridge;
#[path = "packets/bridge_apart.rs"]
mod bridge_apart;
#[path = "packets/bridge_guard.rs"]
mod bridge_guard;
#[path = "packets/configuration.rs"]
mod configuration;
#[path = "packets/daemons.rs"]
mod daemons;
#[path = "packets/flood.rs"]
mod flood;
#[path = "packets/foreign_chains.rs"]
mod foreign_chains;
#[path = "packets/forward_policy.rs"]
mod forward_policy;
#[path = "packets/full_disk.rs"]
mod full_disk;
#[path = "packets/host.rs"]
mod host;
#[path = "packets/live.rs"]
mod live;
#[path = "packets/managers.rs"]
mod managers;
#[path = "packets/modes.rs"]
mod modes;
#[path = "packets/neighbours.rs"]
mod neighbours;
#[path = "packets/odd.rs"]
mod odd;
#[path = "packets/others.rs"]
mod others;
#[path = "packets/path.rs"]
mod path;
#[path = "packets/translated.rs"]
mod translated;
#[path = "packets/truth.rs"]
mod truth;
#[path = "packets/window.rs"]
mod window;
