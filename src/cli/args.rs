//! The verbs of `slicectl`, their arguments and their help.
//! Out of scope: doing them.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgGroup, CommandFactory, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use super::failure::Failure;
use super::new::NewArgs;
use super::print::{self, Format};
use crate::api::meta::Name;
use crate::api::policy::Packet;
use crate::api::tag::Selector;
use crate::wire::packet;

/// Tells sliced what microVMs this host shall run, and shows what it made of it.
#[derive(Debug, Parser)]
#[command(name = "slicectl", version, disable_help_subcommand = true, after_help = TOUR)]
pub struct Args {
    /// The socket that sliced listens on
    #[arg(
        long,
        global = true,
        env = "SLICE_SOCKET",
        value_name = "PATH",
        default_value = "/run/slice/sliced.sock"
    )]
    pub socket: PathBuf,
    /// What to do
    #[command(subcommand)]
    pub verb: Verb,
}

const TOUR: &str = "\
Kinds are hostgroup (hg), vm and lease, singular or plural, as KIND NAME or KIND/NAME.
Exit status: 0 done, 1 failed or timed out, 2 wrong usage.

A first walk:
  slicectl new sandbox --net=isolated --drop 192.168.1.0/24 > sandbox.yaml
  slicectl apply -f sandbox.yaml --wait
  slicectl get vms -o wide
  slicectl explain sandbox-1 192.168.1.7:443";

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Store what manifests want; one line a group says what became of it
    Apply(ApplyArgs),
    /// Print the actions that applying manifests would take; no action, no output
    Diff(DiffArgs),
    /// List objects, once or as they change
    Get(GetArgs),
    /// Tell everything about objects: spec, conditions, network, firewall, process, recent events
    Describe(DescribeArgs),
    /// Remove objects
    Delete(DeleteArgs),
    /// Wait until objects are ready, or gone
    Wait(WaitArgs),
    /// Make VMs on demand and remove them; pause, resume, restart, stop and start any
    #[command(subcommand)]
    Vm(super::vm::VmVerb),
    /// Show what has happened
    Events(EventsArgs),
    /// Print what a VM's guest and VMM have written
    Logs(LogsArgs),
    /// Talk with a VM's guest on its serial port; Ctrl-] leaves it
    Console(ConsoleArgs),
    /// Remove what is left over and wanted by nobody
    Gc(GcArgs),
    /// Check whether this host can do what is asked of it, and say what to do
    Doctor(FormatArgs),
    /// Say whether a packet from a VM passes, and which rule and YAML entry decide
    Explain(ExplainArgs),
    /// Print the commands by which another machine on the LAN reaches a bridge group's VMs
    Route(RouteArgs),
    /// Print the YAML of a new host group
    New(Box<NewArgs>),
    /// Print the completion script of a shell
    #[command(after_help = COMPLETION)]
    Completion {
        /// Which shell
        shell: Shell,
    },
    /// Print the version of slicectl and of sliced
    Version(FormatArgs),
}

/// Arguments of `apply`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  slicectl apply -f sandbox.yaml
  slicectl apply -f base.yaml -f groups/ --wait=2m
  slicectl new sandbox --net=isolated | slicectl apply -f -
  slicectl apply -f sandbox.yaml --dry-run")]
pub struct ApplyArgs {
    /// A manifest, a folder of *.yaml and *.yml, or - for standard input; may be repeated
    #[arg(
        short = 'f',
        long = "filename",
        value_name = "FILE|DIR|-",
        required = true
    )]
    pub files: Vec<PathBuf>,
    /// Check only, change nothing
    #[arg(long, conflicts_with = "wait")]
    pub dry_run: bool,
    /// Wait until the groups are ready, 60s when no time is given
    #[arg(long, value_name = "TIME", num_args = 0..=1, require_equals = true,
          default_missing_value = "60s", value_parser = humantime::parse_duration)]
    pub wait: Option<Duration>,
}

/// Arguments of `diff`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The exit status is 0 whether there are differences or not; no output means that there are none. It is 1 when what would be done
for a VM cannot be told, as when looking at it fails.

Told are the steps for VMs, not what is made once for all of them: the host's chains, a bridge with its address, ip_forward.

Examples:
  slicectl diff -f sandbox.yaml
  test -z \"$(slicectl diff -f groups/)\" || echo would change something")]
