//! What several integration tests need. Every test file says `mod support;`.
//! Not here: tests.
//!
//! - [`kernel`]: a private kernel per test, hosts in it to talk to, canaries.
//! - [`objects`]: groups and VMs.
//! - [`house`]: the real `sliced` and `slicectl` in one.
#![allow(
    dead_code,
    reason = "every integration test file compiles this anew and uses a part of it"
)]

pub mod house;
pub mod kernel;
pub mod objects;
