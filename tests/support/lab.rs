//! A host with a LAN, an internet, a container with a published port, and VMs on it: each in a namespace of its own.
//! Out of scope: the guest's side (`guest_stack`), the daemon (`harness`).
//!
//! ```text
//! guest --TAP-- [VM] --veth-- host --- lan0 192.168.1.1, 192.168.222.1 --- LAN host 192.168.1.10, 192.168.222.10
//!                              |  \--- wan0 203.0.113.1 (default route) --- internet 203.0.113.10, 8.8.8.8, …
//!                              \------ ctr0 172.17.0.1 (8080 is DNATed) --- container 172.17.0.2
//! ```

use std::cell::Cell;
use std::collections::BTreeSet;
use std::net::{Ipv4Addr, UdpSocket};
use std::path::Path;
use std::time::Duration;

use slicectl::host::Error;
use slicectl::host::netns::Netns;
use slicectl::host::tap::Framing;

use super::frames;
use super::guest_stack::{Guest, Kind};
use super::harness::{self, Harness};
use super::kernel::{self, Canaries, Neighbour};
use super::sniffer::Sniffer;

/// The internet host, in the uplink's own network.
pub const INTERNET: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
/// The uplink's address.
pub const UPLINK: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
/// A LAN host.
pub const LAN: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 10);
/// The host's address in the LAN.
pub const HOST: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 1);
/// Another address of the host, with a proxy on it.
pub const PROXY: Ipv4Addr = Ipv4Addr::new(192, 168, 222, 1);
/// A container.
pub const CONTAINER: Ipv4Addr = Ipv4Addr::new(172, 17, 0, 2);

/// A host and its neighbourhood.
pub struct Lab {
    pub harness: Harness,
    pub lan: Place,
    pub net: Place,
    pub container: Place,
    canaries: Canaries,
    next: Cell<u32>,
}

/// A neighbour and what comes in there.
pub struct Place {
    pub neighbour: Neighbour,
    pub sniffer: Sniffer,
    /// Where to reach it from the host.
    address: Ipv4Addr,
}

impl Place {
    /// A neighbour of its own and its sniffer.
    pub fn settle(name: &str, ours: &str, theirs: &str) -> Self {
        let neighbour = Neighbour::join(name, ours, theirs);
        let link = neighbour.ip("link show dev eth0");
        let own = mac(link[0]["address"].as_str().expect("a MAC"));
        let address = theirs.split('/').next().and_then(|ip| ip.parse().ok());
        Self {
            sniffer: Sniffer::listen(&neighbour.path(), own),
            neighbour,
            address: address.expect("an address"),
        }
    }

    /// A datagram socket of that neighbour's that waits 5 s at most.
    pub fn socket(&self, own: (Ipv4Addr, u16)) -> UdpSocket {
        let netns = Netns::open(&self.neighbour.path()).expect("a namespace");
        let fail = |e| Error::io("bind", "a socket", e);
        let socket = netns
            .run_here(|| UdpSocket::bind(own).map_err(fail))
            .expect("a socket");
        socket
            .set_read_timeout(Some(Duration::from_secs(5)))
            .expect("a timeout");
        socket
    }
}

/// Runs a test in a lab whose daemon runs. The canaries must outlive it.
pub fn lab(test: impl FnOnce(&Lab) + Send) {
    lab_with(|_| {}, test);
}

/// The same, with something done before the daemon starts.
pub fn lab_with(before: impl FnOnce(&mut Harness) + Send, test: impl FnOnce(&Lab) + Send) {
    lab_mut(before, |lab| test(lab));
}

/// The same for a test that kills or restarts the daemon.
pub fn lab_mut(before: impl FnOnce(&mut Harness) + Send, test: impl FnOnce(&mut Lab) + Send) {
    harness::empty(|mut harness| {
        let (lan, net, container) = neighbourhood();
        before(&mut harness);
        let canaries = Canaries::release();
        harness.start();
        let mut lab = Lab {
            harness,
            lan,
            net,
            container,
            canaries,
            next: Cell::new(1),
        };
        test(&mut lab);
        lab.canaries.assert_alive();
    });
}

/// The namespaces and links of the picture above.
pub fn neighbourhood() -> (Place, Place, Place) {
    let lan = Place::settle("lan0", "192.168.1.1/24", "192.168.1.10/24");
    let net = Place::settle("wan0", "203.0.113.1/24", "203.0.113.10/24");
    let container = Place::settle("ctr0", "172.17.0.1/16", "172.17.0.2/16");
    kernel::run(
        "ip addr add 192.168.222.1/24 dev lan0
         ip route add default via 203.0.113.10
         iptables -t nat -N DOCKER
         iptables -t nat -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
         iptables -t nat -A DOCKER -p tcp --dport 8080 -j DNAT --to-destination 172.17.0.2:80
         iptables -t nat -A DOCKER -p udp --dport 8080 -j DNAT --to-destination 172.17.0.2:80
         nft 'add table inet witness'
         nft 'add chain inet witness taken { type filter hook input priority -400; }'
         nft 'add rule inet witness taken iifname \"sl*\" counter'",
    );
    lan.neighbour.run("ip addr add 192.168.222.10/24 dev eth0");
    net.neighbour.run(
        "for a in 8.8.8.8 1.1.1.1 169.254.169.254 168.63.129.16 100.100.100.200; do ip addr add $a/32 dev lo; done",
    );
    (lan, net, container)
}

