//! The second listener of the API, on TCP or on a Unix socket: its settings, its token and its certificate, as they change.
//! Out of scope: reading the settings file ([`crate::daemon`]); connections and requests ([`crate::wire`]).
//!
//! # What a change does
//! | change | effect |
//! |---|---|
//! | the address, the port, the socket | the old socket is closed, its connections end, the new one is opened |
//! | the token, or whether one is needed | connections end: whoever had the old token has no stream or shell left |
//! | whether there is a web page | connections end |
//! | the certificate | the next connections get it; connections that exist go on |
//! | a certificate or key that is invalid | it is reported, the previous pair stays in use |
//! | a token file that is invalid | it is reported, and nothing listens until it is valid: no other token is known to be wanted |
//!
//! | file | content |
//! |---|---|
//! | `listener` | opens, closes and serves |
//! | `tls` | certificate and key |
//! | `token` | the file with the token |

mod listener;
mod tls;
mod token;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::api::manifest::settings::api::ApiListener;

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
    /// Another token is valid.
    TokenChanged,
    /// Another certificate is used.
    CertificateChanged,
    /// It is no longer configured.
    Off,
}
