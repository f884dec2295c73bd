//! Packet filter rules through the real kernel: written, read back, compared; on both back ends.
//! Out of scope: what rules a VM gets.

use std::collections::BTreeSet;
use std::net::UdpSocket;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use proptest::prelude::*;
use proptest::sample::subsequence;
use proptest::test_runner::TestRunner;
use slicectl::host::iptables::{
    Backend, Edit, Flavour, Input, Lock, block_ipv6, builtin_chains, is_ipv6_blocked, restore,
    restore_tables,
};
use slicectl::host::netns::Netns;
use slicectl::host::rule::{
    AddrType, Chain, CtState, LinkGroup, Match, Policy, Protocol, Reject, Rule, Ruleset, Table,
    TableName, Target,
};
use slicectl::host::{conntrack, cttimeout};
use test_support::kernel;

/// Runs a test in a private kernel with both back ends in turn.
fn on_both(test: impl Fn(&World) + Sync) {
    for flavour in [Flavour::Nft, Flavour::Legacy] {
        alone(flavour, &test);
    }
}

fn alone(flavour: Flavour, test: impl Fn(&World) + Sync) {
    println!("with the back end {flavour:?}");
    kernel::private_sync(|| test(&World::new(flavour)));
}

struct World {
    backend: Backend,
    tools: tempfile::TempDir,
}

impl World {
    fn new(flavour: Flavour) -> Self {
        let tools = tempfile::tempdir().unwrap();
        let multi = match flavour {
            Flavour::Nft => "/usr/sbin/xtables-nft-multi",
            Flavour::Legacy => "/usr/sbin/xtables-legacy-multi",
        };
        for name in ["iptables", "iptables-save", "iptables-restore"] {
            symlink(multi, tools.path().join(name)).unwrap();
        }
        let backend = Backend::detect_in(tools.path().as_os_str()).unwrap();
        assert_eq!(backend.kind, flavour);
        Self { backend, tools }
    }

    fn lock(&self) -> PathBuf {
        self.tools.path().join("lock")
    }

    fn restore(&self, input: &Input) -> Result<(), String> {
        restore(&self.backend, input, Lock::Private(&self.lock()))
            .map_err(|error| error.to_string())
    }

    fn commit(&self, ruleset: &Ruleset) {
        let input = Input::whole_tables(ruleset);
        self.restore(&input)
            .unwrap_or_else(|e| panic!("{e}\n{}", input.text()));
    }

    fn read(&self) -> Ruleset {
        self.backend.read(TableName::ALL).unwrap()
    }

    /// `iptables` of this back end, as anybody on the host might call it.
    fn iptables(&self, arguments: &str) {
        run(&format!(
            "{}/iptables {arguments}",
            self.tools.path().display()
        ));
    }
}

fn run(script: &str) {
    output(script);
}

fn output(script: &str) -> String {
    let output = Command::new("sh").args(["-ec", script]).output().unwrap();
    let reported = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{script}: {reported}");
    String::from_utf8(output.stdout).unwrap()
}

fn rule(text: &str) -> Rule {
    text.parse().unwrap()
}

fn rules(text: &str) -> Vec<Rule> {
    text.lines().map(|line| rule(line.trim())).collect()
}

fn filter(chains: Vec<Chain>) -> Ruleset {
    let name = TableName::Filter;
    Ruleset::new([Table { name, chains }])
}

/// What a VM's namespace holds.
fn a_vms_rules() -> Ruleset {
    let input = rules(
        "-i tap0 -s 169.254.100.2/32 -d 169.254.100.1/32 -p icmp -m icmp --icmp-type echo-request -m mac --mac-source 02:00:00:00:00:0a -j ACCEPT",
    );
    let forward = rules(
        "-i up0 -o tap0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
         -i tap0 ! -s 169.254.100.2/32 -j DROP
         -i tap0 -m mac ! --mac-source 02:00:00:00:00:0a -j DROP
         -i tap0 -o up0 -j SLICE-POLICY",
    );
    let policy = rules(
        r#"-d 169.254.0.0/16 -j SLICE-DENY
           -d 127.0.0.0/8 -j SLICE-DENY
           -d 0.0.0.0/8 -j SLICE-DENY
           -d 224.0.0.0/4 -j SLICE-DENY
           -d 240.0.0.0/4 -j SLICE-DENY
           -d 168.63.129.16/32 -j SLICE-DENY
           -d 100.100.100.200/32 -j SLICE-DENY
           -d 1.2.3.4/32 -p tcp -m tcp --dport 80:90 -m comment --comment "allow[0] 1.2.3.4:80-90" -j ACCEPT
           -d 1.2.3.4/32 -p udp -m udp --dport 80:90 -m comment --comment "allow[0] 1.2.3.4:80-90" -j ACCEPT
           -d 10.0.0.0/9 -m comment --comment "allow[1] 10.0.0.0/9" -j ACCEPT
           -d 192.168.222.1/32 -p tcp -m tcp --dport 3128 -j ACCEPT
           -d 192.168.222.1/32 -p udp -m udp --dport 3128:65535 -j ACCEPT
           -d 192.168.222.1/32 -p udp -m udp --dport 0:53 -j RETURN
           -p icmp -j ACCEPT
           -m conntrack ! --ctstatus CONFIRMED -m connlimit --connlimit-above 512 --connlimit-mask 32 --connlimit-saddr -m comment --comment "max_connections" -j DROP
           -p tcp -m conntrack ! --ctstatus CONFIRMED -m limit --limit 25/sec --limit-burst 256 -j RETURN
           -m limit --limit 1/sec --limit-burst 8 -j RETURN
           -m limit --limit 10000/sec --limit-burst 10000 -j RETURN
           -m comment --comment "quotes \" and \\ and ' and $(x) and é" -j SLICE-DENY"#,
    );
    let deny = rules(
        "-p tcp -j REJECT --reject-with tcp-reset
         -j REJECT --reject-with icmp-admin-prohibited
         -j DROP",
    );
    filter(vec![
        Chain::builtin("INPUT", Policy::Drop, input),
        Chain::builtin("FORWARD", Policy::Drop, forward),
        Chain::user("SLICE-POLICY", policy),
        Chain::user("SLICE-DENY", deny),
    ])
}

