//! What others do to the links, settings and routes that VMs' packets depend on: restrictions hold meanwhile, and it is undone.
//! Out of scope: drift of what only sliced makes (`tests/e2e/drift.rs`).

use std::net::{Ipv4Addr, TcpListener};
use std::time::{Duration, Instant};

use slicectl::host::tap::Framing;

use test_support::frames::{self, ICMP, Ip, TCP};
use test_support::guest_stack::Guest;
use test_support::guest_stack::Kind::{Ping, Tcp, Udp};
use test_support::kernel::{attempt, run};
use test_support::lab::{CONTAINER, HOST, INTERNET, LAN, Lab, PROXY, UPLINK, lab};

const BOUND: Duration = Duration::from_secs(2);
/// Within which nothing passes any more once the host's rules cannot be maintained.
const CLOSED: Duration = Duration::from_secs(1);
const WEB: &str = "bridge: brvm0\ntap_prefix: vmtap\ngateway: 192.168.137.1/24";

/// Both modes at once.
fn both(lab: &Lab) -> (Guest, Guest) {
    lab.apply(2, "allow: []");
    lab.apply_bridge("web", 2, WEB);
    (lab.guest(1, Framing::Plain), lab.port("web-1"))
}

fn reaches(lab: &Lab, guest: &Guest, to: Ipv4Addr) -> bool {
    let id = lab.probe(guest, to, Udp(53));
    lab.arrived().contains(&id)
}

/// Whether an echo is answered, which needs both directions.
fn answered(lab: &Lab, guest: &Guest, to: Ipv4Addr) -> bool {
    let id = lab.probe(guest, to, Ping);
    let answer = guest.receive_packet(Duration::from_millis(300), |seen| {
        seen.protocol == ICMP && frames::marked(&seen.payload) == Some(id)
    });
    answer.is_some()
}

#[track_caller]
fn soon(lab: &Lab, what: &str, look: impl Fn() -> bool) {
    lab.harness.within(BOUND, what, || look().then_some(()));
}

