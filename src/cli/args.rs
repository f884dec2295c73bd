//! The commands of `slicectl`, their arguments and their help.
//! Out of scope: the implementation of the commands.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use clap::{ArgGroup, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use clap_complete::engine::ArgValueCompleter;

use super::change_args::{ApplyFlags, DiffFlags, ScaleArgs};
use super::complete;
use super::new::NewArgs;
use super::output::{EventsFormat, Output};
use super::print::Format;
pub use super::progress_args::ProgressArgs;
use super::sort::SortBy;
pub use super::wait_args::{Goal, WaitArgs};
use crate::api::meta::Name;
use crate::api::policy::Packet;
use crate::api::tag::Selector;
use crate::wire::packet;

/// Declare and inspect the microVMs that sliced runs on this host
#[derive(Debug, Parser)]
#[command(name = "slicectl", version, after_help = QUICK_START)]
pub struct Args {
    /// Path of the sliced socket
    #[arg(
        long,
        global = true,
        env = "SLICE_SOCKET",
        value_name = "PATH",
        default_value = "/run/slice/sliced.sock"
    )]
    pub socket: PathBuf,
    /// Another place of the daemon.
    #[command(flatten)]
    pub remote: super::remote::RemoteArgs,
    /// The command.
    #[command(subcommand)]
    pub verb: Command,
}

const QUICK_START: &str = "\
Kinds are hostgroup (hg), vm and lease, of a fleet hostgroup, vm and node, singular or plural, as KIND NAME or KIND/NAME.

Exit status: 0 success, 1 failure or timeout, 2 usage error.

Quick start:
  slicectl new sandbox --net=isolated --drop 192.168.1.0/24 > sandbox.yaml
  slicectl apply -f sandbox.yaml --wait
  slicectl get vms -o wide
  slicectl explain sandbox-1 192.168.1.7:443";

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Apply configuration from files, directories or stdin
    Apply(ApplyArgs),
    /// Show what apply would change
    Diff(DiffArgs),
    /// Change the number of VMs of host groups
    Scale(ScaleArgs),
    /// List host groups, VMs or leases
    #[command(alias = "list")]
    Get(GetArgs),
    /// The same as `get vms`
    #[command(hide = true, mut_arg("targets", |arg| arg.required(false)))]
    Ps(GetArgs),
    /// Show details and recent events
    Describe(DescribeArgs),
    /// Edit a host group in $EDITOR
    Edit(super::edit::EditArgs),
    /// Delete objects
    #[command(alias = "rm")]
    Delete(DeleteArgs),
    /// Wait until objects are ready, stopped, paused or deleted
    Wait(WaitArgs),
    /// Run commands in VMs; create, delete, pause, resume, restart, stop and start VMs
    #[command(subcommand)]
    Vm(super::vm_args::VmCommand),
    /// The same as `vm exec`
    #[command(hide = true)]
    Exec(super::guest::args::ExecArgs),
    /// The same as `vm cp`
    #[command(hide = true)]
    Cp(super::cp::CpArgs),
    /// List, create, remove and watch files in a VM
    #[command(subcommand)]
    Fs(super::fs::FsCommand),
    /// The same as `vm port-forward`
    #[command(hide = true)]
    PortForward(super::guest::args::ForwardArgs),
    /// The same as `vm top`
    #[command(hide = true)]
    Top(super::guest::args::TopArgs),
    /// Cordon, uncordon and drain nodes of a fleet, and state that they are gone
    #[command(subcommand)]
    Node(super::fleet::NodeCommand),
    /// Show the connection to a fleet, and accept another etcd cluster
    #[command(subcommand)]
    Fleet(super::fleet::FleetCommand),
    /// Create, change, list and delete secrets, which guests get as files
    #[command(subcommand)]
    Secret(super::secret::SecretCommand),
    /// Show recent events
    Events(EventsArgs),
    /// Print the output of a VM's guest and VMM
    Logs(LogsArgs),
    /// Attach to a VM's serial console (Ctrl-] detaches)
    Console(ConsoleArgs),
    /// Remove orphaned host resources
    Gc(GcArgs),
    /// Check the host and suggest fixes
    #[command(after_help = "\
