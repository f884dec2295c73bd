//! What must work: answers, masquerading, the gateway, ICMP errors, other people's firewalls, another uplink.
//! Out of scope: what must not.

use std::net::Ipv4Addr;
use std::time::Duration;

use slicectl::host::tap::Framing;

use test_support::frames::{self, ICMP, TCP, UDP};
use test_support::guest_stack::Guest;
use test_support::guest_stack::Kind::{Ping, Tcp, Udp};
use test_support::lab::{HOST, INTERNET, LAN, Lab, UPLINK, lab, lab_with};
use test_support::{harness, kernel};

const PATIENCE: Duration = Duration::from_secs(5);

/// A datagram goes out, masqueraded, and its answer comes back; so do an echo and a SYN's.
#[track_caller]
fn assert_conversation(lab: &Lab, guest: &Guest) {
    let server = lab.net.socket((INTERNET, 4000));
    let id = lab.probe(guest, INTERNET, Udp(4000));
    let mut buffer = [0; 100];
    let (length, peer) = server.recv_from(&mut buffer).expect("it arrives");
    assert_eq!(frames::marked(&buffer[..length]), Some(id));
    assert_eq!(peer.ip(), UPLINK);
    server.send_to(b"answer", peer).unwrap();
    let answer = guest
        .receive_packet(PATIENCE, |seen| seen.protocol == UDP)
        .expect("an answer");
    assert_eq!((answer.source, answer.destination), (INTERNET, guest.ip));
    assert_eq!(&answer.payload[8..], b"answer");

    let id = lab.probe(guest, INTERNET, Ping);
    let answer = guest
        .receive_packet(PATIENCE, |seen| seen.protocol == ICMP)
        .expect("an answer");
    assert_eq!(
        (answer.payload[0], frames::marked(&answer.payload)),
        (0, Some(id))
    );

    lab.probe(guest, INTERNET, Tcp(4000));
    let answer = guest
        .receive_packet(PATIENCE, |seen| seen.protocol == TCP)
        .expect("an answer");
    assert_eq!(answer.payload[13] & 0x04, 0x04, "nobody listens there: RST");
}

#[test]
fn answers_come_back_and_the_internet_sees_the_uplinks_address() {
    lab(|lab| {
        lab.apply(2, "allow: []");
        assert_conversation(lab, &lab.guest(1, Framing::VnetHdr));
        assert_conversation(lab, &lab.guest(2, Framing::Plain));
        let guest = lab.guest(1, Framing::Plain);
        let id = lab.probe(&guest, LAN, Udp(1));
        lab.lan.sniffer.wait_for(id);
        assert_eq!(lab.lan.sniffer.seen(id).unwrap().source, HOST);
    });
}

#[test]
fn the_gateway_answers_arp_and_ping_and_nothing_else() {
    lab(|lab| {
        let guest = lab.only("drop: [\"0.0.0.0/0\"]\non_deny: reject");
        let id = lab.probe(&guest, guest.gateway, Ping);
        let answer = guest
            .receive_packet(PATIENCE, |seen| seen.protocol == ICMP)
            .unwrap();
        assert_eq!((answer.source, answer.payload[0]), (guest.gateway, 0));
        assert_eq!(frames::marked(&answer.payload), Some(id));
        for kind in [Tcp(22), Udp(53), Tcp(80)] {
            lab.probe(&guest, guest.gateway, kind);
        }
        let output = guest.receive_packet(Duration::from_millis(100), |_| true);
        assert!(output.is_none(), "{output:?}");
        for other in [
            guest.ip,
            INTERNET,
            HOST,
            Ipv4Addr::new(169, 254, 0, 1),
            Ipv4Addr::new(169, 254, 100, 5),
        ] {
            assert_eq!(guest.resolve(other), None, "{other}");
        }
    });
}

#[test]
fn icmp_errors_of_allowed_flows_come_back() {
    lab(|lab| {
        let guest = lab.only("allow: [\"203.0.113.10\"]");
        // The namespace takes one hop, the host the next.
        for ttl in [1, 2] {
            let mut packet = guest.packet(lab.id(), INTERNET, Udp(33434));
            packet.ttl = ttl;
            guest.send_ip(&packet);
            let error = guest
                .receive_packet(PATIENCE, |seen| seen.protocol == ICMP)
                .unwrap();
            assert_eq!(error.payload[0], 11, "time exceeded at {ttl}");
        }
        kernel::run("ip link set wan0 mtu 1400");
        let mut packet = guest.packet(lab.id(), INTERNET, Udp(4000));
        packet.payload = frames::udp(3000, 4000, &[0; 1472]);
        packet.fragment = 0x4000;
        guest.send_ip(&packet);
        let error = guest
            .receive_packet(PATIENCE, |seen| seen.protocol == ICMP)
            .unwrap();
        assert_eq!(&error.payload[..2], &[3, 4], "fragmentation needed");
        assert_eq!(&error.payload[6..8], &1400u16.to_be_bytes());
        // From beyond the host.
        lab.probe(&guest, INTERNET, Udp(4000));
        let error = guest
            .receive_packet(PATIENCE, |seen| seen.protocol == ICMP)
            .unwrap();
        assert_eq!(
            (error.source, &error.payload[..2]),
            (INTERNET, &[3, 3][..]),
            "port unreachable"
        );
    });
}

