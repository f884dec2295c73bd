//! The lease of this node: `alive/<node>` exists while it is renewed.
//! Out of scope: what follows from a confirmed renewal ([`crate::fleet::contact`]).
//!
//! # Confirmation
//! A response to `LeaseKeepAlive` may be from a leader that has been deposed. A renewal is confirmed by a linearizable read that finds the key
//! with the lease of this daemon. A lease that was not renewed in time is reported as lost before there is another one: the scheduler
//! may have seen the key absent.
//!
//! # Another host with the same name
//! The key has the id of its host ([`Link::new`]), and is replaced only by the same host, or when its lease has ended. Otherwise two hosts
//! with one name, such as a host and its clone, would take the key from each other, have contact in turn, and each run all VMs of the node.
//! A host that boots within the time to live of its lease waits for the end of the lease.
//!
//! # Another cluster
//! Nothing is written to a cluster before one of its responses was accepted as one of the fleet.

use super::errors::Part;
use super::{Backoff, Failure, LEASE_TTL, Link, RENEW_INTERVAL, Store, boottime};
use crate::fleet::contact::{Event, Ticket};
use crate::fleet::keys::Key;
use crate::fleet::kv::{Compare, Header, KeyValue, LeaseId, Op, Revision, Txn};

impl Link {
    /// Renews the lease until the end.
    pub(super) async fn renewals(&self, store: &impl Store) {
        let mut lease = None;
        let mut backoff = Backoff::default();
        loop {
            let begin = boottime();
            let pause = match self.renew(store, &mut lease).await {
                Ok(()) => {
                    backoff.reset();
                    self.state.lock().errors.works(Part::Lease);
                    RENEW_INTERVAL.saturating_sub(boottime().since(begin))
                }
                Err(failure) => {
                    self.state.lock().errors.failed(Part::Lease, &failure);
                    // Its own failure is that of storing facts, which is reported already.
                    let _ = self.handle(store, Event::RenewalFailed, None).await;
                    backoff.next()
                }
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.accepted.notified() => backoff.reset(),
            }
        }
    }

    /// Renews the lease, or obtains one. Another cluster is no failure: the contact reports it.
    async fn renew(&self, store: &impl Store, lease: &mut Option<LeaseId>) -> Result<(), Failure> {
        self.store_accepted(store).await?;
        let ticket = self.ticket();
        let is_renewed = match *lease {
            Some(id) if !self.is_foreign() => self.client.keep_alive(id).await?.1.is_some(),
            _ => false,
        };
        let (header, found) = self.client.get(Key::Alive(self.node.clone())).await?;
        let alive = is_renewed && has_lease(found.as_ref(), *lease);
        let is_usable = self.confirm(store, ticket, header, alive).await?;
        if alive || !is_usable {
            return Ok(());
        }
        *lease = None;
        let ticket = self.ticket();
        let granted = self.grant(lease, found.as_ref()).await?;
        let (header, found) = self.client.get(Key::Alive(self.node.clone())).await?;
        let alive = has_lease(found.as_ref(), Some(granted));
        self.confirm(store, ticket, header, alive).await?;
        match alive {
            true => Ok(()),
            false => Err(self.taken()),
        }
    }

    fn taken(&self) -> Failure {
        let (key, node) = (Key::Alive(self.node.clone()), &self.node);
        Failure::Other(format!(
            "{key} is of another host with the name {node}, or of this host before it was booted: waiting for the end of its lease"
        ))
    }

    /// Obtains a lease and writes the key with it, if it is as it was `found`.
    async fn grant(
        &self,
        lease: &mut Option<LeaseId>,
        found: Option<&KeyValue>,
    ) -> Result<LeaseId, Failure> {
        if found.is_some_and(|found| found.value != self.host.as_bytes()) {
            return Err(self.taken());
        }
        let grant = self.client.grant(LEASE_TTL).await?;
        let expected = self.facts().map(|facts| facts.cluster_id);
        let cluster = grant.header.cluster_id;
        if expected != Some(cluster.0) {
            let text = format!("the lease was granted by another cluster, {cluster}");
            return Err(Failure::Other(text));
        }
        // Also if the outcome is unknown: the next renewal reads whether the key has it.
        *lease = Some(grant.id);
        let key = Key::Alive(self.node.clone());
        let revision = found.map_or(Revision(0), |found| found.mod_revision);
        let txn = Txn {
            compares: vec![Compare::unchanged(&key, revision)],
            then: vec![Op::Put {
                key: key.into(),
                value: self.host.clone().into_bytes(),
                lease: Some(grant.id),
            }],
            otherwise: Vec::new(),
        };
        match self.client.txn(&txn).await?.succeeded {
            true => Ok(grant.id),
            false => Err(self.taken()),
        }
    }

    async fn confirm(
        &self,
        store: &impl Store,
        ticket: Ticket,
        header: Header,
        alive: bool,
    ) -> Result<bool, Failure> {
        let event = Event::Renewed {
            ticket,
            header: header.into(),
            alive,
        };
        self.handle(store, event, None).await
    }

    /// Stores what an administrator has accepted.
    async fn store_accepted(&self, store: &impl Store) -> Result<(), Failure> {
        let _turn = self.turn.lock().await;
        let (facts, stored) = {
            let state = self.state.lock();
            (state.contact.facts(), state.stored)
        };
        if let Some(facts) = facts {
            self.store_if_due(store, facts, stored).await?;
            self.notify();
        }
        Ok(())
    }
}

fn has_lease(found: Option<&KeyValue>, lease: Option<LeaseId>) -> bool {
    lease.is_some() && found.is_some_and(|found| found.lease == lease)
}
