//! `vm port-forward`: listens on the host and forwards each connection to an address in a guest.
//! Out of scope: what is forwarded (`spec`), one connection (`bridge`).

mod bridge;
mod listen;
pub mod spec;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Resource, getrlimit, setrlimit};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::super::failure::{Failure, error};
use super::super::print;
use super::args::ForwardArgs;
use super::signals::Signals;
use crate::api::meta::Name;
use crate::guest::protocol::{HALF_CLOSE, Health, UPSTREAM};
use crate::wire::{AgentRequest, AgentSocket, Client};
use bridge::Connection;
use listen::Listener;

/// Number of connections that are being opened at the same time: the backlog of the guest's socket is limited.
const OPENING: usize = 32;

/// Pause after a failed accept(2), which is due to a lack of descriptors or memory.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(100);

/// `vm port-forward VM SPEC…`. Ends at a signal.
pub async fn forward(client: &Client, args: ForwardArgs) -> Result<(), Failure> {
    let mut signals = Signals::new()?;
    raise_file_limit();
    // Reports a VM without an agent before anybody connects.
    let health = AgentRequest::get(&args.vm, "/health");
    let _: Health = client.agent_json(health).await?;
    let mut listeners = Vec::new();
    for forward in args.forwards {
        let listener = Listener::open(&forward.listen).await?;
        let to = format!("{forward} in vm/{}", args.vm);
        print::out(&format!("forwarding {listener} to {to}\n"))?;
        listeners.push((listener, Arc::from(forward.upstream), to));
    }
    let target = Arc::new(Target {
        client: client.clone(),
        vm: args.vm,
        opening: Semaphore::new(OPENING),
    });
    let mut tasks = JoinSet::new();
    for (listener, upstream, to) in listeners {
        let target = Arc::clone(&target);
        tasks.spawn(async move { accept(&listener, &target, upstream, &to).await });
    }
    // Dropping the tasks closes all connections.
    signals.next().await;
    Ok(())
}

/// A connection has two descriptors, and the usual limit is 1,024.
fn raise_file_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // With the old limit, fewer connections are possible.
    let _ = setrlimit(Resource::Nofile, limit);
}

/// Where connections are forwarded to.
struct Target {
    client: Client,
    vm: Name,
    opening: Semaphore,
}

impl Target {
    /// Opens a connection to an address in the guest.
    async fn open(&self, upstream: &str) -> Result<AgentSocket, String> {
        let _permit = self.opening.acquire().await;
        let request = AgentRequest::get(&self.vm, "/forward")
            .header(UPSTREAM, upstream)
            .header(HALF_CLOSE, "true");
        let socket = self.client.agent_socket(request).await;
        socket.map_err(|error| error.causes().join(": "))
    }
}

/// Accepts connections and forwards each of them in a task of its own.
async fn accept(listener: &Listener, target: &Arc<Target>, upstream: Arc<str>, to: &str) {
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok(connection) => {
                let (target, upstream, to) =
                    (Arc::clone(target), Arc::clone(&upstream), to.to_owned());
                connections.spawn(async move {
                    serve(connection, &target, &upstream, &to).await;
                });
            }
            Err(failure) => {
                error(&format!("cannot accept a connection: {failure}"));
                tokio::time::sleep(ACCEPT_RETRY_DELAY).await;
            }
        }
    }
}

async fn serve(connection: Connection, target: &Target, upstream: &str, to: &str) {
    let result = match target.open(upstream).await {
        Ok(socket) => connection.join(socket).await,
        Err(why) => Err(io::Error::other(why)),
    };
    if let Err(failure) = result {
        error(&format!("connection to {to}: {failure}"));
    }
}
