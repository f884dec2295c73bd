//! What a session does: a shell, a command, sftp, a console or the menu.
//! Out of scope: how (the other files of this module).

use std::sync::Arc;

use super::agent::{Agent, NoAgent};
use super::channel::Parts;
use super::shared::Shared;
use super::target::Target;
use super::visitor::{Login, Request, Visitor, audit, refuse};
use super::{console, exec, menu, shell, tunnel};
use crate::api::view::Kind;
use crate::wire::Backend;

/// Runs the request of a session.
pub async fn run<B: Backend>(
    shared: Arc<Shared<B>>,
    visitor: Visitor,
    request: Request,
    parts: Parts,
) {
    let backend = shared.backend.as_ref();
    match &visitor.target {
        Target::Guest { vm, user } => match Agent::of(backend, vm, request.access()).await {
            Ok(agent) => {
                audit(&visitor, vm, request.access());
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
