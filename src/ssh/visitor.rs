//! Who has logged in, and what a session is to do.
//! Out of scope: doing it.

use std::fmt;
use std::net::SocketAddr;

use tracing::info;

use super::channel::Parts;
use super::target::Target;
use crate::api::meta::Name;
use crate::guest::endpoint::Access;
use crate::wire::Caller;

/// The exit status of `ssh` itself for errors (ssh(1)).
pub const FAILED: u32 = 255;

/// Who has logged in, and as what.
#[derive(Clone, Debug)]
pub struct Visitor {
    /// What the user name means.
    pub target: Target,
    /// The key.
    pub caller: Caller,
    /// The address of the client.
    pub peer: SocketAddr,
}

/// What a channel is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// A login shell.
    Shell,
    /// A command for the shell of the user.
    Exec(Vec<u8>),
    /// The subsystem.
    Sftp,
}

impl Request {
    /// What is recorded.
    pub fn access(&self) -> Access {
        match self {
            Self::Shell => Access::Shell,
            Self::Exec(_) => Access::Exec,
            Self::Sftp => Access::Sftp,
        }
    }
}

/// The user of the guest and the environment, for requests to an agent.
#[derive(Clone, Debug, Default)]
pub struct Login {
    /// The name of the user.
    pub user: Option<String>,
    /// `NAME=VALUE`.
    pub env: Vec<String>,
}

/// One sentence, and the status of a failure.
pub async fn refuse(parts: Parts, text: &str) {
    let _ = parts.output.message(text).await;
    parts.output.exit(FAILED).await;
}

/// Logs who does what with which VM: a display name of an [`Access`], or another one.
pub fn audit(visitor: &Visitor, vm: &Name, access: impl fmt::Display) {
    info!(%vm, %access, by = %visitor.caller, peer = %visitor.peer, "guest access over SSH");
}
