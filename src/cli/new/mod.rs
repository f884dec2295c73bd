//! `new`: prints the YAML of a host group with comments, for editing and applying.
//! Out of scope: checks that need the daemon.

mod boot;
mod bridge;
mod cni;
mod isolated;
mod text;

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use ipnetwork::Ipv4Network;

use self::text::YamlText;
use super::failure::Failure;
use super::{print, yaml};
use crate::api::manifest::keys::limits::{API_VERSION, KIND};
use crate::api::manifest::{self, Source};
use crate::api::meta::Name;
use crate::api::network::TapOwner;
use crate::api::policy::Entry;

/// Network modes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Net {
    /// A network namespace and a /30 per VM; egress is filtered by allow and drop
    Isolated,
    /// A bridge shared by the VMs, the host and the LAN
    Bridge,
    /// A network created by CNI plugins
    Cni,
}

impl Net {
    fn option(&self) -> String {
        let value = self.to_possible_value();
        let word = value.as_ref().map_or("", |word| word.get_name());
        format!("--net={word}")
    }
}

/// Response to denied packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OnDenyArg {
    /// No response
    Drop,
    /// A TCP reset, or ICMP "administratively prohibited"
    Reject,
}

/// Hypervisors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Vmm {
    /// qemu-system-x86_64 -M microvm
    Qemu,
    /// Firecracker; needs KVM
    Firecracker,
    /// Cloud Hypervisor; needs KVM
    CloudHypervisor,
    /// None: the network is prepared for a VMM that you start yourself
    None,
}

/// Arguments of `new`.
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("subnet").args(["gateway", "cidr"]), after_help = "\
Without --kernel-file, vmlinuz and initrd.img in /var/lib/slice/images (or in a directory of SLICE_IMAGES) are used if they exist; \
otherwise the VMs are slots without a VMM.

Examples:
  slicectl new sandbox --net=isolated > sandbox.yaml
  slicectl new sandbox --net=isolated --drop 192.168.1.0/24 \\
      --allow 192.168.1.7:443/tcp
  slicectl new web --net=bridge --count 3 --gateway 192.168.137.1/24 \\
      --range 192.168.137.20-192.168.137.80
  slicectl new job --net=cni --network-name slicer
  slicectl new guest --net=isolated --ram-mb 128 \\
      --kernel-file /boot/vmlinuz --initrd-file /boot/initrd.img
  slicectl new sandbox --net=isolated | slicectl apply -f -")]
pub struct NewArgs {
    /// Name of the group; its VMs are NAME-1, NAME-2, ...
    pub name: Name,
    /// Network mode
    #[arg(long, value_enum)]
    pub net: Net,
    /// Number of VMs; 1 if omitted
    #[arg(long, value_name = "N")]
    pub count: Option<u32>,
    /// Address range. isolated: a subnet of 169.254.0.0/16 such as 169.254.100.0/22; bridge: FIRST-LAST in the gateway's subnet
    #[arg(long, visible_alias = "isolated-range", value_name = "CIDR|FIRST-LAST")]
    pub range: Option<String>,
    /// Subnet. isolated: the same as --range; bridge: the subnet of the gateway, which has its first address unless CIDR contains one
    #[arg(long, value_name = "CIDR", conflicts_with = "gateway")]
    pub cidr: Option<Ipv4Network>,
    /// isolated: allow, evaluated before --drop: IP or CIDR, then :PORT or :FROM-TO, then /tcp or /udp; may be repeated
    #[arg(long, value_name = "ENTRY", value_delimiter = ',')]
    pub allow: Vec<Entry>,
    /// isolated: deny; same syntax as --allow; may be repeated
    #[arg(long, value_name = "ENTRY", value_delimiter = ',')]
    pub drop: Vec<Entry>,
    /// isolated: response to denied packets; drop if omitted
    #[arg(long, value_enum)]
    pub on_deny: Option<OnDenyArg>,
    /// User and group that may open the TAP
    #[arg(long, value_name = "UID[:GID]", value_parser = owner)]
    pub tap_owner: Option<TapOwner>,
    /// bridge: name of the bridge; an existing one is used without changing it. Derived from NAME if omitted
    #[arg(long, value_name = "LINK")]
    pub bridge: Option<String>,
    /// bridge: prefix of the TAPs' names, followed by a number. Derived from NAME if omitted
    #[arg(long, value_name = "TEXT")]
    pub tap_prefix: Option<String>,
    /// bridge: address of the host on the bridge, with prefix length
    #[arg(long, value_name = "IP/LEN")]
    pub gateway: Option<String>,
    /// bridge: addresses of the VMs, in order; may be repeated
    #[arg(
        long,
        value_name = "IP",
        value_delimiter = ',',
        conflicts_with = "range",
        requires = "subnet"
    )]
    pub addresses: Vec<String>,
    /// bridge: VMs may use any MAC and source address
    #[arg(long)]
    pub no_antispoof: bool,
    /// bridge: VMs of the group cannot reach each other
    #[arg(long)]
    pub isolate_ports: bool,
    /// cni: network of /etc/cni/net.d; slicer if omitted
    #[arg(long, value_name = "NAME")]
    pub network_name: Option<String>,
    /// Name servers for the guest, at most two; may be repeated
    #[arg(long, value_name = "IP", value_delimiter = ',')]
    pub dns: Vec<Ipv4Addr>,
    /// Virtual CPUs of each VM; 2 if omitted
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=255))]
    pub vcpu: Option<u32>,
    /// Memory of each VM, in MiB
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u64).range(1..))]
    pub ram_mb: Option<u64>,
    /// Memory of each VM, in GiB; 4 if both are omitted
    #[arg(long, value_name = "GIB", conflicts_with = "ram_mb", value_parser = clap::value_parser!(u64).range(1..))]
    pub ram_gb: Option<u64>,
    /// Kernel image
    #[arg(long, value_name = "PATH")]
    pub kernel_file: Option<PathBuf>,
    /// Initial RAM file system
    #[arg(long, value_name = "PATH", requires = "kernel_file")]
    pub initrd_file: Option<PathBuf>,
    /// Hypervisor; if omitted, qemu with --kernel-file, else none
    #[arg(long, value_enum)]
    pub hypervisor: Option<Vmm>,
}

