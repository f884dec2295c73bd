//! Packets through a real TAP, the test being the guest, and neighbours that see all that arrives.
//! Out of scope: random lists (`oracle`), a guest with a kernel of its own (`vmm`).

mod answers;
mod bridge;
mod bridge_apart;
mod bridge_guard;
mod configuration;
mod daemons;
mod flood;
mod foreign_chains;
mod forward_policy;
mod full_disk;
mod host;
mod live;
mod managers;
mod modes;
mod neighbours;
mod odd;
mod others;
mod path;
mod translated;
mod truth;
mod window;
