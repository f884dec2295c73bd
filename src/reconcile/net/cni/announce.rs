//! After a repair, the guest and its gateway find each other anew.
//! Out of scope: everybody else, who finds the guest by the MAC that it has kept.
//!
//! # Why
//! The other end of a veth is made anew with another MAC: with ptp it is the gateway, and a bridge without a MAC of its own takes
//! that of its lowest port. A guest that was not started anew sends to the old one until its kernel doubts it, 5 s
//! (`delay_first_probe_time`) and three probes later.

use std::path::Path;

use super::IFNAME;
use crate::api::network::Connection;
use crate::host::arp::{self, Asker};
use crate::host::netns::Netns;

/// Asks for the gateway in the guest's name. The answer is redirected to the guest. A question that is lost costs what it was to spare.
pub async fn announce(netns: &Path, connected: &Connection) {
    let Some(gateway) = connected.gateway else {
        return;
    };
    let asker = Asker {
        mac: connected.mac.0,
        ip: connected.ip,
    };
    let asked = match Netns::open(netns) {
        Ok(netns) => netns.run(move || arp::ask(IFNAME, asker, gateway)).await,
        Err(error) => Err(error),
    };
    if let Err(error) = asked {
        tracing::debug!(%error, "a guest finds its gateway later");
    }
}
