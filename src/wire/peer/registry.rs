//! The open connections to and from other nodes, which end when their certificates are no longer accepted.
//! Out of scope: opening them.

use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_util::sync::CancellationToken;

use super::tls::{PeerTls, Refused, Role, now};
use crate::api::meta::Name;

/// A connection to or from another node.
#[derive(Debug)]
pub struct PeerConnection {
    /// The node.
    pub node: Name,
    chain: Vec<CertificateDer<'static>>,
    role: Role,
    end: CancellationToken,
}

impl PeerConnection {
    /// Cancelled when the connection must end.
    pub(in crate::wire) fn end(&self) -> &CancellationToken {
        &self.end
    }
}

/// All connections of this daemon.
#[derive(Debug, Default)]
pub struct Registry(Mutex<Vec<Weak<PeerConnection>>>);

impl Registry {
    /// Registers a connection after its handshake; it ends with `stop`. `current` returns the certificates after the connection is
    /// registered: those of the handshake may have been replaced meanwhile.
    ///
    /// # Errors
    /// The certificate of the peer is not accepted.
    pub(super) fn register(
        &self,
        chain: &[CertificateDer<'_>],
        role: Role,
        stop: &CancellationToken,
        current: impl FnOnce() -> Option<Arc<PeerTls>>,
    ) -> Result<Arc<PeerConnection>, Refused> {
        let own = chain.first().ok_or(Refused::Invalid)?;
        let connection = Arc::new(PeerConnection {
            node: super::subject::node_of(own).map_err(|_| Refused::NoNode)?,
            chain: chain.iter().map(|one| one.clone().into_owned()).collect(),
            role,
            end: stop.child_token(),
        });
        let mut all = self.0.lock();
        all.retain(|other| other.strong_count() > 0);
        all.push(Arc::downgrade(&connection));
        drop(all);
        let tls = current().ok_or(Refused::Authority)?;
        tls.check(&connection.chain, role, now())?;
        Ok(connection)
    }

    /// Ends the connections whose certificates are not accepted any more, and those of nodes that are refused. Returns their nodes.
    pub fn recheck(&self, tls: &PeerTls, is_refused: impl Fn(&Name) -> bool) -> Vec<Name> {
        let mut all = self.0.lock();
        all.retain(|other| other.strong_count() > 0);
        let open: Vec<_> = all.iter().filter_map(Weak::upgrade).collect();
        drop(all);
        let now = now();
        let is_ended = |it: &Arc<PeerConnection>| {
            tls.check(&it.chain, it.role, now).is_err() || is_refused(&it.node)
        };
        let ended = open.into_iter().filter(is_ended);
        ended
            .map(|connection| {
                connection.end.cancel();
                connection.node.clone()
            })
            .collect()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.lock().iter().all(|it| it.strong_count() == 0)
    }
}
