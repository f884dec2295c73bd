//! `new`: the YAML of a host group, with comments, ready to be edited and applied.
//! Not here: checking what the daemon alone can check.

use std::fmt::Write;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use clap::ValueEnum;
use ipnetwork::Ipv4Network;

use super::failure::Failure;
use super::{print, yaml};
use crate::api::meta::Name;
use crate::api::network::TapOwner;
use crate::api::policy::{Entry, OnDeny, Policy, reserved};

/// Data paths that people may ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Net {
    /// A namespace and a /30 of its own, egress through allow and drop
    Isolated,
    /// A shared bridge; not supported yet
    Bridge,
    /// A chain of CNI plugins; not supported yet
    Cni,
}

/// What a denied packet gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Denial {
    /// Silence
    Drop,
    /// A TCP reset, or ICMP "administratively prohibited"
    Reject,
}

/// Who runs the VMs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Vmm {
    /// qemu-system-x86_64 -M microvm
    Qemu,
    /// Nobody: the slot is prepared for a VMM of your own
    None,
}

/// Arguments of `new`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  slicectl new sandbox --net=isolated > sandbox.yaml
  slicectl new sandbox --net=isolated --count 2 --drop 192.168.1.0/24 --allow 192.168.1.7:443/tcp
  slicectl new guest --net=isolated --kernel-file /boot/vmlinuz --initrd-file /boot/initrd.img --ram-mb 128
  slicectl new sandbox --net=isolated | slicectl apply -f -")]
pub struct NewArgs {
    /// The group's name; its VMs are NAME-1, NAME-2, ...
    pub name: Name,
    /// The data path
    #[arg(long, value_enum)]
    pub net: Net,
    /// How many VMs
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub count: u32,
    /// Where /30s are taken from, a block of 169.254.0.0/16 such as 169.254.100.0/22
    #[arg(long, value_name = "CIDR", value_parser = range)]
    pub range: Option<Ipv4Network>,
    /// Let through, asked before --drop: IP or CIDR, then :PORT or :FROM-TO, then /tcp or /udp; may be repeated
    #[arg(long, value_name = "ENTRY", value_delimiter = ',')]
    pub allow: Vec<Entry>,
    /// Deny, written as --allow; may be repeated
    #[arg(long, value_name = "ENTRY", value_delimiter = ',')]
    pub drop: Vec<Entry>,
    /// What a denied packet gets
    #[arg(long, value_enum, default_value = "drop")]
    pub on_deny: Denial,
    /// Who may open the TAP
    #[arg(long, value_name = "UID[:GID]", value_parser = owner)]
    pub tap_owner: Option<TapOwner>,
    /// The bridge's gateway, with --net=bridge
    #[arg(long, value_name = "CIDR")]
    pub gateway: Option<Ipv4Network>,
    /// Name servers for the guest, two at most; may be repeated
    #[arg(long, value_name = "IP", value_delimiter = ',')]
    pub dns: Vec<Ipv4Addr>,
    /// Virtual processors of each VM
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=255))]
    pub vcpu: u32,
    /// Memory of each VM, in MiB
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u64).range(1..))]
    pub ram_mb: Option<u64>,
    /// Memory of each VM, in GiB; 4 when neither is given
    #[arg(long, value_name = "GIB", conflicts_with = "ram_mb", value_parser = clap::value_parser!(u64).range(1..))]
    pub ram_gb: Option<u64>,
    /// The kernel to boot
    #[arg(long, value_name = "PATH")]
    pub kernel_file: Option<PathBuf>,
    /// Its initial RAM file system
    #[arg(long, value_name = "PATH", requires = "kernel_file")]
    pub initrd_file: Option<PathBuf>,
    /// Who runs the VMs; qemu when there is a kernel to boot, else none
    #[arg(long, value_enum)]
    pub hypervisor: Option<Vmm>,
}

