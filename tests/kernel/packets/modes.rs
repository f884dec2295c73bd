//! All three modes on one host: who does not reach whom.
//! Out of scope: what a guest of one mode reaches (`truth`, `bridge`).

use std::cell::RefCell;
use std::net::Ipv4Addr;
use std::time::Duration;

use slicectl::host::tap::Framing;

use test_support::cni_networks::{self, CniNetworks};
use test_support::frames::{self, ICMP};
use test_support::guest_stack::{Guest, Kind};
use test_support::kernel;
use test_support::lab::{INTERNET, Lab, lab_with};

const PATIENCE: Duration = Duration::from_secs(5);

/// What may come in at a guest whatever is sent to it: nothing of these numbers, once something sent later has come.
#[track_caller]
pub fn assert_received_none_of(guest: &Guest, ids: &[u32], later: impl Fn(&frames::Seen) -> bool) {
    let received = RefCell::new(Vec::new());
    let ended = guest.receive(PATIENCE, |frame| {
        let marked = frames::marked(frame).filter(|id| ids.contains(id));
        received.borrow_mut().extend(marked);
        frames::read(frame).is_some_and(|seen| later(&seen))
    });
    assert!(ended.is_some(), "what was sent later never came");
    assert_eq!(received.into_inner(), [0; 0]);
}

/// Every kind of probe to every one of these addresses.
pub fn probe_all(lab: &Lab, from: &Guest, to: &[Ipv4Addr]) -> Vec<u32> {
    let kinds = [Kind::Ping, Kind::Udp(53), Kind::Tcp(22)];
    let all = to.iter().flat_map(|to| kinds.map(|kind| (*to, kind)));
    all.map(|(to, kind)| lab.probe(from, to, kind)).collect()
}

/// Nothing of these comes in at a guest that the host reaches.
#[track_caller]
pub fn assert_spared(lab: &Lab, guest: &Guest, ids: &[u32]) {
    std::thread::sleep(Duration::from_millis(20));
    let id = lab.id();
    lab.send_to(guest.ip, 9, id);
    assert_received_none_of(guest, ids, |seen| frames::marked(&seen.payload) == Some(id));
}

/// Nothing of these comes in at a guest that nobody reaches; its own gateway answers it.
#[track_caller]
pub fn assert_shut_off(lab: &Lab, guest: &Guest, ids: &[u32]) {
    std::thread::sleep(Duration::from_millis(20));
    lab.probe(guest, guest.gateway, Kind::Ping);
    let answer = |seen: &frames::Seen| (seen.source, seen.protocol) == (guest.gateway, ICMP);
    assert_received_none_of(guest, ids, answer);
}

#[track_caller]
pub fn assert_reaches_the_internet(lab: &Lab, guest: &Guest) {
    let id = lab.probe(guest, INTERNET, Kind::Udp(53));
    lab.net.sniffer.wait_for(id);
}

#[test]
fn isolated_guests_reach_no_guest_of_another_mode_and_none_reaches_them() {
    let install = |harness: &mut _| {
        let cni_networks = CniNetworks::install();
        cni_networks.configure_daemon(harness);
        cni_networks.bridge("cni0", "10.77.0.0/24");
    };
    lab_with(install, |lab| {
        // The last one comes into a host on which the others are closed off already.
        for last in ["pod", "sandbox", "web"] {
            let mut order = vec!["pod", "sandbox", "web"];
            order.retain(|group| *group != last);
            for group in order.into_iter().chain([last]) {
                match group {
                    "pod" => lab.harness.apply(&cni_networks::pod(1)),
                    "sandbox" => lab.apply(2, ""),
                    _ => lab.apply_bridge("web", 1, "bridge: brvm0\ngateway: 192.168.137.1/24"),
                }
            }
            let isolated = lab.guest(1, Framing::VnetHdr);
            let beside = lab.guest(2, Framing::VnetHdr);
            let (cni, bridged) = (
                cni_networks::guest(&lab.harness, "pod-1"),
                lab.port("web-1"),
            );
            for guest in [&isolated, &beside, &cni, &bridged] {
                assert_reaches_the_internet(lab, guest);
            }

            let others = [cni.ip, cni.gateway, bridged.ip, bridged.gateway, beside.ip];
            let taken = lab.taken_by_the_host();
            let ids = probe_all(lab, &isolated, &others);
            assert_spared(lab, &cni, &ids);
            assert_spared(lab, &bridged, &ids);
            assert_shut_off(lab, &beside, &ids);
            assert_eq!(lab.taken_by_the_host(), taken, "it reached the host");

            for guest in [&cni, &bridged] {
                let ids = probe_all(lab, guest, &[isolated.ip, isolated.gateway]);
                assert_shut_off(lab, &isolated, &ids);
            }
            drop((isolated, beside, cni, bridged));
            for group in ["pod", "sandbox", "web"] {
                lab.harness.ctl(&format!("delete hg {group} --wait=20s"));
            }
            // The host's own rules go after the last group.
            lab.harness.until("nothing is left", || {
                (cni_networks::left(&lab.harness.run) == gone_but_neighbours()).then_some(())
            });
        }
    });
}

/// What the lab itself has of veths and namespaces.
fn gone_but_neighbours() -> Vec<String> {
    let output =
        kernel::run("ip -o link show type veth; find /run/netns -mindepth 1 | grep -v /canary");
    output.lines().map(str::to_owned).collect()
}