pub struct DiffArgs {
    /// A manifest, a folder of *.yaml and *.yml, or - for standard input; may be repeated
    #[arg(
        short = 'f',
        long = "filename",
        value_name = "FILE|DIR|-",
        required = true
    )]
    pub files: Vec<PathBuf>,
    /// The format of the answer
    #[arg(short, long, value_name = "FORMAT", value_enum, default_value_t)]
    pub output: Format,
}

/// How `get` shows objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, ValueEnum)]
pub enum Output {
    /// A line each
    #[default]
    Table,
    /// A longer line each
    Wide,
    /// The object, or {"items":[...]}; with -w one line a change
    Json,
    /// As json, in YAML
    Yaml,
    /// KIND/NAME
    Name,
}

/// Arguments of `get`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  slicectl get hostgroups
  slicectl get vms -o wide
  slicectl get vm sandbox-1 sandbox-2
  slicectl get vm/sandbox-1 -o json
  slicectl get vms -w
  slicectl get vms -l job=42,team!=blue
  slicectl get leases -o name")]
pub struct GetArgs {
    /// KIND, KIND NAME... or KIND/NAME...
    #[arg(value_name = "TARGET", required = true)]
    pub targets: Vec<String>,
    /// The format of the answer
    #[arg(short, long, value_name = "FORMAT", value_enum, default_value_t)]
    pub output: Output,
    /// Only VMs with these tags: KEY=VALUE, KEY!=VALUE, KEY or !KEY, several with commas between them
    #[arg(short = 'l', long, value_name = "TAGS")]
    pub selector: Option<Selector>,
    /// Go on with every change; json and yaml then tell the changes: {"type":"ADDED|MODIFIED|DELETED","object":...}
    #[arg(short, long)]
    pub watch: bool,
}

/// Arguments of `describe`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  slicectl describe vm/sandbox-1
  slicectl describe hostgroup sandbox")]
pub struct DescribeArgs {
    /// KIND NAME... or KIND/NAME...
    #[arg(value_name = "TARGET", required = true)]
    pub targets: Vec<String>,
}

/// Arguments of `delete`.
#[derive(Debug, clap::Args)]
#[command(group = ArgGroup::new("what").required(true).args(["targets", "files"]), after_help = "\
A VM that is deleted while its group still counts it comes again, with a new uid, the same name and the same address. One that was
made on demand is gone, as with `vm delete`. A group takes all of its VMs along.

With --force, a guest loses what it has not written to its disk yet. A deletion that is under way is forced by the same command with
--force. What a CNI plugin has not released is recorded: an event `DetachFailed` and `doctor` report it, `gc` and each resync retry it.

Examples:
  slicectl delete hostgroup/sandbox --wait
  slicectl delete hostgroup/sandbox --force --wait
  slicectl delete vm sandbox-1
  slicectl delete -f sandbox.yaml")]
pub struct DeleteArgs {
    /// KIND NAME... or KIND/NAME...
    #[arg(value_name = "TARGET")]
    pub targets: Vec<String>,
    /// Delete the groups that a manifest names; may be repeated
    #[arg(short = 'f', long = "filename", value_name = "FILE|DIR|-")]
    pub files: Vec<PathBuf>,
    /// Wait until they are gone, 60s when no time is given
    #[arg(long, value_name = "TIME", num_args = 0..=1, require_equals = true,
          default_missing_value = "60s", value_parser = humantime::parse_duration)]
    pub wait: Option<Duration>,
    /// What is not there is no error
    #[arg(long)]
    pub ignore_not_found: bool,
    /// Kill VMMs at once, without asking guests to power down, and give up a CNI attachment after the first DEL that fails
    #[arg(long)]
    pub force: bool,
}

/// What `wait` waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Goal {
    /// Ready at its newest generation
    Ready,
    /// A VM that is down, and is to be: it was stopped, or ended well and is not to be restarted
    Stopped,
    /// A VM that is held where it is
    Paused,
    /// Gone, with everything it had on the host
    Deleted,
}

/// Arguments of `wait`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
What does not exist yet is waited for. When the time is over, each VM that is missing is named with its reason.

Examples:
  slicectl wait hostgroup/sandbox --for ready
  slicectl wait vm/sandbox-1 vm/sandbox-2 --for ready --timeout 5m
  slicectl wait hg sandbox --for deleted")]
