//! The connection of this node to the fleet: its lease, the list and the watch of all objects, and its contact.
//! Out of scope: what the node and the scheduler do with the objects.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::watch;

use super::contact::{Boottime, Contact, Facts};
use super::kv;
use super::mirror::Mirror;
use crate::api::meta::Name;

/// The connection.
pub struct Link {
    node: Name,
    client: kv::Client,
    state: Mutex<State>,
    changed: watch::Sender<u64>,
}

struct State {
    contact: Contact,
    mirror: Mirror,
}

impl Link {
    /// A connection that is not made yet ([`Link::run`]).
    pub fn new(node: Name, client: kv::Client, contact: Contact) -> Arc<Self> {
        Arc::new(Self {
            node,
            client,
            state: Mutex::new(State {
                contact,
                mirror: Mirror::default(),
            }),
            changed: watch::Sender::new(0),
        })
    }

    /// The name of this node.
    pub fn node(&self) -> &Name {
        &self.node
    }

    /// The client.
    pub fn client(&self) -> &kv::Client {
        &self.client
    }

    /// Reads the objects and the contact, at one moment.
    pub fn read<T>(&self, f: impl FnOnce(&Mirror, &Contact) -> T) -> T {
        let state = self.state.lock();
        f(&state.mirror, &state.contact)
    }

    /// A number that changes with the objects and with the contact.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// An administrator has decided that this cluster is that of the fleet.
    pub fn accept(&self, _cluster_id: u64, _now: Boottime) {}

    /// What is stored: [`Contact::facts`].
    pub fn facts(&self) -> Option<Facts> {
        self.state.lock().contact.facts()
    }
}
