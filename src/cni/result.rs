//! The result of ADD of all versions of the spec as one type, and as text for the next plugin.
//! Out of scope: how a result is used.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Deserializer, Serialize, de};
use serde_json::value::RawValue;

use super::Version;
use super::json::{self, Object};

/// The result of an ADD (spec, section 5, ADD Success). Unknown keys are in [`raw`](Self::raw).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Serialized", into = "Serialized")]
pub struct CniResult {
    /// The version of the spec in which it is written.
    pub cni_version: Version,
    /// All interfaces that were created, including those on the host.
    pub interfaces: Vec<Interface>,
    /// All addresses that were assigned.
    pub ips: Vec<Ip>,
    /// All routes that were added.
    pub routes: Vec<Route>,
    /// DNS settings of the container.
    pub dns: Dns,
    raw: String,
}

/// An interface of a result.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// `aa:bb:cc:dd:ee:ff`, if it has one.
    #[serde(deserialize_with = "non_empty")]
    pub mac: Option<String>,
    /// In bytes, since 1.1.0.
    #[serde(deserialize_with = "non_zero")]
    pub mtu: Option<u32>,
    /// The path of its network namespace; `None` on the host.
    #[serde(deserialize_with = "non_empty")]
    pub sandbox: Option<String>,
    /// The path of the socket that is this interface, since 1.1.0.
    #[serde(rename = "socketPath", deserialize_with = "non_empty")]
    pub socket_path: Option<String>,
    /// The PCI device that is this interface, since 1.1.0.
    #[serde(rename = "pciID", deserialize_with = "non_empty")]
    pub pci_id: Option<String>,
}

/// An address of a result.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Ip {
    /// The address with its prefix.
    #[serde(deserialize_with = "cidr")]
    pub address: IpNetwork,
    /// The gateway of its subnet.
    #[serde(default, deserialize_with = "address")]
    pub gateway: Option<IpAddr>,
    /// The index of its interface in `interfaces`.
    #[serde(default)]
    pub interface: Option<usize>,
}

/// A route of a result.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Route {
    /// Its destination.
    #[serde(deserialize_with = "cidr")]
    pub dst: IpNetwork,
    /// The next hop; `None`: the gateway of the address.
    #[serde(default, deserialize_with = "address")]
    pub gw: Option<IpAddr>,
    /// The path MTU, in bytes, since 1.1.0.
    #[serde(default, deserialize_with = "non_zero")]
    pub mtu: Option<u32>,
    /// The maximum segment size to advertise, in bytes, since 1.1.0.
    #[serde(default, deserialize_with = "non_zero")]
    pub advmss: Option<u32>,
    /// The priority: a lower value takes precedence, since 1.1.0.
    #[serde(default, deserialize_with = "non_zero")]
    pub priority: Option<u32>,
    /// The routing table, since 1.1.0.
    #[serde(default)]
    pub table: Option<u32>,
    /// 0 global, 253 link, 254 host; since 1.1.0.
    #[serde(default)]
    pub scope: Option<u32>,
}

/// The DNS settings of a result.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Dns {
    /// Addresses of name servers, in order of preference.
    #[serde(deserialize_with = "null_as_default")]
    pub nameservers: Vec<String>,
    /// The local domain.
    #[serde(deserialize_with = "non_empty")]
    pub domain: Option<String>,
    /// Search domains.
    #[serde(deserialize_with = "null_as_default")]
    pub search: Vec<String>,
    /// Options of the resolver.
    #[serde(deserialize_with = "null_as_default")]
    pub options: Vec<String>,
}

/// The JSON format of a result.
#[derive(Deserialize)]
#[serde(default)]
#[derive(Default)]
struct ResultFields {
    #[serde(deserialize_with = "null_as_default")]
    interfaces: Vec<Interface>,
    #[serde(deserialize_with = "null_as_default")]
    ips: Vec<Ip>,
    #[serde(deserialize_with = "null_as_default")]
    routes: Vec<Route>,
    #[serde(deserialize_with = "null_as_default")]
    dns: Dns,
}

/// The serialized fields of a result; the others are parsed from them.
#[derive(Serialize, Deserialize)]
struct Serialized {
    raw: String,
}

