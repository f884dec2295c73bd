//! `slicectl new`: the manifest that it prints.
//! Out of scope: what else a manifest may contain.

use slicectl::api::host_group::HostGroupSpec;
use slicectl::api::manifest::{self, Source};

use super::offline;

#[test]
fn new_prints_the_documented_yaml() {
    let (runner, _dir) = offline();
    runner.check(&[
            ("new-minimal", "new sandbox --net=isolated"),
            (
                "new-full",
                "new sandbox --net=isolated --count 2 --vcpu 1 --ram-mb 128 --range 169.254.100.0/22 \
                 --allow 192.168.222.1:3128 --allow 1.1.1.1:53/udp,1.1.1.1:53/tcp --drop 192.168.1.0/24 --on-deny reject \
                 --dns 1.1.1.1,8.8.8.8 --kernel-file /boot/vmlinuz --initrd-file /boot/initrd.img",
            ),
            (
                "new-odd-names",
                "new 123 --net=isolated --kernel-file /a:#b --allow 10.0.0.0/8",
            ),
            (
                "new-never-matches",
                "new a --net=isolated --allow 10.0.0.0/8 --drop 10.1.0.0/16",
            ),
            ("new-bridge", "new web --net=bridge"),
            (
                "new-bridge-range",
                "new web --net=bridge --count 3 --bridge brvm0 --tap-prefix vmtap --gateway 192.168.137.1/24 \
                 --range 192.168.137.20-192.168.137.80 --no-antispoof --isolate-ports --tap-owner 1000",
            ),
            (
                "new-bridge-addresses",
                "new a-group-with-a-long-name --net=bridge --count 2 --gateway 192.168.137.1/24 \
                 --addresses 192.168.137.2/24,192.168.137.3",
            ),
            ("new-cni", "new job --net=cni"),
            (
                "new-cni-full",
                "new job --net=cni --count 2 --network-name slicer-ptp --tap-owner 1000:36 --ram-mb 128",
            ),
    ]);
}

#[test]
fn what_new_prints_is_parsed_as_it_was_requested() {
    let (runner, _dir) = offline();
    let read = |command: &str| -> serde_yaml::Value {
        let run = runner.run(command);
        assert_eq!(run.code, 0, "{run:?}");
        serde_yaml::from_str(&run.stdout).unwrap()
    };
    let minimal = read("new true --net=isolated");
    let group = &minimal["config"]["host_groups"][0];
    assert_eq!(group["name"].as_str(), Some("true"));
    assert_eq!(group["network"]["mode"].as_str(), Some("isolated"));
    let keys: Vec<_> = group.as_mapping().unwrap().keys().collect();
    assert_eq!(keys, ["name", "network"]);
    let keys: Vec<_> = minimal["config"].as_mapping().unwrap().keys().collect();
    assert_eq!(keys, ["host_groups"]);
    assert_eq!(minimal["apiVersion"].as_str(), Some("slice/v1"));
    assert_eq!(minimal["kind"].as_str(), Some("Config"));
    let full = read(
        "new a --net=isolated --kernel-file /a:#b --drop 10.0.0.0/8,1.1.1.1:1-9/udp --ram-mb 64",
    );
    let group = &full["config"]["host_groups"][0];
    assert_eq!(full["config"]["kernel_file"].as_str(), Some("/a:#b"));
    assert!(full["config"].get("hypervisor").is_none());
    assert_eq!(group["ram_mb"].as_u64(), Some(64));
    assert!(group.get("ram_gb").is_none());
    assert_eq!(
        group["network"]["drop"][1].as_str(),
        Some("1.1.1.1:1-9/udp")
    );
    // What bridge and CNI print, the daemon's own reader takes: `new` refuses to print anything else.
    let bridge = read("new 7 --net=bridge --bridge 08 --tap-prefix 1e --count 2");
    let network = &bridge["config"]["host_groups"][0]["network"];
    assert_eq!(network["bridge"].as_str(), Some("08"));
    assert_eq!(network["tap_prefix"].as_str(), Some("1e"));
    let cni = read("new 7 --net=cni --network-name 0x1");
    assert_eq!(cni["config"]["network_name"].as_str(), Some("0x1"));
    assert!(cni["config"]["host_groups"][0].get("network").is_none());
    let known = ["name", "count", "vcpu", "ram_mb", "dns_servers", "network"];
    for key in group.as_mapping().unwrap().keys() {
        assert!(known.contains(&key.as_str().unwrap()), "{key:?}");
    }
}

/// What a manifest means, and the values that it has: `config` before the groups, the group beside its network, the network.
fn meant(text: &str) -> (HostGroupSpec, [Vec<String>; 3]) {
    let source = Source {
        name: "new".to_owned(),
        text: text.to_owned(),
    };
    let parsed = manifest::parse(&source).unwrap_or_else(|error| panic!("{error:?}\n{text}"));
    let spec = parsed.into_iter().next().expect("a group").spec;
    let yaml: serde_yaml::Value = serde_yaml::from_str(text).unwrap();
    let keys = |value: &serde_yaml::Value, but: &str| -> Vec<String> {
        let keys = value.as_mapping().into_iter().flat_map(|map| map.keys());
        let keys = keys.map(|key| key.as_str().unwrap().to_owned());
        keys.filter(|key| key != but).collect()
    };
    let (config, group) = (&yaml["config"], &yaml["config"]["host_groups"][0]);
    let network = group.get("network").cloned().unwrap_or_default();
    let keys = [
        keys(config, "host_groups"),
        keys(group, "network"),
        keys(&network, ""),
    ];
    (spec, keys)
}

