//! Laws that hold for every plan, whatever was found: rest, convergence, modesty, deletion, safety of every prefix.
//! Out of scope: the kernel. Small models of the host carry out the actions; `tests/host_*.rs` and `tests/crash.rs` hold the real one to it.

#[path = "laws/cni.rs"]
mod cni;
#[path = "laws/firewall.rs"]
mod firewall;
#[path = "laws/gate.rs"]
mod gate;
#[path = "laws/ground.rs"]
mod ground;
#[path = "laws/group.rs"]
mod group;
#[path = "laws/model.rs"]
mod model;
#[path = "laws/net.rs"]
mod net;
#[path = "laws/port.rs"]
mod port;
#[path = "laws/redirect.rs"]
mod redirect;
#[path = "laws/restriction.rs"]
mod restriction;
