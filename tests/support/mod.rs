//! What several integration tests need. Every test file says `mod support;`.
//! Out of scope: tests.
//!
//! - [`kernel`]: a private kernel per test, hosts in it to talk to, canaries.
//! - [`objects`]: groups and VMs.
//! - [`lab`]: neighbours around a house, [`sniffer`]s in them; [`guest_stack`]: a guest at a TAP; [`frames`]: what it sends.
//! - [`house`]: the real `sliced` and `slicectl` in one.
//! - [`fuse`]: a file system that does not answer.
//! - [`plugs`]: CNI networks for it; [`managers`]: network managers and firewalls beside it.
//! - [`descriptors`]: copies of descriptors, as a forked child has them.
//! - [`pings`]: how long a guest does not answer.
//! - [`tiny`]: guests for it, by the dozen; [`linux`]: full ones; [`vmm`]: programs that stand for VMMs.
#![allow(
    dead_code,
    reason = "every integration test file compiles this anew and uses a part of it"
)]

pub mod descriptors;
pub mod dice;
pub mod frames;
pub mod fuse;
pub mod guest_stack;
pub mod house;
pub mod kernel;
pub mod lab;
pub mod linux;
pub mod managers;
pub mod objects;
pub mod pings;
pub mod plugs;
pub mod power;
pub mod sniffer;
pub mod tiny;
pub mod vmm;
