//! The certificates of the fleet, by which a listener accepts other nodes: their files.
//! Out of scope: which certificates are accepted ([`crate::wire::peer`]); following the files ([`crate::daemon`]).

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::files::within;
use crate::api::meta::Name;
use crate::host::key_file::{self, Access};
use crate::wire::peer::{PeerTls, Pem};

/// The maximum size of a certificate or a key, in bytes.
const MAX_FILE: u64 = 256 << 10;
/// The maximum size of the lists of revoked certificates, in bytes: about 20,000 entries.
const MAX_LISTS: u64 = 1 << 20;

/// The files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FleetFiles {
    /// The name of this node.
    pub node: Name,
    /// The authorities.
    pub ca: PathBuf,
    /// The certificate of this node.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// The lists of revoked certificates.
    pub crl: Option<PathBuf>,
}

/// The certificates that a listener uses for nodes.
#[derive(Clone, Debug)]
pub enum Peers {
    /// There is no fleet, or no TLS in it.
    Off,
    /// They have never been valid: the reason.
    Failed(String),
    /// The last ones that were valid.
    On(Arc<PeerTls>),
}

impl FleetFiles {
    /// The directories of the files, in which changes matter.
    pub fn directories(&self) -> BTreeSet<PathBuf> {
        let files = [&self.ca, &self.cert, &self.key].into_iter();
        let dirs = files.chain(&self.crl).filter_map(|file| file.parent());
        dirs.map(Path::to_owned).collect()
    }

    /// Reads the files.
    ///
    /// # Errors
    /// A file cannot be read, or is not what it should be; the text has the setting, and nothing of the file.
    pub async fn load(&self) -> Result<PeerTls, String> {
        let files = self.clone();
        within(move || {
            let pem = Pem {
                ca: read("ca", &files.ca, Access::Others, MAX_FILE)?,
                cert: read("cert", &files.cert, Access::Others, MAX_FILE)?,
                key: read("key", &files.key, Access::Owner, MAX_FILE)?,
                crl: match &files.crl {
                    Some(crl) => Some(read("crl", crl, Access::Others, MAX_LISTS)?),
                    None => None,
                },
            };
            PeerTls::new(files.node, pem).map_err(|error| error.to_string())
        })
        .await
    }
}

fn read(setting: &str, path: &Path, access: Access, limit: u64) -> Result<Vec<u8>, String> {
    let fail = |why: String| format!("fleet.{setting}: cannot use {}: {why}", path.display());
    let bytes = key_file::read(path, access, limit).map_err(|error| fail(error.to_string()))?;
    bytes.ok_or_else(|| fail("the file does not exist".to_owned()))
}
