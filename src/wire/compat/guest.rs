//! Requests to the agents of guests: commands, files, shells, connections.
//! Out of scope: forwarding them ([`super::super::agent`]), which `/v1` shares; bodies ([`crate::guest::protocol`]).

use std::collections::BTreeMap;
use std::time::Duration;

use axum::extract::{ConnectInfo, Path, Request, State};
use axum::response::Response;

use super::super::admission::Client;
use super::super::agent::{self, PREFIX};
use super::super::agent_rules::AgentErrors;
use super::super::backend::Backend;
use super::super::shared::AppState;
use super::create::Goal;
use super::errors::{Rejection, refused, vm_name};
use super::wait;
use crate::api::node::{GuestAgent, Node};
use crate::api::view::VmmState;
use crate::clock;
use crate::guest::protocol::{
    Buffered, CopyQuery, ExecInfo, ExecQuery, FileInfo, Frame, Kill, Killed, Mkdir, Reaped,
    RemoveQuery, ShellQuery, Started, Waited, WatchEvent, WatchQuery,
};

/// How long after its creation a guest is still booting: clients send their first request when a VM is created, and expect that it is
/// answered. A Linux with systemd boots for a minute without KVM.
const BOOT: Duration = Duration::from_secs(120);

/// For how long a request to the agent of a VM waits until it answers for the first time; `None`: it is sent at once.
fn boots_for(node: &Node) -> Option<Duration> {
    let is_waited_for = match (node.access, node.state) {
        (GuestAgent::Possible, VmmState::Starting) => true,
        (GuestAgent::Possible, VmmState::Running) => !Goal::Agent.is_reached(node),
        _ => false,
    };
    let age = clock::now().duration_since(node.created_at);
    let age = Duration::try_from(age).unwrap_or_default();
    let left = BOOT.checked_sub(age)?;
    (is_waited_for && !left.is_zero()).then_some(left)
}

type Parameters = Path<BTreeMap<String, String>>;

async fn forward<B: Backend>(
    State(state): AppState<B>,
    caller: Client,
    Path(parameters): Parameters,
    request: Request,
) -> Result<Response, Rejection> {
    let vm = parameters.get("vm").map(String::as_str).unwrap_or_default();
    let vm = vm_name(vm)?;
    // A VM that is being deleted does not exist for clients of this API.
    let node = state.backend.node(vm.clone()).await.map_err(refused)?.node;
    if let Some(limit) = boots_for(&node) {
        let answers = |node: &Node| boots_for(node).is_none().then_some(());
        let waited = wait::until(&*state.backend, &vm, limit, answers).await;
        waited.map_err(refused)?;
    }
    Ok(agent::forward(&state, &caller, (vm, PREFIX), request).await?)
}

/// Handlers that forward a request. Each has its path, parameters and responses in the OpenAPI document; all may answer what a request to
/// a guest may. Those that `/v1` has, too, are described there as well, from the same attributes.
macro_rules! forwarded {
    ($(
        $(#[$comment:meta])*
        $name:ident: $method:ident $path:literal, ($($request:tt)*), ($($responses:tt)*);
    )*) => { $(
        $(#[$comment])*
        #[utoipa::path($method, path = $path, tag = "guests", $($request)* responses(
            Rejection,
            AgentErrors,
            $($responses)*
            (status = 409, description = "The guest does not run, or not as the request needs it"),
            (status = 503, description = "The agent does not answer, or a limit is reached"),
        ))]
        pub(super) async fn $name<B: Backend>(
            state: AppState<B>,
            ConnectInfo(caller): ConnectInfo<Client>,
            parameters: Parameters,
            request: Request,
        ) -> Result<Response, Rejection> {
            forward(state, caller, parameters, request).await
        }
    )* };
}

forwarded! {
    /// Runs a program. All parameters are in the query; the body is its standard input.
    ///
    /// The response has a JSON object in each line: `started`, `stdout` and `stderr`, `exit`. With `buffered` it is one object, with
    /// `background` the id of the command.
    exec: post "/vm/{vm}/exec", (
        params(ExecQuery),
        request_body(content = Option<String>, content_type = "application/octet-stream"),
    ), (
        (status = 200, content((Frame = "application/x-ndjson"), (Buffered = "application/json"))),
        (status = 201, description = "Started in the background", body = Started),
    );
    /// Commands in the background.
    list: get "/vm/{vm}/exec", (), (
        (status = 200, body = Vec<ExecInfo>),
    );
    /// A command in the background.
    info: get "/vm/{vm}/exec/{id}", (), (
        (status = 200, body = ExecInfo),
    );
    /// Removes a command that has ended.
    reap: delete "/vm/{vm}/exec/{id}", (), (
        (status = 200, body = Reaped),
    );
    /// The output of a command in the background.
    logs: get "/vm/{vm}/exec/{id}/logs", (params(
        ("follow" = Option<bool>, Query, description = "Until it ends"),
        ("from_id" = Option<u64>, Query, description = "The first frame"),
    ),), (
        (status = 200, description = "A frame in each line", body = Frame, content_type = "application/x-ndjson"),
    );
    /// Sends a signal to a command and its children.
    kill: post "/vm/{vm}/exec/{id}/kill", (request_body(content = Option<Kill>),), (
        (status = 200, body = Killed),
    );
    /// Waits for the end of a command.
    wait_exit: get "/vm/{vm}/exec/{id}/wait-exit", (params(
        ("timeout" = Option<u64>, Query, description = "Seconds, at most 600"),
    ),), (
        (status = 200, description = "It has ended, or timed_out is true", body = Waited),
    );
    /// Copies a file or a tar archive out of the guest.
    copy_from: get "/vm/{vm}/cp", (params(CopyQuery),), (
        (status = 200, content((String = "application/octet-stream"), (String = "application/x-tar"))),
    );
    /// Copies a file or a tar archive into the guest.
    copy_to: post "/vm/{vm}/cp", (
        params(CopyQuery),
        request_body(content((String = "application/octet-stream"), (String = "application/x-tar"))),
    ), (
        (status = 200, description = "It is stored"),
    );
    /// A file of the guest.
    stat: get "/vm/{vm}/fs/stat", (params(("path" = String, Query, description = "The file"),),), (
        (status = 200, body = FileInfo),
    );
    /// The files of a directory.
    readdir: get "/vm/{vm}/fs/readdir", (params(("path" = String, Query, description = "The directory"),),), (
        (status = 200, body = Vec<FileInfo>),
    );
    /// Creates a directory.
    mkdir: post "/vm/{vm}/fs/mkdir", (request_body = Mkdir,), (
        (status = 200, description = "It exists"),
    );
    /// Removes a file or a directory.
    remove: delete "/vm/{vm}/fs/remove", (params(RemoveQuery),), (
        (status = 200, description = "It is removed"),
    );
    /// Changes of files, as Server-Sent Events.
    watch: get "/vm/{vm}/fs/watch", (params(WatchQuery),), (
        (status = 200, description = "Events", body = WatchEvent, content_type = "text/event-stream"),
    );
    /// A terminal, as a WebSocket.
    shell: get "/vm/{vm}/shell", (params(ShellQuery),), (
        (status = 101, description = "Frames with a type, a length and a payload"),
        (status = 426, description = "The request is no upgrade"),
    );
    /// A connection to a port or socket in the guest, as a WebSocket.
    connect: get "/vm/{vm}/forward", (params(
        ("X-Inlets-Upstream" = String, Header, description = "HOST:PORT or unix:PATH, in the guest"),
    ),), (
        (status = 101, description = "The bytes of the connection"),
        (status = 426, description = "The request is no upgrade"),
    );
}
