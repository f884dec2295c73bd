//! A real guest under QEMU in a CNI network.
//! Out of scope: slots without VMM (`cni`).

use std::fs;
use std::time::Duration;

use serde_json::json;

use super::guests::{initrd, kernel, pids, wait_for_output};
use test_support::cni_networks::{CniNetworks, at, calico, ipam, left, pod, with_daemon};
use test_support::harness::{self, Harness};
use test_support::kernel::{Neighbour, attempt, run};

/// The host reaches it.
fn answers(harness: &Harness, address: &str) {
    harness.until(&format!("{address} answers"), || {
        let asked = attempt(&format!("busybox ping -c 1 -W 1 {address}"));
        asked.status.success().then_some(())
    });
}

/// As the VMM was told to tell its kernel.
fn command_line(pid: u32) -> String {
    let words = fs::read(format!("/proc/{pid}/cmdline")).expect("a process");
    String::from_utf8_lossy(&words).replace('\0', " ")
}

/// How many times its attachment was re-created.
fn repairs(harness: &Harness) -> u64 {
    let is_one = |event: &&serde_json::Value| {
        let message = event["message"].as_str().unwrap_or_default();
        event["reason"] == "Drift" && message.contains("attach to")
    };
    let events = harness.events("vm/pod-1");
    let counts = events
        .iter()
        .filter(is_one)
        .map(|event| event["count"].as_u64());
    counts.map(Option::unwrap_or_default).sum()
}

/// Seconds between two answers of `ping -D`, at most.
fn longest_gap(pings: &str) -> f64 {
    let answers = pings.lines().filter(|line| line.contains("bytes from"));
    let times = answers.filter_map(|line| {
        line.strip_prefix('[')?
            .split(']')
            .next()?
            .parse::<f64>()
            .ok()
    });
    let times: Vec<f64> = times.collect();
    assert!(times.len() > 10, "{pings}");
    let gaps = times.windows(2).map(|pair| pair[1] - pair[0]);
    gaps.fold(0.0, f64::max)
}

