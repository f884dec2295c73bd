//! The URL of an endpoint.
//! Out of scope: connections ([`super::connection`]).

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use hyper::Uri;

/// The port of etcd for clients.
const DEFAULT_PORT: u16 = 2379;

/// `https://HOST[:PORT]` or `http://HOST[:PORT]`; the default port is 2379.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Url {
    host: String,
    port: u16,
    is_tls: bool,
}

/// The error for a text that is not the URL of an endpoint.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid endpoint of etcd: {why}")]
pub struct InvalidUrl {
    // Without the text: it may have a password.
    why: &'static str,
}

const EXPECTED: &str = "expected https://HOST[:PORT] or http://HOST[:PORT]";

impl FromStr for Url {
    type Err = InvalidUrl;

    fn from_str(text: &str) -> Result<Self, InvalidUrl> {
        let fail = |why| InvalidUrl { why };
        let uri: Uri = text.parse().map_err(|_| fail(EXPECTED))?;
        let is_tls = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(fail(EXPECTED)),
        };
        let authority = uri.authority().ok_or(fail(EXPECTED))?;
        if authority.as_str().contains('@') {
            return Err(fail("the URL has a user"));
        }
        if !["", "/"].contains(&uri.path()) || uri.query().is_some() {
            return Err(fail("the URL has a path"));
        }
        let host = authority.host();
        let has_port = authority.as_str().len() > host.len();
        let port = match authority.port_u16() {
            Some(0) => return Err(fail("the port is 0")),
            Some(port) => port,
            None if has_port => return Err(fail("the port is not a number below 65536")),
            None => DEFAULT_PORT,
        };
        let bare = host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'))
            .unwrap_or(host);
        if bare.is_empty() {
            return Err(fail(EXPECTED));
        }
        Ok(Self {
            host: bare.to_owned(),
            port,
            is_tls,
        })
    }
}

impl Url {
    /// The name or the address, without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The TCP port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// `https`.
    pub fn is_tls(&self) -> bool {
        self.is_tls
    }

    /// Whether a password could be read on the network.
    pub(super) fn is_exposed(&self) -> bool {
        let address = self.host.parse::<IpAddr>();
        let is_local =
            self.host == "localhost" || address.is_ok_and(|address| address.is_loopback());
        !self.is_tls && !is_local
    }

    /// The value of the header `Host`.
    pub(super) fn authority(&self) -> String {
        match self.host.contains(':') {
            true => format!("[{}]:{}", self.host, self.port),
            false => format!("{}:{}", self.host, self.port),
        }
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.is_tls { "https" } else { "http" };
        write!(f, "{scheme}://{}", self.authority())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_a_host_with_or_without_tls() {
        for (text, expected) in [
            ("https://etcd-1.example", "https://etcd-1.example:2379"),
            ("https://10.0.0.1:2379/", "https://10.0.0.1:2379"),
            ("http://127.0.0.1:1", "http://127.0.0.1:1"),
            ("https://[2001:db8::1]:99", "https://[2001:db8::1]:99"),
            ("https://[::1]", "https://[::1]:2379"),
        ] {
            let url: Url = text.parse().unwrap();
            assert_eq!(url.to_string(), expected, "{text}");
        }
        for text in [
            "",
            "etcd",
            "10.0.0.1:2379",
            "ftp://etcd",
            "https://",
            "https://etcd/v3",
            "https://etcd/?a=b",
            "https://root:secret@etcd",
            "https://etcd:99999",
            "https://etcd:0",
            "https://etcd:",
            "/run/etcd.sock",
        ] {
            let error = text.parse::<Url>().unwrap_err().to_string();
            assert!(!error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn a_password_is_exposed_without_tls_unless_it_stays_on_this_host() {
        for (text, expected) in [
            ("http://etcd", true),
            ("http://10.0.0.1", true),
            ("http://localhost", false),
            ("http://[::1]", false),
            ("https://etcd", false),
        ] {
            assert_eq!(
                text.parse::<Url>().unwrap().is_exposed(),
                expected,
                "{text}"
            );
        }
    }
}
