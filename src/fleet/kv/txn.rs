//! Transactions: writes that are applied only if keys have not changed.
//! Out of scope: which keys.

use std::cmp::max;

use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};

use super::client::Client;
use super::error::{Cause, Error, Malformed};
use super::message::{
    Base64, DeleteRequest, HeaderMessage, Int, KeyValueMessage, PutRequest, RangeRequest, Request,
    int,
};
use super::types::{EtcdKey, Header, KeyValue, LeaseId, Revision};

/// The number of compares, and of operations of each branch, that etcd accepts by default (`--max-txn-ops`).
pub const MAX_OPS: usize = 128;

/// How a value is compared with that of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Relation {
    /// The store has this value.
    Equal,
    /// Another value.
    NotEqual,
    /// A greater value.
    Greater,
    /// A lesser value.
    Less,
}

/// A condition of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compare {
    key: EtcdKey,
    /// All keys with the prefix `key` are compared.
    is_prefix: bool,
    relation: Relation,
    target: CompareTarget,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum CompareTarget {
    Mod(Revision),
    Create(Revision),
    Version(u64),
}

impl Compare {
    /// The revision at which the key was last changed; that of a key that does not exist is 0.
    pub fn mod_revision(key: impl Into<EtcdKey>, relation: Relation, than: Revision) -> Self {
        Self::new(key, relation, CompareTarget::Mod(than))
    }

    /// The revision at which the key was created; that of a key that does not exist is 0.
    pub fn create_revision(key: impl Into<EtcdKey>, relation: Relation, than: Revision) -> Self {
        Self::new(key, relation, CompareTarget::Create(than))
    }

    /// The number of changes since the key was created; that of a key that does not exist is 0.
    pub fn version(key: impl Into<EtcdKey>, relation: Relation, than: u64) -> Self {
        Self::new(key, relation, CompareTarget::Version(than))
    }

    /// The key does not exist.
    pub fn absent(key: impl Into<EtcdKey>) -> Self {
        Self::version(key, Relation::Equal, 0)
    }

    /// The key was not changed since it was read at this `mod_revision`.
    pub fn unchanged(key: impl Into<EtcdKey>, since: Revision) -> Self {
        Self::mod_revision(key, Relation::Equal, since)
    }

    /// No key with this prefix was created or changed after this revision. A key that was deleted is not noticed.
    pub fn none_newer(prefix: impl Into<EtcdKey>, than: Revision) -> Self {
        Self {
            is_prefix: true,
            ..Self::mod_revision(prefix, Relation::Less, than.next())
        }
    }

    fn new(key: impl Into<EtcdKey>, relation: Relation, target: CompareTarget) -> Self {
        Self {
            key: key.into(),
            is_prefix: false,
            relation,
            target,
        }
    }
}

/// An operation of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Writes a key. A transaction may write a key only once.
    Put {
        /// The key.
        key: EtcdKey,
        /// The value.
        value: Vec<u8>,
        /// The lease that it ends with.
        lease: Option<LeaseId>,
    },
    /// Deletes a key.
    Delete(EtcdKey),
    /// Reads a key.
    Get(EtcdKey),
}

/// A transaction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Txn {
    /// All must hold.
    pub compares: Vec<Compare>,
    /// What is done if they hold.
    pub then: Vec<Op>,
    /// What is done otherwise.
    pub otherwise: Vec<Op>,
}

/// The result of an operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OpResult {
    /// The key is written.
    Put,
    /// Whether the key existed.
    Deleted(bool),
    /// The key, if it exists.
    Found(Option<KeyValue>),
}

/// The result of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TxnResponse {
    /// The revision after it, which is that of its writes.
    pub header: Header,
    /// Whether the compares held.
    pub succeeded: bool,
    /// The results of the operations that were done, in their order.
    pub results: Vec<OpResult>,
}

impl Client {
    /// Does the operations of a transaction.
    ///
    /// # Errors
    /// [`Error::TooManyOps`] before anything is sent; [`Error::OutcomeUnknown`] if the answer is lost, also if nothing is written.
    pub async fn txn(&self, txn: &Txn) -> Result<TxnResponse, Error> {
        let operations = max(txn.then.len(), txn.otherwise.len());
        for (part, found) in [("compares", txn.compares.len()), ("operations", operations)] {
            if found > MAX_OPS {
                let limit = MAX_OPS;
                return Err(Error::TooManyOps { part, found, limit });
            }
        }
        let message = TxnMessage {
            compare: txn.compares.iter().map(CompareMessage::from).collect(),
            success: txn.then.iter().map(OpMessage::from).collect(),
            failure: txn.otherwise.iter().map(OpMessage::from).collect(),
        };
        let request = Request::Txn;
        let answer = self.call::<TxnResponseMessage>(request, &message).await?;
        let succeeded = answer.message.succeeded;
        let done = if succeeded { &txn.then } else { &txn.otherwise };
        match results(done, answer.message.responses) {
            Ok(results) => Ok(TxnResponse {
                header: answer.message.header.into(),
                succeeded,
                results,
            }),
            Err(error) => Err(Error::OutcomeUnknown {
                endpoint: answer.endpoint,
                request,
                cause: Cause::Malformed(error),
            }),
        }
    }
}

