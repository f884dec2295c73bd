//! What a VM requests from the plugins of its CNI network: `cni:` of a group, or of a VM made on demand.
//! Out of scope: parsing YAML; which plugin supports which option.

mod text;

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::json_object;
use super::mac::Mac;
use super::meta::Name;
use super::vm_index::MAX_COUNT;

pub use text::parse_bits;

/// The maximum number of port mappings, of aliases and of arguments of a VM, and of addresses of a VM made on demand.
pub const MAX_REQUESTED: usize = 64;

/// The maximum length of an argument's key, and of its value, in bytes.
const MAX_ARGUMENT_LEN: usize = 1024;

/// The maximum length of all arguments in bytes: `CNI_ARGS` is one string of the environment, which the kernel limits to 128 KiB
/// (`MAX_ARG_STRLEN`, `execve(2)`).
const MAX_ARGUMENTS_LEN: usize = 65_536;

/// Arguments that only `sliced` sets.
const RESERVED_ARGUMENTS: [(&str, &str); 3] = [
    ("IgnoreUnknown", "is set by sliced"),
    ("IP", "belongs in cni.ips"),
    ("MAC", "belongs in cni.mac"),
];

/// The prefix of the arguments of `tc-redirect-tap`, the plugin that creates the TAP.
const TAP_ARGUMENTS: &str = "TC_REDIRECT_TAP_";

/// The valid rates in bits per second; a fast bridge of a host carries about 10 Gbit/s.
pub(super) const RATES: std::ops::RangeInclusive<u64> = 1_000..=1_000_000_000_000;

/// The valid bursts in bits. A bucket (`tc-tbf(8)`) smaller than a packet drops that packet; the plugin rejects more than 2^32 bytes.
pub(super) const BURSTS: std::ops::RangeInclusive<u64> = 16_000..=34_359_738_360;

/// The options of a VM in CNI mode, in addition to what the network configures by itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct CniOptions {
    /// Host ports that are forwarded to the VM: capability `portMappings`.
    #[serde(
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "json_object::list"
    )]
    pub port_mappings: Vec<PortMapping>,
    /// The limits on the VM's traffic: capability `bandwidth`.
    #[serde(
        skip_serializing_if = "Option::is_none",
        deserialize_with = "json_object::optional"
    )]
    pub bandwidth: Option<Bandwidth>,
    /// Additional names for the VM's address: capability `aliases`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub aliases: Vec<Name>,
    /// `CNI_ARGS`, which every plugin receives.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub args: BTreeMap<String, String>,
    /// The requested addresses. For a group: one for each VM that `count` covers, in order of index. For a VM made on demand: all
    /// addresses of this VM. Capability `ips`, or the argument `IP`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ips: Vec<RequestedIp>,
    /// The requested MAC of the VM's interface: capability `mac`, or the argument `MAC`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mac: Option<Mac>,
}

/// A host port that is forwarded to a port of the VM.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PortMapping {
    /// The port on the host, 1 to 65535.
    pub host_port: u16,
    /// The port of the VM, 1 to 65535.
    pub guest_port: u16,
    /// The transport protocol; TCP by default.
    #[serde(default)]
    pub protocol: Transport,
    /// The host address that the mapping applies to; `None` for all addresses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub host_ip: Option<Ipv4Addr>,
}

/// The transport protocols that `portmap` supports.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    ToSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// TCP.
    #[default]
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

/// Limits on the traffic to a VM (ingress) and from it (egress), in bits; `None` for no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Bandwidth {
    /// The rate to the VM, in bits per second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ingress_rate: Option<u64>,
    /// The burst to the VM, in bits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ingress_burst: Option<u64>,
    /// The rate from the VM, in bits per second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub egress_rate: Option<u64>,
    /// The burst from the VM, in bits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub egress_burst: Option<u64>,
}

/// An address that a VM requests: `A.B.C.D`, or `A.B.C.D/LEN` for an IPAM plugin that has no subnet of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RequestedIp {
    /// The address.
    pub ip: Ipv4Addr,
    /// The prefix length, if one is requested.
    pub prefix_len: Option<u8>,
}

impl CniOptions {
    /// Whether nothing is requested.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// The addresses that the VM with this index requests; the first index is 1.
    pub fn ips_of(&self, index: u32) -> &[RequestedIp] {
        let position = index.saturating_sub(1) as usize;
        match index > MAX_COUNT {
            true => &self.ips,
            false => self.ips.get(position).map_or(&[], std::slice::from_ref),
        }
    }

