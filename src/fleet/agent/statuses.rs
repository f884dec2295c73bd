//! Writes the status keys of this node.
//! Out of scope: which ones (the plan).

use super::super::keys::Key;
use super::super::kv::{self, Client, Compare, EtcdKey, MAX_OPS, Op, Revision, Txn};
use super::super::mirror::Mirror;
use super::super::node::Step;
use super::super::object;
use crate::api::meta::{Name, Uid};

/// A write of a key of this node, with the revision that it replaces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct StatusWrite {
    key: Key,
    /// 0: there is no key.
    since: u64,
    /// `None`: the key is deleted.
    value: Option<Vec<u8>>,
}

impl StatusWrite {
    /// Writes a key that has this revision; 0: it does not exist.
    pub(super) fn put(key: Key, since: u64, value: Vec<u8>) -> Self {
        Self {
            key,
            since,
            value: Some(value),
        }
    }
}

/// The writes of a plan.
pub(super) fn of(steps: &[Step], mirror: &Mirror, node: &Name) -> Vec<StatusWrite> {
    let known = mirror.statuses.get(node);
    let since = |uid: &Uid| {
        known
            .and_then(|all| all.get(uid))
            .map_or(0, |it| it.revision)
    };
    let mut writes = Vec::new();
    for step in steps {
        let (uid, value) = match step {
            Step::PutStatus { uid, status } => match object::encode(status) {
                Ok(value) => (uid, Some(value)),
                Err(_) => continue,
            },
            Step::DeleteStatus { uid } => (uid, None),
            _ => continue,
        };
        writes.push(StatusWrite {
            key: Key::VmStatus(node.clone(), *uid),
            since: since(uid),
            value,
        });
    }
    writes
}

/// Sends the writes, in transactions. Returns the revision of the last one that was applied; a transaction that was not applied is
/// decided again.
///
/// # Errors
/// Those of the first transaction that fails; the ones before were applied.
pub(super) async fn send(
    client: &Client,
    writes: Vec<StatusWrite>,
) -> Result<Option<u64>, kv::Error> {
    let mut applied = None;
    for chunk in writes.chunks(MAX_OPS) {
        let compares = chunk.iter();
        let compares = compares
            .map(|write| Compare::unchanged(&write.key, Revision(write.since)))
            .collect();
        let then = chunk.iter().map(op).collect();
        let txn = Txn {
            compares,
            then,
            otherwise: Vec::new(),
        };
        let response = client.txn(&txn).await?;
        if response.succeeded {
            applied = Some(response.header.revision.0);
        }
    }
    Ok(applied)
}

fn op(write: &StatusWrite) -> Op {
    let key = EtcdKey::from(&write.key);
    match &write.value {
        Some(value) => Op::Put {
            key,
            value: value.clone(),
            lease: None,
        },
        None => Op::Delete(key),
    }
}
