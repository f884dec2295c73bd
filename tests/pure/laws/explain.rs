//! `explain` against the policy itself: the verdict of the compiled rules, namespace and host, is what the lists say.
//! Out of scope: whether the kernel does the same with these rules (`tests/kernel/oracle.rs`, `tests/kernel/packets`).

use std::net::Ipv4Addr;

use proptest::prelude::*;
use slicectl::api::network::{Block, NetworkSpec};
use slicectl::api::policy::{Entry, OnDeny, Origin, Packet, Policy, Protocol, Verdict};
use slicectl::api::view::Explanation;
use slicectl::api::vm::Vm;
use slicectl::host::iptables::Translations;
use slicectl::host::rule::{AddrType, Chain, Ruleset, Table, TableName};
use slicectl::owner::{self, Instance, link_group};
use slicectl::reconcile::firewall::isolated::rules;
use slicectl::reconcile::host_network::{self, Desired, Observed};
use slicectl::reconcile::limits::Limit;
use slicectl::status::explain::{HostPath, PacketPath, explain};
use slicectl::status::traverse::PacketLink;
use slicectl::store::HostRequirements;
use test_support::objects;

const POOL: &str = "169.254.100.0/22";
const GUEST: Ipv4Addr = Ipv4Addr::new(169, 254, 100, 2);

/// Few destinations, so that lists and packets meet: of the host, of its LAN, reserved ones.
const DESTINATIONS: [&str; 9] = [
    "10.0.0.1",
    "10.0.0.2",
    "10.0.0.3",
    "10.0.1.1",
    "169.254.169.254",
    "169.254.1.1",
    "127.0.0.1",
    "224.0.0.1",
    "100.100.100.200",
];

fn entry() -> impl Strategy<Value = Entry> {
    let networks = ["10.0.0.0/31", "10.0.0.0/8", "0.0.0.0/0", "169.254.0.0/16"].to_vec();
    let network = prop_oneof![
        prop::sample::select(networks),
        prop::sample::select(DESTINATIONS.to_vec())
    ];
    let ports = prop::sample::select(vec!["", ":1", ":1-2", ":2-3"]);
    let protocol = prop::sample::select(vec!["", "/tcp", "/udp"]);
    (network, ports, protocol).prop_map(|(network, ports, protocol)| {
        format!("{network}{ports}{protocol}").parse().unwrap()
    })
}

fn policy() -> impl Strategy<Value = Policy> {
    let entries = || prop::collection::vec(entry(), 0..5);
    let on_deny = prop::sample::select(vec![OnDeny::Drop, OnDeny::Reject]);
    (entries(), entries(), on_deny, any::<bool>()).prop_map(
        |(allow, drop, on_deny, allow_metadata)| Policy {
            allow,
            drop,
            on_deny,
            allow_metadata,
        },
    )
}

fn packet() -> impl Strategy<Value = Packet> {
    let port = prop::option::of(0u16..5);
    let protocol = prop::sample::select(vec![Protocol::Tcp, Protocol::Udp]);
    let destination = prop::sample::select(DESTINATIONS.to_vec());
    (destination, prop::option::of((protocol, port))).prop_map(|(to, transport)| Packet {
        destination: to.parse().unwrap(),
        transport,
    })
}

fn vm(policy: Policy) -> Vm {
    let mut spec = objects::spec(None, "");
    if let NetworkSpec::Isolated(isolated) = &mut spec.network {
        isolated.policy = policy;
    }
    objects::vm(&objects::group("law", 1, spec), 1)
}

/// A host with a daemon that has this VM in its pool.
struct Host {
    vm: Vm,
    desired: Desired,
    mangle: Ruleset,
    path: HostPath,
}

fn link(name: &str, group: u32) -> PacketLink {
    PacketLink {
        name: name.to_owned(),
        group,
    }
}

impl Host {
    fn with(policy: Policy) -> Self {
        let instance = Instance::of("/law".as_ref());
        let pool = POOL.parse().unwrap();
        let openings = policy.host_access_entries();
        let requirements = HostRequirements {
            pools: [pool].into(),
            openings: openings.map(|entry| (pool, entry.to_string())).collect(),
            ..HostRequirements::default()
        };
        let vm = vm(policy);
        let host_link = owner::vm_names(&instance, vm.meta.uid).host_link;
        Self {
            path: HostPath {
                instance: instance.clone(),
                in_link: link(&host_link, link_group::ISOLATED),
                ruleset: Ruleset::default(),
                nat_tables: Vec::new(),
                addresses: vec![Ipv4Addr::new(10, 0, 0, 1)],
                destination_type: AddrType::Unicast,
                out_link: Some(link("eth0", 0)),
            },
            desired: Desired {
                instance,
                requirements,
                previous: HostRequirements::default(),
            },
            mangle: Ruleset::default(),
            vm,
        }
    }

