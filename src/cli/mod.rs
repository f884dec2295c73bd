//! Messages and tables for users. One file per group of commands.
//! Out of scope: decisions of the daemon.

pub mod age;
pub mod apply;
pub mod args;
pub mod check;
mod console;
pub mod delete;
pub mod describe;
pub mod events;
pub mod failure;
pub mod get;
pub mod manifests;
pub mod new;
pub mod paint;
pub mod print;
pub mod route;
pub mod rows;
pub mod sliced;
pub mod table;
pub mod target;
pub mod verdict;
pub mod vm;
pub mod wait;
pub mod yaml;

use std::process::ExitCode;

use clap::Parser;

use self::args::{Args, Verb};
use self::failure::Failure;
use crate::wire::Client;

/// Runs `slicectl`. Exit status: 0 success, 1 failure or timeout, 2 usage error.
pub fn main() -> ExitCode {
    let args = Args::parse();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let outcome = match runtime {
        Ok(runtime) => runtime.block_on(run(args)),
        Err(error) => Err(Failure::one(format!("cannot start: {error}"))),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

async fn run(args: Args) -> Result<(), Failure> {
    let client = Client::new(&args.socket);
    match args.verb {
        Verb::Apply(verb) => apply::apply(&client, verb).await,
        Verb::Diff(verb) => apply::diff(&client, verb).await,
        Verb::Get(verb) => get::get(&client, verb).await,
        Verb::Describe(verb) => describe::describe(&client, verb).await,
        Verb::Delete(verb) => delete::delete(&client, verb).await,
        Verb::Wait(verb) => wait::wait(&client, verb).await,
        Verb::Vm(verb) => vm::vm(&client, verb).await,
        Verb::Events(verb) => events::events(&client, verb).await,
        Verb::Logs(verb) => events::logs(&client, verb).await,
        Verb::Console(verb) => console::console(&client, verb).await,
        Verb::Gc(verb) => check::gc(&client, verb).await,
        Verb::Doctor(verb) => check::doctor(&client, verb).await,
        Verb::Explain(verb) => verdict::explain(&client, verb).await,
        Verb::Route(verb) => route::route(&client, verb).await,
        Verb::New(verb) => new::new(*verb),
        Verb::Completion { shell } => args::completion(shell),
        Verb::Version(verb) => check::version(&client, verb).await,
    }
}
