//! Two daemons on one host: isolated VMs of either reach no VM of the other, whatever its mode, and none of these reaches them.
//! Out of scope: the VMs of one daemon (`modes`).

use std::fs;
use std::net::Ipv4Addr;

use serde_json::json;
use slicectl::host::tap::Framing;

use crate::packets::modes::{
    assert_reaches_the_internet, assert_shut_off, assert_spared, probe_all,
};
use test_support::cni_networks::{self, CniNetworks};
use test_support::guest_stack::{Guest, Kind};
use test_support::harness::{self, Harness};
use test_support::kernel;
use test_support::lab::{Lab, lab_with, mac};

/// A daemon's VMs are in subnets of its own.
#[derive(Clone, Copy)]
struct Side {
    /// Before the names of its groups.
    name: &'static str,
    range: &'static str,
    gateway: &'static str,
    users: &'static str,
    network: &'static str,
}

const ONE: Side = Side {
    name: "a",
    range: "169.254.100.0/22",
    gateway: "192.168.137.1/24",
    users: "192.168.7",
    network: "neta",
};

const TWO: Side = Side {
    name: "b",
    range: "169.254.104.0/22",
    gateway: "192.168.138.1/24",
    users: "192.168.8",
    network: "netb",
};

/// What is said to a guest, and how it is known that nothing of it came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Isolated,
    Bridge,
    /// On a bridge of the administrator's, with the host or another machine for its gateway.
    UsersBridge,
    Cni,
}

struct Vm {
    mode: Mode,
    guest: Guest,
}

/// Bridges of the administrator, one for each daemon, and CNI networks.
fn install(one: &mut Harness) {
    let cni_networks = CniNetworks::install();
    cni_networks.configure_daemon(one);
    for (side, subnet) in [(ONE, "10.77.0.0/24"), (TWO, "10.78.0.0/24")] {
        kernel::run(&format!(
            "ip link add ubr{0} type bridge forward_delay 0 mcast_snooping 0
             ip addr add {1}.1/24 dev ubr{0}
             ip link set ubr{0} up",
            side.name, side.users
        ));
        let config = json!({"cniVersion": "1.0.0", "name": side.network, "plugins": [
            {"type": "bridge", "bridge": format!("cni{}", side.name), "isGateway": true, "ipMasq": true,
             "ipam": cni_networks::ipam(subnet)},
            {"type": "firewall"}
        ]});
        let path = cni_networks::at("conf").join(format!("{}.conflist", side.network));
        fs::write(path, config.to_string()).unwrap();
    }
}

fn second(one: &Harness) -> Harness {
    let mut two = Harness::new("slice2");
    two.env = one.env.clone();
    for (key, value) in &mut two.env {
        if *key == "SLICE_CNI_CACHE_DIR" {
            value.push('2');
        }
    }
    two
}

/// A VM of each mode.
fn make(harness: &Harness, side: Side) {
    let Side {
        name,
        range,
        gateway,
        users,
        network,
    } = side;
    harness.apply(&harness::group(&format!("{name}iso"), 1, range, ""));
    let bridge = format!("bridge: mbr{name}\ngateway: {gateway}");
    harness.apply(&harness::bridge_group(&format!("{name}web"), 1, &bridge));
    let users = format!("bridge: ubr{name}\ngateway: {users}.1/24");
    harness.apply(&harness::bridge_group(&format!("{name}usr"), 1, &users));
    let pod = cni_networks::pod(1).replace("name: pod", &format!("name: {name}pod"));
    harness.apply(&pod.replace(
        &format!("network_name: {}", cni_networks::NETWORK),
        &format!("network_name: {network}"),
    ));
}

fn join(harness: &Harness, side: Side) -> Vec<Vm> {
    let isolated = harness.get(&format!("vm {}iso-1", side.name));
    let network = &isolated["status"]["network"];
    let text = |key: &str| network[key].as_str().expect(key);
    let address: Ipv4Addr = text("ip").parse().unwrap();
    let isolated = Guest::attach(
        text("netns").as_ref(),
        Framing::VnetHdr,
        mac(text("mac")),
        address,
    );
    let name = |group: &str| format!("{}{group}-1", side.name);
    let vm = |mode, guest| Vm { mode, guest };
    vec![
        vm(Mode::Isolated, isolated),
        vm(Mode::Bridge, harness.port(&name("web"))),
        vm(Mode::UsersBridge, harness.port(&name("usr"))),
        vm(Mode::Cni, cni_networks::guest(harness, &name("pod"))),
    ]
}

