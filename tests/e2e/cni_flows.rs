//! What the host's connection tracking knows of a CNI VM goes with the VM: real flows through the host, from both sides.
//! Out of scope: the other modes (`tests/kernel/packets/flood.rs`). A CNI VM has no policy of ours that could tighten.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, UdpSocket};

use slicectl::api::vm::Hypervisor;
use slicectl::host::conntrack;

use test_support::cni_networks::{self, with_daemon};
use test_support::guest_stack::Kind;
use test_support::harness::Harness;
use test_support::kernel::{Neighbour, run};
use test_support::vmm;

/// How the VM `pod-1` is stopped or removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// The count of its group is reduced: in this case `pod-2` is removed instead of `pod-1`.
    ScaledDown,
    GroupDeleted,
    Stopped,
    Killed,
}

fn entries(address: Ipv4Addr) -> usize {
    let flows = conntrack::list_by_addresses(&BTreeSet::from([address]));
    flows.expect("the table").len()
}

fn address(harness: &Harness, vm: &str) -> Ipv4Addr {
    let found = harness.get(&format!("vm {vm}"));
    let text = found["status"]["network"]["ip"].as_str().map(str::to_owned);
    text.expect("an address").parse().expect("an address")
}

/// From the host itself and, through it, from the LAN.
fn flows_to(lan: &Neighbour, vm: Ipv4Addr) {
    let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
    socket.send_to(b"x", (vm, 53)).expect("sent");
    lan.run(&format!(
        "ip route replace {vm}/32 via 192.168.1.1; busybox ping -c1 -W1 {vm} || true"
    ));
}

#[test]
fn the_hosts_entries_of_a_cni_vm_end_when_it_goes_down_or_away_and_those_of_others_stay() {
    for end in [
        End::ScaledDown,
        End::GroupDeleted,
        End::Stopped,
        End::Killed,
    ] {
        with_daemon(|harness, cni_networks| {
            let lan = Neighbour::join("lan0", "192.168.1.1/24", "192.168.1.10/24");
            run("ip route add default via 192.168.1.10");
            cni_networks.bridge("cni0", "10.77.0.0/24");
            let programs = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
            let has_vmm = matches!(end, End::Stopped | End::Killed);
            let vmm = match has_vmm {
                true => {
                    let program = vmm::program(Hypervisor::CloudHypervisor, programs.path());
                    format!(
                        "hypervisor: cloud-hypervisor\n      restart: never\n      cloud_hypervisor_bin: {}\n      kernel_file: {}",
                        program.expect("a program").display(),
                        vmm::tiny_guest().display()
                    )
                }
                false => "hypervisor: none".to_owned(),
            };
            let pod = |count| cni_networks::pod(count).replace("hypervisor: none", &vmm);
            harness.apply(&pod(2));
            let (one, two) = (address(&harness, "pod-1"), address(&harness, "pod-2"));
            let (goes, stays) = match end {
                End::ScaledDown => (two, one),
                _ => (one, two),
            };
            for vm in [one, two] {
                flows_to(&lan, vm);
            }
            if !has_vmm {
                // And from the VM, translated by the plugins.
                let guest =
                    cni_networks::guest(&harness, if goes == one { "pod-1" } else { "pod-2" });
                guest.probe(7, Ipv4Addr::new(192, 168, 1, 10), Kind::Udp(53));
                harness.until("a flow from the VM", || (entries(goes) >= 3).then_some(()));
            }
            let before = (entries(goes), entries(stays));
            println!("{end:?}: {before:?} entries");
            assert!(before.0 >= 2 && before.1 >= 2, "{end:?}: {before:?}");
            match end {
                End::ScaledDown => harness.apply(&pod(1)),
                End::GroupDeleted => drop(harness.ctl("delete hg pod --wait=20s")),
                End::Stopped => drop(harness.ctl("vm stop pod-1 --wait=20s")),
                End::Killed => {
                    let pid = harness.get("vm pod-1")["status"]["vmm"]["pid"].as_u64();
                    let pid = pid.expect("a pid") as u32;
                    test_support::harness::signal(pid, rustix::process::Signal::KILL);
                }
            }
            harness.until(&format!("{end:?}: no entries"), || {
                (entries(goes) == 0).then_some(())
            });
            if end != End::GroupDeleted {
                assert!(
                    entries(stays) >= 2,
                    "{end:?}: another VM has lost its flows"
                );
            }
        });
    }
}
