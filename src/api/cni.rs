//! What is asked of the plugins of a CNI network for a VM: `cni:` of a group, or of a VM made on demand.
//! Out of scope: reading YAML; which plugin takes what.

mod text;

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use super::host_group::MAX_COUNT;
use super::meta::Name;
use super::network::Mac;

pub use text::parse_bits;

/// Ports, names, arguments and addresses that a VM may ask for, each.
pub const MAX_ASKED: usize = 64;

/// Bytes of the key, and of the value, of an argument.
const LONGEST_ARGUMENT: usize = 1024;

/// Arguments that are ours to give.
const RESERVED_ARGUMENTS: [(&str, &str); 3] = [
    ("IgnoreUnknown", "is given by sliced"),
    ("IP", "belongs in cni.ips"),
    ("MAC", "belongs in cni.mac"),
];

/// What starts an argument of the plugin that makes TAPs.
const TAP_ARGUMENTS: &str = "TC_REDIRECT_TAP_";

/// Bits per second; a fast bridge of a host carries some 10 Gbit/s.
const RATES: std::ops::RangeInclusive<u64> = 1_000..=1_000_000_000_000;

/// Bits. A bucket (`tc-tbf(8)`) that a packet does not fit into lets none pass; the plugin refuses what is beyond 2^32 bytes.
const BURSTS: std::ops::RangeInclusive<u64> = 16_000..=34_359_738_360;

/// Beyond what a network does by itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CniOptions {
    /// Ports of the host that lead to the VM: capability `portMappings`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub port_mappings: Vec<PortMapping>,
    /// How fast it may receive and send: capability `bandwidth`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<Bandwidth>,
    /// Further names for its address: capability `aliases`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub aliases: Vec<Name>,
    /// `CNI_ARGS`, seen by every plugin.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub args: BTreeMap<String, String>,
    /// Of a group one for each VM that it counts, in their order; of a VM made on demand all of its own. Capability `ips`, or the
    /// argument `IP`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ips: Vec<AskedIp>,
    /// The MAC of its interface: capability `mac`, or the argument `MAC`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mac: Option<Mac>,
}

/// A port of the host that leads to one of the VM.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortMapping {
    /// Of the host, 1 to 65535.
    pub host_port: u16,
    /// Of the VM, 1 to 65535.
    pub guest_port: u16,
    /// TCP unless something else is written.
    #[serde(default)]
    pub protocol: Transport,
    /// The address of the host that it is a port of; none: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_ip: Option<Ipv4Addr>,
}

/// What `portmap` maps.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
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

/// How fast a VM may receive (ingress) and send (egress), in bits; none: as fast as it can.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Bandwidth {
    /// Bits per second to the VM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ingress_rate: Option<u64>,
    /// Bits to the VM at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ingress_burst: Option<u64>,
    /// Bits per second from the VM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub egress_rate: Option<u64>,
    /// Bits from the VM at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub egress_burst: Option<u64>,
}

/// An address that a VM asks for: `A.B.C.D`, or `A.B.C.D/LEN` for an IPAM plugin that has no subnet of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct AskedIp {
    /// The address.
    pub ip: Ipv4Addr,
    /// Its prefix length, if that is asked for, too.
    pub prefix_len: Option<u8>,
}

impl CniOptions {
    /// Nothing is asked.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// Which addresses the VM with this index, from 1, asks for.
    pub fn ips_of(&self, index: u32) -> &[AskedIp] {
        let place = index.saturating_sub(1) as usize;
        match index > MAX_COUNT {
            true => &self.ips,
            false => self.ips.get(place).map_or(&[], std::slice::from_ref),
        }
    }

    /// Whether the VM with this index may go on with this address.
    pub fn allow(&self, index: u32, ip: Ipv4Addr) -> bool {
        let asked = self.ips_of(index);
        asked.is_empty() || asked.iter().any(|asked| asked.ip == ip)
    }

