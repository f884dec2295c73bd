//! What stands in the host's own tables.
//! Not here: what ought to.

use super::Ground;
use super::plan::Observed;
use crate::host::rule::TableName;
use crate::host::{self, sysctl};

/// The host's switch. Ours to turn on; other people may need it, so never ours to turn off.
pub(super) const FORWARDING: &str = "net.ipv4.ip_forward";

pub(super) async fn observe(ground: &Ground) -> Result<Observed, host::Error> {
    let backend = ground.backend.clone();
    ground
        .home
        .run(move || {
            let tables = [
                TableName::Raw,
                TableName::Mangle,
                TableName::Nat,
                TableName::Filter,
            ];
            Ok(Observed {
                ruleset: backend.read(&tables)?,
                forwarding: sysctl::read(FORWARDING)? == "1",
            })
        })
        .await
}
