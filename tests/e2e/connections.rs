//! What `vm metrics` reports of a VM's connections, whatever its VMM reports.
//! Out of scope: that the counters are right (`tests/kernel/packets/flood.rs`).

use serde_json::Value;

use slicectl::api::vm::Hypervisor;

use test_support::harness::{Harness, bridge_group, group, signal, with_daemon};
use test_support::vmm;

fn metrics(harness: &Harness, vm: &str) -> Value {
    let text = harness.ctl(&format!("vm metrics {vm} -o json"));
    serde_json::from_str(&text).expect("JSON")
}

#[test]
fn the_kernels_counters_of_a_vm_are_shown_whether_or_not_its_vmm_answers() {
    with_daemon(|harness| {
        let programs = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
        let program = vmm::program(Hypervisor::CloudHypervisor, programs.path());
        let vmm = format!(
            "hypervisor: cloud-hypervisor\n      cloud_hypervisor_bin: {}\n      kernel_file: {}",
            program.expect("a program").display(),
            vmm::tiny_guest().display()
        );
        let (limit, subnet) = ("max_connections: 77", "gateway: 192.168.137.1/24");
        let bridged = format!("bridge: brcon0\n{subnet}\n{limit}");
        let none = bridged.replace("con0", "con1").replace("137", "138");
        for manifest in [
            group("iso", 1, "169.254.100.0/22", limit).replace("hypervisor: none", &vmm),
            group("slot", 1, "169.254.104.0/22", limit),
            bridge_group("web", 1, &bridged).replace("hypervisor: none", &vmm),
            bridge_group("port", 1, &none),
        ] {
            harness.apply(&manifest);
        }
        // VM, whether it has a VMM.
        let table = [
            ("iso-1", true),
            ("slot-1", false),
            ("web-1", true),
            ("port-1", false),
        ];
        for hung in [false, true] {
            for (vm, has_vmm) in table {
                let pid = harness.get(&format!("vm {vm}"))["status"]["vmm"]["pid"].as_u64();
                let pid = pid.map(|pid| pid as u32);
                assert_eq!(pid.is_some(), has_vmm, "{vm}");
                if let Some(pid) = pid.filter(|_| hung) {
                    signal(pid, rustix::process::Signal::STOP);
                }
                let found = metrics(&harness, vm);
                let count = |name: &str| found["counters"][format!("connections.{name}")].as_u64();
                assert_eq!(count("limit"), Some(77), "{vm}, hung {hung}: {found}");
                assert_eq!(
                    count("refused_packets"),
                    Some(0),
                    "{vm}, hung {hung}: {found}"
                );
                assert!(count("entries").is_some(), "{vm}, hung {hung}: {found}");
                let all = found["counters"].as_object().expect("counters").len();
                assert_eq!(all > 3, has_vmm && !hung, "{vm}, hung {hung}: {found}");
                let why = found["vmm_error"].as_str();
                assert_eq!(why.is_some(), has_vmm && hung, "{vm}, hung {hung}: {found}");
                let table = harness.ctl(&format!("vm metrics {vm}"));
                let by = match (has_vmm, hung) {
                    (true, true) => "by the kernel only: cannot read the metrics of its VMM",
                    (true, false) => "by cloud-hypervisor since",
                    (false, _) => "by the kernel: the VM has no VMM",
                };
                assert!(
                    table.contains(by) && table.contains("connections.limit"),
                    "{table}"
                );
                if let Some(pid) = pid.filter(|_| hung) {
                    signal(pid, rustix::process::Signal::CONT);
                }
            }
        }
    });
}
