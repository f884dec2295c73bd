//! Laws that hold for every plan, whatever was found: rest, convergence, modesty, deletion, safety of every prefix.
//! Out of scope: the kernel. Small models of the host carry out the actions; `tests/kernel/host_*.rs` and `tests/kernel/crash.rs` hold the real one to it.

mod bridge_firewall;
mod cni;
mod explain;
mod firewall;
mod group;
mod host_network;
mod model;
mod net;
mod port;
mod redirect;
mod restriction;
