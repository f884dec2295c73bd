//! What the host sends elsewhere than the guest said (DNAT and its like): the lists of a VM were asked about another address, so nothing passes.
//! Out of scope: the host's own addresses (`host`), the lists themselves (`oracle`).

use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::Duration;

use test_support::frames;
use test_support::guest_stack::Kind::{Ping, Tcp, Udp};
use test_support::kernel;
use test_support::lab::{CONTAINER, INTERNET, LAN, Lab, lab};

/// An address that nobody has; the host leads it elsewhere.
const VIRTUAL: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 10);

/// What an administrator may have set up: to the LAN host that the guest's list drops.
const TO_THE_LAN: [(&str, &str); 9] = [
    (
        "iptables DNAT",
        "iptables -t nat -A PREROUTING -d 198.18.0.10 -j DNAT --to-destination 192.168.1.10",
    ),
    (
        "iptables DNAT before all others",
        "iptables -t nat -I PREROUTING -d 198.18.0.0/16 -j DNAT --to-destination 192.168.1.10",
    ),
    (
        "iptables DNAT of a port, in a chain, as Docker and kube-proxy do",
        "iptables -t nat -N SVC
         iptables -t nat -A PREROUTING -m comment --comment service -j SVC
         iptables -t nat -A SVC -d 198.18.0.10/32 -p udp --dport 53 -j DNAT --to-destination 192.168.1.10:5300
         iptables -t nat -A SVC -d 198.18.0.10/32 -p tcp --dport 80 -j DNAT --to-destination 192.168.1.10:8080
         iptables -t nat -A SVC -d 198.18.0.10/32 -p icmp -j DNAT --to-destination 192.168.1.10",
    ),
    (
        "iptables DNAT to one of several, as kube-proxy does",
        "iptables -t nat -A PREROUTING -d 198.18.0.10 -m statistic --mode random --probability 1.0 -j DNAT --to-destination 192.168.1.10",
    ),
    (
        "iptables NETMAP",
        "iptables -t nat -A PREROUTING -d 198.18.0.0/24 -j NETMAP --to 192.168.1.0/24",
    ),
    (
        "nftables dnat",
        "nft 'add table ip mine
              add chain ip mine pre { type nat hook prerouting priority -100; }
              add rule ip mine pre ip daddr 198.18.0.10 dnat to 192.168.1.10'",
    ),
    (
        "nftables dnat of both families, earlier",
        "nft 'add table inet mine
              add chain inet mine pre { type nat hook prerouting priority -150; }
              add rule inet mine pre ip daddr 198.18.0.10 dnat ip to 192.168.1.10'",
    ),
    (
        "nftables dnat by a map",
        "nft 'add table ip mine
              add chain ip mine pre { type nat hook prerouting priority dstnat; }
              add rule ip mine pre dnat to ip daddr map { 198.18.0.10 : 192.168.1.10 }'",
    ),
    (
        "iptables DNAT and source NAT",
        "iptables -t nat -A PREROUTING -d 198.18.0.10 -j DNAT --to-destination 192.168.1.10
         iptables -t nat -A POSTROUTING -d 192.168.1.10 -j SNAT --to-source 192.168.1.1",
    ),
];

const UNDO: &str = "iptables -t nat -F PREROUTING
     iptables -t nat -D POSTROUTING -d 192.168.1.10 -j SNAT --to-source 192.168.1.1 2>/dev/null || true
     iptables -t nat -F SVC 2>/dev/null && iptables -t nat -X SVC || true
     nft delete table ip mine 2>/dev/null || true
     nft delete table inet mine 2>/dev/null || true";

/// Probes of every kind, and which arrive at the LAN host.
fn arrive(lab: &Lab, guest: &test_support::guest_stack::Guest, to: Ipv4Addr) -> usize {
    let ids = [Udp(53), Tcp(80), Ping].map(|kind| lab.probe(guest, to, kind));
    let arrived = lab.arrived();
    ids.iter().filter(|id| arrived.contains(id)).count()
}

