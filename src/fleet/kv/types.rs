//! The types of requests and responses, as callers see them.
//! Out of scope: their form in JSON ([`super::message`]).

use std::fmt;
use std::time::Duration;

use crate::fleet::keys::Key;

/// The number of a change of the store: every transaction that writes increments it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(pub u64);

impl Revision {
    /// The revision after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The id of a cluster: a hash of the addresses of its first members and of its `--initial-cluster-token`. A cluster that is created again
/// with the same ones has the same id; only its revision shows that it is another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ClusterId(pub u64);

/// In hexadecimal, as `etcdctl` shows it.
impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}", self.0)
    }
}

/// The id of a member of a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MemberId(pub u64);

/// In hexadecimal, as `etcdctl` shows it.
impl fmt::Display for MemberId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}", self.0)
    }
}

/// The id of a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LeaseId(pub i64);

/// In hexadecimal, as `etcdctl` shows it.
impl fmt::Display for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}", self.0)
    }
}

/// Which cluster has answered, and at which revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Another id than before: another cluster.
    pub cluster_id: ClusterId,
    /// The member that has answered.
    pub member_id: MemberId,
    /// The revision of the store when the request was processed. Less than before: the store was restored from a snapshot.
    pub revision: Revision,
    /// The term of the leader.
    pub raft_term: u64,
}

/// A key, or a prefix of keys. Bytes, as in etcd; [`Key`] is what this fleet stores.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EtcdKey(Vec<u8>);

impl EtcdKey {
    /// A key of these bytes.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
        Self(bytes.into())
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The key of this fleet that it is; `None` for keys of other programs and of other versions.
    pub fn parse(&self) -> Option<Key> {
        Key::parse(std::str::from_utf8(&self.0).ok()?)
    }

    /// The first key with this prefix. An empty key is not one of etcd.
    pub(super) fn prefix_start(&self) -> Self {
        match self.0.is_empty() {
            true => Self(vec![0]),
            false => self.clone(),
        }
    }

    /// The end of the range of all keys with this prefix: the first key after them. `\0` means: to the end of the store.
    pub(super) fn prefix_end(&self) -> Self {
        let kept = self.0.iter().rposition(|&byte| byte != u8::MAX);
        let Some(last) = kept else {
            return Self(vec![0]);
        };
        let mut end = self.0[..=last].to_vec();
        end[last] += 1;
        Self(end)
    }

    /// The first key after this one.
    pub(super) fn successor(&self) -> Self {
        let mut bytes = self.0.clone();
        bytes.push(0);
        Self(bytes)
    }
}

impl From<&str> for EtcdKey {
    fn from(text: &str) -> Self {
        Self(text.as_bytes().to_vec())
    }
}

impl From<&Key> for EtcdKey {
    fn from(key: &Key) -> Self {
        Self(key.to_string().into_bytes())
    }
}

impl From<Key> for EtcdKey {
    fn from(key: Key) -> Self {
        Self::from(&key)
    }
}

impl From<&EtcdKey> for EtcdKey {
    fn from(key: &EtcdKey) -> Self {
        key.clone()
    }
}

/// Bytes that are not printable are escaped.
impl fmt::Display for EtcdKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.escape_ascii().fmt(f)
    }
}

impl fmt::Debug for EtcdKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

/// A key with its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyValue {
    /// The key.
    pub key: EtcdKey,
    /// The value; empty in the event of a deletion.
    pub value: Vec<u8>,
    /// The revision at which the key was created.
    pub create_revision: Revision,
    /// The revision at which it was last changed.
    pub mod_revision: Revision,
    /// The number of changes since it was created; 0 in the event of a deletion.
    pub version: u64,
    /// The lease that the key ends with.
    pub lease: Option<LeaseId>,
}

/// All keys with a prefix, at one revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listing {
    /// The header of the first page.
    pub header: Header,
    /// The revision that the keys are of. A watch that continues the list begins at the next one.
    pub revision: Revision,
    /// In the order of the keys.
    pub kvs: Vec<KeyValue>,
}

/// A lease that was granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseGrant {
    /// Which cluster has granted it.
    pub header: Header,
    /// Its id.
    pub id: LeaseId,
    /// Its lifetime. etcd may grant more than was requested.
    pub ttl: Duration,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_is_a_range_up_to_the_first_key_after_it() {
        for (prefix, start, end) in [
            (&b"/a/"[..], &b"/a/"[..], &b"/a0"[..]),
            (b"a\xff\xff", b"a\xff\xff", b"b"),
            (b"\xff", b"\xff", b"\0"),
            (b"", b"\0", b"\0"),
        ] {
            let key = EtcdKey::new(prefix);
            assert_eq!(key.prefix_start().as_bytes(), start, "{key}");
            assert_eq!(key.prefix_end().as_bytes(), end, "{key}");
        }
    }
}
