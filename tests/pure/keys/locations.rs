//! Problems that are found after parsing are located where their field is set.
//! Out of scope: problems of the parser.

use std::collections::BTreeMap;

use slicectl::api::allowed::AllowedDirectories;
use slicectl::api::host_group::{HostGroup, Origin};
use slicectl::api::manifest::Problem;
use slicectl::api::manifest::keys::{Default, Mapping};
use slicectl::api::meta::{Meta, Name};
use slicectl::api::on_demand::{OnDemandEntry, VmOverrides};
use slicectl::api::policy::Entry;
use slicectl::api::validate::{self, Claim};
use slicectl::clock;

use super::fixture::{drafts, places};

#[test]
fn a_problem_of_any_key_is_located_at_the_key_in_a_group_or_in_config() {
    for place in places() {
        let field = match place.mapping {
            Mapping::Document => continue,
            Mapping::Config if place.key.name == "host_groups" => continue,
            Mapping::Config | Mapping::HostGroup => place.key.name.to_owned(),
            Mapping::Disk => format!("disks[0].{}", place.key.name),
            Mapping::Network => format!("network.{}", place.key.name),
            Mapping::Cni => format!("cni.{}", place.key.name),
            Mapping::PortMapping => format!("cni.port_mappings[0].{}", place.key.name),
            Mapping::Bandwidth => format!("cni.bandwidth.{}", place.key.name),
            Mapping::Placement => format!("placement.{}", place.key.name),
            Mapping::Subnets => format!("placement.subnets.{}", place.key.name),
            Mapping::Replacement => format!("replacement.{}", place.key.name),
            _ => unreachable!("not a manifest"),
        };
        let text = place.manifest(place.key.example);
        let drafts = drafts(&text).unwrap_or_else(|e| panic!("{text}: {e:?}"));
        let problem = drafts[0].problem(&field, "is refused".into());
        assert_eq!(problem.at.line, place.line(), "{field}\n{text}");
        let path = match place.mapping {
            Mapping::Config => format!("config.{field}"),
            _ => format!("config.host_groups[0].{field}"),
        };
        assert_eq!(problem.field, path, "{text}");
    }
}

#[test]
fn a_problem_of_a_missing_key_is_located_at_the_group_or_the_mapping_that_lacks_it() {
    for place in places() {
        let is_required = matches!(place.key.default, Default::Required);
        if !matches!(place.mapping, Mapping::HostGroup | Mapping::Network) || is_required {
            continue;
        }
        let field = match place.mapping {
            Mapping::Network => format!("network.{}", place.key.name),
            _ => place.key.name.to_owned(),
        };
        let text = place.without();
        let drafts = drafts(&text).unwrap_or_else(|e| panic!("{text}: {e:?}"));
        let problem = drafts[0].problem(&field, "is refused".into());
        assert_eq!(problem.at.line, 1, "{field}\n{text}");
        assert_eq!(problem.field, format!("config.host_groups[0].{field}"));
    }
}

/// The problems of a manifest for a group that has a VM on demand.
fn with_on_demand_vm(text: &str, stored: &str, overrides: VmOverrides) -> Vec<Problem> {
    let name: Name = "g".parse().unwrap();
    let entry = OnDemandEntry {
        fleet: None,
        name: "extra".parse().unwrap(),
        overrides,
    };
    let group = HostGroup {
        meta: Meta::new(name, clock::now()),
        origin: Origin::Apply,
        spec: drafts(stored).unwrap()[0].spec.clone(),
        orders: BTreeMap::from([(70_000, entry)]),
        adopted: false,
        seen_in: None,
    };
    let drafts = drafts(text).unwrap_or_else(|e| panic!("{text}: {e:?}"));
    let claims = drafts.iter().map(|draft| Claim {
        draft,
        origin: Origin::Apply,
    });
    let problems = validate::on_demand_problems(&[group], &claims.collect::<Vec<_>>());
    problems.into_iter().map(|(_, problem)| problem).collect()
}

#[test]
fn problems_with_vms_on_demand_are_located_at_the_key_that_was_written() {
    let overrides = VmOverrides {
        vcpu: Some(4),
        ram_bytes: Some(2 << 30),
        allow: Some(vec!["10.0.0.0/8".parse::<Entry>().unwrap()]),
        persistent: true,
        ..VmOverrides::default()
    };
    let stored =
        "config: {host_groups: [{name: g, vcpu: 4, image: /i, network: {mode: isolated}}]}";
    let cases = [
        ("ram_mb: 512", "3:9: config.host_groups[0].ram_mb"),
        ("ram_gb: 1", "3:9: config.host_groups[0].ram_gb"),
        (
            "ram_bytes: 1048576",
            "3:12: config.host_groups[0].ram_bytes",
        ),
        ("vcpu: 1", "3:7: config.host_groups[0].vcpu"),
        ("network: {}", "3:1: config.host_groups[0].network.mode"),
        (
            "network: {mode: bridge}",
            "3:17: config.host_groups[0].network.mode",
        ),
        ("network_name: n", "2:8: config.host_groups[0].network.mode"),
        ("count: 1", "2:8: config.host_groups[0].image"),
    ];
    for (line, expected) in cases {
        let network = match line.starts_with("network") {
            true => "",
            false => "network: {mode: isolated},",
        };
        let text = format!("{{config: {{host_groups: [{{\n name: g, {network}\n{line}\n}}]}}}}");
        let problems = with_on_demand_vm(&text, stored, overrides.clone());
        let found: Vec<String> = problems.iter().map(ToString::to_string).collect();
        let expected = format!("t.yaml:{expected}:");
        assert!(
            found.iter().any(|p| p.starts_with(&expected)),
            "{line}: {expected}\n{found:#?}"
        );
    }
}

#[test]
fn a_path_that_config_sets_is_refused_there() {
    let allowed = AllowedDirectories::default();
    for (config, group, expected) in [
        ("kernel_file: /k", "", "2:16: config.kernel_file: found /k"),
        (
            "initrd_file: /k, kernel_file: /var/lib/slice/images/k",
            "",
            "2:16: config.initrd_file",
        ),
        ("image: /i", "", "2:10: config.image"),
        (
            "qemu_bin: /q, kernel_file: /var/lib/slice/images/k",
            "",
            "2:13: config.qemu_bin",
        ),
        (
            "kernel_file: /k",
            "kernel_file: /own",
            "4:26: config.host_groups[0].kernel_file: found /own",
        ),
        (
            "cmdline: quiet",
            "disks: [{path: /d}]",
            "4:28: config.host_groups[0].disks[0].path",
        ),
    ] {
        let text =
            format!("{{config: {{\n  {config},\n  host_groups: [\n  {{name: g, {group}}}]}}}}\n");
        let drafts = drafts(&text).unwrap_or_else(|e| panic!("{text}: {e:?}"));
        let problems = allowed.objections(&drafts[0]);
        let found: Vec<String> = problems.iter().map(ToString::to_string).collect();
        assert_eq!(found.len(), 1, "{text}: {found:?}");
        assert!(
            found[0].starts_with(&format!("t.yaml:{expected}")),
            "{expected}\n{found:?}"
        );
    }
}
