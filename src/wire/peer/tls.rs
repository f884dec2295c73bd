//! The certificates of a fleet as one node uses them: its own, the authorities, and the lists of revoked ones.
//! Out of scope: reading files ([`crate::api_server`]), connections.
//!
//! # Rules
//! - A certificate is accepted if an authority of the fleet has issued it, it is valid now, no list names it, and its subject is a node
//!   ([`super::subject`]). With a list, every authority needs one: a certificate that no list covers is refused.
//! - A server must be the node that is expected. Its DNS names and addresses do not matter: whoever writes the URL of a node gains nothing.
//! - Sessions are not resumed, so that each connection is checked against the current lists.

use std::sync::Arc;

use tokio_rustls::rustls::RootCertStore;
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{
    CertificateDer, CertificateRevocationListDer, PrivateKeyDer, ServerName, UnixTime,
};
use tokio_rustls::rustls::server::danger::ClientCertVerifier;
use tokio_rustls::rustls::server::{ResolvesServerCert, WebPkiClientVerifier};
use tokio_rustls::rustls::sign::CertifiedKey;
use webpki::{
    CertRevocationList, EndEntityCert, KeyUsage, OwnedCertRevocationList, RevocationOptionsBuilder,
};

use super::subject::node_of;
use crate::api::meta::{Name, Timestamp};
use crate::clock;

/// The end of the server name by which a node asks for the certificate of the fleet, if the listener has another one too.
pub(super) const SERVER_NAME: &str = ".node.slice.internal";

/// The maximum number of lists, and of authorities.
const MAX_ENTRIES: usize = 256;

/// What the peer of a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// It has connected to this node.
    Client,
    /// This node has connected to it.
    Server,
}

/// The texts of the files.
#[derive(Clone, PartialEq, Eq)]
pub struct Pem {
    /// The certificates of the authorities.
    pub ca: Vec<u8>,
    /// The certificate of this node, with its chain.
    pub cert: Vec<u8>,
    /// Its private key.
    pub key: Vec<u8>,
    /// The lists of revoked certificates, if there are any.
    pub crl: Option<Vec<u8>>,
}

/// Why the files cannot be used: the setting, and the reason. The text contains nothing of the files.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("fleet.{setting}: {why}")]
pub struct Invalid {
    /// `ca`, `cert`, `key` or `crl`.
    pub setting: &'static str,
    /// A sentence.
    pub why: String,
}

/// The certificates of the fleet.
pub struct PeerTls {
    node: Name,
    pem: Pem,
    pub(super) provider: Arc<CryptoProvider>,
    roots: Arc<RootCertStore>,
    lists: Vec<CertificateRevocationListDer<'static>>,
    revoked: Vec<CertRevocationList<'static>>,
    pub(super) own: Arc<CertifiedKey>,
}

impl PartialEq for PeerTls {
    fn eq(&self, other: &Self) -> bool {
        (&self.node, &self.pem) == (&other.node, &other.pem)
    }
}

impl std::fmt::Debug for PeerTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PeerTls({})", self.node)
    }
}

/// The time of this host.
pub(super) fn now() -> UnixTime {
    let since = clock::now().duration_since(Timestamp::UNIX_EPOCH);
    UnixTime::since_unix_epoch(since.unsigned_abs())
}

pub(super) fn invalid(setting: &'static str, why: impl ToString) -> Invalid {
    let why = why.to_string();
    Invalid { setting, why }
}

fn certificates(
    setting: &'static str,
    pem: &[u8],
) -> Result<Vec<CertificateDer<'static>>, Invalid> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match all {
        Ok(all) if !all.is_empty() && all.len() <= MAX_ENTRIES => Ok(all),
        _ => Err(invalid(setting, "the file has no certificate in PEM")),
    }
}

impl PeerTls {
    /// The certificates of this node.
    ///
    /// # Errors
    /// A text is not what it should be, the key is not that of the certificate, or the certificate is that of another node.
    pub fn new(node: Name, pem: Pem) -> Result<Self, Invalid> {
        // Named, since another crate could install another default.
        let provider = Arc::new(ring::default_provider());
        let mut roots = RootCertStore::empty();
        for authority in certificates("ca", &pem.ca)? {
            let added = roots.add(authority);
            added.map_err(|error| invalid("ca", format!("invalid certificate: {error}")))?;
        }
        let (lists, revoked) = lists(pem.crl.as_deref())?;
        let chain = certificates("cert", &pem.cert)?;
        let found = node_of(&chain[0]).map_err(|error| invalid("cert", error))?;
        if found != node {
            let why = format!("it is the certificate of node {found}, expected that of {node}");
            return Err(invalid("cert", why));
        }
        let key = PrivateKeyDer::from_pem_slice(&pem.key).map_err(|_| {
            invalid(
                "key",
                "the file has no private key in PEM without a passphrase",
            )
        })?;
        let key = provider.key_provider.load_private_key(key);
        let key = key.map_err(|error| invalid("key", error))?;
        let own = CertifiedKey::new(chain, key);
        own.keys_match()
            .map_err(|error| invalid("cert", format!("with its key: {error}")))?;
        Ok(Self {
            node,
            pem,
            provider,
            roots: Arc::new(roots),
            lists,
            revoked,
            own: Arc::new(own),
        })
    }

    /// The name of this node.
    pub fn node(&self) -> &Name {
        &self.node
    }

    /// The certificate of this node.
    pub fn certificate(&self) -> &Arc<CertifiedKey> {
        &self.own
    }

