//! What several test binaries need.
//! Out of scope: tests.
//!
//! - [`programs`]: what cargo has built.
//! - [`kernel`]: a private kernel per test, hosts in it to talk to, canaries.
//! - [`turns`]: tests that run alone.
//! - [`objects`]: groups and VMs.
//! - [`openapi`]: the OpenAPI document as a check of answers.
//! - [`lab`]: neighbours of a test host, [`sniffer`]s in them; [`guest_stack`]: a guest at a TAP; [`frames`]: what it sends.
//! - [`harness`]: the real `sliced` and `slicectl` in one.
//! - [`transcript`]: runs of `slicectl`, compared with golden files; [`screen`]: the same at a terminal.
//! - [`pages`]: the documentation, its blocks and commands; [`shell`]: the words of a command.
//! - [`fuse`]: a file system that does not answer.
//! - [`cni_networks`]: CNI networks for it; [`managers`]: network managers and firewalls beside it.
//! - [`descriptors`]: copies of descriptors, as a forked child has them.
//! - [`pings`]: how long a guest does not answer.
//! - [`antispoof`]: frames, and which of them may leave a VM.
//! - [`tiny`]: guests for it, by the dozen; [`linux`]: full ones; [`vmm`]: programs that stand for VMMs.
#![allow(missing_docs, reason = "a test reads them beside their use")]

pub mod antispoof;
pub mod cni_networks;
pub mod descriptors;
pub mod dice;
pub mod frames;
pub mod fuse;
pub mod guest_stack;
pub mod harness;
pub mod kernel;
pub mod lab;
pub mod linux;
pub mod managers;
pub mod objects;
pub mod openapi;
pub mod pages;
pub mod pings;
pub mod placeholders;
pub mod power;
pub mod programs;
pub mod screen;
pub mod shell;
pub mod sniffer;
pub mod terminal;
pub mod tiny;
pub mod transcript;
pub mod turns;
pub mod vmm;
