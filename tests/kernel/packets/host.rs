//! The host itself: closed on each of its addresses, but for what an `allow` with a port opens.
//! Out of scope: other VMs.

use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::time::Duration;

use slicectl::host::tap::Framing;

use test_support::frames::{self, TCP, UDP};
use test_support::guest_stack::Kind::{self, Ping, Tcp, Udp};
use test_support::lab::{CONTAINER, HOST, INTERNET, LAN, PROXY, UPLINK, lab};

const ADDRESSES: [Ipv4Addr; 6] = [
    HOST,
    PROXY,
    UPLINK,
    Ipv4Addr::new(172, 17, 0, 1),
    Ipv4Addr::new(192, 0, 2, 1),
    Ipv4Addr::LOCALHOST,
];

const KINDS: [Kind; 6] = [Tcp(3128), Udp(3128), Tcp(22), Udp(8080), Tcp(8080), Ping];

/// Somebody listens on every address of the host.
fn servers() -> (TcpListener, UdpSocket) {
    // A datagram's answer must come from where it was asked for.
    let udp = UdpSocket::bind((PROXY, 3128)).unwrap();
    udp.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    (TcpListener::bind("0.0.0.0:3128").unwrap(), udp)
}

#[test]
fn the_host_is_closed_on_each_of_its_addresses_published_ports_included() {
    lab(|lab| {
        let _servers = servers();
        lab.apply(2, "allow: []");
        let guest = lab.guest(1, Framing::Plain);
        // The host's end of the other VM's veth, too.
        let other = lab.harness.place("sandbox-2").gateway.parse().unwrap();
        let ids: Vec<u32> = ADDRESSES
            .iter()
            .chain([&other])
            .flat_map(|to| KINDS.map(|kind| lab.probe(&guest, *to, kind)))
            .collect();
        // The host's end of its own veth has the gateway's address, which answers ping in the namespace and nothing else.
        for kind in [Tcp(3128), Udp(3128), Tcp(8080), Udp(8080)] {
            lab.probe(&guest, guest.gateway, kind);
        }
        let output = guest.receive_packet(Duration::from_millis(200), |_| true);
        assert!(output.is_none(), "{output:?}");
        let direct = lab.probe(&guest, CONTAINER, Tcp(80));
        let arrived = lab.arrived();
        assert!(
            arrived.contains(&direct),
            "the container's own address is no address of the host"
        );
        assert!(ids.iter().all(|id| !arrived.contains(id)));
        assert_eq!(lab.taken_by_the_host(), 0);
    });
}

#[test]
fn the_published_port_is_there_for_everybody_else() {
    lab(|lab| {
        lab.apply(1, "allow: []");
        let id = lab.id();
        let data = frames::mark(id);
        let socket = lab.lan.socket((LAN, 0));
        socket.send_to(&data, (HOST, 8080)).unwrap();
        lab.container.sniffer.wait_for(id);
    });
}

#[test]
fn an_allowed_host_address_with_a_port_opens_exactly_that() {
    lab(|lab| {
        let (_listener, server) = servers();
        let guest =
            lab.only("allow: [\"192.168.222.1:3128\", \"192.168.0.0/16\", \"203.0.113.1\"]");
        let id = lab.probe(&guest, PROXY, Udp(3128));
        let mut buffer = [0; 100];
        let (length, from) = server.recv_from(&mut buffer).expect("the proxy hears it");
        assert_eq!(frames::marked(&buffer[..length]), Some(id));
        server.send_to(b"answer", from).unwrap();
        let answer = guest
            .receive_packet(Duration::from_secs(5), |seen| seen.protocol == UDP)
            .unwrap();
        assert_eq!(
            (answer.source, &answer.payload[8..]),
            (PROXY, &b"answer"[..])
        );
        lab.probe(&guest, PROXY, Tcp(3128));
        let answer = guest
            .receive_packet(Duration::from_secs(5), |seen| seen.protocol == TCP)
            .unwrap();
        assert_eq!(answer.payload[13] & 0x12, 0x12, "SYN, ACK");

        let taken = lab.taken_by_the_host();
        for kind in [Tcp(3127), Udp(3129), Tcp(22), Tcp(8080), Udp(8080), Ping] {
            lab.probe(&guest, PROXY, kind);
        }
        for address in ADDRESSES.into_iter().filter(|address| *address != PROXY) {
            for kind in KINDS {
                lab.probe(&guest, address, kind);
            }
        }
        let arrived = lab.arrived();
        assert!(
            !lab.container
                .sniffer
                .frames()
                .iter()
                .any(|f| frames::read(f).is_some_and(|s| s.protocol == TCP))
        );
        assert!(!arrived.contains(&id));
        assert_eq!(lab.taken_by_the_host(), taken);
    });
}

#[test]
fn an_opening_of_one_group_is_none_for_another() {
    lab(|lab| {
        let (_listener, _server) = servers();
        lab.apply(1, "allow: [\"192.168.222.1:3128\"]");
        let other = test_support::harness::group("other", 1, "169.254.104.0/22", "allow: []");
        lab.harness.apply(&other);
        let found = lab.harness.get("vm other-1");
        let network = &found["status"]["network"];
        let netns = network["netns"].as_str().unwrap();
        let mac = test_support::lab::mac(network["mac"].as_str().unwrap());
        let ip = network["ip"].as_str().unwrap().parse().unwrap();
        let guest =
            test_support::guest_stack::Guest::attach(netns.as_ref(), Framing::VnetHdr, mac, ip);
        lab.probe(&guest, PROXY, Tcp(3128));
        lab.probe(&guest, PROXY, Udp(3128));
        // Nor with an address that is in the pool of the group that may.
        for kind in [Tcp(3128), Udp(3128)] {
            let mut packet = guest.packet(lab.id(), PROXY, kind);
            packet.source = Ipv4Addr::new(169, 254, 100, 2);
            guest.send_ip(&packet);
        }
        let open = lab.probe(&guest, INTERNET, Tcp(80));
        assert!(lab.arrived().contains(&open));
        assert_eq!(lab.taken_by_the_host(), 0);
    });
}

#[test]
fn explain_predicts_for_the_host_what_the_kernel_does() {
    lab(|lab| {
        let _servers = servers();
        let guest = lab.only("allow: [\"192.168.222.1:3128/udp\", \"192.168.0.0/16\"]");
        let cases = [
            (PROXY, Udp(3128)),
            (PROXY, Tcp(3128)),
            (PROXY, Udp(3129)),
            (HOST, Udp(3128)),
            (HOST, Tcp(8080)),
            (UPLINK, Udp(3128)),
            (PROXY, Ping),
            (LAN, Udp(3128)),
            (Ipv4Addr::new(192, 168, 1, 255), Udp(3128)),
            (INTERNET, Tcp(80)),
        ];
        for (to, kind) in cases {
            let taken = lab.taken_by_the_host();
            let id = lab.probe(&guest, to, kind);
            let passed = lab.arrived().contains(&id) || lab.taken_by_the_host() > taken;
            let packet = match kind {
                Udp(port) => format!("{to}:{port}/udp"),
                Tcp(port) => format!("{to}:{port}/tcp"),
                Ping => to.to_string(),
            };
            let output = lab
                .harness
                .ctl(&format!("explain sandbox-1 {packet} -o json"));
            let output: serde_json::Value = serde_json::from_str(&output).unwrap();
            let verdict = match passed {
                true => "allow",
                false => "deny",
            };
            assert_eq!(output["verdict"], verdict, "{output}");
        }
    });
}
