//! `slicectl`: a reconciling controller for the microVMs of one host and their networks, configured in YAML.
//! Out of scope: implementations, which are in the modules.
//!
//! # Module layout
//! | module | purpose | imports |
//! |---|---|---|
//! | [`api`] | types of manifests, requests and responses | nothing |
//! | [`owner`] | converts identities to names and labels, and back | `api` |
//! | [`clock`] | the only `now()` | `api` (the timestamp type) |
//! | [`store`] | the only access to the database | `api clock` |
//! | [`runtime`] | queue, backoff, controller | `api`, `clock` |
//! | [`reconcile`] | the stages of a VM and the host network | `api owner store host cni` |
//! | [`host`] | thin functions over the kernel | nothing |
//! | [`cni`] | a CNI runtime as the spec defines it | `clock` |
//! | [`intake`] | reads the manifests folder | `api store host` |
//! | [`wire`] | HTTP and JSON on a Unix socket | `api clock` |
//! | [`doctor`] | checks whether the host meets the requirements, and names the remedy | `api host owner cni reconcile` |
//! | [`daemon`] | starts and connects all modules | all |
//! | [`cli`] | argument parsing and output for users | `api wire clock` |
//!
//! The import rule is this table: `tests/layers.rs` reads it and enforces it.

// Each method listed in clippy.toml is allowed in a single module only. Tests may call all of them.
#![cfg_attr(not(test), warn(clippy::disallowed_methods))]

pub mod api;
pub mod cli;
#[allow(clippy::disallowed_methods, reason = "the only now()")]
pub mod clock;
#[allow(
    clippy::disallowed_methods,
    reason = "starts the plugins; independent of the host module"
)]
pub mod cni;
pub mod daemon;
pub mod doctor;
#[allow(
    clippy::disallowed_methods,
    reason = "the only module that starts programs and enters namespaces"
)]
pub mod host;
pub mod intake;
pub mod owner;
pub mod reconcile;
pub mod runtime;
#[allow(clippy::disallowed_methods, reason = "the only access to the database")]
pub mod store;
pub mod wire;
