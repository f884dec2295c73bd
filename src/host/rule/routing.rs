//! A rule of policy routing (`ip rule`) as a value.
//! Out of scope: the kernel ([`crate::host::routing_rule`]).

use ipnetwork::Ipv4Network;

use crate::host::route::PROTOCOL;

/// `RT_TABLE_MAIN`.
pub const MAIN_TABLE: u32 = 254;

/// A rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoutingRule {
    /// The lower, the earlier it is asked.
    pub priority: u32,
    /// Packets to these only.
    pub to: Option<Ipv4Network>,
    /// The table that it asks; none: it asks none.
    pub table: Option<u32>,
    /// Who made it; ours is [`crate::host::route::PROTOCOL`], the kernel's own 2.
    pub protocol: u8,
    /// It has conditions beside `to`.
    pub narrowed: bool,
}

impl RoutingRule {
    /// A rule of ours: packets to this network are routed by the main table.
    pub fn by_main(priority: u32, to: Ipv4Network) -> Self {
        Self {
            priority,
            to: Some(to),
            table: Some(MAIN_TABLE),
            protocol: PROTOCOL,
            narrowed: false,
        }
    }

    /// Whether one of ours made it, of whichever daemon.
    pub fn is_ours(&self) -> bool {
        self.protocol == PROTOCOL
    }
}