/// `new NAME --net=…`.
pub fn new(args: NewArgs) -> Result<(), Failure> {
    match args.net {
        Net::Isolated => {}
        Net::Bridge => return Err(unsupported("bridge")),
        Net::Cni => return Err(unsupported("cni")),
    }
    let usage = |text: &str| Err(Failure::Usage(text.to_owned()));
    if args.gateway.is_some() {
        return usage(
            "--gateway belongs to --net=bridge; an isolated VM's gateway is .1 of its /30",
        );
    }
    if args.dns.len() > 2 {
        return usage("a guest can be given two name servers at most");
    }
    if let Some((entry, closed)) = closed(&args.allow) {
        return Err(Failure::Usage(format!(
            "--allow {entry} lies in {closed}, which is always closed"
        )));
    }
    if args.hypervisor == Some(Vmm::Qemu) && args.kernel_file.is_none() {
        return usage("--hypervisor qemu needs --kernel-file");
    }
    print::out(&isolated(&args)?)
}

/// The first entry in a range that no list opens.
fn closed(allow: &[Entry]) -> Option<(Entry, Ipv4Network)> {
    allow.iter().find_map(|entry| {
        let range = reserved().find(|range| entry.network.is_subnet_of(*range))?;
        Some((*entry, range))
    })
}

fn unsupported(mode: &str) -> Failure {
    Failure::one(format!(
        "network mode {mode} is not supported yet; --net=isolated is"
    ))
}

fn isolated(args: &NewArgs) -> Result<String, Failure> {
    let mut text = Text::default();
    text.line(
        0,
        "# Store it: slicectl apply -f FILE --wait, or save it in the folder that sliced reads.",
    );
    text.line(0, "config:");
    boot(&mut text, args)?;
    text.line(1, "host_groups:");
    text.line(2, &format!("- name: {}", yaml::scalar(args.name.as_str())?));
    text.note(3, &format!("count: {}", args.count), &vms(args));
    text.line(3, &format!("vcpu: {}", args.vcpu));
    let memory = match (args.ram_mb, args.ram_gb) {
        (Some(mib), _) => format!("ram_mb: {mib}"),
        (None, Some(gib)) => format!("ram_gb: {gib}"),
        (None, None) => "ram_gb: 4".to_owned(),
    };
    text.note(3, &memory, "ram_mb, ram_gb or ram_bytes: exactly one");
    match args.dns.as_slice() {
        [] => text.note(
            3,
            "# dns_servers: [1.1.1.1, 8.8.8.8]",
            "handed to the guest",
        ),
        dns => {
            let dns: Vec<String> = dns.iter().map(ToString::to_string).collect();
            text.line(3, &format!("dns_servers: [{}]", dns.join(", ")));
        }
    }
    text.line(3, "network:");
    text.line(4, "mode: isolated");
    network(&mut text, args);
    Ok(text.0)
}

fn boot(text: &mut Text, args: &NewArgs) -> Result<(), Failure> {
    let vmm = match (args.hypervisor, &args.kernel_file) {
        (Some(vmm), _) => vmm,
        (None, Some(_)) => Vmm::Qemu,
        (None, None) => Vmm::None,
    };
    match vmm {
        Vmm::Qemu => text.note(
            1,
            "hypervisor: qemu",
            "qemu, or none to start a VMM of your own",
        ),
        Vmm::None => text.note(
            1,
            "hypervisor: none",
            "prepares the slot for a VMM of your own; or qemu",
        ),
    }
    match &args.kernel_file {
        None => text.line(1, "# kernel_file: /var/lib/slice/images/vmlinuz"),
        Some(path) => text.line(1, &format!("kernel_file: {}", scalar(path)?)),
    }
    match &args.initrd_file {
        None => text.line(1, "# initrd_file: /var/lib/slice/images/initrd.img"),
        Some(path) => text.line(1, &format!("initrd_file: {}", scalar(path)?)),
    }
    Ok(())
}

