//! Which certificates are accepted, by this node as a client and as a server, and what requests of nodes say.
//! Out of scope: forwarding ([`super::forward`]).

pub(super) mod pki;

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::http::{HeaderMap, HeaderValue};
use tokio::io::AsyncReadExt;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::{ClientConfig, DEFAULT_VERSIONS, ServerConfig};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tokio_util::sync::CancellationToken;

use self::pki::{Ca, Kind, name};
use super::*;
use crate::wire::user::User;

/// What a test knows of the fleet.
pub(super) struct Known {
    pub(super) tls: parking_lot::Mutex<Option<Arc<PeerTls>>>,
    pub(super) gone: Option<Name>,
    /// The VMs of the fleet on this node.
    pub(super) vms: BTreeMap<Name, Uid>,
    pub(super) connections: Registry,
}

impl Known {
    pub(super) fn new(tls: Arc<PeerTls>) -> Self {
        Self {
            tls: parking_lot::Mutex::new(Some(tls)),
            gone: None,
            vms: BTreeMap::new(),
            connections: Registry::default(),
        }
    }
}

impl Fleet for Known {
    fn whereabouts(&self, _: &Name) -> Option<Whereabouts> {
        None
    }

    fn uid_of(&self, vm: &Name) -> Option<Uid> {
        self.vms.get(vm).copied()
    }

    fn others(&self) -> Vec<Place> {
        Vec::new()
    }

    fn is_gone(&self, node: &Name) -> bool {
        self.gone.as_ref() == Some(node)
    }

    fn tls(&self) -> Option<Arc<PeerTls>> {
        self.tls.lock().clone()
    }

    fn connections(&self) -> &Registry {
        &self.connections
    }
}

pub(super) fn peers(known: Known) -> Peers {
    Peers {
        fleet: Some(Arc::new(known)),
        agents: Arc::new(Agents::new(16)),
        stop: CancellationToken::new(),
    }
}

/// The configuration of a listener of this node.
pub(super) fn server_config(tls: &PeerTls) -> Arc<ServerConfig> {
    let builder = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let certificates = ServerCertificates {
        fleet: Arc::clone(tls.certificate()),
        others: None,
    };
    let config = builder
        .with_protocol_versions(DEFAULT_VERSIONS)
        .unwrap()
        .with_client_cert_verifier(tls.client_verifier().unwrap())
        .with_cert_resolver(Arc::new(certificates));
    Arc::new(config)
}

#[test]
fn a_certificate_is_accepted_only_from_the_authority_in_its_time_and_without_a_revocation() {
    let (ours, theirs) = (Ca::new("ours"), Ca::new("theirs"));
    let crl = || Some(ours.revoke(&[7]));
    let chain = |tls: &PeerTls| tls.certificate().cert.clone();
    let this = ours.node_with("node-a", Kind::default(), crl());
    let expired = Kind {
        is_expired: true,
        ..Kind::default()
    };
    let revoked = Kind {
        serial: 7,
        ..Kind::default()
    };
    for role in [Role::Client, Role::Server] {
        let check = |tls: &PeerTls| this.check(&chain(tls), role, tls::now());
        assert_eq!(check(&ours.node("node-b")), Ok(name("node-b")));
        for (peer, expected) in [
            (theirs.node("node-b"), Refused::Authority),
            (ours.node_with("node-b", expired, None), Refused::Expired),
            (ours.node_with("node-b", revoked, None), Refused::Revoked),
        ] {
            assert_eq!(check(&peer), Err(expected), "{role:?}");
        }
        assert_eq!(this.check(&[], role, tls::now()), Err(Refused::Invalid));
        // A list of another authority says nothing of these.
        let unlisted = ours.node_with("node-a", Kind::default(), Some(theirs.revoke(&[])));
        let found = unlisted.check(&chain(&this), role, tls::now());
        assert_eq!(found, Err(Refused::Unlisted));
    }
}

#[test]
fn files_that_are_not_those_of_this_node_are_refused_with_the_setting() {
    let (ours, theirs) = (Ca::new("ours"), Ca::new("theirs"));
    let own = ours.sign("node-a", Kind::default());
    let other = ours.sign("node-b", Kind::default());
    let named = Kind {
        common_name: Some("alice"),
        ..Kind::default()
    };
    let with_name = ours.sign("node-a", named);
    let valid = ours.pem(&own, Some(ours.revoke(&[1])));
    assert!(PeerTls::new(name("node-a"), valid.clone()).is_ok());
    let text = |text: &str| text.as_bytes().to_vec();
    for (pem, expected) in [
        (
            Pem {
                ca: text("hunter2"),
                ..valid.clone()
            },
            "fleet.ca: the file has no certificate in PEM",
        ),
        (
            Pem {
                cert: text(&other.cert),
                ..valid.clone()
            },
            "fleet.cert: it is the certificate of node node-b, expected that of node-a",
        ),
        (
            Pem {
                cert: text(&with_name.cert),
                ..valid.clone()
            },
            "expected /O=slice/OU=NODE without a common name",
        ),
        (
            Pem {
                key: text(&other.key),
                ..valid.clone()
            },
            "fleet.cert: with its key",
        ),
        (
            Pem {
                key: text("hunter2"),
                ..valid.clone()
            },
            "fleet.key: the file has no private key",
        ),
        (
            Pem {
                crl: Some(text("hunter2")),
                ..valid.clone()
            },
            "fleet.crl: the file has no certificate revocation list",
        ),
        (
            Pem {
                crl: Some(text(&theirs.pem)),
                ..valid.clone()
            },
            "fleet.crl: the file has no certificate revocation list",
        ),
    ] {
        let error = PeerTls::new(name("node-a"), pem).unwrap_err().to_string();
        assert!(error.contains(expected), "{expected}: {error}");
        assert!(!error.contains("hunter2"), "{error}");
    }
}

