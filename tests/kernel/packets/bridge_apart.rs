//! Guests on a user's bridge that are kept apart (`isolate_ports`): what of the host they reach, and no way that leads past it.
//! Out of scope: the same on a bridge of ours (`bridge_guard`); the program frame by frame (`reconcile::firewall::antispoof`).

use std::net::{Ipv4Addr, Ipv6Addr, UdpSocket};
use std::time::Duration;

use test_support::frames::{self, UDP, ethernet, tagged};
use test_support::guest_stack::Guest;
use test_support::guest_stack::Kind::Udp;
use test_support::kernel;
use test_support::lab::{Lab, Place, lab, mac};

const ROUTER: &str = "192.168.7.1/24";
const HOST: Ipv4Addr = Ipv4Addr::new(192, 168, 7, 5);
const SECOND: Ipv4Addr = Ipv4Addr::new(192, 168, 7, 6);
const LATER: Ipv4Addr = Ipv4Addr::new(192, 168, 7, 9);
const HOST6: Ipv6Addr = Ipv6Addr::new(0xfd00, 7, 0, 0, 0, 0, 0, 5);
const TWO6: Ipv6Addr = Ipv6Addr::new(0xfd00, 7, 0, 0, 0, 0, 0, 0x51);
const LOCAL6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0x51);
const APART: [&str; 2] = [
    "isolate_ports: true",
    "isolate_ports: true\nantispoof: false",
];

/// A bridge of the user's with a router behind a NIC, two addresses of the host's, and a host that routes both families.
fn office() -> Place {
    let office = Place::settle("nic0", "192.168.7.5/24", ROUTER);
    kernel::run(
        "nft 'add chain inet witness taken6 { type filter hook input priority -400; }'
         nft 'add rule inet witness taken6 ip6 daddr fd00:7::5 counter'
         sysctl -qw net.ipv6.conf.all.forwarding=1 net.ipv6.conf.default.accept_dad=0
         ip addr flush dev nic0
         ip link add br0 address 02:00:00:00:00:b0 type bridge forward_delay 0 mcast_snooping 0
         ip link set nic0 master br0
         ip link set br0 up
         ip addr add 192.168.7.5/24 dev br0
         ip addr add 192.168.7.6/32 dev br0
         ip addr add fd00:7::5/64 nodad dev br0",
    );
    office
}

fn apply(lab: &Lab, more: &str) {
    let network = "bridge: br0\ntap_prefix: vmtap\ngateway: 192.168.7.1/24\naddresses: [192.168.7.50/24, 192.168.7.51/24]";
    lab.apply_bridge("web", 2, &format!("{network}\n{more}"));
}

fn mac_of(link: &str) -> [u8; 6] {
    mac(kernel::run(&format!("cat /sys/class/net/{link}/address")).trim())
}

fn receives(guest: &Guest, id: u32) -> bool {
    let is_it = |frame: &[u8]| frames::marked(frame) == Some(id);
    guest.receive(Duration::from_millis(100), is_it).is_some()
}

/// Every frame of `one` that the host might bring to `two`, by its name.
fn ways_round(one: &Guest, two: &Guest, id: u32) -> Vec<(&'static str, Vec<u8>)> {
    let (bridge, own, other) = (mac_of("br0"), mac_of("vmtap0"), mac_of("vmtap1"));
    let packet = one.packet(id, two.ip, Udp(53));
    let ipv4 = |to: [u8; 6]| ethernet(to, one.mac, 0x0800, &packet.bytes());
    let ipv6 =
        |to: [u8; 6], dst: Ipv6Addr| frames::udp6(to, one.mac, dst.octets(), &frames::mark(id));
    let mut routed = packet.clone();
    routed.destination = HOST;
    // Loose source route (RFC 791): on to the neighbour.
    routed.options = [&[131, 7, 4][..], &two.ip.octets(), &[0]].concat();
    let twice = |frame: &[u8]| tagged(&tagged(frame, 0x8100, 0), 0x8100, 0);
    vec![
        ("IPv4 to the bridge's MAC", ipv4(bridge)),
        ("IPv4 to the TAP's own MAC", ipv4(own)),
        ("IPv4 to the neighbour's TAP's MAC", ipv4(other)),
        ("IPv4 to everybody", ipv4(frames::BROADCAST)),
        ("IPv4 behind one tag", tagged(&ipv4(bridge), 0x8100, 0)),
        ("IPv4 behind two tags", twice(&ipv4(bridge))),
        (
            "IPv4 behind two tags to the TAP's own MAC",
            twice(&ipv4(own)),
        ),
        (
            "IPv4 with a source route",
            ethernet(bridge, one.mac, 0x0800, &routed.bytes()),
        ),
        ("IPv6 to the bridge's MAC", ipv6(bridge, TWO6)),
        ("IPv6 to the TAP's own MAC", ipv6(own, TWO6)),
        ("IPv6 to the neighbour's TAP's MAC", ipv6(other, TWO6)),
        ("IPv6 behind two tags", twice(&ipv6(bridge, TWO6))),
        ("IPv6 to a link-local address", ipv6(bridge, LOCAL6)),
    ]
}