If sliced is not running, slicectl checks the host itself, with the directories that the variables SLICE_* of sliced name. \
Some checks require root. The exit status is 1 if a check fails.")]
    Doctor(FormatArgs),
    /// Show whether a packet from a VM is allowed, and the deciding rule and YAML entry
    #[command(alias = "trace")]
    Explain(ExplainArgs),
    /// Print routes other machines need to reach a bridge group
    Route(RouteArgs),
    /// Print the YAML of a new host group
    New(Box<NewArgs>),
    /// Check manifests without a daemon
    Validate(super::validate::ValidateArgs),
    /// Print the JSON Schema of manifests
    Schema(super::schema::SchemaArgs),
    /// Print a shell completion script
    #[command(after_help = complete::EXAMPLES)]
    Completion {
        /// The shell
        shell: Shell,
    },
    /// Write the man pages to a directory, for `make install`
    #[command(name = "__man", hide = true)]
    Man {
        /// The directory
        dir: PathBuf,
    },
    /// Print the versions of slicectl and sliced
    Version(FormatArgs),
}

impl Command {
    /// Whether it needs no daemon.
    pub fn is_local(&self) -> bool {
        matches!(
            self,
            Self::New(_)
                | Self::Validate(_)
                | Self::Schema(_)
                | Self::Man { .. }
                | Self::Completion { .. }
        )
    }
}

/// Arguments of `apply`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  slicectl apply -f sandbox.yaml
  slicectl apply -f base.yaml -f groups/ --wait --timeout 2m
  slicectl new sandbox --net=isolated | slicectl apply -f -
  slicectl apply -f sandbox.yaml --dry-run
  slicectl apply --fleet -f web.yaml --wait")]
pub struct ApplyArgs {
    /// Manifest file, directory of *.yaml and *.yml files, or - for stdin; may be repeated
    #[arg(
        short = 'f',
        long = "filename",
        alias = "file",
        value_name = "FILE|DIR|-",
        required = true
    )]
    pub files: Vec<PathBuf>,
    /// Show what would change, change nothing
    #[arg(long, value_name = "server|client", value_enum, conflicts_with = "wait", hide_possible_values = true,
          num_args = 0..=1, require_equals = true, default_missing_value = "server")]
    pub dry_run: Option<DryRun>,
    /// Questions and output.
    #[command(flatten)]
    pub flags: ApplyFlags,
    /// Waiting and output.
    #[command(flatten)]
    pub progress: ProgressArgs,
    /// Store the groups in the fleet of this daemon instead of on this host
    #[arg(long)]
    pub fleet: bool,
}

/// Who validates the manifests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DryRun {
    /// sliced, which also compares them with the existing objects
    Server,
    /// slicectl, without a daemon
    Client,
}

/// Arguments of `diff`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
No output means that there are no differences. The exit status is 0 with or without differences, and 1 if the steps for a VM \
cannot be determined, for example because observing it fails. With --exit-code it is 0 without differences, 1 with differences and 2 \
on an error.

The steps are those for VMs, not those for the host network: chains, bridges with their addresses, ip_forward.

Examples:
  slicectl diff -f sandbox.yaml
  slicectl diff -f sandbox.yaml --verbose
  slicectl diff -f groups/ --exit-code > /dev/null || echo 'there are changes'")]
pub struct DiffArgs {
    /// Manifest file, directory of *.yaml and *.yml files, or - for stdin; may be repeated
    #[arg(
        short = 'f',
        long = "filename",
        alias = "file",
        value_name = "FILE|DIR|-",
        required = true
    )]
    pub files: Vec<PathBuf>,
    /// Output format
    #[arg(short, long, value_name = "FORMAT", value_enum, default_value_t)]
    pub output: Format,
    /// What is shown, and the exit status.
    #[command(flatten)]
    pub flags: DiffFlags,
    /// Compare with the fleet of this daemon instead of this host
    #[arg(long)]
    pub fleet: bool,
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
  slicectl get vms --sort-by restarts
  slicectl get leases -o name
  slicectl get vms --fleet
  slicectl get nodes -o wide
  slicectl get vms -o jsonpath='{.items[*].status.network.ip}'
  slicectl get hg sandbox -o manifest > sandbox.yaml")]
