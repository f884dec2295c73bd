//! Groups of all three modes on one host, with the real CNI plugins.
//! Out of scope: each mode's own tests.

use std::time::Duration;

use test_support::harness::{self, bridge_group, empty, slots};
use test_support::kernel::{Canaries, run};

const PODS: &str = "config:
  network_name: pods
  host_groups:
    - {name: pod, count: 2, hypervisor: none}
";

const CONFLIST: &str = r#"{"cniVersion": "1.0.0", "name": "pods", "plugins": [
    {"type": "bridge", "bridge": "cni-pods", "isGateway": true, "ipMasq": true,
     "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.99.0.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
    {"type": "firewall"}]}"#;

#[test]
fn groups_of_all_modes_exist_side_by_side_through_kill_9_and_leave_a_bare_host() {
    empty(|mut harness| {
        // The plugins' own files, which are not below /run.
        run("mkdir -p /var/lib/cni && mount -t tmpfs tmpfs /var/lib/cni");
        let conf = harness.dir.path().join("net.d");
        std::fs::create_dir(&conf).unwrap();
        std::fs::write(conf.join("10-pods.conflist"), CONFLIST).unwrap();
        harness
            .env
            .push(("SLICE_CNI_CONF_DIR", conf.display().to_string()));
        harness.env.push(("CNI_PATH", "/usr/lib/cni".to_owned()));
        harness.start();
        let canaries = Canaries::release();
        harness.save("a.yaml", &slots(2, "drop: [192.168.1.0/24]"));
        harness.save("b.yaml", &bridge_group("web", 2, "bridge: brvm0"));
        harness.save("c.yaml", PODS);
        harness.until("all six", || {
            let vms = harness.get("vms");
            let vms = vms["items"].as_array()?.iter();
            (vms.filter(|vm| vm["status"]["ready"] == true).count() == 6).then_some(())
        });
        let modes =
            |vm: &str| harness.get(&format!("vm {vm}"))["status"]["network"]["mode"].clone();
        assert_eq!(
            [modes("sandbox-1"), modes("web-1"), modes("pod-1")],
            ["isolated", "bridge", "cni"]
        );
        harness.stays(Duration::from_millis(800), || harness.messages("", "Drift"));
        let world = harness::world_to_the_last_handle();
        harness.kill();
        harness.start();
        harness.ctl("wait hg/sandbox hg/web hg/pod --for ready --timeout 20s");
        harness.stays(Duration::from_secs(1), || harness.messages("", "Drift"));
        assert_eq!(harness::world_to_the_last_handle(), world);
        assert_eq!(harness.messages("", "Drift"), [""; 0]);
        run(&format!("rm {}/*.yaml", harness.conf().display()));
        harness.until("nothing left", || harness.vms().is_empty().then_some(()));
        harness.until("nothing of ours", || {
            let left = run(
                "ip -o link; iptables-save; ls /run/netns; find /var/lib/cni/networks -name '10.99.*'",
            );
            let left: String = left.lines().filter(|line| !line.contains("canary")).collect();
            (!left.contains("slice/") && !left.contains("SLICE-") && !left.contains("slice-") && !left.contains("10.99."))
                .then_some(())
        });
        canaries.assert_alive();
    });
}
