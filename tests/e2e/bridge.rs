//! Bridge groups from the manifest on: what is derived, changed live, adopted after a death, found in the way, and left over.
//! Out of scope: drift (`bridge_drift`), packets; a crash after every single action (in process).

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use test_support::frames;
use test_support::harness::{self, Harness, bridge_group, empty, with_daemon};
use test_support::kernel::{Canaries, ip, run};

const WEB: &str = "bridge: brvm0\ntap_prefix: vmtap\ngateway: 192.168.137.1/24";

/// A reload's bound.
const BOUND: Duration = Duration::from_secs(1);

fn web(count: u32, more: &str) -> String {
    bridge_group("web", count, &format!("{WEB}\n{more}"))
}

/// uid and address of each VM.
fn identities(harness: &Harness) -> Vec<[Value; 2]> {
    let list = harness.get("vms");
    let items = list["items"].as_array().expect("items").iter();
    let pair = |vm: &Value| {
        let address = vm["status"]["network"]["ip"].clone();
        [vm["metadata"]["uid"].clone(), address]
    };
    items.map(pair).collect()
}

fn ready(harness: &Harness, count: u32) -> Option<()> {
    let status = &harness.get("hg web")["status"];
    (status["ready"] == true && status["ready_count"] == count && status["current"] == count)
        .then_some(())
}

#[test]
fn the_shortest_group_derives_bridge_taps_gateway_and_addresses() {
    with_daemon(|harness| {
        harness
            .apply("config: {hypervisor: none, host_groups: [{name: web, count: 2, network: {}}]}");
        let network = harness.get("vm web-2")["status"]["network"].clone();
        let text = |key: &str| network[key].as_str().expect(key).to_owned();
        let (bridge, tap, gateway) = (text("host_link"), text("tap"), text("gateway"));
        assert_eq!(
            (&network["mode"], &network["netns"]),
            (&json!("bridge"), &Value::Null)
        );
        assert_eq!(network["prefix_len"], 24);
        assert!(
            gateway.starts_with("192.168.") && gateway.ends_with(".1"),
            "{gateway}"
        );
        let found = ip(&format!("addr show dev {bridge}"));
        assert_eq!(found[0]["linkinfo"]["info_kind"], "bridge");
        assert_eq!(found[0]["addr_info"][0]["local"], gateway.as_str());
        let port = &ip(&format!("link show dev {tap}"))[0];
        assert_eq!(port["master"], bridge.as_str());
        assert!(port["ifalias"].as_str().unwrap().contains("/vm/web-2@"));
        assert_ne!(
            text("ip"),
            harness.get("vm web-1")["status"]["network"]["ip"]
        );
        assert_eq!(harness.get("lease web-2")["ip"], network["ip"]);
    });
}

#[test]
fn a_group_that_comes_again_while_its_bridge_goes_is_attached_to_the_next_one() {
    with_daemon(|harness| {
        for round in 0..12 {
            harness.apply(&web(6, ""));
            for vm in harness.get("vms")["items"].as_array().expect("items") {
                let tap = vm["status"]["network"]["tap"].as_str().expect("a TAP");
                let port = &ip(&format!("link show dev {tap}"))[0];
                assert_eq!(port["master"], "brvm0", "round {round}: {port}");
            }
            harness.ctl("delete hg web --wait=10s");
        }
        let drift = harness
            .events("")
            .into_iter()
            .filter(|event| event["reason"] == "Drift");
        assert_eq!(drift.count(), 0, "nothing had to be repaired");
    });
}

#[test]
fn automatic_addresses_are_none_that_a_neighbour_on_the_users_bridge_has() {
    with_daemon(|harness| {
        run("ip link add brvm0 type bridge forward_delay 0 \
             && ip addr add 192.168.137.1/24 dev brvm0 && ip link set brvm0 up \
             && ip netns add machine \
             && ip link add nic0 type veth peer name eth0 netns machine \
             && ip link set nic0 master brvm0 up && ip -n machine link set eth0 up");
        for address in ["192.168.137.2", "192.168.137.4"] {
            run(&format!(
                "ip -n machine addr add {address}/24 dev eth0 && ping -q -c 1 -w 10 {address}"
            ));
        }
        harness.apply(&web(3, ""));
        let given: Vec<Value> = identities(&harness).into_iter().map(|[_, ip]| ip).collect();
        assert_eq!(given, ["192.168.137.3", "192.168.137.5", "192.168.137.6"]);
        run("ip netns del machine");
    });
}

