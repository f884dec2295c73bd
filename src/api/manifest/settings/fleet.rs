//! `fleet:` of the settings file: the etcd cluster and the name of this node.
//! Out of scope: connecting; reading the files.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use super::super::super::meta::Name;
use super::super::keys::Mapping;
use super::super::keys::limits::{DEFAULT_VCPUS_PER_CPU, VCPUS_PER_CPU};
use super::super::labels;
use super::super::section::{Field, Reader, Section};
use super::api::parsed;

/// The fleet that this host is a node of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FleetSettings {
    /// The members of the etcd cluster, at least one.
    pub endpoints: Vec<Endpoint>,
    /// The files of TLS; `None` with `http://` only.
    pub tls: Option<TlsFiles>,
    /// The file with the lists of revoked certificates.
    pub crl: Option<PathBuf>,
    /// The name of this node; `None`: the host name.
    pub node: Option<Name>,
    /// The labels of this node.
    pub labels: BTreeMap<String, String>,
    /// The user of etcd; `None`: the name of the node.
    pub user: Option<Name>,
    /// The file with the password of the user; `None`: no authentication by name.
    pub password_file: Option<PathBuf>,
    /// Whether this daemon may be elected to schedule.
    pub control: bool,
    /// vCPUs of VMs for each CPU of this node.
    pub vcpus_per_cpu: u64,
    /// The URL of the API of this node, for other nodes; `None`: that of `api:`.
    pub url: Option<Endpoint>,
}

/// The files of mutual TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificates of the authorities.
    pub ca: PathBuf,
    /// The certificate of this node.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// A member of an etcd cluster: `https://HOST:PORT` or `http://HOST:PORT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Whether the connection is encrypted.
    pub is_encrypted: bool,
    /// A host name or an address.
    pub host: String,
    /// The TCP port.
    pub port: u16,
}

/// What the URL of an API is, for messages.
const URL: &str = "https://HOST:PORT, such as https://10.0.0.1:8443";
/// What an endpoint is, for messages.
const ENDPOINT: &str = "https://HOST:PORT, such as https://10.0.0.1:2379";

impl std::str::FromStr for Endpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || format!("expected {ENDPOINT}");
        let (scheme, rest) = text.split_once("://").ok_or_else(expected)?;
        let is_encrypted = match scheme {
            "https" => true,
            "http" => false,
            _ => return Err(expected()),
        };
        let authority = rest.strip_suffix('/').unwrap_or(rest);
        let (host, port) = authority.rsplit_once(':').ok_or_else(expected)?;
        let port = port.parse().ok().filter(|port| *port > 0);
        let bare = host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'));
        let is_valid = match bare {
            Some(address) => matches!(address.parse(), Ok(IpAddr::V6(_))),
            None => is_host(host),
        };
        match (is_valid, port) {
            (true, Some(port)) => Ok(Self {
                is_encrypted,
                host: bare.unwrap_or(host).to_owned(),
                port,
            }),
            _ => Err(expected()),
        }
    }
}

fn is_host(text: &str) -> bool {
    let is_label = |label: &str| {
        !label.is_empty()
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    text.len() <= 253 && text.split('.').all(is_label)
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let scheme = match self.is_encrypted {
            true => "https",
            false => "http",
        };
        match self.host.contains(':') {
            true => write!(f, "{scheme}://[{}]:{}", self.host, self.port),
            false => write!(f, "{scheme}://{}:{}", self.host, self.port),
        }
    }
}

impl Endpoint {
    /// Whether packets to it do not leave this host.
    fn is_loopback(&self) -> bool {
        let address = self.host.parse::<IpAddr>();
        self.host == "localhost" || address.is_ok_and(|address| address.is_loopback())
    }
}

/// Reads `fleet:`.
pub(super) fn read(reader: &mut Reader, settings: &Section) -> Option<FleetSettings> {
    let field = settings.get("fleet")?;
    let section = reader.section(field, Mapping::Fleet)?;
    let before = reader.problem_count();
    let endpoints = endpoints(reader, field, &section);
    let mut file = |key| section.get(key).and_then(|field| reader.path(field));
    let tls = (file("ca"), file("cert"), file("key"));
    let (password_file, crl) = (file("password_file"), file("crl"));
    let mut name = |key| {
        let field = section.get(key)?;
        parsed(reader, field, "a name", |text| {
            Name::new(text).map_err(|error| error.to_string())
        })
    };
    let (node, user) = (name("node"), name("user"));
    let labels = section
        .get("labels")
        .map(|field| labels::read(reader, field));
    let vcpus_per_cpu = section
        .get("vcpus_per_cpu")
        .and_then(|field| reader.whole(field, VCPUS_PER_CPU));
    let url = section.get("url").and_then(|field| url(reader, field));
    let control = section.get("control").and_then(|field| reader.flag(field));
    if let Some(field) = section.get("user").filter(|_| password_file.is_none()) {
        reader.refuse(field, "has no effect without password_file");
    }
    let is_encrypted = endpoints.iter().any(|endpoint| endpoint.is_encrypted);
    let tls = match tls {
        (Some(ca), Some(cert), Some(key)) => Some(TlsFiles { ca, cert, key }),
        (None, None, None) if is_encrypted => {
            reader.refuse(
                field,
                "found https:// without ca, cert and key, expected all three",
            );
            None
        }
        (None, None, None) if section.has("crl") => {
            reader.refuse(field, "crl has no effect without ca, cert and key");
            None
        }
        (None, None, None) if !is_encrypted => None,
        _ => {
            reader.refuse(
                field,
                "found some of ca, cert and key, expected all three or none",
            );
            None
        }
    };
    (reader.problem_count() == before && !endpoints.is_empty()).then(|| FleetSettings {
        endpoints,
        tls,
        crl,
        node,
        labels: labels.unwrap_or_default(),
        user,
        password_file,
        control: control.unwrap_or(true),
        vcpus_per_cpu: vcpus_per_cpu.unwrap_or(DEFAULT_VCPUS_PER_CPU),
        url,
    })
}

