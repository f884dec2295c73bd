//! The real `slicectl` against the real server on a real socket, over a world in memory: every verb, every format, every
//! exit status. Golden transcripts stand in `tests/goldens/cli`; `BLESS=1` writes them anew.
//! Out of scope: the daemon.

mod fixture;
mod golden;
mod socket;
mod streams;
mod world;

use slicectl::api::host_group::HostGroupSpec;
use slicectl::api::manifest::{self, Source};

use fixture::Fixture;
use golden::{Run, slicectl};

const TWO_GROUPS: &str = "\
config:
  host_groups:
    - {name: fresh, count: 2}
    - {name: sandbox, count: 3}
";

#[test]
fn every_verb_answers_as_its_golden_says() {
    let fixture = Fixture::start();
    let cases: &[(&str, &str)] = &[
        ("get-hostgroups", "get hostgroups"),
        ("get-hostgroups-wide", "get hg -o wide"),
        ("get-vms", "get vms"),
        ("get-vms-wide", "get vms -o wide"),
        ("get-vms-name", "get vms -o name"),
        ("get-leases", "get leases"),
        ("get-leases-wide", "get lease -o wide"),
        ("get-vm-json", "get vm sandbox-1 -o json"),
        ("get-vm-yaml", "get vm/sandbox-1 -o yaml"),
        ("get-hostgroup-json", "get hostgroup/sandbox -o json"),
        ("get-lease-json", "get lease/sandbox-1 -o json"),
        ("get-two-json", "get lease lab-1 sandbox-1 -o json"),
        ("get-leases-yaml", "get leases -o yaml"),
        ("get-kinds-mixed", "get vm/lab-1 lease/lab-1 hg/lab"),
        ("get-one-missing", "get vm sandbox-1 sandbox-9"),
        ("describe-vm", "describe vm/sandbox-2"),
        ("describe-vm-up", "describe vm sandbox-1"),
        ("describe-hostgroup", "describe hg sandbox"),
        ("describe-lease", "describe lease/lab-1"),
        ("describe-missing", "describe vm/none-such"),
        ("events", "events"),
        ("events-vm", "events vms sandbox-2"),
        ("events-manifest", "events manifest/bad.yaml"),
        ("events-none", "events vm/lab-1"),
        ("events-json", "events host -o json"),
        ("events-yaml", "events host -o yaml"),
        ("logs", "logs sandbox-1"),
        ("logs-last", "logs sandbox-1 --lines 1"),
        ("logs-missing", "logs vm/none-such"),
        ("gc-dry-run", "gc --dry-run"),
        ("gc-dry-run-json", "gc --dry-run -o json"),
        ("gc", "gc"),
        ("doctor", "doctor"),
        ("doctor-yaml", "doctor -o yaml"),
        ("explain-dropped", "explain sandbox-1 192.168.1.9:443"),
        (
            "explain-allowed",
            "explain vm/sandbox-1 192.168.1.7:443/tcp",
        ),
        ("explain-ping", "explain sandbox-1 8.8.8.8 -o json"),
        ("explain-reserved", "explain sandbox-1 169.254.169.254:80"),
        ("version", "version"),
        ("version-json", "version -o json"),
        (
            "wait-ready",
            "wait hg/lab vm/lab-1 lease/lab-1 --for ready --timeout 5s",
        ),
        ("wait-gone", "wait vm never-was --for deleted --timeout 5s"),
        (
            "wait-timeout-hostgroup",
            "wait hg/sandbox --for ready --timeout 1s",
        ),
        (
            "wait-timeout-vm",
            "wait vm/sandbox-2 vm/lab-1 --for ready --timeout 1s",
        ),
        (
            "wait-timeout-deleted",
            "wait vm/sandbox-3 vm/sandbox-1 --for deleted --timeout 1s",
        ),
        (
            "wait-timeout-absent",
            "wait vm/none-such --for ready --timeout 1s",
        ),
        (
            "wait-paused-hostgroup",
            "wait hg/lab --for paused --timeout 1s",
        ),
        ("vm-metrics", "vm metrics sandbox-1"),
        ("vm-metrics-json", "vm metrics vm/sandbox-1 -o json"),
        ("vm-metrics-none", "vm metrics lab-1"),
        ("vm-metrics-missing", "vm metrics none-such"),
        ("vm-pause-none", "vm pause lab-1"),
        ("vm-pause-missing", "vm pause none-such sandbox-1 --wait=5s"),
        ("get-vm-paused", "get vm/sandbox-1"),
        ("vm-pause-again", "vm pause vm/sandbox-1"),
        ("vm-stop", "vm stop sandbox-1 --wait=5s"),
        ("get-vm-stopped", "get vm/sandbox-1"),
        ("describe-vm-stopped", "describe vm/sandbox-1"),
        ("vm-start", "vm start sandbox-1 --wait=5s"),
        ("vm-restart", "vm restart sandbox-1 --wait=5s"),
        ("vm-stop-help", "vm stop --help"),
        ("delete-lease", "delete lease/sandbox-1"),
        ("delete-missing", "delete vm/none-such"),
        ("delete-force-missing", "delete vm/none-such --force"),
        ("delete-help", "delete --help"),
        (
            "delete-missing-ignored",
            "delete vm/none-such --ignore-not-found",
        ),
    ];
    golden::check(&fixture, cases);
}