    /// Whether the certificate of this node names hosts or addresses, as clients that are no nodes require.
    pub fn has_hosts(&self) -> bool {
        let own = self.own.cert.first();
        let parsed = own.and_then(|own| EndEntityCert::try_from(own).ok());
        // webpki reports addresses only together with a name that does not match.
        parsed.is_some_and(|own| {
            let name = ServerName::try_from(format!("absent{SERVER_NAME}"));
            let found = name.map(|name| own.verify_is_valid_for_subject_name(&name));
            matches!(found, Ok(Err(webpki::Error::CertNotValidForName(context))) if !context.presented.is_empty())
        })
    }

    /// Accepts clients with a certificate of the fleet, and those without any.
    ///
    /// # Errors
    /// The authorities cannot be used.
    pub fn client_verifier(&self) -> Result<Arc<dyn ClientCertVerifier>, Invalid> {
        let roots = Arc::clone(&self.roots);
        let provider = Arc::clone(&self.provider);
        let builder = WebPkiClientVerifier::builder_with_provider(roots, provider);
        let builder = builder.with_crls(self.lists.iter().cloned());
        let verifier = builder.allow_unauthenticated().build();
        verifier.map_err(|error| invalid("ca", error))
    }

    /// Whether the chain of a peer is valid now, and the node that it is issued to.
    ///
    /// # Errors
    /// [`Refused`]
    pub fn check(
        &self,
        chain: &[CertificateDer<'_>],
        role: Role,
        now: UnixTime,
    ) -> Result<Name, Refused> {
        let (own, intermediates) = chain.split_first().ok_or(Refused::Invalid)?;
        let certificate = EndEntityCert::try_from(own).map_err(|_| Refused::Invalid)?;
        let revoked: Vec<_> = self.revoked.iter().collect();
        // There is no list without `fleet.crl`.
        let options = RevocationOptionsBuilder::new(&revoked).ok();
        let algorithms = self.provider.signature_verification_algorithms.all;
        let usage = match role {
            Role::Client => KeyUsage::client_auth(),
            Role::Server => KeyUsage::server_auth(),
        };
        let verified = certificate.verify_for_usage(
            algorithms,
            &self.roots.roots,
            intermediates,
            now,
            usage,
            options.map(RevocationOptionsBuilder::build),
            None,
        );
        verified.map_err(|error| match error {
            webpki::Error::CertExpired { .. } => Refused::Expired,
            webpki::Error::CertNotValidYet { .. } => Refused::NotYetValid,
            webpki::Error::CertRevoked => Refused::Revoked,
            webpki::Error::UnknownRevocationStatus => Refused::Unlisted,
            webpki::Error::UnknownIssuer => Refused::Authority,
            _ => Refused::Invalid,
        })?;
        node_of(own).map_err(|_| Refused::NoNode)
    }
}

type Lists = (
    Vec<CertificateRevocationListDer<'static>>,
    Vec<CertRevocationList<'static>>,
);

fn lists(pem: Option<&[u8]>) -> Result<Lists, Invalid> {
    let Some(pem) = pem else {
        return Ok(Lists::default());
    };
    let all: Result<Vec<_>, _> = CertificateRevocationListDer::pem_slice_iter(pem).collect();
    let all = all
        .ok()
        .filter(|all| (1..=MAX_ENTRIES).contains(&all.len()));
    let all = all.ok_or_else(|| {
        invalid(
            "crl",
            "the file has no certificate revocation list (X509 CRL) in PEM",
        )
    })?;
    let parse = |list: &CertificateRevocationListDer<'_>| {
        OwnedCertRevocationList::from_der(list)
            .map(CertRevocationList::from)
            .map_err(|error| invalid("crl", format!("invalid list: {error}")))
    };
    let parsed = all.iter().map(parse).collect::<Result<_, _>>()?;
    Ok((all, parsed))
}

/// Why the certificate of a peer is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Another authority has issued it.
    #[error("its certificate is not of the authority of the fleet")]
    Authority,
    /// Its time has passed.
    #[error("its certificate has expired")]
    Expired,
    /// Its time has not come, or the clock of this host is wrong.
    #[error("its certificate is not valid yet")]
    NotYetValid,
    /// A list names it.
    #[error("its certificate is revoked")]
    Revoked,
    /// No list is of its authority.
    #[error("fleet.crl has no list of the authority of its certificate")]
    Unlisted,
    /// Its subject is no node.
    #[error("its certificate is not that of a node")]
    NoNode,
    /// It is no certificate, or not for this purpose.
    #[error("its certificate is invalid")]
    Invalid,
}

/// Sends the certificate of this node to whichever authorities a server names: those that nodes have differ while one is replaced.
#[derive(Debug)]
pub(super) struct OwnCertificate(pub(super) Arc<CertifiedKey>);

impl tokio_rustls::rustls::client::ResolvesClientCert for OwnCertificate {
    fn resolve(
        &self,
        _: &[&[u8]],
        _: &[tokio_rustls::rustls::SignatureScheme],
    ) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// The certificates of a listener: that of the fleet for nodes, and `api.tls` for all others, if there is one.
#[derive(Debug)]
pub struct ServerCertificates {
    /// That of the fleet.
    pub fleet: Arc<CertifiedKey>,
    /// That of `api.tls`.
    pub others: Option<Arc<CertifiedKey>>,
}

impl ResolvesServerCert for ServerCertificates {
    fn resolve(
        &self,
        hello: tokio_rustls::rustls::server::ClientHello<'_>,
    ) -> Option<Arc<CertifiedKey>> {
        let is_node = hello
            .server_name()
            .is_some_and(|name| name.ends_with(SERVER_NAME));
        let others = self.others.as_ref().filter(|_| !is_node);
        Some(Arc::clone(others.unwrap_or(&self.fleet)))
    }
}
