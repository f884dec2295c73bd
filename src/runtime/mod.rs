//! The work queue: which key runs next, and when.
//! Out of scope: what a key means, and what its run does.

pub mod backoff;
pub mod controller;
pub mod queue;
