//! The host's connection tracking entries of VMs that have gone: deleted together, for as many VMs as wait at the same time.
//! Out of scope: which VMs; the entries in a VM's own namespace, which end with it.
//!
//! # Why
//! The kernel has no index by address: to find one VM's entries is to walk the table of all. So one walk serves every VM that waits
//! when it begins; those that come meanwhile are served by the next.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::oneshot;

use crate::host::netns::Netns;
use crate::host::{Error, conntrack};

/// What the walk came to, for each of those who wait.
type Outcome = Result<(), Arc<Error>>;

/// Deletes entries by address.
#[derive(Clone, Debug, Default)]
pub struct Flows(Arc<Mutex<Queue>>);

#[derive(Debug, Default)]
struct Queue {
    waiting: Vec<(Ipv4Addr, oneshot::Sender<Outcome>)>,
    walking: bool,
}

impl Flows {
    /// Deletes the entries of `home` that begin or end at this address.
    ///
    /// # Errors
    /// The table could not be walked, or an entry not be deleted.
    pub async fn forget(&self, home: &Netns, address: Ipv4Addr) -> Outcome {
        let (sender, receiver) = oneshot::channel();
        let first = {
            let mut queue = self.queue();
            queue.waiting.push((address, sender));
            !std::mem::replace(&mut queue.walking, true)
        };
        if first {
            // A task of its own: whoever came first may give up while others wait.
            tokio::spawn(self.clone().walk(home.clone()));
        }
        let ended = || Arc::new(Error::other("delete", "tracked flows", "the walk ended"));
        receiver.await.unwrap_or_else(|_| Err(ended()))
    }

    async fn walk(self, home: Netns) {
        loop {
            let waiting = {
                let mut queue = self.queue();
                if queue.waiting.is_empty() {
                    queue.walking = false;
                    return;
                }
                std::mem::take(&mut queue.waiting)
            };
            let addresses: BTreeSet<Ipv4Addr> = waiting.iter().map(|(ip, _)| *ip).collect();
            let sweep = move || conntrack::delete(&conntrack::list_of(&addresses)?);
            let outcome = home.run(sweep).await.map_err(Arc::new);
            for (_, sender) in waiting {
                // Whoever has given up needs no answer.
                let _ = sender.send(outcome.clone());
            }
        }
    }

    fn queue(&self) -> std::sync::MutexGuard<'_, Queue> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
