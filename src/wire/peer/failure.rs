//! Why a request for a VM on another node has no response of that node: one sentence for users, with the status.
//! Out of scope: errors of the node, which are returned as they are.

use std::io;
use std::time::Duration;

use axum::http::StatusCode;
use axum::response::Response;
use tokio_rustls::rustls::{AlertDescription, Error as TlsError};

use super::Place;
use super::verifier::{self, NotTheNode};
use crate::api::meta::Name;
use crate::api::plain_text;
use crate::wire::problem::problem;

/// The maximum length of a text of another node in an error, in bytes.
const SHOWN: usize = 200;

/// Why there is no response.
#[derive(Debug)]
pub(super) enum Failure {
    /// The node has no API.
    NoApi,
    /// The URL that the node reports is invalid.
    InvalidUrl,
    /// This node has no certificates.
    NoCertificates,
    /// Its certificates cannot be used.
    OwnCertificates(String),
    /// The connection failed.
    Unreachable(io::Error),
    /// It was not made in time.
    ConnectTimeout(Duration),
    /// Whatever answers is not the node.
    NotTheNode(NotTheNode),
    /// The node refuses the certificate of this one.
    Denied(AlertDescription),
    /// The node takes the request for one without a certificate.
    TooOld,
    /// The connection ended before the response, or the response is invalid.
    Invalid(String),
    /// The head of the response did not come in time.
    HeadTimeout(Duration),
    /// The connection was not upgraded.
    NoUpgrade,
    /// A request that may change something was sent, and there is no answer: the reason.
    Unknown(Box<Self>),
}

impl Failure {
    fn status(&self) -> StatusCode {
        match self {
            Self::ConnectTimeout(_) | Self::HeadTimeout(_) => StatusCode::GATEWAY_TIMEOUT,
            Self::Unknown(why) => why.status(),
            _ => StatusCode::BAD_GATEWAY,
        }
    }

    /// The failure of a request that may change something, after it was sent.
    pub(super) fn of_command(self) -> Self {
        match self {
            // The node has not accepted the connection.
            Self::Denied(_) => self,
            failure => Self::Unknown(Box::new(failure)),
        }
    }

    /// One sentence. `vm`: the VM that the request names, if it is one.
    pub(super) fn sentence(&self, vm: Option<&Name>, place: &Place) -> String {
        let node = &place.node;
        let subject = match vm {
            Some(vm) => format!("vm/{vm} is on node {node}, "),
            None => format!("there is no answer of node {node}, "),
        };
        let url = plain_text::line(place.url.as_deref().unwrap_or_default(), SHOWN);
        let reason = match self {
            Self::NoApi => "which has no API for other nodes: configure api: in its settings file".to_owned(),
            Self::InvalidUrl => format!("which reports the invalid URL \"{url}\", expected https://HOST:PORT"),
            Self::NoCertificates => "and this node has no valid certificate for other nodes: see ca, cert and key of fleet: in its settings file".to_owned(),
            Self::OwnCertificates(why) => format!("and the certificate of this node cannot be used: {why}"),
            Self::Unreachable(error) => format!("which is unreachable at {url}: {error}"),
            Self::ConnectTimeout(limit) => {
                format!("which has not accepted a connection at {url} within {} s", limit.as_secs())
            }
            Self::NotTheNode(error) => format!("but what answers at {url} is not that node: {error}"),
            Self::Denied(alert) => format!("which refuses the certificate of this node: {}", refusal(*alert)),
            Self::TooOld => {
                let version = plain_text::line(&place.version, SHOWN);
                let version = match version.is_empty() {
                    true => String::new(),
                    false => format!(" (sliced {version})"),
                };
                format!("which does not accept requests of other nodes{version}: upgrade it, and configure fleet: there with the same authority")
            }
            Self::Invalid(why) => format!("whose response is invalid: {}", plain_text::line(why, SHOWN)),
            Self::HeadTimeout(limit) => format!("which has not answered within {} s", limit.as_secs()),
            Self::NoUpgrade => "which has not upgraded the connection".to_owned(),
            Self::Unknown(why) => {
                return format!("{}; the command may have been executed", why.sentence(vm, place));
            }
        };
        subject + &reason
    }

    /// The response.
    pub(super) fn response(&self, vm: &Name, place: &Place) -> Response {
        problem(self.status(), self.sentence(Some(vm), place), Vec::new())
    }
}

fn refusal(alert: AlertDescription) -> &'static str {
    match alert {
        AlertDescription::CertificateRevoked => "it is revoked",
        AlertDescription::CertificateExpired => "it has expired",
        AlertDescription::UnknownCA => "it is not of the authority that the node trusts",
        _ => "it is not valid there",
    }
}

/// The error of a connection or of its handshake.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.get_ref().and_then(|inner| inner.downcast_ref()) {
            Some(tls) => of_tls(tls),
            None => Self::Unreachable(error),
        }
    }
}

fn of_tls(error: &TlsError) -> Failure {
    match error {
        TlsError::AlertReceived(alert) if is_refusal(*alert) => Failure::Denied(*alert),
        error => match verifier::cause(error) {
            Some(cause) => Failure::NotTheNode(cause.clone()),
            None => Failure::Invalid(error.to_string()),
        },
    }
}

/// The error of a request. With TLS 1.3 a client learns that its certificate is refused when it reads the first response.
impl From<hyper::Error> for Failure {
    fn from(error: hyper::Error) -> Self {
        let (mut text, mut cause) = (error.to_string(), std::error::Error::source(&error));
        while let Some(inner) = cause {
            let io = inner.downcast_ref::<io::Error>();
            let tls = io.and_then(|io| io.get_ref()?.downcast_ref());
            if let Some(TlsError::AlertReceived(alert)) = tls
                && is_refusal(*alert)
            {
                return Self::Denied(*alert);
            }
            text.push_str(&format!(": {inner}"));
            cause = inner.source();
        }
        Self::Invalid(text)
    }
}

/// Alerts that a server sends before it has accepted the certificate.
fn is_refusal(alert: AlertDescription) -> bool {
    matches!(
        alert,
        AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::CertificateRequired
            | AlertDescription::UnknownCA
            | AlertDescription::AccessDenied
            | AlertDescription::DecryptError
    )
}
