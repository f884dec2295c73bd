//! Multiple hosts: groups and VMs in etcd, the scheduler that binds VMs to nodes, and the agent of this node.
//! Out of scope: the VMs themselves. A node stores the VMs that are bound to it as on-demand VMs; from there everything is as on one host.
//!
//! # Writers
//! Each key has one writer ([`keys`]). A node acts only on what an object says: a key that is missing is not a request to delete
//! anything. A VM is deleted when its object has `deleting`, or a greater epoch and no binding to this node ([`schedule`]).

pub mod agent;
pub mod contact;
pub mod control;
pub mod fence;
pub mod keys;
pub mod kv;
pub mod link;
pub mod mirror;
pub mod node;
pub mod object;
mod resources;
pub mod schedule;
pub mod verbs;
