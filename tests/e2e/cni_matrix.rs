//! Chains of CNI plugins, each with a VM of its own on one daemon, through everything that happens to a host: what the guests notice.
//! Out of scope: a crash before each action (`tests/kernel/cni_stages/crash.rs`); the stage alone, with more kinds of damage
//! (`tests/kernel/cni_stages/keep.rs`, `undo.rs`); QEMU (`tests/e2e/cni_guest.rs`).
//!
//! Each test is an event or several, and ends with the deletion of all groups. After each event the observations are: pid, IP, MAC, the
//! longest time without an answer to `ping`, and `AddressChanged` events; after the deletion: what is left over. All differences are
//! collected, and each test prints how many chains and observations there were.

mod chains;
mod fixture;

use std::sync::Mutex;
use std::time::Duration;

use fixture::{GAP, Identity, cloud_hypervisor, rules, with_each};

use test_support::cni_networks::{CniNetworks, at, pod, with_daemon};
use test_support::harness::{self, pids};
use test_support::kernel::run;
use test_support::managers::Managers;
use test_support::pings::Pings;
use test_support::turns;

#[test]
fn guests_of_every_chain_run_on_through_ten_resyncs() {
    with_each(
        |harness| harness.args = vec!["--resync".into(), "1s".into()],
        |matrix, ()| {
            matrix.survives("ten resyncs", |matrix| {
                matrix.until_checked(10, matrix.checks())
            })
        },
    );
}

#[test]
fn guests_of_every_chain_run_on_when_all_rules_are_flushed() {
    let flushes = [
        "iptables -F; iptables -t nat -F",
        // The daemon may have made a rule again between two commands: a chain that is in use is not removed.
        "iptables -F; iptables -t nat -F; iptables -X || true; iptables -t nat -X || true",
        "nft flush ruleset",
    ];
    with_each(
        |_| (),
        |matrix, ()| {
            for flush in flushes {
                matrix.survives(flush, |matrix| {
                    let before = rules();
                    run(flush);
                    matrix.until_rules(flush, &before);
                });
            }
        },
    );
}

#[test]
fn guests_of_every_chain_run_on_when_the_daemon_is_killed_and_another_runtime_collects() {
    with_each(
        |_| {
            run("mount -t tmpfs t /var/lib; mkdir /var/lib/cni");
            std::fs::create_dir_all(at("cache")).expect("a folder");
            run(&format!(
                "mount --bind {} /var/lib/cni",
                at("cache").display()
            ));
        },
        |matrix, ()| {
            matrix.survives("kill -9 and start", |matrix| {
                matrix.start_again();
            });
            matrix.survives("foreign GC", |matrix| {
                matrix.collect_as_another_runtime();
                matrix.start_again();
            });
        },
    );
}

#[test]
fn after_a_reboot_guests_of_every_chain_have_their_addresses_and_macs() {
    with_each(
        |_| (),
        |matrix, ()| {
            let before = matrix.identities();
            matrix.reboot(&before);
            matrix.until_ready();
            matrix.compare("reboot", &before, |identity| Identity {
                pid: 0,
                ..identity.clone()
            });
            for (vm, identity) in &before {
                let mut pings = Pings::start(&identity.ip);
                pings.steady();
                let gap = pings.longest_gap();
                matrix.note(
                    "reboot",
                    vm,
                    "pings",
                    (gap > GAP).then(|| format!("{gap:.2} s")),
                );
            }
        },
    );
}

#[test]
fn guests_of_every_chain_run_on_when_firewalld_starts_and_reloads() {
    with_each(
        |_| Mutex::new(Managers::unpacked()),
        |matrix, managers| {
            let mut managers = managers.into_inner().expect("not poisoned");
            matrix.survives("firewalld starts", |matrix| {
                managers.firewalld();
                matrix.until_opened();
            });
            for reload in ["--reload", "--complete-reload"] {
                matrix.survives(&format!("firewalld {reload}"), |matrix| {
                    run(&format!("firewall-cmd {reload}"));
                    // Time for the daemon to see what it removes.
                    std::thread::sleep(Duration::from_secs(1));
                    matrix.until_opened();
                });
            }
        },
    );
}

#[test]
fn a_flush_of_all_rules_disconnects_none_of_many_guests_for_long() {
    let _alone = turns::alone();
    with_daemon(|harness, cni_networks| {
        cni_networks.bridge("cni0", "10.77.0.0/24");
        let vmm = format!("hypervisor: {}", cloud_hypervisor(&harness));
        harness.apply(&pod(12).replace("hypervisor: none", &vmm));
        let address = |vm: &String| {
            let ip = harness.get(&format!("vm {vm}"))["status"]["network"]["ip"].clone();
            ip.as_str().expect("an address").to_owned()
        };
        let vms = harness.vms();
        let mut pings: Vec<Pings> = vms.iter().map(|vm| Pings::start(&address(vm))).collect();
        for ping in &mut pings {
            ping.steady();
        }
        let before = (pids(&harness), rules());
        run("nft flush ruleset");
        harness.until("all rules are back", || (rules() == before.1).then_some(()));
        std::thread::sleep(Duration::from_millis(500));
        let gaps: Vec<f64> = pings.into_iter().map(Pings::longest_gap).collect();
        println!("{gaps:.2?}");
        assert!(gaps.iter().all(|gap| *gap <= GAP), "{gaps:.2?}");
        assert_eq!(pids(&harness), before.0);
    });
}

/// The disk of the state directory accepts no write for four seconds, as one that is busy or fails over.
#[test]
fn a_repair_does_not_wait_for_a_state_disk_that_stalls() {
    let _alone = turns::alone();
    harness::empty(|mut harness| {
        let cni_networks = CniNetworks::install();
        cni_networks.configure_daemon(&mut harness);
        let state = harness.state().display().to_string();
        run(&format!(
            "mkdir -p {state}; truncate -s 64M /run/disk; mkfs.ext4 -q /run/disk; mount -o loop /run/disk {state}"
        ));
        harness.start();
        for (name, subnet) in [("bridge", "10.77.0.0/24"), ("ptp", "10.78.0.0/24")] {
            match name {
                "bridge" => cni_networks.bridge("cni0", subnet),
                _ => cni_networks.ptp(subnet),
            }
            let vmm = format!("hypervisor: {}", cloud_hypervisor(&harness));
            harness.apply(&pod(1).replace("hypervisor: none", &vmm));
            let network = harness.get("vm pod-1")["status"]["network"].clone();
            let text = |key: &str| network[key].as_str().expect(key).to_owned();
            let mut pings = Pings::start(&text("ip"));
            pings.steady();
            let before = pids(&harness);
            run(&format!(
                "fsfreeze -f {state}; (sleep 4; fsfreeze -u {state}) >/dev/null 2>&1 & ip link del {}",
                text("host_link")
            ));
            std::thread::sleep(Duration::from_secs(3));
            let gap = pings.longest_gap();
            assert!(gap <= GAP, "{name}: {gap:.2} s");
            std::thread::sleep(Duration::from_secs(2));
            harness.ctl("wait hg/pod --for ready --timeout 30s");
            assert_eq!(pids(&harness), before, "{name}");
            harness.ctl("delete hg pod --wait=30s");
        }
        harness.stop();
        run(&format!("umount {state}"));
    });
}