/// What the host holds: a chain of ours in each table and a jump to it.
fn the_hosts_edits() -> Vec<Edit> {
    cttimeout::set("tria", &[(1, 5), (3, 7440)].into()).unwrap();
    let ours = |table, from: &str, text| Edit {
        chains: vec![Chain::user("SLICE-abcde", rules(text))],
        insert_top: vec![(from.to_owned(), rule("-j SLICE-abcde"))],
        ..Edit::of(table)
    };
    vec![
        ours(
            TableName::Raw,
            "PREROUTING",
            "-i slabcde+ -m addrtype --dst-type LOCAL -j DROP
             -i slabcde+ -m addrtype --dst-type BROADCAST,MULTICAST -j DROP
             -p tcp -j CT --timeout tria
             -i slabcde+ ! -s 169.254.100.0/22 -j DROP",
        ),
        ours(
            TableName::Mangle,
            "FORWARD",
            "-p tcp -m tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu
             -i slabcde+ -m conntrack ! --ctstatus CONFIRMED -m connlimit --connlimit-above 512 --connlimit-mask 30 --connlimit-saddr -j DROP
             -i br0 -m connlimit --connlimit-above 1 --connlimit-mask 0 --connlimit-saddr -j DROP
             ! -i br0 -o br0 -m connlimit --connlimit-above 70000 --connlimit-mask 32 --connlimit-daddr -j DROP
             -s 10.0.0.0/8 -m hashlimit --hashlimit-above 25/sec --hashlimit-burst 256 --hashlimit-mode srcip --hashlimit-name slabcde-c --hashlimit-htable-size 1024 --hashlimit-htable-expire 20000 --hashlimit-srcmask 30 -j DROP
             -m conntrack --ctstate NEW -m hashlimit --hashlimit-upto 1/sec --hashlimit-burst 1 --hashlimit-mode dstip --hashlimit-name slabcde-lan --hashlimit-htable-size 256 --hashlimit-htable-max 256 --hashlimit-htable-expire 5000 -j RETURN",
        ),
        ours(
            TableName::Nat,
            "POSTROUTING",
            "! -o slabcde+ -s 169.254.100.0/22 -j MASQUERADE",
        ),
        ours(
            TableName::Filter,
            "FORWARD",
            "-i slabcde+ -o slabcde+ -j DROP
             -i slabcde+ -m conntrack --ctstate INVALID -j DROP
             -i slabcde+ -m devgroup --dst-group 0x736c0000/0xffff0000 -j DROP
             -o br0 -d 10.1.0.0/16 -m devgroup --src-group 0x736c0001 -j DROP
             -m devgroup --src-group 0x736c0001 --dst-group 0x736c0002 -j DROP
             -i slabcde+ -j ACCEPT
             -o slabcde+ -m conntrack --ctstate RELATED,ESTABLISHED,DNAT -j ACCEPT
             ! -i slabcde+ -o slabcde+ -m conntrack --ctstate NEW -j DROP",
        ),
    ]
}

fn assert_equal(found: &Ruleset, meant: &Ruleset) {
    assert!(found == meant, "found:\n{found}\nmeant:\n{meant}");
}

#[test]
fn what_a_vms_namespace_is_given_is_read_back_equal() {
    on_both(|world| {
        for _ in 0..2 {
            world.commit(&a_vms_rules());
            assert_equal(&world.read(), &a_vms_rules());
        }
    });
}

#[test]
fn whole_tables_are_written_into_nothing_over_something_and_after_a_failure() {
    on_both(|world| {
        let write = |ruleset: &Ruleset| {
            let lock = world.lock();
            restore_tables(&world.backend, ruleset, Lock::Private(&lock))
        };
        let nonsense = vec![Rule::Foreign("whatever".into())];
        let bad = filter(vec![Chain::builtin("FORWARD", Policy::Drop, nonsense)]);
        assert!(write(&bad).is_err());
        for _ in 0..2 {
            write(&a_vms_rules()).unwrap();
            assert_equal(&world.read(), &a_vms_rules());
        }
    });
    on_both(|world| {
        restore_tables(&world.backend, &a_vms_rules(), Lock::Private(&world.lock())).unwrap();
        assert_equal(&world.read(), &a_vms_rules());
        let tools = world.tools.path().display();
        let saved = output(&format!("{tools}/iptables-save"));
        assert!(saved.contains(":FORWARD DROP"), "{saved}");
    });
}

