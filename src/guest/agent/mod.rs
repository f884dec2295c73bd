//! `slice-agent`: serves commands, shells and connections in the guest, over vsock.
//! Out of scope: the host.
//!
//! One thread serves all requests; only calls that may block, such as the start of a process, have threads of their own for their time.
//! Nothing runs while there is no request. It needs Linux 5.3 (pidfd) and `/proc`.
//!
//! | file | content |
//! |---|---|
//! | `child` | starts a program: between fork and exec |
//! | `error` | responses to requests that fail |
//! | `exec` | `/exec` |
//! | `files` | `/cp`, `/fs` |
//! | `forward` | `/forward` |
//! | `health` | `/health`, `/stats` |
//! | `hosts` | names of `/etc/hosts` |
//! | `output` | the standard streams of a process |
//! | `process` | the life of a process |
//! | `provision` | `/provision`, `/userdata`: what the guest gets from its host |
//! | `pty` | a terminal |
//! | `serve` | connections |
//! | `sftp` | `/sftp`: starts the server |
//! | `sftp_server` | the server, a process of the user |
//! | `shell` | `/shell` |
//! | `socket` | vsock and Unix sockets |
//! | `spec` | what is to be executed |
//! | `state` | what all requests share |
//! | `stats` | figures of the guest |
//! | `users` | users and groups of the guest |
//! | `vsock` | waits for the vsock of the kernel |
//! | `websocket` | limits and the end of a WebSocket |

mod child;
mod error;
mod exec;
pub mod files;
mod forward;
mod health;
mod hosts;
mod output;
mod process;
mod provision;
mod pty;
mod serve;
mod sftp;
mod sftp_server;
mod shell;
mod socket;
mod spec;
mod state;
mod stats;
mod users;
mod vsock;
mod websocket;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use axum::Router;
use axum::http::{StatusCode, Uri};
use clap::{Parser, Subcommand};

use self::error::Error;
use self::provision::place::Place;
use self::provision::provisioner::Provisioner;
use self::serve::{Handshake, serve};
use self::socket::Listener;
use self::state::Agent;
use super::inject;
use super::protocol::PORT;

/// Access to this guest for its host
#[derive(Debug, Parser)]
#[command(name = "slice-agent", version)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Be the init (PID 1) of a small guest, and serve requests
    Init,
    /// Serve requests on vsock port 516
    Serve {
        /// Serve on a Unix socket instead, with the handshake of a VMM: `CONNECT 516`
        #[arg(long, value_name = "PATH")]
        unix: Option<PathBuf>,
        /// Load the modules of vsock, and wait until the kernel has vsock
        #[arg(long, hide = true, conflicts_with = "unix")]
        injected: bool,
        /// Provision nothing: the root file system of the guest was not found yet
        #[arg(long, hide = true)]
        in_initrd: bool,
        /// Provision this directory instead of the file system, for tests; without it, an agent on a Unix socket provisions nothing
        #[arg(long, value_name = "DIR", requires = "unix", hide = true)]
        root: Option<PathBuf>,
    },
    /// Keep the agent running: a part of `agent: inject`
    #[command(hide = true)]
    Supervise,
    /// Serve version 3 of SFTP on standard input and output, as the user that runs it
    Sftp,
}

/// The program. As PID 1 it is an init, whatever its arguments are: the kernel passes its unknown parameters to it.
pub fn main() -> ExitCode {
    // Before any thread and without a runtime: it becomes another program.
    if inject::is_injected_init() {
        return inject::init();
    }
    let is_init = rustix::process::getpid().is_init();
    let command = match is_init {
        true => Command::Init,
        false => Args::parse().command,
    };
    let text = match command {
        Command::Supervise => return inject::supervise(),
        Command::Sftp => return sftp_server::main(),
        Command::Init if !is_init => "init: expected to be PID 1".to_owned(),
        Command::Init => block_on(super::init::run()),
        Command::Serve {
            unix,
            injected,
            in_initrd,
            root,
        } => {
            let place = match (&unix, root) {
                _ if in_initrd => None,
                (None, _) => Some(Place::own()),
                // The agent is not in a guest.
                (Some(_), root) => root.map(Place::directory),
            };
            block_on(async {
                let agent = Agent::new(place.map(Provisioner::new), in_initrd);
                let Err(text) = run(unix, injected, agent).await;
                text
            })
        }
    };
    eprintln!("slice-agent: {text}");
    ExitCode::FAILURE
}

/// Runs a task that returns only with an error.
fn block_on(task: impl Future<Output = String>) -> String {
    child::raise_descriptor_limit();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(64)
        .build();
    match runtime {
        Ok(runtime) => runtime.block_on(task),
        Err(error) => format!("start: {error}"),
    }
}

async fn run(
    unix: Option<PathBuf>,
    injected: bool,
    agent: Arc<Agent>,
) -> Result<std::convert::Infallible, String> {
    let (listener, handshake) = match unix {
        Some(path) => {
            let listener = Listener::unix(&path);
            let text = |error| format!("listen on {}: {error}", path.display());
            (listener.map_err(text)?, Handshake::Connect)
        }
        None if injected => (vsock::listen().await, Handshake::None),
        None => {
            let text = |error| {
                format!(
                    "listen on vsock port {PORT}: {error}: is the module vmw_vsock_virtio_transport loaded?"
                )
            };
            (Listener::vsock(PORT).map_err(text)?, Handshake::None)
        }
    };
    Ok(serve(listener, router(agent), handshake).await)
}

/// All routes.
fn router(agent: Arc<Agent>) -> Router {
    Router::new()
        .merge(exec::router())
        .merge(shell::router())
        .merge(forward::router())
        .merge(sftp::router())
        .merge(health::router())
        .merge(provision::router())
        .fallback(not_found)
        .method_not_allowed_fallback(wrong_method)
        .with_state(agent)
        .merge(files::router())
}

async fn not_found(uri: Uri) -> Error {
    Error::new(
        StatusCode::NOT_FOUND,
        format!("path \"{}\" not found", uri.path()),
    )
}

async fn wrong_method() -> Error {
    Error::new(StatusCode::METHOD_NOT_ALLOWED, "method not allowed")
}