/// The flags; what is printed of `config`, the group, and its network; the same group with every value written out.
#[test]
fn new_prints_what_is_given_or_needed_and_no_default() {
    let table = [
        (
            "--net=isolated --drop 192.168.1.0/24",
            "",
            "name",
            "mode drop",
            "hypervisor: none",
            "mode: isolated, drop: [192.168.1.0/24], on_deny: drop",
        ),
        (
            "--net=isolated",
            "",
            "name",
            "mode",
            "hypervisor: none",
            "mode: isolated",
        ),
        (
            "--net=isolated --allow 10.0.0.0/8:1-9/udp",
            "",
            "name",
            "mode allow",
            "hypervisor: none",
            "mode: isolated, allow: ['10.0.0.0/8:1-9/udp']",
        ),
        (
            "--net=isolated --allow 10.0.0.0/8 --drop 10.1.0.0/16",
            "",
            "name",
            "mode allow drop",
            "hypervisor: none",
            "mode: isolated, allow: [10.0.0.0/8], drop: [10.1.0.0/16]",
        ),
        (
            "--net=isolated --on-deny drop",
            "",
            "name",
            "mode on_deny",
            "hypervisor: none",
            "mode: isolated",
        ),
        (
            "--net=isolated --on-deny reject --drop 10.0.0.0/8",
            "",
            "name",
            "mode drop on_deny",
            "hypervisor: none",
            "mode: isolated, drop: [10.0.0.0/8], on_deny: reject",
        ),
        (
            "--net=isolated --range 169.254.100.0/22",
            "",
            "name",
            "mode range",
            "hypervisor: none",
            "mode: isolated, range: 169.254.100.0/22",
        ),
        (
            "--net=isolated --tap-owner 1000:36",
            "",
            "name",
            "mode tap_owner",
            "hypervisor: none",
            "mode: isolated, tap_owner: '1000:36'",
        ),
        (
            "--net=isolated --count 1 --vcpu 2 --ram-gb 4",
            "",
            "name count vcpu ram_gb",
            "mode",
            "hypervisor: none",
            "mode: isolated",
        ),
        (
            "--net=isolated --hypervisor none",
            "hypervisor",
            "name",
            "mode",
            "hypervisor: none",
            "mode: isolated",
        ),
        (
            "--net=isolated --kernel-file /boot/vmlinuz",
            "kernel_file",
            "name",
            "mode",
            "hypervisor: qemu, kernel_file: /boot/vmlinuz",
            "mode: isolated",
        ),
        (
            "--net=isolated --kernel-file /boot/vmlinuz --hypervisor qemu",
            "hypervisor kernel_file",
            "name",
            "mode",
            "hypervisor: qemu, kernel_file: /boot/vmlinuz",
            "mode: isolated",
        ),
        (
            "--net=isolated --kernel-file /boot/vmlinuz --hypervisor firecracker",
            "hypervisor kernel_file",
            "name",
            "mode",
            "hypervisor: firecracker, kernel_file: /boot/vmlinuz",
            "mode: isolated",
        ),
        (
            "--net=isolated --dns 1.1.1.1",
            "",
            "name dns_servers",
            "mode",
            "hypervisor: none, dns_servers: [1.1.1.1]",
            "mode: isolated",
        ),
        (
            "--net=bridge",
            "",
            "name",
            "",
            "hypervisor: none",
            "mode: bridge, bridge: br-web, tap_prefix: t-web-, antispoof: true, isolate_ports: false",
        ),
        (
            "--net=bridge --bridge br0",
            "",
            "name",
            "bridge",
            "hypervisor: none",
            "mode: bridge, bridge: br0",
        ),
        (
            "--net=bridge --bridge br-web --tap-prefix t-web-",
            "",
            "name",
            "bridge tap_prefix",
            "hypervisor: none",
            "mode: bridge",
        ),
        (
            "--net=bridge --gateway 192.168.137.1/24 --range 192.168.137.20-192.168.137.80",
            "",
            "name",
            "gateway range",
            "hypervisor: none",
            "gateway: 192.168.137.1/24, range: 192.168.137.20-192.168.137.80",
        ),
        (
            "--net=bridge --gateway 192.168.137.1/24 --addresses 192.168.137.2",
            "",
            "name",
            "gateway addresses",
            "hypervisor: none",
            "gateway: 192.168.137.1/24, addresses: [192.168.137.2]",
        ),
        (
            "--net=bridge --no-antispoof --isolate-ports",
            "",
            "name",
            "antispoof isolate_ports",
            "hypervisor: none",
            "mode: bridge, antispoof: false, isolate_ports: true",
        ),
        (
            "--net=cni",
            "network_name",
            "name",
            "",
            "hypervisor: none, network_name: slicer",
            "mode: cni",
        ),
        (
            "--net=cni --network-name other --tap-owner 7",
            "network_name",
            "name",
            "mode tap_owner",
            "hypervisor: none, network_name: other",
            "mode: cni, tap_owner: 7",
        ),
    ];
    let (runner, _dir) = offline();
    for (flags, config, group, network, of_group, of_network) in table {
        let run = runner.run(&format!("new web {flags}"));
        assert_eq!(run.code, 0, "{run:?}");
        let (spec, printed) = meant(&run.stdout);
        let expected = [config, group, network];
        let expected = expected.map(|keys| {
            keys.split_whitespace()
                .map(str::to_owned)
                .collect::<Vec<_>>()
        });
        assert_eq!(printed, expected, "{flags}\n{}", run.stdout);
        let (count, vcpu, ram) = ("count: 1", "vcpu: 2", "ram_gb: 4");
        let (full, _) = meant(&format!(
            "config: {{host_groups: [{{name: web, {count}, {vcpu}, {ram}, {of_group}, network: {{{of_network}}}}}]}}"
        ));
        assert_eq!(spec, full, "{flags}\n{}", run.stdout);
    }
}