#[test]
fn a_ruleset_survives_its_written_form() {
    let yaml = serde_yaml::to_string(&a_vms_rules()).unwrap();
    assert_equal(&serde_yaml::from_str(&yaml).unwrap(), &a_vms_rules());
}

#[test]
fn the_hosts_chains_are_read_back_equal_and_foreign_ones_stay() {
    on_both(|world| {
        world.iptables("-N DOCKER-USER");
        world.iptables("-A FORWARD -j DOCKER-USER");
        world.iptables("-A FORWARD -m limit --limit 7/s -j LOG");
        world.iptables("-P FORWARD DROP");
        world.iptables("-A DOCKER-USER -i eth9 -j RETURN");
        let edits = the_hosts_edits();
        world.restore(&Input::edits(&edits)).unwrap();
        let found = world.read();
        for edit in &edits {
            let ours = found.chain(edit.table, "SLICE-abcde").unwrap();
            assert_eq!(ours, &edit.chains[0]);
            let (from, jump) = &edit.insert_top[0];
            assert_eq!(&found.rules(edit.table, from)[0], jump);
        }
        let forward = found.chain(TableName::Filter, "FORWARD").unwrap();
        assert_eq!(forward.policy, Some(Policy::Drop));
        assert_eq!(forward.rules[1], rule("-j DOCKER-USER"));
        let foreign = forward.rules[2].to_string();
        assert!(foreign.starts_with("foreign: "), "{foreign}");
        assert!(
            foreign.contains("limit") && foreign.contains("LOG"),
            "{foreign}"
        );
        let docker = found.rules(TableName::Filter, "DOCKER-USER");
        assert_eq!(docker, [rule("-i eth9 -j RETURN")]);
    });
}

#[test]
fn an_edit_moves_our_jump_to_the_top_and_takes_our_chains_away() {
    on_both(|world| {
        world.iptables("-A FORWARD -i eth9 -j DROP");
        let before = world.read();
        world.restore(&Input::edits(&the_hosts_edits())).unwrap();
        world.iptables("-I FORWARD -i eth8 -j DROP");
        let jump = ("FORWARD".to_owned(), rule("-j SLICE-abcde"));
        let second = ("FORWARD".to_owned(), rule("-i eth7 -j DROP"));
        let to_the_top = Edit {
            remove: vec![jump.clone()],
            insert_top: vec![jump, second],
            ..Edit::of(TableName::Filter)
        };
        world.restore(&Input::edits(&[to_the_top])).unwrap();
        assert_eq!(
            world.read().rules(TableName::Filter, "FORWARD"),
            rules("-j SLICE-abcde\n-i eth7 -j DROP\n-i eth8 -j DROP\n-i eth9 -j DROP")
        );

        let mut undo: Vec<Edit> = the_hosts_edits()
            .into_iter()
            .map(|edit| Edit {
                delete: vec!["SLICE-abcde".into(), "SLICE-never-there".into()],
                remove: edit.insert_top,
                ..Edit::of(edit.table)
            })
            .collect();
        let more = ["-i eth7 -j DROP", "-i eth8 -j DROP"];
        undo[3]
            .remove
            .extend(more.map(|text| ("FORWARD".into(), rule(text))));
        world.restore(&Input::edits(&undo)).unwrap();
        assert_equal(&world.read(), &before);
    });
}

#[test]
fn a_bad_line_changes_nothing_and_is_named() {
    on_both(|world| {
        world.commit(&a_vms_rules());
        let mut bad = the_hosts_edits().remove(3);
        bad.chains[0].rules.push(Rule::when().jump("NO-SUCH-CHAIN"));
        let reported = world.restore(&Input::edits(&[bad])).unwrap_err();
        assert!(reported.contains("NO-SUCH-CHAIN"), "{reported}");
        assert_equal(&world.read(), &a_vms_rules());

        let foreign = Rule::Foreign("whatever".into());
        let whole = filter(vec![Chain::user("SLICE-X", vec![foreign])]);
        let reported = world.restore(&Input::whole_tables(&whole)).unwrap_err();
        assert!(
            reported.contains("(line: -A SLICE-X foreign: whatever)"),
            "{reported}"
        );
        assert_equal(&world.read(), &a_vms_rules());
    });
}

#[test]
fn to_replace_a_table_resets_its_policies() {
    on_both(|world| {
        world.commit(&a_vms_rules());
        let one = filter(vec![Chain::user("SLICE-X", vec![])]);
        world.commit(&one);
        assert_equal(&world.read(), &one);
    });
}

