//! Groups with and without conflicts, and the exact message of each conflict.
//! Out of scope: problems of a single manifest (`tests/pure/manifests.rs`).

use std::collections::HashSet;

use proptest::prelude::*;

use super::super::host_group::MAX_COUNT;
use super::super::manifest::{Source, parse};
use super::super::meta::Meta;
use super::super::on_demand::{NewVm, OnDemandEntry};
use super::*;

fn drafts(file: &str, groups: &[(&str, Option<&str>)]) -> Vec<Draft> {
    let mut text = "config:\n  host_groups:\n".to_owned();
    for (name, range) in groups {
        let range = range.map_or(String::new(), |range| format!(", range: {range}"));
        text += &format!("    - {{name: {name}, network: {{mode: isolated{range}}}}}\n");
    }
    parse(&Source {
        name: file.into(),
        text,
    })
    .expect("a valid manifest")
}

fn stored(origin: Origin, draft: &Draft) -> HostGroup {
    HostGroup {
        adopted: false,
        seen_in: None,
        meta: Meta::new(draft.name.clone(), jiff::Timestamp::UNIX_EPOCH),
        origin,
        spec: draft.spec.clone(),
        orders: Default::default(),
    }
}

fn claim(draft: &Draft) -> Claim<'_> {
    let origin = Origin::File(draft.at.file.clone().into());
    Claim { draft, origin }
}

fn messages(problems: &[(usize, Problem)]) -> Vec<String> {
    problems.iter().map(|(_, p)| p.to_string()).collect()
}

#[test]
fn a_group_in_two_files_is_reported_with_both_locations() {
    let (a, b) = (
        drafts("a.yaml", &[("web", None)]),
        drafts("b.yaml", &[("web", None)]),
    );
    assert_eq!(
        messages(&conflicts(&[], &[], &[claim(&a[0]), claim(&b[0])])),
        [
            "b.yaml:3:14: config.host_groups[0].name: group \"web\" is already defined at a.yaml:3:14"
        ]
    );
}

#[test]
fn overlapping_ranges_are_reported_with_both_groups_ranges_and_locations() {
    let a = drafts("a.yaml", &[("one", Some("169.254.100.0/22"))]);
    let b = drafts("b.yaml", &[("two", Some("169.254.102.0/23"))]);
    assert_eq!(
        messages(&conflicts(&[], &[], &[claim(&a[0]), claim(&b[0])])),
        [
            "b.yaml:3:52: config.host_groups[0].network.range: 169.254.102.0/23 overlaps 169.254.100.0/22 of group \"one\" at a.yaml:3:14"
        ]
    );
}

#[test]
fn an_existing_group_wins_over_a_new_one_in_an_earlier_file() {
    let new = drafts("a.yaml", &[("new", Some("169.254.100.0/22"))]);
    let old = drafts("b.yaml", &[("old", Some("169.254.100.0/22"))]);
    let running = [stored(Origin::File("b.yaml".into()), &old[0])];
    let claims = by_precedence(&running, vec![claim(&new[0]), claim(&old[0])]);
    let refused = conflicts(&[], &[], &claims);
    assert_eq!(refused.len(), 1);
    assert_eq!(claims[refused[0].0].draft.name.as_str(), "new");
}

#[test]
fn apply_to_a_group_of_a_file_is_refused_with_the_path_of_the_file() {
    let applied = drafts("-", &[("web", None), ("other", None)]);
    let running = [stored(
        Origin::File("/etc/slice/groups.d/web.yaml".into()),
        &applied[0],
    )];
    let problems = check_apply(&running, &applied).unwrap_err();
    assert_eq!(problems.len(), 1);
    assert_eq!(
        problems[0].to_string(),
        "-:3:14: config.host_groups[0].name: group \"web\" is defined in the file /etc/slice/groups.d/web.yaml; change it there"
    );
}

