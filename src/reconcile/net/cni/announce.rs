//! Sends ARP requests after a repair, so that the guest and its gateway update their ARP entries.
//! Out of scope: other neighbours, which reach the guest by the MAC that it has kept.
//!
//! # Why
//! When a veth is re-created, its other end has another MAC. With ptp that end is the gateway; with bridge, a bridge without a MAC of its
//! own takes the lowest MAC of its ports. A guest that was not restarted sends to the old MAC until its kernel drops the entry: after 5 s
//! (`delay_first_probe_time`) and three probes. Before the redirect is in place, the kernel of the VM's namespace answers ARP requests for
//! the guest's address; with ptp it answers with a MAC that is not the guest's.

use std::path::PathBuf;
use std::time::Duration;

use super::IFNAME;
use crate::api::network::Connection;
use crate::host::arp::{self, Sender};
use crate::host::netns::Netns;

/// The pause before each request. A kernel ignores a reply if it has changed the entry less than a second ago (`locktime`).
const PAUSES: [Duration; 4] = [
    Duration::ZERO,
    Duration::from_millis(200),
    Duration::from_millis(300),
    Duration::from_millis(600),
];

/// Requests the gateway's MAC with the guest's address and MAC as the sender, in a task of its own. The replies are redirected to the
/// guest. If all of them are lost, both kernels update their entries after their own timeouts.
pub fn announce(netns: PathBuf, connected: &Connection) {
    let Some(gateway) = connected.gateway else {
        return;
    };
    let sender = Sender {
        mac: connected.mac.0,
        ip: connected.ip,
    };
    tokio::spawn(async move {
        for pause in PAUSES {
            tokio::time::sleep(pause).await;
            // Opened for each request, so that a namespace that is deleted meanwhile is not kept alive.
            let result = match Netns::open(&netns) {
                Ok(netns) => {
                    netns
                        .run(move || arp::send_request(IFNAME, sender, gateway))
                        .await
                }
                Err(error) => Err(error),
            };
            if let Err(error) = result {
                tracing::debug!(%error, "cannot announce a guest to its gateway");
                return;
            }
        }
    });
}
