//! The arguments of `vm exec`, `vm shell`, `vm port-forward` and `vm top`.
//! Out of scope: the implementation of the commands; those of `vm bg` (`background_args`).

use clap_complete::engine::ArgValueCompleter;

use super::super::complete;
use super::super::print::Format;
use super::forward::spec::Forward;
use crate::api::meta::Name;
use crate::guest::protocol::ExecQuery;

/// Who runs a program in a guest, and where.
#[derive(Clone, Debug, clap::Args)]
pub struct RunAs {
    /// User id; the normal user of the image if omitted, or root if there is none
    #[arg(long)]
    pub uid: Option<u32>,
    /// Group id; the first group of the user if omitted
    #[arg(long)]
    pub gid: Option<u32>,
    /// Working directory; the home directory of the user if omitted
    #[arg(long, value_name = "DIR")]
    pub cwd: Option<String>,
}

/// Arguments of commands that run a program.
#[derive(Clone, Debug, clap::Args)]
pub struct ProgramArgs {
    /// User and directory.
    #[command(flatten)]
    pub run_as: RunAs,
    /// Environment variable; may be repeated
    #[arg(short, long, value_name = "NAME=VALUE", value_parser = variable)]
    pub env: Vec<String>,
    /// Run the command, joined by blanks, with this shell as a login shell, such as /bin/bash
    #[arg(long)]
    pub shell: Option<String>,
}

impl ProgramArgs {
    /// The request to execute a command.
    pub fn query(self, command: Vec<String>) -> ExecQuery {
        let mut words = command.into_iter();
        ExecQuery {
            cmd: words.next().unwrap_or_default(),
            args: words.collect(),
            env: self.env,
            uid: self.run_as.uid,
            gid: self.run_as.gid,
            cwd: self.run_as.cwd,
            shell: self.shell,
            ..ExecQuery::default()
        }
    }
}

/// Arguments of `vm exec`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Standard input is passed on if it is not a terminal, or with -i. The exit status is that of the command; 128 and the number of the signal if \
a signal ended it, 127 if the program does not exist, 126 if it cannot be executed. SIGINT, SIGTERM, SIGHUP and SIGQUIT are sent to the \
command; a second Ctrl-C ends slicectl, which ends the command.

Examples:
  slicectl vm exec sandbox-1 -- uname -a
  slicectl vm exec sandbox-1 --shell /bin/sh -- 'cd /var/log && ls'
  tar c . | slicectl vm exec sandbox-1 --cwd /srv -- tar x
  slicectl vm exec sandbox-1 -it -- top")]
pub struct ExecArgs {
    /// The VM
    #[arg(value_name = "VM", value_parser = super::super::target::vm, add = ArgValueCompleter::new(complete::vms))]
    pub vm: Name,
    /// Pass standard input on, even if it is a terminal
    #[arg(short = 'i', long)]
    pub stdin: bool,
    /// Run the command on a terminal
    #[arg(short, long, conflicts_with = "shell")]
    pub tty: bool,
    /// The program.
    #[command(flatten)]
    pub program: ProgramArgs,
    /// The command and its arguments
    #[arg(value_name = "CMD", required = true, last = true)]
    pub command: Vec<String>,
}

/// Arguments of `vm shell`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The terminal is in raw mode and executes all escape sequences of the guest. The exit status is that of the shell.

Examples:
  slicectl vm shell sandbox-1
  slicectl vm shell sandbox-1 --uid 0 --shell /bin/sh")]
pub struct ShellArgs {
    /// The VM
    #[arg(value_name = "VM", value_parser = super::super::target::vm, add = ArgValueCompleter::new(complete::vms))]
    pub vm: Name,
    /// User and directory.
    #[command(flatten)]
    pub run_as: RunAs,
    /// The shell; that of the user if omitted
    #[arg(long)]
    pub shell: Option<String>,
}

/// Arguments of `vm port-forward`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
LOCAL is a port, 0 for any free one, or the path of a Unix socket. REMOTE is a port on the guest's loopback address, HOST:PORT, which the \
guest connects to, or the absolute path of a Unix socket in the guest. A port alone is LOCAL and REMOTE. Ports are those of 127.0.0.1 unless \
ADDRESS is given. The VM needs no network. Ctrl-C ends the command and all connections.

Examples:
  slicectl vm port-forward sandbox-1 8080
  slicectl vm port-forward sandbox-1 2222:22 127.0.0.1:0:80
  slicectl vm port-forward sandbox-1 5432:db.internal:5432
  slicectl vm port-forward sandbox-1 /tmp/docker.sock:/var/run/docker.sock")]
pub struct ForwardArgs {
    /// The VM
    #[arg(value_name = "VM", value_parser = super::super::target::vm, add = ArgValueCompleter::new(complete::vms))]
    pub vm: Name,
    #[allow(
        rustdoc::broken_intra_doc_links,
        reason = "the brackets of an optional part, for a terminal"
    )]
    /// What to forward; may be repeated
    #[arg(value_name = "[[ADDRESS:]LOCAL:]REMOTE", required = true)]
    pub forwards: Vec<Forward>,
}

/// Arguments of `vm top`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The columns are what the host counts for the VMM and its TAP device; those with GUEST are reported by the agent in the guest. On a terminal they are \
refreshed every 2 s until Ctrl-C.

Examples:
  slicectl vm top
  slicectl vm top sandbox-1 --once
  slicectl vm top -o json | jq '.[].guest.loadAvg1'")]
pub struct TopArgs {
    /// The VM; all if omitted
    #[arg(value_name = "VM", value_parser = super::super::target::vm, add = ArgValueCompleter::new(complete::vms))]
    pub vm: Option<Name>,
    /// Print once and exit
    #[arg(long)]
    pub once: bool,
    /// Output format
    #[arg(short, long, value_name = "FORMAT", value_enum, default_value_t)]
    pub output: Format,
}

fn variable(text: &str) -> Result<String, String> {
    match text.split_once('=') {
        Some((name, _)) if !name.is_empty() => Ok(text.to_owned()),
        _ => Err("expected NAME=VALUE".to_owned()),
    }
}
