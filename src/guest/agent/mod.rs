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
mod websocket;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use axum::Router;
use axum::http::{StatusCode, Uri};
use clap::{Parser, Subcommand};

use self::error::Error;
use self::serve::{Handshake, serve};
use self::socket::Listener;
use self::state::Agent;
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
    },
    /// Serve version 3 of SFTP on standard input and output, as the user that runs it
    Sftp,
}

/// The program. As PID 1 it is an init, whatever its arguments are: the kernel passes its unknown parameters to it.
pub fn main() -> ExitCode {
    let init = rustix::process::getpid().is_init();
    let command = match init {
        true => Command::Init,
        false => Args::parse().command,
    };
    if matches!(command, Command::Sftp) {
        return sftp_server::main();
    }
    child::raise_descriptor_limit();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(64)
        .build();
    let text = match (command, runtime) {
        (Command::Init, _) if !init => "init: expected to be PID 1".to_owned(),
        (Command::Init, Ok(runtime)) => runtime.block_on(super::init::run()),
        (Command::Serve { unix }, Ok(runtime)) => {
            let Err(text) = runtime.block_on(run(unix));
            text
        }
        (Command::Sftp, _) => "sftp: expected another process".to_owned(),
        (_, Err(error)) => format!("start: {error}"),
    };
    eprintln!("slice-agent: {text}");
    ExitCode::FAILURE
}

async fn run(unix: Option<PathBuf>) -> Result<std::convert::Infallible, String> {
    let (listener, handshake) = match unix {
        Some(path) => {
            let listener = Listener::unix(&path);
            let text = |error| format!("listen on {}: {error}", path.display());
            (listener.map_err(text)?, Handshake::Connect)
        }
        None => {
            let text = |error| {
                format!(
                    "listen on vsock port {PORT}: {error}: is the module vmw_vsock_virtio_transport loaded?"
                )
            };
            (Listener::vsock(PORT).map_err(text)?, Handshake::None)
        }
    };
    Ok(serve(listener, router(Agent::new()), handshake).await)
}

/// All routes.
fn router(agent: Arc<Agent>) -> Router {
    Router::new()
        .merge(exec::router())
        .merge(shell::router())
        .merge(forward::router())
        .merge(sftp::router())
        .merge(health::router())
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