/// A veth with a master is not a way around the rules, and does not keep it.
#[test]
fn a_veth_that_is_made_a_port_reaches_nothing_of_the_host_and_is_freed() {
    lab(|lab| {
        let _tcp = TcpListener::bind("0.0.0.0:22").unwrap();
        lab.apply(1, "allow: []");
        let guest = lab.guest(1, Framing::Plain);
        let link = lab.harness.place("sandbox-1").link;
        run("ip link add br0 type bridge; ip link set br0 up; ip addr add 10.99.0.1/24 dev br0
             ip link add br2 type bridge; ip link set br2 up
             nft 'add rule inet witness taken iifname { br0, br2 } ip saddr 169.254.0.0/16 counter'");
        for master in ["br0", "br2", "br0"] {
            run(&format!("ip link set {link} master {master}"));
            let begin = Instant::now();
            let mut tries = 0;
            while run(&format!("ip -o link show {link}")).contains("master") || tries < 3 {
                for to in [HOST, PROXY, UPLINK, Ipv4Addr::new(10, 99, 0, 1)] {
                    for kind in [Ping, Tcp(22), Udp(53)] {
                        lab.probe(&guest, to, kind);
                    }
                }
                tries += 1;
                assert!(
                    begin.elapsed() < Duration::from_secs(20),
                    "never freed from {master}"
                );
            }
            eprintln!("freed from {master} after {:?}", begin.elapsed());
            assert!(begin.elapsed() < BOUND * 2, "{:?}", begin.elapsed());
            assert_eq!(lab.taken_by_the_host(), 0, "{master}");
            let text = run("nft list chain inet witness taken");
            assert_eq!(text.matches("packets 0 ").count(), 2, "{master}: {text}");
            assert!(
                guest
                    .receive_packet(Duration::from_millis(100), |seen| seen.protocol == TCP)
                    .is_none()
            );
            soon(lab, "traffic is back", || answered(lab, &guest, INTERNET));
            let drift = lab.harness.messages("vm/sandbox-1", "Drift");
            assert!(
                drift.iter().any(|text| text.contains("nomaster")),
                "{drift:?}"
            );
        }
    });
}

/// Settings and masters of every link of ours, broken one by one.
#[test]
fn what_is_changed_on_our_links_is_put_right_within_two_seconds() {
    lab(|lab| {
        run("sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.default.forwarding=0");
        let (isolated, bridged) = both(lab);
        assert!(
            answered(lab, &isolated, INTERNET),
            "born where the default is off"
        );
        assert!(
            answered(lab, &bridged, INTERNET),
            "born where the default is off"
        );
        let place = lab.harness.place("sandbox-1");
        let (link, netns) = (place.link.clone(), place.name.clone());
        run("ip link add br0 type bridge; ip link set br0 up");
        let inside = |command: &str| format!("ip netns exec {netns} sh -ec '{command}'");
        let cases = [
            format!("sysctl -qw net.ipv4.conf.{link}.forwarding=0"),
            "sysctl -qw net.ipv4.conf.brvm0.forwarding=0".to_owned(),
            "sysctl -qw net.ipv4.conf.all.forwarding=0".to_owned(),
            "ip link set vmtap0 master br0".to_owned(),
            "ip link set vmtap0 nomaster".to_owned(),
            format!("ip link set {link} master br0"),
            inside("sysctl -qw net.ipv4.conf.tap0.forwarding=0"),
            inside("sysctl -qw net.ipv4.conf.up0.forwarding=0"),
            inside("ip link add br1 type bridge; ip link set br1 up; ip link set tap0 master br1"),
            inside("ip link set up0 master br1"),
            format!(
                "printf 'link set {link} down\nlink set {link} name other0\nlink set other0 up\n' | ip -force -batch - || true"
            ),
            format!("ip netns add elsewhere; ip link set {link} netns elsewhere"),
            // The VMM keeps its descriptor: the same TAP gets its name back.
            "printf 'link set vmtap0 down\nlink set vmtap0 name other1\nlink set other1 up\n' | ip -force -batch - || true"
                .to_owned(),
        ];
        for case in cases {
            run(&case);
            let begin = Instant::now();
            // A renamed link passes packets until its name is restored, and the next case needs the name.
            soon(lab, &case, || {
                is_link(&link)
                    && is_link("vmtap0")
                    && answered(lab, &isolated, INTERNET)
                    && answered(lab, &bridged, INTERNET)
            });
            eprintln!("{case}: {:?}", begin.elapsed());
        }
    });
}

/// Whether the host has a link of this name.
fn is_link(name: &str) -> bool {
    let found = std::process::Command::new("ip")
        .args(["link", "show", "dev", name])
        .output();
    found.expect("ip").status.success()
}

/// Settings that a new namespace copies from the first one.
#[test]
fn settings_that_a_namespace_inherits_are_put_right() {
    lab(|lab| {
        lab.apply(1, "allow: []");
        let netns = lab.harness.place("sandbox-1").name;
        let sysctl = |words: &str| run(&format!("ip netns exec {netns} sysctl {words}"));
        let of_links = [
            "proxy_arp",
            "proxy_arp_pvlan",
            "arp_filter",
            "arp_accept",
            "log_martians",
            "send_redirects",
            "route_localnet",
            "rp_filter",
            "arp_ignore",
            "bc_forwarding",
        ];
        let of_links = of_links.into_iter().flat_map(|key| {
            [
                format!("ipv4.conf.tap0.{key}"),
                format!("ipv4.conf.up0.{key}"),
            ]
        });
        let of_all = [
            "all.proxy_arp",
            "all.proxy_arp_pvlan",
            "all.arp_filter",
            "all.arp_accept",
            "all.bc_forwarding",
            "all.log_martians",
        ];
        let of_all = of_all.map(|key| format!("ipv4.conf.{key}"));
        for key in of_all.into_iter().chain(of_links) {
            sysctl(&format!("-qw net.{key}=1"));
            // The kernel sends no event of these: another event leads to a look at the namespace.
            sysctl("-qw net.ipv4.conf.lo.forwarding=0 net.ipv4.conf.lo.forwarding=1");
            soon(lab, &key, || sysctl(&format!("-n net.{key}")).trim() == "0");
        }
        sysctl("-qw net.ipv6.conf.tap0.disable_ipv6=0");
        sysctl("-qw net.ipv4.conf.lo.forwarding=0 net.ipv4.conf.lo.forwarding=1");
        soon(lab, "disable_ipv6", || {
            sysctl("-n net.ipv6.conf.tap0.disable_ipv6").trim() == "1"
        });
        // What a new link starts with is put right before one is created.
        for key in ["proxy_arp", "accept_redirects", "rp_filter", "arp_ignore"] {
            sysctl(&format!("-qw net.ipv4.conf.default.{key}=1"));
            run(&format!("ip netns exec {netns} ip link del tap0"));
            for link in ["default", "tap0"] {
                soon(lab, key, || {
                    let path = format!("/proc/sys/net/ipv4/conf/{link}/{key}");
                    run(&format!("ip netns exec {netns} cat {path} || true")).trim() == "0"
                });
            }
        }
        let guest = lab.guest(1, Framing::Plain);
        assert_eq!(guest.resolve(INTERNET), None, "nobody answers for others");
        assert!(answered(lab, &guest, INTERNET));
    });
}

/// A TCP segment with these flags and maximum segment size.
fn segment(from: u16, flags: u8, mss: Option<u16>) -> Vec<u8> {
    let option = mss.map_or(Vec::new(), |mss| {
        [vec![2, 4], mss.to_be_bytes().to_vec()].concat()
    });
    let offset = u8::try_from((20 + option.len()) / 4).unwrap() << 4;
    let mut bytes = [from.to_be_bytes(), 4000_u16.to_be_bytes()].concat();
    bytes.extend([
        0, 0, 0, 1, 0, 0, 0, 1, offset, flags, 0xff, 0xff, 0, 0, 0, 0,
    ]);
    bytes.extend(option);
    bytes
}

/// Packets that connection tracking translates nothing of.
#[test]
fn packets_of_no_flow_leave_neither_mode_with_a_private_source() {
    lab(|lab| {
        let (isolated, bridged) = both(lab);
        run("nft 'add table inet leak'
             nft 'add chain inet leak out { type filter hook postrouting priority 400; }'
             nft 'add rule inet leak out oifname wan0 ip saddr { 192.168.137.0/24, 169.254.0.0/16 } counter'");
        let leaked = || run("nft list chain inet leak out").contains("packets 0 ");
        for guest in [&isolated, &bridged] {
            for (port, flags) in [
                (1, 0x04),
                (2, 0x14),
                (3, 0x11),
                (4, 0x12),
                (5, 0x01),
                (6, 0x00),
                (7, 0x29),
            ] {
                let mut bytes = segment(port, flags, None);
                frames::fix_tcp(guest.ip, INTERNET, &mut bytes);
                guest.send_ip(&Ip::new(guest.ip, INTERNET, TCP, bytes));
            }
            let reply = Ip::new(guest.ip, INTERNET, ICMP, vec![0, 0, 0xff, 0xf0, 0, 9, 0, 6]);
            guest.send_ip(&reply);
        }
        assert!(answered(lab, &bridged, INTERNET) && answered(lab, &isolated, INTERNET));
        assert!(leaked(), "{}", run("nft list chain inet leak out"));
        run("iptables -t raw -I PREROUTING -p udp --dport 77 -j NOTRACK");
        for guest in [&isolated, &bridged] {
            lab.probe(guest, INTERNET, Udp(77));
        }
        assert!(answered(lab, &bridged, INTERNET));
        assert!(leaked(), "{}", run("nft list chain inet leak out"));
    });
}

/// What is offered over a link of smaller MTU fits it.
#[test]
fn the_segment_size_of_both_modes_fits_the_way_out() {
    lab(|lab| {
        let (isolated, bridged) = both(lab);
        run("ip link set wan0 mtu 1400
             nft 'add table inet sizes'
             nft 'add chain inet sizes out { type filter hook postrouting priority 400; }'
             nft 'add rule inet sizes out oifname wan0 tcp option maxseg size > 1360 counter'");
        for guest in [&isolated, &bridged] {
            let mut bytes = segment(9, 0x02, Some(1460));
            frames::fix_tcp(guest.ip, INTERNET, &mut bytes);
            guest.send_ip(&Ip::new(guest.ip, INTERNET, TCP, bytes));
        }
        assert!(answered(lab, &bridged, INTERNET) && answered(lab, &isolated, INTERNET));
        let text = run("nft list chain inet sizes out");
        assert!(text.contains("packets 0 "), "{text}");
    });
}

/// What the owner of another bridge closes stays closed, what it opens is open; both modes, before and after.
#[test]
fn a_bridge_of_somebody_else_is_left_to_its_owners_rules() {
    lab(|lab| {
        let (isolated, bridged) = both(lab);
        assert!(reaches(lab, &isolated, CONTAINER), "a veth is no bridge");
        run("ip addr del 172.17.0.1/16 dev ctr0
             ip link add docker0 type bridge; ip link set docker0 up; ip link set ctr0 master docker0
             ip addr add 172.17.0.1/16 dev docker0
             iptables -N DOCKER-TEST; iptables -A FORWARD -j DOCKER-TEST
             iptables -A DOCKER-TEST ! -i docker0 -o docker0 -p udp --dport 443 -j ACCEPT
             iptables -A DOCKER-TEST ! -i docker0 -o docker0 -j DROP");
        let passes = |guest: &Guest, port: u16| {
            let id = lab.probe(guest, CONTAINER, Udp(port));
            lab.arrived().contains(&id)
        };
        for guest in [&isolated, &bridged] {
            soon(lab, "it is left to its owner", || !passes(guest, 53));
            assert!(passes(guest, 443), "what its owner opens");
            assert!(answered(lab, guest, INTERNET));
        }
        assert_eq!(lab.harness.messages("host", "Drift"), [""; 0]);
    });
}

/// Names of our chains with their tables.
fn chains() -> Vec<(String, String)> {
    let tables = ["raw", "mangle", "nat", "filter"];
    let of = |table: &str| {
        let rules = run(&format!("iptables-save -t {table}"));
        let names = rules
            .lines()
            .filter_map(|line| line.strip_prefix(":SLICE-"));
        let name = |rest: &str| format!("SLICE-{}", rest.split(' ').next().unwrap());
        names
            .map(|rest| (table.to_owned(), name(rest)))
            .collect::<Vec<_>>()
    };
    tables.into_iter().flat_map(of).collect()
}

fn condition(lab: &Lab, object: &str, kind: &str) -> serde_json::Value {
    let found = lab.harness.get(object);
    let all = found["status"]["conditions"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    all.into_iter()
        .find(|c| c["type"] == kind)
        .unwrap_or_default()
}

/// The host's rules are gone and cannot be restored: nothing passes within a second, and the VM and the group report why. Once the rules
/// are back, all is as before.
fn fails_closed(
    prepare: fn(&mut test_support::harness::Harness),
    wreck: fn(),
    cause: &str,
    bound: Duration,
    mend: fn(),
) {
    test_support::lab::lab_with(prepare, |lab| {
        let (isolated, bridged) = both(lab);
        assert!(answered(lab, &isolated, INTERNET) && answered(lab, &bridged, INTERNET));
        let _listener = TcpListener::bind("0.0.0.0:22").unwrap();
        wreck();
        let begin = Instant::now();
        // Nothing can be sent to a TAP that is down.
        let closed = || {
            !answered(lab, &isolated, INTERNET)
                && run("ip -o link show vmtap0").contains("state DOWN")
        };
        lab.harness
            .until("nothing passes", || closed().then_some(()));
        eprintln!("closed after {:?}", begin.elapsed());
        assert!(begin.elapsed() < bound, "{:?}", begin.elapsed());
        assert!(!reaches(lab, &isolated, HOST) && !reaches(lab, &isolated, LAN));
        for (vm, group) in [("vm sandbox-1", "hg sandbox"), ("vm web-1", "hg web")] {
            for object in [vm, group] {
                lab.harness.until("it is reported", || {
                    let found = condition(lab, object, "Firewall");
                    let message = found["message"].as_str().unwrap_or_default();
                    (found["status"] == "False" && message.contains(cause)).then_some(())
                });
                assert_eq!(
                    condition(lab, object, "Ready")["status"],
                    "False",
                    "{object}"
                );
            }
        }
        mend();
        lab.harness
            .ctl("wait hg/sandbox hg/web --for ready --timeout 40s");
        soon(lab, "all passes", || {
            answered(lab, &isolated, INTERNET) && answered(lab, &bridged, INTERNET)
        });
    });
}

#[test]
fn foreign_chains_under_our_names_shut_every_vm() {
    fn wreck() {
        let all = chains();
        for (table, chain) in all {
            run(&format!(
                "iptables -t {table} -F {chain}; iptables -t {table} -A {chain} -j RETURN"
            ));
        }
    }
    fn mend() {
        for (table, chain) in chains() {
            run(&format!("iptables -t {table} -F {chain}"));
        }
    }
    fails_closed(|_| {}, wreck, "is not ours", CLOSED, mend);
}

/// An `iptables-restore` that does this after the flag file was made.
fn with_restore(harness: &mut test_support::harness::Harness, does: &str) {
    let dir = harness.dir.path().join("bin");
    std::fs::create_dir(&dir).unwrap();
    let text = format!(
        "#!/bin/sh\n[ \"$1\" = --version ] || [ ! -e /run/broken ] || {{ {does}; }}\nexec /usr/sbin/iptables-restore \"$@\"\n"
    );
    let path = dir.join("iptables-restore");
    std::fs::write(&path, text).unwrap();
    run(&format!("chmod 755 {}", path.display()));
    let old = std::env::var("PATH").unwrap_or_default();
    harness
        .env
        .push(("PATH", format!("{}:{old}", dir.display())));
}

fn flush() {
    run("touch /run/broken");
    for (table, chain) in chains() {
        run(&format!("iptables -t {table} -F {chain}"));
    }
}

fn mend() {
    run("rm -f /run/broken");
}

#[test]
fn an_iptables_restore_without_its_modules_shuts_every_vm() {
    fn prepare(harness: &mut test_support::harness::Harness) {
        with_restore(
            harness,
            "echo 'Extension addrtype revision 0 not supported, missing kernel module?' >&2; exit 4",
        );
    }
    fails_closed(prepare, flush, "missing kernel module", CLOSED, mend);
}

#[test]
fn an_iptables_restore_that_ends_by_a_signal_shuts_every_vm() {
    fn prepare(harness: &mut test_support::harness::Harness) {
        with_restore(harness, "kill -9 $$");
    }
    fails_closed(prepare, flush, "iptables-restore", CLOSED, mend);
}

#[test]
fn a_conflicting_writer_of_the_hosts_rules_shuts_every_vm_until_it_rests() {
    fn wreck() {
        run(
            "(for i in $(seq 150); do iptables -F FORWARD; iptables -A FORWARD -i canary0 -j CANARY; sleep 0.1; done) >/dev/null 2>&1 &",
        );
    }
    // The rules are repaired until enough repairs were reverted to distinguish a conflicting writer from an accident.
    let bound = 6 * BOUND;
    fails_closed(|_| {}, wreck, "a conflicting writer reverts", bound, || {});
}

#[test]
fn a_vm_that_waits_for_the_hosts_rules_reports_why_they_are_missing() {
    fn prepare(harness: &mut test_support::harness::Harness) {
        with_restore(
            harness,
            "echo 'Extension addrtype revision 0 not supported, missing kernel module?' >&2; exit 4",
        );
    }
    test_support::lab::lab_with(prepare, |lab| {
        run("touch /run/broken");
        let path = lab
            .harness
            .write("m.yaml", &test_support::harness::slots(1, "allow: []"));
        lab.harness.ctl(&format!("apply -f {path}"));
        lab.harness.until("the cause", || {
            let found = condition(lab, "vm sandbox-1", "Net");
            found["message"]
                .as_str()
                .unwrap_or_default()
                .contains("missing kernel module")
                .then_some(())
        });
        run("rm /run/broken");
        lab.harness.ctl("wait hg/sandbox --for ready --timeout 40s");
    });
}

/// Rules and routes of others that take the VMs' packets, one by one: what a rule of ours can undo is undone, and the rest is named.
#[test]
fn routes_of_others_are_undone_or_named_in_both_modes() {
    lab(|lab| {
        let (isolated, bridged) = both(lab);
        let block = lab.harness.place("sandbox-1").block;
        let works = || answered(lab, &isolated, INTERNET) && answered(lab, &bridged, INTERNET);
        assert!(works());
        run("ip route add default via 203.0.113.10 table 52");
        for rule in [
            "pref 5270 lookup 52",
            "pref 100 lookup 52",
            "pref 32765 not fwmark 0xca6c lookup 52",
            "pref 1000 iif wan0 lookup 52",
            "pref 5000 to 192.168.0.0/16 unreachable",
        ] {
            run(&format!("ip rule add {rule}"));
            soon(lab, rule, works);
            lab.harness
                .ctl("wait hg/sandbox hg/web --for ready --timeout 10s");
            run(&format!("ip rule del {rule}"));
            soon(lab, "our rules are gone", || {
                !run("ip rule").contains("169.254")
            });
            soon(lab, "all works", works);
        }
        let first: u8 = block
            .split('.')
            .nth(3)
            .unwrap()
            .split('/')
            .next()
            .unwrap()
            .parse()
            .unwrap();
        let guest = isolated.ip;
        for (undo, command, vm, named) in [
            (
                format!("ip route del {guest}/32 dev lan0"),
                format!("ip route add {guest}/32 dev lan0"),
                "sandbox-1",
                format!("{guest}/32 on lan0"),
            ),
            (
                format!("ip route del 169.254.100.{first}/31 dev lan0; true"),
                format!("ip route add 169.254.100.{}/31 dev lan0", first + 2),
                "sandbox-1",
                "/31 on lan0".to_owned(),
            ),
            (
                "ip route del 192.168.137.0/25 dev lan0".to_owned(),
                "ip route add 192.168.137.0/25 dev lan0".to_owned(),
                "web-1",
                "192.168.137.0/25 on lan0".to_owned(),
            ),
            (
                format!("ip route del {}/32 dev lan0", bridged.ip),
                format!("ip route add {}/32 dev lan0", bridged.ip),
                "web-1",
                "/32 on lan0".to_owned(),
            ),
            (
                "ip rule del pref 5; ip route flush table 60".to_owned(),
                "ip route add 192.168.137.0/24 dev lan0 table 60; ip rule add pref 5 lookup 60"
                    .to_owned(),
                "web-1",
                "routing rule 5 (lookup 60)".to_owned(),
            ),
            (
                format!("ip rule del pref 6; ip route flush table 61; true {guest}"),
                "ip route add 169.254.0.0/16 dev lan0 table 61; ip rule add pref 6 lookup 61"
                    .to_owned(),
                "sandbox-1",
                "routing rule 6 (lookup 61)".to_owned(),
            ),
        ] {
            if named.starts_with("/31") && (u32::from(guest) & 3) != 2 {
                continue;
            }
            run(&command);
            soon(lab, &command, || {
                let found = condition(lab, &format!("vm {vm}"), "Net");
                let message = found["message"].as_str().unwrap_or_default().to_owned();
                found["reason"] == "Conflict" && message.contains(&named)
            });
            let group = if vm == "web-1" {
                "hg web"
            } else {
                "hg sandbox"
            };
            let ready = condition(lab, group, "Ready");
            assert_eq!(
                (&ready["status"], &ready["reason"]),
                (&"False".into(), &"Conflict".into()),
                "{ready}"
            );
            let undo = undo.replace(
                &format!("169.254.100.{first}/31"),
                &format!("169.254.100.{}/31", first + 2),
            );
            run(&undo);
            soon(lab, &undo, works);
            lab.harness
                .ctl("wait hg/sandbox hg/web --for ready --timeout 10s");
        }
        soon(lab, "our rules are gone", || {
            !run("ip rule").contains("169.254")
        });
    });
}

/// sliced does not change the uplink: VM and group report it with the command that repairs it, and that command works.
#[test]
fn an_uplink_that_does_not_forward_is_reported_with_the_command() {
    lab(|lab| {
        let (isolated, bridged) = both(lab);
        for round in 0..2 {
            run("sysctl -qw net.ipv4.conf.wan0.forwarding=0");
            assert!(!answered(lab, &isolated, INTERNET) && !answered(lab, &bridged, INTERNET));
            let command = "sysctl -w net.ipv4.conf.wan0.forwarding=1";
            for object in ["vm sandbox-1", "hg sandbox", "vm web-1", "hg web"] {
                soon(lab, object, || {
                    let found = condition(lab, object, "HostNetwork");
                    found["message"]
                        .as_str()
                        .unwrap_or_default()
                        .contains(command)
                });
            }
            assert!(
                lab.harness
                    .try_ctl("doctor")
                    .stdout
                    .windows(command.len())
                    .any(|text| text == command.as_bytes())
            );
            run(command);
            soon(lab, "it is gone", || {
                condition(lab, "vm web-1", "HostNetwork").is_null()
            });
            assert!(
                answered(lab, &isolated, INTERNET) && answered(lab, &bridged, INTERNET),
                "{round}"
            );
        }
    });
}

/// The share of echo requests of a guest that are not answered, in percent.
fn loss(guest: &Guest, during: Duration) -> f64 {
    const STEP: Duration = Duration::from_millis(10);
    let (mut sent, mut lost) = (0_u32, 0_u32);
    let begin = Instant::now();
    while begin.elapsed() < during {
        let next = Instant::now() + STEP;
        sent += 1;
        // One flow: the number of new ones is limited.
        let echo = frames::echo(77, &frames::mark(sent));
        guest.send_ip(&Ip::new(guest.ip, INTERNET, ICMP, echo));
        let answer = guest.receive_packet(STEP, |seen| {
            seen.protocol == ICMP && frames::marked(&seen.payload) == Some(sent)
        });
        lost += u32::from(answer.is_none());
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    f64::from(lost) * 100.0 / f64::from(sent)
}

/// Each of them again and again, each against another VM or bridge.
#[test]
fn of_what_a_conflicting_writer_undoes_with_netlink_few_packets_are_lost() {
    const CALM: Duration = Duration::from_secs(8);
    const MEASURED: Duration = Duration::from_secs(10);
    const PERIOD: Duration = Duration::from_secs(1);
    lab(|lab| {
        lab.apply(5, "allow: []");
        for (n, name) in ["up", "addr", "port"].into_iter().enumerate() {
            let network = format!(
                "bridge: br{name}\ntap_prefix: {name}\ngateway: 192.168.{}.1/24",
                140 + n
            );
            lab.apply_bridge(name, 1, &network);
        }
        let place = |n: u32| lab.harness.place(&format!("sandbox-{n}"));
        let inside = |n: u32, command: &str| format!("ip netns exec {} {command}", place(n).name);
        run("ip link add br0 type bridge; ip link set br0 up");
        let cases = [
            ("sandbox-1", format!("ip link set {} down", place(1).link)),
            (
                "sandbox-2",
                format!("ip link set {} master br0", place(2).link),
            ),
            (
                "sandbox-3",
                format!("ip route del {} dev {}", place(3).block, place(3).link),
            ),
            ("sandbox-4", inside(4, "ip route del default")),
            ("sandbox-5", inside(5, "ip link set tap0 down")),
            ("up-1", "ip link set brup down".to_owned()),
            ("addr-1", "ip addr flush dev braddr".to_owned()),
            ("port-1", "ip link set port0 nomaster".to_owned()),
        ];
        let guest = |vm: &str| match vm.strip_prefix("sandbox-") {
            Some(n) => lab.guest(n.parse().unwrap(), Framing::Plain),
            None => lab.port(vm),
        };
        let guests: Vec<Guest> = cases.iter().map(|(vm, _)| guest(vm)).collect();
        for ((vm, _), guest) in cases.iter().zip(&guests) {
            lab.harness
                .until(vm, || answered(lab, guest, INTERNET).then_some(()));
        }
        let end = Instant::now() + CALM + MEASURED;
        let found: Vec<f64> = std::thread::scope(|scope| {
            for (_, command) in &cases {
                scope.spawn(move || {
                    while Instant::now() < end {
                        attempt(command);
                        std::thread::sleep(PERIOD);
                    }
                });
            }
            let measure = |guest| {
                scope.spawn(move || {
                    std::thread::sleep(CALM);
                    loss(guest, MEASURED)
                })
            };
            let all: Vec<_> = guests.iter().map(measure).collect();
            all.into_iter().map(|one| one.join().unwrap()).collect()
        });
        for ((vm, command), lost) in cases.iter().zip(&found) {
            eprintln!("{vm}: {command}: {lost:.1} % of the packets are lost");
        }
        for (vm, command) in &cases {
            let group = vm.split('-').next().unwrap();
            for object in [format!("vm {vm}"), format!("hg {group}")] {
                let ready = condition(lab, &object, "Ready");
                assert_eq!(ready["reason"], "Contested", "{command}: {ready}");
                let host = condition(lab, &object, "HostNetwork");
                // What is undone is the host's own for these two only.
                let expected = match group {
                    "up" | "addr" => "Contested".into(),
                    _ => serde_json::Value::Null,
                };
                assert_eq!(host["reason"], expected, "{object}: {command}: {host}");
            }
        }
        for ((_, command), lost) in cases.iter().zip(&found) {
            assert!(
                *lost < 5.0,
                "{command}: {lost:.1} % of the packets are lost"
            );
        }
        lab.harness
            .ctl("wait hg/sandbox hg/up hg/addr hg/port --for ready --timeout 60s");
    });
}
