//! The formats of strings: what they are called, and their patterns for a schema.
//! Out of scope: parsing them. A pattern accepts what the parser accepts, and may accept more: ranges of numbers are not part of it.

use super::super::super::life::MAX_CMDLINE;
use super::super::super::link_name;
use super::super::super::placement::{MARGIN, MAX_REPLACE_AFTER, MIN_STOP_AFTER};
use super::super::super::provision::MAX_SCRIPT;
use super::super::super::secret::MAX_NAME_LEN;
use super::super::super::ssh_key::{MAX_LINE, TYPES, is_of_security_key};
use super::super::settings::api::MAX_SOCKET;
use super::limits::{
    API_VERSION, GATEWAY_PREFIXES, KIND, MAX_NETWORK_NAME_LEN, MAX_REMOVAL_GRACE,
    MIN_REMOVAL_GRACE, POOL_PREFIXES, RANGE_PREFIXES, SIZE_UNITS,
};

/// The format of a string.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// The only value of `apiVersion`.
    ApiVersion,
    /// The only value of `kind`.
    Kind,
    /// RFC 1123 label.
    Name,
    /// Absolute path of a file.
    File,
    /// Absolute path of a directory.
    Directory,
    /// Size of a disk.
    Size,
    /// `graceful_shutdown`.
    GracePeriod,
    /// `removal_grace`.
    RemovalGrace,
    /// Kernel parameters.
    Cmdline,
    /// IPv4 address.
    Address,
    /// IPv4 address with an optional prefix length.
    AddressOrNetwork,
    /// A destination of `allow` or `drop`.
    Entry,
    /// The range of an isolated group.
    IsolatedRange,
    /// Name of a link.
    Link,
    /// Prefix of TAP names.
    LinkPrefix,
    /// Address of a host with its prefix length.
    Gateway,
    /// `FIRST-LAST`.
    AddressRange,
    /// Name of a CNI network.
    NetworkName,
    /// `UID` or `UID:GID`.
    Owner,
    /// A number of bits.
    Bits,
    /// MAC address.
    Mac,
    /// Text of a script.
    Script,
    /// Name of a secret.
    SecretName,
    /// IPv4 or IPv6 address of this host.
    ListenAddress,
    /// The same, or the absolute path of a socket.
    ListenAddressOrSocket,
    /// Absolute path of a socket.
    Socket,
    /// URL of a server.
    Endpoint,
    /// `placement.subnets.pool`.
    Pool,
    /// `replacement.stop_after`.
    StopAfter,
    /// `replacement.replace_after`.
    ReplaceAfter,
    /// Public key of OpenSSH.
    SshKey,
    /// Public key that may log in to the SSH server of the daemon.
    LoginKey,
}

/// An octet of an IPv4 address: no leading zeros, as `Ipv4Addr` requires.
const OCTET: &str = "(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])";

fn address() -> String {
    format!("{OCTET}(\\.{OCTET}){{3}}")
}

