//! Who reaches whom over a bridge of ours, on a host whose FORWARD drops.
//! Out of scope: which rules there are.

use std::net::{Ipv4Addr, UdpSocket};
use std::time::{Duration, Instant};

use slicectl::host::Error;
use slicectl::host::netns::Netns;
use slicectl::reconcile::firewall::bridge::AllowedFrames;
use slicectl::store::HostRequirements;

use crate::bridge_stages::host::{GATEWAY, Host, requirements};
use test_support::frames::{self, Seen, ethernet};
use test_support::guest_stack::{Guest, Kind};
use test_support::kernel::{self, Canaries, Neighbour};

const SOON: Duration = Duration::from_millis(50);
const PATIENCE: Duration = Duration::from_secs(5);

/// A datagram with a mark.
fn send_to(socket: &UdpSocket, to: Ipv4Addr, id: u32) {
    socket.send_to(&frames::mark(id), (to, 9)).unwrap();
}

fn socket_in(place: &Neighbour) -> UdpSocket {
    let netns = Netns::open(&place.path()).unwrap();
    let bind = || UdpSocket::bind("0.0.0.0:0").map_err(|e| Error::io("bind", "a socket", e));
    netns.run_here(bind).unwrap()
}

/// From one guest to another, whose MAC it asks for; how long that took.
fn reach(from: &Guest, to: &Guest, id: u32) -> Duration {
    let begin = Instant::now();
    let is_requested = |frame: &[u8]| frame.get(12..14) == Some(&[8, 6]);
    // A TAP's queue starts a moment after somebody attaches: a guest asks again.
    let asked = (0..200).any(|_| {
        from.send(&frames::who_has(from.mac, from.ip, to.ip));
        to.receive(Duration::from_millis(1), is_requested).is_some()
    });
    assert!(asked, "nobody was asked");
    let packet = from.packet(id, to.ip, Kind::Ping);
    from.send(&ethernet(to.mac, from.mac, 0x0800, &packet.bytes()));
    let received = to.receive_packet(PATIENCE, |seen| seen.payload.ends_with(&frames::mark(id)));
    assert!(received.is_some(), "the ping never came");
    begin.elapsed()
}

#[test]
fn guests_reach_each_other_within_50_ms_of_their_taps_coming_up() {
    kernel::private(async {
        let canaries = Canaries::release();
        let mut host = Host::new().await;
        host.converge_host_network(requirements("brvm0", &["192.168.137.1/24"]))
            .await;
        let (one, two) = (host.desired_vm(2, "brvm0"), host.desired_vm(3, "brvm0"));
        let mut slowest = Duration::ZERO;
        for id in 0..10 {
            for desired_vm in [&one, &two] {
                host.port(desired_vm).await;
                host.converge_firewall(desired_vm).await;
            }
            let begin = Instant::now();
            let (a, b) = (host.attach(&one), host.attach(&two));
            reach(&a, &b, id);
            slowest = slowest.max(begin.elapsed());
            reach(&b, &a, id + 100);
            drop((a, b));
            for desired_vm in [&one, &two] {
                host.tear_down(desired_vm).await;
            }
        }
        eprintln!("the slowest of 10: {slowest:?}");
        assert!(slowest < SOON, "{slowest:?}");
        canaries.assert_alive();
    });
}

#[test]
fn what_lets_guests_reach_each_other_where_forward_drops_is_our_chain() {
    kernel::private(async {
        let mut host = Host::new().await;
        host.converge_host_network(requirements("brvm0", &["192.168.137.1/24"]))
            .await;
        let (one, two) = (host.desired_vm(2, "brvm0"), host.desired_vm(3, "brvm0"));
        let (a, b) = (host.vm(&one).await, host.vm(&two).await);
        reach(&a, &b, 1);
        let ping = |id| {
            let packet = a.packet(id, b.ip, Kind::Udp(9));
            a.send(&ethernet(b.mac, a.mac, 0x0800, &packet.bytes()));
        };
        kernel::run(&format!("iptables -F {}", host.instance.chain("BR")));
        ping(2);
        host.converge_host_network(requirements("brvm0", &["192.168.137.1/24"]))
            .await;
        ping(3);
        let first = b.receive_packet(PATIENCE, |seen| received_marks(seen).is_some());
        assert_eq!(first.as_ref().and_then(received_marks), Some(3));
    });
}

