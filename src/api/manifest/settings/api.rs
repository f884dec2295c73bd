//! `api:` of the settings file: the second listener of the API.
//! Out of scope: the values of the command line, which replace those of the file ([`crate::daemon`]).

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::super::keys::Mapping;
use super::super::keys::limits::{DEFAULT_API_PORT, PORTS};
use super::super::section::{Field, Reader, Section};

/// The longest path of a Unix socket (unix(7), `sun_path`), with the temporary name that it is bound to.
pub const MAX_SOCKET: usize = 90;

/// The values as they are set; `None` for those that are not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ApiSettings {
    /// The address, or a Unix socket.
    pub bind_address: Option<BindAddress>,
    /// The TCP port.
    pub port: Option<u16>,
    /// A Unix socket.
    pub socket: Option<PathBuf>,
    /// Whether requests need a token.
    pub auth: Option<bool>,
    /// The file with the token.
    pub token_file: Option<PathBuf>,
    /// The file with the certificates.
    pub cert: Option<PathBuf>,
    /// The file with the private key.
    pub key: Option<PathBuf>,
    /// Whether the web page is served.
    pub ui: Option<bool>,
}

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BindAddress {
    /// An address of this host.
    Ip(IpAddr),
    /// The path of a Unix socket.
    Socket(PathBuf),
}

/// What a bind address is, for messages.
pub const BIND_ADDRESS: &str =
    "an IPv4 or IPv6 address such as 127.0.0.1, or the absolute path of a socket";

impl FromStr for BindAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.starts_with('/') {
            return socket_path(text).map(Self::Socket);
        }
        let address = text.parse().map(Self::Ip);
        address.map_err(|_| format!("expected {BIND_ADDRESS}"))
    }
}

/// Parses the path of a Unix socket.
///
/// # Errors
/// It is not absolute, is a directory, has `..` or control characters, or is too long.
pub fn socket_path(text: &str) -> Result<PathBuf, String> {
    let is_plain = !text.ends_with('/') && !text.contains(char::is_control);
    let is_valid = text.starts_with('/') && is_plain && !text.split('/').any(|part| part == "..");
    match (is_valid, text.len() <= MAX_SOCKET) {
        (true, true) => Ok(PathBuf::from(text)),
        (true, false) => Err(format!("expected at most {MAX_SOCKET} characters")),
        (false, _) => Err("expected the absolute path of a socket, without \"..\"".to_owned()),
    }
}

/// A listener that is valid as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiListener {
    /// Where it listens.
    pub bind: Bind,
    /// Whether requests need a token, and its file; `None`: in the state directory.
    pub auth: Option<Option<PathBuf>>,
    /// The files with the certificates and the private key.
    pub tls: Option<(PathBuf, PathBuf)>,
    /// Whether the web page is served.
    pub ui: bool,
}

impl ApiListener {
    /// Its URL for other hosts, with TLS; `None` if it has no address that other hosts reach.
    pub fn url(&self) -> Option<String> {
        match &self.bind {
            Bind::Tcp(address) if !address.ip().is_unspecified() && !address.ip().is_loopback() => {
                Some(format!("https://{address}"))
            }
            Bind::Tcp(_) | Bind::Unix(_) => None,
        }
    }
}

/// A TCP or a Unix socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Bind {
    /// TCP.
    Tcp(SocketAddr),
    /// Unix.
    Unix(PathBuf),
}

/// `127.0.0.1:8080`, `/run/api.sock`.
impl fmt::Display for Bind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => path.display().fmt(f),
        }
    }
}

/// Settings that contradict each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Contradiction {
    /// The key that is to be changed.
    pub key: &'static str,
    /// The reason, for users.
    pub message: &'static str,
}

impl ApiSettings {
    /// These settings, and those of `other` where these have none. A socket and an address replace each other.
    pub fn or(self, other: Self) -> Self {
        let is_unix = |settings: &Self| {
            settings.socket.is_some()
                || matches!(settings.bind_address, Some(BindAddress::Socket(_)))
        };
        let has_place = self.socket.is_some() || self.bind_address.is_some();
        let moves = has_place && is_unix(&self) != is_unix(&other);
        let of_tcp = |is_replaced: bool, other: Option<u16>| other.filter(|_| !is_replaced);
        Self {
            port: self.port.or(of_tcp(moves && is_unix(&self), other.port)),
            bind_address: match has_place {
                true => self.bind_address,
                false => other.bind_address,
            },
            socket: match has_place {
                true => self.socket,
                false => other.socket,
            },
            // A token that is not required on a socket is required on TCP.
            auth: self.auth.or(other.auth.filter(|auth| *auth || !moves)),
            token_file: self.token_file.or(other.token_file),
            cert: self.cert.or(other.cert.filter(|_| !moves)),
            key: self.key.or(other.key.filter(|_| !moves)),
            ui: self.ui.or(other.ui),
        }
    }