/// Rules that differ in one respect from one of ours.
const NOT_QUITE: &[&str] = &[
    "-p tcp -m tcp ! --dport 80:90 -j ACCEPT",
    "-p tcp -m tcp --sport 80 -j ACCEPT",
    "-p tcp -m tcp --sport 80 --dport 90 -j ACCEPT",
    "-p udp -m udp --sport 80 --dport 90 -j ACCEPT",
    "-p tcp -m tcp --tcp-flags SYN,ACK SYN -j ACCEPT",
    "-p tcp -m tcp ! --tcp-flags SYN,RST SYN -j ACCEPT",
    "-p tcp -m tcp --tcp-option 4 -j ACCEPT",
    "-p udp -m udp --dport 0:65535 -j ACCEPT",
    "! -p tcp -j ACCEPT",
    "-p gre -j ACCEPT",
    "-p icmp -m icmp --icmp-type 3/1 -j ACCEPT",
    "-p icmp -m icmp ! --icmp-type 8 -j ACCEPT",
    "-p icmp -m icmp --icmp-type any -j ACCEPT",
    "-s 10.0.0.1/255.0.255.255 -j ACCEPT",
    "-f -j ACCEPT",
    "-m conntrack ! --ctstate NEW -j ACCEPT",
    "-m conntrack --ctstate NEW,SNAT -j ACCEPT",
    "-m conntrack --ctstate NEW --ctproto tcp -j ACCEPT",
    "-m conntrack --ctdir REPLY -j ACCEPT",
    "-m addrtype --src-type LOCAL -j ACCEPT",
    "-m addrtype ! --dst-type LOCAL -j ACCEPT",
    "-m addrtype --dst-type BLACKHOLE -j ACCEPT",
    "-m mark --mark 1 -j ACCEPT",
    "-m comment --comment a -m comment --comment b -j ACCEPT",
    "-m conntrack --ctstate NEW -m conntrack --ctstate NEW -j ACCEPT",
    "-p tcp -m multiport --dports 1,2 -j ACCEPT",
    "-j REJECT --reject-with icmp-port-unreachable",
    "-p tcp -m tcp --tcp-flags SYN,RST SYN -j TCPMSS --set-mss 1000",
    "-j MARK --set-mark 1",
    "-j LOG",
    "-g SLICE-U",
    "-s 10.0.0.0/8",
    "-m limit --limit 1/min -j ACCEPT",
    "-m quota --quota 1000 -j ACCEPT",
];

#[test]
fn a_rule_of_another_shape_is_foreign_and_none_is_skipped() {
    on_both(|world| {
        let ours = "-i tap0 -j DROP";
        let lines: String = NOT_QUITE
            .iter()
            .map(|line| format!("-A SLICE-T {line}\n-A SLICE-T {ours}\n"))
            .collect();
        let path = world.tools.path().join("rules");
        let text = format!(
            "*filter\n:SLICE-T - [0:0]\n:SLICE-U - [0:0]\n-A FORWARD -j SLICE-T\n{lines}COMMIT\n"
        );
        std::fs::write(&path, text).unwrap();
        let program = world.backend.restore_program.display();
        run(&format!("{program} {}", path.display()));
        let found = world.read();
        let found = found.rules(TableName::Filter, "SLICE-T");
        assert_eq!(found.len(), 2 * NOT_QUITE.len());
        let mut seen = BTreeSet::new();
        for (pair, line) in found.chunks(2).zip(NOT_QUITE) {
            assert!(
                matches!(pair[0], Rule::Foreign(_)),
                "{line} is read as {}",
                pair[0]
            );
            assert!(
                seen.insert(pair[0].to_string()),
                "{line} looks like another"
            );
            assert_eq!(pair[1], rule(ours));
        }
    });
}

/// What `nft add rule` is given, and how it is read; none: foreign.
const NATIVE: &[(&str, Option<&str>)] = &[
    (
        "iifname tap0 ip saddr != 10.0.0.0/9 tcp dport 80-90 counter accept",
        Some("-i tap0 ! -s 10.0.0.0/9 -p tcp -m tcp --dport 80:90 -j ACCEPT"),
    ),
    (
        r#"ct state established,related accept comment \"by hand\""#,
        Some(
            r#"-m conntrack --ctstate RELATED,ESTABLISHED -m comment --comment "by hand" -j ACCEPT"#,
        ),
    ),
    (
        "ip protocol tcp reject with tcp reset",
        Some("-p tcp -j REJECT --reject-with tcp-reset"),
    ),
    (
        "reject with icmp type admin-prohibited",
        Some("-j REJECT --reject-with icmp-admin-prohibited"),
    ),
    ("return", Some("-j RETURN")),
    (
        "tcp dport '>=' 80 accept",
        Some("-p tcp -m tcp --dport 80:65535 -j ACCEPT"),
    ),
    ("tcp dport '<' 80 accept", None),
    ("ct state invalid,untracked drop", None),
    (
        "iifname tap0 ip saddr 1.2.3.4 ip saddr 1.2.3.5 accept",
        None,
    ),
    ("iifname { tap0, tap1 } accept", None),
    ("ip daddr vmap { 1.2.3.4 : accept }", None),
    ("meta mark set 1", None),
    ("iifname tap0 iif lo accept", None),
    ("udp sport 53 accept", None),
    ("ip saddr '&' 0.0.0.255 == 0.0.0.1 accept", None),
];

#[test]
fn rules_that_nft_itself_wrote_are_read_right() {
    alone(Flavour::Nft, |world| {
        run("nft 'add table ip filter; add chain ip filter SLICE-T'");
        for (line, _) in NATIVE {
            run(&format!("nft add rule ip filter SLICE-T {line}"));
        }
        let found = world.read();
        let found = found.rules(TableName::Filter, "SLICE-T");
        assert_eq!(found.len(), NATIVE.len());
        for (found, (line, expected)) in found.iter().zip(NATIVE) {
            match expected {
                Some(expected) => assert_eq!(found.to_string(), *expected, "{line}"),
                None => assert!(
                    matches!(found, Rule::Foreign(_)),
                    "{line} is read as {found}"
                ),
            }
        }
    });
}