#[test]
fn only_the_vm_whose_address_left_the_list_is_replaced() {
    with_daemon(|harness| {
        let listed = |second: &str| {
            web(
                3,
                &format!("addresses: [192.168.137.2/24, {second}/24, 192.168.137.4/24]"),
            )
        };
        harness.save("web.yaml", &listed("192.168.137.3"));
        harness.until("the group", || ready(&harness, 3));
        let before = identities(&harness);
        harness.save("web.yaml", &listed("192.168.137.33"));
        let after = harness.until("the new address", || {
            let now = identities(&harness);
            (now.get(1)?[1] == "192.168.137.33" && ready(&harness, 3).is_some()).then_some(now)
        });
        assert_eq!((&after[0], &after[2]), (&before[0], &before[2]));
        assert_ne!(after[1][0], before[1][0], "another VM");
        harness.save(
            "web.yaml",
            &listed("192.168.137.33").replace("count: 3", "count: 1"),
        );
        harness.within(BOUND, "one VM", || ready(&harness, 1));
        harness.until("one TAP", || {
            (run("ip -o link show master brvm0").lines().count() == 1).then_some(())
        });
        harness.save("web.yaml", &listed("192.168.137.33"));
        harness.within(BOUND, "three VMs", || ready(&harness, 3));
        let grown = identities(&harness);
        assert_eq!(grown[0], before[0]);
        assert_eq!(grown[1][1], "192.168.137.33");
    });
}

#[test]
fn a_replaced_vm_on_a_bridge_keeps_its_address() {
    with_daemon(|harness| {
        harness.save("web.yaml", &web(2, ""));
        harness.until("the group", || ready(&harness, 2));
        let before = identities(&harness);
        harness.save("web.yaml", &web(2, "").replace("vcpu: 1", "vcpu: 2"));
        let after = harness.until("replaced", || {
            let now = identities(&harness);
            let other = now.iter().zip(&before).all(|(new, old)| new[0] != old[0]);
            (other && ready(&harness, 2).is_some()).then_some(now)
        });
        for (old, new) in before.iter().zip(&after) {
            assert_eq!(old[1], new[1]);
        }
        assert_eq!(run("ip -o link show master brvm0").lines().count(), 2);
    });
}

#[test]
fn kill_9_and_a_restart_take_no_action_on_a_bridge_and_lose_no_packet() {
    with_daemon(|mut harness| {
        harness.save("web.yaml", &web(4, ""));
        harness.until("the group", || ready(&harness, 4));
        let guest = harness.port("web-1");
        let before = (harness::world_to_the_last_handle(), identities(&harness));
        let host = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
        let (sent, stop) = (AtomicU32::new(0), AtomicBool::new(false));
        let received = Mutex::new(0..0);
        std::thread::scope(|scope| {
            let (guest, sent, stop, received) = (&guest, &sent, &stop, &received);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let number = sent.load(Ordering::Relaxed);
                    host.send_to(&frames::mark(number), (guest.ip, 9))
                        .expect("sent");
                    let came = guest.receive_packet(Duration::from_secs(1), |seen| {
                        frames::marked(&seen.payload) == Some(number)
                    });
                    if came.is_some() {
                        received.lock().unwrap().end = number + 1;
                    }
                    sent.store(number + 1, Ordering::Relaxed);
                    std::thread::sleep(Duration::from_millis(1));
                }
            });
            harness.kill();
            harness.start();
            harness.ctl("wait hg/web --for ready --timeout 20s");
            harness.stays(Duration::from_secs(1), || harness.messages("", "Drift"));
            stop.store(true, Ordering::Relaxed);
        });
        let sent = sent.into_inner();
        assert!(sent > 200, "only {sent}");
        assert_eq!(received.into_inner().unwrap(), 0..sent);
        assert_eq!(harness.messages("", "Drift"), [""; 0]);
        assert_eq!(
            (harness::world_to_the_last_handle(), identities(&harness)),
            before
        );
    });
}

#[test]
fn a_lost_database_is_created_again_from_the_vms_on_a_bridge() {
    with_daemon(|mut harness| {
        harness.save("web.yaml", &web(3, "isolate_ports: true"));
        harness.until("the group", || ready(&harness, 3));
        let before = (harness::world_to_the_last_handle(), identities(&harness));
        harness.kill();
        std::fs::remove_dir_all(harness.state()).unwrap();
        harness.start();
        harness.ctl("wait hg/web --for ready --timeout 20s");
        harness.stays(Duration::from_secs(1), || harness.messages("", "Drift"));
        assert_eq!(harness.messages("", "Drift"), [""; 0]);
        assert_eq!(
            (harness::world_to_the_last_handle(), identities(&harness)),
            before
        );
    });
}

