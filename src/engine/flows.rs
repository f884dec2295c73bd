//! Deletes the host's connection tracking entries of VMs that are gone, in one pass for all VMs that wait at the same time.
//! Out of scope: which VMs; the entries in the namespace of a VM, which are deleted with the namespace.
//!
//! # Why
//! The kernel has no index by address: to find the entries of one VM, the whole table must be dumped. Therefore one dump serves all VMs
//! that wait when it starts; VMs that arrive during a dump are served by the next one.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::host::netns::Netns;
use crate::host::{Error, conntrack};

/// The result of a pass, for each waiting caller.
type DeleteResult = Result<(), Arc<Error>>;

/// Deletes entries by address. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Flows(Arc<Mutex<Queue>>);

#[derive(Debug, Default)]
struct Queue {
    waiting: Vec<(Ipv4Addr, oneshot::Sender<DeleteResult>)>,
    running: bool,
}

impl Flows {
    /// Deletes the entries of `home` with this address as source or destination.
    ///
    /// # Errors
    /// The table cannot be dumped, or an entry cannot be deleted.
    pub async fn delete(&self, host_netns: &Netns, address: Ipv4Addr) -> DeleteResult {
        let (sender, receiver) = oneshot::channel();
        let is_idle = {
            let mut queue = self.queue();
            queue.waiting.push((address, sender));
            !std::mem::replace(&mut queue.running, true)
        };
        if is_idle {
            // A separate task: the first caller may be cancelled while others wait.
            tokio::spawn(self.clone().run(host_netns.clone()));
        }
        let cancelled = || Arc::new(Error::other("delete", "tracked flows", "the task ended"));
        receiver.await.unwrap_or_else(|_| Err(cancelled()))
    }

    async fn run(self, host_netns: Netns) {
        loop {
            let waiting = {
                let mut queue = self.queue();
                if queue.waiting.is_empty() {
                    queue.running = false;
                    return;
                }
                std::mem::take(&mut queue.waiting)
            };
            let addresses: BTreeSet<Ipv4Addr> = waiting.iter().map(|(ip, _)| *ip).collect();
            let delete_entries =
                move || conntrack::delete(&conntrack::list_by_addresses(&addresses)?);
            let result = host_netns.run(delete_entries).await.map_err(Arc::new);
            for (_, sender) in waiting {
                // A caller that was cancelled does not receive it.
                let _ = sender.send(result.clone());
            }
        }
    }

    fn queue(&self) -> parking_lot::MutexGuard<'_, Queue> {
        self.0.lock()
    }
}