#[test]
fn a_chain_that_guards_nothing_is_not_taken_for_one_that_does() {
    alone(Flavour::Nft, |world| {
        let anew = |chain: &str| {
            run(&format!(
                "nft 'add table ip filter; delete table ip filter; add table ip filter; add chain ip filter {chain}'"
            ));
        };
        let meant = filter(vec![Chain::builtin("FORWARD", Policy::Drop, vec![])]);
        anew("FORWARD { type filter hook output priority 0; policy drop; }");
        assert_ne!(world.read(), meant);
        anew("FORWARD");
        assert_ne!(world.read(), meant);
        anew("FORWARD { type filter hook forward priority 0; policy drop; }");
        assert_equal(&world.read(), &meant);
        run("nft 'add table ip filter { flags dormant; }'");
        assert_ne!(world.read(), meant);
    });
}

#[test]
fn builtin_chains_are_hooked_where_iptables_hooks_them() {
    on_both(|world| {
        for &table in TableName::ALL {
            for chain in builtin_chains(table) {
                world.iptables(&format!("-t {table} -A {chain} -j RETURN"));
                let found = world.read();
                let expected = Chain::builtin(*chain, Policy::Accept, vec![rule("-j RETURN")]);
                assert_eq!(found.chain(table, chain), Some(&expected));
            }
        }
    });
}

fn networks() -> impl Strategy<Value = ipnetwork::Ipv4Network> {
    (any::<u32>(), 1..=32u8)
        .prop_map(|(bits, prefix)| ipnetwork::Ipv4Network::new(bits.into(), prefix).unwrap())
}

fn links() -> impl Strategy<Value = String> {
    prop_oneof!["[a-z][a-z0-9.-]{0,14}", "[a-z][a-z0-9.-]{0,13}\\+"]
}

fn groups() -> impl Strategy<Value = LinkGroup> {
    prop_oneof![
        any::<u32>().prop_map(LinkGroup::only),
        (any::<u32>(), 1..=u32::MAX).prop_map(|(value, mask)| LinkGroup::under(value, mask)),
    ]
}

/// A condition to add to a rule, drawn at random.
#[derive(Clone, Debug)]
enum Condition {
    InIf(String),
    NotInIf(String),
    OutIf(String),
    NotOutIf(String),
    Src(ipnetwork::Ipv4Network),
    NotSrc(ipnetwork::Ipv4Network),
    Dst(ipnetwork::Ipv4Network),
    NotDst(ipnetwork::Ipv4Network),
    Mac([u8; 6]),
    NotMac([u8; 6]),
    CtState(Vec<CtState>),
    DstType(Vec<AddrType>),
    InGroup(LinkGroup),
    OutGroup(LinkGroup),
    Comment(String),
    Protocol(Protocol),
    Ports(Protocol, u16, u16),
    EchoRequest,
    Syn,
    SynTo(u16),
}

fn condition() -> impl Strategy<Value = Condition> {
    let transport = || prop_oneof![Just(Protocol::Tcp), Just(Protocol::Udp)];
    prop_oneof![
        links().prop_map(Condition::InIf),
        links().prop_map(Condition::NotInIf),
        links().prop_map(Condition::OutIf),
        links().prop_map(Condition::NotOutIf),
        networks().prop_map(Condition::Src),
        networks().prop_map(Condition::NotSrc),
        networks().prop_map(Condition::Dst),
        networks().prop_map(Condition::NotDst),
        any::<[u8; 6]>().prop_map(Condition::Mac),
        any::<[u8; 6]>().prop_map(Condition::NotMac),
        subsequence(CtState::ALL, 0..=CtState::ALL.len()).prop_map(Condition::CtState),
        subsequence(AddrType::ALL, 0..=AddrType::ALL.len()).prop_map(Condition::DstType),
        groups().prop_map(Condition::InGroup),
        groups().prop_map(Condition::OutGroup),
        "\\PC{0,300}".prop_map(Condition::Comment),
        proptest::sample::select(Protocol::ALL).prop_map(Condition::Protocol),
        (transport(), any::<u16>(), any::<u16>()).prop_map(|(protocol, a, b)| Condition::Ports(
            protocol,
            a.min(b),
            a.max(b)
        )),
        (transport(), any::<u16>())
            .prop_map(|(protocol, port)| Condition::Ports(protocol, port, port)),
        Just(Condition::EchoRequest),
        Just(Condition::Syn),
        any::<u16>().prop_map(Condition::SynTo),
    ]
}

fn add(rule: Match, condition: Condition) -> Match {
    match condition {
        Condition::InIf(link) => rule.in_if(link),
        Condition::NotInIf(link) => rule.not_in_if(link),
        Condition::OutIf(link) => rule.out_if(link),
        Condition::NotOutIf(link) => rule.not_out_if(link),
        Condition::Src(network) => rule.src(network),
        Condition::NotSrc(network) => rule.not_src(network),
        Condition::Dst(network) => rule.dst(network),
        Condition::NotDst(network) => rule.not_dst(network),
        Condition::Mac(mac) => rule.mac_source(mac),
        Condition::NotMac(mac) => rule.not_mac_source(mac),
        Condition::CtState(states) => rule.ctstate(states),
        Condition::DstType(types) => rule.dst_type(types),
        Condition::InGroup(group) => rule.in_group(group),
        Condition::OutGroup(group) => rule.out_group(group),
        Condition::Comment(text) => rule.comment(text),
        Condition::Protocol(protocol) => rule.protocol(protocol),
        Condition::Ports(protocol, first, last) => rule.dport(protocol, first..=last),
        Condition::EchoRequest => rule.echo_request(),
        Condition::Syn => rule.tcp_syn(),
        Condition::SynTo(port) => rule.tcp_syn().dport(Protocol::Tcp, port..=port),
    }
}