pub struct GetArgs {
    /// KIND, KIND NAME... or KIND/NAME...
    #[arg(value_name = "TARGET", required = true, add = ArgValueCompleter::new(complete::listed))]
    pub targets: Vec<String>,
    /// Output format
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    pub output: Output,
    /// Print tables without their headers
    #[arg(long)]
    pub no_headers: bool,
    /// Sort by a column of -o wide, or by a field of the JSON, such as .status.vmm.pid
    #[arg(long, value_name = "COLUMN|FIELD", conflicts_with = "watch")]
    pub sort_by: Option<SortBy>,
    /// Select VMs by tags: KEY=VALUE, KEY!=VALUE, KEY or !KEY, separated by commas
    #[arg(short = 'l', long, value_name = "TAGS")]
    pub selector: Option<Selector>,
    /// After listing, watch for changes; json and yaml print {"type":"ADDED|MODIFIED|DELETED","object":...}
    #[arg(short, long)]
    pub watch: bool,
    /// List objects of the fleet of this daemon; nodes always are
    #[arg(long)]
    pub fleet: bool,
}

/// Arguments of `describe`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  slicectl describe vm/sandbox-1
  slicectl describe hostgroup sandbox
  slicectl describe node/node-a")]
pub struct DescribeArgs {
    /// KIND NAME... or KIND/NAME...
    #[arg(value_name = "TARGET", required = true, add = ArgValueCompleter::new(complete::objects))]
    pub targets: Vec<String>,
    /// Describe objects of the fleet of this daemon; nodes always are
    #[arg(long)]
    pub fleet: bool,
}

/// Arguments of `delete`.
#[derive(Debug, clap::Args)]
#[command(group = ArgGroup::new("what").required(true).args(["targets", "files"]), after_help = "\
A VM that the `count` of its group includes is recreated with a new uid, the same name and the same address. A VM created on demand \
is not recreated, as with `vm delete`. Deleting a group deletes all of its VMs.

With --force, a guest loses data that it has not yet written to its disk. To force a deletion in progress, repeat the command with \
--force. Resources that a CNI plugin has not released are recorded: an event `DetachFailed` and `doctor` report them, `gc` and each \
resync retry the release.

Examples:
  slicectl delete hostgroup/sandbox --wait
  slicectl delete hostgroup/sandbox --force --wait
  slicectl delete vm sandbox-1
  slicectl delete -f sandbox.yaml
  slicectl delete hostgroup/web --fleet --wait")]
pub struct DeleteArgs {
    /// KIND NAME... or KIND/NAME...
    #[arg(value_name = "TARGET", add = ArgValueCompleter::new(complete::objects))]
    pub targets: Vec<String>,
    /// Delete the groups that a manifest defines; may be repeated
    #[arg(
        short = 'f',
        long = "filename",
        alias = "file",
        value_name = "FILE|DIR|-"
    )]
    pub files: Vec<PathBuf>,
    /// Do not fail if the object does not exist
    #[arg(long)]
    pub ignore_not_found: bool,
    /// Kill VMMs immediately, without a guest shutdown, and give up a CNI attachment after the first DEL that fails
    #[arg(long)]
    pub force: bool,
    /// Waiting and output.
    #[command(flatten)]
    pub progress: ProgressArgs,
    /// Delete groups of the fleet of this daemon
    #[arg(long)]
    pub fleet: bool,
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
    /// KIND NAME, KIND/NAME, host (the host network) or manifest/FILE; all objects if omitted
    #[arg(value_name = "OBJECT", num_args = 0..=2, add = ArgValueCompleter::new(complete::event_objects))]
    pub object: Vec<String>,
    /// Keep watching for new events
    #[arg(short, long)]
    pub watch: bool,
    /// The events of all nodes of the fleet; a node that does not answer is reported on standard error
    #[arg(long)]
    pub fleet: bool,
    /// Output format; json prints one line per event
    #[arg(short, long, value_name = "FORMAT", value_enum, default_value_t)]
    pub output: EventsFormat,
}

