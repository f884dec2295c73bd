//! After a repair, the guest and its gateway find each other anew.
//! Out of scope: everybody else, who finds the guest by the MAC that it has kept.
//!
//! # Why
//! The other end of a veth is made anew with another MAC: with ptp it is the gateway, and a bridge without a MAC of its own takes
//! that of its lowest port. A guest that was not started anew sends to the old one until its kernel doubts it, 5 s
//! (`delay_first_probe_time`) and three probes later. And before the redirect is there, the kernel of the VM's namespace answers who asks
//! for the guest's address, with a MAC that with ptp is not the guest's.

use std::path::PathBuf;
use std::time::Duration;

use super::IFNAME;
use crate::api::network::Connection;
use crate::host::arp::{self, Asker};
use crate::host::netns::Netns;

/// Before each question. An answer is ignored by a kernel that has changed its entry less than a second ago (`locktime`).
const PAUSES: [Duration; 4] = [
    Duration::ZERO,
    Duration::from_millis(200),
    Duration::from_millis(300),
    Duration::from_millis(600),
];

/// Has the gateway asked for in the guest's name, beside whatever comes next. The answers are redirected to the guest. Where all are
/// lost, both find each other as kernels do.
pub fn announce(netns: PathBuf, connected: &Connection) {
    let Some(gateway) = connected.gateway else {
        return;
    };
    let asker = Asker {
        mac: connected.mac.0,
        ip: connected.ip,
    };
    tokio::spawn(async move {
        for pause in PAUSES {
            tokio::time::sleep(pause).await;
            // Opened each time: a namespace that is deleted meanwhile is not held.
            let asked = match Netns::open(&netns) {
                Ok(netns) => netns.run(move || arp::ask(IFNAME, asker, gateway)).await,
                Err(error) => Err(error),
            };
            if let Err(error) = asked {
                tracing::debug!(%error, "a guest finds its gateway later");
                return;
            }
        }
    });
}