impl Format {
    /// What a value is, in Markdown.
    pub fn text(self) -> String {
        let spelled = |time| humantime::format_duration(time).to_string();
        match self {
            Self::ApiVersion => format!("`{API_VERSION}`"),
            Self::Kind => format!("`{KIND}`"),
            Self::Name => "RFC 1123 label: `a-z`, `0-9` and `-`, at most 63 characters".into(),
            Self::File => "absolute path of a file, without `..`".into(),
            Self::Directory => "absolute path of a directory other than `/`, without `..`".into(),
            Self::Size => "size: `512M`, `10G`, `1T` (also `GiB`), at most `16T`".into(),
            Self::GracePeriod => "time from `0s` to `10m`, such as `5s`".into(),
            Self::RemovalGrace => format!(
                "time from `{}` to `{}`, such as `2s`",
                spelled(MIN_REMOVAL_GRACE),
                spelled(MAX_REMOVAL_GRACE)
            ),
            Self::Cmdline => {
                format!("printable ASCII, at most {MAX_CMDLINE} characters, not `ip=`")
            }
            Self::Address => "IPv4 address".into(),
            Self::AddressOrNetwork => "`A.B.C.D` or `A.B.C.D/LEN`".into(),
            Self::Entry => "[entry](#entries-of-allow-and-drop)".into(),
            Self::IsolatedRange => {
                let (least, most) = (RANGE_PREFIXES.start(), RANGE_PREFIXES.end());
                format!("CIDR within 169.254.0.0/16, /{least} to /{most}")
            }
            Self::Link => format!("name of a link, at most {} characters", link_name::LONGEST),
            Self::LinkPrefix => format!(
                "start of a link's name, at most {} characters with the number",
                link_name::MAX_TAP_LEN
            ),
            Self::Gateway => {
                let (least, most) = (GATEWAY_PREFIXES.start(), GATEWAY_PREFIXES.end());
                format!("`A.B.C.D/LEN`, /{least} to /{most}")
            }
            Self::AddressRange => "`FIRST-LAST`, two IPv4 addresses".into(),
            Self::NetworkName => format!(
                "a letter or digit, then letters, digits, `_`, `.` and `-`, at most {MAX_NETWORK_NAME_LEN}"
            ),
            Self::Owner => "`UID` or `\"UID:GID\"`".into(),
            Self::Bits => "number of bits: `512k`, `10M`, `1G`".into(),
            Self::Mac => "unicast MAC in quotes".into(),
            Self::Script => format!("script, at most {} KiB", MAX_SCRIPT >> 10),
            Self::SecretName => format!(
                "a letter or digit, then letters, digits, `.`, `_` and `-`, at most {MAX_NAME_LEN}"
            ),
            Self::ListenAddress => "IPv4 or IPv6 address; `0.0.0.0` or `\"::\"` for all".into(),
            Self::ListenAddressOrSocket => {
                "IPv4 or IPv6 address, `0.0.0.0` or `\"::\"` for all; or absolute path of a Unix socket".into()
            }
            Self::Socket => format!(
                "absolute path of a Unix socket, without `..`, at most {MAX_SOCKET} characters"
            ),
            Self::Endpoint => "`https://HOST:PORT`, or `http://` on this host".into(),
            Self::Pool => {
                let (least, most) = (POOL_PREFIXES.start(), POOL_PREFIXES.end());
                format!("`A.B.C.D/LEN`, /{least} to /{most}, without host bits")
            }
            Self::StopAfter => format!(
                "time from `{}` to `{}`, such as `1m`",
                spelled(MIN_STOP_AFTER),
                spelled(MAX_REPLACE_AFTER)
            ),
            Self::ReplaceAfter => format!(
                "time to `{}`, such as `5m`; at least `stop_after`, `graceful_shutdown` and {}",
                spelled(MAX_REPLACE_AFTER),
                spelled(MARGIN)
            ),
            Self::SshKey => {
                format!("public key of OpenSSH: `TYPE BASE64 [COMMENT]`, at most {MAX_LINE} bytes")
            }
            Self::LoginKey => {
                format!("{}, not of a security key (`sk-...`)", Self::SshKey.text())
            }
        }
    }

