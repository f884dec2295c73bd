//! Random lists and random destinations: an oracle that knows nothing of our rules says what must happen, and the kernel and
//! `explain` must agree with it.
//! Out of scope: the path beyond the namespace (`packets`).

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, UdpSocket};
use std::time::Duration;

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use slicectl::api::network::{Block, IsolatedSpec, Mac, NetworkSpec};
use slicectl::api::policy::{self, Policy, Protocol, Verdict};
use slicectl::host::iptables::{Backend, Input, Lock, restore};
use slicectl::host::netns::Netns;
use slicectl::host::rule::{AddrType, Ruleset};
use slicectl::host::tap::{self, Framing, Owner};
use slicectl::owner::Instance;
use slicectl::reconcile::firewall::isolated::rules;
use slicectl::reconcile::limits::Limit;
use slicectl::status::explain::{HostPath, PacketPath, explain};
use slicectl::status::traverse::PacketLink;
use test_support::frames;
use test_support::guest_stack::{Guest, Kind};
use test_support::kernel::{self, Neighbour};
use test_support::lab::mac;
use test_support::objects;
use test_support::sniffer::Sniffer;

const RULESETS: usize = 60;
const PROBES: usize = 50;
const GUEST: Ipv4Addr = Ipv4Addr::new(169, 254, 100, 2);
const GUEST_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];

/// An entry as numbers: network, prefix length, first and last port, protocol (6, 17, or 0 for any).
#[derive(Clone, Debug)]
struct Line(u32, u8, Option<(u16, u16)>, u8);

/// The oracle. A packet is its destination, protocol number and port.
fn passes(
    allow: &[Line],
    drop: &[Line],
    metadata: bool,
    (to, protocol, port): (u32, u8, u16),
) -> bool {
    let within =
        |network: u32, length: u8| length == 0 || (to ^ network) >> (32 - u32::from(length)) == 0;
    let services = [0xa9fe_a9fe, 0xa83f_8110, 0x6464_64c8];
    let reserved = services.contains(&to)
        || within(0xa9fe_0000, 16)
        || matches!(to >> 24, 0 | 127)
        || to >> 28 >= 14;
    if reserved && !(metadata && services.contains(&to)) {
        return false;
    }
    let hit = |line: &Line| {
        within(line.0, line.1)
            && (line.3 == 0 || line.3 == protocol)
            && line
                .2
                .is_none_or(|(a, b)| protocol != 1 && a <= port && port <= b)
    };
    match (allow.iter().any(hit), drop.iter().any(hit)) {
        (true, _) => true,
        (false, true) => false,
        (false, false) => allow.is_empty() || !drop.is_empty(),
    }
}

impl Line {
    /// As a person writes it.
    fn text(&self) -> String {
        let mut text = format!("{}/{}", Ipv4Addr::from(self.0), self.1);
        match self.2 {
            Some((first, last)) if first == last => text += &format!(":{first}"),
            Some((first, last)) => text += &format!(":{first}-{last}"),
            None => {}
        }
        match self.3 {
            6 => text += "/tcp",
            17 => text += "/udp",
            _ => {}
        }
        text
    }
}

/// Addresses close to each other and to every edge of what is reserved, so that lists and packets meet.
fn address() -> impl Strategy<Value = u32> {
    let edges = policy::RESERVED.map(|(network, length)| (u32::from(network), length));
    let edge = (
        prop::sample::select(edges.to_vec()),
        -2i64..3,
        any::<bool>(),
    )
        .prop_map(|((network, length), step, end)| {
            let size = 1u64 << (32 - u32::from(length));
            let from = u64::from(network) + if end { size - 1 } else { 0 };
            (from as i64 + step).clamp(0, i64::from(u32::MAX)) as u32
        });
    let near = (0u32..4, 0u32..4).prop_map(|(net, host)| 0x0a00_0000 + (net << 8) + host);
    prop_oneof![6 => near, 3 => edge, 1 => any::<u32>(), 1 => prop::sample::select(policy::METADATA.map(u32::from).to_vec())]
}

