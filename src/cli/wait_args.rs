//! The arguments of `wait`.
//! Out of scope: waiting (`wait`).

use std::time::Duration;

use clap::ValueEnum;
use clap_complete::engine::ArgValueCompleter;

use super::complete;

/// Conditions of `wait`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Goal {
    /// Ready at the latest generation
    #[value(aliases = ["condition=ready", "condition=ready=true"])]
    Ready,
    /// The VM is stopped and is not restarted: by command, or after a clean exit
    Stopped,
    /// The VM is paused
    Paused,
    /// The agent of the guest answers
    Agent,
    /// The userdata of the guest has exited with status 0, or there is none; fails at once if it fails
    Userdata,
    /// The object and its resources on the host are removed
    #[value(alias = "delete")]
    Deleted,
}

/// Arguments of `wait`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Objects may be created after the command starts. On timeout, the output names each VM that is not in the requested state, and why.

Examples:
  slicectl wait hostgroup/sandbox --for ready
  slicectl wait vm/sandbox-1 vm/sandbox-2 --for ready --timeout 5m
  slicectl wait hg sandbox --for deleted
  slicectl wait hg web --fleet --for ready")]
pub struct WaitArgs {
    /// KIND NAME... or KIND/NAME...
    #[arg(value_name = "TARGET", required = true, add = ArgValueCompleter::new(complete::objects))]
    pub targets: Vec<String>,
    /// The state to wait for
    #[arg(long = "for", value_name = "GOAL", value_enum, ignore_case = true)]
    pub goal: Goal,
    /// Give up after this time
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = humantime::parse_duration)]
    pub timeout: Duration,
    /// Do not print the objects that have reached the state
    #[arg(short, long)]
    pub quiet: bool,
    /// Wait for objects of the fleet of this daemon; --for is ready or deleted
    #[arg(long)]
    pub fleet: bool,
}