#[test]
fn bridge_and_cni_objects_are_shown_without_what_they_do_not_have() {
    let fixture = Fixture::start();
    for object in world::other_modes() {
        fixture.world.put(object);
    }
    let cases: &[(&str, &str)] = &[
        (
            "modes-get-hostgroups-wide",
            "get hg web job sandbox -o wide",
        ),
        ("modes-get-vms-wide", "get vms -o wide"),
        ("modes-get-leases-wide", "get leases -o wide"),
        ("modes-describe-vm", "describe vm/web-1 vm/job-1"),
        ("modes-describe-hostgroup", "describe hg web job"),
        ("modes-describe-lease", "describe lease/web-1"),
        ("modes-get-vm-json", "get vm/web-1 -o json"),
        ("route", "route web"),
        ("route-json", "route hostgroup/web -o json"),
        ("route-via", "route web --via 10.9.8.7"),
        ("route-same-subnet", "route web --via 192.168.137.9"),
        ("route-offline", "route offline"),
        ("route-offline-via", "route offline --via 10.9.8.7"),
        ("route-isolated", "route sandbox"),
        ("route-cni", "route job"),
        ("route-missing", "route none-such"),
    ];
    golden::check(&fixture, cases);
}

#[test]
fn vms_are_made_on_demand_found_by_their_tags_and_removed() {
    let fixture = Fixture::start();
    let cases: &[(&str, &str)] = &[
        ("vm-add", "vm add sandbox"),
        (
            "vm-add-wait",
            "vm add hostgroup/sandbox --name ci --vcpu 1 --ram 64 --tag job=42 --tag example.com/team= --allow 10.0.0.1:53/udp,10.0.0.2 --drop= --persistent --wait=5s",
        ),
        (
            "vm-add-again",
            "vm add sandbox --name ci --vcpu 1 --ram 64 --tag job=42 --tag example.com/team= --allow 10.0.0.1:53/udp --allow 10.0.0.2 --drop= --persistent -o name",
        ),
        ("vm-add-other", "vm add sandbox --name ci --vcpu 1"),
        (
            "vm-add-warned",
            "vm add sandbox --name odd --tag job=43 -o name",
        ),
        ("vm-add-json", "vm add sandbox --name js --wait -o json"),
        ("vm-add-stuck", "vm add sandbox --name stuck --wait=1s"),
        ("vm-add-too-much", "vm add sandbox --name big --vcpu 4"),
        ("vm-add-no-group", "vm add sandbx"),
        ("vm-add-twice-the-tag", "vm add sandbox --tag a=1 --tag a=2"),
        ("vm-add-no-tag", "vm add sandbox --tag job"),
        ("vm-add-no-entry", "vm add sandbox --allow 10.0.0.1/8"),
        ("vm-add-no-name", "vm add sandbox --name Not_A_Name"),
        ("vm-describe", "describe vm/ci"),
        ("vm-describe-plain", "describe vm/js"),
        ("get-vms-selected", "get vms -l job=42"),
        ("get-vms-selected-name", "get vms -l job,job!=42 -o name"),
        ("get-vms-selected-none", "get vms -l job=44"),
        ("get-vms-selected-not", "get vms -l !job -o name"),
        ("get-hg-selected", "get hg -l job=42"),
        ("get-vm-selected", "get vm ci -l job=42"),
        ("get-vms-selected-badly", "get vms -l job=42,-x"),
        ("vm-delete", "vm delete ci vm/odd --wait=5s"),
        ("vm-delete-counted", "vm delete sandbox-1"),
        ("vm-delete-missing", "vm delete ci"),
    ];
    golden::check(&fixture, cases);
}

