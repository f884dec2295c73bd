//! VMs on demand: added, found by their tags, removed.
//! Out of scope: their names, indices and addresses (`tests/kernel/pipeline.rs`); restarts of the daemon (`on_demand`).

use test_support::harness::{slots, with_daemon};
use test_support::transcript::Runner;

use super::{POLICY, broken, with_vmm};

#[test]
fn vms_are_added_on_demand_found_by_their_tags_and_removed() {
    with_daemon(|harness| {
        let image = harness.dir.path().join("image");
        std::fs::write(&image, vec![5; 1 << 20]).expect("an image");
        let image = format!("\n      image: {}", image.display());
        let group = with_vmm(&harness, &slots(1, POLICY), &image);
        harness.apply(&group.replace("vcpu: 1", "vcpu: 2"));
        let broken = harness.write("broken.yaml", &broken());
        harness.ctl(&format!("apply -f {broken}"));
        let mut runner = Runner::of(&harness);
        let added = runner.run("vm add sandbox");
        let name = added.stdout.split([' ', '/']).nth(1).expect("a name");
        runner.replace(name, "sandbox-<RANDOM>");
        runner.compare("vm-add", &added);
        runner.check(&[
            (
                "vm-add-wait",
                "vm add hostgroup/sandbox --name ci --vcpu 1 --ram 64 --tag job=42 --tag example.com/team= --allow 10.0.0.1:53/udp,10.0.0.2 --drop= --persistent --wait=20s",
            ),
            (
                "vm-add-again",
                "vm add sandbox --name ci --vcpu 1 --ram 64 --tag job=42 --tag example.com/team= --allow 10.0.0.1:53/udp --allow 10.0.0.2 --drop= --persistent -o name",
            ),
            ("vm-add-no-image", "vm add broken --name p --persistent"),
            ("vm-add-other", "vm add sandbox --name ci --vcpu 1"),
            (
                "vm-add-warned",
                "vm add sandbox --name odd --tag job=43 --allow 10.0.0.0/8 --drop 10.1.0.0/16 -o name",
            ),
            ("vm-add-json", "vm add sandbox --name js --wait -o json"),
            ("vm-add-stuck", "vm add broken --name stuck --wait=300ms"),
            ("vm-add-too-much", "vm add sandbox --name big --vcpu 4"),
            ("vm-add-no-group", "vm add sandbx"),
            ("vm-describe", "describe vm/ci"),
            ("vm-describe-plain", "describe vm/js"),
            ("get-vms-selected", "get vms -l job=42"),
            ("get-vms-selected-name", "get vms -l job,job!=42 -o name"),
            ("get-vms-selected-none", "get vms -l job=44"),
            ("get-vms-selected-not", "get vms -l !job -o name"),
            ("get-hg-selected", "get hg -l job=42"),
            ("get-vm-selected", "get vm ci -l job=42"),
            ("get-vms-selected-badly", "get vms -l job=42,-x"),
            ("vm-delete", "vm delete ci vm/odd --wait=20s"),
            ("vm-delete-counted", "vm delete sandbox-1"),
            ("vm-delete-missing", "vm delete ci"),
        ]);
    });
}