#[test]
fn apply_changes_applied_groups_and_two_of_them_may_swap_ranges() {
    let before = drafts(
        "-",
        &[
            ("a", Some("169.254.100.0/22")),
            ("b", Some("169.254.104.0/22")),
        ],
    );
    let after = drafts(
        "-",
        &[
            ("a", Some("169.254.104.0/22")),
            ("b", Some("169.254.100.0/22")),
        ],
    );
    let running: Vec<_> = before.iter().map(|d| stored(Origin::Apply, d)).collect();
    assert_eq!(check_apply(&running, &after), Ok(()));
    // Without the second, the first conflicts with the stored range of the second.
    assert_eq!(check_apply(&running, &after[..1]).unwrap_err().len(), 1);
}

/// One file for each group: name, count and network.
fn bridge_drafts(groups: &[(&str, u32, &str)]) -> Vec<Draft> {
    let one = |(name, count, network): &(&str, u32, &str)| {
        let group = format!("{{name: {name}, count: {count}, network: {{{network}}}}}");
        let text = format!("config:\n  host_groups:\n    - {group}\n");
        let file = format!("{name}.yaml");
        parse(&Source { name: file, text }).expect("a valid manifest")
    };
    groups.iter().flat_map(one).collect()
}

fn conflict_messages(groups: &[(&str, u32, &str)]) -> Vec<String> {
    let drafts = bridge_drafts(groups);
    let claims: Vec<Claim> = drafts.iter().map(claim).collect();
    messages(&conflicts(&[], &[], &claims))
}

#[test]
fn conflicts_of_bridge_groups_are_reported_with_both_groups_and_locations() {
    let cases: &[(&str, &str, &str)] = &[
        (
            "tap_prefix: vm",
            "tap_prefix: vm",
            "b.yaml:3:49: config.host_groups[0].network.tap_prefix: \"vm\" is already the prefix of group \"a\" at a.yaml:3:14",
        ),
        (
            "tap_prefix: vm",
            "tap_prefix: vm1",
            "b.yaml:3:49: config.host_groups[0].network.tap_prefix: a TAP would have the name \"vm10\", as one of the 20 TAPs of group \"a\" at a.yaml:3:14 with the prefix \"vm\"",
        ),
        (
            "bridge: vm3",
            "tap_prefix: vm",
            "b.yaml:3:49: config.host_groups[0].network.tap_prefix: a TAP would have the name \"vm3\", as the bridge of group \"a\" at a.yaml:3:14",
        ),
        (
            "tap_prefix: vm",
            "bridge: vm19",
            "b.yaml:3:45: config.host_groups[0].network.bridge: \"vm19\" is a TAP of group \"a\" at a.yaml:3:14",
        ),
        (
            "bridge: br0, gateway: 10.0.0.1/24",
            "bridge: br0, gateway: 10.0.0.1/16",
            "b.yaml:3:59: config.host_groups[0].network.gateway: 10.0.0.1/16 differs from 10.0.0.1/24 of group \"a\" at a.yaml:3:14 on bridge \"br0\"; all groups on a bridge must have the same gateway",
        ),
        (
            "bridge: br0, gateway: 10.0.0.1/24",
            "bridge: br1, gateway: 10.0.200.1/16",
            "b.yaml:3:59: config.host_groups[0].network.gateway: 10.0.0.0/16 of bridge \"br1\" overlaps 10.0.0.0/24 of bridge \"br0\" of group \"a\" at a.yaml:3:14",
        ),
        (
            "bridge: br0, gateway: 10.0.0.1/24, range: 10.0.0.10-10.0.0.40",
            "bridge: br0, gateway: 10.0.0.1/24, range: 10.0.0.40-10.0.0.60",
            "b.yaml:3:79: config.host_groups[0].network.range: 10.0.0.40 is also among the addresses of group \"a\" at a.yaml:3:14",
        ),
        (
            "bridge: br0, gateway: 10.0.0.1/24, range: 10.0.0.10-10.0.0.40",
            "bridge: br0, gateway: 10.0.0.1/24, addresses: [10.0.0.2, 10.0.0.3, 10.0.0.4, 10.0.0.5, 10.0.0.12]",
            "b.yaml:3:72: config.host_groups[0].network.addresses: 10.0.0.12 is also among the addresses of group \"a\" at a.yaml:3:14",
        ),
    ];
    for (a, b, expected) in cases {
        assert_eq!(conflict_messages(&[("a", 20, a), ("b", 5, b)]), [*expected]);
    }
    // The same address in the lists of two groups.
    let list = "bridge: br0, gateway: 10.0.0.1/24, addresses: [10.0.0.9]";
    assert_eq!(
        conflict_messages(&[("a", 1, list), ("b", 1, list)]),
        [
            "b.yaml:3:72: config.host_groups[0].network.addresses: 10.0.0.9 is also among the addresses of group \"a\" at a.yaml:3:14"
        ]
    );
}