#[test]
fn manifests_are_applied_compared_and_deleted() {
    let fixture = Fixture::start();
    let file = fixture.dir.path().join("two.yaml");
    std::fs::write(&file, TWO_GROUPS).unwrap();
    let folder = fixture.dir.path().join("folder");
    std::fs::create_dir_all(folder.join("below")).unwrap();
    for (name, group) in [
        ("b.yml", "fromb"),
        ("a.yaml", "froma"),
        ("below/c.yaml", "below"),
    ] {
        let text = format!("config: {{host_groups: [{{name: {group}}}]}}");
        std::fs::write(folder.join(name), text).unwrap();
    }
    std::fs::write(folder.join("README.txt"), "no YAML: [").unwrap();
    let folder = folder.display();
    let file = file.display();
    let cases = [
        ("diff", format!("diff -f {file}")),
        ("diff-json", format!("diff -f {file} -o json")),
        ("apply-dry-run", format!("apply -f {file} --dry-run")),
        ("apply-wait", format!("apply -f {file} --wait=5s")),
        ("apply-again", format!("apply -f {file}")),
        ("diff-nothing", format!("diff -f {file}")),
        ("apply-folder", format!("apply -f {folder} -f {file}")),
        ("delete-file-wait", format!("delete -f {folder} --wait")),
        ("delete-wait", "delete hg fresh --wait=5s".to_owned()),
        ("apply-absent-file", "apply -f /no/such/file".to_owned()),
    ];
    for (name, command) in &cases {
        golden::check(&fixture, &[(name, command)]);
    }
}

#[test]
fn standard_input_is_a_manifest_too() {
    let fixture = Fixture::start();
    let apply = |text: &str, more: &str| {
        slicectl(&fixture)
            .args(&format!("apply -f - {more}"))
            .stdin(text)
            .run()
    };
    let one = |name: &str| format!("config: {{host_groups: [{{name: {name}}}]}}");
    golden::compare("apply-stdin", &apply(&one("piped"), "--wait"));
    golden::compare("apply-warning", &apply(&one("odd"), ""));
    golden::compare("apply-owned-by-file", &apply(&one("lab"), ""));
    golden::compare("apply-broken", &apply("config: [", ""));
    golden::compare("apply-wait-timeout", &apply(&one("stuck"), "--wait=1s"));
    golden::check(
        &fixture,
        &[
            ("delete-stuck", "delete hg stuck --wait=1s"),
            ("delete-force", "delete hg stuck --force --wait=5s"),
        ],
    );
    let big = format!("# {}", "x".repeat(1 << 20));
    golden::compare("apply-too-big", &apply(&big, ""));
    assert_eq!(apply(&one("unread"), "").code, 0);
}

#[test]
fn a_manifest_in_no_utf8_is_an_error_and_no_panic() {
    let fixture = Fixture::start();
    let file = fixture.dir.path().join("latin.yaml");
    std::fs::write(&file, b"config: \xff\xfe").unwrap();
    let run = slicectl(&fixture)
        .args(&format!("apply -f {}", file.display()))
        .run();
    assert_eq!(run.code, 1, "{run:?}");
    assert!(run.stderr.contains("UTF-8"), "{run:?}");
}

