//! The problems of a group with another number of VMs. A manifest with that `count` has the same problems; a test compares both.
//! Out of scope: conflicts with other groups ([`super::super::validate`]).

use super::super::host_group::{HostGroup, HostGroupSpec, MAX_COUNT};
use super::super::link_name::{MAX_TAP_LEN, tap_number};
use super::super::meta::Name;
use super::super::network::NetworkSpec;
use super::super::placement::Placement;
use super::network::{self, Capacity};

/// Why the group cannot have the number of VMs in `spec`; empty if it can.
pub fn count_problems(name: &Name, spec: &HostGroupSpec) -> Vec<String> {
    problems(name, spec, None)
}

/// The same for a group of a fleet.
pub fn fleet_count_problems(
    name: &Name,
    spec: &HostGroupSpec,
    placement: &Placement,
) -> Vec<String> {
    problems(name, spec, Some(placement))
}

/// The number of VMs that the network of a group limits. `placement`: of a group of a fleet, in which some networks limit the VMs of each node,
/// and the scheduler decides how many it has.
pub(super) fn limit(network: &NetworkSpec, placement: Option<&Placement>) -> Option<Capacity> {
    match (network, placement) {
        (NetworkSpec::Isolated(_), Some(_)) => None,
        (NetworkSpec::Bridge(_), Some(placement)) if placement.subnets.is_some() => None,
        _ => network::capacity(network),
    }
}

fn problems(name: &Name, spec: &HostGroupSpec, placement: Option<&Placement>) -> Vec<String> {
    let count = spec.count;
    let network = &spec.template.network;
    let mut found = Vec::new();
    if count > MAX_COUNT {
        found.push(format!("found {count}, expected 0 to {MAX_COUNT}"));
        return found;
    }
    if let Some(limit) = limit(network, placement).filter(|limit| count > limit.vms) {
        found.push(does_not_fit(count, &limit.why));
    }
    if HostGroup::vm_name(name, count).is_none() {
        found.push(name_too_long(name, count));
    }
    if count > 1 && spec.template.storage.has_writable_disk() {
        found.push(format!(
            "at most one VM may write to a disk, and the group would have {count}"
        ));
    }
    match network {
        NetworkSpec::Isolated(_) => {}
        NetworkSpec::Bridge(bridge) => {
            let last = bridge.tap(count);
            if last.len() > MAX_TAP_LEN {
                found.push(format!(
                    "the name of the last TAP, \"{last}\", would have {} characters, expected at most {MAX_TAP_LEN}",
                    last.len()
                ));
            }
            let number = tap_number(&bridge.tap_prefix, &bridge.bridge);
            if let Some(number) = number.filter(|number| *number < count) {
                found.push(format!(
                    "the bridge and the TAP of VM {} would both have the name \"{}\"",
                    number + 1,
                    bridge.bridge
                ));
            }
        }
        NetworkSpec::Cni(spec) => {
            let options = &spec.cni;
            let single = [
                ("cni.port_mappings", !options.port_mappings.is_empty()),
                ("cni.mac", options.mac.is_some()),
            ];
            let single = single
                .into_iter()
                .filter(|(_, is_set)| *is_set && count > 1);
            found.extend(single.map(|(key, _)| {
                format!("{key} applies to one VM, and the group would have {count}")
            }));
        }
    }
    found
}

pub(super) fn does_not_fit(count: u32, why: &str) -> String {
    let vms = match count {
        1 => "1 VM does".to_owned(),
        count => format!("{count} VMs do"),
    };
    format!("{vms} not fit: {why}")
}

pub(super) fn name_too_long(name: &Name, count: u32) -> String {
    format!(
        "the VM name \"{name}-{count}\" would have {} characters, expected at most 63",
        name.as_str().len() + 1 + count.to_string().len()
    )
}

#[cfg(test)]
mod tests {
    use super::super::{Draft, Scope, Source, parse, parse_nonempty};
    use super::*;

    fn read(name: &str, count: u32, fields: &str) -> Option<Draft> {
        let text = format!("config: {{host_groups: [{{name: {name}, count: {count}, {fields}}}]}}");
        let name = "test.yaml".to_owned();
        parse(&Source { name, text }).ok()?.pop()
    }

