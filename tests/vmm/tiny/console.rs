//! Talking with a guest on its serial port.
//! Out of scope: reading what it prints (`tests/e2e`).

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

use slicectl::api::vm::Hypervisor;

use test_support::harness::{self, Harness, with_daemon};
use test_support::tiny;
use test_support::vmm;

/// One VM of this hypervisor, up.
fn one_vm(harness: &Harness, hypervisor: Hypervisor) -> tempfile::TempDir {
    let programs = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let program = match vmm::program(hypervisor, programs.path()) {
        None => String::new(),
        Some(path) => {
            let key = hypervisor.to_string().replace('-', "_");
            format!("\n      {key}_bin: {}", path.display())
        }
    };
    let guests = tiny::guests(&harness::slots(1, ""), "");
    let guests = guests.replace(
        "hypervisor: qemu",
        &format!("hypervisor: {hypervisor}{program}"),
    );
    let file = harness.write("manifest.yaml", &guests);
    harness.ctl(&format!("apply -f {file}"));
    let guest = tiny::all(harness).into_values().next().expect("a VM");
    harness.until("the guest", || (guest.times_ready() == 1).then_some(()));
    programs
}

fn a_word_is_noticed(hypervisor: Hypervisor) {
    with_daemon(|mut harness| {
        let _program = one_vm(&harness, hypervisor);
        for word in ["hello", "again"] {
            let mut console = Command::new(env!("CARGO_BIN_EXE_slicectl"))
                .args(["console", "sandbox-1"])
                .env("SLICE_SOCKET", harness.run.join("sliced.sock"))
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let mut keys = console.stdin.take().unwrap();
            writeln!(keys, "{word}").unwrap();
            let mut output = BufReader::new(console.stdout.take().unwrap()).lines();
            let received = format!("heard: {word}");
            assert!(output.any(|line| line.unwrap().contains(&received)));
            keys.write_all(&[0x1d]).unwrap();
            assert!(console.wait().unwrap().success());
            // The pipe is the VMM's, not the daemon's.
            harness.kill();
            harness.start();
        }
        harness.ctl("delete hg sandbox --wait=60s");
        harness.refused("console sandbox-1", 1);
    });
}

#[test]
fn a_guest_of_qemu_receives_what_is_typed_also_after_the_daemon_has_died() {
    a_word_is_noticed(Hypervisor::Qemu);
}

#[test]
fn a_guest_of_firecracker_receives_what_is_typed_also_after_the_daemon_has_died() {
    a_word_is_noticed(Hypervisor::Firecracker);
}

#[test]
fn cloud_hypervisor_accepts_no_input_and_reports_it() {
    with_daemon(|harness| {
        let _program = one_vm(&harness, Hypervisor::CloudHypervisor);
        let why = harness.refused("console sandbox-1", 1);
        assert!(
            why.contains("hypervisor cloud-hypervisor does not support it"),
            "{why}"
        );
        harness.ctl("delete hg sandbox --wait=60s");
    });
}
