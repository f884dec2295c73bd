//! `slicectl`: a reconciling controller for the microVMs of one or several hosts and their networks, configured in YAML.
//! Out of scope: implementations, which are in the modules.
//!
//! # Module layout
//! | module | purpose | imports |
//! |---|---|---|
//! | [`api`] | types of manifests, requests and responses | nothing |
//! | [`owner`] | converts identities to names and labels, and back | `api` |
//! | [`clock`] | the only `now()` | nothing |
//! | [`store`] | the only access to the database | `api clock` |
//! | [`runtime`] | queue, backoff, controller | `api clock` |
//! | [`host`] | thin functions over the kernel | nothing |
//! | [`cni`] | a CNI runtime as the spec defines it | `clock` |
//! | [`vmm`] | command lines and control sockets of the VMMs, their programs | `api clock host` |
//! | [`vsock`] | the back end of QEMU's vsock device, a process beside QEMU | `clock` |
//! | [`secrets`] | the secrets of the host | `api clock host` |
//! | [`guest`] | access to guests: the protocol of `slice-agent`, that program, its clients | `clock` |
//! | [`reconcile`] | the stages of a VM and the host network: observe, plan, act | `api owner store host cni vmm vsock runtime` |
//! | [`engine`] | runs the stages for each key: bring up, tear down, orphans, adoption, preview | `api owner clock store runtime host cni vmm secrets guest reconcile` |
//! | [`status`] | what users see of objects, computed from the store; `explain` | `api owner store host vmm reconcile` |
//! | [`intake`] | reads the manifest directory | `api store host` |
//! | [`fleet`] | multiple hosts: objects in etcd, the scheduler, the agent of a node | `api clock owner store host vmm reconcile engine` |
//! | [`wire`] | HTTP and JSON on Unix and TCP sockets; requests to agents; the web page | `api clock guest` |
//! | [`api_server`] | the second listener of the API: its settings, token and certificate | `api host wire` |
//! | [`ssh`] | the SSH server: shells, files and consoles of guests | `api clock host guest wire` |
//! | [`doctor`] | checks the requirements of the host and suggests fixes | `api host owner cni vmm reconcile` |
//! | [`daemon`] | starts and connects all modules | all |
//! | [`cli`] | argument parsing and output for users | `api wire clock guest` |
//!
//! The import rule is this table: `tests/pure/layers.rs` reads it and enforces it.
//!
//! # Glossary
//! - stage: Lease, Net, Firewall or Vmm. It is *acquired* (a finalizer) before it changes the host and *released* after all is undone.
//! - stage status: the condition, observed generation and acquisition of one stage of one VM; one record with one writer.
//! - checkpoint: what a stage stores about the state it converged to.
//! - bring up, tear down: run the stages of a VM in order, in reverse order.
//! - host network: the chains, bridges and routes of the host that VMs share; *host requirements*: what groups and leases need of it.
//! - converged: the plan is empty. Drift: a plan that is not empty although the generation has converged.
//! - orphan: a resource with our label that no object needs.
//! - instance: one daemon of a host; its id is part of every name and label.
//! - slot: the data path of a VM that the user starts (`hypervisor: none`).
//! - claim: a range, subnet, address, TAP index or user id that the store has assigned.
//! - record: the file in a VM's run directory from which the VM is adopted without the database.
//! - forwarding switch: what lets packets pass: `ip_forward` of a namespace, or the link state of a TAP.
//! - conflicting writer: a program that reverts our repairs again and again; the condition is `Contested`.
//! - on-demand VM: a VM that a user adds to a group, in addition to its `count`.

// Each method listed in clippy.toml is allowed in a single module only. Tests may call all of them.
#![cfg_attr(not(test), warn(clippy::disallowed_methods))]

#[cfg(feature = "host")]
pub mod api;
#[cfg(feature = "host")]
pub mod api_server;
#[cfg(feature = "host")]
pub mod cli;
#[allow(clippy::disallowed_methods, reason = "the only now()")]
pub mod clock;
#[cfg(feature = "host")]
#[allow(
    clippy::disallowed_methods,
    reason = "starts the plugins; independent of the host module"
)]
pub mod cni;
#[cfg(feature = "host")]
pub mod daemon;
#[cfg(feature = "host")]
pub mod doctor;
#[cfg(feature = "host")]
pub mod engine;
#[cfg(feature = "host")]
pub mod fleet;
pub mod guest;
#[cfg(feature = "host")]
#[allow(
    clippy::disallowed_methods,
    reason = "the only module that starts programs and enters namespaces"
)]
pub mod host;
#[cfg(feature = "host")]
pub mod intake;
#[cfg(feature = "host")]
pub mod owner;
#[cfg(feature = "host")]
pub mod reconcile;
#[cfg(feature = "host")]
pub mod runtime;
#[cfg(feature = "host")]
pub mod secrets;
#[cfg(feature = "host")]
pub mod ssh;
#[cfg(feature = "host")]
pub mod status;
#[cfg(feature = "host")]
#[allow(clippy::disallowed_methods, reason = "the only access to the database")]
pub mod store;
#[cfg(feature = "host")]
pub mod vmm;
#[cfg(feature = "host")]
pub mod vsock;
#[cfg(feature = "host")]
pub mod wire;