#[test]
fn a_guest_in_a_cni_network_has_what_the_result_has_and_lives_through_every_repair_that_keeps_its_address()
 {
    harness::empty(|mut harness| {
        let cni_networks = CniNetworks::install();
        cni_networks.configure_daemon(&mut harness);
        harness.args = vec!["--resync".into(), "5s".into()];
        harness.start();
        run("ip link add cni0 type bridge; ip addr add 10.77.0.1/24 dev cni0; ip link set cni0 up");
        let beyond = Neighbour::alone("beyond");
        run("ip link add beyond type veth peer name eth0 netns beyond
             ip link set beyond master cni0 up");
        beyond.run("ip addr add 10.77.0.254/24 dev eth0; ip link set eth0 up; ip addr add 198.18.0.1/32 dev lo");
        let mut ipam = ipam("10.77.0.0/24");
        ipam["routes"] =
            json!([{"dst": "0.0.0.0/0"}, {"dst": "198.18.0.0/16", "gw": "10.77.0.254"}]);
        cni_networks.configure(&json!([
            {"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true, "ipam": ipam.clone(),
             "dns": {"nameservers": ["10.77.0.53"]}},
            {"type": "firewall"}
        ]));
        let image = initrd(&harness, "ping gateway 10.77.0.1\nping beyond 198.18.0.1\n");
        harness.apply(&booted(1, &image));
        for words in ["gateway ok", "beyond ok"] {
            wait_for_output(&harness, "pod-1", &format!("GUEST pod-1 {words}"), 1);
        }
        let network = || harness.get("vm pod-1")["status"]["network"].clone();
        let before = network();
        assert_eq!(before["dns"], json!(["10.77.0.53"]));
        let address = before["ip"].as_str().expect("an address");
        answers(&harness, address);
        let pid = pids(&harness)[0];
        let line = command_line(pid);
        for text in [
            format!("ip={address}::10.77.0.1:255.255.255.0:pod-1:"),
            ":10.77.0.53".to_owned(),
            "slice.route=198.18.0.0/16,10.77.0.254".to_owned(),
            format!("mac={}", before["mac"].as_str().expect("a MAC")),
        ] {
            assert!(line.contains(&text), "{text} is not in {line}");
        }

        // What others do is made good, and the guest is the same.
        let same = || {
            let now = network();
            let is_it = |key: &str| now[key] == before[key];
            (is_it("ip") && is_it("mac")).then_some(())
        };
        let veth = || network()["host_link"].as_str().expect("a link").to_owned();
        let damages: [(&str, &dyn Fn() -> String); 4] = [
            ("the veth is deleted", &|| format!("ip link del {}", veth())),
            ("iptables is emptied", &|| {
                "iptables -F; iptables -X; iptables -t nat -F; iptables -t nat -X".to_owned()
            }),
            ("nft flushes everything", &|| "nft flush ruleset".to_owned()),
            ("its route is lost", &|| {
                let netns = network()["netns"].as_str().expect("a namespace").to_owned();
                format!("nsenter --net={netns} ip route flush dev eth0")
            }),
        ];
        for (what, damage) in damages {
            let was = repairs(&harness);
            let pings = format!("{}/pings", harness.run.display());
            run(&format!(
                "timeout 20 ping -D -n -i 0.05 {address} >{pings} 2>&1 &"
            ));
            // A kernel that has just changed its mind about a neighbour does not for a second.
            std::thread::sleep(Duration::from_millis(1500));
            run(&damage());
            harness.until(&format!("{what}: a repair"), || {
                (repairs(&harness) > was).then_some(())
            });
            harness.ctl("wait vm/pod-1 --for ready --timeout 30s");
            answers(&harness, address);
            std::thread::sleep(Duration::from_millis(500));
            let gap = longest_gap(&fs::read_to_string(&pings).expect("pings"));
            assert!(gap < 1.0, "{what}: {gap} s without an answer");
            harness.until(what, same);
            assert_eq!(pids(&harness), [pid], "{what}");
            assert!(run("iptables-save -t nat").contains("MASQUERADE"), "{what}");
        }
        assert_eq!(harness.messages("vm/pod-1", "AddressChanged"), [""; 0]);

        // Only when its address is somebody else's by now it has another one, and the guest with it.
        let mut elsewhere = ipam.clone();
        elsewhere["subnet"] = "10.77.1.0/24".into();
        elsewhere["routes"] = json!([{"dst": "0.0.0.0/0"}]);
        cni_networks.configure(&json!([
            {"type": "bridge", "bridge": "cni1", "isGateway": true, "ipMasq": true, "ipam": elsewhere},
            {"type": "firewall"}
        ]));
        run(&format!("ip link del {}", veth()));
        harness.until("another VMM", || {
            pids(&harness).into_iter().find(|found| *found != pid)
        });
        harness.ctl("wait vm/pod-1 --for ready --timeout 30s");
        let after = network();
        let reported = harness.messages("vm/pod-1", "AddressChanged");
        let now = after["ip"].as_str().expect("an address");
        assert!(
            reported[0].contains(now) && reported[0].contains(address),
            "{reported:?}"
        );
        answers(&harness, now);
        harness.ctl("delete hg pod --wait=30s");
        let beyond = ["beyond", "/run/netns/beyond"];
        let of_ours = |left: &String| !beyond.iter().any(|name| left.contains(name));
        let left: Vec<String> = left(&harness.run).into_iter().filter(of_ours).collect();
        assert_eq!(left, [""; 0]);
    });
}

#[test]
fn a_guest_with_a_gateway_in_no_subnet_and_two_addresses_is_reached_and_reaches() {
    with_daemon(|harness, cni_networks| {
        cni_networks.recorder("calico");
        fs::write(at("bin/calico"), calico(&["10.9.0.2/32", "10.9.1.2/32"])).expect("a plugin");
        cni_networks.configure(&json!([{"type": "calico"}]));
        let image = initrd(&harness, "ping gateway 169.254.1.1\n");
        harness.apply(&booted(1, &image));
        wait_for_output(&harness, "pod-1", "GUEST pod-1 gateway ok", 1);
        let network = harness.get("vm pod-1")["status"]["network"].clone();
        assert_eq!(network["gateway"], "169.254.1.1");
        assert_eq!(network["addresses"], json!(["10.9.1.2/32"]));
        assert_eq!(
            network["routes"],
            json!(["169.254.1.1/32", "0.0.0.0/0 via 169.254.1.1"])
        );
        answers(&harness, "10.9.0.2");
        answers(&harness, "10.9.1.2");
        let line = command_line(pids(&harness)[0]);
        for text in [
            "ip=10.9.0.2:::255.255.255.255:pod-1:",
            "slice.address=10.9.1.2/32 slice.route=169.254.1.1/32 slice.route=0.0.0.0/0,169.254.1.1",
        ] {
            assert!(line.contains(text), "{text} is not in {line}");
        }
    });
}

#[test]
fn two_guests_of_one_point_to_point_network_reach_each_other() {
    with_daemon(|harness, cni_networks| {
        run("sysctl -qw net.ipv4.ip_forward=1");
        cni_networks.ptp("10.78.0.0/24");
        let image = initrd(&harness, "ping one 10.78.0.2\nping two 10.78.0.3\n");
        harness.apply(&booted(2, &image));
        for vm in ["pod-1", "pod-2"] {
            for other in ["one", "two"] {
                wait_for_output(&harness, vm, &format!("GUEST {vm} {other} ok"), 1);
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

#[test]
fn a_guest_on_a_point_to_point_link_lives_through_repairs_that_give_its_gateway_another_mac() {
    harness::empty(|mut harness| {
        let cni_networks = CniNetworks::install();
        cni_networks.configure_daemon(&mut harness);
        harness.args = vec!["--resync".into(), "5s".into()];
        harness.start();
        cni_networks.configure(&json!([
            {"type": "ptp", "ipMasq": true, "ipam": ipam("10.78.0.0/24")},
            {"type": "firewall"}
        ]));
        let image = initrd(&harness, "ping gateway 10.78.0.1\n");
        let qemu = format!(
            "hypervisor: qemu\n      kernel_file: {}\n      initrd_file: {image}",
            kernel()
        );
        harness.apply(&pod(1).replace("hypervisor: none", &qemu));
        wait_for_output(&harness, "pod-1", "GUEST pod-1 gateway ok", 1);
        let network = || harness.get("vm pod-1")["status"]["network"].clone();
        let before = network();
        let address = before["ip"].as_str().expect("an address");
        let pid = pids(&harness)[0];
        let veth = || network()["host_link"].as_str().expect("a link").to_owned();
        for damage in ["ip link del @VETH", "nft flush ruleset"] {
            let was = repairs(&harness);
            let pings = format!("{}/pings", harness.run.display());
            run(&format!(
                "timeout 20 ping -D -n -i 0.05 {address} >{pings} 2>&1 &"
            ));
            // A kernel that has just changed its mind about a neighbour does not for a second.
            std::thread::sleep(Duration::from_millis(1500));
            run(&damage.replace("@VETH", &veth()));
            harness.until("a repair", || (repairs(&harness) > was).then_some(()));
            harness.ctl("wait vm/pod-1 --for ready --timeout 30s");
            answers(&harness, address);
            std::thread::sleep(Duration::from_millis(500));
            let gap = longest_gap(&fs::read_to_string(&pings).expect("pings"));
            assert!(gap < 1.0, "{damage}: {gap} s without an answer");
            let now = network();
            assert_eq!((&now["ip"], &now["mac"]), (&before["ip"], &before["mac"]));
            assert_eq!(pids(&harness), [pid], "{damage}");
        }
        harness.ctl("delete hg pod --wait=30s");
        assert_eq!(left(&harness.run), [""; 0]);
    });
}