    /// The listener.
    ///
    /// # Errors
    /// Settings contradict each other.
    pub fn listener(self) -> Result<ApiListener, Contradiction> {
        let refuse = |key, message| Err(Contradiction { key, message });
        let socket = match (self.socket, self.bind_address) {
            (Some(_), Some(_)) => {
                return refuse(
                    "socket",
                    "has no effect with bind_address; expected one of both",
                );
            }
            (Some(path), None) | (None, Some(BindAddress::Socket(path))) => Err(path),
            (None, Some(BindAddress::Ip(address))) => Ok(address),
            (None, None) => Ok(IpAddr::V4(Ipv4Addr::LOCALHOST)),
        };
        let is_tcp = socket.is_ok();
        let auth = self.auth.unwrap_or(is_tcp);
        if is_tcp && !auth {
            return refuse(
                "auth.enabled",
                "found false, expected true: a TCP listener requires a token, also on 127.0.0.1, where every user of this host can connect; for access without a token, use a Unix socket",
            );
        }
        if !auth && self.token_file.is_some() {
            return refuse(
                "auth.token_file",
                "has no effect without auth.enabled: true",
            );
        }
        let tls = match (self.cert, self.key) {
            (Some(cert), Some(key)) => Some((cert, key)),
            (None, None) => None,
            (Some(_), None) => return refuse("tls", "found no key, expected cert and key"),
            (None, Some(_)) => return refuse("tls", "found no cert, expected cert and key"),
        };
        let bind = match socket {
            Ok(address) => {
                let port = self.port.unwrap_or(DEFAULT_API_PORT);
                Bind::Tcp(SocketAddr::new(address, port))
            }
            Err(_) if self.port.is_some() => return refuse("port", "has no effect with a socket"),
            Err(_) if tls.is_some() => return refuse("tls", "has no effect with a socket"),
            Err(path) => Bind::Unix(path),
        };
        let auth = auth.then_some(self.token_file);
        Ok(ApiListener {
            bind,
            auth,
            tls,
            ui: self.ui.unwrap_or(true),
        })
    }
}

/// Reads `api:`. Contradictions are problems of the file, even if the command line would resolve them.
pub(super) fn read(reader: &mut Reader, settings: &Section) -> Option<ApiSettings> {
    let field = settings.get("api")?;
    let section = reader.section(field, Mapping::Api)?;
    let before = reader.problem_count();
    let mut found = ApiSettings {
        bind_address: section
            .get("bind_address")
            .and_then(|field| parsed(reader, field, BIND_ADDRESS, str::parse)),
        port: section
            .get("port")
            .and_then(|field| u16::try_from(reader.whole(field, PORTS)?).ok()),
        socket: section
            .get("socket")
            .and_then(|field| parsed(reader, field, "the path of a socket", socket_path)),
        ui: section.get("ui").and_then(|field| reader.flag(field)),
        ..ApiSettings::default()
    };
    let nested = |reader: &mut Reader, key, mapping| {
        let field: &Field = section.get(key)?;
        reader.section(field, mapping)
    };
    if let Some(auth) = nested(reader, "auth", Mapping::ApiAuth) {
        found.auth = auth.get("enabled").and_then(|field| reader.flag(field));
        found.token_file = auth.get("token_file").and_then(|field| reader.path(field));
    }
    if let Some(tls) = nested(reader, "tls", Mapping::ApiTls) {
        let mut file = |key| tls.get(key).and_then(|field| reader.path(field));
        (found.cert, found.key) = (file("cert"), file("key"));
        if let Some(field) = section
            .get("tls")
            .filter(|_| !tls.has("cert") && !tls.has("key"))
        {
            reader.refuse(field, "found neither cert nor key, expected both");
        }
    }
    if reader.problem_count() > before {
        return None;
    }
    if let Err(Contradiction { key, message }) = found.clone().listener() {
        let place = match key.split_once('.') {
            None => section.get(key).cloned(),
            Some((outer, key)) => {
                let mapping = Mapping::ApiAuth;
                let inner = nested(reader, outer, mapping);
                inner.and_then(|inner| inner.get(key).cloned())
            }
        };
        reader.refuse(&place.unwrap_or_else(|| field.clone()), message);
        return None;
    }
    Some(found)
}

pub(super) fn parsed<T>(
    reader: &mut Reader,
    field: &Field,
    expected: &str,
    parse: impl Fn(&str) -> Result<T, String>,
) -> Option<T> {
    let text = reader.text(field, expected)?;
    match parse(text) {
        Ok(value) => Some(value),
        Err(why) => {
            let why = why.strip_prefix("expected ").unwrap_or(&why).to_owned();
            reader.unexpected(field, &why);
            None
        }
    }
}

impl ApiListener {
    /// The files that are read, and of which changes apply. `token`: the file with the token if none is set.
    pub fn files<'a>(&'a self, token: &'a Path) -> impl Iterator<Item = &'a Path> {
        let token = self
            .auth
            .as_ref()
            .map(|file| file.as_deref().unwrap_or(token));
        let tls = self.tls.iter().flat_map(|(cert, key)| [cert, key]);
        token.into_iter().chain(tls.map(PathBuf::as_path))
    }
}

#[cfg(test)]
mod tests;