pub struct WaitArgs {
    /// KIND NAME... or KIND/NAME...
    #[arg(value_name = "TARGET", required = true)]
    pub targets: Vec<String>,
    /// What to wait for
    #[arg(long = "for", value_name = "GOAL", value_enum)]
    pub goal: Goal,
    /// How long at most
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = humantime::parse_duration)]
    pub timeout: Duration,
}

/// Arguments of `events`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  slicectl events
  slicectl events vm/sandbox-1
  slicectl events -w
  slicectl events manifest/sandbox.yaml")]
pub struct EventsArgs {
    /// KIND NAME, KIND/NAME, ground or manifest/FILE; without it, everything
    #[arg(value_name = "OBJECT", num_args = 0..=2)]
    pub object: Vec<String>,
    /// Go on with what happens
    #[arg(short, long)]
    pub watch: bool,
    /// The format of the answer; json is one line an event
    #[arg(short, long, value_name = "FORMAT", value_enum, default_value_t)]
    pub output: Format,
}

/// Arguments of `logs`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  slicectl logs sandbox-1
  slicectl logs sandbox-1 --lines 20
  slicectl logs -f vm/sandbox-1")]
pub struct LogsArgs {
    /// The VM
    #[arg(value_name = "VM", value_parser = super::target::vm)]
    pub vm: Name,
    /// Go on with what comes
    #[arg(short, long)]
    pub follow: bool,
    /// Of what is there only the last so many lines
    #[arg(short = 'n', long, value_name = "NUMBER")]
    pub lines: Option<usize>,
}

/// Arguments of `console`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  slicectl console sandbox-1
  echo reboot | slicectl console vm/sandbox-1")]
pub struct ConsoleArgs {
    /// The VM
    #[arg(value_name = "VM", value_parser = super::target::vm)]
    pub vm: Name,
    /// Begin with the last so many lines of what was written
    #[arg(short = 'n', long, value_name = "NUMBER", default_value_t = 10)]
    pub lines: usize,
}

/// Arguments of `gc`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  slicectl gc --dry-run
  slicectl gc")]
pub struct GcArgs {
    /// Only tell what would be removed
    #[arg(long)]
    pub dry_run: bool,
    /// The format of the answer
    #[arg(short, long, value_name = "FORMAT", value_enum, default_value_t)]
    pub output: Format,
}

/// Arguments of verbs that have none of their own.
#[derive(Debug, clap::Args)]
pub struct FormatArgs {
    /// The format of the answer
    #[arg(short, long, value_name = "FORMAT", value_enum, default_value_t)]
    pub output: Format,
}

/// Arguments of `explain`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
A port without a protocol is TCP; an address alone is a packet without ports, as a ping. The exit status is 0 for both
verdicts.

Examples:
  slicectl explain sandbox-1 1.1.1.1
  slicectl explain sandbox-1 192.168.1.7:443
  slicectl explain sandbox-1 8.8.8.8:53/udp -o json")]
pub struct ExplainArgs {
    /// The VM that sends
    #[arg(value_name = "VM", value_parser = super::target::vm)]
    pub vm: Name,
    /// Where to
    #[arg(value_name = "DST[:PORT[/PROTO]]", value_parser = packet::parse)]
    pub packet: Packet,
    /// The format of the answer
    #[arg(short, long, value_name = "FORMAT", value_enum, default_value_t)]
    pub output: Format,
}

/// Arguments of `route`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The commands are for the other machine. This host forwards by itself: nothing is to be done on it.

Examples:
  slicectl route web
  slicectl route web --via 192.168.1.20
  slicectl route web -o json")]
pub struct RouteArgs {
    /// The group, in bridge mode
    #[arg(value_name = "GROUP", value_parser = super::target::group)]
    pub group: Name,
    /// This host's address on the LAN; by default that of the link of its default route
    #[arg(long, value_name = "HOST_IP")]
    pub via: Option<Ipv4Addr>,
    /// The format of the answer
    #[arg(short, long, value_name = "FORMAT", value_enum, default_value_t)]
    pub output: Format,
}

const COMPLETION: &str = "\
Examples:
  slicectl completion bash > /etc/bash_completion.d/slicectl
  slicectl completion zsh > ~/.zfunc/_slicectl
  slicectl completion fish > ~/.config/fish/completions/slicectl.fish";

/// Prints the completion script.
pub fn completion(shell: Shell) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Args::command(), "slicectl", &mut script);
    print::bytes(&script)
}
