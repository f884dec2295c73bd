//! `slice-agent init`: PID 1 of a small guest.
//! Out of scope: the agent's requests; guests that have an init of their own.
//!
//! It mounts the file systems, loads modules, configures the network from the kernel command line, and runs the agent, a program of the
//! image, and a shell on the console until the guest is to end.
//!
//! | file | content |
//! |---|---|
//! | `parameters` | pure: the kernel command line |
//! | `prepare` | file systems, console, modules, host name, name servers |
//! | `network` | addresses and routes |
//! | `programs` | the programs that run in the guest |
//! | `power` | the requests to end, and the end |
//! | `reap` | ended processes |

mod network;
mod parameters;
mod power;
pub(super) mod prepare;
mod programs;
mod reap;

use std::fs;
use std::io;

use tokio::signal::unix::{SignalKind, signal};

use self::parameters::Parameters;
use self::power::End;
use self::prepare::report;
use self::programs::Programs;

/// Runs until the guest ends. A return from PID 1 is a panic of the kernel, so this returns only if the kernel refuses to end.
pub async fn run() -> String {
    prepare::file_systems();
    prepare::console();
    prepare::modules();
    let line = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    let parameters = Parameters::parse(&line);
    prepare::identity(&parameters);
    if let Err(error) = network::configure(parameters.network.as_ref()).await {
        report(&error);
    }
    let how = match supervise(&parameters).await {
        Ok(how) => how,
        Err(error) => {
            report(&format!("receive signals: {error}"));
            End::PowerOff
        }
    };
    power::end(how).await.to_string()
}

/// Keeps the programs running until the guest is to end.
async fn supervise(parameters: &Parameters) -> io::Result<End> {
    let mut ended = signal(SignalKind::child())?;
    let mut programs = Programs::start(parameters);
    let end = power::requested();
    tokio::pin!(end);
    loop {
        tokio::select! {
            end = &mut end => return end,
            _ = ended.recv() => {
                let pids = reap::all().unwrap_or_default();
                pids.into_iter().for_each(|pid| programs.ended(pid));
            }
            () = programs.due() => programs.restart(),
        }
    }
}
