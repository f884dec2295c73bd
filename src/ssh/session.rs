//! What a session does: a shell, a command, sftp, a console or the menu.
//! Out of scope: how (the other files of this module).

use std::net::SocketAddr;
use std::sync::Arc;

use tracing::info;

use super::agent::{Agent, NoAgent};
use super::channel::Parts;
use super::connection::Shared;
use super::target::Target;
use super::{console, exec, menu, shell, tunnel};
use crate::api::meta::Name;
use crate::api::view::Kind;
use crate::wire::{Backend, Caller};

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
    fn verb(&self) -> &'static str {
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

/// Runs the request of a session.
pub async fn run<B: Backend>(
    shared: Arc<Shared<B>>,
    visitor: Visitor,
    request: Request,
    parts: Parts,
) {
    let backend = shared.backend.as_ref();
    match &visitor.target {
        Target::Guest { vm, user } => match Agent::of(backend, vm).await {
            Ok(agent) => {
                audit(&visitor, vm, request.verb());
                let user = user.clone();
                guest(backend, &agent, user, request, parts).await;
            }
            Err(NoAgent::NotFound(_)) if user.is_none() && Target::may_be_a_user(vm) => {
                menu::run(backend, &visitor, request, parts).await;
            }
            Err(reason) => refuse(parts, &reason.into_text()).await,
        },
        Target::Console(vm) if request == Request::Shell => {
            if let Err(refusal) = backend.get(Kind::Vm, Some(vm.clone())).await {
                return refuse(parts, &refusal.to_string()).await;
            }
            audit(&visitor, vm, "console");
            console::run(backend, vm, parts).await;
        }
        Target::Console(_) => refuse(parts, "a console runs no commands").await,
        Target::Menu => menu::run(backend, &visitor, request, parts).await,
        Target::Invalid(part) => {
            let text =
                format!("invalid user name: found \"{part}\", expected VM, USER+VM or console+VM");
            refuse(parts, &text).await;
        }
    }
}

/// Runs a request in a guest.
async fn guest<B: Backend>(
    backend: &B,
    agent: &Agent,
    user: Option<String>,
    request: Request,
    mut parts: Parts,
) {
    let env = std::mem::take(&mut parts.env);
    let login = Login { user, env };
    match (request, parts.terminal.clone()) {
        (Request::Sftp, _) => tunnel::sftp(backend, agent, &login, parts).await,
        (Request::Shell, None) => exec::run(backend, agent, login, None, parts).await,
        (Request::Exec(command), terminal) => match (String::from_utf8(command), terminal) {
            (Err(_), _) => refuse(parts, "the command is not valid UTF-8").await,
            (Ok(command), None) => exec::run(backend, agent, login, Some(command), parts).await,
            (Ok(command), Some(terminal)) => {
                let end = shell::run(backend, agent, login, Some(command), terminal, &mut parts);
                shell::finish(end.await, parts).await;
            }
        },
        (Request::Shell, Some(terminal)) => {
            let end = shell::run(backend, agent, login, None, terminal, &mut parts);
            shell::finish(end.await, parts).await;
        }
    }
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
