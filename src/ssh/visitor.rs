//! Who has logged in, and what a session is to do.
//! Out of scope: doing it.

use std::net::SocketAddr;

use tracing::info;

use super::channel::Parts;
use super::target::Target;
use crate::api::meta::Name;
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
    /// One word for the log.
    pub fn verb(&self) -> &'static str {
        match self {
            Self::Shell => "shell",
            Self::Exec(_) => "exec",
            Self::Sftp => "sftp",
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

/// Logs who does what with which VM.
pub fn audit(visitor: &Visitor, vm: &Name, verb: &str) {
    info!(%vm, verb, by = %visitor.caller, peer = %visitor.peer, "guest access over SSH");
}