/// Arguments of `logs`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
On a terminal only text and colours are printed, so that a guest cannot control it. A pipe receives the bytes as they are.

Examples:
  slicectl logs sandbox-1
  slicectl logs sandbox-1 --lines 20
  slicectl logs -f vm/sandbox-1
  slicectl logs sandbox-1 --userdata --follow")]
pub struct LogsArgs {
    /// The VM
    #[arg(value_name = "VM", value_parser = super::target::vm, add = ArgValueCompleter::new(complete::vms))]
    pub vm: Name,
    /// Keep printing new output
    #[arg(short, long)]
    pub follow: bool,
    /// Lines to show from the end
    #[arg(short = 'n', long, alias = "tail", value_name = "NUMBER")]
    pub lines: Option<usize>,
    /// Print the bytes as they are to a terminal as well
    #[arg(long)]
    pub raw: bool,
    /// Print the output of the guest's userdata instead, at most its last 1 MiB; --follow ends with the userdata
    #[arg(long)]
    pub userdata: bool,
}

/// Arguments of `console`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The terminal is in raw mode and executes all escape sequences of the guest: use it with guests that you trust, and `logs` with others.

Examples:
  slicectl console sandbox-1
  echo reboot | slicectl console vm/sandbox-1")]
pub struct ConsoleArgs {
    /// The VM
    #[arg(value_name = "VM", value_parser = super::target::vm, add = ArgValueCompleter::new(complete::vms))]
    pub vm: Name,
    /// Lines of earlier output to show first
    #[arg(
        short = 'n',
        long,
        alias = "tail",
        value_name = "NUMBER",
        default_value_t = 10
    )]
    pub lines: usize,
}

/// Arguments of `gc`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  slicectl gc --dry-run
  slicectl gc")]
pub struct GcArgs {
    /// Print what would be removed, change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Output format
    #[arg(short, long, value_name = "FORMAT", value_enum, default_value_t)]
    pub output: Format,
}

/// Arguments of commands with no argument but the output format.
#[derive(Debug, clap::Args)]
pub struct FormatArgs {
    /// Output format
    #[arg(short, long, value_name = "FORMAT", value_enum, default_value_t)]
    pub output: Format,
}

/// Arguments of `explain`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
A port without a protocol means TCP; an address alone means a packet without ports, such as a ping. The exit status is 0 for both \
results.

Examples:
  slicectl explain sandbox-1 1.1.1.1
  slicectl explain sandbox-1 192.168.1.7:443
  slicectl explain sandbox-1 8.8.8.8:53/udp -o json")]
pub struct ExplainArgs {
    /// The sending VM
    #[arg(value_name = "VM", value_parser = super::target::vm, add = ArgValueCompleter::new(complete::vms))]
    pub vm: Name,
    /// The destination
    #[arg(value_name = "DST[:PORT[/PROTO]]", value_parser = packet::parse)]
    pub packet: Packet,
    /// Output format
    #[arg(short, long, value_name = "FORMAT", value_enum, default_value_t)]
    pub output: Format,
}

/// Arguments of `route`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Run the commands on the other machine. This host needs no change, since sliced enables forwarding on it.

Examples:
  slicectl route web
  slicectl route web --via 192.168.1.20
  slicectl route web -o json")]
pub struct RouteArgs {
    /// The group, in bridge mode
    #[arg(value_name = "GROUP", value_parser = super::target::group, add = ArgValueCompleter::new(complete::groups))]
    pub group: Name,
    /// Address of this host on the LAN; the address of the default route's link if omitted
    #[arg(long, value_name = "HOST_IP")]
    pub via: Option<Ipv4Addr>,
    /// Output format
    #[arg(short, long, value_name = "FORMAT", value_enum, default_value_t)]
    pub output: Format,
}
