//! The certificate and the private key of the listener.
//! Out of scope: connections with TLS ([`crate::wire`]).

use std::path::Path;
use std::sync::Arc;

use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{DEFAULT_VERSIONS, ServerConfig};

use crate::host::key_file::{self, Access};

/// The maximum size of each file, in bytes.
const MAX_FILE: u64 = 256 << 10;

/// A certificate with its key, as a server uses them.
#[derive(Clone)]
pub(super) struct Identity {
    /// What the files contain, to notice a change.
    source: (Vec<u8>, Vec<u8>),
    /// For connections.
    pub(super) config: Arc<ServerConfig>,
}

impl PartialEq for Identity {
    fn eq(&self, other: &Self) -> bool {
        self.source == other.source
    }
}

/// Reads both files.
///
/// # Errors
/// A file cannot be read or is invalid, or the key is not that of the certificate. The text contains nothing of the files.
pub(super) fn load(cert: &Path, key: &Path) -> Result<Identity, String> {
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
    // Named, since another crate could install another default.
    let builder = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let builder = builder
        .with_protocol_versions(DEFAULT_VERSIONS)
        .map_err(|error| of_cert(error.to_string()))?;
    let config = builder
        .with_no_client_auth()
        .with_single_cert(chain, private);
    let mut config = config.map_err(|error| of_cert(format!("with its key: {error}")))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Identity {
        source: (cert_text, key_text),
        config: Arc::new(config),
    })
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
        let missing = load(&cert, &key).err().unwrap();
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
            let error = load(&cert, &key).err();
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
        let one = load(&cert, &key).unwrap();
        assert!(one == load(&cert, &key).unwrap());
        fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
        let error = load(&cert, &key).err().unwrap();
        assert!(error.contains("others may access it"), "{error}");
    }
}
