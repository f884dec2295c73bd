//! The messages of the gateway: integers of 64 bits are strings, bytes are base64, and fields that are 0 or false are omitted.
//! Out of scope: what they mean ([`super::ops`], [`super::watch`]).

use std::fmt;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::de::{Deserializer, Visitor};
use serde::{Deserialize, Serialize, Serializer};

use super::types::{ClusterId, EtcdKey, Header, KeyValue, LeaseId, MemberId, Revision};

/// The requests of this client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Obtains a token.
    Authenticate,
    /// Reads keys.
    Range,
    /// Writes a key.
    Put,
    /// Deletes a key.
    Delete,
    /// Compares and writes.
    Txn,
    /// Creates a lease.
    LeaseGrant,
    /// Renews a lease.
    LeaseKeepAlive,
    /// Ends a lease.
    LeaseRevoke,
    /// Follows keys.
    Watch,
}

impl Request {
    /// The path of the gateway.
    pub(super) fn path(self) -> &'static str {
        match self {
            Self::Authenticate => "/v3/auth/authenticate",
            Self::Range => "/v3/kv/range",
            Self::Put => "/v3/kv/put",
            Self::Delete => "/v3/kv/deleterange",
            Self::Txn => "/v3/kv/txn",
            Self::LeaseGrant => "/v3/lease/grant",
            Self::LeaseKeepAlive => "/v3/lease/keepalive",
            Self::LeaseRevoke => "/v3/lease/revoke",
            Self::Watch => "/v3/watch",
        }
    }

    /// Whether a second attempt could change more than one. A lease that was granted twice ends by itself.
    pub(super) fn is_write(self) -> bool {
        matches!(self, Self::Put | Self::Delete | Self::Txn)
    }
}

/// As in a sentence: "refuses this put".
impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Authenticate => "authentication",
            Self::Range => "read",
            Self::Put => "put",
            Self::Delete => "delete",
            Self::Txn => "transaction",
            Self::LeaseGrant => "lease grant",
            Self::LeaseKeepAlive => "lease renewal",
            Self::LeaseRevoke => "lease revocation",
            Self::Watch => "watch",
        })
    }
}

/// An integer, as a string or as a number.
struct IntVisitor;

impl Visitor<'_> for IntVisitor {
    type Value = i128;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an integer of 64 bits")
    }

    fn visit_u64<E>(self, value: u64) -> Result<i128, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<i128, E> {
        Ok(value.into())
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<i128, E> {
        text.parse().map_err(|_| E::custom("not an integer"))
    }
}

/// Reads an integer of the type of the field.
pub(super) fn int<'de, D: Deserializer<'de>, T: TryFrom<i128>>(from: D) -> Result<T, D::Error> {
    let value = from.deserialize_any(IntVisitor)?;
    let error = || serde::de::Error::custom(format!("{value} is out of range"));
    T::try_from(value).map_err(|_| error())
}

/// Bytes as base64.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Base64(pub(super) Vec<u8>);

impl<'de> Deserialize<'de> for Base64 {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(from)?;
        let bytes = BASE64_STANDARD.decode(text.as_bytes());
        bytes.map(Self).map_err(serde::de::Error::custom)
    }
}

impl Serialize for Base64 {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&BASE64_STANDARD.encode(&self.0))
    }
}

impl From<&EtcdKey> for Base64 {
    fn from(key: &EtcdKey) -> Self {
        Self(key.as_bytes().to_vec())
    }
}

/// An integer that is written as a string.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Int<T>(pub(super) T);

impl<T: fmt::Display> Serialize for Int<T> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(&self.0)
    }
}

#[derive(Clone, Copy, Debug, Deserialize)]
pub(super) struct HeaderMessage {
    #[serde(deserialize_with = "int")]
    cluster_id: u64,
    #[serde(deserialize_with = "int")]
    member_id: u64,
    #[serde(default, deserialize_with = "int")]
    revision: u64,
    #[serde(default, deserialize_with = "int")]
    raft_term: u64,
}

impl From<HeaderMessage> for Header {
    fn from(message: HeaderMessage) -> Self {
        Self {
            cluster_id: ClusterId(message.cluster_id),
            member_id: MemberId(message.member_id),
            revision: Revision(message.revision),
            raft_term: message.raft_term,
        }
    }
}

#[derive(Debug, Deserialize)]
pub(super) struct KeyValueMessage {
    key: Base64,
    #[serde(default)]
    value: Base64,
    #[serde(default, deserialize_with = "int")]
    create_revision: u64,
    #[serde(default, deserialize_with = "int")]
    mod_revision: u64,
    #[serde(default, deserialize_with = "int")]
    version: u64,
    #[serde(default, deserialize_with = "int")]
    lease: i64,
}

impl From<KeyValueMessage> for KeyValue {
    fn from(message: KeyValueMessage) -> Self {
        Self {
            key: EtcdKey::new(message.key.0),
            value: message.value.0,
            create_revision: Revision(message.create_revision),
            mod_revision: Revision(message.mod_revision),
            version: message.version,
            lease: (message.lease != 0).then_some(LeaseId(message.lease)),
        }
    }
}

