//! What a client needs to know: endpoints, certificates, user, deadlines.
//! Out of scope: reading the password from its file.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use super::url::Url;

/// The settings of a client.
#[derive(Clone, Debug)]
pub struct Config {
    /// The members of the cluster, at least one. The first is preferred until it fails.
    pub endpoints: Vec<Url>,
    /// A file in PEM with the certificates of the authorities that are trusted; those of the host are not. Required for `https`.
    pub ca: Option<PathBuf>,
    /// The certificate of this client, without a common name.
    pub identity: Option<Identity>,
    /// The user of this client.
    pub credentials: Option<Credentials>,
    /// The time that a request may take, with all its attempts. Of a list: each page.
    pub deadline: Duration,
    /// The interval in which a watch checks that its endpoint has contact to the majority and that the user may still read.
    pub watch_check_interval: Duration,
}

impl Config {
    /// The default of [`Config::deadline`]: longer than an election with the default settings of etcd.
    pub const DEADLINE: Duration = Duration::from_secs(6);
    /// The default of [`Config::watch_check_interval`].
    pub const WATCH_CHECK_INTERVAL: Duration = Duration::from_secs(10);

    /// A client of these endpoints, without certificates and user, with the default deadlines.
    pub fn new(endpoints: Vec<Url>) -> Self {
        Self {
            endpoints,
            ca: None,
            identity: None,
            credentials: None,
            deadline: Self::DEADLINE,
            watch_check_interval: Self::WATCH_CHECK_INTERVAL,
        }
    }

    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let Some(first) = self.endpoints.first() else {
            return Err(ConfigError::NoEndpoint);
        };
        if self.deadline.is_zero() || self.watch_check_interval.is_zero() {
            return Err(ConfigError::ZeroDuration);
        }
        let is_tls = self.endpoints.iter().any(Url::is_tls);
        if is_tls && self.ca.is_none() {
            return Err(ConfigError::NoAuthority(first.clone()));
        }
        let exposed = self.endpoints.iter().find(|url| url.is_exposed());
        match (exposed, &self.credentials) {
            (Some(url), Some(_)) => Err(ConfigError::PasswordExposed(url.clone())),
            _ => Ok(()),
        }
    }
}

/// A client certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The certificate, with its chain, in PEM.
    pub cert: PathBuf,
    /// Its private key in PEM.
    pub key: PathBuf,
}

/// A user of etcd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credentials {
    /// The name.
    pub user: String,
    /// The password.
    pub password: Password,
}

/// A password. It is never displayed.
#[derive(Clone, PartialEq, Eq)]
pub struct Password(String);

impl Password {
    /// This password.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    pub(super) fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(..)")
    }
}

/// Settings with which there is no client.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// There is no endpoint.
    #[error("no endpoint of etcd is configured")]
    NoEndpoint,
    /// A duration is 0.
    #[error("a deadline of the client of etcd is 0")]
    ZeroDuration,
    /// `https` without an authority.
    #[error("no certificate authority is configured for {0}")]
    NoAuthority(Url),
    /// A password would be sent without encryption.
    #[error("the password would be sent to {0} without encryption: use https")]
    PasswordExposed(Url),
    /// A file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The error.
        source: std::io::Error,
    },
    /// A file has no certificate or no key.
    #[error("{} has no {expected} in PEM", path.display())]
    NotPem {
        /// The file.
        path: PathBuf,
        /// `certificate` or `private key`.
        expected: &'static str,
    },
    /// The certificates cannot be used.
    #[error("the certificate of this client cannot be used: {0}")]
    Tls(#[from] tokio_rustls::rustls::Error),
}