#[test]
fn the_host_reaches_a_guest_that_has_never_sent_a_packet_and_is_reached() {
    kernel::private(async {
        let mut host = Host::new().await;
        host.converge_host_network(requirements("brvm0", &["192.168.137.1/24"]))
            .await;
        let guest = host.vm(&host.desired_vm(2, "brvm0")).await;
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        // What comes before the queue starts is dropped.
        let received = (0..200).any(|_| {
            send_to(&socket, guest.ip, 7);
            let patience = Duration::from_millis(1);
            guest
                .receive_packet(patience, |seen| seen.destination == guest.ip)
                .is_some()
        });
        assert!(received);
        assert_eq!(
            kernel::run("ip neigh show dev brvm0 nud permanent")
                .lines()
                .count(),
            1
        );
        assert!(guest.resolve(GATEWAY).is_some());
    });
}

#[test]
fn a_lan_machine_with_a_route_reaches_a_guest_and_an_isolated_vm_does_not() {
    kernel::private(async {
        let mut host = Host::new().await;
        let lan = Neighbour::join("lan0", "192.168.1.1/24", "192.168.1.10/24");
        let isolated_link = format!("{}isolated", host.instance.link_prefix());
        let isolated = Neighbour::join(&isolated_link, "169.254.100.1/30", "169.254.100.2/30");
        let mut desired = requirements("brvm0", &["192.168.137.1/24"]);
        desired.pools.insert("169.254.100.0/22".parse().unwrap());
        host.converge_host_network(desired).await;
        let guest = host.vm(&host.desired_vm(2, "brvm0")).await;
        assert!((0..50).any(|_| guest.resolve(GATEWAY).is_some()));
        let gateway_mac = guest.resolve(GATEWAY).unwrap();

        send_to(&socket_in(&isolated), guest.ip, 1);
        send_to(&socket_in(&lan), guest.ip, 2);
        let first = guest.receive_packet(PATIENCE, |seen| received_marks(seen).is_some());
        let first = first.as_ref().and_then(received_marks);
        assert_eq!(first, Some(2), "the isolated VM's was sent first");

        // And the other way: to the LAN, with an address of the host; to an isolated VM never.
        let listen = |place: &Neighbour, at: &str| {
            let netns = Netns::open(&place.path()).unwrap();
            let at = at.to_owned();
            let bind = move || UdpSocket::bind(at).map_err(|e| Error::io("bind", "a socket", e));
            let socket = netns.run_here(bind).unwrap();
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            socket
        };
        let at_lan = listen(&lan, "192.168.1.10:99");
        let at_isolated = listen(&isolated, "169.254.100.2:99");
        at_isolated.set_nonblocking(true).unwrap();
        for (id, to) in [
            (3, Ipv4Addr::new(169, 254, 100, 2)),
            (4, Ipv4Addr::new(192, 168, 1, 10)),
        ] {
            let packet = guest.packet(id, to, Kind::Udp(99));
            guest.send(&ethernet(gateway_mac, guest.mac, 0x0800, &packet.bytes()));
        }
        let mut buffer = [0; 100];
        let (length, from) = at_lan.recv_from(&mut buffer).unwrap();
        assert_eq!(frames::marked(&buffer[..length]), Some(4));
        assert_eq!(from.ip(), Ipv4Addr::new(192, 168, 1, 1), "masqueraded");
        assert!(
            at_isolated.recv_from(&mut buffer).is_err(),
            "a guest reached an isolated VM"
        );
        assert!(
            received_once(&guest, &lan),
            "the LAN machine's datagram came"
        );
    });
}

fn received_marks(seen: &Seen) -> Option<u32> {
    frames::marked(seen.payload.get(8..)?)
}

/// Whether a datagram of the LAN's comes to the guest.
fn received_once(guest: &Guest, lan: &Neighbour) -> bool {
    let socket = socket_in(lan);
    send_to(&socket, guest.ip, 5);
    guest
        .receive_packet(PATIENCE, |seen| received_marks(seen) == Some(5))
        .is_some()
}

