//! Types that users write and types that the daemon returns.
//! Out of scope: I/O, the clock, the kernel, the store.

pub mod allowed;
pub mod changes;
pub mod cni;
pub mod condition;
mod entry_problem;
pub mod event;
pub mod guest_access;
pub mod host_group;
pub mod json_object;
pub mod lease;
pub mod life;
pub mod link_name;
mod mac;
pub mod manifest;
pub mod meta;
pub mod metrics;
pub mod network;
pub mod node;
pub mod on_demand;
pub mod plain_text;
pub mod policy;
pub mod pool;
pub mod provision;
mod schema;
pub mod secret;
mod spec;
pub mod ssh_key;
pub mod stage;
pub mod storage;
pub mod tag;
pub mod usage;
pub mod validate;
pub mod view;
pub mod vm;
mod vm_index;
pub mod vmm_ids;