/// Random rules of every shape that can stand in a chain under FORWARD.
fn any_rule() -> impl Strategy<Value = Rule> {
    let targets = proptest::sample::select(vec![
        Target::Accept,
        Target::Drop,
        Target::Return,
        Target::Jump("SLICE-U".into()),
        Target::Reject(Reject::TcpReset),
        Target::Reject(Reject::IcmpAdminProhibited),
        Target::ClampMss,
    ]);
    let conditions = proptest::collection::vec(condition(), 0..8);
    (conditions, targets).prop_map(|(conditions, target)| {
        let rule = conditions.into_iter().fold(Rule::when(), add);
        match target {
            Target::Reject(Reject::TcpReset) | Target::ClampMss => rule.tcp_syn().then(target),
            target => rule.then(target),
        }
    })
}

#[test]
fn any_rule_of_ours_survives_the_kernel() {
    on_both(|world| {
        let mut runner = TestRunner::new(ProptestConfig {
            cases: 10,
            failure_persistence: None,
            max_shrink_iters: 300,
            ..ProptestConfig::default()
        });
        let some_rules = proptest::collection::vec(any_rule(), 1..200);
        let outcome = runner.run(&some_rules, |rules| {
            let jump = vec![Rule::when().jump("SLICE-T")];
            let meant = filter(vec![
                Chain::builtin("FORWARD", Policy::Drop, jump),
                Chain::user("SLICE-T", rules),
                Chain::user("SLICE-U", vec![]),
            ]);
            let input = Input::whole_tables(&meant);
            world.restore(&input).map_err(TestCaseError::fail)?;
            prop_assert_eq!(&world.read(), &meant);
            let text = serde_json::to_string(&meant).unwrap();
            prop_assert_eq!(serde_json::from_str::<Ruleset>(&text).unwrap(), meant);
            Ok(())
        });
        outcome.unwrap();
    });
}

/// Whether a packet may leave for our own IPv6 address.
fn ipv6_passes() -> bool {
    let socket = UdpSocket::bind("[::1]:0").unwrap();
    let sent = socket.send_to(b"x", socket.local_addr().unwrap());
    sent.is_ok() && socket.recv(&mut [0; 1]).is_ok()
}

#[test]
fn ipv6_is_sealed_whatever_stood_there_and_stays_so() {
    on_both(|world| {
        assert!(!is_ipv6_blocked().unwrap());
        assert!(ipv6_passes());
        block_ipv6().unwrap();
        assert!(is_ipv6_blocked().unwrap());
        assert!(!ipv6_passes());
        let seen = output("ip6tables-nft -S");
        assert_eq!(seen, "-P INPUT DROP\n-P FORWARD DROP\n-P OUTPUT DROP\n");
        world.commit(&a_vms_rules());
        assert!(is_ipv6_blocked().unwrap());
        for breaking in [
            "ip6tables-nft -P FORWARD ACCEPT",
            "ip6tables-nft -A INPUT -j ACCEPT",
            "nft delete chain ip6 filter INPUT",
            "nft add table ip6 filter '{ flags dormant; }'",
            "nft delete table ip6 filter",
        ] {
            run(breaking);
            assert!(!is_ipv6_blocked().unwrap(), "{breaking}");
            block_ipv6().unwrap();
            assert!(is_ipv6_blocked().unwrap(), "{breaking}");
        }
        assert!(!ipv6_passes());
    });
}

#[test]
fn a_flow_is_counted_listed_and_deleted() {
    on_both(|world| {
        world.commit(&filter(vec![Chain::builtin(
            "INPUT",
            Policy::Accept,
            rules("-m conntrack --ctstate NEW,ESTABLISHED -j ACCEPT"),
        )]));
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        let (here, there) = (client.local_addr().unwrap(), server.local_addr().unwrap());
        client.send_to(b"x", there).unwrap();
        server.recv(&mut [0; 1]).unwrap();

        assert_eq!(conntrack::count().unwrap(), 1);
        let flows = conntrack::list().unwrap();
        let [flow] = flows.as_slice() else {
            panic!("{flows:?}")
        };
        assert_eq!(flow.protocol, 17);
        assert_eq!((flow.sport, flow.dport), (here.port(), there.port()));
        assert_eq!(
            (flow.src, flow.dst),
            ([127, 0, 0, 1].into(), [127, 0, 0, 1].into())
        );

        // Another flow between the same ends is not the one that was meant.
        let mut another = flow.clone();
        another.id = !flow.id;
        conntrack::delete(&[another]).unwrap();
        assert_eq!(conntrack::list().unwrap().len(), 1);
        conntrack::delete(std::slice::from_ref(flow)).unwrap();
        assert_eq!(conntrack::list().unwrap(), []);
        conntrack::delete(std::slice::from_ref(flow)).unwrap();
    });
}

