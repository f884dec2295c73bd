//! The daemon's settings file, `/etc/slice/sliced.yaml`.
//! Out of scope: settings that are arguments of `sliced` alone.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use super::super::allowed::directory;
use super::super::ssh_key::{EXPECTED, MAX_KEYS, SshKey};
use super::Source;
use super::keys::Mapping;
use super::keys::limits::{DEFAULT_SSH_PORT, MAX_REMOVAL_GRACE, PORTS};
use super::problem::{Location, Problem};
use super::section::{Field, Reader, Section};
use super::yaml::{self, Value};

pub mod api;
pub mod fleet;

use api::ApiSettings;
pub use fleet::FleetSettings;

pub use super::keys::limits::MIN_REMOVAL_GRACE;

/// Parses a removal grace in humantime format, such as `2s`.
///
/// # Errors
/// The text is not a valid time, or the time is not from 150ms to 1day.
pub fn parse_removal_grace(text: &str) -> Result<Duration, String> {
    let time = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    match (MIN_REMOVAL_GRACE..=MAX_REMOVAL_GRACE).contains(&time) {
        true => Ok(time),
        false => Err("it must be from 150ms to 1day".to_owned()),
    }
}

/// The settings; `None` for a setting that is not in the file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// The directories below which programs may be used.
    pub programs: Option<Vec<PathBuf>>,
    /// The directories below which kernels, initrds, images and disks may be used.
    pub images: Option<Vec<PathBuf>>,
    /// How long a file must be missing from the config directory before its groups are removed.
    pub removal_grace: Option<Duration>,
    /// The SSH server.
    pub ssh: Option<SshServer>,
    /// The keys that may log in to the SSH server.
    pub ssh_keys: Option<Vec<SshKey>>,
    /// The second listener of the API.
    pub api: Option<ApiSettings>,
    /// The fleet.
    pub fleet: Option<FleetSettings>,
}

/// The settings of the SSH server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SshServer {
    /// Where it listens.
    pub address: SocketAddr,
    /// The file with its private key; `None`: in the state directory.
    pub host_key: Option<PathBuf>,
}

/// Parses the settings file.
///
/// # Errors
/// All problems of the file.
pub fn parse(source: &Source) -> Result<Settings, Vec<Problem>> {
    let documents = yaml::read(&source.text).map_err(|fault| {
        vec![Problem {
            at: Location::new(&source.name, fault.at),
            field: String::new(),
            message: fault.message,
        }]
    })?;
    let mut reader = Reader::new(&source.name);
    let mut settings = Settings::default();
    for (at, document) in documents.iter().enumerate() {
        // A document is null if it has comments only, or after a `---` at the end.
        if document.value == Value::Null {
            continue;
        }
        if at > 0 {
            reader.refuse_at(document.at, "", "found a second document, expected one");
            continue;
        }
        let root = Field {
            path: String::new(),
            node: document,
        };
        let Some(section) = reader.section(&root, Mapping::Settings) else {
            continue;
        };
        settings.programs = directories(&mut reader, &section, "programs");
        settings.images = directories(&mut reader, &section, "images");
        settings.removal_grace = section.get("removal_grace").and_then(|field| {
            const EXPECTED: &str = "a time such as 2s";
            let text = reader.text(field, EXPECTED)?;
            let result = parse_removal_grace(text);
            if let Err(why) = &result {
                reader.unexpected(field, &format!("{EXPECTED} ({why})"));
            }
            result.ok()
        });
        settings.ssh = ssh(&mut reader, &section);
        settings.ssh_keys = ssh_keys(&mut reader, &section);
        settings.api = api::read(&mut reader, &section);
        settings.fleet = fleet::read(&mut reader, &section);
        if let Some(field) = section.get("ssh").filter(|_| !section.has("ssh_keys")) {
            reader.refuse(
                field,
                "found no ssh_keys, expected the keys that may log in",
            );
        }
    }
    let problems = reader.into_problems();
    match problems.is_empty() {
        true => Ok(settings),
        false => Err(problems),
    }
}

