//! Every wrong value of `placement:` and `replacement:`.
//! Out of scope: other keys of a group.

use super::super::super::placement::{Reconcile, Strategy};
use super::super::{Draft, Source, parse};

fn read(group: &str) -> Result<Draft, String> {
    let source = Source {
        name: "fleet.yaml".to_owned(),
        text: format!("config:\n  host_groups:\n    - name: web\n      {group}\n"),
    };
    match parse(&source) {
        Ok(mut drafts) => Ok(drafts.pop().expect("a group")),
        Err(problems) => Err(problems.iter().map(|one| format!("{one}\n")).collect()),
    }
}

const ISOLATED: &str = "kernel_file: /k\n      network: {mode: isolated}\n      ";

#[test]
fn a_group_has_a_placement_and_a_replacement() {
    let draft = read(&format!(
        "{ISOLATED}placement: {{strategy: pack, node_selector: {{zone: a, gpu: ''}}, architecture: aarch64, max_unavailable: 3}}\n      \
         replacement: {{replace_after: 5m, stop_after: 1m, reconcile: keep_original}}"
    ))
    .unwrap();
    let fleet = draft.fleet.as_deref().unwrap();
    let placement = &fleet.placement;
    assert_eq!(placement.strategy, Strategy::Pack);
    assert_eq!(placement.node_selector["zone"], "a");
    assert_eq!(placement.architecture.as_deref(), Some("aarch64"));
    assert_eq!(placement.max_unavailable, 3);
    let replacement = fleet.replacement.unwrap();
    assert_eq!(replacement.replace_after.as_secs(), 300);
    assert_eq!(replacement.reconcile, Reconcile::KeepOriginal);
    let problems = draft.fleet_only();
    let texts: Vec<String> = problems.iter().map(ToString::to_string).collect();
    assert_eq!(
        texts,
        [
            "fleet.yaml:6:7: config.host_groups[0].placement: has no effect on one host: apply it with --fleet",
            "fleet.yaml:7:7: config.host_groups[0].replacement: has no effect on one host: apply it with --fleet",
        ]
    );
}

#[test]
fn a_group_without_them_is_one_of_a_host() {
    let draft = read("count: 1").unwrap();
    assert_eq!((draft.fleet.as_ref(), draft.fleet_only().len()), (None, 0));
    let draft = read("placement: {}").unwrap();
    assert_eq!(draft.fleet.unwrap().placement.max_unavailable, 1);
    assert!(read("placement: {subnets: {pool: 10.64.0.0/12, prefix_len: 24}}").is_ok());
}