#[test]
fn a_certificate_for_clients_names_hosts_or_addresses() {
    let ca = Ca::new("ours");
    for (hosts, expected) in [
        (&[][..], false),
        (&["host.example"], true),
        (&["192.0.2.1"], true),
        (&["2001:db8::1"], true),
    ] {
        let kind = Kind {
            hosts,
            ..Kind::default()
        };
        let tls = ca.node_with("node-a", kind, None);
        assert_eq!(tls.has_hosts(), expected, "{hosts:?}");
    }
}

/// The node that a listener of `server` sees, or the error of the client.
async fn handshake(
    server: &Arc<PeerTls>,
    client: Arc<ClientConfig>,
) -> Result<Option<Name>, String> {
    let (near, far) = tokio::io::duplex(1 << 16);
    let acceptor = TlsAcceptor::from(server_config(server));
    let peers = peers(Known::new(Arc::clone(server)));
    let accepting = async {
        let stream = acceptor
            .accept(far)
            .await
            .map_err(|error| error.to_string())?;
        let found = peers.accepted(stream.get_ref().1.peer_certificates());
        let found = found.map_err(|error| error.to_string())?;
        Ok::<_, String>(found.map(|peer| peer.node.clone()))
    };
    let connecting = async {
        let name = format!("x{}", tls::SERVER_NAME).try_into().unwrap();
        if let Ok(mut stream) = TlsConnector::from(client).connect(name, near).await {
            // With TLS 1.3, a refusal comes after the handshake of the client.
            let _ = stream.read(&mut [0]).await;
        }
    };
    tokio::join!(accepting, connecting).0
}

#[tokio::test]
async fn a_listener_knows_nodes_by_their_certificates_and_lets_others_use_a_token() {
    let (ours, theirs) = (Ca::new("ours"), Ca::new("theirs"));
    let server = ours.node_with("node-b", Kind::default(), Some(ours.revoke(&[7])));
    let of_kind = |ca: &Ca, kind: Kind<'_>| {
        // Checked by the server alone: the client trusts it in any case.
        let own = ca.sign("node-a", kind);
        client_config(&ours, Some(&own))
    };
    let kind = Kind::default();
    let expired = Kind {
        is_expired: true,
        ..kind
    };
    let revoked = Kind { serial: 7, ..kind };
    let named = Kind {
        common_name: Some("alice"),
        ..kind
    };
    assert_eq!(
        handshake(&server, client_config(&ours, None)).await,
        Ok(None)
    );
    let node = handshake(&server, of_kind(&ours, kind)).await;
    assert_eq!(node, Ok(Some(name("node-a"))));
    let person = handshake(&server, of_kind(&ours, named)).await;
    assert_eq!(person, Ok(None));
    for (config, expected) in [
        (of_kind(&theirs, kind), "UnknownIssuer"),
        (of_kind(&ours, expired), "expired"),
        (of_kind(&ours, revoked), "Revoked"),
    ] {
        let error = handshake(&server, config).await.unwrap_err();
        assert!(error.contains(expected), "{expected}: {error}");
    }
}

/// A client that does not check the server, with this certificate.
fn client_config(ca: &Ca, own: Option<&pki::Signed>) -> Arc<ClientConfig> {
    use tokio_rustls::rustls::pki_types::pem::PemObject;
    use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
    let node = ca.node("node-x");
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let verifier = verifier::NodeVerifier::new(node, name("node-b"), &ring::default_provider());
    let builder = builder
        .with_protocol_versions(DEFAULT_VERSIONS)
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let config = match own {
        None => builder.with_no_client_auth(),
        Some(own) => {
            let cert = CertificateDer::from_pem_slice(own.cert.as_bytes()).unwrap();
            let key = PrivateKeyDer::from_pem_slice(own.key.as_bytes()).unwrap();
            // Sent whatever authorities the server names.
            let key = tokio_rustls::rustls::sign::CertifiedKey::from_der(
                vec![cert],
                key,
                &ring::default_provider(),
            );
            let key = tokio_rustls::rustls::sign::SingleCertAndKey::from(key.unwrap());
            builder.with_client_cert_resolver(Arc::new(key))
        }
    };
    Arc::new(config)
}