impl NewArgs {
    /// Number of VMs of the group.
    fn count(&self) -> u32 {
        self.count.unwrap_or(1)
    }
}

/// `new NAME --net=…`.
pub fn new(mut args: NewArgs) -> Result<(), Failure> {
    let usage_error = |text: &str| Err(Failure::Usage(text.to_owned()));
    foreign(&args)?;
    apply_cidr(&mut args)?;
    boot::find_files(&mut args);
    if args.dns.len() > 2 {
        return usage_error("too many --dns: expected at most two name servers");
    }
    let has_vmm = args.hypervisor.is_some_and(|vmm| vmm != Vmm::None);
    if has_vmm && args.kernel_file.is_none() {
        return usage_error("a --hypervisor other than none requires --kernel-file");
    }
    let text = group(&args)?;
    validate(&text)?;
    print::out(&text)
}

/// Sets the option of the network mode that `--cidr` is short for.
fn apply_cidr(args: &mut NewArgs) -> Result<(), Failure> {
    let Some(cidr) = args.cidr else {
        return Ok(());
    };
    match args.net {
        Net::Isolated if args.range.is_some() => {
            return Err(Failure::Usage(
                "--cidr and --range are the same option with --net=isolated".to_owned(),
            ));
        }
        Net::Isolated => args.range = Some(cidr.to_string()),
        // Without host bits it names the subnet, and the gateway is its first address.
        Net::Bridge => {
            let first = cidr.nth(1).filter(|_| cidr.ip() == cidr.network());
            let gateway = first.unwrap_or(cidr.ip());
            args.gateway = Some(format!("{gateway}/{}", cidr.prefix()));
        }
        Net::Cni => {}
    }
    Ok(())
}

/// Refuses options of other modes.
fn foreign(args: &NewArgs) -> Result<(), Failure> {
    const ISOLATED: &[Net] = &[Net::Isolated];
    const BRIDGE: &[Net] = &[Net::Bridge];
    let options = [
        ("--allow", !args.allow.is_empty(), ISOLATED, ""),
        ("--drop", !args.drop.is_empty(), ISOLATED, ""),
        ("--on-deny", args.on_deny.is_some(), ISOLATED, ""),
        (
            "--range",
            args.range.is_some(),
            &[Net::Isolated, Net::Bridge],
            "",
        ),
        (
            "--cidr",
            args.cidr.is_some(),
            &[Net::Isolated, Net::Bridge],
            "",
        ),
        ("--bridge", args.bridge.is_some(), BRIDGE, ""),
        ("--tap-prefix", args.tap_prefix.is_some(), BRIDGE, ""),
        (
            "--gateway",
            args.gateway.is_some(),
            BRIDGE,
            "; in isolated mode the gateway is .1 of the VM's /30, in cni mode the plugins choose it",
        ),
        ("--addresses", !args.addresses.is_empty(), BRIDGE, ""),
        ("--no-antispoof", args.no_antispoof, BRIDGE, ""),
        ("--isolate-ports", args.isolate_ports, BRIDGE, ""),
        (
            "--network-name",
            args.network_name.is_some(),
            &[Net::Cni],
            "",
        ),
    ];
    let mismatch = options
        .into_iter()
        .find(|(_, is_given, modes, _)| *is_given && !modes.contains(&args.net));
    match mismatch {
        None => Ok(()),
        Some((option, _, modes, hint)) => {
            let modes: Vec<String> = modes.iter().map(Net::option).collect();
            let text = format!("{option} requires {}{hint}", modes.join(" or "));
            Err(Failure::Usage(text))
        }
    }
}

