//! A client of etcd, over its JSON gateway (`/v3/*`, etcd 3.4 and newer): keys, transactions, leases, watches.
//! Out of scope: the objects in etcd ([`super::object`]) and their keys ([`super::keys`]).
//!
//! # Why
//! The gateway needs only the HTTP client and the TLS library that are dependencies already; gRPC needs 66 more crates and `protoc`.
//!
//! # Certificates and users
//! The gateway refuses every request of a client certificate with a common name. The certificate of a node has none (`/O=slice/OU=node-a`)
//! and only opens the connection. What a client may read and write is decided by its user and password.
//!
//! # Deadlines, failover and lost answers
//! Every request ends by its deadline. An endpoint that fails or does not answer in its share of the deadline is tried last from then
//! on. A read is repeated at the next endpoint. A write is repeated only if etcd certainly did not apply it; otherwise the error is
//! [`Error::OutcomeUnknown`]. Such a write may be applied later, even after a write that succeeded: a member that was suspended sends it
//! on when it continues. A caller to whom the order matters uses a transaction that compares the revision.

mod answer;
mod client;
mod config;
mod connection;
mod endpoints;
mod error;
mod lease;
mod lines;
mod message;
mod ops;
mod tls;
mod txn;
mod types;
mod url;
mod watch;
mod watch_message;

#[cfg(test)]
mod tests;

pub use client::Client;
pub use config::{Config, ConfigError, Credentials, Identity, Password};
pub use error::{Cause, Code, Error, Malformed};
pub use message::Request;
pub use txn::{Compare, MAX_OPS, Op, OpResult, Relation, Txn, TxnResponse};
pub use types::{
    ClusterId, EtcdKey, Header, KeyValue, LeaseGrant, LeaseId, Listing, MemberId, Revision,
};
pub use url::{InvalidUrl, Url};
pub use watch::{Batch, Event, Watch, WatchTarget};
