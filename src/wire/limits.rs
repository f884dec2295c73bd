//! How much of the daemon its clients may take up.
//! Out of scope: counting it ([`super::connections`], [`super::admission`]).
//!
//! # Why
//! The engine shares descriptors, memory and processors with whoever connects. A client that says nothing, reads nothing or asks for
//! everything at once must not keep a drift from being repaired, nor an operator from asking why.

use std::time::Duration;

/// Bytes of a request's head.
pub const HEAD_LIMIT: usize = 64 << 10;
/// One manifest's text at most, in bytes.
pub const MANIFEST_LIMIT: usize = 1 << 20;
/// Manifests in one request.
pub const SOURCES_LIMIT: usize = 1024;
/// Bytes of what a manifest is called.
pub const SOURCE_NAME_LIMIT: usize = 4096;
/// One request's body at most, in bytes, where it carries manifests.
pub const BODY_LIMIT: usize = 16 << 20;
/// The same where it does not.
pub const SMALL_BODY_LIMIT: usize = 64 << 10;
/// Bytes of all bodies together that are being received: of privileged users, and of all others.
pub const BODIES_LIMIT: usize = 2 * BODY_LIMIT;

/// Bytes of all answers together that have been made and not taken yet: of privileged users, and of all others.
pub const ANSWERS_LIMIT: usize = 64 << 20;
/// An answer that is smaller is not counted.
pub const SMALL_ANSWER: usize = 64 << 10;

/// Limits of one server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections.
    pub connections: usize,
    /// Of them, only for root and the daemon's own user.
    pub reserved: usize,
    /// Of one other user.
    pub per_user: usize,
    /// Connections that follow something; half as many of one user that is not privileged.
    pub streams: usize,
    /// Requests that read manifests or look at the whole host, at the same time: of privileged users, and as many of all others.
    pub heavy: usize,
    /// Lists of objects that are being made, in the same way.
    pub lists: usize,
    /// For a request's head, from the connection or its first byte on.
    pub head: Duration,
    /// Between two requests.
    pub idle: Duration,
    /// For a request's body.
    pub body: Duration,
    /// For the peer to take anything of what is written to it.
    pub write: Duration,
    /// For the peer to take an answer whole that is no stream.
    pub response: Duration,
    /// For a place among the heavy requests, or the lists.
    pub turn: Duration,
}

impl Limits {
    /// With so many connections.
    pub fn of(connections: usize) -> Self {
        let connections = connections.max(8);
        let reserved = connections / 4;
        Self {
            connections,
            reserved,
            per_user: (connections - reserved) / 2,
            streams: connections / 4,
            heavy: 2,
            // It is work for a processor, of which the engine needs the others.
            lists: 1,
            head: Duration::from_secs(10),
            idle: Duration::from_secs(30),
            body: Duration::from_secs(30),
            write: Duration::from_secs(10),
            response: Duration::from_secs(120),
            turn: Duration::from_secs(20),
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self::of(256)
    }
}