#[test]
fn another_default_route_needs_no_action() {
    lab(|lab| {
        let guest = lab.only("allow: []");
        let elsewhere = Ipv4Addr::new(198, 18, 0, 1);
        let id = lab.probe(&guest, elsewhere, Udp(53));
        lab.net.sniffer.wait_for(id);
        lab.harness.until("quiet", || {
            lab.harness
                .log()
                .contains("initial sync done")
                .then_some(())
        });
        let log = lab.harness.log();
        let events = lab.harness.ctl("events");
        kernel::run("ip route replace default via 192.168.1.10");
        let id = lab.probe(&guest, elsewhere, Udp(53));
        lab.lan.sniffer.wait_for(id);
        assert_eq!(lab.lan.sniffer.seen(id).unwrap().source, HOST);
        std::thread::sleep(Duration::from_millis(300));
        let events_now = lab.harness.ctl("events").lines().count();
        assert_eq!(events_now, events.lines().count());
        assert_eq!(lab.harness.log(), log);
    });
}

/// What docker leaves on a host, written with the given program.
pub fn docker(iptables: &str) -> String {
    format!(
        "{iptables} -P FORWARD DROP
         for c in DOCKER-USER DOCKER-ISOLATION-STAGE-1; do {iptables} -N $c; {iptables} -A $c -j RETURN; done
         {iptables} -A FORWARD -j DOCKER-USER
         {iptables} -A FORWARD -j DOCKER-ISOLATION-STAGE-1
         {iptables} -A FORWARD -o ctr0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
         {iptables} -A FORWARD -i ctr0 ! -o ctr0 -j ACCEPT"
    )
}

#[test]
fn a_forward_policy_of_drop_with_docker_chains_is_no_obstacle() {
    let before = |_: &mut harness::Harness| {
        kernel::run(&docker("iptables"));
    };
    lab_with(before, |lab| {
        let guest = lab.only("drop: [\"192.168.1.0/24\"]");
        assert_conversation(lab, &guest);
        let id = lab.probe(&guest, LAN, Udp(1));
        assert!(!lab.arrived().contains(&id));
        // Docker starts anew and puts its jumps first.
        kernel::run("iptables -D FORWARD -j DOCKER-USER; iptables -I FORWARD -j DOCKER-USER");
        assert_conversation(lab, &guest);
    });
}

/// A folder to live as long as the test, and a `PATH` on which iptables is the older one.
pub fn older_iptables() -> (tempfile::TempDir, String) {
    let tools = tempfile::tempdir().unwrap();
    for name in ["iptables", "iptables-save", "iptables-restore"] {
        let multi = "/usr/sbin/xtables-legacy-multi";
        std::os::unix::fs::symlink(multi, tools.path().join(name)).unwrap();
    }
    let path = std::env::var("PATH").unwrap();
    let path = format!("{}:{path}", tools.path().display());
    (tools, path)
}

#[test]
fn the_older_iptables_does_the_same() {
    let (_tools, path) = older_iptables();
    let before = |harness: &mut harness::Harness| {
        kernel::run(&docker("iptables-legacy"));
        harness.env.push(("PATH", path));
    };
    lab_with(before, |lab| {
        lab.apply(
            2,
            "drop: [\"192.168.1.0/24\", \"8.8.8.8:53/udp\"]\non_deny: reject",
        );
        assert!(
            lab.harness.log().contains("legacy"),
            "{}",
            lab.harness.log()
        );
        let guest = lab.guest(1, Framing::VnetHdr);
        assert_conversation(lab, &guest);
        let closed = [
            lab.probe(&guest, LAN, Udp(1)),
            lab.probe(&guest, HOST, Tcp(8080)),
            lab.probe(&guest, UPLINK, Udp(8080)),
            lab.probe(&guest, Ipv4Addr::new(8, 8, 8, 8), Udp(53)),
            lab.probe(&guest, Ipv4Addr::new(169, 254, 169, 254), Tcp(80)),
            lab.probe(&guest, Ipv4Addr::new(169, 254, 100, 6), Tcp(80)),
        ];
        let open = lab.probe(&guest, Ipv4Addr::new(8, 8, 8, 8), Tcp(53));
        let arrived = lab.arrived();
        assert!(arrived.contains(&open));
        assert!(closed.iter().all(|id| !arrived.contains(id)));
        assert_eq!(lab.taken_by_the_host(), 0);
    });
}
