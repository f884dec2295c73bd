//! Limits on the resources that clients may use.
//! Out of scope: enforcing them ([`super::connections`], [`super::admission`]).
//!
//! # Why
//! The engine shares descriptors, memory and CPUs with the clients. A client that sends nothing, reads nothing or requests everything at
//! once must not delay the repair of a drift, nor block the requests of an operator.

use std::time::Duration;

/// Maximum size of a request's head, in bytes.
pub const HEAD_LIMIT: usize = 64 << 10;
/// Maximum size of a manifest, in bytes.
pub const MANIFEST_LIMIT: usize = 1 << 20;
/// Maximum number of manifests in a request.
pub const SOURCES_LIMIT: usize = 1024;
/// Maximum length of a manifest's name, in bytes.
pub const SOURCE_NAME_LIMIT: usize = 4096;
/// Maximum size of the body of a request with manifests, in bytes.
pub const BODY_LIMIT: usize = 16 << 20;
/// Maximum size of the body of a request with a secret or with userdata, in bytes: 1 MiB in base64, and its other fields.
pub const MEDIUM_BODY_LIMIT: usize = 3 << 19;
/// Maximum size of the body of other requests, in bytes.
pub const SMALL_BODY_LIMIT: usize = 64 << 10;
/// Maximum total size of the bodies that are being received, in bytes; once for privileged users and once for all others.
pub const BODIES_LIMIT: usize = 2 * BODY_LIMIT;

/// Maximum total size of the responses that clients have not read yet, in bytes; once for privileged users and once for all others.
pub const RESPONSES_LIMIT: usize = 64 << 20;
/// Responses below this size, in bytes, are not counted.
pub const SMALL_RESPONSE: usize = 64 << 10;

/// Limits of one server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Maximum number of connections.
    pub connections: usize,
    /// Number of connections reserved for root and the daemon's own user.
    pub reserved: usize,
    /// Maximum number of connections of one unprivileged user.
    pub per_user: usize,
    /// Maximum number of concurrent requests to agents (exec, copies, shells, forwarded connections). Each costs a connection of the client and
    /// one to the guest, and has no timeout while both sides are connected. A half of it for one VM and for one unprivileged user, so that
    /// neither takes up all; a quarter is reserved for privileged users. With the default, 2,048 connections can be forwarded to a VM.
    pub agents: usize,
    /// Maximum number of streams (`watch`, and `follow=true`); half of it for all unprivileged users, a quarter for one of them. A watch
    /// costs its connection and a position in the log of changes.
    pub streams: usize,
    /// Maximum number of concurrent requests that parse manifests or observe the whole host; once for privileged users and once for all
    /// others.
    pub heavy: usize,
    /// Maximum number of concurrent lists of objects; once for privileged users and once for all others.
    pub lists: usize,
    /// Timeout for receiving a request's head, from the start of the connection.
    pub head: Duration,
    /// Timeout between two requests.
    pub idle: Duration,
    /// Timeout for receiving a request's body.
    pub body: Duration,
    /// Timeout of a write during which the peer reads nothing.
    pub write: Duration,
    /// Timeout for the peer to read a complete response, except a stream.
    pub response: Duration,
    /// Timeout of a request that waits because of `heavy`, `lists` or the size of responses.
    pub turn: Duration,
}

impl Limits {
    /// The limits for a maximum number of connections.
    pub fn of(connections: usize) -> Self {
        let connections = connections.max(8);
        let reserved = connections / 4;
        Self {
            connections,
            reserved,
            per_user: (connections - reserved) / 2,
            agents: connections.saturating_mul(16),
            streams: connections - reserved / 2,
            heavy: 2,
            // Lists need CPU time: one CPU at most, since the engine needs the others.
            lists: 1,
            head: Duration::from_secs(10),
            idle: Duration::from_secs(30),
            body: Duration::from_secs(30),
            write: Duration::from_secs(10),
            response: Duration::from_secs(120),
            turn: Duration::from_secs(20),
        }
    }

    /// The limits of a listener on which nobody is privileged, and everybody who is permitted has the token of the API. One address may
    /// have most connections: it may be that of a proxy.
    pub fn remote(connections: usize) -> Self {
        let connections = connections.max(8);
        Self {
            reserved: 0,
            per_user: connections - connections / 4,
            // Half of it for one address, see `admission`.
            streams: connections.saturating_mul(2),
            ..Self::of(connections)
        }
    }

    /// The same for a Unix socket, on which root is known: a quarter of the connections is reserved.
    pub fn local(self) -> Self {
        Self {
            reserved: self.connections / 4,
            ..self
        }
    }

    /// The same with another maximum number of requests to agents.
    pub fn with_agents(self, agents: usize) -> Self {
        Self { agents, ..self }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self::of(256)
    }
}