fn directories(reader: &mut Reader, section: &Section, key: &str) -> Option<Vec<PathBuf>> {
    const EXPECTED: &str = "a list of directories";
    let field = section.get(key)?;
    let items = reader.list(field, EXPECTED);
    let mut dirs = Vec::new();
    for item in &items {
        let Some(text) = reader.text(item, "the absolute path of a directory") else {
            continue;
        };
        match directory(text) {
            Ok(dir) => dirs.push(dir),
            Err(message) => reader.refuse(item, message),
        }
    }
    Some(dirs)
}

fn ssh(reader: &mut Reader, settings: &Section) -> Option<SshServer> {
    let section = reader.section(settings.get("ssh")?, Mapping::Ssh)?;
    let address = section.get("bind_address").map(|field| {
        const EXPECTED: &str = "an IPv4 or IPv6 address such as 127.0.0.1";
        let text = reader.text(field, EXPECTED)?;
        let address = text.parse::<IpAddr>().ok();
        if address.is_none() {
            reader.unexpected(field, EXPECTED);
        }
        address
    });
    let port = section.get("port").map(|field| {
        let port = reader.whole(field, PORTS)?;
        u16::try_from(port).ok()
    });
    let host_key = section.get("host_key").map(|field| reader.path(field));
    let address = address.unwrap_or(Some(IpAddr::V4(Ipv4Addr::LOCALHOST)))?;
    let port = port.unwrap_or(Some(DEFAULT_SSH_PORT))?;
    Some(SshServer {
        address: SocketAddr::new(address, port),
        host_key: host_key.map_or(Some(None), |path| path.map(Some))?,
    })
}

/// The server gets no flags of a signature, which say whether the user has touched the device.
const SECURITY_KEY: &str = "found a key of a security key (FIDO), expected another type: the server cannot check that the security key was touched";

