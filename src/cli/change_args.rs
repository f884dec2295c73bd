//! The arguments of `apply`, `diff` and `scale` about changes: questions, output, exit status.
//! Out of scope: the other arguments of `apply` and `diff` (`args`); the commands.

use clap::ValueEnum;

use super::progress_args::ProgressArgs;

/// Output formats of `apply` and `scale`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, ValueEnum)]
pub enum ChangeOutput {
    /// One line per group
    #[default]
    Table,
    /// {"groups":[...]} with the effect on each group; with --dry-run the same as diff
    Json,
    /// hostgroup/NAME
    Name,
}

/// Arguments of `apply` about what it destroys, and its output.
#[derive(Debug, clap::Args)]
pub struct ApplyFlags {
    /// Do not ask before VMs are replaced or deleted with disks that are not persistent
    #[arg(short = 'y', long)]
    pub yes: bool,
    /// Output format
    #[arg(short, long, value_name = "FORMAT", value_enum, default_value_t)]
    pub output: ChangeOutput,
}

/// Arguments of `diff` about its output and exit status.
#[derive(Debug, clap::Args)]
pub struct DiffFlags {
    /// Show the steps for each VM
    #[arg(short, long)]
    pub verbose: bool,
    /// Exit with 1 if there are differences, and with 2 on an error
    #[arg(long)]
    pub exit_code: bool,
}

/// Arguments of `scale`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The VMs with the highest numbers are deleted first; VMs created on demand are not counted. A group that is defined in a file is \
refused: change `count` in the file. If another command changes the group at the same time, nothing is changed.

Examples:
  slicectl scale hostgroup/sandbox --count 4
  slicectl scale hg sandbox --count 0 --wait
  slicectl scale hg web --fleet --count 30")]
pub struct ScaleArgs {
    /// KIND NAME... or KIND/NAME...
    #[arg(value_name = "TARGET", required = true)]
    pub targets: Vec<String>,
    /// The number of VMs
    #[arg(long, value_name = "NUMBER", visible_alias = "replicas")]
    pub count: u32,
    /// Questions and output.
    #[command(flatten)]
    pub flags: ApplyFlags,
    /// Waiting and output.
    #[command(flatten)]
    pub progress: ProgressArgs,
    /// Scale groups of the fleet of this daemon
    #[arg(long)]
    pub fleet: bool,
}
