//! Crash after every single action, error at every single action, state lost at every single action; reboots, neighbours,
//! strangers. All in private kernels, with the real loop and a real database.
//! Out of scope: events and drift (the daemon's tests); packets.

mod bridges;
mod cni;
mod life;
mod on_demand;
mod process;
mod scenes;
mod strangers;
mod sweep;
mod world;