#[derive(Serialize)]
pub(super) struct AuthenticateRequest<'a> {
    pub(super) name: &'a str,
    pub(super) password: &'a str,
}

#[derive(Deserialize)]
pub(super) struct AuthenticateResponse {
    pub(super) token: String,
}

#[derive(Serialize)]
pub(super) struct RangeRequest {
    pub(super) key: Base64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) range_end: Option<Base64>,
    /// 0: no limit.
    pub(super) limit: Int<u32>,
    /// 0: the latest.
    pub(super) revision: Int<Revision>,
}

#[derive(Debug, Deserialize)]
pub(super) struct RangeResponse {
    pub(super) header: HeaderMessage,
    #[serde(default)]
    pub(super) kvs: Vec<KeyValueMessage>,
    #[serde(default)]
    pub(super) more: bool,
}

#[derive(Serialize)]
pub(super) struct PutRequest {
    pub(super) key: Base64,
    pub(super) value: Base64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) lease: Option<Int<i64>>,
}

#[derive(Serialize)]
pub(super) struct DeleteRequest {
    pub(super) key: Base64,
}

/// What all responses have.
#[derive(Debug, Deserialize)]
pub(super) struct HeaderResponse {
    pub(super) header: HeaderMessage,
}

#[derive(Debug, Deserialize)]
pub(super) struct DeleteResponse {
    pub(super) header: HeaderMessage,
    #[serde(default, deserialize_with = "int")]
    pub(super) deleted: u64,
}

/// An error, in the body of a response. etcd 3.4 has both texts, 3.6 only `message`.
#[derive(Deserialize)]
pub(super) struct ErrorResponse {
    #[serde(default)]
    pub(super) code: u32,
    #[serde(default)]
    pub(super) message: String,
}

/// The same of a stream (watch, renewal of a lease), which the gateway nests: `{"error":{"grpc_code":7,"message":"..."}}`.
#[derive(Debug, Deserialize)]
pub(super) struct StreamErrorResponse {
    pub(super) error: StreamError,
}

/// An error of a stream: gRPC-gateway 1 has `grpc_code`, version 2 `code`.
#[derive(Debug, Deserialize)]
pub(super) struct StreamError {
    #[serde(default, alias = "grpc_code")]
    pub(super) code: u32,
    #[serde(default)]
    pub(super) message: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_are_strings_or_numbers_and_zeros_are_omitted() {
        let text =
            r#"{"header":{"cluster_id":"14841639068965178418","member_id":7,"revision":"3"}}"#;
        let response: HeaderResponse = serde_json::from_str(text).unwrap();
        let header = Header::from(response.header);
        assert_eq!(header.cluster_id, ClusterId(14_841_639_068_965_178_418));
        assert_eq!(header.member_id, MemberId(7));
        assert_eq!(header.revision, Revision(3));
        assert_eq!(header.raft_term, 0);
    }

    #[test]
    fn bytes_are_base64() {
        let text = r#"{"key":"L2E=","mod_revision":"3","version":"2","lease":"-5"}"#;
        let kv = KeyValue::from(serde_json::from_str::<KeyValueMessage>(text).unwrap());
        assert_eq!(kv.key, EtcdKey::from("/a"));
        assert_eq!(kv.value, b"");
        assert_eq!(kv.lease, Some(LeaseId(-5)));
        let request = RangeRequest {
            key: Base64(vec![0, 255]),
            range_end: None,
            limit: Int(0),
            revision: Int(Revision(u64::MAX)),
        };
        let text = serde_json::to_string(&request).unwrap();
        assert_eq!(
            text,
            r#"{"key":"AP8=","limit":"0","revision":"18446744073709551615"}"#
        );
    }

    #[test]
    fn values_of_other_types_are_errors() {
        for text in [
            "",
            "null",
            "[]",
            "{}",
            r#"{"header":null}"#,
            r#"{"header":{"cluster_id":"1"}}"#,
            r#"{"header":{"cluster_id":"-1","member_id":"1"}}"#,
            r#"{"header":{"cluster_id":"1","member_id":"1","revision":"-1"}}"#,
            r#"{"header":{"cluster_id":"1","member_id":"1","revision":1.5}}"#,
            r#"{"header":{"cluster_id":"99999999999999999999","member_id":"1"}}"#,
            r#"{"header":{"cluster_id":"1","member_id":"1"},"kvs":{}}"#,
            r#"{"header":{"cluster_id":"1","member_id":"1"},"kvs":[{}]}"#,
            r#"{"header":{"cluster_id":"1","member_id":"1"},"kvs":[{"key":"?"}]}"#,
            r#"{"header":{"cluster_id":"1","member_id":"1"},"kvs":[{"key":1}]}"#,
            r#"{"header":{"cluster_id":"1","member_id":"1"},"more":"true"}"#,
            r#"{"header":{"cluster_id":"1","member_id":"1"}"#,
        ] {
            assert!(
                serde_json::from_str::<RangeResponse>(text).is_err(),
                "{text}"
            );
        }
    }
}