fn connection(known: &Known, tls: &PeerTls, stop: &CancellationToken) -> Arc<PeerConnection> {
    let chain = &tls.certificate().cert;
    let registered = known
        .connections
        .register(chain, Role::Client, stop, || known.tls());
    registered.unwrap()
}

#[test]
fn open_connections_end_when_their_certificates_are_revoked_or_their_nodes_are_gone() {
    let ca = Ca::new("ours");
    let serial = |serial| Kind {
        serial,
        ..Kind::default()
    };
    let known = Known::new(ca.node("node-a"));
    let stop = CancellationToken::new();
    let (b, c) = (
        ca.node_with("node-b", serial(7), None),
        ca.node_with("node-c", serial(8), None),
    );
    let (of_b, of_c) = (connection(&known, &b, &stop), connection(&known, &c, &stop));
    let revoking = ca.node_with("node-a", Kind::default(), Some(ca.revoke(&[7])));
    let ended = known.connections.recheck(&revoking);
    assert_eq!(ended, [name("node-b")].into());
    assert!(of_b.end().is_cancelled() && !of_c.end().is_cancelled());
    // A connection whose handshake was before the revocation.
    *known.tls.lock() = Some(Arc::clone(&revoking));
    let late = known
        .connections
        .register(&b.certificate().cert, Role::Client, &stop, || known.tls());
    assert_eq!(late.err(), Some(Refused::Revoked));
    let end = |gone: &str| known.connections.end_of(|node| *node == name(gone));
    assert!(end("node-d").is_empty() && !of_c.end().is_cancelled());
    assert_eq!(end("node-c"), [name("node-c")].into());
    assert!(of_c.end().is_cancelled());
    drop((of_b, of_c));
    assert!(known.connections.is_empty());
}

#[test]
fn a_certificate_is_verified_once_for_all_its_connections() {
    let ca = Ca::new("ours");
    let known = Known::new(ca.node("node-a"));
    let stop = CancellationToken::new();
    let (b, c) = (ca.node("node-b"), ca.node("node-c"));
    let open: Vec<_> = [&b, &b, &b, &c]
        .map(|tls| connection(&known, tls, &stop))
        .into();
    let checks = std::cell::Cell::new(0);
    let ended = known.connections.recheck_by(|_, _| {
        checks.set(checks.get() + 1);
        true
    });
    assert!(ended.is_empty());
    assert_eq!((open.len(), checks.get()), (4, 2));
}

#[test]
fn the_headers_of_a_forwarded_request_are_accepted_from_that_node_alone() {
    let ca = Ca::new("ours");
    let mut known = Known::new(ca.node("node-a"));
    known.gone = Some(name("node-c"));
    let stop = CancellationToken::new();
    let b = connection(&known, &ca.node("node-b"), &stop);
    let c = connection(&known, &ca.node("node-c"), &stop);
    let peers = peers(known);
    let headers = |pairs: &[(&'static str, &'static str)]| {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    };
    let found = |peer: Option<&PeerConnection>, pairs: &[(&'static str, &'static str)]| {
        let forwarded = peers.forwarded(peer, &headers(pairs));
        match forwarded {
            Ok(found) => Ok(found.map(|it| it.caller.to_string())),
            Err(response) => Err(response.status().as_u16()),
        }
    };
    let by = |node| (FORWARDED_BY, node);
    let user = |user| (FORWARDED_USER, user);
    assert_eq!(found(None, &[]), Ok(None));
    assert_eq!(found(None, &[by("node-b")]), Err(403));
    assert_eq!(found(None, &[user("root (uid 0)")]), Err(403));
    assert_eq!(found(None, &[(FORWARDED_VM, "x")]), Err(403));
    let alice = Ok(Some("alice (uid 1000) on node node-b".to_owned()));
    let pairs = [by("node-b"), user("alice (uid 1000)")];
    assert_eq!(found(Some(&b), &pairs), alice);
    assert_eq!(found(Some(&b), &[]), Ok(Some("node node-b".to_owned())));
    assert_eq!(found(Some(&b), &[by("node-a")]), Err(403));
    assert_eq!(found(Some(&b), &[by("node-b"), by("node-a")]), Err(403));
    assert_eq!(found(Some(&c), &[by("node-c")]), Err(403), "it is gone");
}

#[test]
fn users_of_a_node_have_limits_of_their_own_and_none_is_privileged() {
    let ca = Ca::new("ours");
    let known = Known::new(ca.node("node-a"));
    let stop = CancellationToken::new();
    let b = connection(&known, &ca.node("node-b"), &stop);
    let peers = peers(known);
    let user = |text: &'static str| {
        let mut headers = HeaderMap::new();
        headers.insert(FORWARDED_USER, HeaderValue::from_static(text));
        peers.forwarded(Some(&b), &headers).unwrap().unwrap().user
    };
    assert_ne!(user("uid 1000"), user("uid 1001"));
    assert_eq!(user("uid 1000"), user("uid 1000"));
    assert!(matches!(user("root (uid 0)"), User::Forwarded(_)));
}