fn line() -> impl Strategy<Value = Line> {
    let length = prop::sample::select(vec![32u8, 32, 32, 31, 30, 24, 24, 23, 8, 1, 0]);
    let ports = prop_oneof![
        2 => Just(None),
        1 => (1u16..9).prop_map(|port| Some((port, port))),
        1 => (1u16..9, 0u16..5).prop_map(|(first, more)| Some((first, first + more))),
        1 => Just(Some((1, 65535))),
    ];
    let protocol = prop::sample::select(vec![0u8, 0, 6, 17]);
    (address(), length, ports, protocol).prop_map(|(address, length, ports, protocol)| {
        let mask = u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0);
        Line(address & mask, length, ports, protocol)
    })
}

fn lists() -> impl Strategy<Value = (Vec<Line>, Vec<Line>, bool)> {
    let list = || prop::collection::vec(line(), 0..6);
    (list(), list(), prop::bool::weighted(0.3))
}

fn packets() -> impl Strategy<Value = Vec<(u32, u8, u16)>> {
    let port = prop_oneof![8 => 1u16..14, 1 => Just(65535u16), 1 => any::<u16>()];
    // What is for the namespace itself does not go on: its own addresses are asked for elsewhere.
    let elsewhere = address().prop_filter("ours", |to| !(0xa9fe_6400..=0xa9fe_6403).contains(to));
    let packet = (elsewhere, prop::sample::select(vec![6u8, 17, 1]), port);
    prop::collection::vec(packet, PROBES)
}

/// The calling thread's namespace becomes a VM's: a TAP with the test behind it, an uplink with a sniffer behind it, and
/// somebody beyond who can say that it is now.
fn become_a_vm() -> (Guest, Sniffer, UdpSocket) {
    let uplink = Neighbour::alone("beyond");
    kernel::run(
        "ip link add up0 type veth peer name eth0 netns beyond
         ip -n beyond link set eth0 up
         ip link set up0 up
         ip netns add aside
         ip -n aside link add eth0 type veth peer name eth1 netns beyond
         ip -n aside addr add 192.168.7.1/24 dev eth0
         ip -n aside link set eth0 up
         ip -n beyond addr add 192.168.7.2/24 dev eth1
         ip -n beyond link set eth1 up",
    );
    let aside = Netns::open("/run/netns/aside".as_ref()).expect("a namespace");
    let bind = || {
        let socket = UdpSocket::bind("192.168.7.1:0").expect("a socket");
        socket.connect("192.168.7.2:9").expect("connected");
        Ok(socket)
    };
    let aside = aside.run_here(bind).expect("a socket");
    let owner = Owner { uid: 0, gid: None };
    tap::create("tap0", owner, &Default::default()).expect("tap0");
    let beyond = uplink.ip("link show dev eth0");
    let beyond = beyond[0]["address"].as_str().expect("a MAC").to_owned();
    kernel::run(&format!(
        "ip addr add 169.254.100.1/30 dev tap0
         ip link set tap0 up
         ip neigh add {GUEST} lladdr 02:00:00:00:00:02 dev tap0
         ip neigh add 169.254.0.1 lladdr {beyond} dev up0
         ip route add default via 169.254.0.1 dev up0 onlink
         sysctl -qw net.ipv4.ip_forward=1"
    ));
    let sniffer = Sniffer::listen(&uplink.path(), mac(&beyond));
    let here = std::path::Path::new("/proc/thread-self/ns/net");
    (
        Guest::attach(here, Framing::Plain, GUEST_MAC, GUEST),
        sniffer,
        aside,
    )
}

