//! The arguments of `vm bg`.
//! Out of scope: the implementation of the commands (`background`).

use std::time::Duration;

use clap::Subcommand;
use clap_complete::engine::ArgValueCompleter;

use super::super::complete;
use super::super::print::Format;
use super::args::ProgramArgs;
use crate::api::meta::Name;

/// The commands for commands in the background of a guest.
#[derive(Debug, Subcommand)]
pub enum BackgroundCommand {
    /// List the commands in the background
    List(ListArgs),
    /// Start a command in the background
    #[command(alias = "exec")]
    Start(StartArgs),
    /// Show a command
    Info(InfoArgs),
    /// Print the output of a command
    Logs(LogsArgs),
    /// Send a signal to a command
    Kill(KillArgs),
    /// Wait until a command has ended, and exit with its exit status
    Wait(WaitArgs),
    /// Remove a command that has ended, with its output
    #[command(alias = "rm")]
    Remove(RemoveArgs),
}

/// A command in the background of a VM.
#[derive(Debug, clap::Args)]
pub struct CommandRef {
    /// The VM
    #[arg(value_name = "VM", value_parser = super::super::target::vm, add = ArgValueCompleter::new(complete::vms))]
    pub vm: Name,
    /// The id of the command, as `start` prints it
    #[arg(value_name = "ID", value_parser = id)]
    pub id: String,
}

/// Arguments of `vm bg list`.
#[derive(Debug, clap::Args)]
pub struct ListArgs {
    /// The VM
    #[arg(value_name = "VM", value_parser = super::super::target::vm, add = ArgValueCompleter::new(complete::vms))]
    pub vm: Name,
    /// Output format
    #[arg(short, long, value_name = "FORMAT", value_enum, default_value_t)]
    pub output: Format,
}

/// Arguments of `vm bg start`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The command runs until it ends, also if slicectl or sliced ends. Its output is kept in a buffer of the agent, from which the oldest is \
dropped.

Examples:
  slicectl vm bg start sandbox-1 -- make -j4
  slicectl vm bg start sandbox-1 --shell /bin/sh -- 'sleep 5; date'")]
pub struct StartArgs {
    /// The VM
    #[arg(value_name = "VM", value_parser = super::super::target::vm, add = ArgValueCompleter::new(complete::vms))]
    pub vm: Name,
    /// Size of the buffer for output, in bytes; 1 MiB if omitted
    #[arg(long, value_name = "BYTES")]
    pub ring_bytes: Option<u64>,
    /// The program.
    #[command(flatten)]
    pub program: ProgramArgs,
    /// The command and its arguments
    #[arg(value_name = "CMD", required = true, last = true)]
    pub command: Vec<String>,
}

/// Arguments of `vm bg info`.
#[derive(Debug, clap::Args)]
pub struct InfoArgs {
    /// The command.
    #[command(flatten)]
    pub command: CommandRef,
    /// Output format
    #[arg(short, long, value_name = "FORMAT", value_enum, default_value_t)]
    pub output: Format,
}

/// Arguments of `vm bg logs`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
On a terminal only text and colours are printed, so that a guest cannot control it. A pipe receives the bytes as they are.

Examples:
  slicectl vm bg logs sandbox-1 ex_4f2a
  slicectl vm bg logs sandbox-1 ex_4f2a --follow --from-id 120")]
pub struct LogsArgs {
    /// The command.
    #[command(flatten)]
    pub command: CommandRef,
    /// Keep printing new output until the command has ended
    #[arg(short, long)]
    pub follow: bool,
    /// Begin at the frame with this id; the first is 1
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    pub from_id: u64,
}

/// Arguments of `vm bg kill`.
#[derive(Debug, clap::Args)]
pub struct KillArgs {
    /// The command.
    #[command(flatten)]
    pub command: CommandRef,
    /// TERM, KILL, INT, HUP, QUIT, USR1 or USR2
    #[arg(short, long, value_name = "SIGNAL", default_value = "TERM")]
    pub signal: String,
    /// Send KILL if the command has not ended after this time
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = humantime::parse_duration)]
    pub grace: Duration,
}

/// Arguments of `vm bg wait`.
#[derive(Debug, clap::Args)]
pub struct WaitArgs {
    /// The command.
    #[command(flatten)]
    pub command: CommandRef,
    /// Give up after this time
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = humantime::parse_duration)]
    pub timeout: Duration,
}

/// Arguments of `vm bg remove`.
#[derive(Debug, clap::Args)]
pub struct RemoveArgs {
    /// The command.
    #[command(flatten)]
    pub command: CommandRef,
}

/// An id is a part of a path.
fn id(text: &str) -> Result<String, String> {
    let is_permitted = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
    match !text.is_empty() && text.len() <= 64 && text.bytes().all(is_permitted) {
        true => Ok(text.to_owned()),
        false => Err("expected an id, such as ex_4f2a".to_owned()),
    }
}