#[test]
fn a_filter_taken_away_shuts_the_forwarding_switch_and_a_toggle_does_not() {
    kernel::private(async {
        let mut host = Host::new().await;
        host.converge_host_network(requirements("brvm0", &["192.168.137.1/24"]))
            .await;
        let (mut one, two) = (host.desired_vm(2, "brvm0"), host.desired_vm(3, "brvm0"));
        let (a, b) = (host.vm(&one).await, host.vm(&two).await);
        reach(&a, &b, 1);
        let spoof = |id| {
            let packet = frames::Ip::new(
                Ipv4Addr::new(192, 168, 137, 99),
                b.ip,
                frames::UDP,
                frames::udp(9, 9, &frames::mark(id)),
            );
            a.send(&ethernet(b.mac, a.mac, 0x0800, &packet.bytes()));
        };
        let own = |id| {
            let packet = a.packet(id, b.ip, Kind::Udp(9));
            a.send(&ethernet(b.mac, a.mac, 0x0800, &packet.bytes()));
        };
        let first = |ids: [u32; 2]| {
            let received = b.receive_packet(PATIENCE, |seen| {
                received_marks(seen).is_some_and(|id| ids.contains(&id))
            });
            received.as_ref().and_then(received_marks)
        };
        spoof(2);
        own(3);
        assert_eq!(first([2, 3]), Some(3));

        one.pass = AllowedFrames::Any;
        one.slot().antispoof = false;
        assert_eq!(
            host.port(&one).await,
            ["set isolation, learning and flooding of the port"]
        );
        assert_eq!(
            host.converge_firewall(&one).await,
            ["remove the filter from the TAP"]
        );
        spoof(4);
        own(5);
        assert_eq!(first([4, 5]), Some(4));

        let one = host.desired_vm(2, "brvm0");
        host.port(&one).await;
        let taken = host.converge_firewall(&one).await;
        assert_eq!(taken.len(), 3, "{taken:?}");
        assert_eq!(
            (taken[0].as_str(), taken[2].as_str()),
            (
                "turn forwarding off (TAP down)",
                "turn forwarding on (TAP up)"
            )
        );
        kernel::run("tc qdisc del dev vmtap2 clsact");
        assert_eq!(host.converge_firewall(&one).await, taken);
        assert_eq!(host.port(&one).await, Vec::<String>::new());
        assert!((0..200).any(|_| {
            spoof(6);
            own(7);
            b.receive_packet(Duration::from_millis(5), is_udp_marked(7))
                .is_some()
        }));
        while let Some(frame) = b.read() {
            let seen = frames::read(&frame);
            assert_ne!(seen.as_ref().and_then(received_marks), Some(6));
        }
    });
}

fn is_udp_marked(id: u32) -> impl Fn(&Seen) -> bool {
    move |seen| received_marks(seen) == Some(id)
}

#[test]
fn isolated_ports_do_not_reach_each_other_but_do_the_host() {
    kernel::private(async {
        let mut host = Host::new().await;
        host.converge_host_network(requirements("brvm0", &["192.168.137.1/24"]))
            .await;
        let mut wishes = [host.desired_vm(2, "brvm0"), host.desired_vm(3, "brvm0")];
        for desired_vm in &mut wishes {
            desired_vm.slot().isolated = true;
        }
        let (a, b) = (host.vm(&wishes[0]).await, host.vm(&wishes[1]).await);
        assert!((0..50).any(|_| a.resolve(GATEWAY).is_some()));
        assert!((0..50).any(|_| b.resolve(GATEWAY).is_some()));
        assert_eq!(a.resolve(b.ip), None);
        let from_a = |frame: &[u8]| frame.get(6..12) == Some(&a.mac);
        assert_eq!(b.receive(Duration::from_millis(50), from_a), None);
        for desired_vm in &mut wishes {
            desired_vm.slot().isolated = false;
            let taken = host.port(desired_vm).await;
            assert_eq!(taken, ["set isolation, learning and flooding of the port"]);
        }
        reach(&a, &b, 9);
    });
}

#[test]
fn nothing_of_a_vm_is_left_and_the_footing_goes_with_the_last() {
    kernel::private(async {
        let canaries = Canaries::release();
        let look = || {
            let links = kernel::run("ip -o link show | cut -d: -f2 | sort");
            let rest = kernel::run(
                // A table with nothing in it but the kernel's own chains stays, as after every iptables command.
                "iptables-save | grep -v '^#' | sed 's/\\[.*//' | awk '
                     /^\\*/ { table = \"\"; kept = 0 }
                     !/^\\*|^COMMIT|^:[A-Z]+ ACCEPT/ { kept = 1 }
                     { table = table $0 \"\\n\" }
                     /^COMMIT/ && kept { printf \"%s\", table }'
                 ip neigh show nud permanent; ls /run/slice/vm 2>/dev/null || true",
            );
            links + &rest
        };
        let mut host = Host::new().await;
        let before = look();
        host.converge_host_network(requirements("brvm0", &["192.168.137.1/24"]))
            .await;
        let bare = look();
        let wishes = [host.desired_vm(2, "brvm0"), host.desired_vm(3, "brvm0")];
        for desired_vm in &wishes {
            drop(host.vm(desired_vm).await);
        }
        for desired_vm in &wishes {
            host.tear_down(desired_vm).await;
            assert_eq!(host.tear_down(desired_vm).await, Vec::<String>::new());
        }
        assert_eq!(look(), bare);
        host.converge_host_network(HostRequirements::default())
            .await;
        assert_eq!(look(), before);
        canaries.assert_alive();
    });
}