/// Somebody whom no list concerns gets there: the rule does what it says.
#[track_caller]
fn assert_leads(lab: &Lab, how: &str, port: u16) {
    let id = lab.id();
    let socket = lab.container.socket((CONTAINER, 0));
    socket.send_to(&frames::mark(id), (VIRTUAL, port)).unwrap();
    let arrived = lab.arrived();
    assert!(
        arrived.contains(&id),
        "{how}: the container does not get there"
    );
}

fn explain(lab: &Lab, packet: &str) -> serde_json::Value {
    let output = lab
        .harness
        .ctl(&format!("explain sandbox-1 {packet} -o json"));
    serde_json::from_str(&output).unwrap()
}

#[test]
fn a_virtual_address_of_the_host_leads_to_no_destination_whatever_the_lists_contain() {
    lab(|lab| {
        for network in [
            "drop: [\"192.168.1.0/24\"]",
            "allow: [\"198.18.0.0/16\", \"203.0.113.0/24\"]",
            // Even where the list names both.
            "allow: [\"0.0.0.0/0\"]",
        ] {
            let guest = lab.only(network);
            assert_eq!(arrive(lab, &guest, INTERNET), 3, "{network}");
            for (how, rules) in TO_THE_LAN {
                kernel::run(rules);
                assert_leads(lab, how, 53);
                assert_eq!(arrive(lab, &guest, VIRTUAL), 0, "{network}: {how}");
                // What is not translated is as it was.
                assert_eq!(arrive(lab, &guest, INTERNET), 3, "{network}: {how}");
                kernel::run(UNDO);
            }
            drop(guest);
        }
        assert_eq!(lab.taken_by_the_host(), 0);
    });
}

#[test]
fn a_flow_that_began_before_the_rule_of_ours_ends_when_it_is_translated() {
    lab(|lab| {
        let guest = lab.only("allow: [\"0.0.0.0/0\"]");
        kernel::run(TO_THE_LAN[0].1);
        // As if this flow had been let through by an earlier version: its entry is there, and only our chain stands in its way.
        let instance = kernel::run("iptables -t mangle -S FORWARD");
        let chain = instance
            .split_whitespace()
            .find(|word| word.ends_with("-APART"));
        let chain = chain.expect("a chain of ours").to_owned();
        harness_stopped(lab);
        let number = kernel::run(&format!("iptables -t mangle -S {chain}"));
        assert!(number.contains("--ctstate DNAT"), "{number}");
        let one = guest.packet(lab.id(), VIRTUAL, Udp(53));
        kernel::run(&format!(
            "iptables -t mangle -I FORWARD -s {} -j ACCEPT",
            guest.ip
        ));
        guest.send_ip(&one);
        let id = frames::marked(&one.bytes()).unwrap();
        lab.lan.sniffer.wait_for(id);
        kernel::run(&format!(
            "iptables -t mangle -D FORWARD -s {} -j ACCEPT",
            guest.ip
        ));
        lab.lan.sniffer.forget();
        guest.send_ip(&one);
        assert!(!lab.arrived().contains(&id), "the established flow goes on");
    });
}

/// Nobody is there to repair what the test does.
fn harness_stopped(lab: &Lab) {
    test_support::harness::signal(lab.harness.pid(), rustix::process::Signal::KILL);
}

/// A socket that takes packets for addresses that are not the host's (`IP_TRANSPARENT`).
fn transparent(port: u16) -> UdpSocket {
    let socket = UdpSocket::bind(("0.0.0.0", port)).unwrap();
    let on: libc::c_int = 1;
    // SAFETY: the value is an int that lives through the call.
    let answer = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_IP,
            libc::IP_TRANSPARENT,
            (&raw const on).cast(),
            size_of_val(&on) as libc::socklen_t,
        )
    };
    assert_eq!(answer, 0, "{}", std::io::Error::last_os_error());
    socket
        .set_read_timeout(Some(Duration::from_millis(500)))
        .unwrap();
    socket
}