    /// Whether the requests of the VM with this index allow this address.
    pub fn allow(&self, index: u32, ip: Ipv4Addr) -> bool {
        let requested = self.ips_of(index);
        requested.is_empty() || requested.iter().any(|request| request.ip == ip)
    }

    /// The options of a VM made on demand with the options `own`, in a group with the options `self`. Port mappings, addresses and a
    /// MAC belong to a single VM and are never inherited from the group.
    pub fn with_overrides(&self, own: &Self) -> Self {
        let own = own.clone();
        Self {
            port_mappings: own.port_mappings,
            bandwidth: own.bandwidth.or(self.bandwidth),
            aliases: match own.aliases.is_empty() {
                true => self.aliases.clone(),
                false => own.aliases,
            },
            args: match own.args.is_empty() {
                true => self.args.clone(),
                false => own.args,
            },
            ips: own.ips,
            mac: own.mac,
        }
    }

    /// The invalid fields: the path of each below `cni`, and the message. Manifests and API requests are checked alike.
    pub fn objections(&self) -> Vec<(String, String)> {
        let mut found = Vec::new();
        let counts = [
            ("port_mappings", self.port_mappings.len()),
            ("aliases", self.aliases.len()),
            ("args", self.args.len()),
        ];
        for (field, count) in counts {
            if count > MAX_REQUESTED {
                let message = format!("found {count} entries, expected at most {MAX_REQUESTED}");
                found.push((field.to_owned(), message));
            }
        }
        self.check_ports(&mut found);
        if let Some(bandwidth) = &self.bandwidth {
            bandwidth.objections(&mut found);
        }
        let mut aliases = BTreeSet::new();
        for (at, alias) in self.aliases.iter().enumerate() {
            if !aliases.insert(alias) {
                found.push((
                    format!("aliases[{at}]"),
                    format!("\"{alias}\" is listed twice"),
                ));
            }
        }
        let length: usize = self.args.iter().map(|(k, v)| k.len() + v.len() + 2).sum();
        if length > MAX_ARGUMENTS_LEN {
            let message = format!("found {length} bytes, expected at most {MAX_ARGUMENTS_LEN}");
            found.push(("args".to_owned(), message));
        }
        for (key, value) in &self.args {
            if let Some(why) = argument_problem(key, value) {
                found.push((format!("args.{}", shown(key)), why));
            }
        }
        let mut ips = BTreeSet::new();
        for (at, requested) in self.ips.iter().enumerate() {
            if !ips.insert(requested.ip) {
                found.push((
                    format!("ips[{at}]"),
                    format!("{} is listed twice", requested.ip),
                ));
            }
        }
        if let Some(mac) = self.mac.filter(|mac| !is_valid_mac(*mac)) {
            let message = format!("found \"{mac}\", expected a unicast MAC that is not all zeros");
            found.push(("mac".to_owned(), message));
        }
        found
    }

    fn check_ports(&self, found: &mut Vec<(String, String)>) {
        for (at, mapping) in self.port_mappings.iter().enumerate() {
            let field = format!("port_mappings[{at}]");
            for (key, port) in [
                ("host_port", mapping.host_port),
                ("guest_port", mapping.guest_port),
            ] {
                if port == 0 {
                    let message = "found 0, expected a whole number from 1 to 65535".to_owned();
                    found.push((format!("{field}.{key}"), message));
                }
            }
            if let Some(ip) = mapping.host_ip.filter(|ip| !is_host_address(*ip)) {
                let message = format!("found {ip}, expected a unicast address of the host");
                found.push((format!("{field}.host_ip"), message));
            }
            let earlier = self.port_mappings.iter().take(at);
            if earlier
                .clone()
                .any(|earlier| earlier.conflicts_with(mapping))
            {
                let message = format!(
                    "host port {}/{} is already mapped",
                    mapping.host_port, mapping.protocol
                );
                found.push((field, message));
            }
        }
    }
}

impl PortMapping {
    /// Whether both mappings match the same packet to the host.
    pub fn conflicts_with(&self, other: &Self) -> bool {
        // The portmap plugin treats 0.0.0.0 as any address.
        let specific = |mapping: &Self| mapping.host_ip.filter(|ip| !ip.is_unspecified());
        let shared = match (specific(self), specific(other)) {
            (Some(one), Some(other)) => one == other,
            (None, _) | (_, None) => true,
        };
        shared && (self.host_port, self.protocol) == (other.host_port, other.protocol)
    }
}

