//! The messages of a watch.
//! Out of scope: their order ([`super::watch`]).

use serde::{Deserialize, Serialize};

use super::error::Malformed;
use super::message::{Base64, HeaderMessage, Int, KeyValueMessage, StreamError, int};
use super::types::{EtcdKey, Revision};

#[derive(Serialize)]
struct CreateMessage {
    create_request: CreateRequest,
}

#[derive(Serialize)]
struct CreateRequest {
    key: Base64,
    range_end: Base64,
    /// 0: from now on.
    start_revision: Int<Revision>,
    progress_notify: bool,
    /// Large responses are divided, so that a line has a limit.
    fragment: bool,
    watch_id: Int<usize>,
}

/// The body of the request for a stream with a watch for each prefix. The id of a watch is its position, from 1 on: to etcd, 0 means any.
///
/// # Errors
/// It cannot be expressed in JSON.
pub(super) fn requests<'a>(
    targets: impl Iterator<Item = (&'a EtcdKey, Revision)>,
) -> Result<Vec<u8>, serde_json::Error> {
    let mut body = Vec::new();
    for (at, (prefix, from)) in targets.enumerate() {
        let message = CreateMessage {
            create_request: CreateRequest {
                key: (&prefix.prefix_start()).into(),
                range_end: (&prefix.prefix_end()).into(),
                start_revision: Int(from),
                progress_notify: true,
                fragment: true,
                watch_id: Int(at + 1),
            },
        };
        serde_json::to_writer(&mut body, &message)?;
        body.push(b'\n');
    }
    Ok(body)
}

/// A line of the stream.
#[derive(Debug, Deserialize)]
pub(super) struct Message {
    #[serde(default)]
    pub(super) result: Option<Response>,
    #[serde(default)]
    pub(super) error: Option<StreamError>,
}

/// A response of one watch of the stream.
#[derive(Debug, Deserialize)]
pub(super) struct Response {
    pub(super) header: HeaderMessage,
    #[serde(default, deserialize_with = "int")]
    watch_id: i64,
    #[serde(default)]
    pub(super) created: bool,
    #[serde(default)]
    pub(super) canceled: bool,
    #[serde(default)]
    pub(super) cancel_reason: String,
    /// The oldest revision, if the requested one is compacted.
    #[serde(default, deserialize_with = "int")]
    pub(super) compact_revision: u64,
    /// More events of the same revision may follow.
    #[serde(default)]
    pub(super) fragment: bool,
    #[serde(default)]
    pub(super) events: Vec<EventMessage>,
}

impl Response {
    /// The position of its prefix among so many.
    ///
    /// # Errors
    /// It is of none of them.
    pub(super) fn target(&self, targets: usize) -> Result<usize, Malformed> {
        let at = usize::try_from(self.watch_id).ok();
        let at = at.and_then(|id| id.checked_sub(1));
        at.filter(|at| *at < targets)
            .ok_or(Malformed::Field("watch_id"))
    }
}

/// The type of an event.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub(super) enum EventType {
    #[default]
    Put,
    Delete,
}

#[derive(Debug, Deserialize)]
pub(super) struct EventMessage {
    #[serde(default, rename = "type")]
    pub(super) kind: EventType,
    pub(super) kv: KeyValueMessage,
}
