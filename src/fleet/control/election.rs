//! The election: `/slice/v1/election` has the name of the leader's node and ends with the leader's lease.
//! Out of scope: what the leader does.

use super::{CONFIRMED_WITHIN, Control, Failure, LEASE_TTL, RENEW_INTERVAL, Term, remember};
use crate::fleet::contact::Boottime;
use crate::fleet::keys::Key;
use crate::fleet::kv::{Compare, Error, LeaseId, Op, Revision, Txn};
use crate::fleet::link::{Backoff, boottime, jittered};

use std::time::Duration;

/// The longest pause before a node that sees no leader tries to become one, so that not all try at once.
const CAMPAIGN_JITTER: Duration = Duration::from_millis(200);

/// The pause before a renewal that has failed is repeated.
const RETRY: Duration = Duration::from_secs(1);

/// The result of a renewal.
enum Confirmation {
    Confirmed,
    /// Another node leads, or nobody.
    Lost,
}

impl Control {
    /// Takes part in elections until the end.
    pub(super) async fn elections(&self) {
        let mut backoff = Backoff::default();
        loop {
            self.wait_for_no_leader().await;
            tokio::time::sleep(jittered(CAMPAIGN_JITTER)).await;
            if !self.has_no_leader() {
                continue;
            }
            let elected = self.campaign().await;
            self.election_result(elected.as_ref().err());
            match elected {
                Ok(true) => {
                    backoff.reset();
                    tracing::info!(node = %self.link.node(), "this node schedules the VMs of the fleet");
                    self.lead().await;
                    tracing::info!(node = %self.link.node(), "this node no longer schedules");
                }
                // The watch has not reported the leader yet, or a failure.
                Ok(false) | Err(_) => tokio::time::sleep(backoff.next()).await,
            }
        }
    }

    /// Ends the term, and the key with its lease. Another node is elected at once instead of after the end of the lease.
    pub(super) async fn resign(&self) {
        let term = self.state.lock().term.take();
        self.notify();
        let Some(term) = term else {
            return;
        };
        if let Err(error) = self.link.client().revoke(term.lease).await {
            tracing::warn!("cannot resign; the lease ends by itself: {error}");
        }
    }

    fn has_no_leader(&self) -> bool {
        let now = boottime();
        self.link
            .read(|mirror, contact| contact.may_act(now) && mirror.election.is_none())
    }

    async fn wait_for_no_leader(&self) {
        let mut changed = self.link.subscribe();
        // The sender is in the link.
        let _ = changed.wait_for(|_| self.has_no_leader()).await;
    }

    fn election_result(&self, failure: Option<&Failure>) {
        let slot = &mut self.state.lock().election_error;
        remember(slot, "cannot elect a scheduler", failure);
    }

    /// Creates the key; whether this node leads.
    async fn campaign(&self) -> Result<bool, Failure> {
        let client = self.link.client();
        let sent = boottime();
        let grant = client.grant(LEASE_TTL).await?;
        let expected = self.link.facts().map(|facts| facts.cluster_id);
        if expected != Some(grant.header.cluster_id.0) {
            let text = format!("{} is another cluster", grant.header.cluster_id);
            return Err(Failure::Other(text));
        }
        let created = self.create_key(grant.id, sent).await;
        if !matches!(created, Ok(true)) {
            // A transaction with an unknown outcome has none when its lease has ended.
            let _ends_by_itself = client.revoke(grant.id).await;
        }
        created
    }

    async fn create_key(&self, lease: LeaseId, sent: Boottime) -> Result<bool, Failure> {
        let txn = Txn {
            compares: vec![Compare::absent(Key::Election)],
            then: vec![self.key_with(lease)],
            otherwise: Vec::new(),
        };
        let done = self.link.client().txn(&txn).await?;
        if done.succeeded {
            let revision = done.header.revision.0;
            self.set_term(Some(Term {
                create_revision: revision,
                revision,
                lease,
                confirmed: sent,
            }));
        }
        Ok(done.succeeded)
    }

    fn key_with(&self, lease: LeaseId) -> Op {
        Op::Put {
            key: Key::Election.into(),
            value: self.link.node().to_string().into_bytes(),
            lease: Some(lease),
        }
    }

    /// Renews the lease until it is lost, or contact is lost for long.
    async fn lead(&self) {
        let mut acting = boottime();
        let mut pause = RENEW_INTERVAL;
        loop {
            tokio::time::sleep(pause).await;
            let now = boottime();
            if self.link.read(|_, contact| contact.may_act(now)) {
                acting = now;
            }
            let Some(term) = self.state.lock().term else {
                return;
            };
            // The lease is not revoked: the endpoints may be those of another cluster.
            if now.since(acting) >= CONFIRMED_WITHIN {
                return self.set_term(None);
            }
            let confirmed = self.confirm(term).await;
            self.election_result(confirmed.as_ref().err());
            pause = match confirmed {
                Ok(Confirmation::Confirmed) => RENEW_INTERVAL,
                Ok(Confirmation::Lost) => return self.set_term(None),
                Err(_) => RETRY,
            };
        }
    }

    async fn confirm(&self, term: Term) -> Result<Confirmation, Failure> {
        let client = self.link.client();
        let sent = boottime();
        let (_, remaining) = client.keep_alive(term.lease).await?;
        let (_, found) = client.get(Key::Election).await?;
        let is_own = found.is_some_and(|found| {
            found.create_revision.0 == term.create_revision && found.lease == Some(term.lease)
        });
        if remaining.is_none() || !is_own {
            return Ok(Confirmation::Lost);
        }
        if let Some(term) = &mut self.state.lock().term {
            term.confirmed = sent;
        }
        self.notify();
        Ok(Confirmation::Confirmed)
    }

    /// Writes the key again: a transaction of this term that was sent before has no effect from now on. Returns the revision, which the
    /// objects must have before the next plan. `None`: this node does not lead any more.
    pub(super) async fn invalidate(&self, term: Term) -> Result<Option<u64>, Failure> {
        let txn = Txn {
            compares: vec![Compare::unchanged(Key::Election, Revision(term.revision))],
            then: vec![self.key_with(term.lease)],
            otherwise: Vec::new(),
        };
        let client = self.link.client();
        let revision = match client.txn(&txn).await {
            Ok(done) if done.succeeded => done.header.revision.0,
            // An earlier attempt may have been applied.
            Ok(_) | Err(Error::OutcomeUnknown { .. }) => {
                let (_, found) = client.get(Key::Election).await?;
                let own = found.filter(|found| {
                    found.create_revision.0 == term.create_revision
                        && found.lease == Some(term.lease)
                });
                let Some(own) = own else {
                    self.set_term(None);
                    return Ok(None);
                };
                if own.mod_revision.0 == term.revision {
                    return Err(Failure::Other(
                        "the election key was not written".to_owned(),
                    ));
                }
                own.mod_revision.0
            }
            Err(error) => return Err(error.into()),
        };
        if let Some(current) = &mut self.state.lock().term
            && current.create_revision == term.create_revision
        {
            current.revision = revision;
        }
        Ok(Some(revision))
    }
}
