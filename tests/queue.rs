//! The queue's laws and the controller's, in simulated time.
//! Out of scope: what a run does.

#[path = "queue/controller.rs"]
mod controller;
#[path = "queue/laws.rs"]
mod laws;
