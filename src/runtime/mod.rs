//! WAITS: which key is looked at next, and when.
//! Out of scope: what a key means, what is done for it.

pub mod backoff;
pub mod controller;
pub mod queue;
