//! Messages and tables for users. One file per group of commands.
//! Out of scope: decisions of the daemon.

pub mod age;
pub mod api_args;
pub mod apply;
pub mod args;
mod change_args;
pub mod check;
mod complete;
mod confirm;
mod console;
pub mod cp;
pub mod delete;
pub mod describe;
pub mod diff;
mod disks;
mod doctor;
pub mod edit;
mod effects;
pub mod events;
pub mod failure;
mod fleet;
mod fleet_events;
mod footer;
pub mod fs;
pub mod get;
pub mod group_manifest;
pub mod guest;
pub mod jsonpath;
mod log_filter;
pub mod logs;
pub mod man;
pub mod manifests;
pub mod new;
pub mod output;
pub mod paint;
pub mod print;
pub mod progress_args;
mod provision_args;
pub mod reference;
pub mod remote;
mod resolve;
pub mod route;
pub mod rows;
pub mod sanitize;
pub mod scale;
pub mod schema;
mod secret;
pub mod sliced;
pub mod sort;
pub mod status_word;
pub mod table;
pub mod target;
mod terminal;
pub mod validate;
pub mod verdict;
pub mod vm;
mod vm_args;
mod vm_state;
pub mod wait;
mod wait_args;
pub mod watch;
pub mod yaml;

use std::process::ExitCode;

use clap::{ArgMatches, CommandFactory, FromArgMatches};

pub use self::doctor::HostChecks;

use self::args::{Args, Command, EventsArgs, GetArgs};
use self::failure::Failure;
use self::guest::requester::Agent;
use self::output::{EventsFormat, Output};
use crate::api::view::Kind;
use crate::wire::Client;

/// Runs `slicectl`. Exit status: 0 success, 1 failure or timeout, 2 usage error.
pub fn main(host_checks: HostChecks) -> ExitCode {
    complete::answer(Args::command);
    let words = progress_args::normalize(std::env::args_os());
    let matches = Args::command().get_matches_from(words);
    let args = match Args::from_arg_matches(&matches) {
        Ok(mut args) => {
            args.remote.yield_to_flag(&matches);
            args
        }
        Err(error) => error.format(&mut Args::command()).exit(),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let result = match runtime {
        Ok(runtime) => runtime.block_on(run(args, host_checks)),
        Err(error) => Err(Failure::one(format!("cannot start: {error}"))),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(&command_path(&matches)),
    }
}

/// The command with its subcommands: `slicectl vm add`.
fn command_path(matches: &ArgMatches) -> String {
    let mut path = "slicectl".to_owned();
    let mut current = matches;
    while let Some((name, inner)) = current.subcommand() {
        path.push(' ');
        path.push_str(name);
        current = inner;
    }
    path
}

async fn run(args: Args, host_checks: HostChecks) -> Result<(), Failure> {
    let client = match args.verb.is_local() {
        true => Client::new(&args.socket),
        false => args.remote.client(&args.socket)?,
    };
    match args.verb {
        Command::Apply(verb) if verb.fleet => fleet::apply(&client, verb).await,
        Command::Apply(verb) => apply::apply(&client, verb).await,
        Command::Diff(verb) if verb.fleet => fleet::diff(&client, verb).await,
        Command::Diff(verb) => diff::diff(&client, verb).await,
        Command::Scale(verb) if verb.fleet => fleet::scale(&client, verb).await,
        Command::Scale(verb) => scale::scale(&client, verb).await,
        Command::Get(verb) if verb.fleet || fleet::is_node(&verb.targets) => {
            fleet::get(&client, verb).await
        }
        Command::Get(verb) => get_or_events(&client, verb).await,
        Command::Ps(verb) => {
            let targets = [vec![Kind::Vm.to_string()], verb.targets].concat();
            get::get(&client, GetArgs { targets, ..verb }).await
        }
        Command::Describe(verb) if verb.fleet || fleet::is_node(&verb.targets) => {
            fleet::describe(&client, verb).await
        }
        Command::Describe(verb) => describe::describe(&client, verb).await,
        Command::Edit(verb) => edit::edit(&client, verb).await,
        Command::Delete(verb) if verb.fleet => fleet::delete(&client, verb).await,
        Command::Delete(verb) => delete::delete(&client, verb).await,
        Command::Wait(verb) if verb.fleet || fleet::is_node(&verb.targets) => {
            fleet::wait(&client, verb).await
        }
        Command::Wait(verb) => wait::wait(&client, verb).await,
        Command::Vm(verb) => vm::vm(&client, verb).await,
        Command::Exec(verb) => guest::exec::exec(&client, verb).await,
        Command::Cp(verb) => cp::cp(|vm| Agent::new(&client, vm), verb).await,
        Command::Fs(verb) => fs::fs(|vm| Agent::new(&client, vm), verb).await,
        Command::PortForward(verb) => guest::forward::forward(&client, verb).await,
        Command::Top(verb) => guest::top::top(&client, verb).await,
        Command::Node(verb) => fleet::node(&client, verb).await,
        Command::Fleet(verb) => fleet::fleet(&client, verb).await,
        Command::Secret(verb) => secret::secret(&client, verb).await,
        Command::Events(verb) if verb.fleet => fleet_events::events(&client, verb).await,
        Command::Events(verb) => events::events(&client, verb).await,
        Command::Logs(verb) => logs::logs(&client, verb).await,
        Command::Console(verb) => console::console(&client, verb).await,
        Command::Gc(verb) => check::gc(&client, verb).await,
        Command::Doctor(verb) => doctor::doctor(&client, verb, host_checks).await,
        Command::Explain(verb) => verdict::explain(&client, verb).await,
        Command::Route(verb) => route::route(&client, verb).await,
        Command::New(verb) => new::new(*verb),
        Command::Validate(verb) => validate::validate(&verb),
        Command::Schema(verb) => schema::schema(&verb),
        Command::Man { dir } => man::write(&dir),
        Command::Completion { shell } => complete::script(shell),
        Command::Version(verb) => check::version(&client, verb).await,
    }
}

/// `get`, and `get events` as kubectl has it.
async fn get_or_events(client: &Client, args: GetArgs) -> Result<(), Failure> {
    let is_events = |word: &String| ["event", "events", "ev"].contains(&word.as_str());
    if !args.targets.first().is_some_and(is_events) {
        return get::get(client, args).await;
    }
    let output = match args.output {
        Output::Table => EventsFormat::Table,
        Output::Wide => EventsFormat::Wide,
        Output::Json => EventsFormat::Json,
        Output::Yaml => EventsFormat::Yaml,
        Output::Name | Output::Manifest | Output::JsonPath(_) => {
            let usage = "events have the output formats table, wide, json and yaml".to_owned();
            return Err(Failure::Usage(usage));
        }
    };
    if args.selector.is_some() {
        return Err(Failure::Usage("events have no tags to select".to_owned()));
    }
    let events = EventsArgs {
        object: args.targets[1..].to_vec(),
        watch: args.watch,
        fleet: false,
        output,
    };
    events::events(client, events).await
}
