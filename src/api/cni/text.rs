//! Parsing and formatting of CNI options on the command line and in output.
//! Out of scope: manifests, which have a field for each value.

use std::fmt;
use std::str::FromStr;

use ipnetwork::Ipv4Network;

use super::{Bandwidth, PortMapping, RequestedIp, Transport, shown};

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        })
    }
}

impl fmt::Display for PortMapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(ip) = self.host_ip {
            write!(f, "{ip}:")?;
        }
        write!(
            f,
            "{}:{}/{}",
            self.host_port, self.guest_port, self.protocol
        )
    }
}

/// `[HOST_IP:]HOST_PORT:GUEST_PORT[/PROTOCOL]`.
impl FromStr for PortMapping {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "invalid port mapping `{text}`: expected [HOST_IP:]HOST_PORT:GUEST_PORT[/tcp|udp|sctp]"
            )
        };
        let (ports, protocol) = match text.split_once('/') {
            None => (text, Transport::Tcp),
            Some((ports, "tcp")) => (ports, Transport::Tcp),
            Some((ports, "udp")) => (ports, Transport::Udp),
            Some((ports, "sctp")) => (ports, Transport::Sctp),
            Some(_) => return Err(wrong()),
        };
        let parts: Vec<&str> = ports.split(':').collect();
        let (host_ip, host, guest) = match parts[..] {
            [host, guest] => (None, host, guest),
            [ip, host, guest] => (Some(ip.parse().map_err(|_| wrong())?), host, guest),
            _ => return Err(wrong()),
        };
        let port = |text: &str| text.parse().map_err(|_| wrong());
        Ok(Self {
            host_port: port(host)?,
            guest_port: port(guest)?,
            protocol,
            host_ip,
        })
    }
}

impl fmt::Display for RequestedIp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.prefix_len {
            None => write!(f, "{}", self.ip),
            Some(prefix_len) => write!(f, "{}/{prefix_len}", self.ip),
        }
    }
}

impl FromStr for RequestedIp {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const EXPECTED: &str = "a unicast IPv4 address, A.B.C.D or A.B.C.D/LEN";
        let invalid = || format!("found \"{}\", expected {EXPECTED}", shown(text));
        let requested = match text.contains('/') {
            false => Self {
                ip: text.parse().map_err(|_| invalid())?,
                prefix_len: None,
            },
            true => {
                let net: Ipv4Network = text.parse().map_err(|_| invalid())?;
                Self {
                    ip: net.ip(),
                    prefix_len: Some(net.prefix()),
                }
            }
        };
        let ip = requested.ip;
        let is_special =
            ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() || ip.is_broadcast();
        // A /31 (RFC 3021) and a /32 have neither.
        let is_subnet_edge = |prefix: u8| {
            let subnet = Ipv4Network::new(ip, prefix).ok();
            subnet.is_some_and(|net| prefix < 31 && (ip == net.network() || ip == net.broadcast()))
        };
        match is_special
            || requested
                .prefix_len
                .is_some_and(|prefix| prefix == 0 || is_subnet_edge(prefix))
        {
            true => Err(invalid()),
            false => Ok(requested),
        }
    }
}

impl TryFrom<String> for RequestedIp {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<RequestedIp> for String {
    fn from(requested: RequestedIp) -> Self {
        requested.to_string()
    }
}

/// Parses a number with an optional suffix `k`, `M` or `G`, powers of 1000.
///
/// # Errors
/// The text is not such a number; the message describes the format.
pub fn parse_bits(text: &str) -> Result<u64, String> {
    let wrong = || format!("invalid number of bits `{text}`: expected one such as 512k, 10M or 1G");
    let (digits, unit) = match text.char_indices().last() {
        Some((at, 'k')) => (&text[..at], 1_000),
        Some((at, 'M')) => (&text[..at], 1_000_000),
        Some((at, 'G')) => (&text[..at], 1_000_000_000),
        _ => (text, 1),
    };
    let is_decimal = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    let number = digits.parse::<u64>().ok().filter(|_| is_decimal);
    number
        .and_then(|number| number.checked_mul(unit))
        .ok_or_else(wrong)
}

/// `ingress_rate=10M,ingress_burst=1M`.
impl FromStr for Bandwidth {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const KEYS: &str = "ingress_rate, ingress_burst, egress_rate or egress_burst";
        let mut bandwidth = Self::default();
        for part in text.split(',') {
            let (key, value) = part.split_once('=').ok_or_else(|| {
                format!("invalid limit `{part}`: expected KEY=BITS, where KEY is {KEYS}")
            })?;
            let place = match key {
                "ingress_rate" => &mut bandwidth.ingress_rate,
                "ingress_burst" => &mut bandwidth.ingress_burst,
                "egress_rate" => &mut bandwidth.egress_rate,
                "egress_burst" => &mut bandwidth.egress_burst,
                _ => return Err(format!("unknown limit `{key}`: expected {KEYS}")),
            };
            if place.replace(parse_bits(value)?).is_some() {
                return Err(format!("{key} is listed twice"));
            }
        }
        Ok(bandwidth)
    }
}

impl fmt::Display for Bandwidth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let limits = [
            ("ingress_rate", self.ingress_rate),
            ("ingress_burst", self.ingress_burst),
            ("egress_rate", self.egress_rate),
            ("egress_burst", self.egress_burst),
        ];
        let limits = limits
            .into_iter()
            .filter_map(|(key, bits)| Some((key, bits?)));
        let pairs: Vec<String> = limits.map(|(key, bits)| format!("{key}={bits}")).collect();
        f.write_str(&pairs.join(","))
    }
}