fn runner() -> TestRunner {
    let seed: [u8; 32] = match std::env::var("SLICE_ORACLE_SEED") {
        Ok(text) => *blake3::hash(text.as_bytes()).as_bytes(),
        Err(_) => {
            let now = format!("{:?}", std::time::SystemTime::now());
            eprintln!("to repeat this run: SLICE_ORACLE_SEED='{now}'");
            *blake3::hash(now.as_bytes()).as_bytes()
        }
    };
    TestRunner::new_with_rng(
        Config::default(),
        TestRng::from_seed(RngAlgorithm::ChaCha, &seed),
    )
}

fn some<S: Strategy>(runner: &mut TestRunner, strategy: S) -> S::Value {
    strategy.new_tree(runner).expect("a value").current()
}

fn policy_of(allow: &[Line], drop: &[Line], metadata: bool) -> Policy {
    let entries = |lines: &[Line]| {
        let entries = lines
            .iter()
            .map(|line| line.text().parse().expect("an entry"));
        entries.collect()
    };
    Policy {
        allow: entries(allow),
        drop: entries(drop),
        allow_metadata: metadata,
        ..Policy::default()
    }
}

fn asked((to, protocol, port): (u32, u8, u16)) -> policy::Packet {
    policy::Packet {
        destination: to.into(),
        transport: match protocol {
            6 => Some((Protocol::Tcp, Some(port))),
            17 => Some((Protocol::Udp, Some(port))),
            _ => None,
        },
    }
}

fn kind((_, protocol, port): (u32, u8, u16)) -> Kind {
    match protocol {
        6 => Kind::Tcp(port),
        17 => Kind::Udp(port),
        _ => Kind::Ping,
    }
}

fn commit(backend: &Backend, ruleset: &Ruleset) {
    let lock = std::path::PathBuf::from("/run/lock.oracle");
    restore(backend, &Input::whole_tables(ruleset), Lock::Private(&lock)).expect("committed");
}

/// The rules, with more connections than the probes make.
fn compile(policy: &Policy, block: Block) -> Ruleset {
    rules::compile(policy, block, Mac(GUEST_MAC), Limit::of(200_000))
}

/// A VM with that policy, as the store has it.
fn vm(policy: Policy) -> slicectl::api::vm::Vm {
    let mut spec = objects::spec(None, "");
    spec.network = NetworkSpec::Isolated(IsolatedSpec {
        max_connections: None,
        range: None,
        policy,
        tap_owner: Default::default(),
    });
    objects::vm(&objects::group("oracle", 1, spec), 1)
}

#[test]
fn the_kernel_and_explain_agree_with_an_oracle_about_random_lists_and_packets() {
    kernel::private_sync(|| {
        let (guest, sniffer, aside) = become_a_vm();
        let backend = Backend::detect().expect("iptables");
        let (mut runner, block) = (runner(), Block::around(GUEST));
        let (mut cases, mut passed, mut id) = (0, 0, 0);
        for _ in 0..RULESETS {
            let (allow, drop, metadata) = some(&mut runner, lists());
            let vm = vm(policy_of(&allow, &drop, metadata));
            let ruleset = compile(vm.spec.network.policy().unwrap(), block);
            commit(&backend, &ruleset);
            let packets = some(&mut runner, packets());
            let first = id + 1;
            for packet in &packets {
                id += 1;
                guest.probe(id, packet.0.into(), kind(*packet));
            }
            // What passes has arrived by now; what came before this one has been seen.
            std::thread::sleep(Duration::from_millis(10));
            id += 1;
            // "Port unreachable" of the one before may be waiting.
            let _ = aside
                .send(&frames::mark(id))
                .or_else(|_| aside.send(&frames::mark(id)));
            sniffer.wait_for(id);
            let arrived = sniffer.arrived();
            sniffer.forget();
            for (id, packet) in (first..).zip(&packets) {
                let expected = passes(&allow, &drop, metadata, *packet);
                let case = format!("{packet:?} to {}: {vm:?}", Ipv4Addr::from(packet.0));
                assert_eq!(arrived.contains(&id), expected, "the kernel: {case}");
                let output = explained(&vm, block, &ruleset, *packet).verdict;
                assert_eq!(output == Verdict::Allow, expected, "explain: {case}");
                cases += 1;
                passed += usize::from(expected);
            }
        }
        eprintln!("{cases} cases, {passed} passed");
        assert!(cases >= 2000);
        assert!(
            passed > cases / 10 && passed < cases * 9 / 10,
            "one-sided: {passed} of {cases}"
        );
    });
}