impl Lab {
    /// Applies the group `sandbox` with so many slots and these lines of `network:`; waits until it is Ready.
    pub fn apply(&self, count: u32, network: &str) {
        let network = network.replace('\n', "\n        ");
        self.harness.apply(&harness::slots(count, &network));
    }

    /// Attaches to the TAP of `sandbox-N`.
    pub fn guest(&self, n: u32, framing: Framing) -> Guest {
        self.guest_of(&format!("sandbox-{n}"), framing)
    }

    /// Attaches to the TAP of an isolated VM.
    pub fn guest_of(&self, vm: &str, framing: Framing) -> Guest {
        let found = self.harness.get(&format!("vm {vm}"));
        let network = &found["status"]["network"];
        let text = |key: &str| network[key].as_str().expect(key);
        let ip = text("ip").parse().expect("an address");
        Guest::attach(Path::new(text("netns")), framing, mac(text("mac")), ip)
    }

    /// Applies a group in bridge mode with these lines of `network:`; waits until it is Ready.
    pub fn apply_bridge(&self, name: &str, count: u32, network: &str) {
        self.harness
            .apply(&harness::bridge_group(name, count, network));
    }

    /// [`Harness::port`].
    pub fn port(&self, vm: &str) -> Guest {
        self.harness.port(vm)
    }

    /// One VM with that network, and its guest.
    pub fn only(&self, network: &str) -> Guest {
        self.apply(1, network);
        self.guest(1, Framing::VnetHdr)
    }

    /// A number that no other probe has.
    pub fn id(&self) -> u32 {
        let id = self.next.get();
        self.next.set(id + 1);
        id
    }

    /// Sends a probe; its number.
    pub fn probe(&self, guest: &Guest, to: impl Into<Ipv4Addr>, kind: Kind) -> u32 {
        let id = self.id();
        guest.probe(id, to.into(), kind);
        id
    }

    /// The probes that have arrived anywhere, once everything that was sent before has come to its end: a packet of the
    /// host's own has gone the last link after them.
    pub fn arrived(&self) -> BTreeSet<u32> {
        std::thread::sleep(Duration::from_millis(20));
        let mut arrived = BTreeSet::new();
        for place in [&self.lan, &self.net, &self.container] {
            let id = self.id();
            self.send_to(place.address, 9, id);
            place.sniffer.wait_for(id);
            arrived.extend(place.sniffer.arrived());
        }
        arrived
    }

    /// The host itself sends a numbered datagram.
    pub fn send_to(&self, to: Ipv4Addr, port: u16, id: u32) {
        let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
        socket.send_to(&frames::mark(id), (to, port)).expect("sent");
    }

    /// How many packets of VMs the host itself has taken in so far, whatever for.
    pub fn taken_by_the_host(&self) -> u64 {
        let text = kernel::run("nft list chain inet witness taken");
        let words: Vec<&str> = text.split_whitespace().collect();
        let at = words
            .iter()
            .position(|word| *word == "packets")
            .expect("a counter");
        words[at + 1].parse().expect("a number")
    }

    /// Sends all probes at once; fails unless exactly those that ought to pass arrive.
    #[track_caller]
    pub fn evaluate(&self, guest: &Guest, cases: &[(&str, Kind, Fate)]) {
        let sent: Vec<u32> = cases
            .iter()
            .map(|(to, kind, _)| {
                self.probe(guest, to.parse::<Ipv4Addr>().expect("an address"), *kind)
            })
            .collect();
        let arrived = self.arrived();
        for (id, (to, kind, fate)) in sent.into_iter().zip(cases) {
            let found = match arrived.contains(&id) {
                true => Fate::Passes,
                false => Fate::Ends,
            };
            assert_eq!(found, *fate, "{to} {kind:?}");
        }
    }
}

/// What is to happen to a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It reaches its neighbour.
    Passes,
    /// No neighbour sees it.
    Ends,
}

/// A MAC out of its text.
pub fn mac(text: &str) -> [u8; 6] {
    let bytes: Vec<u8> = text
        .split(':')
        .map(|part| u8::from_str_radix(part, 16).expect("a MAC"))
        .collect();
    bytes.try_into().expect("a MAC")
}