#[test]
fn similar_bridge_groups_without_a_shared_resource_do_not_conflict() {
    let cases: &[(&str, &str)] = &[
        ("bridge: br0, gateway: 10.0.0.1/24", "bridge: br0"),
        ("bridge: br0", "bridge: br0"),
        (
            "bridge: br0, gateway: 10.0.0.1/24",
            "bridge: br0, gateway: 10.0.0.1/24",
        ),
        (
            "bridge: br0, gateway: 10.0.0.1/24",
            "bridge: br1, gateway: 10.0.1.1/24",
        ),
        ("tap_prefix: vm", "tap_prefix: vm3"),
        ("tap_prefix: vm", "tap_prefix: vm0"),
        ("tap_prefix: vm", "bridge: vm20"),
        (
            "bridge: br0, gateway: 10.0.0.1/24, range: 10.0.0.10-10.0.0.40",
            "bridge: br0, gateway: 10.0.0.1/24, range: 10.0.0.41-10.0.0.60",
        ),
        ("", "mode: bridge"),
    ];
    for (a, b) in cases {
        assert_eq!(
            conflict_messages(&[("a", 20, a), ("b", 5, b)]),
            [""; 0],
            "{a} {b}"
        );
    }
}

#[test]
fn a_bridge_has_at_most_1023_ports_in_all_its_groups() {
    let net = "bridge: br0, gateway: 10.0.0.1/16";
    assert_eq!(
        conflict_messages(&[("a", 1000, net), ("b", 23, net)]),
        [""; 0]
    );
    assert_eq!(
        conflict_messages(&[("a", 1000, net), ("b", 20, net), ("c", 4, net)]),
        [
            "c.yaml:3:24: config.host_groups[0].count: bridge \"br0\" would have 1024 ports, 4 in addition to 1000 of group \"a\" at a.yaml:3:14, 20 of group \"b\" at b.yaml:3:14; expected at most 1023"
        ]
    );
}

#[test]
fn an_existing_group_that_grows_into_the_taps_of_another_is_refused() {
    let before = bridge_drafts(&[("a", 5, "tap_prefix: vm"), ("b", 5, "tap_prefix: vm1")]);
    let running: Vec<_> = before
        .iter()
        .map(|d| stored(Origin::File(d.at.file.clone().into()), d))
        .collect();
    let after = bridge_drafts(&[("a", 20, "tap_prefix: vm"), ("b", 5, "tap_prefix: vm1")]);
    let claims = by_precedence(&running, after.iter().map(claim).collect());
    let refused = conflicts(&[], &[], &claims);
    assert_eq!(refused.len(), 1);
    assert_eq!(claims[refused[0].0].draft.name.as_str(), "a");
}

proptest! {
    #[test]
    fn vm_names_are_unique_when_group_names_are(
        groups in proptest::collection::hash_set("[a-c1-3]{1,2}(-[1-3a]{1,2}){0,2}", 1..8),
        count in 1_u32..40,
    ) {
        let mut seen = HashSet::new();
        for group in &groups {
            let group = Name::new(group.clone()).unwrap();
            for index in 1..=count {
                prop_assert!(seen.insert(HostGroup::vm_name(&group, index).unwrap()));
            }
        }
    }
}