fn leading_round(lab: &Lab, one: &Guest, two: &Guest) -> Vec<&'static str> {
    let count = ways_round(one, two, 0).len();
    let mut found = Vec::new();
    for number in 0..count {
        let id = lab.id();
        let (name, frame) = ways_round(one, two, id).swap_remove(number);
        one.send(&frame);
        if receives(two, id) {
            found.push(name);
        }
    }
    found
}

#[track_caller]
fn assert_reaches_the_host(lab: &Lab, guest: &Guest, at: Ipv4Addr) {
    let socket = UdpSocket::bind((at, 4000)).unwrap();
    socket
        .set_read_timeout(Some(Duration::from_secs(5)))
        .unwrap();
    let id = lab.id();
    let to = guest.resolve(at).expect("it answers ARP");
    guest.send_ip_to(to, &guest.packet(id, at, Udp(4000)));
    let mut buffer = [0; 100];
    let (length, peer) = socket.recv_from(&mut buffer).expect("it arrives");
    assert_eq!(frames::marked(&buffer[..length]), Some(id));
    socket.send_to(&frames::mark(id), peer).unwrap();
    let answer = guest.receive_packet(Duration::from_secs(5), |seen| {
        seen.protocol == UDP && frames::marked(&seen.payload) == Some(id)
    });
    assert_eq!(answer.expect("an answer").source, at);
}

#[test]
fn guests_kept_apart_reach_every_address_of_the_host_on_a_users_bridge_a_new_one_too() {
    lab(|lab| {
        let office = office();
        for policy in APART {
            apply(lab, policy);
            let one = lab.port("web-1");
            assert_ne!(one.gateway_mac, mac_of("br0"), "a router of its own");
            for address in [HOST, SECOND] {
                assert_reaches_the_host(lab, &one, address);
            }
            one.send(&frames::udp6(
                mac_of("br0"),
                one.mac,
                HOST6.octets(),
                &frames::mark(lab.id()),
            ));
            lab.harness.until("IPv6 arrives", || {
                let taken = kernel::run("nft list chain inet witness taken6");
                (!taken.contains("packets 0 ")).then_some(())
            });
            let id = lab.probe(&one, one.gateway, Udp(53));
            office.sniffer.wait_for(id);
        }
        kernel::run("ip addr add 192.168.7.9/24 dev br0");
        let one = lab.port("web-1");
        let socket = UdpSocket::bind((LATER, 4000)).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_millis(20)))
            .unwrap();
        lab.harness
            .within(Duration::from_secs(2), "the new address is reached", || {
                one.send_ip_to(mac_of("br0"), &one.packet(lab.id(), LATER, Udp(4000)));
                socket.recv_from(&mut [0; 100]).ok()
            });
    });
}

#[test]
fn nothing_leads_guests_that_are_kept_apart_to_each_other_by_way_of_the_host() {
    lab(|lab| {
        let _office = office();
        apply(lab, "antispoof: false");
        let (one, two) = (lab.port("web-1"), lab.port("web-2"));
        let pin = |ip: Ipv6Addr| {
            let [a, b, c, d, e, f] = two.mac;
            kernel::run(&format!(
                "ip -6 neigh replace {ip} lladdr {a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x} dev br0 nud permanent"
            ));
        };
        for ip in [TWO6, LOCAL6] {
            pin(ip);
        }
        kernel::run(
            "sysctl -qw net.ipv4.conf.all.accept_source_route=1 net.ipv4.conf.br0.accept_source_route=1",
        );
        let open = leading_round(lab, &one, &two);
        for way in [
            "IPv4 to the bridge's MAC",
            "IPv4 to the TAP's own MAC",
            "IPv4 behind two tags",
            "IPv4 with a source route",
            "IPv6 to the bridge's MAC",
            "IPv6 to the TAP's own MAC",
            "IPv6 to a link-local address",
        ] {
            assert!(open.contains(&way), "{way}: {open:?}");
        }
        for policy in APART {
            apply(lab, policy);
            assert_eq!(leading_round(lab, &one, &two), [""; 0], "{policy}");
        }
    });
}

#[test]
fn guests_stay_apart_when_the_bridge_gets_another_mac() {
    lab(|lab| {
        let _office = office();
        apply(lab, APART[1]);
        let (one, two) = (lab.port("web-1"), lab.port("web-2"));
        assert_eq!(leading_round(lab, &one, &two), [""; 0]);
        kernel::run("ip link set br0 address 02:00:00:00:00:b1");
        lab.harness
            .until("the host knows the guest again", || pinned(two.ip));
        // The kernel forgot its neighbours on that bridge, too.
        assert_eq!(leading_round(lab, &one, &two), [""; 0]);
        assert_reaches_the_host(lab, &one, HOST);
    });
}

fn pinned(guest: Ipv4Addr) -> Option<()> {
    let known = kernel::run(&format!("ip neigh show {guest} dev br0"));
    known.contains("PERMANENT").then_some(())
}
