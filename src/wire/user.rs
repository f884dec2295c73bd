//! The user of a connection, as far as limits are concerned.
//! Out of scope: the limits; the user in events (`caller`).

/// The user of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum User {
    /// Root, or the daemon's own user.
    Privileged,
    /// Another user, by its id.
    Of(u32),
}