fn explained(
    vm: &slicectl::api::vm::Vm,
    block: Block,
    ruleset: &Ruleset,
    packet: (u32, u8, u16),
) -> slicectl::api::view::Explanation {
    let link = |name: &str| PacketLink {
        name: name.to_owned(),
        group: 0,
    };
    let host = HostPath {
        instance: Instance::of("/oracle".as_ref()),
        in_link: link("up0"),
        ruleset: Ruleset::default(),
        nat_tables: Vec::new(),
        addresses: Vec::new(),
        destination_type: AddrType::Unicast,
        out_link: Some(link("eth0")),
    };
    let way = PacketPath {
        vm,
        block,
        guest_mac: Mac(GUEST_MAC),
        ruleset,
        host: &host,
        note: None,
    };
    explain(&way, &asked(packet), String::new())
}

/// Each rule of the lists with its words in order, and how many packets it has decided about.
fn counters() -> BTreeMap<String, u64> {
    let text = kernel::run("iptables-save -c -t filter");
    let rules = text
        .lines()
        .filter(|line| line.contains("] -A SLICE-POLICY "));
    let split = |line: &str| {
        let (counter, rule) = line.split_once("] ")?;
        let packets = counter.trim_start_matches('[').split(':').next()?;
        Some((words(rule), packets.parse::<u64>().ok()?))
    };
    let mut sums = BTreeMap::new();
    for (rule, packets) in rules.filter_map(split) {
        *sums.entry(rule).or_insert(0u64) += packets;
    }
    sums
}

/// A rule without what a program adds of its own, in an order that does not depend on who wrote it.
fn words(rule: &str) -> String {
    let rule = plain(rule).replace("-m tcp ", "").replace("-m udp ", "");
    let mut words: Vec<&str> = rule.split_whitespace().collect();
    words.sort_unstable();
    words.join(" ")
}

fn plain(text: &str) -> String {
    text.replace(['"', '\\'], "")
}

#[test]
fn explain_names_the_rule_with_the_counter_that_rises() {
    kernel::private_sync(|| {
        let (guest, _sniffer, _aside) = become_a_vm();
        let backend = Backend::detect().expect("iptables");
        let (mut runner, block) = (runner(), Block::around(GUEST));
        let mut id = 0;
        for _ in 0..10 {
            let (allow, drop, metadata) = some(&mut runner, lists());
            let vm = vm(policy_of(&allow, &drop, metadata));
            let ruleset = compile(vm.spec.network.policy().unwrap(), block);
            commit(&backend, &ruleset);
            // The kernel itself has no way for these; no rule is asked.
            let routed = |to: u32| !matches!(to >> 24, 0 | 127 | 224..);
            let packets = some(&mut runner, packets());
            for packet in packets
                .into_iter()
                .filter(|packet| routed(packet.0))
                .take(15)
            {
                let before = counters();
                id += 1;
                guest.probe(id, packet.0.into(), kind(packet));
                let risen = risen(&before);
                let output = explained(&vm, block, &ruleset, packet);
                assert_eq!(risen, [words(&output.rule)], "{packet:?} {output:?} {vm:?}");
                assert!(
                    plain(&output.rule).contains(&plain(&output.entry)),
                    "{output:?}"
                );
            }
        }
    });
}

/// The rules that have decided since; waits for one.
fn risen(before: &BTreeMap<String, u64>) -> Vec<String> {
    for _ in 0..100 {
        let mut now = counters();
        now.retain(|rule, packets| before.get(rule) != Some(packets));
        if !now.is_empty() {
            return now.into_keys().collect();
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Vec::new()
}
