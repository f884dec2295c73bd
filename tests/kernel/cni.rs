//! The CNI runtime, against a plugin that writes down what it hears and against Debian's real ones.
//! Out of scope: what VMs do with it.

mod cache;
mod configs;
mod debian;
mod failures;
mod manners;
mod requests;
mod stage;
mod sweep;
mod turns;
mod versions;
