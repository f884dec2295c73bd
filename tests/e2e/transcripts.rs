//! The output of `slicectl` for what the real daemon answers: every verb, format and exit status. The golden files are in
//! `tests/goldens/cli`; `BLESS=1` rewrites them.
//! Out of scope: usage errors, `new` and other commands that ask no daemon (`tests/pure/cli.rs`).

mod changes;
mod manifests;
mod networks;
mod objects;
mod on_demand;
mod requests;
mod streams;

use slicectl::api::vm::Hypervisor;

use test_support::harness::{Harness, group, slots};
use test_support::{kernel, vmm};

/// A policy that allows and drops.
const POLICY: &str = "allow: ['192.168.1.7:443/tcp']\n        drop: [192.168.1.0/24]";

/// `sandbox` with two VMs of a double of Cloud Hypervisor.
fn sandbox(harness: &Harness) -> String {
    with_vmm(harness, &slots(2, POLICY), "")
}

/// `lab` with one slot without VMM.
fn lab() -> String {
    group("lab", 1, "169.254.104.0/24", "")
}

/// The same group, with a double of Cloud Hypervisor and a guest of a few lines in each VM; `lines` are more of the group's own.
fn with_vmm(harness: &Harness, slots: &str, lines: &str) -> String {
    let program = vmm::program(Hypervisor::CloudHypervisor, harness.dir.path());
    let group = format!(
        "hypervisor: cloud-hypervisor\n      cloud_hypervisor_bin: {}\n      kernel_file: {}\n      agent: none\n      dns_servers: [1.1.1.1]{lines}",
        program.expect("a program").display(),
        vmm::tiny_guest().display()
    );
    slots.replace("hypervisor: none", &group)
}

/// A VM of `broken` never becomes ready: its kernel does not exist.
fn broken() -> String {
    let missing = "hypervisor: qemu\n      kernel_file: /nowhere/vmlinuz\n      agent: none";
    group("broken", 1, "169.254.105.0/24", "").replace("hypervisor: none", missing)
}

/// The VM of `stuck` is not stopped for ten minutes: its guest ignores the power button.
fn stuck(harness: &Harness) -> String {
    let initrd = harness.write("deaf", "tiny=deaf");
    let lines = format!("\n      initrd_file: {initrd}\n      graceful_shutdown: 10m");
    with_vmm(harness, &group("stuck", 1, "169.254.106.0/24", ""), &lines)
}

/// Replaces the VM's link on the host by one that is not ours, and waits for the condition.
fn break_link(harness: &Harness, vm: &str) {
    let link = harness.place(vm).link;
    kernel::run(&format!(
        "ip link del {link}; ip link add {link} type bridge"
    ));
    harness.until("the conflict", || {
        let vm = harness.get(&format!("vm {vm}"));
        let mut conditions = vm["status"]["conditions"].as_array()?.iter();
        conditions
            .find(|found| found["reason"] == "Conflict")
            .map(drop)
    });
}

/// Until the guest of that VM has printed its address.
fn guest_is_up(harness: &Harness, vm: &str) {
    harness.until("the guest", || {
        let log = harness.try_ctl(&format!("logs {vm}")).stdout;
        String::from_utf8_lossy(&log)
            .contains("ready")
            .then_some(())
    });
}
