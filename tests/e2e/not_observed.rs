//! What is answered of a VM between the start of the daemon and the end of the VM's first observation: nothing that an earlier process
//! has observed is repeated as if it were known.
//! Out of scope: a reboot (`recovery`), what hangs later (`hanging`).

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use serde_json::Value;

use test_support::harness::{self, Harness, group, slots};
use test_support::kernel::run;

const STAGES: [&str; 4] = ["Lease", "Net", "Firewall", "Vmm"];

/// An `iptables-restore` that waits in the namespaces in which it is asked for anything, as long as the file `hang` exists.
fn hanging_restore(harness: &mut Harness) -> std::path::PathBuf {
    let dir = harness.dir.path().join("bin");
    fs::create_dir(&dir).expect("a directory");
    let real = run("command -v iptables-restore");
    let script = format!(
        "#!/bin/sh
         if [ \"$1\" != --version ] && [ -e {0}/hang ] && [ \"$(readlink /proc/$$/ns/net)\" != \"$(cat {0}/home)\" ]; then exec sleep 600; fi
         exec {1} \"$@\"\n",
        dir.display(),
        real.trim()
    );
    let program = dir.join("iptables-restore");
    fs::write(&program, script).expect("written");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("a mode");
    fs::write(dir.join("home"), run("readlink /proc/self/ns/net")).expect("written");
    let path = std::env::var("PATH").expect("PATH");
    harness
        .env
        .push(("PATH", format!("{}:{path}", dir.display())));
    dir
}

fn condition(object: &Value, kind: &str) -> Value {
    let all = object["status"]["conditions"].as_array();
    let found = all.and_then(|all| all.iter().find(|c| c["type"] == kind));
    found.cloned().unwrap_or_default()
}

/// The status that each stage and `Ready` have.
fn statuses(vm: &Value) -> Vec<String> {
    let kinds = STAGES.iter().chain([&"Ready"]);
    let status = |kind: &&str| {
        condition(vm, kind)["status"]
            .as_str()
            .unwrap_or("absent")
            .to_owned()
    };
    kinds.map(status).collect()
}

#[test]
fn what_an_earlier_process_observed_is_unknown_until_this_one_has_observed_it() {
    harness::empty(|mut harness| {
        let dir = hanging_restore(&mut harness);
        harness.args = ["--filter-deadline", "4s"].map(str::to_owned).to_vec();
        harness.start();
        let both = format!(
            "{}---\n{}",
            slots(2, ""),
            group("other", 1, "169.254.200.0/22", "")
        );
        harness.apply(&both);
        harness.ctl("wait hg/sandbox hg/other --for ready --timeout 60s");
        let ready = statuses(&harness.get("vm sandbox-1"));
        assert_eq!(ready, ["True"; 5]);
        // (how the daemon ends, what is changed before the next one starts)
        for (kill, flush) in [(true, true), (false, true), (true, false)] {
            match kill {
                true => harness.kill(),
                false => drop(harness.stop()),
            }
            let place = format!("{}/netns", harness.run.display());
            let names = run(&format!("ls {place} 2>/dev/null || ls /run/netns"));
            if flush {
                fs::write(dir.join("hang"), "").expect("written");
                for name in names.split_whitespace() {
                    run(&format!("ip netns exec {name} iptables -F"));
                }
            }
            harness.start();
            let mut seen = Vec::new();
            if flush {
                // As long as the commit hangs nothing above it is known.
                for _ in 0..20 {
                    let vm = harness.get("vm sandbox-1");
                    let found = statuses(&vm);
                    assert_ne!(found[2], "True", "{vm:#}");
                    assert_ne!(found[3], "True", "{vm:#}");
                    assert_ne!(found[4], "True", "{vm:#}");
                    assert_eq!(vm["status"]["ready"], false);
                    let vmm = condition(&vm, "Vmm");
                    assert_eq!(
                        (&vmm["status"], &vmm["reason"]),
                        (&"Unknown".into(), &"NotObserved".into()),
                        "{vm:#}"
                    );
                    let group = harness.get("hg sandbox");
                    assert_eq!(group["status"]["ready"], false);
                    assert_eq!(group["status"]["ready_count"], 0);
                    assert_ne!(condition(&group, "Ready")["status"], "True");
                    seen.push(found);
                    std::thread::sleep(Duration::from_millis(50));
                }
                let waited = harness.try_ctl("wait vm/sandbox-1 --for ready --timeout 200ms");
                assert!(!waited.status.success(), "it is not known to be Ready");
                fs::remove_file(dir.join("hang")).expect("removed");
            }
            // A wait that begins before the first observation has ended is notified of its end, even if nothing has changed.
            harness.ctl(
                "wait hg/sandbox hg/other vm/sandbox-1 vm/sandbox-2 --for ready --timeout 60s",
            );
            assert_eq!(
                statuses(&harness.get("vm sandbox-1")),
                ["True"; 5],
                "{seen:?}"
            );
            let group = harness.get("hg sandbox");
            assert_eq!(group["status"]["ready_count"], 2);
            if !flush {
                assert_eq!(harness.messages("", "Drift"), [""; 0]);
                // Nothing became Ready: it was.
                assert_eq!(harness.messages("", "Ready"), [""; 0]);
            }
        }
    });
}