    /// A regular expression (ECMA-262) that every valid value matches.
    pub fn pattern(self) -> String {
        let ip = address();
        match self {
            Self::ApiVersion => format!("^{API_VERSION}$"),
            Self::Kind => format!("^{KIND}$"),
            Self::Name => "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$".into(),
            Self::File => r"^(?!.*/\.\.(/|$))/[^\x00-\x1f\x7f-\x9f]*[^/\x00-\x1f\x7f-\x9f]$".into(),
            Self::Directory => {
                r"^(?!.*/\.\.(/|$))/[^\x00-\x1f\x7f-\x9f]*[^/\x00-\x1f\x7f-\x9f]/*$".into()
            }
            Self::Size => {
                let units: Vec<&str> = SIZE_UNITS.iter().map(|(unit, _)| *unit).collect();
                format!("^0*[1-9][0-9]*({})$", units.join("|"))
            }
            // humantime: numbers with units, also several of them; a zero needs no unit.
            Self::GracePeriod | Self::RemovalGrace | Self::StopAfter | Self::ReplaceAfter => {
                r"^\s*(0|([0-9.]+\s*[A-Za-zµ]+\s*)+)$".into()
            }
            Self::Cmdline => format!("^(?!(.* )?ip=)[ -~]{{0,{MAX_CMDLINE}}}$"),
            Self::Address => format!("^{ip}$"),
            Self::AddressOrNetwork => format!("^{ip}(/[0-9]{{1,2}})?$"),
            Self::Entry => {
                format!("^{ip}(/[0-9]{{1,2}})?(:[0-9]+(-[0-9]+)?)?(/(tcp|udp))?$")
            }
            Self::IsolatedRange => {
                format!(
                    "^169\\.254(\\.{OCTET}){{2}}/({})$",
                    prefixes(RANGE_PREFIXES)
                )
            }
            Self::Link | Self::LinkPrefix => {
                let most = match self {
                    Self::Link => link_name::LONGEST,
                    // Followed by a number.
                    _ => link_name::MAX_TAP_LEN - 1,
                };
                format!("^[A-Za-z0-9][A-Za-z0-9_.-]{{0,{}}}$", most - 1)
            }
            Self::Gateway => format!("^{ip}/({})$", prefixes(GATEWAY_PREFIXES)),
            Self::Pool => format!("^{ip}/({})$", prefixes(POOL_PREFIXES)),
            Self::AddressRange => format!(r"^\s*{ip}\s*-\s*{ip}\s*$"),
            Self::NetworkName => {
                let most = MAX_NETWORK_NAME_LEN - 1;
                format!("^[A-Za-z0-9][A-Za-z0-9_.-]{{0,{most}}}$")
            }
            Self::Owner => "^[0-9]+(:[0-9]+)?$".into(),
            Self::Bits => "^[0-9]+[kMG]?$".into(),
            Self::Mac => "^[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5}$".into(),
            Self::Script => format!(r"^[^\x00]{{0,{MAX_SCRIPT}}}$"),
            Self::SecretName => {
                let most = MAX_NAME_LEN - 1;
                format!("^[A-Za-z0-9][A-Za-z0-9._-]{{0,{most}}}$")
            }
            Self::ListenAddress => "^[0-9a-fA-F.:]+$".into(),
            Self::ListenAddressOrSocket => {
                let path = Self::Socket.pattern();
                format!("^[0-9a-fA-F.:]+$|{path}")
            }
            Self::Socket => {
                let most = MAX_SOCKET - 2;
                format!(
                    r"^(?!.*/\.\.(/|$))/[^\x00-\x1f\x7f-\x9f]{{0,{most}}}[^/\x00-\x1f\x7f-\x9f]$"
                )
            }
            Self::Endpoint => r"^https?://[A-Za-z0-9.:\[\]-]+/?$".into(),
            Self::SshKey => key_of(&TYPES),
            Self::LoginKey => {
                let types = TYPES.into_iter().filter(|kind| !is_of_security_key(kind));
                key_of(&types.collect::<Vec<_>>())
            }
        }
    }
}

fn key_of(types: &[&str]) -> String {
    let types = types.join("|");
    format!("^\\s*({types})[ \\t]+[A-Za-z0-9+/=]+([ \\t].*)?$")
}

/// The prefix lengths of a range; the parser also accepts a leading zero.
fn prefixes(range: std::ops::RangeInclusive<u8>) -> String {
    let all: Vec<String> = range.map(|prefix| format!("0*{prefix}")).collect();
    all.join("|")
}