    fn explain(&mut self, packet: &Packet) -> Explanation {
        let observed = Observed::default();
        self.path.ruleset = host_network::compiled(&self.desired, &observed, &self.mangle);
        let block = Block::around(GUEST);
        let guest_mac = owner::vm_names(&self.path.instance, self.vm.meta.uid).guest_mac;
        let policy = self.vm.spec.network.policy().unwrap();
        let ruleset = rules::compile(policy, block, guest_mac, Limit::of(100));
        let path = PacketPath {
            vm: &self.vm,
            block,
            guest_mac,
            ruleset: &ruleset,
            host: &self.path,
            note: None,
        };
        explain(&path, packet, String::new())
    }
}

fn to(destination: &str, port: u16) -> Packet {
    Packet {
        destination: destination.parse().unwrap(),
        transport: Some((Protocol::Tcp, Some(port))),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]
    #[test]
    fn a_forwarded_packet_has_the_verdict_and_the_entry_of_the_policy(policy in policy(), packet in packet()) {
        let (verdict, origin) = policy.evaluate(&packet);
        let output = Host::with(policy).explain(&packet);
        prop_assert_eq!(output.verdict, verdict, "{:?}", output);
        prop_assert_eq!(&output.entry, &origin.to_string());
        let comment = output.entry.replace('"', "\\\"");
        prop_assert!(output.rule.contains(&comment), "{:?}", output);
    }

    #[test]
    fn a_packet_to_the_host_passes_only_by_an_entry_of_the_list_that_opens_it(policy in policy(), packet in packet()) {
        let listed = policy.allow.iter().enumerate();
        // The host has no order of entries: those that overlap open the same.
        let opening = listed.filter(|(_, entry)| entry.may_allow_host_access() && entry.matches(&packet));
        let opening: Vec<String> = opening.map(|(index, entry)| Origin::Allow(index, *entry).to_string()).collect();
        let (namespace, origin) = policy.evaluate(&packet);
        let mut host = Host::with(policy);
        host.path.destination_type = AddrType::Local;
        let output = host.explain(&packet);
        match (namespace, opening.as_slice()) {
            (Verdict::Deny, _) => {
                prop_assert_eq!(output.verdict, Verdict::Deny);
                prop_assert_eq!(output.entry, origin.to_string());
            }
            (Verdict::Allow, []) => {
                prop_assert_eq!(output.verdict, Verdict::Deny);
                prop_assert!(output.chain.starts_with("host raw SLICE-"), "{:?}", output);
                prop_assert!(output.entry.contains("an address of the host itself"), "{:?}", output);
            }
            (Verdict::Allow, [..]) => {
                prop_assert_eq!(output.verdict, Verdict::Allow);
                prop_assert!(output.chain.starts_with("host filter SLICE-"), "{:?}", output);
                prop_assert!(opening.contains(&output.entry), "{:?}", output);
            }
        }
    }
}