impl CniResult {
    /// Parses the output of a plugin and converts it to the requested version. A result without a version has the requested one. Other
    /// keys are not changed. The error is a message.
    pub fn parse(text: &str, requested: Version) -> Result<Self, String> {
        let mut object: Object = serde_json::from_str(text).map_err(|error| error.to_string())?;
        let named: Option<String> = json::get(&object, "cniVersion")?;
        match named.filter(|version| !version.is_empty()) {
            None => {
                object.insert("cniVersion".to_owned(), json::raw(&requested));
            }
            Some(named) => {
                let named = Version::parse(&named)
                    .ok_or_else(|| format!("unknown CNI version {}", json::excerpt(&named)))?;
                if named != requested {
                    convert(&mut object, requested)?;
                }
            }
        }
        let raw = json::text(&object);
        let fields: ResultFields = serde_json::from_str(&raw).map_err(|error| error.to_string())?;
        Ok(Self {
            cni_version: requested,
            interfaces: fields.interfaces,
            ips: fields.ips,
            routes: fields.routes,
            dns: fields.dns,
            raw,
        })
    }

    /// The result as JSON text: `prevResult` of the next plugin.
    pub fn raw(&self) -> &str {
        &self.raw
    }

    /// The interface of an address, if the result specifies it.
    pub fn interface_of(&self, ip: &Ip) -> Option<&Interface> {
        self.interfaces.get(ip.interface?)
    }

    pub(super) fn to_raw(&self) -> Box<RawValue> {
        RawValue::from_string(self.raw.clone()).unwrap_or_else(|_| json::raw(&()))
    }
}

impl TryFrom<Serialized> for CniResult {
    type Error = String;

    fn try_from(serialized: Serialized) -> Result<Self, String> {
        Self::parse_own_version(&serialized.raw)
    }
}

impl From<CniResult> for Serialized {
    fn from(result: CniResult) -> Self {
        Self { raw: result.raw }
    }
}

impl CniResult {
    /// Parses a result in the version that it specifies.
    fn parse_own_version(text: &str) -> Result<Self, String> {
        let object: Object = serde_json::from_str(text).map_err(|error| error.to_string())?;
        let named: Option<String> = json::get(&object, "cniVersion")?;
        let named = named.unwrap_or_default();
        let version =
            Version::parse(&named).ok_or_else(|| format!("unknown CNI version `{named}`"))?;
        Self::parse(text, version)
    }
}

/// Converts a result to another version. Only one key was removed between the versions: up to 0.4.0 every address has its family.
/// Plugins ignore keys that were added in a later version.
fn convert(object: &mut Object, to: Version) -> Result<(), String> {
    object.insert("cniVersion".to_owned(), json::raw(&to));
    let ips: Option<Vec<Object>> = json::get(object, "ips")?;
    let Some(mut ips) = ips else {
        return Ok(());
    };
    for ip in &mut ips {
        let address: Option<String> = json::get(ip, "address")?;
        match to.has_ip_version() {
            true if address.unwrap_or_default().contains(':') => {
                ip.insert("version".to_owned(), json::raw("6"));
            }
            true => {
                ip.insert("version".to_owned(), json::raw("4"));
            }
            false => {
                ip.remove("version");
            }
        }
    }
    object.insert("ips".to_owned(), json::raw(&ips));
    Ok(())
}

/// `null` is the default value: Go writes it for an empty list.
fn null_as_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(
    from: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

/// An empty string is `None`, as in Go.
fn non_empty<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    let text: Option<String> = Option::deserialize(from)?;
    Ok(text.filter(|text| !text.is_empty()))
}

/// Zero is `None`, as in Go.
fn non_zero<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u32>, D::Error> {
    let number: Option<u32> = Option::deserialize(from)?;
    Ok(number.filter(|number| *number > 0))
}

fn address<'de, D: Deserializer<'de>>(from: D) -> Result<Option<IpAddr>, D::Error> {
    let parse = |text: String| text.parse().map_err(de::Error::custom);
    non_empty(from)?.map(parse).transpose()
}

/// An address with a prefix length. An address without one is an error.
fn cidr<'de, D: Deserializer<'de>>(from: D) -> Result<IpNetwork, D::Error> {
    let text = String::deserialize(from)?;
    let network = text.parse().ok().filter(|_| text.contains('/'));
    network.ok_or_else(|| {
        de::Error::custom(format!(
            "invalid address `{}`: expected an IP address with a prefix length",
            json::excerpt(&text)
        ))
    })
}