impl Bandwidth {
    fn objections(&self, found: &mut Vec<(String, String)>) {
        let directions = [
            ("ingress", self.ingress_rate, self.ingress_burst),
            ("egress", self.egress_rate, self.egress_burst),
        ];
        for (direction, rate, burst) in directions {
            let mut report = |key: &str, message: String| {
                found.push((format!("bandwidth.{direction}_{key}"), message));
            };
            match (rate, burst) {
                (Some(_), None) => {
                    report("burst", format!("is missing, {direction}_rate requires it"))
                }
                (None, Some(_)) => {
                    report("rate", format!("is missing, {direction}_burst requires it"))
                }
                (None, None) | (Some(_), Some(_)) => {}
            }
            let (least, most) = (RATES.start(), RATES.end());
            if let Some(rate) = rate.filter(|rate| !RATES.contains(rate)) {
                let message = format!("found {rate}, expected {least} to {most} bits per second");
                report("rate", message);
            }
            let (least, most) = (BURSTS.start(), BURSTS.end());
            if let Some(burst) = burst.filter(|burst| !BURSTS.contains(burst)) {
                let message = format!(
                    "found {burst}, expected {least} to {most} bits: the largest packet must fit"
                );
                report("burst", message);
            }
        }
        if *self == Self::default() {
            let message = "sets no limit, expected ingress_rate and ingress_burst, or egress_rate and egress_burst";
            found.push(("bandwidth".to_owned(), message.to_owned()));
        }
    }
}

/// Why an argument is invalid, if it is: the format `KEY=VALUE;KEY=VALUE` has no quoting.
fn argument_problem(key: &str, value: &str) -> Option<String> {
    let reserved = RESERVED_ARGUMENTS.iter().find(|(name, _)| *name == key);
    if let Some((_, message)) = reserved {
        return Some((*message).to_owned());
    }
    if key.starts_with(TAP_ARGUMENTS) {
        return Some("is set by sliced, which configures the TAP".to_owned());
    }
    let is_valid = |text: &str| {
        text.len() <= MAX_ARGUMENT_LEN && !text.contains(|c: char| c == ';' || c.is_control())
    };
    // Plugins split a pair at every `=` and refuse one with two of them (`LoadArgs` of libcni).
    let good = |text: &str| !text.contains('=') && is_valid(text);
    match !key.is_empty() && good(key) && good(value) {
        true => None,
        false => Some(format!(
            "found \"{}\": \"{}\", expected a key and a value without \"=\", \";\" and control characters, each of at most \
             {MAX_ARGUMENT_LEN} bytes",
            shown(key),
            shown(value)
        )),
    }
}

/// The beginning of a text from a client, without control characters.
fn shown(text: &str) -> String {
    const LONGEST: usize = 60;
    let escaped: String = text
        .chars()
        .take(LONGEST)
        .flat_map(char::escape_debug)
        .collect();
    match text.chars().nth(LONGEST) {
        Some(_) => escaped + "…",
        None => escaped,
    }
}

/// Whether a packet to this address can be delivered to one host.
fn is_host_address(ip: Ipv4Addr) -> bool {
    !ip.is_multicast() && !ip.is_broadcast()
}

/// Whether the MAC is a unicast address (I/G bit, IEEE 802) and not all zeros.
fn is_valid_mac(mac: Mac) -> bool {
    mac.0[0] & 1 == 0 && mac.0 != [0; 6]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_and_the_length_of_arguments_are_limited() {
        let long = "v".repeat(MAX_ARGUMENT_LEN);
        let args = |count: usize, value: &str| CniOptions {
            args: (0..count)
                .map(|n| (format!("K{n}"), value.to_owned()))
                .collect(),
            ..CniOptions::default()
        };
        for (options, expected) in [
            (args(MAX_REQUESTED, "v"), None),
            (args(63, &long), None),
            (args(MAX_REQUESTED, &long), Some("args: found ")),
            (args(MAX_REQUESTED + 1, "v"), Some("args: found 65 entries")),
            (
                args(1, &"v".repeat(MAX_ARGUMENT_LEN + 1)),
                Some("args.K0: found "),
            ),
        ] {
            let found = options.objections();
            let found: Vec<String> = found.iter().map(|(f, m)| format!("{f}: {m}")).collect();
            match expected {
                None => assert_eq!(found, [""; 0]),
                Some(start) => {
                    assert_eq!(found.len(), 1, "{found:?}");
                    assert!(found[0].starts_with(start), "{found:?}");
                    assert!(
                        found[0].len() < 300,
                        "a long text of the client is shortened"
                    );
                }
            }
        }
    }
}