#[test]
fn a_flow_without_ports_is_listed_and_deleted() {
    alone(Flavour::Nft, |world| {
        world.commit(&filter(vec![Chain::builtin(
            "INPUT",
            Policy::Accept,
            rules("-m conntrack --ctstate NEW,ESTABLISHED -j ACCEPT"),
        )]));
        run("busybox ping -c 1 -W 1 127.0.0.1");
        let flows = conntrack::list().unwrap();
        let [flow] = flows.as_slice() else {
            panic!("{flows:?}")
        };
        assert_eq!((flow.protocol, flow.sport, flow.dport), (1, 0, 0));
        conntrack::delete(std::slice::from_ref(flow)).unwrap();
        assert_eq!(conntrack::list().unwrap(), []);
    });
}

#[test]
fn the_private_lock_is_the_one_that_is_taken() {
    alone(Flavour::Legacy, |world| {
        world.commit(&a_vms_rules());
        assert!(world.lock().exists());
        assert!(!Path::new("/run/xtables.lock").exists());
        let held = std::fs::File::open(world.lock()).unwrap();
        held.lock().unwrap();
        let input = Input::whole_tables(&a_vms_rules());
        let other = world.tools.path().join("other");
        restore(&world.backend, &input, Lock::Private(&other)).unwrap();
        let error = restore(&world.backend, &input, Lock::Private(&world.lock())).unwrap_err();
        assert_eq!(error.kind, slicectl::host::Kind::Busy, "{error:?}");
    });
}

#[test]
fn a_missing_tool_is_absent() {
    let empty = tempfile::tempdir().unwrap();
    let error = Backend::detect_in(empty.path().as_os_str()).unwrap_err();
    assert_eq!(error.kind, slicectl::host::Kind::Absent);
}

#[test]
fn timeouts_are_set_replaced_read_back_and_removed_unless_a_rule_refers_to_them() {
    on_both(|world| {
        assert_eq!(cttimeout::get("slice-x").unwrap(), None);
        cttimeout::delete("slice-x").unwrap();
        for desired in [[(1, 5), (3, 7440), (7, 5)], [(1, 6), (3, 86_400), (7, 5)]] {
            let desired = desired.into();
            cttimeout::set("slice-x", &desired).unwrap();
            let found = cttimeout::get("slice-x").unwrap().unwrap();
            for (state, seconds) in &desired {
                assert_eq!(found.get(state), Some(seconds), "{found:?}");
            }
        }
        world.iptables("-t raw -A PREROUTING -p tcp -j CT --timeout slice-x");
        let error = cttimeout::delete("slice-x").unwrap_err();
        assert_eq!(error.kind, slicectl::host::Kind::Busy);
        world.iptables("-t raw -F PREROUTING");
        cttimeout::delete("slice-x").unwrap();
        assert_eq!(cttimeout::get("slice-x").unwrap(), None);
    });
}

#[test]
fn limits_of_other_shapes_are_foreign() {
    on_both(|world| {
        let shapes = [
            "-m connlimit --connlimit-upto 5 --connlimit-mask 30",
            "-m limit --limit 7/min",
            "-m limit --limit 3/sec",
            "-m conntrack ! --ctstatus ASSURED",
            "-m conntrack --ctstatus CONFIRMED",
            "-m conntrack --ctstate NEW ! --ctstatus CONFIRMED",
            "-m hashlimit --hashlimit-above 25/min --hashlimit-mode srcip --hashlimit-name a --hashlimit-htable-size 1024 --hashlimit-htable-expire 20000",
            "-m hashlimit --hashlimit-above 25/sec --hashlimit-mode srcip,dstip --hashlimit-name b --hashlimit-htable-size 1024 --hashlimit-htable-expire 20000",
            "-m hashlimit --hashlimit-upto 25/sec --hashlimit-mode srcip --hashlimit-name c --hashlimit-htable-size 1024 --hashlimit-htable-expire 20000",
            "-m hashlimit --hashlimit-above 25/sec --hashlimit-mode srcip --hashlimit-name d --hashlimit-htable-size 64 --hashlimit-htable-expire 20000",
            "-m hashlimit --hashlimit-upto 1/sec --hashlimit-burst 1 --hashlimit-mode dstip --hashlimit-name e --hashlimit-htable-size 256 --hashlimit-htable-max 512 --hashlimit-htable-expire 5000",
        ];
        for shape in shapes {
            world.iptables(&format!("-A FORWARD {shape} -j DROP"));
        }
        world.iptables("-t raw -A PREROUTING -j CT --notrack");
        let found = world.read();
        for rule in found
            .rules(TableName::Filter, "FORWARD")
            .iter()
            .chain(found.rules(TableName::Raw, "PREROUTING"))
        {
            assert!(matches!(rule, Rule::Foreign(_)), "{rule}");
        }
        assert_eq!(
            found.rules(TableName::Filter, "FORWARD").len(),
            shapes.len()
        );
    });
}

/// The chain in which rules change.
const CHANGED: &str = "SLICE-POLICY";

fn whole_tables(ruleset: &Ruleset) -> Input {
    Input::whole_tables(ruleset)
}

