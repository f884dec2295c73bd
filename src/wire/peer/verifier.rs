//! Verifies that the server of a connection is the node that is expected.
//! Out of scope: which certificates are valid ([`super::tls`]).

use std::fmt;
use std::sync::Arc;

use tokio_rustls::rustls::client::Resumption;
use tokio_rustls::rustls::client::danger::{
    HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier,
};
use tokio_rustls::rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature,
};
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::{
    CertificateError, ClientConfig, DEFAULT_VERSIONS, DigitallySignedStruct, Error, OtherError,
    SignatureScheme,
};

use super::tls::{Invalid, OwnCertificate, PeerTls, Refused, Role, invalid};
use crate::api::meta::Name;

/// Why a server is not the node.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum NotTheNode {
    /// Its certificate is not valid.
    #[error("{0}")]
    Refused(Refused),
    /// It is another node.
    #[error("its certificate is that of node {0}")]
    Other(Name),
}

impl PeerTls {
    /// For a connection to a node.
    ///
    /// # Errors
    /// The certificate of this node cannot be used.
    pub(super) fn client_config(
        self: &Arc<Self>,
        node: &Name,
    ) -> Result<Arc<ClientConfig>, Invalid> {
        let provider = Arc::clone(&self.provider);
        let builder = ClientConfig::builder_with_provider(provider);
        let builder = builder
            .with_protocol_versions(DEFAULT_VERSIONS)
            .map_err(|error| invalid("cert", error))?;
        let verifier = NodeVerifier::new(Arc::clone(self), node.clone(), &self.provider);
        let mut config = builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_cert_resolver(Arc::new(OwnCertificate(Arc::clone(&self.own))));
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        config.resumption = Resumption::disabled();
        Ok(Arc::new(config))
    }
}

/// The verifier.
pub(super) struct NodeVerifier {
    tls: Arc<PeerTls>,
    node: Name,
    algorithms: WebPkiSupportedAlgorithms,
}

impl NodeVerifier {
    pub(super) fn new(tls: Arc<PeerTls>, node: Name, provider: &CryptoProvider) -> Self {
        Self {
            tls,
            node,
            algorithms: provider.signature_verification_algorithms,
        }
    }

    fn check(&self, chain: &[CertificateDer<'_>], now: UnixTime) -> Result<(), NotTheNode> {
        let found = self.tls.check(chain, Role::Server, now);
        match found.map_err(NotTheNode::Refused)? {
            found if found == self.node => Ok(()),
            found => Err(NotTheNode::Other(found)),
        }
    }
}

impl fmt::Debug for NodeVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeVerifier({})", self.node)
    }
}

impl ServerCertVerifier for NodeVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let own = std::iter::once(end_entity);
        let chain: Vec<CertificateDer<'_>> = own.chain(intermediates).cloned().collect();
        match self.check(&chain, now) {
            Ok(()) => Ok(ServerCertVerified::assertion()),
            Err(error) => Err(CertificateError::Other(OtherError(Arc::new(error))).into()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// The error of this verifier in that of a handshake.
pub(super) fn cause(error: &Error) -> Option<&NotTheNode> {
    match error {
        Error::InvalidCertificate(CertificateError::Other(OtherError(other))) => {
            other.downcast_ref()
        }
        _ => None,
    }
}
