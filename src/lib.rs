//! `slicectl`: keeps the networking of one host's microVMs as its YAML says.
//! Out of scope: any work; that is in the rooms.
//!
//! # The map of the house
//! | room | what it does | imports |
//! |---|---|---|
//! | [`api`] | SAYS: types a person may write and what we answer | nothing |
//! | [`owner`] | OWNS: identity to names and labels, and back | `api` |
//! | [`clock`] | TELLS: the only `now()` | `api` (the type of a time) |
//! | [`store`] | REMEMBERS: the only door to the database | `api clock` |
//! | [`runtime`] | WAITS: queue, backoff, controller | `api`, `clock` |
//! | [`reconcile`] | DECIDES: the rungs of the ladder and the ground under it | `api owner store host cni` |
//! | [`host`] | TOUCHES: thin functions over the kernel | nothing |
//! | [`cni`] | CALLS: a CNI runtime to the spec | `clock` |
//! | [`intake`] | READS: the manifests folder | `api store host` |
//! | [`wire`] | CARRIES: HTTP and JSON on a Unix socket | `api clock` |
//! | [`doctor`] | EXAMINES: whether this host can do what is asked of it, and the remedy | `api host owner cni reconcile` |
//! | [`daemon`] | JOINS: the only file that knows every room | all |
//! | [`cli`] | SPEAKS: words and tables for people | `api wire clock` |
//!
//! The import rule is this table: `tests/layers.rs` reads it and enforces it.

// What clippy.toml keeps inside single rooms. Tests may do it all.
#![cfg_attr(not(test), warn(clippy::disallowed_methods))]

pub mod api;
pub mod cli;
#[allow(clippy::disallowed_methods, reason = "the only now()")]
pub mod clock;
#[allow(
    clippy::disallowed_methods,
    reason = "starts the plugins; knows nothing of the host"
)]
pub mod cni;
pub mod daemon;
pub mod doctor;
#[allow(
    clippy::disallowed_methods,
    reason = "the only room that starts programs and enters namespaces"
)]
pub mod host;
pub mod intake;
pub mod owner;
pub mod reconcile;
pub mod runtime;
#[allow(clippy::disallowed_methods, reason = "the only door to the database")]
pub mod store;
pub mod wire;
