//! The queue's laws and the controller's, in simulated time.
//! Not here: what a run does.

#[path = "queue/controller.rs"]
mod controller;
#[path = "queue/laws.rs"]
mod laws;
