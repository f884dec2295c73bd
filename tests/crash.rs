//! Crash after every single action, error at every single action, state lost at every single action; reboots, neighbours,
//! strangers. All in private kernels, with the real loop and a real database.
//! Out of scope: events and drift (the daemon's tests); packets.

#[path = "crash/bridges.rs"]
mod bridges;
#[path = "crash/life.rs"]
mod life;
#[path = "crash/on_demand.rs"]
mod on_demand;
#[path = "crash/plugged.rs"]
mod plugged;
#[path = "crash/process.rs"]
mod process;
#[path = "crash/scenes.rs"]
mod scenes;
#[path = "crash/strangers.rs"]
mod strangers;
mod support;
#[path = "crash/sweep.rs"]
mod sweep;
#[path = "crash/world.rs"]
mod world;
