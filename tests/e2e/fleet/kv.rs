//! The client of etcd against three real members.
//! Out of scope: answers that etcd does not give (`src/fleet/kv/tests`).

mod access;
mod basics;
mod faults;
mod figures;
mod tokens;
mod watches;

use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use futures::StreamExt;
use slicectl::fleet::kv::{
    Batch, Client, Compare, Error, EtcdKey, Op, Revision, Txn, Watch, WatchTarget,
};

use super::lab::PATIENCE;

/// A page of a list.
const PAGE: NonZeroU32 = NonZeroU32::new(100).unwrap();

/// A key of a VM.
const VM: &str = "/slice/v1/vms/a";

/// A put in a transaction.
fn put(key: impl Into<EtcdKey>, value: impl ToString) -> Op {
    Op::Put {
        key: key.into(),
        value: value.to_string().into_bytes(),
        lease: None,
    }
}

/// Writes a key if it has not changed since this revision; the revision of the write, if it was done.
async fn compare_and_put(
    client: &Client,
    key: &str,
    since: Revision,
    value: impl ToString,
) -> Result<Option<Revision>, Error> {
    let txn = Txn {
        compares: vec![Compare::unchanged(key, since)],
        then: vec![put(key, value)],
        otherwise: Vec::new(),
    };
    let done = client.txn(&txn).await?;
    Ok(done.succeeded.then_some(done.header.revision))
}

/// Keys with this prefix from this revision on.
fn target(prefix: &str, from: Revision) -> WatchTarget {
    WatchTarget {
        prefix: prefix.into(),
        from,
    }
}

/// The next batch of a watch; fails the test if there is none in time.
async fn next_batch(watch: &mut Watch) -> Result<Batch, Error> {
    let next = tokio::time::timeout(PATIENCE, watch.next()).await;
    next.expect("a batch or an error").expect("not the end")
}

/// The error of a request, which must come within this time.
#[track_caller]
fn refused<T: std::fmt::Debug>(
    begin: Instant,
    within: Duration,
    result: Result<T, Error>,
) -> Error {
    let took = begin.elapsed();
    let error = result.expect_err("an error");
    assert!(took < within, "{took:?}: {error}");
    error
}
