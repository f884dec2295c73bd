//! The queue's laws and the controller's, in simulated time.
//! Out of scope: what a run does.

mod controller;
mod laws;
