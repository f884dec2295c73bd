//! Types that users write and types that the daemon returns.
//! Out of scope: I/O, the clock, the kernel, the store.

pub mod allowed;
pub mod cni;
pub mod condition;
pub mod event;
pub mod host_group;
pub mod lease;
pub mod life;
pub mod link_name;
pub mod manifest;
pub mod meta;
pub mod metrics;
pub mod network;
pub mod on_demand;
pub mod policy;
pub mod pool;
pub mod stage;
pub mod storage;
pub mod tag;
pub mod validate;
pub mod view;
pub mod vm;
pub mod vmm_ids;
