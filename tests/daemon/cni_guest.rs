//! A real guest under QEMU in a CNI network.
//! Out of scope: slots without VMM (`cni`).

use std::fs;

use serde_json::json;

use super::guests::{initrd, kernel, pids, says};
use crate::support::house::House;
use crate::support::kernel::{Neighbour, attempt, run};
use crate::support::plugs::{inhabited, ipam, left, pod};

/// The host reaches it.
fn answers(house: &House, address: &str) {
    house.until(&format!("{address} answers"), || {
        let asked = attempt(&format!("busybox ping -c 1 -W 1 {address}"));
        asked.status.success().then_some(())
    });
}

/// As the VMM was told to tell its kernel.
fn command_line(pid: u32) -> String {
    let words = fs::read(format!("/proc/{pid}/cmdline")).expect("a process");
    String::from_utf8_lossy(&words).replace('\0', " ")
}

#[test]
fn a_guest_in_a_cni_network_has_the_results_address_routes_and_name_server_and_keeps_its_address() {
    inhabited(|house, plugs| {
        run("ip link add cni0 type bridge; ip addr add 10.77.0.1/24 dev cni0; ip link set cni0 up");
        let beyond = Neighbour::alone("beyond");
        run("ip link add beyond type veth peer name eth0 netns beyond
             ip link set beyond master cni0 up");
        beyond.run("ip addr add 10.77.0.254/24 dev eth0; ip link set eth0 up; ip addr add 198.18.0.1/32 dev lo");
        let mut ipam = ipam("10.77.0.0/24");
        ipam["routes"] =
            json!([{"dst": "0.0.0.0/0"}, {"dst": "198.18.0.0/16", "gw": "10.77.0.254"}]);
        plugs.configure(&json!([
            {"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true, "ipam": ipam,
             "dns": {"nameservers": ["10.77.0.53"]}},
            {"type": "firewall"}
        ]));
        let image = initrd(&house, "ping gateway 10.77.0.1\nping beyond 198.18.0.1\n");
        house.apply(&booted(1, &image));
        for words in ["gateway ok", "beyond ok"] {
            says(&house, "pod-1", &format!("GUEST pod-1 {words}"), 1);
        }
        let network = || house.get("vm pod-1")["status"]["network"].clone();
        let before = network();
        assert_eq!(before["dns"], json!(["10.77.0.53"]));
        let address = before["ip"].as_str().expect("an address");
        answers(&house, address);
        let pid = pids(&house)[0];
        let line = command_line(pid);
        for word in [
            format!("ip={address}::10.77.0.1:255.255.255.0:pod-1:"),
            ":10.77.0.53".to_owned(),
            "slice.route=198.18.0.0/16,10.77.0.254".to_owned(),
            format!("mac={}", before["mac"].as_str().expect("a MAC")),
        ] {
            assert!(line.contains(&word), "{word} is not in {line}");
        }

        // Attached anew it has the same address and MAC, and goes on.
        run(&format!(
            "ip link del {}",
            before["host_link"].as_str().expect("a link")
        ));
        house.until("another link", || {
            let link = network()["host_link"].clone();
            (link.is_string() && link != before["host_link"]).then_some(())
        });
        house.ctl("wait vm/pod-1 --for ready --timeout 30s");
        let after = network();
        assert_eq!(
            (&after["ip"], &after["mac"]),
            (&before["ip"], &before["mac"])
        );
        assert_eq!(pids(&house), [pid]);
        answers(&house, after["ip"].as_str().expect("an address"));
        house.ctl("delete hg pod --wait=30s");
        let beyond = ["beyond", "/run/netns/beyond"];
        let of_ours = |left: &String| !beyond.iter().any(|name| left.contains(name));
        let left: Vec<String> = left(&house.run).into_iter().filter(of_ours).collect();
        assert_eq!(left, [""; 0]);
    });
}

/// What Calico does, in one plugin: a /32, and a gateway that lies in no subnet; of which the result tells nothing.
const CALICO: &str = r#"#!/bin/sh
set -e
inside() { nsenter --net="$CNI_NETNS" "$@"; }
case "$CNI_COMMAND" in
VERSION) echo '{"cniVersion":"1.0.0","supportedVersions":["0.4.0","1.0.0"]}' ;;
DEL) ip link del cali0 2>/dev/null || true ;;
ADD)
    ip link add cali0 type veth peer name eth0 netns "$CNI_NETNS"
    ip link set cali0 up
    ip addr add 169.254.1.1/32 dev cali0
    ip route add 10.9.0.2/32 dev cali0
    ip route add 10.9.1.2/32 dev cali0
    inside ip addr add 10.9.0.2/32 dev eth0
    inside ip addr add 10.9.1.2/32 dev eth0
    inside ip link set eth0 up
    inside ip route add 169.254.1.1 dev eth0 scope link
    inside ip route add default via 169.254.1.1 dev eth0
    echo '{"cniVersion": "1.0.0", "interfaces": [{"name": "cali0"}], "ips": [{"address": "10.9.0.2/32"}, {"address": "10.9.1.2/32"}]}'
    ;;
esac
"#;

#[test]
fn a_guest_with_a_gateway_in_no_subnet_and_two_addresses_is_reached_and_reaches() {
    inhabited(|house, plugs| {
        plugs.recorder("calico");
        fs::write(crate::support::plugs::at("bin/calico"), CALICO).expect("a plugin");
        plugs.configure(&json!([{"type": "calico"}]));
        let image = initrd(&house, "ping gateway 169.254.1.1\n");
        house.apply(&booted(1, &image));
        says(&house, "pod-1", "GUEST pod-1 gateway ok", 1);
        let network = house.get("vm pod-1")["status"]["network"].clone();
        assert_eq!(network["gateway"], "169.254.1.1");
        assert_eq!(network["addresses"], json!(["10.9.1.2/32"]));
        assert_eq!(
            network["routes"],
            json!(["169.254.1.1/32", "0.0.0.0/0 via 169.254.1.1"])
        );
        answers(&house, "10.9.0.2");
        answers(&house, "10.9.1.2");
        let line = command_line(pids(&house)[0]);
        for word in [
            "ip=10.9.0.2:::255.255.255.255:pod-1:",
            "slice.address=10.9.1.2/32 slice.route=169.254.1.1/32 slice.route=0.0.0.0/0,169.254.1.1",
        ] {
            assert!(line.contains(word), "{word} is not in {line}");
        }
    });
}

#[test]
fn two_guests_of_one_point_to_point_network_reach_each_other() {
    inhabited(|house, plugs| {
        run("sysctl -qw net.ipv4.ip_forward=1");
        plugs.ptp("10.78.0.0/24");
        let image = initrd(&house, "ping one 10.78.0.2\nping two 10.78.0.3\n");
        house.apply(&booted(2, &image));
        for vm in ["pod-1", "pod-2"] {
            for other in ["one", "two"] {
                says(&house, vm, &format!("GUEST {vm} {other} ok"), 1);
            }
        }
    });
}

fn booted(count: u32, image: &str) -> String {
    let qemu = format!(
        "hypervisor: qemu\n      kernel_file: {}\n      initrd_file: {image}",
        kernel()
    );
    pod(count).replace("hypervisor: none", &qemu)
}
