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
fn a_guest_in_a_cni_network_has_the_results_address_routes_and_name_server_and_follows_a_new_one() {
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
        let qemu = format!(
            "hypervisor: qemu\n      kernel_file: {}\n      initrd_file: {image}",
            kernel()
        );
        house.apply(&pod(1).replace("hypervisor: none", &qemu));
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

        // Attached anew it has another address, and the guest with it.
        run(&format!(
            "ip link del {}",
            before["host_link"].as_str().expect("a link")
        ));
        house.until("another VMM", || {
            pids(&house).into_iter().find(|found| *found != pid)
        });
        house.ctl("wait vm/pod-1 --for ready --timeout 30s");
        let after = network();
        assert_ne!(
            (&after["ip"], &after["mac"]),
            (&before["ip"], &before["mac"])
        );
        answers(&house, after["ip"].as_str().expect("an address"));
        house.ctl("delete hg pod --wait=30s");
        let beyond = ["beyond", "/run/netns/beyond"];
        let of_ours = |left: &String| !beyond.iter().any(|name| left.contains(name));
        let left: Vec<String> = left(&house.run).into_iter().filter(of_ours).collect();
        assert_eq!(left, [""; 0]);
    });
}