#[test]
fn what_the_host_takes_in_itself_in_anothers_name_it_does_not_take_from_a_vm() {
    const WAYS: [(&str, &str); 4] = [
        (
            "iptables REDIRECT",
            "iptables -t nat -A PREROUTING -d 198.18.0.10 -p udp --dport 53 -j REDIRECT --to-ports 5353",
        ),
        (
            "nftables redirect",
            "nft 'add table ip mine
                  add chain ip mine pre { type nat hook prerouting priority -100; }
                  add rule ip mine pre udp dport 53 redirect to :5353'",
        ),
        (
            "DNAT to an address of the host",
            "iptables -t nat -A PREROUTING -d 198.18.0.10 -p udp --dport 53 -j DNAT --to-destination 192.168.222.1:5353",
        ),
        (
            "TPROXY",
            "iptables -t mangle -A PREROUTING -d 198.18.0.10 -p udp --dport 53 -j TPROXY --on-port 5353 --tproxy-mark 7
             ip rule add fwmark 7 lookup 77
             ip route add local default dev lo table 77",
        ),
    ];
    lab(|lab| {
        let server = transparent(5353);
        let guest = lab.only("allow: [\"0.0.0.0/0\", \"192.168.222.1:3128\"]");
        for (how, rules) in WAYS {
            kernel::run(rules);
            let mut buffer = [0; 100];
            let id = lab.id();
            let container = lab.container.socket((CONTAINER, 0));
            container.send_to(&frames::mark(id), (VIRTUAL, 53)).unwrap();
            let (length, _) = server.recv_from(&mut buffer).expect(how);
            assert_eq!(frames::marked(&buffer[..length]), Some(id), "{how}");
            lab.probe(&guest, VIRTUAL, Udp(53));
            let came = server.recv_from(&mut buffer).ok();
            assert_eq!(came, None, "{how}");
            kernel::run(UNDO);
            kernel::run("iptables -t mangle -F PREROUTING");
        }
    });
}

#[test]
fn an_opening_of_the_host_is_for_what_listens_there_not_for_what_it_is_translated_to() {
    lab(|lab| {
        // The lab's host publishes a port of its container, as Docker does.
        let guest = lab.only("allow: [\"192.168.1.1:8080\"]");
        let socket = lab.lan.socket((LAN, 0));
        let id = lab.id();
        socket
            .send_to(&frames::mark(id), (Ipv4Addr::new(192, 168, 1, 1), 8080))
            .unwrap();
        lab.container.sniffer.wait_for(id);
        let ids = [Udp(8080), Tcp(8080)]
            .map(|kind| lab.probe(&guest, Ipv4Addr::new(192, 168, 1, 1), kind));
        let arrived = lab.arrived();
        assert!(ids.iter().all(|id| !arrived.contains(id)));
    });
}

#[test]
fn explain_predicts_for_translated_destinations_what_the_kernel_does() {
    lab(|lab| {
        let guest = lab.only("drop: [\"192.168.1.0/24\"]");
        assert_eq!(explain(lab, "198.18.0.10:53/udp")["verdict"], "allow");
        for (how, rules) in TO_THE_LAN {
            kernel::run(rules);
            let output = explain(lab, "198.18.0.10:53/udp");
            let text = |key: &str| output[key].as_str().unwrap().to_owned();
            match how.ends_with("by a map") || how.starts_with("iptables DNAT to one of several") {
                // Not understood, and told so.
                true => assert!(
                    text("entry").contains("unless the host translates"),
                    "{how}: {output}"
                ),
                false => {
                    assert_eq!(output["verdict"], "deny", "{how}: {output}");
                    assert!(text("rule").contains("DNAT"), "{output}");
                    assert!(
                        text("entry").contains("translates the destination"),
                        "{output}"
                    );
                }
            }
            let elsewhere = explain(lab, "203.0.113.10:53/udp");
            assert_eq!(elsewhere["verdict"], "allow", "{how}: {elsewhere}");
            kernel::run(UNDO);
        }
        drop(guest);
    });
}