/// Every ordered pair of VMs of different daemons, one of which is isolated. How many probes were sent.
fn assert_apart(lab: &Lab, ones: &[Vm], twos: &[Vm], when: &str) -> usize {
    eprintln!("--- {when}");
    let mut sent = 0;
    for (from_all, to_all) in [(ones, twos), (twos, ones)] {
        for from in from_all {
            assert_reaches_the_internet(lab, &from.guest);
            for to in to_all {
                if from.mode != Mode::Isolated && to.mode != Mode::Isolated {
                    continue;
                }
                let ids = probe_all(lab, &from.guest, &[to.guest.ip, to.guest.gateway]);
                sent += ids.len();
                eprintln!("{when}: {:?} to {:?}", from.mode, to.mode);
                match to.mode {
                    Mode::Isolated => assert_shut_off(lab, &to.guest, &ids),
                    Mode::Bridge | Mode::UsersBridge | Mode::Cni => {
                        assert_spared(lab, &to.guest, &ids);
                    }
                }
            }
        }
    }
    // The probes do arrive where nothing forbids it.
    let (from, to) = (&ones[1].guest, &twos[1].guest);
    let id = lab.probe(from, to.ip, Kind::Udp(53));
    let came = to.receive(std::time::Duration::from_secs(5), |frame| {
        test_support::frames::marked(frame) == Some(id)
    });
    assert!(came.is_some(), "bridge VMs of two daemons reach each other");
    sent
}

/// Nobody changes the rules any more: one who undid the other's repair would do so within a second. (A network that a daemon gives the
/// host is news to the other, once.)
fn assert_at_rest(harnesses: [&Harness; 2]) {
    let look = || {
        let drifts = harnesses.map(|harness| harness.messages("", "Drift"));
        (
            kernel::run("iptables-save | grep -v '^#' | sed 's/ .[0-9:]*.$//'"),
            drifts,
        )
    };
    let mut before = look();
    harnesses[0].until("both daemons are at rest", || {
        std::thread::sleep(std::time::Duration::from_millis(1500));
        let after = look();
        let same = after == before;
        before = after;
        same.then_some(())
    });
    for reported in before.1 {
        assert!(
            reported.len() <= 3,
            "the daemons undo each other's rules: {reported:?}"
        );
    }
}

#[test]
fn no_isolated_vm_reaches_a_vm_of_another_daemon_nor_the_reverse_whoever_came_first_and_after_restarts()
 {
    for first in ["one", "two"] {
        lab_with(install, |lab| {
            let one = &lab.harness;
            let mut two = second(one);
            two.start();
            match first {
                "one" => {
                    make(one, ONE);
                    make(&two, TWO);
                }
                _ => {
                    make(&two, TWO);
                    make(one, ONE);
                }
            }
            let (ones, twos) = (join(one, ONE), join(&two, TWO));
            let apart =
                |when: &str| assert_apart(lab, &ones, &twos, &format!("{first} first, {when}"));
            assert_eq!(apart("both run"), 14 * 6);
            assert_at_rest([one, &two]);
            two.restart();
            apart("the second was restarted");
            assert_at_rest([one, &two]);
            harness::signal(one.pid(), rustix::process::Signal::KILL);
            two.kill();
            apart("both were killed");
            two.start();
            apart("the second came back");
        });
    }
}

#[test]
fn a_bridge_that_another_daemon_makes_later_is_closed_from_its_first_moment() {
    lab_with(install, |lab| {
        let one = &lab.harness;
        one.apply(&harness::group("aiso", 1, ONE.range, ""));
        let group = |link: &str| kernel::ip(&format!("link show dev {link}"))[0]["group"].clone();
        assert_eq!(group(&one.place("aiso-1").link), "1936457729");
        // Nobody is there to notice.
        harness::signal(one.pid(), rustix::process::Signal::KILL);
        let mut two = second(one);
        two.start();
        two.apply(&harness::bridge_group(
            "bweb",
            1,
            &format!("bridge: mbrb\ngateway: {}", TWO.gateway),
        ));
        assert_eq!(group("mbrb"), "1936457730");
        let web = two.port("bweb-1");
        assert_eq!(
            group(
                two.get("vm bweb-1")["status"]["network"]["tap"]
                    .as_str()
                    .unwrap()
            ),
            "1936457731"
        );
        // What somebody takes away comes back.
        kernel::run("ip link set mbrb group 0");
        two.until("the group comes back", || {
            (group("mbrb") == "1936457730").then_some(())
        });
        drop((web, two));
    });
}
