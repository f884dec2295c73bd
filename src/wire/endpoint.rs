//! Where a client finds the daemon: a Unix socket, or a URL.
//! Out of scope: requests ([`super::client`]).

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use hyper::Uri;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, DEFAULT_VERSIONS, RootCertStore};

/// Timeout for a TCP connection, and for the TLS handshake.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// The place of a daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Url {
    /// A Unix socket.
    Unix(PathBuf),
    /// A host, with or without TLS.
    Tcp {
        /// Name or address, without brackets.
        host: String,
        /// TCP port.
        port: u16,
        /// `https`.
        is_tls: bool,
    },
}

const EXPECTED: &str =
    "expected https://HOST[:PORT], http://HOST[:PORT], unix:///PATH or the path of a socket";

impl FromStr for Url {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let is_path = ["/", "./", "../"]
            .iter()
            .any(|start| text.starts_with(start));
        if let Some(path) = text.strip_prefix("unix://").or(is_path.then_some(text)) {
            return match path.starts_with('/') || is_path {
                true => Ok(Self::Unix(PathBuf::from(path))),
                false => Err(EXPECTED.to_owned()),
            };
        }
        let uri: Uri = text.parse().map_err(|_| EXPECTED.to_owned())?;
        let is_tls = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(EXPECTED.to_owned()),
        };
        let authority = uri.authority().ok_or(EXPECTED)?;
        if authority.as_str().contains('@') {
            return Err("the URL has a user; use --token-file for the token".to_owned());
        }
        if !["", "/"].contains(&uri.path()) || uri.query().is_some() {
            return Err("the URL has a path; expected a host and a port".to_owned());
        }
        let host = authority.host();
        let host = host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'))
            .unwrap_or(host);
        let default = if is_tls { 443 } else { 80 };
        // `host:` and `host:99999` have no valid port.
        let has_port = authority.as_str().len() > authority.host().len();
        let port = match (authority.port_u16(), has_port) {
            (Some(port), _) => port,
            (None, false) => default,
            (None, true) => return Err("invalid port".to_owned()),
        };
        if host.is_empty() || port == 0 {
            return Err(EXPECTED.to_owned());
        }
        Ok(Self::Tcp {
            host: host.to_owned(),
            port,
            is_tls,
        })
    }
}

impl Url {
    /// Whether a token could be read on the network.
    pub fn is_exposed(&self) -> bool {
        match self {
            Self::Tcp { host, is_tls, .. } => {
                let address = host.parse::<std::net::IpAddr>();
                let is_local =
                    host == "localhost" || address.is_ok_and(|address| address.is_loopback());
                !is_tls && !is_local
            }
            Self::Unix(_) => false,
        }
    }

    /// The host and the port of the header `Host`.
    pub(super) fn authority(&self) -> String {
        match self {
            Self::Unix(_) => "sliced".to_owned(),
            Self::Tcp { host, port, .. } if host.contains(':') => format!("[{host}]:{port}"),
            Self::Tcp { host, port, .. } => format!("{host}:{port}"),
        }
    }
}

/// `/run/slice/sliced.sock`, `https://host:8080`.
impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => path.display().fmt(f),
            Self::Tcp { is_tls: true, .. } => write!(f, "https://{}", self.authority()),
            Self::Tcp { is_tls: false, .. } => write!(f, "http://{}", self.authority()),
        }
    }
}

/// A URL with what is needed to connect to it.
#[derive(Clone)]
pub(super) struct Endpoint {
    pub(super) url: Url,
    tls: Option<Arc<ClientConfig>>,
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.url.fmt(f)
    }
}

/// A connection to the daemon.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

impl Endpoint {
    /// A Unix socket.
    pub(super) fn unix(path: PathBuf) -> Self {
        Self {
            url: Url::Unix(path),
            tls: None,
        }
    }