#[test]
fn wrong_usage_exits_with_2_and_says_what_is_meant() {
    let fixture = Fixture::start();
    let cases: &[(&str, &str)] = &[
        ("", "Usage: slicectl"),
        ("get", "TARGET"),
        ("get pods", "unknown kind \"pods\""),
        ("get vm/Bad_Name", "invalid name \"Bad_Name\""),
        ("get vm/a hg/b -w", "one kind"),
        ("get vms -o xml", "invalid value"),
        ("describe vm", "name of the vm"),
        ("delete", "required"),
        ("delete vm", "name of the vm"),
        ("delete vm/x -f y", "cannot be used"),
        ("wait vm/x", "--for"),
        ("wait vm/x --for ready --timeout soon", "invalid value"),
        ("events pod/x", "unknown kind \"pod\""),
        ("events vm/a vm/b", "one object"),
        ("logs hg/x", "is not a VM"),
        ("explain sandbox-1 example.org", "invalid destination"),
        ("explain sandbox-1 10.0.0.0/8", "not one address"),
        ("apply", "--filename"),
        ("apply -f x --dry-run --wait", "cannot be used"),
        ("new Bad --net=isolated", "invalid name \"Bad\""),
        (
            "new a --net=isolated --gateway 10.0.0.1/24",
            "requires --net=bridge",
        ),
        (
            "new a --net=isolated --bridge br0",
            "--bridge requires --net=bridge",
        ),
        (
            "new a --net=isolated --isolate-ports",
            "--isolate-ports requires --net=bridge",
        ),
        (
            "new a --net=bridge --drop 10.0.0.0/8",
            "--drop requires --net=isolated",
        ),
        (
            "new a --net=bridge --on-deny reject",
            "--on-deny requires --net=isolated",
        ),
        (
            "new a --net=bridge --network-name x",
            "--network-name requires --net=cni",
        ),
        (
            "new a --net=cni --range 10.0.0.2-10.0.0.3",
            "--range requires --net=isolated or --net=bridge",
        ),
        (
            "new a --net=cni --gateway 10.0.0.1/24",
            "--gateway requires --net=bridge",
        ),
        (
            "new a --net=cni --network-name .x",
            "--network-name: found \".x\", expected the name of a CNI network",
        ),
        (
            "new a --net=bridge --bridge ve-1",
            "--bridge: found \"ve-1\"",
        ),
        (
            "new a --net=bridge --tap-prefix much-too-long-a-prefix",
            "--tap-prefix: found",
        ),
        (
            "new a --net=bridge --gateway 10.0.0.0/24",
            "--gateway: found \"10.0.0.0/24\", expected the address of a host",
        ),
        (
            "new a --net=bridge --range 10.0.0.2-10.0.0.3",
            "--range: needs gateway",
        ),
        ("new a --net=bridge --addresses 10.0.0.2", "--gateway"),
        (
            "new a --net=bridge --gateway 10.0.0.1/24 --addresses 10.0.0.2 --range 10.0.0.2-10.0.0.3",
            "cannot be used",
        ),
        (
            "new a --net=bridge --gateway 10.0.0.1/24 --addresses 10.0.1.2",
            "--addresses: 10.0.1.2 is outside 10.0.0.0/24",
        ),
        (
            "new a --net=bridge --gateway 10.0.0.1/24 --addresses ],#",
            "--addresses: found \"]\"",
        ),
        (
            "new a --net=bridge --count 2 --gateway 10.0.0.1/24 --addresses 10.0.0.2",
            "--count: 2 VMs do not fit",
        ),
        (
            "new a --net=isolated --count 300",
            "--count: 300 VMs do not fit",
        ),
        ("route", "GROUP"),
        ("route vm/web-1", "is not a host group"),
        ("route web --via somewhere", "invalid value"),
        ("new a --net=isolated --drop 10.0.0.1/8", "host bits"),
        (
            "new a --net=isolated --allow 169.254.169.254:80",
            "always denied",
        ),
        ("new a --net=isolated --range 10.0.0.0/22", "169.254.0.0/16"),
        ("new a --net=isolated --range 169.254.100.1/22", "host bits"),
        (
            "new a --net=isolated --range 169.254.100.0/30",
            "/16 to /29",
        ),
        ("new a --net=isolated --hypervisor qemu", "--kernel-file"),
        (
            "new a --net=isolated --ram-mb 1 --ram-gb 1",
            "cannot be used",
        ),
        ("completion tcsh", "invalid value"),
        ("frobnicate", "unrecognized subcommand"),
    ];
    for (command, said) in cases {
        let run = slicectl(&fixture).args(command).run();
        assert_eq!(run.code, 2, "slicectl {command}: {run:?}");
        assert!(run.stderr.contains(said), "slicectl {command}: {run:?}");
        assert_eq!(run.stdout, "", "slicectl {command}");
    }
}