/// As somebody else changes rules: the chain is emptied and filled again.
fn one_chain(ruleset: &Ruleset) -> Input {
    let chains = ruleset.tables()[0].chains.iter();
    let edit = Edit {
        chains: chains.filter(|c| c.name == CHANGED).cloned().collect(),
        ..Edit::of(TableName::Filter)
    };
    Input::edits(&[edit])
}

#[test]
fn rules_are_read_as_they_were_before_a_commit_or_after_it_and_never_in_between() {
    let before = a_vms_rules();
    let mut tables = before.tables().to_vec();
    let chain = tables[0].chains.iter_mut().find(|c| c.name == CHANGED);
    chain.unwrap().rules.insert(0, rule("-j SLICE-DENY"));
    let after = Ruleset::new(tables);
    let places = places(&before);
    for input in [whole_tables, one_chain] {
        alone(Flavour::Nft, |world| {
            world.commit(&before);
            let mine = Netns::current().unwrap();
            let done = AtomicBool::new(false);
            let commit = |ruleset| {
                let lock = world.lock();
                mine.run_here(|| restore(&world.backend, &input(ruleset), Lock::Private(&lock)))
                    .unwrap();
            };
            std::thread::scope(|scope| {
                let committer = scope.spawn(|| {
                    for _ in 0..100 {
                        commit(&after);
                        commit(&before);
                    }
                    done.store(true, Ordering::Relaxed);
                });
                let (mut reads, mut torn) = (0, 0);
                while !done.load(Ordering::Relaxed) && !committer.is_finished() {
                    let whole = world.backend.read(&[TableName::Filter]).unwrap();
                    let named = world.backend.read_named(&places).unwrap();
                    reads += 1;
                    let is_torn = |found: &Ruleset| *found != before && *found != after;
                    torn += usize::from(is_torn(&whole) || is_torn(&named));
                }
                assert!(reads > 100, "{reads} reads");
                assert_eq!(torn, 0, "of {reads} reads");
            });
        });
    }
}

/// Every chain of a rule set, and some that there are not.
fn places(ruleset: &Ruleset) -> Vec<(TableName, String)> {
    let known = ruleset.tables().iter().flat_map(|table| {
        let names = table.chains.iter().map(|chain| chain.name.clone());
        names.map(|name| (table.name, name))
    });
    let absent = [
        (TableName::Raw, "PREROUTING"),
        (TableName::Nat, "POSTROUTING"),
        (TableName::Filter, "OUTPUT"),
        (TableName::Filter, "SLICE-NONE"),
    ];
    let absent = absent.map(|(table, name)| (table, name.to_owned()));
    known.chain(absent).collect()
}

#[test]
fn chains_read_by_name_equal_those_of_the_whole_tables_whatever_else_exists() {
    for flavour in [Flavour::Nft, Flavour::Legacy] {
        alone(flavour, |world| {
            let ours = a_vms_rules();
            let places = places(&ours);
            let read = || world.backend.read_named(&places).unwrap();
            assert_eq!(read(), Ruleset::default());
            world.commit(&ours);
            assert_eq!(read(), ours);
            let program = match flavour {
                Flavour::Nft => "iptables-nft",
                Flavour::Legacy => "iptables-legacy",
            };
            // Rules behind ours in a builtin chain, in chains of others, and in a table that was not there.
            run(&format!(
                "for n in 1 2 3; do {program} -N KUBE-$n; {program} -A KUBE-$n -j ACCEPT; {program} -t nat -N KUBE-$n; done"
            ));
            let whole = world.backend.read(&[TableName::Filter]).unwrap();
            let found = read();
            for (table, chain) in &places {
                assert_eq!(
                    found.chain(*table, chain),
                    whole.chain(*table, chain),
                    "{chain}"
                );
            }
        });
    }
    alone(Flavour::Nft, |world| {
        let places = [(TableName::Filter, "FORWARD".to_owned())];
        let read = || world.backend.read_named(&places).unwrap();
        let rules: String = (0..1000)
            .map(|n| format!("add rule ip filter FORWARD tcp dport {n} counter drop\n"))
            .collect();
        let chain = "type filter hook forward priority 0;";
        let file = world.tools.path().join("rules");
        std::fs::write(
            &file,
            format!("add table ip filter\nadd chain ip filter FORWARD {{ {chain} }}\n{rules}"),
        )
        .unwrap();
        run(&format!("nft -f {}", file.display()));
        // As many as are needed to see that our jumps are first.
        let found = read().rules(TableName::Filter, "FORWARD").len();
        assert!((256..1000).contains(&found), "{found}");
        // A second list by the same socket, after one that was left half read.
        let twice = [places[0].clone(), places[0].clone()];
        assert!(world.backend.read_named(&twice).is_ok());
        // A table that is switched off, and a chain of that name that hooks elsewhere, guard nothing.
        run("nft add table ip filter '{ flags dormant; }'");
        let foreign = |found: &Ruleset| {
            let first = found.rules(TableName::Filter, "FORWARD").first().cloned();
            matches!(first, Some(Rule::Foreign(_)))
        };
        assert!(foreign(&read()));
        run("nft delete table ip filter
             nft add table ip filter
             nft 'add chain ip filter FORWARD { type filter hook input priority 0; }'");
        assert!(foreign(&read()));
    });
}