    /// A URL. Without a file of authorities, those of this host are trusted.
    ///
    /// # Errors
    /// There is no authority. The text says why.
    pub(super) fn of(url: Url, authorities: Option<&Path>) -> Result<Self, String> {
        let is_tls = matches!(url, Url::Tcp { is_tls: true, .. });
        let tls = is_tls.then(|| config(authorities)).transpose()?;
        Ok(Self { url, tls })
    }

    /// The value of the header `Host`.
    pub(super) fn host(&self) -> String {
        self.url.authority()
    }

    pub(super) async fn connect(&self) -> io::Result<Box<dyn Stream>> {
        let (host, port) = match &self.url {
            Url::Unix(path) => return Ok(Box::new(UnixStream::connect(path).await?)),
            Url::Tcp { host, port, .. } => (host.as_str(), *port),
        };
        let connecting = async {
            let stream = TcpStream::connect((host, port)).await?;
            stream.set_nodelay(true)?;
            let Some(config) = &self.tls else {
                return Ok(Box::new(stream) as Box<dyn Stream>);
            };
            let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
            let connector = TlsConnector::from(Arc::clone(config));
            let stream = connector.connect(name, stream).await?;
            Ok(Box::new(stream) as Box<dyn Stream>)
        };
        match tokio::time::timeout(CONNECT_TIMEOUT, connecting).await {
            Ok(connected) => connected,
            Err(_) => {
                let seconds = CONNECT_TIMEOUT.as_secs();
                let message = format!("no connection within {seconds} s");
                Err(io::Error::new(io::ErrorKind::TimedOut, message))
            }
        }
    }
}

fn config(authorities: Option<&Path>) -> Result<Arc<ClientConfig>, String> {
    let mut roots = RootCertStore::empty();
    let of_host = || rustls_native_certs::load_native_certs().certs;
    let certificates = match authorities {
        None => of_host(),
        Some(file) => read(file)?,
    };
    roots.add_parsable_certificates(certificates);
    if roots.is_empty() {
        return Err(match authorities {
            Some(file) => format!("{} has no certificate in PEM", file.display()),
            None => {
                "this host has no certificate authorities; use --ca with the certificate of the authority"
                    .to_owned()
            }
        });
    }
    // Named, since another crate could install another default.
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let builder = builder
        .with_protocol_versions(DEFAULT_VERSIONS)
        .map_err(|error| error.to_string())?;
    let mut config = builder.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

fn read(file: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let fail = |why: String| format!("cannot read {}: {why}", file.display());
    let text = std::fs::read(file).map_err(|error| fail(error.to_string()))?;
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    all.map_err(|_| fail("it is not in PEM".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_a_socket_or_a_host() {
        for (text, expected) in [
            ("/run/slice/sliced.sock", "/run/slice/sliced.sock"),
            ("./sliced.sock", "./sliced.sock"),
            ("unix:///run/api.sock", "/run/api.sock"),
            ("http://127.0.0.1:8080", "http://127.0.0.1:8080"),
            ("http://localhost", "http://localhost:80"),
            ("https://host.example/", "https://host.example:443"),
            ("https://[::1]:8080", "https://[::1]:8080"),
            ("https://[2001:db8::1]", "https://[2001:db8::1]:443"),
        ] {
            let url: Url = text.parse().unwrap();
            assert_eq!(url.to_string(), expected, "{text}");
        }
        for text in [
            "",
            "host",
            "host:8080",
            "ftp://host",
            "https://",
            "https://host/v1",
            "https://host/?token=x",
            "https://token@host",
            "https://host:99999",
            "https://host:0",
            "https://host:",
            "unix://relative",
        ] {
            assert!(text.parse::<Url>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_token_is_exposed_without_tls_unless_it_stays_on_this_host() {
        for (text, expected) in [
            ("http://host:8080", true),
            ("http://10.0.0.1", true),
            ("http://localhost:8080", false),
            ("http://127.0.0.1:8080", false),
            ("http://[::1]:8080", false),
            ("https://host", false),
            ("/run/api.sock", false),
        ] {
            let url: Url = text.parse().unwrap();
            assert_eq!(url.is_exposed(), expected, "{text}");
        }
    }
}