fn endpoints(reader: &mut Reader, fleet: &Field, section: &Section) -> Vec<Endpoint> {
    let Some(field) = section.get("endpoints") else {
        reader.refuse(
            fleet,
            "found no endpoints, expected those of the etcd cluster",
        );
        return Vec::new();
    };
    let items = reader.list(field, "a list of endpoints");
    if items.is_empty() {
        reader.refuse(field, "found no endpoint, expected at least one");
    }
    let mut found = Vec::new();
    for item in &items {
        let Some(endpoint) = parsed::<Endpoint>(reader, item, ENDPOINT, str::parse) else {
            continue;
        };
        if !endpoint.is_encrypted && !endpoint.is_loopback() {
            reader.refuse(
                item,
                "found http:// to another host, expected https://: the desired state of the fleet is not sent unencrypted",
            );
            continue;
        }
        found.push(endpoint);
    }
    found
}

/// The URL of the API: requests between nodes are encrypted.
fn url(reader: &mut Reader, field: &Field) -> Option<Endpoint> {
    let url = parsed::<Endpoint>(reader, field, URL, str::parse)?;
    if !url.is_encrypted {
        reader.refuse(field, format!("found http://, expected {URL}"));
        return None;
    }
    Some(url)
}

#[cfg(test)]
mod tests {
    use super::super::super::Source;
    use super::super::parse;
    use super::*;

    const TLS: &str = "ca: /f/ca.pem, cert: /f/cert.pem, key: /f/key.pem";

    fn read(fleet: &str) -> Result<FleetSettings, String> {
        let source = Source {
            name: "sliced.yaml".to_owned(),
            text: format!("fleet: {{{fleet}}}\n"),
        };
        match parse(&source) {
            Ok(settings) => Ok(settings.fleet.expect("a fleet")),
            Err(problems) => Err(problems.iter().map(|one| format!("{one}\n")).collect()),
        }
    }

    #[test]
    fn a_fleet_has_endpoints_a_node_and_labels() {
        let found = read(&format!(
            "endpoints: ['https://10.0.0.1:2379', 'https://[fd00::1]:2379/'], {TLS}, node: node-a, labels: {{zone: a, gpu: ''}}, password_file: /f/password, control: false, vcpus_per_cpu: 8, url: 'https://10.0.0.9:8443'"
        ))
        .unwrap();
        let shown: Vec<String> = found.endpoints.iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["https://10.0.0.1:2379", "https://[fd00::1]:2379"]);
        assert_eq!(found.tls.unwrap().key, PathBuf::from("/f/key.pem"));
        assert_eq!(found.node.unwrap().as_str(), "node-a");
        assert_eq!(found.labels["zone"], "a");
        assert_eq!(found.labels["gpu"], "");
        assert!(!found.control);
        assert_eq!(found.vcpus_per_cpu, 8);
        assert_eq!(found.url.unwrap().to_string(), "https://10.0.0.9:8443");
        let least = read("endpoints: ['http://127.0.0.1:2379']").unwrap();
        assert_eq!((least.tls, least.crl, least.control), (None, None, true));
        let revoking = read(&format!(
            "endpoints: ['https://10.0.0.1:2379'], {TLS}, crl: /f/crl.pem"
        ));
        assert_eq!(revoking.unwrap().crl, Some(PathBuf::from("/f/crl.pem")));
    }

    #[test]
    fn what_cannot_work_is_refused_with_the_field_and_what_is_expected() {
        for (fleet, problem) in [
            ("node: a", "endpoints"),
            ("endpoints: []", "found no endpoint"),
            ("endpoints: ['10.0.0.1:2379']", "expected https://HOST:PORT"),
            (
                "endpoints: ['https://10.0.0.1']",
                "expected https://HOST:PORT",
            ),
            (
                "endpoints: ['https://10.0.0.1:0']",
                "expected https://HOST:PORT",
            ),
            ("endpoints: ['https://a b:1']", "expected https://HOST:PORT"),
            (
                "endpoints: ['https://[10.0.0.1]:1']",
                "expected https://HOST:PORT",
            ),
            (
                "endpoints: ['https://u:p@h:1']",
                "expected https://HOST:PORT",
            ),
            (
                "endpoints: ['http://10.0.0.1:2379']",
                "not sent unencrypted",
            ),
            ("endpoints: ['https://10.0.0.1:2379']", "expected all three"),
            (
                "endpoints: ['http://localhost:1'], ca: /f/ca",
                "expected all three or none",
            ),
            (
                "endpoints: ['http://localhost:1'], user: a",
                "has no effect without password_file",
            ),
            (
                "endpoints: ['http://localhost:1'], crl: /f/crl.pem",
                "crl has no effect without ca, cert and key",
            ),
            ("endpoints: ['http://localhost:1'], node: A", "node"),
            (
                "endpoints: ['http://localhost:1'], vcpus_per_cpu: 0",
                "vcpus_per_cpu",
            ),
            (
                "endpoints: ['http://localhost:1'], url: 'http://a:1'",
                "expected https://",
            ),
            (
                "endpoints: ['http://localhost:1'], labels: {-a: b}",
                "labels.-a",
            ),
            (
                "endpoints: ['http://localhost:1'], labels: {a: 1}",
                "labels.a",
            ),
            (
                "endpoints: ['http://localhost:1'], nodes: a",
                "did you mean",
            ),
        ] {
            let problems = read(fleet).unwrap_err();
            assert!(problems.contains(problem), "{fleet}: {problems}");
        }
    }
}
