//! Chains of others at the hook `forward`: what they do to packets is what VMs, groups and doctor report of them.
//! Out of scope: chains of others under our names (`path`).

use std::net::Ipv4Addr;
use std::time::Duration;

use slicectl::host::tap::Framing;

use test_support::frames::{self, ICMP};
use test_support::guest_stack::Guest;
use test_support::guest_stack::Kind::Ping;
use test_support::kernel::run;
use test_support::lab::{INTERNET, LAN, Lab, lab};

const BOUND: Duration = Duration::from_secs(2);
const WEB: &str = "bridge: brvm0\ntap_prefix: vmtap\ngateway: 192.168.137.1/24";

fn answered(lab: &Lab, guest: &Guest, to: Ipv4Addr) -> bool {
    let id = lab.probe(guest, to, Ping);
    let answer = guest.receive_packet(Duration::from_millis(300), |seen| {
        // A refusal holds what it refuses.
        let is_reply = seen.protocol == ICMP && seen.payload.first() == Some(&0);
        is_reply && seen.source == to && frames::marked(&seen.payload) == Some(id)
    });
    answer.is_some()
}

fn warned(lab: &Lab, object: &str) -> String {
    let found = lab.harness.get(object);
    let conditions = found["status"]["conditions"].as_array().unwrap();
    let of_host = conditions.iter().find(|c| c["type"] == "HostNetwork");
    let message = of_host.map_or("", |condition| condition["message"].as_str().unwrap());
    let warnings = found["status"]["warnings"].to_string();
    assert_eq!(
        message.is_empty(),
        !warnings.contains("which is not ours") && !warnings.contains("iptables-legacy"),
        "{found}"
    );
    message.to_owned()
}