#[test]
fn what_the_rules_of_the_host_drop_is_denied_with_the_rule_and_its_reason() {
    let other = Instance::of("/other".as_ref());
    let apart = other.chain("APART");
    let of_other = || {
        let rules = |rules: &[&str]| rules.iter().map(|rule| rule.parse().unwrap()).collect();
        let rules_of_chain = rules(&["-d 10.9.0.0/24 -m devgroup --src-group 0x736c0001 -j DROP"]);
        let chain = Chain::user(apart.clone(), rules_of_chain);
        let forward = Chain::user("FORWARD", rules(&[&format!("-j {apart}")]));
        Ruleset::new([Table {
            name: TableName::Mangle,
            chains: vec![forward, chain],
        }])
    };
    let nat = |rule: &str| Translations {
        table: "ip nat".to_owned(),
        entry: "PREROUTING".to_owned(),
        priority: -100,
        chains: vec![Chain::user("PREROUTING", vec![rule.parse().unwrap()])],
    };
    type Change<'a> = Box<dyn Fn(&mut Host) + 'a>;
    let cases: [(&str, Change<'_>, &str, &str); 8] = [
        (
            "10.0.1.1",
            Box::new(|host| host.path.out_link = Some(link("br7", link_group::BRIDGE))),
            "--dst-group",
            "br7 leads to other VMs",
        ),
        (
            "10.0.1.1",
            Box::new(|host| host.path.out_link = Some(link("slother", link_group::ISOLATED))),
            "--dst-group",
            "slother leads to other VMs",
        ),
        (
            "10.8.0.3",
            Box::new(|host| {
                let subnet = "10.8.0.0/24".parse().unwrap();
                host.desired.requirements.cni_subnets.insert(subnet);
            }),
            "-d 10.8.0.0/24",
            "10.8.0.0/24 has VMs on a bridge or a CNI network",
        ),
        (
            "10.9.0.3",
            Box::new(|host| host.mangle = of_other()),
            "-d 10.9.0.0/24",
            "10.9.0.0/24 has VMs on a bridge or a CNI network",
        ),
        (
            "10.0.1.255",
            Box::new(|host| host.path.destination_type = AddrType::Broadcast),
            "--dst-type BROADCAST",
            "a broadcast address",
        ),
        (
            "10.0.1.1",
            Box::new(|host| host.path.nat_tables = vec![nat("-j DNAT --to-destination 10.0.1.9")]),
            "--ctstate DNAT",
            "the host translates the destination (ip nat PREROUTING: -j DNAT --to-destination 10.0.1.9)",
        ),
        (
            "10.0.1.1",
            Box::new(|host| host.path.nat_tables = vec![nat("-j REDIRECT")]),
            "--ctstate DNAT",
            "the host translates the destination",
        ),
        (
            "10.0.1.1",
            Box::new(|host| {
                host.path.nat_tables = vec![nat("-j DNAT --to-destination 10.0.0.1:22")]
            }),
            "-j DROP",
            "the host translates the destination",
        ),
    ];
    for (destination, change, rule, entry) in cases {
        let mut host = Host::with(Policy::default());
        let before = host.explain(&to(destination, 80));
        assert_eq!(before.verdict, Verdict::Allow, "{destination}: {before:?}");
        change(&mut host);
        let output = host.explain(&to(destination, 80));
        assert_eq!(output.verdict, Verdict::Deny, "{destination}: {output:?}");
        assert!(output.rule.contains(rule), "{rule}: {output:?}");
        assert!(output.entry.contains(entry), "{entry}: {output:?}");
        assert!(output.chain.starts_with("host "), "{output:?}");
    }
}

#[test]
fn a_port_of_the_host_that_another_vm_of_the_range_may_use_is_open_and_reported_as_such() {
    let mut host = Host::with(Policy::default());
    host.path.destination_type = AddrType::Local;
    let packet = to("10.0.0.1", 3128);
    assert_eq!(host.explain(&packet).verdict, Verdict::Deny);
    let opening = (POOL.parse().unwrap(), "10.0.0.1:3128".to_owned());
    host.desired.requirements.openings.insert(opening);
    let output = host.explain(&packet);
    assert_eq!(output.verdict, Verdict::Allow);
    assert!(
        output.entry.contains("another VM of the range"),
        "{output:?}"
    );
}

#[test]
fn what_cannot_be_decided_is_reported_of_what_is_allowed_only() {
    let unknown = Translations {
        table: "ip mine".to_owned(),
        entry: "pre".to_owned(),
        priority: -100,
        chains: vec![Chain::user("pre", vec!["foreign: a map".parse().unwrap()])],
    };
    let drop = "10.0.0.0/24".parse().unwrap();
    let mut host = Host::with(Policy {
        drop: vec![drop],
        ..Policy::default()
    });
    host.path.nat_tables = vec![unknown];
    let allowed = host.explain(&to("10.0.1.1", 80));
    assert_eq!(allowed.verdict, Verdict::Allow);
    assert!(
        allowed
            .entry
            .starts_with("default, unless the host translates the destination: 1 of"),
        "{allowed:?}"
    );
    let denied = host.explain(&to("10.0.0.9", 80));
    assert_eq!(denied.entry, "drop[0] \"10.0.0.0/24\"");
}

#[test]
fn in_its_own_subnet_a_vm_reaches_only_its_gateway_and_that_by_ping() {
    for (destination, transport, verdict, place, rule) in [
        (
            1,
            None,
            Verdict::Allow,
            "namespace INPUT",
            "-A INPUT -i tap0",
        ),
        (
            1,
            Some((Protocol::Tcp, Some(80))),
            Verdict::Deny,
            "namespace INPUT",
            "-P INPUT DROP",
        ),
        (
            2,
            None,
            Verdict::Deny,
            "namespace FORWARD",
            "-P FORWARD DROP",
        ),
        (3, None, Verdict::Deny, "namespace INPUT", "-P INPUT DROP"),
    ] {
        let packet = Packet {
            destination: Ipv4Addr::new(169, 254, 100, destination),
            transport,
        };
        let output = Host::with(Policy::default()).explain(&packet);
        assert_eq!(
            (output.verdict, output.chain.as_str()),
            (verdict, place),
            "{output:?}"
        );
        assert!(output.rule.starts_with(rule), "{output:?}");
    }
}