/// The CNI group `group`, with a VM made on demand with the options `own`.
fn with_one_on_demand(group: &Draft, own: &str) -> HostGroup {
    let overrides: NewVm = serde_json::from_str(own).expect("a request");
    let (_, overrides) = overrides.split();
    let entry = OnDemandEntry {
        fleet: None,
        name: Name::try_from("own".to_owned()).unwrap(),
        overrides,
    };
    HostGroup {
        orders: [(MAX_COUNT + 1, entry)].into(),
        ..stored(Origin::Apply, group)
    }
}

#[test]
fn a_group_cannot_request_resources_of_a_vm_made_on_demand() {
    let cni = |name: &str, network: &str, options: &str| {
        let text = format!(
            "config:\n  host_groups:\n    - {{name: {name}, network_name: {network}, cni: {{{options}}}}}\n"
        );
        let file = format!("{name}.yaml");
        parse(&Source { name: file, text }).expect("a valid manifest")
    };
    let own = r#"{"cni": {"port_mappings": [{"host_port": 8081, "guest_port": 80}],
        "ips": ["10.1.0.9"], "mac": "02:00:00:00:00:09"}}"#;
    let pod = cni("pod", "slicer", "");
    let running = [with_one_on_demand(&pod[0], own)];
    let cases = [
        (
            "slicer",
            "port_mappings: [{host_port: 8081, guest_port: 1}]",
            Some("host port 8081/tcp is already mapped by vm/own"),
        ),
        (
            "another",
            "port_mappings: [{host_port: 8081, guest_port: 1}]",
            Some("host port 8081/tcp is already mapped by vm/own"),
        ),
        (
            "slicer",
            "port_mappings: [{host_port: 8081, guest_port: 1, protocol: udp}]",
            None,
        ),
        (
            "slicer",
            "ips: [10.1.0.9]",
            Some("address 10.1.0.9 of CNI network `slicer` is already requested by vm/own"),
        ),
        ("another", "ips: [10.1.0.9]", None),
        (
            "slicer",
            "mac: \"02:00:00:00:00:09\"",
            Some("MAC 02:00:00:00:00:09 in CNI network `slicer` is already requested by vm/own"),
        ),
        ("another", "mac: \"02:00:00:00:00:09\"", None),
    ];
    for (network, options, refusal) in cases {
        let web = cni("web", network, options);
        let both = [pod.clone(), web.clone()].concat();
        for (claimed, unchanged) in [(&both, true), (&web, false)] {
            let claims = by_precedence(&running, claimed.iter().map(claim).collect());
            let fixed: Vec<&HostGroup> = running.iter().filter(|_| !unchanged).collect();
            let found = messages(&conflicts(&running, &fixed, &claims));
            match refusal {
                None => assert_eq!(found, [""; 0], "{network}: {options}"),
                Some(message) => {
                    assert_eq!(found.len(), 1, "{network}: {options}: {found:?}");
                    assert!(found[0].contains(message), "{found:?}");
                }
            }
        }
    }
}

#[test]
fn the_number_of_addresses_of_a_vm_made_on_demand_is_limited() {
    let text = "config:\n  host_groups:\n    - {name: pod, network_name: slicer}\n";
    let pod = parse(&Source {
        name: "pod.yaml".into(),
        text: text.into(),
    });
    let template = &pod.expect("a valid manifest")[0].spec.template;
    for (count, refused) in [(64, false), (65, true), (50_000, true)] {
        let ips = (0..count).map(|n| format!("10.{}.{}.9", n / 250, n % 250));
        let overrides = serde_json::json!({"cni": {"ips": ips.collect::<Vec<_>>()}});
        let overrides: NewVm = serde_json::from_value(overrides).expect("a request");
        let found = overrides.split().1.objections(template);
        let is_refused = found
            .iter()
            .any(|(_, message)| message.contains("expected at most 64"));
        assert_eq!(is_refused, refused, "{count}: {found:?}");
    }
}
