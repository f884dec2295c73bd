//! The second listener of the API, on TCP or on a Unix socket: its settings, its token and its certificate, as they change.
//! Out of scope: reading the settings file ([`crate::daemon`]); connections and requests ([`crate::wire`]).
//!
//! # What a change does
//! Settings are applied as a whole or not at all: the next socket listens before the previous one is closed. If they cannot be applied, what
//! listens goes on as it is, and the settings are tried again.
//!
//! | change | effect |
//! |---|---|
//! | the address, the port, the socket | the new one is opened, then the old one is closed and its connections end |
//! | the same, if one address contains the other | the old one is closed first, and opened again if the new one cannot be opened |
//! | the token, or whether one is needed | connections end: whoever had the old token has no stream or shell left |
//! | whether there is a web page | connections end |
//! | the certificate | the next connections get it; connections that exist go on |
//! | `fleet:` is added or removed | as TLS: the listener has the certificate of the fleet or not, and without it no node is accepted; their connections end |
//! | the authorities of the fleet, or its lists of revoked certificates | the next connections are checked by them; those of nodes that are no longer accepted end |
//! | an address in use, a certificate or key that is invalid | it is reported, and what listens goes on |
//!
//! What protects the listener fails closed:
//!
//! | change | effect |
//! |---|---|
//! | a token file that is invalid | it is reported, and nothing listens until it is valid: no other token is known to be required |
//! | another token, with settings that cannot be applied | the listener that goes on needs the new token |
//! | TLS for a TCP listener without, with an invalid certificate | nothing listens until it is valid |
//!
//! | file | content |
//! |---|---|
//! | `files` | reads the token and the certificate |
//! | `fleet` | reads the certificates of the fleet, by which nodes are accepted |
//! | `listener` | follows the settings |
//! | `running` | a socket that listens |
//! | `tls` | certificate and key |
//! | `token` | the file with the token |

mod files;
mod fleet;
mod listener;
mod running;
mod tls;
mod token;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::api::manifest::settings::api::ApiListener;

pub use fleet::{FleetFiles, Peers};
pub use listener::{Target, run};

/// The settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where it listens, and for whom.
    pub listener: ApiListener,
    /// The group of a Unix socket.
    pub socket_group: String,
    /// The file with the token if the settings have none.
    pub default_token: PathBuf,
    /// Whether nodes are accepted: `fleet:` has certificates.
    pub has_fleet: bool,
}

impl Config {
    /// The directories of the files that are read, in which changes matter.
    pub fn directories(&self) -> BTreeSet<PathBuf> {
        let files = self.listener.files(&self.default_token);
        let dirs = files.filter_map(Path::parent);
        dirs.map(Path::to_owned).collect()
    }
}

/// What happened to the listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {
    /// It listens: where, and how.
    Listening(String),
    /// It does not listen: the reason.
    Failed(String),
    /// It listens with an earlier certificate, since the current one is invalid: the reason.
    Outdated(String),
    /// It listens where it did, since the settings cannot be applied: where and how, and the reason.
    Kept(String, String),
    /// Another token is valid.
    TokenChanged,
    /// Another certificate is used.
    CertificateChanged,
    /// Other certificates of nodes are accepted.
    NodesChanged,
    /// It is no longer configured.
    Off,
}

/// What has happened, and why the settings are not in effect: the last report of it, as long as it lasts.
pub struct Progress {
    /// In this order.
    pub news: Vec<Report>,
    /// `None`: they are in effect.
    pub problem: Option<Report>,
}
