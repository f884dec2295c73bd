//! The open connections to and from other nodes, which end when their certificates are no longer accepted.
//! Out of scope: opening them.

use std::collections::{BTreeSet, HashMap};
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

    /// Ends the connections with certificates that are not accepted any more. Returns their nodes.
    pub fn recheck(&self, tls: &PeerTls) -> BTreeSet<Name> {
        let now = now();
        self.recheck_by(|chain, role| tls.check(chain, role, now).is_ok())
    }

    /// `accepts` is called once for all connections with the same certificate: a signature is verified.
    pub(super) fn recheck_by(
        &self,
        accepts: impl Fn(&[CertificateDer<'_>], Role) -> bool,
    ) -> BTreeSet<Name> {
        let open = self.open();
        let mut known: HashMap<(Role, &[CertificateDer<'_>]), bool> = HashMap::new();
        for it in &open {
            let is_accepted = known.entry((it.role, &it.chain));
            is_accepted.or_insert_with(|| accepts(&it.chain, it.role));
        }
        let is_accepted = |it: &PeerConnection| known.get(&(it.role, &*it.chain)) == Some(&true);
        end(open.iter().filter(|it| !is_accepted(it)))
    }

    /// Ends the connections of these nodes. Returns the nodes. No certificate is verified.
    pub fn end_of(&self, is_refused: impl Fn(&Name) -> bool) -> BTreeSet<Name> {
        let open = self.open();
        let nodes: BTreeSet<&Name> = open.iter().map(|it| &it.node).collect();
        let refused: BTreeSet<&Name> = nodes.into_iter().filter(|it| is_refused(it)).collect();
        end(open.iter().filter(|it| refused.contains(&it.node)))
    }

    /// The connections that have not been ended.
    fn open(&self) -> Vec<Arc<PeerConnection>> {
        let mut all = self.0.lock();
        all.retain(|other| other.strong_count() > 0);
        let open = all.iter().filter_map(Weak::upgrade);
        open.filter(|it| !it.end.is_cancelled()).collect()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.lock().iter().all(|it| it.strong_count() == 0)
    }
}

fn end<'c>(connections: impl Iterator<Item = &'c Arc<PeerConnection>>) -> BTreeSet<Name> {
    let ended = connections.map(|connection| {
        connection.end.cancel();
        connection.node.clone()
    });
    ended.collect()
}
