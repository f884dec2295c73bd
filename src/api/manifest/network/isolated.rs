//! Reads `network:` of an isolated group: its range and its lists.
//! Out of scope: the ranges of other groups; evaluating the lists (`policy`).

use ipnetwork::Ipv4Network;

use super::super::super::entry_problem::{entry_problem, list_problem};
use super::super::super::network::{IsolatedSpec, NetworkSpec};
use super::super::super::policy::{Entry, Policy};
use super::super::super::pool;
use super::super::keys::limits::{ON_DENY, RANGE_PREFIXES};
use super::super::keys::{Mode, exclusive_to};
use super::super::section::{Field, Reader, Section};
use super::super::yaml::Value;
use super::{Capacity, Network, read_max_connections, read_tap_owner};

pub fn read(reader: &mut Reader, network: &Section) -> Network {
    for key in exclusive_to(Mode::Bridge) {
        if let Some(field) = network.get(key) {
            let message = format!("{key} needs mode: bridge (this group is isolated)");
            reader.refuse(field, message);
        }
    }
    let mut warnings = Vec::new();
    let allow_metadata = network
        .get("allow_metadata")
        .and_then(|field| reader.flag(field))
        .unwrap_or_default();
    let on_deny = network
        .get("on_deny")
        .and_then(|field| reader.one_of(field, &ON_DENY));
    let allow = read_entries(reader, network, "allow", &mut warnings);
    for (field, entry) in &allow {
        if let Some(message) = entry_problem(entry, allow_metadata) {
            reader.refuse(field, message);
        }
    }
    let drop = read_entries(reader, network, "drop", &mut warnings);
    let range = network.get("range");
    let entries = |list: Vec<(Field, Entry)>| list.into_iter().map(|(_, entry)| entry).collect();
    Network {
        warnings,
        spec: NetworkSpec::Isolated(IsolatedSpec {
            range: range.and_then(|field| read_range(reader, field)),
            max_connections: read_max_connections(reader, network),
            policy: Policy {
                allow: entries(allow),
                drop: entries(drop),
                on_deny: on_deny.unwrap_or_default(),
                allow_metadata,
            },
            tap_owner: read_tap_owner(reader, network),
        }),
    }
}

fn read_entries<'n>(
    reader: &mut Reader,
    network: &Section<'n>,
    key: &str,
    warnings: &mut Vec<String>,
) -> Vec<(Field<'n>, Entry)> {
    const EXPECTED: &str = "a list of IP or CIDR";
    let Some(field) = network.get(key) else {
        return Vec::new();
    };
    let items = reader.list(field, EXPECTED);
    if let Some(message) = list_problem(items.len()) {
        reader.refuse(field, message);
        return Vec::new();
    }
    // A value that is not a list has been refused already.
    if items.is_empty() && matches!(field.node.value, Value::List(_)) {
        let at = reader.location(field.node.at);
        warnings.push(format!("{at}: {}: an empty list has no effect", field.path));
    }
    items
        .into_iter()
        .filter_map(|item| {
            let text = reader.text(&item, "IP or CIDR, in quotes")?;
            match text.parse::<Entry>() {
                Ok(entry) => Some((item, entry)),
                Err(error) => {
                    reader.refuse(&item, error.to_string());
                    None
                }
            }
        })
        .collect()
}

fn read_range(reader: &mut Reader, field: &Field) -> Option<Ipv4Network> {
    const EXPECTED: &str = "a CIDR in 169.254.0.0/16, from /16 to /29, such as 169.254.100.0/22";
    let text = reader.text(field, EXPECTED)?;
    // A range is parsed as an entry, which also refuses host bits.
    let entry = match text.parse::<Entry>() {
        Ok(entry) if entry.ports.is_none() && entry.protocol.is_none() && text.contains('/') => {
            entry
        }
        Ok(_) => {
            reader.unexpected(field, EXPECTED);
            return None;
        }
        Err(error) => {
            reader.unexpected(field, &format!("{EXPECTED} ({})", error.why()));
            return None;
        }
    };
    let range = entry.network;
    if !RANGE_PREFIXES.contains(&range.prefix()) || !range.is_subnet_of(pool::link_local()) {
        reader.unexpected(field, EXPECTED);
        return None;
    }
    if let Some(reserved) = pool::reserved_within(range) {
        let message = format!(
            "{range} overlaps {reserved}, which is reserved for cloud services or by RFC 3927; use another range, such as 169.254.100.0/22"
        );
        reader.refuse(field, message);
        return None;
    }
    Some(range)
}

/// The maximum number of VMs of the range.
pub fn capacity(range: Option<Ipv4Network>) -> Capacity {
    let (range, description) = match range {
        Some(range) => (range, range.to_string()),
        None => {
            let words = format!("the derived range, a /{},", pool::PREFIX_LEN);
            (pool::pool(0), words)
        }
    };
    let vms = pool::capacity(range);
    Capacity {
        vms,
        why: format!("{description} has {vms} /30 blocks"),
    }
}