#[test]
fn a_wrong_value_is_refused_with_file_line_field_and_what_is_expected() {
    for (keys, expected) in [
        ("placement: 1", "placement: found 1, expected a mapping"),
        (
            "placement: {strategy: spred}",
            "placement.strategy: found \"spred\", expected spread or pack; did you mean \"spread\"?",
        ),
        (
            "placement: {node_selector: [a]}",
            "placement.node_selector: found a list, expected a mapping of labels",
        ),
        (
            "placement: {node_selector: {zone: 1}}",
            "placement.node_selector.zone: found 1, expected the value of a label",
        ),
        (
            "placement: {node_selector: {-a: b}}",
            "placement.node_selector.-a: expected name and value",
        ),
        (
            "placement: {architecture: amd64}",
            "placement.architecture: found \"amd64\", expected x86_64 or aarch64",
        ),
        (
            "placement: {max_unavailable: 0}",
            "placement.max_unavailable: found 0, expected a whole number from 1 to",
        ),
        (
            "placement: {subnets: {pool: 10.64.0.0/12}}",
            "placement.subnets.prefix_len: is missing",
        ),
        (
            "placement: {subnets: {pool: 10.64.0.0, prefix_len: 24}}",
            "placement.subnets.pool: found \"10.64.0.0\", expected the address of a network",
        ),
        (
            "placement: {subnets: {pool: 10.64.0.1/12, prefix_len: 24}}",
            "placement.subnets.pool: found 10.64.0.1/12, expected 10.64.0.0/12",
        ),
        (
            "placement: {subnets: {pool: 10.64.0.0/12, prefix_len: 31}}",
            "placement.subnets.prefix_len: found 31, expected a whole number from 8 to 30",
        ),
        (
            "placement: {subnets: {pool: 10.64.0.0/26, prefix_len: 24}}",
            "placement.subnets.prefix_len: found 24, expected at least 26",
        ),
        (
            "network: {gateway: 10.0.0.1/24}, placement: {subnets: {pool: 10.64.0.0/12, prefix_len: 24}}",
            "placement.subnets: found a gateway or addresses of the group, expected none",
        ),
        (
            "network: {mode: isolated}, placement: {subnets: {pool: 10.64.0.0/12, prefix_len: 24}}",
            "placement.subnets: has no effect with mode isolated",
        ),
        (
            "network_name: n, placement: {subnets: {pool: 10.64.0.0/12, prefix_len: 24}}",
            "placement.subnets: has no effect with mode cni",
        ),
        (
            "placement: {pool: 10.64.0.0/12}",
            "it belongs in placement.subnets:",
        ),
        ("strategy: pack", "it belongs in placement:"),
        (
            "kernel_file: /k, replacement: {stop_after: 1m}",
            "replacement.replace_after: is missing",
        ),
        (
            "kernel_file: /k, replacement: {replace_after: 5m}",
            "replacement.stop_after: is missing",
        ),
        (
            "kernel_file: /k, replacement: {replace_after: 300, stop_after: 1m}",
            "replacement.replace_after: found 300, expected a time, such as 5m",
        ),
        (
            "kernel_file: /k, replacement: {replace_after: 5m, stop_after: 29s}",
            "replacement.stop_after: found \"29s\", expected a time from 30s to",
        ),
        (
            "kernel_file: /k, replacement: {replace_after: 92s, stop_after: 1m}",
            "replacement.replace_after: replace_after is 92s, expected at least 93s",
        ),
        (
            "kernel_file: /k, graceful_shutdown: 1m, replacement: {replace_after: 149s, stop_after: 1m}",
            "expected at least 150s: stop_after (60s), the time to stop a VM (60s) and a margin of 30s",
        ),
        (
            "kernel_file: /k, replacement: {replace_after: 5m, stop_after: 1m, reconcile: keep}",
            "replacement.reconcile: found \"keep\", expected keep_replacement or keep_original",
        ),
        (
            "replacement: {replace_after: 5m, stop_after: 1m}",
            "replacement: has no effect with hypervisor \"none\"",
        ),
        (
            "kernel_file: /k, image: /i, persistent: true, replacement: {replace_after: 5m, stop_after: 1m}",
            "replacement: has no effect with persistent: true",
        ),
        (
            "kernel_file: /k, disks: [{path: /d, read_only: false}], replacement: {replace_after: 5m, stop_after: 1m}",
            "replacement: has no effect with a writable disk",
        ),
        (
            "kernel_file: /k, network: {gateway: 10.0.0.1/24, addresses: [10.0.0.2]}, replacement: {replace_after: 5m, stop_after: 1m}",
            "replacement: has no effect with fixed addresses",
        ),
        (
            "kernel_file: /k, network_name: n, cni: {ips: [10.0.0.2]}, replacement: {replace_after: 5m, stop_after: 1m}",
            "replacement: has no effect with fixed addresses",
        ),
    ] {
        let source = Source {
            name: "fleet.yaml".to_owned(),
            text: format!("config: {{host_groups: [\n{{name: web, {keys}}}]}}\n"),
        };
        let problems = parse(&source).expect_err(keys);
        let text = problems[0].to_string();
        assert!(text.contains(expected), "{keys}: {text}");
        assert!(text.starts_with("fleet.yaml:2:"), "{text}");
        assert_eq!(problems.len(), 1, "{keys}: {problems:?}");
    }
}