fn results(ops: &[Op], responses: Vec<OpResponse>) -> Result<Vec<OpResult>, Malformed> {
    if ops.len() != responses.len() {
        return Err(Malformed::Field("number of responses"));
    }
    let pairs = ops.iter().zip(responses);
    pairs
        .map(|(op, response)| match (op, response) {
            (Op::Put { .. }, OpResponse::Put(_)) => Ok(OpResult::Put),
            (Op::Delete(_), OpResponse::DeleteRange(response)) => {
                Ok(OpResult::Deleted(response.deleted > 0))
            }
            (Op::Get(_), OpResponse::Range(response)) => {
                let found = response.kvs.into_iter().next();
                Ok(OpResult::Found(found.map(KeyValue::from)))
            }
            _ => Err(Malformed::Field("type of a response")),
        })
        .collect()
}

#[derive(Serialize)]
struct TxnMessage {
    compare: Vec<CompareMessage>,
    success: Vec<OpMessage>,
    failure: Vec<OpMessage>,
}

#[derive(Serialize)]
struct CompareMessage {
    key: Base64,
    #[serde(skip_serializing_if = "Option::is_none")]
    range_end: Option<Base64>,
    result: Relation,
    #[serde(flatten)]
    target: TargetMessage,
}

#[derive(Serialize)]
#[serde(tag = "target", rename_all = "SCREAMING_SNAKE_CASE")]
enum TargetMessage {
    Mod { mod_revision: Int<Revision> },
    Create { create_revision: Int<Revision> },
    Version { version: Int<u64> },
}

impl From<&Compare> for CompareMessage {
    fn from(compare: &Compare) -> Self {
        Self {
            key: (&compare.key).into(),
            range_end: compare
                .is_prefix
                .then(|| (&compare.key.prefix_end()).into()),
            result: compare.relation,
            target: match compare.target {
                CompareTarget::Mod(revision) => TargetMessage::Mod {
                    mod_revision: Int(revision),
                },
                CompareTarget::Create(revision) => TargetMessage::Create {
                    create_revision: Int(revision),
                },
                CompareTarget::Version(version) => TargetMessage::Version {
                    version: Int(version),
                },
            },
        }
    }
}

#[derive(Serialize)]
enum OpMessage {
    #[serde(rename = "request_put")]
    Put(PutRequest),
    #[serde(rename = "request_delete_range")]
    Delete(DeleteRequest),
    #[serde(rename = "request_range")]
    Range(RangeRequest),
}

impl From<&Op> for OpMessage {
    fn from(op: &Op) -> Self {
        match op {
            Op::Put { key, value, lease } => Self::Put(PutRequest {
                key: key.into(),
                value: Base64(value.clone()),
                lease: lease.map(|lease| Int(lease.0)),
            }),
            Op::Delete(key) => Self::Delete(DeleteRequest { key: key.into() }),
            Op::Get(key) => Self::Range(RangeRequest {
                key: key.into(),
                range_end: None,
                limit: Int(1),
                revision: Int(Revision(0)),
            }),
        }
    }
}

#[derive(Deserialize)]
struct TxnResponseMessage {
    header: HeaderMessage,
    #[serde(default)]
    succeeded: bool,
    #[serde(default)]
    responses: Vec<OpResponse>,
}

#[derive(Deserialize)]
enum OpResponse {
    #[serde(rename = "response_put")]
    Put(IgnoredAny),
    #[serde(rename = "response_delete_range")]
    DeleteRange(DeletedMessage),
    #[serde(rename = "response_range")]
    Range(FoundMessage),
}

// In a transaction, the headers of the responses have no ids.

#[derive(Deserialize)]
struct DeletedMessage {
    #[serde(default, deserialize_with = "int")]
    deleted: u64,
}

#[derive(Deserialize)]
struct FoundMessage {
    #[serde(default)]
    kvs: Vec<KeyValueMessage>,
}