#[test]
fn new_prints_the_documented_yaml() {
    let fixture = Fixture::start();
    golden::check(
        &fixture,
        &[
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
        ],
    );
}

#[test]
fn what_new_prints_is_read_back_as_it_was_asked_for() {
    let fixture = Fixture::start();
    let read = |command: &str| -> serde_yaml::Value {
        let run = slicectl(&fixture).args(command).run();
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
    let fixture = Fixture::start();
    for (flags, config, group, network, of_group, of_network) in table {
        let run = slicectl(&fixture).args(&format!("new web {flags}")).run();
        assert_eq!(run.code, 0, "{run:?}");
        let (spec, printed) = meant(&run.stdout);
        let wanted = [config, group, network];
        let wanted = wanted.map(|keys| {
            keys.split_whitespace()
                .map(str::to_owned)
                .collect::<Vec<_>>()
        });
        assert_eq!(printed, wanted, "{flags}\n{}", run.stdout);
        let (count, vcpu, ram) = ("count: 1", "vcpu: 2", "ram_gb: 4");
        let (full, _) = meant(&format!(
            "config: {{host_groups: [{{name: web, {count}, {vcpu}, {ram}, {of_group}, network: {{{of_network}}}}}]}}"
        ));
        assert_eq!(spec, full, "{flags}\n{}", run.stdout);
    }
}

#[test]
fn without_a_daemon_the_socket_is_named_and_the_status_is_1() {
    let fixture = Fixture::start();
    for command in [
        "get vms",
        "doctor",
        "wait vm/x --for ready",
        "events -w",
        "delete vm/x",
        "gc",
    ] {
        let run = Run::new(fixture.dir.path(), "/nowhere/sliced.sock")
            .args(command)
            .run();
        assert_eq!(run.code, 1, "slicectl {command}: {run:?}");
        for word in [
            "/nowhere/sliced.sock",
            "--socket",
            "SLICE_SOCKET",
            "running",
        ] {
            assert!(run.stderr.contains(word), "slicectl {command}: {run:?}");
        }
        assert_eq!(run.stderr.lines().count(), 1, "{run:?}");
    }
    let version = Run::new(fixture.dir.path(), "/nowhere/sliced.sock")
        .args("version")
        .run();
    assert_eq!(version.code, 1);
    assert!(version.stdout.starts_with("slicectl  "), "{version:?}");
}

#[test]
fn every_verb_has_help_and_those_with_arguments_show_examples() {
    let fixture = Fixture::start();
    let verbs = [
        "apply",
        "diff",
        "get",
        "describe",
        "delete",
        "wait",
        "events",
        "logs",
        "gc",
        "explain",
        "new",
        "route",
        "completion",
    ];
    for verb in verbs {
        let run = slicectl(&fixture).args(&format!("{verb} --help")).run();
        assert_eq!(run.code, 0, "{run:?}");
        assert!(run.stdout.contains(&format!("slicectl {verb}")), "{run:?}");
        assert!(run.stdout.contains("Examples:"), "{run:?}");
    }
    let top = slicectl(&fixture).args("--help").run();
    assert!(
        top.stdout.contains("SLICE_SOCKET") && top.stdout.contains("Quick start:"),
        "{top:?}"
    );
}

#[test]
fn completion_scripts_name_the_verbs() {
    let fixture = Fixture::start();
    for shell in ["bash", "zsh", "fish"] {
        let run = slicectl(&fixture)
            .args(&format!("completion {shell}"))
            .run();
        assert_eq!(run.code, 0);
        assert!(
            run.stdout.contains("hostgroup") || run.stdout.contains("describe"),
            "{shell}"
        );
    }
}