/// Parses the generated text with the parser of the daemon, so that only valid manifests are printed.
fn validate(text: &str) -> Result<(), Failure> {
    let source = Source {
        name: "new".to_owned(),
        text: text.to_owned(),
    };
    let Err(problems) = manifest::parse(&source) else {
        return Ok(());
    };
    let messages = problems.iter().map(|problem| {
        let field = problem.field.rsplit('.').next().unwrap_or_default();
        // `addresses[2]` comes from `--addresses`.
        let option = field.split('[').next().unwrap_or_default();
        format!("--{}: {}", option.replace('_', "-"), problem.message)
    });
    Err(Failure::Usage(messages.collect::<Vec<_>>().join("; ")))
}

fn group(args: &NewArgs) -> Result<String, Failure> {
    let mut text = YamlText::default();
    let schema = schema_path().display().to_string();
    text.line(0, &format!("# yaml-language-server: $schema={schema}"));
    text.line(
        0,
        "# Apply with: slicectl apply -f FILE --wait, or save it in the manifest directory of sliced.",
    );
    text.line(0, &format!("apiVersion: {API_VERSION}"));
    text.line(0, &format!("kind: {KIND}"));
    text.line(0, "config:");
    boot::write(&mut text, args)?;
    if args.net == Net::Cni {
        cni::network_name(&mut text, args)?;
    }
    text.line(1, "host_groups:");
    text.line(2, &format!("- name: {}", yaml::scalar(args.name.as_str())?));
    size(&mut text, args);
    dns(&mut text, args);
    let mut network = YamlText::default();
    match args.net {
        Net::Isolated => isolated::network(&mut network, args)?,
        Net::Bridge => bridge::network(&mut network, args)?,
        Net::Cni => cni::network(&mut network, args),
    }
    if !network.0.is_empty() {
        text.section(3, "network", &network);
    }
    Ok(text.0)
}

/// Where `make install` puts the schema: beside the directory of this program, else the default prefix.
fn schema_path() -> PathBuf {
    const BELOW_PREFIX: &str = "share/slicectl/schema.json";
    let program = std::env::current_exe().ok();
    let prefix = program.as_deref().and_then(|path| path.parent()?.parent());
    let installed = prefix.map(|prefix| prefix.join(BELOW_PREFIX));
    let installed = installed.filter(|path| path.is_file());
    installed.unwrap_or_else(|| Path::new("/usr/local").join(BELOW_PREFIX))
}

/// Options that are omitted are printed as comments: the file then uses the default, even if that changes.
fn size(text: &mut YamlText, args: &NewArgs) {
    match args.count {
        Some(count) => text.note(3, &format!("count: {count}"), &vms(args)),
        None => text.note(3, "# count: 2", &format!("default: {}", vms(args))),
    }
    match args.vcpu {
        Some(vcpu) => text.line(3, &format!("vcpu: {vcpu}")),
        None => text.note(3, "# vcpu: 4", "default: 2"),
    }
    memory(text, args);
}

fn memory(text: &mut YamlText, args: &NewArgs) {
    const ONE_OF: &str = "one of ram_mb, ram_gb or ram_bytes";
    match (args.ram_mb, args.ram_gb) {
        (Some(mib), _) => text.note(3, &format!("ram_mb: {mib}"), ONE_OF),
        (None, Some(gib)) => text.note(3, &format!("ram_gb: {gib}"), ONE_OF),
        (None, None) => text.note(3, "# ram_gb: 8", &format!("{ONE_OF}; default: 4 GiB")),
    }
}

fn dns(text: &mut YamlText, args: &NewArgs) {
    match args.dns.as_slice() {
        [] => text.note(
            3,
            "# dns_servers: [1.1.1.1, 8.8.8.8]",
            "name servers of the guest",
        ),
        dns => {
            let dns: Vec<String> = dns.iter().map(ToString::to_string).collect();
            text.line(3, &format!("dns_servers: [{}]", dns.join(", ")));
        }
    }
}

fn tap_owner(text: &mut YamlText, args: &NewArgs) {
    if let Some(owner) = args.tap_owner {
        text.note(
            4,
            &format!("tap_owner: \"{owner}\""),
            "user and group that may open the TAP",
        );
    }
}

fn vms(args: &NewArgs) -> String {
    match args.count() {
        0 => "no VMs".to_owned(),
        1 => format!("VM {}-1", args.name),
        count => format!("VMs {0}-1 to {0}-{count}", args.name),
    }
}

/// `UID[:GID]`.
fn owner(text: &str) -> Result<TapOwner, String> {
    let number = |part: &str| {
        part.parse()
            .map_err(|_| format!("invalid numeric id \"{part}\": expected UID[:GID]"))
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