fn network(text: &mut Text, args: &NewArgs) {
    match args.range {
        Some(range) => text.note(4, &format!("range: {range}"), "a /30 of it for each VM"),
        None => text.note(
            4,
            "# range: 169.254.100.0/22",
            "else derived from the group's name",
        ),
    }
    let policy = Policy {
        allow: args.allow.clone(),
        drop: args.drop.clone(),
        on_deny: match args.on_deny {
            Denial::Drop => OnDeny::Drop,
            Denial::Reject => OnDeny::Reject,
        },
        allow_metadata: false,
    };
    text.line(4, &format!("# {}", in_words(&policy)));
    match policy.allow.as_slice() {
        [] => text.line(4, "# allow: [\"192.168.222.1:3128\", \"1.1.1.1:53/udp\"]"),
        allow => text.line(4, &format!("allow: {}", flow(allow))),
    }
    match policy.drop.as_slice() {
        [] => text.line(4, "# drop: [\"192.168.1.0/24\"]"),
        drop => text.line(4, &format!("drop: {}", flow(drop))),
    }
    text.note(4, &format!("on_deny: {}", policy.on_deny), "drop or reject");
    if let Some(owner) = args.tap_owner {
        text.note(
            4,
            &format!("tap_owner: \"{owner}\""),
            "who may open the TAP",
        );
    }
    for warning in policy.warnings() {
        super::failure::warn(&warning);
    }
}

fn vms(args: &NewArgs) -> String {
    match args.count {
        0 => "no VM for now".to_owned(),
        1 => format!("VM {}-1", args.name),
        count => format!("VMs {0}-1 to {0}-{count}", args.name),
    }
}

/// What the lists mean together.
fn in_words(policy: &Policy) -> &'static str {
    match (policy.allow.is_empty(), policy.drop.is_empty()) {
        (true, true) => "Neither allow nor drop: every destination is open but the reserved ones.",
        (true, false) => "What drop does not match is open.",
        (false, true) => "Only what allow matches is open.",
        (false, false) => "allow is asked first, then drop; what matches neither is open.",
    }
}

/// Entries are of digits and `./:-` and two words, so double quotes need no escapes.
fn flow(entries: &[Entry]) -> String {
    let quoted: Vec<String> = entries.iter().map(|entry| format!("\"{entry}\"")).collect();
    format!("[{}]", quoted.join(", "))
}

fn scalar(path: &std::path::Path) -> Result<String, Failure> {
    yaml::scalar(&path.to_string_lossy())
}

#[derive(Default)]
struct Text(String);

impl Text {
    /// A line, two spaces a level.
    fn line(&mut self, level: usize, text: &str) {
        let indent = level * 2;
        // Writing to a String cannot fail.
        let _ = writeln!(self.0, "{:indent$}{text}", "");
    }

    /// A line with a comment behind it, the comments under each other.
    fn note(&mut self, level: usize, text: &str, comment: &str) {
        let width = 42usize.saturating_sub(level * 2);
        self.line(level, &format!("{text:<width$} # {comment}"));
    }
}

/// A network of 169.254.0.0/16 that has room for more than one /30.
fn range(text: &str) -> Result<Ipv4Network, String> {
    let range: Ipv4Network = text.parse().map_err(|e| format!("{e}"))?;
    let link_local = range.ip().octets()[..2] == [169, 254];
    match range.network() == range.ip() {
        _ if !link_local || !(16..=29).contains(&range.prefix()) => {
            Err("it must be a /16 to /29 of 169.254.0.0/16".into())
        }
        true => Ok(range),
        false => Err(format!(
            "it has host bits set, {}/{} has none",
            range.network(),
            range.prefix()
        )),
    }
}

/// `UID[:GID]`.
fn owner(text: &str) -> Result<TapOwner, String> {
    let number = |part: &str| {
        part.parse()
            .map_err(|_| format!("`{part}` is no numeric id; expected UID[:GID]"))
    };
    match text.split_once(':') {
        None => Ok(TapOwner {
            uid: number(text)?,
            gid: None,
        }),
        Some((uid, gid)) => Ok(TapOwner {
            uid: number(uid)?,
            gid: Some(number(gid)?),
        }),
    }
}
