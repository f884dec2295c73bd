//! A policy that changes under running flows.
//! Out of scope: how fast an edited file is noticed.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use slicectl::host::tap::Framing;

use test_support::frames;
use test_support::guest_stack::{Guest, Kind};
use test_support::lab::{INTERNET, Place, lab};

/// Numbers of one flow in one direction begin here.
const FLOW: u32 = 1 << 24;
const KEPT: Ipv4Addr = INTERNET;
const CUT: Ipv4Addr = Ipv4Addr::new(8, 8, 8, 8);

/// A flow and how much of it was sent each way.
#[derive(Default)]
struct Flow {
    up: AtomicU32,
    down: AtomicU32,
}

/// Numbered datagrams back to whoever asks first, one a millisecond.
fn answer(place: &Place, own: Ipv4Addr, first: u32, sent: &AtomicU32, stop: &AtomicBool) {
    let socket = place.socket((own, 7000));
    let (_, peer) = socket.recv_from(&mut [0; 2000]).expect("a first datagram");
    while !stop.load(Ordering::Relaxed) {
        let number = sent.load(Ordering::Relaxed);
        socket
            .send_to(&frames::mark(first + number), peer)
            .expect("sent");
        sent.store(number + 1, Ordering::Relaxed);
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Numbered datagrams on both flows, one a millisecond.
fn ask(guest: &Guest, flows: &[Flow; 2], stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        for (index, to) in [KEPT, CUT].into_iter().enumerate() {
            let number = flows[index].up.load(Ordering::Relaxed);
            let mut packet = guest.packet(0, to, Kind::Udp(7000));
            packet.payload = frames::udp(
                6000,
                7000,
                &frames::mark(FLOW * (index as u32 + 1) + number),
            );
            guest.send_ip(&packet);
            flows[index].up.store(number + 1, Ordering::Relaxed);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// How many of a flow's numbers there are, and the highest.
fn of(arrived: &BTreeSet<u32>, flow: u32) -> Vec<u32> {
    let numbers = arrived.range(FLOW * flow..FLOW * (flow + 1));
    numbers.map(|id| id - FLOW * flow).collect()
}

#[test]
fn a_live_change_cuts_what_it_forbids_both_ways_and_loses_no_packet_of_what_it_allows() {
    lab(|lab| {
        let guest = lab.only("drop: [\"192.168.1.0/24\"]");
        let flows = <[Flow; 2]>::default();
        let received = Mutex::new(BTreeSet::new());
        let (stop, deaf) = (AtomicBool::new(false), AtomicBool::new(false));
        let at_the_change = std::thread::scope(|scope| {
            let (guest, flows, received, net) = (&guest, &flows, &received, &lab.net);
            let (stop, deaf) = (&stop, &deaf);
            scope.spawn(move || answer(net, KEPT, FLOW * 3, &flows[0].down, stop));
            scope.spawn(move || answer(net, CUT, FLOW * 4, &flows[1].down, stop));
            scope.spawn(move || {
                while !deaf.load(Ordering::Relaxed) {
                    guest.wait(Duration::from_millis(10));
                    while let Some(frame) = guest.read() {
                        received
                            .lock()
                            .expect("received")
                            .extend(frames::marked(&frame));
                    }
                }
            });
            std::thread::sleep(Duration::from_millis(100));
            scope.spawn(move || ask(guest, flows, stop));
            std::thread::sleep(Duration::from_millis(300));
            lab.apply(1, "drop: [\"192.168.1.0/24\", \"8.8.8.8\"]");
            let sent = |index: usize| {
                let flow: &Flow = &flows[index];
                (
                    flow.up.load(Ordering::Relaxed),
                    flow.down.load(Ordering::Relaxed),
                )
            };
            // One of each may be on its way.
            let at_the_change = sent(1);
            std::thread::sleep(Duration::from_millis(300));
            stop.store(true, Ordering::Relaxed);
            std::thread::sleep(Duration::from_millis(200));
            deaf.store(true, Ordering::Relaxed);
            at_the_change
        });
        let (arrived, received) = (lab.net.sniffer.arrived(), received.into_inner().unwrap());
        let all = |sent: &AtomicU32| (0..sent.load(Ordering::Relaxed)).collect::<Vec<_>>();
        assert!(of(&arrived, 1).len() > 100);
        assert_eq!(of(&arrived, 1), all(&flows[0].up), "guest to net, allowed");
        assert_eq!(
            of(&received, 3),
            all(&flows[0].down),
            "net to guest, allowed"
        );
        for (cut, sent, at) in [
            (of(&arrived, 2), &flows[1].up, at_the_change.0),
            (of(&received, 4), &flows[1].down, at_the_change.1),
        ] {
            let last = *cut.last().expect("it flowed before");
            assert!(last <= at, "{last} passed, {at} were sent at the change");
            assert!(sent.load(Ordering::Relaxed) > at + 50, "it went on asking");
        }
    });
}

#[test]
fn an_opening_on_the_host_is_closed_live() {
    lab(|lab| {
        let to = test_support::lab::PROXY;
        let server = std::net::UdpSocket::bind((to, 3128)).unwrap();
        server
            .set_read_timeout(Some(Duration::from_secs(5)))
            .unwrap();
        lab.apply(1, "allow: [\"192.168.222.1:3128\"]");
        let guest = lab.guest(1, Framing::Plain);
        lab.probe(&guest, to, Kind::Udp(3128));
        let (_, peer) = server.recv_from(&mut [0; 100]).expect("it is open");
        lab.apply(1, "allow: [\"203.0.113.0/24\"]");
        let taken = lab.taken_by_the_host();
        for _ in 0..3 {
            lab.probe(&guest, to, Kind::Udp(3128));
        }
        lab.arrived();
        assert_eq!(lab.taken_by_the_host(), taken);
        server.send_to(b"late", peer).unwrap();
        assert!(
            guest
                .receive_packet(Duration::from_millis(100), |_| true)
                .is_none(),
            "the way back is shut, too"
        );
    });
}
