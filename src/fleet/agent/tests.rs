//! The agent against a store.
//! Out of scope: etcd.
