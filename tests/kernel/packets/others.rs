//! VMs and strangers: nobody reaches a VM that has not spoken to them first.
//! Out of scope: the host's own addresses as a destination.

use std::net::Ipv4Addr;
use std::time::Duration;

use slicectl::host::tap::Framing;

use test_support::frames;
use test_support::guest_stack::Guest;
use test_support::guest_stack::Kind::{Ping, Tcp, Udp};
use test_support::lab::{CONTAINER, HOST, INTERNET, LAN, Lab, UPLINK, lab};
use test_support::{harness, kernel};

/// Nothing but ARP, and nothing with a mark, comes to this guest.
#[track_caller]
fn assert_undisturbed(lab: &Lab, guest: &Guest) {
    lab.arrived();
    let came = guest.receive(Duration::from_millis(50), |frame| {
        frames::read(frame).is_some() || frames::marked(frame).is_some()
    });
    assert!(came.is_none(), "{came:x?}");
}

#[test]
fn another_vm_is_not_reached_by_its_address_nor_by_its_gateway() {
    lab(|lab| {
        lab.apply(2, "allow: [\"0.0.0.0/0\"]");
        let (one, two) = (lab.guest(1, Framing::VnetHdr), lab.guest(2, Framing::Plain));
        for to in [two.ip, two.gateway] {
            for kind in [Tcp(80), Udp(53), Ping] {
                lab.probe(&one, to, kind);
            }
        }
        // Straight to the other's MAC, should anything bridge.
        let packet = one.packet(lab.id(), two.ip, Udp(53)).bytes();
        one.send(&frames::ethernet(two.mac, one.mac, 0x0800, &packet));
        assert_undisturbed(lab, &two);
        assert_undisturbed(lab, &one);
        assert_eq!(one.resolve(two.ip), None);
        assert_eq!(one.resolve(two.gateway), None);
        assert_eq!(lab.taken_by_the_host(), 0);
    });
}

#[test]
fn another_vm_is_not_reached_by_hairpin_through_the_masqueraded_address() {
    lab(|lab| {
        lab.apply(2, "allow: []");
        let (one, two) = (
            lab.guest(1, Framing::VnetHdr),
            lab.guest(2, Framing::VnetHdr),
        );
        // The host now maps UPLINK:port back to the second VM.
        let id = lab.probe(&two, INTERNET, Udp(4000));
        lab.net.sniffer.wait_for(id);
        let seen = lab.net.sniffer.seen(id).unwrap();
        assert_eq!(seen.source, UPLINK);
        let mapped = u16::from_be_bytes([seen.payload[0], seen.payload[1]]);
        // The internet host's own answer, "port unreachable", may come; then silence.
        two.receive_packet(Duration::from_secs(1), |seen| seen.protocol == frames::ICMP);
        for to in [UPLINK, Ipv4Addr::new(192, 168, 1, 1)] {
            lab.probe(&one, to, Udp(mapped));
            lab.probe(&one, to, Tcp(mapped));
            let mut answer = one.packet(lab.id(), to, Udp(mapped));
            answer.payload = frames::udp(4000, mapped, &frames::mark(lab.id()));
            one.send_ip(&answer);
            answer.source = INTERNET;
            one.send_ip(&answer);
        }
        assert_undisturbed(lab, &two);
    });
}

#[test]
fn nobody_reaches_a_vm_unasked() {
    lab(|lab| {
        let guest = lab.only("allow: []");
        // LAN, internet and container have their default routes through the host.
        for (place, own) in [
            (&lab.lan, LAN),
            (&lab.net, INTERNET),
            (&lab.container, CONTAINER),
        ] {
            let to = guest.ip;
            let id = lab.id();
            place
                .socket((own, 0))
                .send_to(&frames::mark(id), (to, 53))
                .unwrap();
            place.neighbour.attempt(&format!(
                "busybox ping -c1 -W1 {to} & busybox nc -w1 {to} 80 </dev/null; wait"
            ));
        }
        lab.send_to(guest.ip, 53, lab.id());
        kernel::attempt(&format!(
            "busybox ping -c1 -W1 {0} & busybox nc -w1 {0} 80 </dev/null; wait",
            guest.ip
        ));
        assert_undisturbed(lab, &guest);
    });
}

#[test]
fn an_answer_from_a_host_that_got_no_request_does_not_come_back() {
    lab(|lab| {
        let guest = lab.only("allow: []");
        let server = lab.net.socket((INTERNET, 4000));
        lab.probe(&guest, INTERNET, Udp(4000));
        let mut buffer = [0; 100];
        let (_, peer) = server.recv_from(&mut buffer).unwrap();
        let stranger = lab.net.socket((Ipv4Addr::new(8, 8, 8, 8), 4000));
        stranger.send_to(&frames::mark(lab.id()), peer).unwrap();
        let other_port = lab.net.socket((INTERNET, 4001));
        other_port.send_to(&frames::mark(lab.id()), peer).unwrap();
        assert_undisturbed(lab, &guest);
        server.send_to(b"answer", peer).unwrap();
        let answer = guest
            .receive_packet(Duration::from_secs(5), |_| true)
            .unwrap();
        assert_eq!(&answer.payload[8..], b"answer");
    });
}

#[test]
fn the_host_holds_even_if_a_vms_namespace_no_longer_does() {
    lab(|lab| {
        lab.apply(2, "allow: []");
        let (one, two) = (
            lab.guest(1, Framing::VnetHdr),
            lab.guest(2, Framing::VnetHdr),
        );
        let places = ["sandbox-1", "sandbox-2"].map(|vm| lab.harness.place(vm).netns);
        // As if a VMM had been taken over and had the right to: nobody is there to mend it.
        harness::signal(lab.harness.pid(), rustix::process::Signal::KILL);
        for netns in places {
            kernel::run(&format!(
                "nsenter --net={netns} sh -c 'for c in INPUT OUTPUT FORWARD; do iptables -P $c ACCEPT; iptables -F $c; done'"
            ));
        }
        let open = lab.probe(&one, INTERNET, Udp(53));
        lab.net.sniffer.wait_for(open);
        let mut closed = Vec::new();
        for to in [two.ip, two.gateway, HOST, UPLINK] {
            closed.extend([Tcp(8080), Udp(53), Ping].map(|kind| lab.probe(&one, to, kind)));
        }
        for source in [LAN, HOST, Ipv4Addr::new(10, 0, 0, 1)] {
            let id = lab.id();
            let mut packet = one.packet(id, INTERNET, Udp(53));
            packet.source = source;
            one.send_ip(&packet);
            closed.push(id);
        }
        let unasked = lab.id();
        let stranger = lab.lan.socket((LAN, 0));
        stranger
            .send_to(&frames::mark(unasked), (two.ip, 53))
            .unwrap();
        let arrived = lab.arrived();
        assert!(
            closed.iter().all(|id| !arrived.contains(id)),
            "{closed:?} {arrived:?}"
        );
        assert_eq!(lab.taken_by_the_host(), 0);
        assert_undisturbed(lab, &two);
    });
}
