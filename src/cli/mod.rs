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
pub mod schema;
pub mod sliced;
pub mod table;
pub mod target;
pub mod validate;
pub mod verdict;
pub mod vm;
mod vm_args;
pub mod wait;
pub mod yaml;

use std::process::ExitCode;

use clap::Parser;

use self::args::{Args, Command};
use self::failure::Failure;
use crate::wire::Client;

/// Runs `slicectl`. Exit status: 0 success, 1 failure or timeout, 2 usage error.
pub fn main() -> ExitCode {
    let args = Args::parse();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let result = match runtime {
        Ok(runtime) => runtime.block_on(run(args)),
        Err(error) => Err(Failure::one(format!("cannot start: {error}"))),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

async fn run(args: Args) -> Result<(), Failure> {
    let client = Client::new(&args.socket);
    match args.verb {
        Command::Apply(verb) => apply::apply(&client, verb).await,
        Command::Diff(verb) => apply::diff(&client, verb).await,
        Command::Get(verb) => get::get(&client, verb).await,
        Command::Describe(verb) => describe::describe(&client, verb).await,
        Command::Delete(verb) => delete::delete(&client, verb).await,
        Command::Wait(verb) => wait::wait(&client, verb).await,
        Command::Vm(verb) => vm::vm(&client, verb).await,
        Command::Events(verb) => events::events(&client, verb).await,
        Command::Logs(verb) => events::logs(&client, verb).await,
        Command::Console(verb) => console::console(&client, verb).await,
        Command::Gc(verb) => check::gc(&client, verb).await,
        Command::Doctor(verb) => check::doctor(&client, verb).await,
        Command::Explain(verb) => verdict::explain(&client, verb).await,
        Command::Route(verb) => route::route(&client, verb).await,
        Command::New(verb) => new::new(*verb),
        Command::Validate(verb) => validate::validate(&verb),
        Command::Schema(verb) => schema::schema(&verb),
        Command::Completion { shell } => args::completion(shell),
        Command::Version(verb) => check::version(&client, verb).await,
    }
}
