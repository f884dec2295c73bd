//! Multiple hosts: real etcd of Debian, three members in network namespaces of their own.
//! Out of scope: one host.

mod control;
mod daemons;
pub mod hosts;
mod kv;
pub mod lab;
mod pki;
mod remote;
mod verbs;