#[test]
fn after_a_reboot_the_bridge_comes_back_with_the_same_leases() {
    let shelf = tempfile::tempdir().unwrap();
    let before = Mutex::new(Value::Null);
    let leases = |harness: &Harness| -> Value {
        let leases = harness.get("leases");
        let items = leases["items"].as_array().unwrap().iter();
        items.map(|lease| lease["ip"].clone()).collect()
    };
    with_daemon(|mut harness| {
        harness.apply(&web(3, ""));
        harness.apply(&web(2, ""));
        *before.lock().unwrap() = leases(&harness);
        harness.stop();
        run(&format!(
            "cp -a {}/. {}",
            harness.state().display(),
            shelf.path().display()
        ));
    });
    empty(|mut harness| {
        run(&format!(
            "cp -a {}/. {}",
            shelf.path().display(),
            harness.state().display()
        ));
        harness.start();
        harness.until("the ports", || {
            let ports = run("ip -o link show type tun").lines().count();
            (ports == 2 && ready(&harness, 2).is_some()).then_some(())
        });
        assert_eq!(leases(&harness), *before.lock().unwrap());
        assert_eq!(run("ip -o link show master brvm0").lines().count(), 2);
    });
}

#[test]
fn a_strangers_link_under_a_taps_name_is_a_conflict_with_a_remedy_and_heals_when_it_goes() {
    with_daemon(|harness| {
        run("ip link add vmtap1 type bridge; ip link set vmtap1 alias mine");
        let theirs = run("ip -o link show vmtap1");
        let file = harness.write("web.yaml", &web(2, ""));
        harness.ctl(&format!("apply -f {file}"));
        let reported = harness.until("the conflict", || {
            let vm = harness.get("vm web-2");
            let conditions = vm["status"]["conditions"].as_array()?.iter();
            let mut found = conditions.filter(|c| c["reason"] == "Conflict" && c["type"] == "Net");
            Some(found.next()?["message"].as_str()?.to_owned())
        });
        assert!(
            reported.contains("vmtap1") && reported.contains("ip link set vmtap1"),
            "{reported}"
        );
        harness.ctl("wait vm/web-1 --for ready --timeout 10s");
        assert_eq!(run("ip -o link show vmtap1"), theirs);
        run("ip link set vmtap1 name theirs");
        harness.ctl("wait hg/web --for ready --timeout 20s");
        harness.ctl("delete hg web --wait=20s");
        assert!(run("ip -o link show theirs").contains("alias mine"));
    });
}

#[test]
fn a_port_that_nothing_references_goes_with_its_neighbour_entry_and_the_others_stay() {
    with_daemon(|mut harness| {
        let canaries = Canaries::release();
        run(
            "ip link add br0 type bridge forward_delay 0; ip link set br0 up; ip addr add 192.168.137.1/24 dev br0",
        );
        let group = |count| {
            web(count, "addresses: [192.168.137.2/24, 192.168.137.3/24]").replace("brvm0", "br0")
        };
        harness.apply(&group(2));
        let kept = identities(&harness)[0].clone();
        let lost = harness.get("vm web-2")["metadata"]["uid"]
            .as_str()
            .unwrap()
            .to_owned();
        harness.kill();
        // Neither the store, nor its journal, nor a record knows of the second any more.
        std::fs::remove_dir_all(harness.state()).unwrap();
        std::fs::remove_file(harness.run.join("state.journal")).unwrap();
        std::fs::remove_file(harness.run.join("vm").join(&lost).join("record.json")).unwrap();
        harness.start();
        harness.until("it is gone", || {
            (!run("ip -o link").contains(&lost)).then_some(())
        });
        harness.apply(&group(2));
        let now = identities(&harness);
        assert_eq!(now[0], kept);
        assert_ne!(now[1][0], lost.as_str());
        harness.ctl("delete hg web --wait=20s");
        assert_eq!(
            run("ip neigh show dev br0 nud permanent; ip -o link show master br0"),
            ""
        );
        canaries.assert_alive();
    });
}

#[test]
fn two_daemons_with_a_bridge_each_let_each_other_be() {
    with_daemon(|harness| {
        harness.apply(&web(2, ""));
        let mut other = Harness::new("other");
        other.start();
        let amber = "bridge: brvm1\ntap_prefix: amber\ngateway: 192.168.138.1/24";
        other.apply(&bridge_group("amber", 2, amber));
        let together = harness::world_to_the_last_handle();
        other.ctl("gc");
        harness.ctl("gc");
        harness.stays(Duration::from_millis(1200), || {
            (harness.messages("", "Drift"), other.messages("", "Drift"))
        });
        assert_eq!(harness::world_to_the_last_handle(), together);
        // The name of a bridge of another daemon's: used, not taken.
        other.apply(&bridge_group(
            "guest",
            1,
            &WEB.replace("vmtap", "other")
                .replace("/24", "/24\naddresses: [192.168.137.77/24]"),
        ));
        other.ctl("delete hg guest amber --wait=20s");
        other.stop();
        harness.stays(Duration::from_millis(800), || harness.messages("", "Drift"));
        assert_eq!(harness.messages("", "Drift"), [""; 0]);
        harness.ctl("wait hg/web --for ready --timeout 5s");
        assert_eq!(run("ip -o link show master brvm0").lines().count(), 2);
    });
}