    #[test]
    fn a_number_of_vms_is_refused_exactly_if_a_manifest_with_it_is() {
        let long = "a".repeat(61);
        let isolated = "network: {mode: isolated}";
        let prefix = "t".repeat(MAX_TAP_LEN - 1);
        let long_prefix =
            format!("network: {{bridge: br0, tap_prefix: {prefix}, gateway: 10.0.0.1/24}}");
        for (name, fields, last_valid) in [
            ("g", isolated, 256),
            (&long, isolated, 9),
            ("g", "network: {mode: isolated, range: 169.254.100.0/28}", 4),
            (
                "g",
                "network: {mode: isolated}, disks: [{path: /d, read_only: false}]",
                1,
            ),
            (
                "g",
                "network: {bridge: br0, tap_prefix: t, gateway: 10.0.0.1/29}",
                5,
            ),
            (
                "g",
                "network: {bridge: br0, tap_prefix: t, gateway: 10.0.0.1/24, addresses: [10.0.0.2/24, 10.0.0.3/24]}",
                2,
            ),
            (
                "g",
                "network: {bridge: br0, tap_prefix: t, gateway: 10.0.0.1/24, range: 10.0.0.20-10.0.0.22}",
                3,
            ),
            (
                "g",
                "network: {bridge: t7, tap_prefix: t, gateway: 10.0.0.1/24}",
                7,
            ),
            ("g", &long_prefix, 10),
            ("g", "network_name: n, cni: {mac: '02:00:00:00:00:01'}", 1),
            (
                "g",
                "network_name: n, cni: {port_mappings: [{host_port: 80, guest_port: 80}]}",
                1,
            ),
            ("g", "network_name: n, cni: {ips: [10.0.0.2, 10.0.0.3]}", 2),
        ] {
            let one = read(name, 1, fields).unwrap_or_else(|| panic!("{fields}"));
            for count in [0, 1, last_valid, last_valid + 1, MAX_COUNT, MAX_COUNT + 1] {
                let mut spec = one.spec.clone();
                spec.count = count;
                let found = count_problems(&one.name, &spec);
                let is_valid = read(name, count, fields).is_some();
                assert_eq!(found.is_empty(), is_valid, "{fields}: {count}: {found:?}");
            }
            assert!(read(name, last_valid, fields).is_some(), "{fields}");
            assert!(read(name, last_valid + 1, fields).is_none(), "{fields}");
        }
    }

    #[test]
    fn the_networks_of_a_node_do_not_limit_the_vms_of_a_fleet() {
        let isolated = "network: {mode: isolated, range: 169.254.100.0/28}";
        let bridge = "network: {bridge: br0, tap_prefix: t, gateway: 10.0.0.1/29}";
        let subnets =
            "network: {mode: bridge}, placement: {subnets: {pool: 10.0.0.0/16, prefix_len: 29}}";
        let fixed = "network_name: n, cni: {ips: [10.0.0.2, 10.0.0.3]}";
        for (fields, last_on_a_host, is_limited_in_a_fleet) in [
            (isolated, 4, false),
            ("network: {mode: isolated}", 256, false),
            (bridge, 5, true),
            (subnets, 253, false),
            (fixed, 2, true),
        ] {
            let count = last_on_a_host + 1;
            let text = format!("config: {{host_groups: [{{name: g, count: {count}, {fields}}}]}}");
            let name = "test.yaml".to_owned();
            let source = Source { name, text };
            let found = parse_nonempty(&source, Scope::Fleet);
            assert_eq!(found.is_err(), is_limited_in_a_fleet, "{fields}: {found:?}");
            assert!(parse_nonempty(&source, Scope::Host).is_err(), "{fields}");
            // `scale --fleet` decides the same.
            let text = source.text.replace(&format!("count: {count}"), "count: 1");
            let one = Source { text, ..source };
            let mut draft = parse_nonempty(&one, Scope::Fleet).unwrap().pop().unwrap();
            draft.spec.count = count;
            let placement = draft.fleet.map(|it| it.placement).unwrap_or_default();
            let problems = fleet_count_problems(&draft.name, &draft.spec, &placement);
            assert_eq!(!problems.is_empty(), is_limited_in_a_fleet, "{problems:?}");
        }
    }
}
