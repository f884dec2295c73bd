//! `slice-agent`, the server in the guest.
//! Out of scope: the client on the host.

pub mod error;
pub mod files;
pub mod users;
