//! Guests on bridges: whom they reach, who reaches them, and who does not.
//! Out of scope: what a guest may not send (`bridge_guard`).

use std::net::{Ipv4Addr, UdpSocket};
use std::time::Duration;

use slicectl::host::tap::Framing;

use super::answers::{docker, older_iptables};
use test_support::frames::{self, ICMP, UDP};
use test_support::guest_stack::Guest;
use test_support::guest_stack::Kind::{Ping, Tcp, Udp};
use test_support::kernel;
use test_support::lab::{HOST, INTERNET, LAN, Lab, Place, UPLINK, lab, lab_with};

const PATIENCE: Duration = Duration::from_secs(5);
const SOON: Duration = Duration::from_millis(50);
const WEB: &str = "bridge: brvm0\ntap_prefix: vmtap\ngateway: 192.168.137.1/24";

fn a_socket_of_the_host(at: Ipv4Addr, port: u16) -> UdpSocket {
    let socket = UdpSocket::bind((at, port)).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// A datagram of the guest's to that address comes with that source, and its answer comes back.
#[track_caller]
fn assert_conversation(lab: &Lab, guest: &Guest, server: &UdpSocket, to: Ipv4Addr, from: Ipv4Addr) {
    let port = server.local_addr().unwrap().port();
    let id = lab.probe(guest, to, Udp(port));
    let mut buffer = [0; 100];
    let (length, peer) = server.recv_from(&mut buffer).expect("it arrives");
    assert_eq!(frames::marked(&buffer[..length]), Some(id));
    assert_eq!(peer.ip(), from);
    server.send_to(b"answer", peer).unwrap();
    let received = guest.receive_packet(PATIENCE, |seen| {
        seen.protocol == UDP && seen.payload.ends_with(b"answer")
    });
    assert_eq!(received.expect("an answer").source, to);
}

/// A ping from one guest to the other, whom it asks for its MAC; `None`: not now.
fn ping(lab: &Lab, from: &Guest, to: &Guest) -> Option<()> {
    from.send(&frames::who_has(from.mac, from.ip, to.ip));
    let is_asked = |frame: &[u8]| frame.get(12..14) == Some(&[8, 6]);
    to.receive(Duration::from_millis(1), is_asked)?;
    let id = lab.id();
    from.send_ip_to(to.mac, &from.packet(id, to.ip, Ping));
    let is_it =
        |seen: &frames::Seen| seen.protocol == ICMP && frames::marked(&seen.payload) == Some(id);
    to.receive_packet(Duration::from_millis(20), is_it)
        .map(|_| ())
}

fn assert_everybody_is_reached(lab: &Lab) {
    let (one, two) = (lab.port("web-1"), lab.port("web-2"));
    lab.harness
        .within(SOON, "guest to guest", || ping(lab, &one, &two));
    lab.harness
        .within(SOON, "and back", || ping(lab, &two, &one));
    let host = a_socket_of_the_host(one.gateway, 4000);
    assert_conversation(lab, &one, &host, one.gateway, one.ip);
    let elsewhere = a_socket_of_the_host(HOST, 4000);
    assert_conversation(lab, &one, &elsewhere, HOST, one.ip);
    let id = lab.id();
    host.send_to(&frames::mark(id), (two.ip, 9)).unwrap();
    let reported = two.receive_packet(PATIENCE, |seen| frames::marked(&seen.payload) == Some(id));
    assert_eq!(reported.expect("the host's datagram").source, two.gateway);
    assert_conversation(lab, &one, &lab.lan.socket((LAN, 4000)), LAN, HOST);
    assert_conversation(
        lab,
        &two,
        &lab.net.socket((INTERNET, 4000)),
        INTERNET,
        UPLINK,
    );
}

#[test]
fn guests_reach_each_other_the_host_the_lan_and_the_internet_where_docker_drops() {
    let before = |_: &mut _| drop(kernel::run(&docker("iptables")));
    lab_with(before, |lab| {
        lab.apply_bridge("web", 2, WEB);
        assert_everybody_is_reached(lab);
        // Docker starts anew and puts its jumps first; somebody of its users forbids everything.
        kernel::run(
            "iptables -D FORWARD -j DOCKER-USER; iptables -I FORWARD -j DOCKER-USER
             iptables -I DOCKER-USER -j DROP",
        );
        lab.harness.until("our jump stands first again", || {
            let rules = kernel::run("iptables -S DOCKER-USER");
            let first = rules.lines().nth(1)?;
            first.contains("SLICE-").then_some(())
        });
        assert_everybody_is_reached(lab);
    });
}

#[test]
fn they_do_so_with_the_older_iptables() {
    let (_tools, path) = older_iptables();
    let before = |harness: &mut test_support::harness::Harness| {
        kernel::run(&docker("iptables-legacy"));
        harness.env.push(("PATH", path));
    };
    lab_with(before, |lab| {
        lab.apply_bridge("web", 2, WEB);
        assert!(
            lab.harness.log().contains("legacy"),
            "{}",
            lab.harness.log()
        );
        assert_everybody_is_reached(lab);
    });
}

#[test]
fn a_lan_machine_with_the_route_that_slicectl_prints_reaches_a_guest_and_without_it_does_not() {
    let before = |_: &mut _| drop(kernel::run(&docker("iptables")));
    lab_with(before, |lab| {
        lab.apply_bridge("web", 1, WEB);
        let guest = lab.port("web-1");
        lab.lan.neighbour.run("ip route del default");
        let socket = lab.lan.socket((LAN, 4000));
        let id = lab.id();
        assert!(
            socket.send_to(&frames::mark(id), (guest.ip, 53)).is_err(),
            "it knows no way"
        );
        let output = lab.harness.ctl(&format!("route web --via {HOST}"));
        let command = output.lines().find(|line| line.starts_with("ip route add"));
        lab.lan.neighbour.run(command.expect("a command"));
        socket.send_to(&frames::mark(id), (guest.ip, 53)).unwrap();
        let received =
            guest.receive_packet(PATIENCE, |seen| frames::marked(&seen.payload) == Some(id));
        assert_eq!(received.expect("it comes").source, LAN);
        let mut answer = guest.packet(lab.id(), LAN, Udp(4000));
        answer.payload = frames::udp(53, 4000, b"answer");
        guest.send_ip(&answer);
        let (length, peer) = socket.recv_from(&mut [0; 100]).expect("the answer");
        assert_eq!((length, peer.ip()), (6, guest.ip.into()), "not masqueraded");
    });
}

/// Nothing with a mark comes to this guest.
#[track_caller]
fn assert_undisturbed(lab: &Lab, guest: &Guest) {
    lab.arrived();
    let came = guest.receive(Duration::from_millis(50), |f| frames::marked(f).is_some());
    assert!(came.is_none(), "{came:x?}");
}

#[test]
fn an_isolated_vm_and_a_guest_on_a_bridge_do_not_reach_each_other() {
    lab(|lab| {
        lab.apply_bridge("web", 1, WEB);
        lab.apply(1, "allow: [\"0.0.0.0/0\"]");
        let (isolated, bridged) = (lab.guest(1, Framing::VnetHdr), lab.port("web-1"));
        let closed_to_isolated = [bridged.ip, bridged.gateway];
        for kind in [Udp(53), Tcp(80), Ping] {
            for to in closed_to_isolated {
                lab.probe(&isolated, to, kind);
            }
            lab.probe(&bridged, isolated.ip, kind);
        }
        assert_undisturbed(lab, &bridged);
        assert_undisturbed(lab, &isolated);
        assert_eq!(lab.taken_by_the_host(), 0);
        // Nor with what the other would take for an answer.
        for (from, to) in [(&isolated, &bridged), (&bridged, &isolated)] {
            lab.probe(to, from.ip, Udp(2000));
            lab.probe(from, to.ip, Udp(2000));
        }
        assert_undisturbed(lab, &bridged);
        assert_undisturbed(lab, &isolated);
        // Both still reach the internet.
        for guest in [&isolated, &bridged] {
            let id = lab.probe(guest, INTERNET, Udp(53));
            lab.net.sniffer.wait_for(id);
        }
    });
}

#[test]
fn guests_on_two_bridges_reach_each_other_through_the_host_and_see_no_others_frames() {
    lab(|lab| {
        lab.apply_bridge("web", 1, WEB);
        lab.apply_bridge(
            "db",
            1,
            "bridge: brvm1\ntap_prefix: dbtap\ngateway: 192.168.138.1/24",
        );
        let (web, db) = (lab.port("web-1"), lab.port("db-1"));
        assert_eq!(web.resolve(db.ip), None, "ARP does not cross");
        web.send_ip_to(db.mac, &web.packet(lab.id(), db.ip, Udp(53)));
        assert_undisturbed(lab, &db);
        let id = lab.probe(&web, db.ip, Udp(53));
        let received =
            db.receive_packet(PATIENCE, |seen| frames::marked(&seen.payload) == Some(id));
        assert_eq!(
            received.expect("it comes").source,
            db.gateway,
            "masqueraded"
        );
    });
}

#[test]
fn on_a_users_bridge_a_guest_reaches_the_machines_behind_its_nic_directly() {
    let before = |_: &mut _| drop(kernel::run(&docker("iptables")));
    lab_with(before, |lab| {
        let office = Place::settle("nic0", "192.168.7.1/24", "192.168.7.10/24");
        kernel::run(
            "ip link add br0 type bridge forward_delay 0
             ip addr flush dev nic0
             ip link set nic0 master br0
             ip link set br0 up
             ip addr add 192.168.7.1/24 dev br0",
        );
        let network = "bridge: br0\ntap_prefix: vmtap\ngateway: 192.168.7.1/24\naddresses: [192.168.7.50/24, 192.168.7.51/24]";
        lab.apply_bridge("web", 2, network);
        let (one, two) = (lab.port("web-1"), lab.port("web-2"));
        assert_eq!(one.ip, Ipv4Addr::new(192, 168, 7, 50));
        let machine = Ipv4Addr::new(192, 168, 7, 10);
        let mac = one.resolve(machine).expect("it answers ARP");
        let server = office.socket((machine, 4000));
        let id = lab.id();
        one.send_ip_to(mac, &one.packet(id, machine, Udp(4000)));
        let mut buffer = [0; 100];
        let (length, peer) = server.recv_from(&mut buffer).expect("it arrives");
        assert_eq!(frames::marked(&buffer[..length]), Some(id));
        assert_eq!(peer.ip(), one.ip, "as itself");
        server.send_to(b"answer", peer).unwrap();
        let answer = one.receive_packet(PATIENCE, |seen| seen.payload.ends_with(b"answer"));
        assert_eq!(answer.expect("an answer").source, machine);
        lab.harness
            .within(SOON, "guest to guest", || ping(lab, &one, &two));
        assert_conversation(
            lab,
            &two,
            &lab.net.socket((INTERNET, 4000)),
            INTERNET,
            UPLINK,
        );
    });
}
