//! Which change of a policy only closes.
//! Out of scope: what is done with that.

use std::net::Ipv4Addr;

use proptest::prelude::*;
use slicectl::api::policy::{Entry, OnDeny, Packet, Policy, Protocol, Verdict};

fn policy(allow: &[&str], drop: &[&str]) -> Policy {
    let entries = |of: &[&str]| of.iter().map(|text| text.parse().unwrap()).collect();
    Policy {
        allow: entries(allow),
        drop: entries(drop),
        ..Policy::default()
    }
}

/// Few networks, ports and protocols, so that they meet.
fn entry() -> impl Strategy<Value = Entry> {
    let networks = [
        "10.0.0.0/30",
        "10.0.0.0/31",
        "10.0.0.1/32",
        "10.0.0.2/31",
        "0.0.0.0/0",
    ];
    let ports = ["", ":1", ":1-2", ":2-3"];
    let protocols = ["", "/tcp", "/udp"];
    (0..networks.len(), 0..ports.len(), 0..protocols.len()).prop_filter_map(
        "an entry",
        move |(network, port, protocol)| {
            format!(
                "{}{}{}",
                networks[network], ports[port], protocols[protocol]
            )
            .parse()
            .ok()
        },
    )
}

fn any_policy() -> impl Strategy<Value = Policy> {
    let entries = || prop::collection::vec(entry(), 0..4);
    (entries(), entries(), any::<bool>()).prop_map(|(allow, drop, allow_metadata)| Policy {
        allow,
        drop,
        allow_metadata,
        on_deny: OnDeny::default(),
    })
}

/// One of each kind that the entries above distinguish.
fn packets() -> impl Iterator<Item = Packet> {
    let destinations = (0..5).map(|last| Ipv4Addr::new(10, 0, 0, last));
    let destinations = destinations.chain([Ipv4Addr::new(169, 254, 169, 254)]);
    destinations.flat_map(|destination| {
        let ports = [None, Some(0), Some(1), Some(2), Some(3), Some(4)];
        let transports = [Protocol::Tcp, Protocol::Udp]
            .into_iter()
            .flat_map(move |protocol| ports.map(|port| Some((protocol, port))));
        transports.chain([None]).map(move |transport| Packet {
            destination,
            transport,
        })
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]
    #[test]
    fn what_is_taken_for_a_restriction_lets_no_packet_pass_that_did_not(before in any_policy(), now in any_policy()) {
        if now.is_at_most_as_permissive_as(&before) {
            for packet in packets() {
                let passes = |policy: &Policy| policy.evaluate(&packet).0 == Verdict::Allow;
                prop_assert!(!passes(&now) || passes(&before), "{packet:?}");
            }
        }
    }

    #[test]
    fn a_policy_is_no_looser_than_itself_nor_with_one_drop_more(before in any_policy(), more in entry()) {
        prop_assert!(before.is_at_most_as_permissive_as(&before));
        let now = Policy { drop: [before.drop.clone(), vec![more]].concat(), ..before.clone() };
        // One that only lists what is allowed allows the rest once it has a drop list.
        let same_default = now.default_verdict() == before.default_verdict();
        prop_assert_eq!(now.is_at_most_as_permissive_as(&before), same_default);
    }
}

#[test]
fn what_users_do_to_close_is_taken_for_a_restriction_and_what_opens_is_not() {
    let lan = "192.168.1.0/24";
    for (before, now, closes) in [
        (policy(&[], &[]), policy(&[], &[lan]), true),
        (policy(&[], &[]), policy(&[lan], &[]), true),
        (policy(&[], &[lan]), policy(&[], &[lan, "10.0.0.0/8"]), true),
        (policy(&[], &[lan]), policy(&[], &["192.168.0.0/16"]), true),
        (
            policy(&[lan, "8.8.8.8"], &[]),
            policy(&["8.8.8.8"], &[]),
            true,
        ),
        (
            policy(&[lan], &[]),
            policy(&["192.168.1.10:443/tcp"], &[]),
            true,
        ),
        (policy(&["192.168.1.10"], &[lan]), policy(&[], &[lan]), true),
        (
            policy(&["192.168.1.10"], &[lan]),
            policy(&["192.168.1.10:53"], &[lan, "10.0.0.0/8"]),
            true,
        ),
        (policy(&[], &[lan]), policy(&[], &[]), false),
        (policy(&[], &[lan]), policy(&[], &["192.168.1.0/25"]), false),
        (
            policy(&[], &[lan]),
            policy(&["192.168.1.10"], &[lan]),
            false,
        ),
        (policy(&[lan], &[]), policy(&[], &[]), false),
        (policy(&[lan], &[]), policy(&[lan], &["10.0.0.0/8"]), false),
        (
            policy(&["192.168.1.10:443"], &[]),
            policy(&["192.168.1.10"], &[]),
            false,
        ),
    ] {
        assert_eq!(
            now.is_at_most_as_permissive_as(&before),
            closes,
            "{before:?} to {now:?}"
        );
    }
}