    /// What a VM made on demand asks for in a group that asks for this. Ports, addresses and a MAC are one VM's: a VM made on demand
    /// has none but its own.
    pub fn of_one(&self, own: &Self) -> Self {
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

    /// What is wrong, each with the field below `cni` that it is wrong with. A manifest and a request have the same said of them.
    pub fn objections(&self) -> Vec<(String, String)> {
        let mut found = Vec::new();
        let counts = [
            ("port_mappings", self.port_mappings.len()),
            ("aliases", self.aliases.len()),
            ("args", self.args.len()),
        ];
        for (field, count) in counts {
            if count > MAX_ASKED {
                let message = format!("found {count} entries, expected at most {MAX_ASKED}");
                found.push((field.to_owned(), message));
            }
        }
        self.object_to_ports(&mut found);
        if let Some(bandwidth) = &self.bandwidth {
            bandwidth.objections(&mut found);
        }
        let mut aliases = BTreeSet::new();
        for (at, alias) in self.aliases.iter().enumerate() {
            if !aliases.insert(alias) {
                found.push((
                    format!("aliases[{at}]"),
                    format!("\"{alias}\" is here twice"),
                ));
            }
        }
        for (key, value) in &self.args {
            if let Some(why) = argument_objection(key, value) {
                found.push((format!("args.{key}"), why));
            }
        }
        let mut ips = BTreeSet::new();
        for (at, asked) in self.ips.iter().enumerate() {
            if !ips.insert(asked.ip) {
                found.push((format!("ips[{at}]"), format!("{} is here twice", asked.ip)));
            }
        }
        if let Some(mac) = self.mac.filter(|mac| !is_a_stations(*mac)) {
            let message = format!(
                "found \"{mac}\", expected the MAC of one interface: no multicast address, and not all zeros"
            );
            found.push(("mac".to_owned(), message));
        }
        found
    }

    fn object_to_ports(&self, found: &mut Vec<(String, String)>) {
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
            let earlier = self.port_mappings.iter().take(at);
            if earlier
                .clone()
                .any(|earlier| earlier.is_the_port_of(mapping))
            {
                let message = format!(
                    "port {}/{} of the host leads somewhere already",
                    mapping.host_port, mapping.protocol
                );
                found.push((field, message));
            }
        }
    }
}

impl PortMapping {
    /// Whether a packet to the host could be meant by both.
    pub fn is_the_port_of(&self, other: &Self) -> bool {
        let shared = match (self.host_ip, other.host_ip) {
            (Some(one), Some(other)) => one == other,
            (None, _) | (_, None) => true,
        };
        shared && (self.host_port, self.protocol) == (other.host_port, other.protocol)
    }
}

impl Bandwidth {
    fn objections(&self, found: &mut Vec<(String, String)>) {
        let ways = [
            ("ingress", self.ingress_rate, self.ingress_burst),
            ("egress", self.egress_rate, self.egress_burst),
        ];
        for (way, rate, burst) in ways {
            let mut object = |key: &str, message: String| {
                found.push((format!("bandwidth.{way}_{key}"), message));
            };
            match (rate, burst) {
                (Some(_), None) => object("burst", format!("is missing, {way}_rate needs it")),
                (None, Some(_)) => object("rate", format!("is missing, {way}_burst needs it")),
                (None, None) | (Some(_), Some(_)) => {}
            }
            let (least, most) = (RATES.start(), RATES.end());
            if let Some(rate) = rate.filter(|rate| !RATES.contains(rate)) {
                let message = format!("found {rate}, expected {least} to {most} bits per second");
                object("rate", message);
            }
            let (least, most) = (BURSTS.start(), BURSTS.end());
            if let Some(burst) = burst.filter(|burst| !BURSTS.contains(burst)) {
                let message = format!(
                    "found {burst}, expected {least} to {most} bits: the largest packet must fit"
                );
                object("burst", message);
            }
        }
        if *self == Self::default() {
            let message = "limits nothing, expected ingress_rate and ingress_burst, or egress_rate and egress_burst";
            found.push(("bandwidth".to_owned(), message.to_owned()));
        }
    }
}

/// What speaks against an argument: `KEY=VALUE;KEY=VALUE` has no quoting.
fn argument_objection(key: &str, value: &str) -> Option<String> {
    let reserved = RESERVED_ARGUMENTS.iter().find(|(name, _)| *name == key);
    if let Some((_, why)) = reserved {
        return Some((*why).to_owned());
    }
    if key.starts_with(TAP_ARGUMENTS) {
        return Some("is given by sliced, which knows the TAP".to_owned());
    }
    let good = |text: &str| {
        text.len() <= LONGEST_ARGUMENT && !text.contains(|c: char| c == ';' || c.is_control())
    };
    let is_key = !key.is_empty() && !key.contains('=') && good(key);
    match is_key && good(value) {
        true => None,
        false => Some(format!(
            "found {key:?}: {value:?}, expected a key without \"=\" and \";\" and a value without \";\", both without control characters and of at most {LONGEST_ARGUMENT} bytes"
        )),
    }
}

/// Not a group's (I/G bit, IEEE 802), and not the one that stands for none.
fn is_a_stations(mac: Mac) -> bool {
    mac.0[0] & 1 == 0 && mac.0 != [0; 6]
}
