//! A policy routing rule (`ip rule`) as a value.
//! Out of scope: the kernel ([`crate::host::routing_rule`]).

use ipnetwork::Ipv4Network;

use crate::host::route::PROTOCOL;

/// `RT_TABLE_MAIN`.
pub const MAIN_TABLE: u32 = 254;

/// A rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoutingRule {
    /// Lower values are evaluated first.
    pub priority: u32,
    /// Limits the rule to packets to this network.
    pub to: Option<Ipv4Network>,
    /// The table that it looks up; `None`: it has another action.
    pub table: Option<u32>,
    /// The originator; [`crate::host::route::PROTOCOL`] for sliced, 2 for the kernel.
    pub protocol: u8,
    /// It has conditions in addition to `to`.
    pub has_other_conditions: bool,
}

impl RoutingRule {
    /// A rule of sliced: packets to this network are routed by the main table.
    pub fn via_main_table(priority: u32, to: Ipv4Network) -> Self {
        Self {
            priority,
            to: Some(to),
            table: Some(MAIN_TABLE),
            protocol: PROTOCOL,
            has_other_conditions: false,
        }
    }

    /// Whether a sliced daemon created it (this or another one).
    pub fn is_ours(&self) -> bool {
        self.protocol == PROTOCOL
    }
}
