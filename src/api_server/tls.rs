//! The certificate and the private key of the listener.
//! Out of scope: connections with TLS ([`crate::wire`]).

use std::path::Path;
use std::sync::Arc;

use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::NoServerSessionStorage;
use tokio_rustls::rustls::sign::{CertifiedKey, SingleCertAndKey};
use tokio_rustls::rustls::{ConfigBuilder, DEFAULT_VERSIONS, ServerConfig, WantsVerifier};

use crate::host::key_file::{self, Access};
use crate::wire::peer::{PeerTls, ServerCertificates};

/// The maximum size of each file, in bytes.
const MAX_FILE: u64 = 256 << 10;

/// The texts of the files of a certificate and its key.
type Source = (Vec<u8>, Vec<u8>);

/// A certificate with its key, as a server uses them.
#[derive(Clone)]
pub(super) struct Identity {
    /// What the files contain, to notice a change; `None`: the certificate is that of the fleet.
    source: Option<Source>,
    /// The certificates of the fleet, if nodes are accepted.
    peers: Option<Arc<PeerTls>>,
    /// For connections.
    pub(super) config: Arc<ServerConfig>,
}

impl PartialEq for Identity {
    fn eq(&self, other: &Self) -> bool {
        (&self.source, &self.peers) == (&other.source, &other.peers)
    }
}

impl Identity {
    /// Whether both show the same certificate to clients that are no nodes.
    pub(super) fn is_same_certificate(&self, other: &Self) -> bool {
        let shown = |it: &Self| it.peers.as_ref().map(|it| it.certificate().cert.clone());
        self.source == other.source && (self.source.is_some() || shown(self) == shown(other))
    }

    /// That of these files; with `peers`, nodes are accepted.
    ///
    /// # Errors
    /// A file cannot be read or is invalid, or the key is not that of the certificate. The text contains nothing of the files.
    pub(super) fn of_files(
        (cert, key): (&Path, &Path),
        peers: Option<Arc<PeerTls>>,
    ) -> Result<Self, String> {
        let (own, source) = load(cert, key)?;
        let of_cert = |why: String| format!("api.tls.cert: {why}");
        let mut config = match &peers {
            None => builder()
                .map_err(of_cert)?
                .with_no_client_auth()
                .with_cert_resolver(Arc::new(SingleCertAndKey::from(own))),
            Some(peers) => for_nodes(peers, Some(own))?,
        };
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self {
            source: Some(source),
            peers,
            config: Arc::new(config),
        })
    }

    /// That of the fleet.
    ///
    /// # Errors
    /// It has no name and no address of the host, so that clients that are no nodes do not accept it.
    pub(super) fn of_fleet(peers: Arc<PeerTls>) -> Result<Self, String> {
        if !peers.has_hosts() {
            return Err(
                "fleet.cert: the certificate has no subject alternative names, expected the DNS names or addresses of this host, by which clients of the API connect; or configure another certificate in api.tls"
                    .to_owned(),
            );
        }
        let mut config = for_nodes(&peers, None)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self {
            source: None,
            peers: Some(peers),
            config: Arc::new(config),
        })
    }
}

fn builder() -> Result<ConfigBuilder<ServerConfig, WantsVerifier>, String> {
    // Named, since another crate could install another default.
    let builder = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let builder = builder.with_protocol_versions(DEFAULT_VERSIONS);
    builder.map_err(|error| error.to_string())
}

fn for_nodes(peers: &Arc<PeerTls>, others: Option<CertifiedKey>) -> Result<ServerConfig, String> {
    let certificates = ServerCertificates {
        fleet: Arc::clone(peers.certificate()),
        others: others.map(Arc::new),
    };
    let verifier = peers.client_verifier().map_err(|error| error.to_string())?;
    let mut config = builder()?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(certificates));
    // Each connection is checked against the current lists of revoked certificates.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

fn load(cert: &Path, key: &Path) -> Result<(CertifiedKey, Source), String> {
    let of_cert = |why: String| {
        format!(
            "api.tls.cert: cannot use the certificate {}: {why}",
            cert.display()
        )
    };
    let of_key = |why: String| {
        format!(
            "api.tls.key: cannot use the private key {}: {why}",
            key.display()
        )
    };
    let cert_text = read(cert, Access::Others).map_err(of_cert)?;
    let key_text = read(key, Access::Owner).map_err(of_key)?;
    let chain: Result<Vec<CertificateDer>, _> =
        CertificateDer::pem_slice_iter(&cert_text).collect();
    let chain = chain.map_err(|_| of_cert("it is not in PEM".to_owned()))?;
    if chain.is_empty() {
        return Err(of_cert("it has no certificate in PEM".to_owned()));
    }
    let private = PrivateKeyDer::from_pem_slice(&key_text)
        .map_err(|_| of_key("it has no private key in PEM without a passphrase".to_owned()))?;
    let own = CertifiedKey::from_der(chain, private, &ring::default_provider());
    let own = own.map_err(|error| of_cert(format!("with its key: {error}")))?;
    Ok((own, (cert_text, key_text)))
}

fn read(path: &Path, access: Access) -> Result<Vec<u8>, String> {
    let bytes = key_file::read(path, access, MAX_FILE).map_err(|error| error.to_string())?;
    bytes.ok_or_else(|| "the file does not exist".to_owned())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    fn write(path: &Path, text: &str) {
        fs::write(path, text).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
    }

    fn pair() -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        let cert = params.self_signed(&key).unwrap();
        (cert.pem(), key.serialize_pem())
    }

    #[test]
    fn a_pair_is_valid_only_as_a_whole() {
        let dir = tempfile::tempdir().unwrap();
        let (cert, key) = (dir.path().join("cert"), dir.path().join("key"));
        let load = || Identity::of_files((&cert, &key), None);
        let missing = load().err().unwrap();
        assert!(missing.contains("the file does not exist"), "{missing}");
        let (first, first_key) = pair();
        let (_, second_key) = pair();
        for (cert_text, key_text, expected) in [
            (first.as_str(), first_key.as_str(), None),
            (&first, &second_key, Some("with its key")),
            ("", &first_key, Some("no certificate")),
            ("hunter2", &first_key, Some("no certificate")),
            (&first_key, &first_key, Some("no certificate")),
            (
                &first[..first.len() / 2],
                &first_key,
                Some("cannot use the certificate"),
            ),
            (&first, "", Some("no private key")),
            (&first, "hunter2", Some("no private key")),
            (&first, &first, Some("no private key")),
        ] {
            write(&cert, cert_text);
            write(&key, key_text);
            let error = load().err();
            assert_eq!(
                error.is_some(),
                expected.is_some(),
                "{expected:?}: {error:?}"
            );
            if let (Some(error), Some(expected)) = (error, expected) {
                assert!(error.contains(expected), "{expected}: {error}");
                assert!(!error.contains("hunter2"), "{error}");
            }
        }
        write(&cert, &first);
        write(&key, &first_key);
        let one = load().unwrap();
        assert!(one == load().unwrap());
        fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
        let error = load().err().unwrap();
        assert!(error.contains("others may access it"), "{error}");
    }
}
