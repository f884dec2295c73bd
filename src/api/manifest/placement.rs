//! Reads `placement:` and `replacement:` of a group, which only a fleet has.
//! Out of scope: whether the group is applied to a fleet ([`super::Draft::fleet_only`]).

use std::time::Duration;

use ipnetwork::Ipv4Network;

use super::super::host_group::MAX_COUNT;
use super::super::placement::{
    FleetPart, MAX_REPLACE_AFTER, MIN_STOP_AFTER, Placement, Replacement, Subnets, problems,
};
use super::super::vm::VmSpec;
use super::keys::Mapping;
use super::keys::limits::{ARCHITECTURES, POOL_PREFIXES, RECONCILES, STRATEGIES, SUBNET_PREFIXES};
use super::labels;
use super::section::{Field, Reader, Section};

/// What a pool is, for messages.
const POOL: &str = "the address of a network with its prefix length, such as 10.64.0.0/12";

/// The settings of the group; `None` if it has none of them.
pub fn read(reader: &mut Reader, group: &Section) -> Option<Box<FleetPart>> {
    let placement = group.get("placement");
    let replacement = group.get("replacement");
    if placement.is_none() && replacement.is_none() {
        return None;
    }
    let placement = placement.and_then(|field| read_placement(reader, field));
    let replacement = replacement.and_then(|field| read_replacement(reader, field));
    Some(Box::new(FleetPart {
        placement: placement.unwrap_or_default(),
        replacement,
    }))
}

fn read_placement(reader: &mut Reader, field: &Field) -> Option<Placement> {
    let section = reader.section(field, Mapping::Placement)?;
    let strategy = section
        .get("strategy")
        .and_then(|field| reader.one_of(field, &STRATEGIES));
    let node_selector = section
        .get("node_selector")
        .map(|field| labels::read(reader, field));
    let architecture = section
        .get("architecture")
        .and_then(|field| reader.one_of(field, &ARCHITECTURES));
    let max_unavailable = section
        .get("max_unavailable")
        .and_then(|field| reader.whole(field, 1..=MAX_COUNT.into()));
    let subnets = section
        .get("subnets")
        .and_then(|field| read_subnets(reader, field));
    let default = Placement::default();
    Some(Placement {
        strategy: strategy.unwrap_or_default(),
        node_selector: node_selector.unwrap_or_default(),
        architecture: architecture.map(str::to_owned),
        max_unavailable: max_unavailable.map_or(default.max_unavailable, |count| count as u32),
        subnets,
    })
}

fn read_subnets(reader: &mut Reader, field: &Field) -> Option<Subnets> {
    let section = reader.section(field, Mapping::Subnets)?;
    let pool = match section.get("pool") {
        Some(field) => read_pool(reader, field),
        None => missing(reader, &section, "pool"),
    };
    let prefix = match section.get("prefix_len") {
        Some(field) => {
            let least = u64::from(*SUBNET_PREFIXES.start());
            let found = reader.whole(field, least..=u64::from(*SUBNET_PREFIXES.end()));
            found.map(|prefix| (field, prefix as u8))
        }
        None => missing(reader, &section, "prefix_len"),
    };
    let (pool, (field, prefix_len)) = (pool?, prefix?);
    if prefix_len < pool.prefix() {
        let message = format!(
            "found {prefix_len}, expected at least {} as of the pool",
            pool.prefix()
        );
        reader.refuse(field, message);
        return None;
    }
    Some(Subnets { pool, prefix_len })
}

fn read_pool(reader: &mut Reader, field: &Field) -> Option<Ipv4Network> {
    let text = reader.text(field, POOL)?;
    let pool: Option<Ipv4Network> = match text.contains('/') {
        true => text.parse().ok(),
        false => None,
    };
    let Some(pool) = pool.filter(|pool| POOL_PREFIXES.contains(&pool.prefix())) else {
        reader.unexpected(field, POOL);
        return None;
    };
    if pool.ip() != pool.network() {
        let message = format!(
            "found {text}, expected {}/{}",
            pool.network(),
            pool.prefix()
        );
        reader.refuse(field, message);
        return None;
    }
    Some(pool)
}

fn read_replacement(reader: &mut Reader, field: &Field) -> Option<Replacement> {
    let section = reader.section(field, Mapping::Replacement)?;
    let mut time = |key, least| match section.get(key) {
        Some(field) => read_time(reader, field, least),
        None => missing(reader, &section, key),
    };
    let replace_after = time("replace_after", Duration::ZERO);
    let stop_after = time("stop_after", MIN_STOP_AFTER);
    let reconcile = section
        .get("reconcile")
        .and_then(|field| reader.one_of(field, &RECONCILES));
    Some(Replacement {
        replace_after: replace_after?,
        stop_after: stop_after?,
        reconcile: reconcile.unwrap_or_default(),
    })
}

fn read_time(reader: &mut Reader, field: &Field, least: Duration) -> Option<Duration> {
    let spelled = |time| humantime::format_duration(time).to_string();
    let expected = match least.is_zero() {
        true => "a time, such as 5m".to_owned(),
        false => format!(
            "a time from {} to {}, such as 1m",
            spelled(least),
            spelled(MAX_REPLACE_AFTER)
        ),
    };
    let text = reader.text(field, &expected)?;
    let time = humantime::parse_duration(text).ok();
    let time = time.filter(|time| (least..=MAX_REPLACE_AFTER).contains(time));
    if time.is_none() {
        reader.unexpected(field, &expected);
    }
    time
}

fn missing<T>(reader: &mut Reader, section: &Section, key: &str) -> Option<T> {
    reader.refuse_at(section.at, &format!("{}.{key}", section.path), "is missing");
    None
}

/// Refuses settings that contradict the spec of the VMs.
pub fn check(reader: &mut Reader, group: &Section, spec: &VmSpec, fleet: Option<&FleetPart>) {
    let Some(fleet) = fleet else { return };
    for (name, message) in problems(spec, &fleet.placement, fleet.replacement.as_ref()) {
        let (key, inner) = name.split_once('.').unwrap_or((name, ""));
        let Some(field) = group.get(key) else {
            continue;
        };
        // A key without inner key is the field itself.
        let at = field.node.member(inner).at;
        reader.refuse_at(at, &format!("{}.{name}", group.path), message);
    }
}

#[cfg(test)]
mod tests;
