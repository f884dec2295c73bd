//! Each field of a group is changed alone: the change is found, named by its key, and has the effect that the group's plan gives it.
//! Out of scope: reading manifests.

use super::{Effect, changes};
use crate::api::host_group::HostGroupSpec;
use crate::api::manifest::{Source, parse};

/// A group with these fields, as YAML in flow style.
fn group(fields: &str) -> HostGroupSpec {
    let text = format!("config: {{host_groups: [{{name: g, {fields}}}]}}");
    let name = "test.yaml".to_owned();
    let drafts = parse(&Source { name, text }).unwrap_or_else(|problems| {
        panic!("{fields}: {problems:?}");
    });
    drafts.into_iter().next().expect("a group").spec
}

const VMM: &str = "network: {mode: isolated}, kernel_file: /k, hypervisor";
const KEY: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f";
const IMAGE: &str = "network: {mode: isolated}, kernel_file: /k, hypervisor: qemu, image: /i";
const CNI: &str = "network: {mode: cni}, network_name: n";
const GATEWAY: &str = "network: {gateway: 10.1.1.1/24";

/// The fields before and after, and the changes: `live` or `replaces`, then the text.
fn table() -> Vec<(String, String, Vec<&'static str>)> {
    let isolated = |fields: &str| format!("network: {{mode: isolated, {fields}}}");
    let bridge = |fields: &str| format!("network: {{{fields}}}");
    let plain = |fields: &str| format!("network: {{mode: isolated}}, {fields}");
    let vmm = |fields: &str| format!("{VMM}: qemu, {fields}");
    let image = |fields: &str| format!("{IMAGE}, {fields}");
    let cni = |fields: &str| format!("{CNI}, cni: {{{fields}}}");
    let gateway = |fields: &str| format!("{GATEWAY}, {fields}}}");
    let jailed = |fields: &str| format!("{VMM}: firecracker, {fields}");
    vec![
        (
            plain("count: 1"),
            plain("count: 2"),
            vec!["live count: 1 -> 2"],
        ),
        (
            plain("update: rolling"),
            plain("update: on-delete"),
            vec!["live update: rolling -> on-delete"],
        ),
        (
            plain("vcpu: 1"),
            plain("vcpu: 2"),
            vec!["replaces vcpu: 1 -> 2"],
        ),
        (
            plain("ram_mb: 128"),
            plain("ram_gb: 1"),
            vec!["replaces ram_mb: 128 -> 1024"],
        ),
        (
            plain("dns_servers: [1.1.1.1]"),
            plain("dns_servers: [8.8.8.8]"),
            vec![
                "replaces dns_servers: 1.1.1.1 removed",
                "replaces dns_servers: 8.8.8.8 added",
            ],
        ),
        (
            plain("dns_servers: [1.1.1.1, 8.8.8.8]"),
            plain("dns_servers: [8.8.8.8, 1.1.1.1]"),
            vec!["replaces dns_servers: 1.1.1.1, 8.8.8.8 -> 8.8.8.8, 1.1.1.1"],
        ),
        (
            format!("{VMM}: qemu"),
            format!("{VMM}: cloud-hypervisor"),
            vec!["replaces hypervisor: qemu -> cloud-hypervisor"],
        ),
        (
            format!("{VMM}: qemu, qemu_bin: /q"),
            format!("{VMM}: firecracker, firecracker_bin: /f"),
            vec![
                "replaces hypervisor: qemu -> firecracker",
                "replaces qemu_bin: /q removed",
                "replaces firecracker_bin: /f added",
            ],
        ),
        (
            vmm("qemu_bin: /q"),
            vmm("qemu_bin: /r"),
            vec!["replaces qemu_bin: /q -> /r"],
        ),
        (
            jailed("jailer_bin: /j"),
            jailed(""),
            vec!["replaces jailer_bin: /j removed"],
        ),
        (
            vmm(""),
            vmm("kernel_file: /other").replacen("kernel_file: /k, ", "", 1),
            vec!["replaces kernel_file: /k -> /other"],
        ),
        (
            vmm(""),
            vmm("initrd_file: /r"),
            vec!["replaces initrd_file: /r added"],
        ),
        (
            vmm("cmdline: quiet"),
            vmm("cmdline: debug"),
            vec!["replaces cmdline: quiet -> debug"],
        ),
        (
            vmm(""),
            vmm("machine: q35"),
            vec!["replaces machine: microvm -> q35"],
        ),
        (
            vmm(""),
            vmm("restart: on-failure"),
            vec!["live restart: always -> on-failure"],
        ),
        (
            vmm(""),
            vmm("graceful_shutdown: 1m"),
            vec!["live graceful_shutdown: 3s -> 1m"],
        ),
        (
            vmm(""),
            vmm("vsock: false"),
            vec!["replaces vsock: true -> false"],
        ),
        (
            vmm("agent: baked"),
            vmm("agent: inject"),
            vec!["replaces agent: baked -> inject"],
        ),
        (
            vmm(""),
            vmm("agent: none"),
            vec!["replaces agent: baked -> none"],
        ),
        (
            vmm("userdata: a"),
            vmm("userdata: b"),
            vec!["replaces userdata: changed"],
        ),
        (
            vmm("userdata: a"),
            vmm("userdata_file: /f"),
            vec![
                "replaces userdata: changed",
                "replaces userdata_file: /f added",
            ],
        ),
        (
            vmm(&format!("ssh_keys: [{KEY} a]")),
            vmm(&format!("ssh_keys: [{KEY} b]")),
            vec![
                "live ssh_keys: ssh-ed25519 a removed",
                "live ssh_keys: ssh-ed25519 b added",
            ],
        ),
        (
            vmm("secrets: [a]"),
            vmm("secrets: [a, b]"),
            vec!["live secrets: b added"],
        ),
        (vmm(""), vmm("image: /i"), vec!["replaces image: /i added"]),
        (
            image("storage_size: 1G"),
            image("storage_size: 1025M"),
            vec!["replaces storage_size: 1G -> 1025M"],
        ),
        (
            image(""),
            image("persistent: true"),
            vec!["replaces persistent: false -> true"],
        ),
        (
            image("disks: [{path: /a, read_only: false}]"),
            image("disks: [{path: /a, read_only: true}]"),
            vec![
                "replaces disks: /a removed",
                "replaces disks: /a (read-only) added",
            ],
        ),
        (
            isolated(""),
            bridge(""),
            vec!["replaces mode: isolated -> bridge"],
        ),
        (
            isolated(""),
            CNI.to_owned(),
            vec!["replaces mode: isolated -> cni"],
        ),
        (
            isolated(""),
            isolated("range: 169.254.100.0/22"),
            vec!["replaces range: 169.254.100.0/22 added"],
        ),
        (
            isolated(""),
            isolated("drop: [192.168.1.0/24]"),
            vec!["live drop: 192.168.1.0/24 added"],
        ),
        (
            isolated("allow: ['1.1.1.1:53/udp', 8.8.8.8]"),
            isolated("allow: [8.8.8.8]"),
            vec!["live allow: 1.1.1.1:53/udp removed"],
        ),
        (
            isolated("drop: [1.1.1.1, 8.8.8.8]"),
            isolated("drop: [8.8.8.8, 1.1.1.1]"),
            vec!["live drop: 1.1.1.1, 8.8.8.8 -> 8.8.8.8, 1.1.1.1"],
        ),
        (
            isolated("drop: [1.1.1.1]"),
            isolated("drop: [1.1.1.1, 1.1.1.1]"),
            vec!["live drop: 1.1.1.1 added"],
        ),
        (
            isolated(""),
            isolated("on_deny: reject"),
            vec!["live on_deny: drop -> reject"],
        ),
        (
            isolated(""),
            isolated("allow_metadata: true"),
            vec!["live allow_metadata: false -> true"],
        ),
        (
            isolated(""),
            isolated("max_connections: 100"),
            vec!["live max_connections: 100 added"],
        ),
        (
            isolated(""),
            isolated("tap_owner: '5:6'"),
            vec!["replaces tap_owner: 0 -> 5:6"],
        ),
        (
            bridge("bridge: a"),
            bridge("bridge: b"),
            vec!["replaces bridge: a -> b"],
        ),
        (
            bridge("tap_prefix: a"),
            bridge("tap_prefix: b"),
            vec!["replaces tap_prefix: a -> b"],
        ),
        (
            bridge(""),
            bridge("gateway: 10.1.1.1/24"),
            vec!["replaces gateway: 10.1.1.1/24 added"],
        ),
        (
            gateway("range: 10.1.1.2-10.1.1.9"),
            gateway("range: 10.1.1.3-10.1.1.9"),
            vec!["live range: 10.1.1.2-10.1.1.9 -> 10.1.1.3-10.1.1.9"],
        ),
        (
            gateway("range: 10.1.1.2-10.1.1.9"),
            gateway("addresses: [10.1.1.2/24]"),
            vec![
                "live range: 10.1.1.2-10.1.1.9 removed",
                "live addresses: [10.1.1.2] added",
            ],
        ),
        (
            gateway("addresses: [10.1.1.2/24]"),
            gateway("addresses: [10.1.1.2/24, 10.1.1.3/24]"),
            vec!["live addresses: 10.1.1.3 added"],
        ),
        (
            gateway("addresses: [10.1.1.2/24]"),
            gateway(""),
            vec!["live addresses: [10.1.1.2] removed"],
        ),
        (
            bridge(""),
            bridge("antispoof: false"),
            vec!["live antispoof: true -> false"],
        ),
        (
            bridge(""),
            bridge("isolate_ports: true"),
            vec!["live isolate_ports: false -> true"],
        ),
        (
            bridge("max_connections: 90"),
            bridge("max_connections: 100"),
            vec!["live max_connections: 90 -> 100"],
        ),
        (
            bridge(""),
            bridge("tap_owner: '5'"),
            vec!["replaces tap_owner: 0 -> 5"],
        ),
        (
            CNI.to_owned(),
            "network: {mode: cni}, network_name: m".to_owned(),
            vec!["replaces network_name: n -> m"],
        ),
        (
            CNI.to_owned(),
            "network: {mode: cni, tap_owner: '5'}, network_name: n".to_owned(),
            vec!["replaces tap_owner: 0 -> 5"],
        ),
        (
            cni(""),
            cni("port_mappings: [{host_port: 80, guest_port: 8080}]"),
            vec!["replaces cni.port_mappings: 80:8080/tcp added"],
        ),
        (
            cni(""),
            cni("bandwidth: {ingress_rate: 1M, ingress_burst: 100k}"),
            vec!["replaces cni.bandwidth: ingress_rate=1000000,ingress_burst=100000 added"],
        ),
        (
            cni("aliases: [a]"),
            cni("aliases: []"),
            vec!["replaces cni.aliases: a removed"],
        ),
        (
            cni("args: {A: x, B: y}"),
            cni("args: {A: z, C: y}"),
            vec![
                "replaces cni.args.A: x -> z",
                "replaces cni.args.B: y removed",
                "replaces cni.args.C: y added",
            ],
        ),
        (
            cni("ips: [10.0.0.5]"),
            cni("ips: [10.0.0.6/24]"),
            vec![
                "live cni.ips: 10.0.0.5 removed",
                "live cni.ips: 10.0.0.6/24 added",
            ],
        ),
        (
            cni(""),
            cni("mac: '02:00:00:00:00:01'"),
            vec!["replaces cni.mac: 02:00:00:00:00:01 added"],
        ),
    ]
}

#[test]
fn every_field_that_changes_is_named_with_its_values_and_its_effect() {
    for (before, after, expected) in table() {
        let (old, new) = (group(&before), group(&after));
        let found = changes(&old, &new);
        let effect = |effect: Effect| match effect {
            Effect::Live => "live",
            Effect::Replaces => "replaces",
        };
        let texts: Vec<String> = found
            .iter()
            .map(|change| format!("{} {change}", effect(change.effect)))
            .collect();
        assert_eq!(texts, expected, "{before} -> {after}");
        let is_live = found.iter().all(|change| change.effect == Effect::Live);
        let can_change_live = old.template.can_change_live_to(&new.template);
        assert_eq!(is_live, can_change_live, "{before} -> {after}");
    }
}

#[test]
fn the_reverse_of_a_change_has_as_many_entries_and_equal_specs_have_none() {
    for (before, after, expected) in table() {
        let (old, new) = (group(&before), group(&after));
        assert_eq!(
            changes(&new, &old).len(),
            expected.len(),
            "{after} -> {before}"
        );
        assert_eq!(changes(&old, &old), []);
        assert_eq!(changes(&new, &new), []);
    }
}