#[test]
fn other_spellings_of_the_range_are_accepted() {
    let (runner, _dir) = offline();
    let isolated = "new a --net=isolated";
    let bridge = "new a --net=bridge --range 10.0.0.20-10.0.0.80";
    for (one, other) in [
        (
            format!("{isolated} --range 169.254.100.0/22"),
            format!("{isolated} --isolated-range 169.254.100.0/22"),
        ),
        (
            format!("{isolated} --range 169.254.100.0/22"),
            format!("{isolated} --cidr 169.254.100.0/22"),
        ),
        (
            format!("{bridge} --gateway 10.0.0.1/24"),
            format!("{bridge} --cidr 10.0.0.0/24"),
        ),
        (
            format!("{bridge} --gateway 10.0.0.7/24"),
            format!("{bridge} --cidr 10.0.0.7/24"),
        ),
        (
            "new a --net=bridge --gateway 10.0.0.1/24 --addresses 10.0.0.2".to_owned(),
            "new a --net=bridge --cidr 10.0.0.0/24 --addresses 10.0.0.2".to_owned(),
        ),
    ] {
        let (one, other) = (runner.run(&one), runner.run(&other));
        assert_eq!(other.code, 0, "{other:?}");
        assert_eq!(one.stdout, other.stdout);
    }
}

#[test]
fn one_mistake_is_one_error() {
    let (runner, _dir) = offline();
    for (flags, expected) in [
        ("--kernel-file vmlinuz", "--kernel-file: found \"vmlinuz\""),
        (
            "--kernel-file vmlinuz --hypervisor qemu",
            "--kernel-file: found \"vmlinuz\"",
        ),
        (
            "--kernel-file vmlinuz --hypervisor firecracker",
            "--kernel-file: found \"vmlinuz\"",
        ),
        (
            "--kernel-file /k --initrd-file x",
            "--initrd-file: found \"x\"",
        ),
    ] {
        let run = runner.run(&format!("new a --net=isolated {flags}"));
        assert_eq!(run.code, 2, "{run:?}");
        let first = run.stderr.lines().next().unwrap_or_default();
        assert!(first.contains(expected), "{run:?}");
        assert!(!first.contains(';'), "{flags}: {first}");
    }
}

#[test]
fn a_kernel_in_the_directory_of_images_is_used_and_its_absence_is_noted() {
    let (runner, dir) = offline();
    let images = dir.path().join("images");
    let new = |flags: &str| runner.run(&format!("new a --net=isolated {flags}"));
    let without = new("");
    assert!(without.stderr.contains("empty slots"), "{without:?}");
    for flags in ["--hypervisor none", "--kernel-file /k"] {
        assert_eq!(new(flags).stderr, "", "{flags}");
    }
    std::fs::create_dir(&images).unwrap();
    std::fs::write(images.join("vmlinuz"), "").unwrap();
    let config = |flags: &str| {
        let run = new(flags);
        assert_eq!((run.code, run.stderr.as_str()), (0, ""), "{run:?}");
        let yaml: serde_yaml::Value = serde_yaml::from_str(&run.stdout).unwrap();
        let path = |key: &str| yaml["config"][key].as_str().map(str::to_owned);
        (path("kernel_file"), path("initrd_file"))
    };
    let kernel = images.join("vmlinuz").display().to_string();
    assert_eq!(config(""), (Some(kernel.clone()), None));
    let initrd = images.join("initrd.img");
    std::fs::write(&initrd, "").unwrap();
    let both = (Some(kernel), Some(initrd.display().to_string()));
    assert_eq!(config(""), both);
    assert_eq!(config("--hypervisor firecracker"), both);
    assert_eq!(config("--hypervisor none"), (None, None));
    assert_eq!(config("--kernel-file /k"), (Some("/k".to_owned()), None));
}
