//! VMs of CNI networks on a host with the FORWARD policy DROP (docker, ufw): VMs, groups and doctor report what happens to packets.
//! Out of scope: chains of others at the same hook (`foreign_chains`); legacy iptables, which doctor alone covers.

use std::time::Duration;

use serde_json::{Value, json};

use test_support::cni_networks;
use test_support::frames::{self, ICMP};
use test_support::guest_stack::Guest;
use test_support::guest_stack::Kind::Ping;
use test_support::kernel::run;
use test_support::lab::{INTERNET, Lab, lab_with};

const BOUND: Duration = Duration::from_secs(2);
const PODS: &str = "config:\n  network_name: pods\n  host_groups:\n    - {name: pod, count: 1, hypervisor: none}\n";
const SUBNET: &str = "10.99.0.0/24";

/// Further plugins of the chain, what others do to FORWARD, and whether a VM's packets are dropped.
const CASES: [(&[&str], &str, bool); 8] = [
    (&[], "iptables -P FORWARD ACCEPT", false),
    (&[], "iptables -P FORWARD DROP", true),
    (&["firewall"], "iptables -P FORWARD DROP", false),
    (
        &[],
        "iptables -P FORWARD DROP; iptables -A FORWARD -i cni-pods -j ACCEPT; iptables -A FORWARD -o cni-pods -j ACCEPT",
        false,
    ),
    (
        &[],
        "iptables -P FORWARD DROP; iptables -A FORWARD -i another0 -j ACCEPT; iptables -A FORWARD -s 172.17.0.0/16 -i ctr0 -j ACCEPT",
        true,
    ),
    (
        &[],
        "iptables -P FORWARD DROP; iptables -A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
        true,
    ),
    (
        &[],
        "iptables -P FORWARD DROP; iptables -A FORWARD -s 10.99.0.0/24 -j ACCEPT; iptables -A FORWARD -d 10.99.0.0/24 -j ACCEPT",
        false,
    ),
    (
        &[],
        "iptables -P FORWARD DROP; iptables -N OPEN; iptables -A OPEN -i cni-pods -j ACCEPT; iptables -A OPEN -o cni-pods -j ACCEPT
         iptables -A FORWARD -j OPEN",
        false,
    ),
];

fn configure(conf: &std::path::Path, further: &[&str]) {
    let bridge = json!({
        "type": "bridge", "bridge": "cni-pods", "isGateway": true, "ipMasq": true,
        "ipam": {"type": "host-local", "ranges": [[{"subnet": SUBNET}]], "routes": [{"dst": "0.0.0.0/0"}]},
    });
    let further = further.iter().map(|name| json!({"type": name}));
    let plugins: Vec<Value> = std::iter::once(bridge).chain(further).collect();
    let list = json!({"cniVersion": "1.0.0", "name": "pods", "plugins": plugins});
    std::fs::write(conf.join("10-pods.conflist"), list.to_string()).unwrap();
}

fn warned(lab: &Lab, object: &str) -> String {
    let found = lab.harness.get(object);
    let conditions = found["status"]["conditions"].as_array().unwrap();
    let of_host = conditions.iter().find(|c| c["type"] == "HostNetwork");
    of_host.map_or(String::new(), |c| c["message"].as_str().unwrap().to_owned())
}

fn answered(lab: &Lab, guest: &Guest) -> bool {
    let id = lab.probe(guest, INTERNET, Ping);
    let answer = guest.receive_packet(Duration::from_millis(300), |seen| {
        let is_reply = seen.protocol == ICMP && seen.payload.first() == Some(&0);
        is_reply && seen.source == INTERNET && frames::marked(&seen.payload) == Some(id)
    });
    answer.is_some()
}

fn doctor(lab: &Lab) -> Option<Value> {
    let text = lab.harness.try_ctl("doctor -o json").stdout;
    let checks: Value = serde_json::from_slice(&text).unwrap();
    let checks = checks.as_array().or(checks["items"].as_array()).unwrap();
    let is_it = |check: &&Value| {
        check["found"]
            .as_str()
            .unwrap()
            .contains("accepts forwarded packets")
    };
    checks.iter().find(is_it).cloned()
}

#[test]
fn a_vm_whose_network_does_not_open_forward_is_reported_exactly_where_its_packets_are_dropped() {
    let conf = tempfile::tempdir().unwrap();
    let before = |harness: &mut test_support::harness::Harness| {
        run("mkdir -p /var/lib/cni && mount -t tmpfs tmpfs /var/lib/cni");
        configure(conf.path(), &[]);
        let dir = conf.path().display().to_string();
        harness.env.push(("SLICE_CNI_CONF_DIR", dir));
        harness.env.push(("CNI_PATH", "/usr/lib/cni".to_owned()));
    };
    lab_with(before, |lab| {
        for (further, commands, dropped) in CASES {
            let case = format!("{further:?}: {commands}");
            configure(conf.path(), further);
            run("iptables-save -t filter >/run/before");
            run(commands);
            lab.harness.save("pods.yaml", PODS);
            lab.harness.until(&case, || {
                (lab.harness.get("vm pod-1")["status"]["ready"] == true).then_some(())
            });
            let guest = cni_networks::guest(&lab.harness, "pod-1");
            assert_eq!(answered(lab, &guest), !dropped, "{case}");
            for object in ["vm pod-1", "hg pod"] {
                lab.harness.within(BOUND, &case, || {
                    let message = warned(lab, object);
                    (message.contains("ip filter FORWARD, which is not ours, drops packets from")
                        == dropped
                        && message.is_empty() != dropped)
                        .then_some(())
                });
            }
            let closed = further.is_empty() && commands.contains("DROP");
            assert_eq!(doctor(lab).is_some(), closed, "{case}");
            // Opened, nothing is left to report.
            run("iptables -P FORWARD ACCEPT");
            lab.harness.within(BOUND, &case, || {
                warned(lab, "vm pod-1").is_empty().then_some(())
            });
            assert!(answered(lab, &guest), "{case}");
            drop(guest);
            std::fs::write(
                lab.harness.conf().join("pods.yaml"),
                "config: {host_groups: []}\n",
            )
            .unwrap();
            lab.harness.ctl("wait hg/pod --for deleted --timeout 30s");
            run("iptables -F FORWARD; iptables-restore </run/before");
        }
    });
}