fn ssh_keys(reader: &mut Reader, settings: &Section) -> Option<Vec<SshKey>> {
    let field = settings.get("ssh_keys")?;
    let items = reader.list(field, "a list of public keys");
    if items.len() > MAX_KEYS {
        let message = format!("found {} keys, expected at most {MAX_KEYS}", items.len());
        reader.refuse(field, message);
        return None;
    }
    let mut keys: Vec<SshKey> = Vec::new();
    for item in &items {
        // Not with the value: it may be a private key or a password by mistake.
        let key = match &item.node.value {
            Value::Text(text) => text.parse::<SshKey>(),
            _ => Err(format!("found no string, expected {EXPECTED}")),
        };
        match key {
            Ok(key) if keys.iter().any(|other| other.is_same_key(&key)) => {
                reader.refuse(item, format!("duplicate key {}", key.fingerprint()));
            }
            Ok(key) if key.is_of_security_key() => reader.refuse(item, SECURITY_KEY),
            Ok(key) => keys.push(key),
            Err(message) => reader.refuse(item, message),
        }
    }
    Some(keys)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<Settings, String> {
        let source = Source {
            name: "sliced.yaml".to_owned(),
            text: text.to_owned(),
        };
        parse(&source).map_err(|problems| problems[0].to_string())
    }

    #[test]
    fn both_lists_are_read_and_missing_settings_are_none() {
        let settings = parsed("images:\n  - /srv/images\n  - /dev/vg0/\n").unwrap();
        assert_eq!(settings.programs, None);
        let images = settings.images.unwrap();
        assert_eq!(images, [PathBuf::from("/srv/images"), "/dev/vg0".into()]);
        assert_eq!(parsed("# nothing\n"), Ok(Settings::default()));
        let grace = parsed("removal_grace: 1m\n").unwrap().removal_grace;
        assert_eq!(grace, Some(Duration::from_secs(60)));
        assert_eq!(parsed("images: []\n").unwrap().images, Some(vec![]));
    }

    const KEY: &str =
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAILM+rvN+ot98qgEN796jTiQfZfG1KaT0PtFDJ/XFSqti a";

    const SECURITY: &str = "sk-ssh-ed25519@openssh.com AAAAGnNrLXNzaC1lZDI1NTE5QG9wZW5zc2guY29tAAAAICFo/k5LU8863u66YC9eUO2170QduohPURkQnbLa/dczAAAABHNzaDo=";

    #[test]
    fn the_ssh_server_has_an_address_a_host_key_and_keys() {
        let parse = |ssh: &str| parsed(&format!("ssh: {ssh}\nssh_keys: ['{KEY}']\n")).unwrap();
        let settings = parse("{}");
        let ssh = settings.ssh.unwrap();
        assert_eq!(ssh.address, "127.0.0.1:2222".parse().unwrap());
        assert_eq!(ssh.host_key, None);
        assert_eq!(settings.ssh_keys.unwrap()[0].comment(), "a");
        let ssh = parse("{bind_address: \"::\", port: 22, host_key: /etc/key}")
            .ssh
            .unwrap();
        assert_eq!(ssh.address, "[::]:22".parse().unwrap());
        assert_eq!(ssh.host_key, Some("/etc/key".into()));
        let off = parsed(&format!("ssh_keys: ['{KEY}']\n")).unwrap();
        assert_eq!((off.ssh, off.ssh_keys.unwrap().len()), (None, 1));
        let nobody = parsed("ssh: {}\nssh_keys: []\n").unwrap();
        assert_eq!(nobody.ssh_keys, Some(vec![]));
        let two = format!("ssh: {{}}\nssh_keys: ['{KEY}', '{KEY}b']\n");
        for (text, place) in [
            ("ssh: {}\n", "ssh: found no ssh_keys"),
            ("ssh: {port: 0}\nssh_keys: []\n", "1:13: ssh.port: found 0"),
            (
                "ssh: {port: 65536}\nssh_keys: []\n",
                "ssh.port: found 65536",
            ),
            (
                "ssh: {bind_address: localhost}\nssh_keys: []\n",
                "ssh.bind_address: found \"localhost\"",
            ),
            (
                "ssh: {host_key: key}\nssh_keys: []\n",
                "ssh.host_key: found \"key\"",
            ),
            ("ssh: {key: 1}\nssh_keys: []\n", "unknown key"),
            ("ssh: true\nssh_keys: []\n", "ssh: found true"),
            ("ssh_keys: key\n", "ssh_keys: found \"key\""),
            ("ssh_keys: [secret]\n", "ssh_keys[0]: found an unknown type"),
            ("ssh_keys: [7]\n", "ssh_keys[0]: found no string"),
            (
                &format!("ssh_keys: ['{SECURITY}']\n"),
                "ssh_keys[0]: found a key of a security key (FIDO), expected another type",
            ),
            (&two, "ssh_keys[1]: duplicate key SHA256:"),
        ] {
            let message = parsed(text).unwrap_err();
            assert!(message.contains(place), "{text}: {message}");
        }
    }

    #[test]
    fn problems_are_reported_with_their_position() {
        for (text, place) in [
            ("images: /srv\n", "sliced.yaml:1:9: images: found"),
            (
                "images:\n  - srv\n",
                "sliced.yaml:2:5: images[0]: found \"srv\"",
            ),
            (
                "images:\n  - /\n",
                "sliced.yaml:2:5: images[0]: found \"/\"",
            ),
            ("images:\n  - /a/../b\n", "sliced.yaml:2:5: images[0]"),
            (
                "programs:\n  - 7\n",
                "sliced.yaml:2:5: programs[0]: found 7",
            ),
            ("image: []\n", "sliced.yaml:1:1: unknown key"),
            (
                "removal_grace: 0s\n",
                "sliced.yaml:1:16: removal_grace: found \"0s\", expected a time such as 2s (it must be",
            ),
            ("removal_grace: 2\n", "removal_grace: found 2"),
            (
                "images: []\nimages: []\n",
                "sliced.yaml:2:1: images: duplicate key",
            ),
            ("[", "sliced.yaml:"),
            ("images: []\n---\nimages: []\n", "expected one"),
        ] {
            let message = parsed(text).unwrap_err();
            assert!(message.contains(place), "{text}: {message}");
        }
    }
}