/// Rules of a table `inet t` beside its base chain, the base chain's policy and rules, and whom they drop: isolated, bridge.
type Case = (&'static str, &'static str, &'static str, [bool; 2]);

const BOTH: [bool; 2] = [true, true];
const NONE: [bool; 2] = [false, false];
const ISOLATED: [bool; 2] = [true, false];
const BRIDGE: [bool; 2] = [false, true];

const CASES: [Case; 24] = [
    ("", "policy drop;", "", BOTH),
    ("", "policy drop;", "accept", NONE),
    ("", "policy accept;", "drop", BOTH),
    (
        "",
        "policy accept;",
        "counter reject with icmpx admin-prohibited",
        BOTH,
    ),
    ("", "policy accept;", "meta nfproto ipv4 drop", BOTH),
    ("", "policy accept;", "meta nfproto ipv6 drop", NONE),
    (
        "",
        "policy drop;",
        "iifname \"sl*\" accept; oifname \"sl*\" accept",
        BRIDGE,
    ),
    ("", "policy accept;", "iifname \"brvm0\" drop", BRIDGE),
    ("", "policy accept;", "oifname \"brvm0\" drop", BRIDGE),
    (
        "",
        "policy accept;",
        "iif \"wan0\" oifname \"sl*\" drop",
        ISOLATED,
    ),
    (
        "",
        "policy accept;",
        "iifname != { \"brvm0\", \"wan0\", \"lan0\", \"ctr0\" } drop",
        ISOLATED,
    ),
    (
        "",
        "policy drop;",
        "ct state vmap { established : accept, related : accept, invalid : drop }; iifname vmap { \"brvm0\" : accept }",
        ISOLATED,
    ),
    (
        "",
        "policy drop;",
        "ct state { established, related } accept; iifname { \"brvm0\", \"x\" } oifname \"wan0\" accept",
        ISOLATED,
    ),
    (
        "",
        "policy drop;",
        "ct state established,related accept; ip saddr 169.254.0.0/16 accept",
        BRIDGE,
    ),
    ("", "policy drop;", "ct state new accept", BOTH),
    ("", "policy accept;", "ct direction reply drop", BOTH),
    (
        "",
        "policy accept;",
        "ip saddr 192.168.137.0/24 reject",
        BRIDGE,
    ),
    (
        "",
        "policy accept;",
        "ip saddr { 192.168.0.0/16, 10.0.0.0/8 } drop",
        BRIDGE,
    ),
    (
        "",
        "policy accept;",
        "ip saddr { 192.168.0.0-192.168.136.255, 10.0.0.0/8 } drop",
        NONE,
    ),
    (
        "chain one { iifname \"brvm0\" return; drop; }",
        "policy accept;",
        "iifname \"wan0\" accept; jump one",
        ISOLATED,
    ),
    (
        "chain one { iifname \"brvm0\" return; accept; }",
        "policy drop;",
        "iifname \"wan0\" accept; goto one; accept",
        BRIDGE,
    ),
    (
        "set s { type ifname; elements = { \"brvm0\" }; }",
        "policy drop;",
        "iifname \"wan0\" accept; iifname @s accept",
        ISOLATED,
    ),
    (
        "",
        "policy accept;",
        "meta mark 0x7 drop; tcp dport 22 drop; ip ttl 1 drop; limit rate over 1000/second drop",
        NONE,
    ),
    ("flags dormant;", "policy drop;", "", NONE),
];

/// The packets are the oracle: a VM has a warning if and only if its packets are dropped.
#[test]
fn a_foreign_chain_is_reported_to_those_whose_packets_it_drops() {
    lab(|lab| {
        lab.apply(1, "allow: []");
        lab.apply_bridge("web", 1, WEB);
        let guests = [lab.guest(1, Framing::Plain), lab.port("web-1")];
        let objects = [["vm sandbox-1", "hg sandbox"], ["vm web-1", "hg web"]];
        for (beside, policy, rules, drops) in CASES {
            let rules = rules.replace("; ", "\n");
            let text = format!(
                "table inet t {{\n{beside}\nchain f {{ type filter hook forward priority 5; {policy}\n{rules}\n}}\n}}\n"
            );
            let file = lab.harness.write("t.nft", &text);
            run(&format!("nft -f {file}"));
            for (guest, dropped) in guests.iter().zip(drops) {
                assert_eq!(answered(lab, guest, INTERNET), !dropped, "{text}");
            }
            for (object, dropped) in objects.iter().zip(drops) {
                for object in object {
                    lab.harness.within(BOUND, &text, || {
                        let output = warned(lab, object);
                        (output.contains("inet t f") == dropped).then_some(())
                    });
                }
            }
            // No warning appears a moment later, either.
            if drops == NONE {
                std::thread::sleep(Duration::from_millis(800));
                assert_eq!(warned(lab, "vm web-1"), "", "{text}");
            }
            run("nft delete table inet t");
        }
        for object in objects.iter().flatten() {
            lab.harness.within(BOUND, object, || {
                warned(lab, object).is_empty().then_some(())
            });
        }
        // In family ip, in two tables, and one that grows.
        run("nft 'table ip u { chain f { type filter hook forward priority 5; }; }'");
        run("nft 'add rule ip u f iifname \"brvm0\" drop'");
        lab.harness.within(BOUND, "a rule", || {
            warned(lab, "vm web-1").contains("ip u f").then_some(())
        });
        run(
            "nft 'chain ip u f { policy drop; }'; nft delete rule ip u f handle $(nft -a list chain ip u f | grep -o 'handle [0-9]*$' | tail -n1 | cut -d' ' -f2)",
        );
        lab.harness.within(BOUND, "a policy", || {
            warned(lab, "vm sandbox-1").contains("ip u f").then_some(())
        });
        run("nft delete table ip u");
        lab.harness.within(BOUND, "it is gone", || {
            warned(lab, "vm sandbox-1").is_empty().then_some(())
        });
        assert!(answered(lab, &guests[0], LAN));
    });
}

#[test]
fn a_policy_of_the_other_back_end_is_reported_at_the_next_look() {
    lab(|lab| {
        lab.apply(1, "allow: []");
        let guest = lab.guest(1, Framing::Plain);
        run("iptables-legacy -P FORWARD DROP");
        assert!(!answered(lab, &guest, INTERNET));
        // ip_tables sends no events of its changes: events of other changes lead to the next look.
        run(
            "ip route add 198.18.0.0/15 dev lan0; ip route add 10.77.0.0/16 dev lan0; sysctl -qw net.ipv4.conf.all.log_martians=0; nft add table inet nothing",
        );
        lab.harness.within(BOUND, "reported", || {
            warned(lab, "vm sandbox-1")
                .contains("iptables-legacy -P FORWARD ACCEPT")
                .then_some(())
        });
        run("iptables-legacy -P FORWARD ACCEPT; nft delete table inet nothing");
        lab.harness.within(BOUND, "gone", || {
            warned(lab, "vm sandbox-1").is_empty().then_some(())
        });
        assert!(answered(lab, &guest, INTERNET));
    });
}

/// Each is opened by the complete remedy of doctor, and by nothing less.
#[test]
fn the_remedy_of_doctor_opens_a_native_chain_for_every_mode() {
    lab(|lab| {
        lab.apply(1, "allow: []");
        lab.apply_bridge("web", 1, WEB);
        let guests = [lab.guest(1, Framing::Plain), lab.port("web-1")];
        run("nft 'table inet mine { chain forward { type filter hook forward priority 5; policy drop; }; }'
             nft 'table ip other { chain f { type filter hook forward priority 9; iifname != lo drop; }; }'");
        let check = || {
            let text = lab.harness.try_ctl("doctor -o json").stdout;
            let checks: serde_json::Value = serde_json::from_slice(&text).unwrap();
            let checks = checks.as_array().or(checks["items"].as_array()).unwrap();
            let found = checks
                .iter()
                .find(|check| check["name"] == "other forward filters");
            found.unwrap().clone()
        };
        let output = check();
        let remedy = output["remedy"].as_str().unwrap();
        for part in ["inet mine forward", "ip other f", "brvm0", "sl"] {
            assert!(remedy.contains(part), "{output}");
        }
        for guest in &guests {
            assert!(!answered(lab, guest, INTERNET));
        }
        for command in remedy.split('`').skip(1).step_by(2) {
            run(command);
        }
        for guest in &guests {
            assert!(answered(lab, guest, INTERNET), "{remedy}");
        }
        let output = check();
        assert!(
            output["found"]
                .as_str()
                .unwrap()
                .contains("accept packets of"),
            "{output}"
        );
    });
}
