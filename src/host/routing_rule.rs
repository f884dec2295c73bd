//! Policy routing rules (`ip rule`) for IPv4.
//! Out of scope: routes; the desired rules.

use std::net::IpAddr;

use ipnetwork::Ipv4Network;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::Error;
use super::netlink::{self, Handle};
pub use super::rule::RoutingRule;
use super::rule::routing::MAIN_TABLE;

/// `RT_TABLE_MAIN`.
pub const MAIN: u32 = MAIN_TABLE;
/// `RT_TABLE_LOCAL`.
pub const LOCAL: u32 = 255;

/// All rules, in the order in which they are evaluated.
pub async fn list(handle: &Handle) -> Result<Vec<RoutingRule>, Error> {
    let mut message = RuleMessage::default();
    message.header.family = AddressFamily::Inet;
    let response = handle
        .dump(RouteNetlinkMessage::GetRule(message))
        .await
        .map_err(|e| Error::io("list", "routing rules", e))?;
    let mut rules = Vec::new();
    for part in response {
        match part {
            RouteNetlinkMessage::NewRule(message) => rules.push(read(&message)),
            _ => return Err(netlink::unexpected("list", "routing rules")),
        }
    }
    rules.sort_by_key(|rule| rule.priority);
    Ok(rules)
}

/// Adds a rule. `Exists` if there is an equal one.
pub async fn add(handle: &Handle, rule: &RoutingRule) -> Result<(), Error> {
    let message = RouteNetlinkMessage::NewRule(to_message(rule));
    let added = handle.change(message, NLM_F_CREATE | NLM_F_EXCL).await;
    added.map_err(|e| Error::io("add routing rule", rule.priority.to_string(), e))
}

/// Deletes the rule that equals `rule`. `Absent` if there is none.
pub async fn delete(handle: &Handle, rule: &RoutingRule) -> Result<(), Error> {
    let message = RouteNetlinkMessage::DelRule(to_message(rule));
    let deleted = handle.change(message, 0).await;
    deleted.map_err(|e| Error::io("delete routing rule", rule.priority.to_string(), e))
}

fn to_message(rule: &RoutingRule) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.action = RuleAction::ToTable;
    message.attributes = vec![
        RuleAttribute::Priority(rule.priority),
        RuleAttribute::Protocol(rule.protocol.into()),
    ];
    if let Some(to) = rule.to {
        message.header.dst_len = to.prefix();
        message
            .attributes
            .push(RuleAttribute::Destination(IpAddr::V4(to.network())));
    }
    if let Some(table) = rule.table {
        message.header.table = u8::try_from(table).unwrap_or(0);
        message.attributes.push(RuleAttribute::Table(table));
    }
    message
}

fn read(message: &RuleMessage) -> RoutingRule {
    let looks_up_table = message.header.action == RuleAction::ToTable;
    let mut rule = RoutingRule {
        priority: 0,
        to: None,
        table: looks_up_table.then(|| u32::from(message.header.table)),
        protocol: 0,
        has_other_conditions: message.header.src_len > 0 || message.header.tos > 0,
    };
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Priority(priority) => rule.priority = *priority,
            RuleAttribute::Table(table) if looks_up_table => rule.table = Some(*table),
            RuleAttribute::Protocol(protocol) => rule.protocol = (*protocol).into(),
            RuleAttribute::Destination(IpAddr::V4(ip)) => {
                rule.to = Ipv4Network::new(*ip, message.header.dst_len).ok();
            }
            RuleAttribute::Iifname(_)
            | RuleAttribute::Oifname(_)
            | RuleAttribute::FwMark(_)
            | RuleAttribute::UidRange(_)
            | RuleAttribute::L3MDev(_)
            | RuleAttribute::IpProtocol(_) => rule.has_other_conditions = true,
            _ => {}
        }
    }
    rule
}
