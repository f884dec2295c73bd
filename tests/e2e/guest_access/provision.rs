//! What a guest gets, from the manifest to its files: secrets, SSH keys, userdata; and how long `slicectl` waits for it.
//! Out of scope: files of the guest that its users have prepared (unit tests of the agent).

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::secrets::{VALUE, assert_no_value, secret, while_command_lines_are_read};
use super::{Host, VM, text, with_vm, with_vm_of};

const KEY: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f me";

/// The file system of a guest.
struct Root(tempfile::TempDir);

impl Root {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a directory"))
    }

    fn at(&self, path: &str) -> PathBuf {
        self.0.path().join(path)
    }

    fn read(&self, path: &str) -> Option<String> {
        fs::read_to_string(self.at(path)).ok()
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

/// The lines of a group with a guest that runs a script.
fn userdata(script: &str) -> String {
    let lines: String = script.lines().map(|line| format!("\n  {line}")).collect();
    format!("userdata: |{lines}")
}

fn token(host: &Host, words: &str, value: &str) {
    let (status, output) = secret(&host.harness, words, value.as_bytes());
    assert_eq!(status, Some(0), "{words}: {output}");
}

#[test]
fn a_guest_in_its_initrd_gets_nothing_until_it_has_found_its_root_file_system() {
    let root = Root::new();
    let script = format!("#!/bin/sh\necho ran >>{}/count", root.path().display());
    with_vm_of(&userdata(&script), |host| {
        let in_initrd = host.agent_with(&["--in-initrd".as_ref()]);
        host.until_message(
            "it answers in the initrd: the guest has not found its root file system",
        );
        assert_eq!(host.condition().0, "NotAnswering");
        assert!(host.exec(&["true"]).status.success(), "it can be repaired");
        assert_eq!(root.read("count"), None);
        drop(in_initrd);
        let _agent = host.agent(Some(root.path()));
        host.until_message("answers; userdata succeeded");
        assert_eq!(root.read("count").as_deref(), Some("ran\n"));
    });
}

#[test]
fn a_guest_gets_secrets_keys_and_runs_its_userdata_once() {
    let root = Root::new();
    let dir = root.path().display().to_string();
    let script = format!(
        "#!/bin/sh\ntest -s {dir}/run/slice/secrets/token || exit 9\ngrep -q me {dir}/root/.ssh/authorized_keys || exit 8\necho ran >>{dir}/count\necho says $TARGET_USER\nexit 3"
    );
    let lines = format!(
        "secrets: [token]\nssh_keys: ['{KEY}']\n{}",
        userdata(&script)
    );
    while_command_lines_are_read(|| {
        with_vm_of(&lines, |host| {
            let agent = host.agent(Some(root.path()));
            host.until_message(
                "answers; secret \"token\" does not exist, and userdata waits for it",
            );
            assert_eq!(host.condition().0, "NotProvisioned");
            assert!(
                host.harness.get(&format!("vm {VM}"))["status"]["ready"]
                    .as_bool()
                    .expect("a flag")
            );
            assert_eq!(root.read("etc/hostname").as_deref(), Some("box-1\n"));
            token(host, "create token", VALUE);
            host.until_message("answers; userdata failed with exit status 3");
            assert_eq!(host.condition().0, "UserdataFailed");
            let events = host.harness.messages(&format!("vm/{VM}"), "UserdataFailed");
            assert_eq!(events, ["userdata failed with exit status 3"]);
            assert_eq!(root.read("run/slice/secrets/token").as_deref(), Some(VALUE));
            assert_eq!(
                root.read("run/slicer/secrets/token").as_deref(),
                Some(VALUE)
            );
            let begin = Instant::now();
            let failed = host
                .harness
                .refused(&format!("wait vm/{VM} --for userdata --timeout 60s"), 1);
            assert!(
                failed.contains("userdata failed with exit status 3"),
                "{failed}"
            );
            assert!(
                begin.elapsed() < Duration::from_secs(30),
                "it fails at once"
            );
            let log = host.harness.ctl(&format!("logs {VM} --userdata"));
            assert_eq!(log, "says root\n");
            assert_eq!(
                host.harness
                    .ctl(&format!("logs {VM} --userdata --follow -n 1")),
                log
            );
            assert_no_value(&host.harness);
            // A daemon that was killed finds that the guest has everything.
            let inode = |path: &str| fs::metadata(root.at(path)).expect(path).ino();
            let files = [
                "run/slice/secrets/token",
                "root/.ssh/authorized_keys",
                "etc/hostname",
            ];
            let before = files.map(inode);
            host.harness.kill();
            host.harness.start();
            host.until_message("answers; userdata failed with exit status 3");
            assert_eq!(files.map(inode), before);
            // A change is synchronized, also one of the owner only.
            token(host, "update token", "changed");
            host.harness.until("the change arrives", || {
                (root.read("run/slice/secrets/token")? == "changed").then_some(())
            });
            token(host, "update token --permissions 0444 --uid 5", "");
            host.harness.until("the owner arrives", || {
                let found = fs::metadata(root.at("run/slice/secrets/token")).ok()?;
                (found.uid() == 5 && found.mode() & 0o777 == 0o444).then_some(())
            });
            token(host, "delete token", "");
            host.harness.until("the deletion arrives", || {
                (!root.at("run/slice/secrets/token").exists()).then_some(())
            });
            host.until_message(
                "answers; secret \"token\" does not exist; userdata failed with exit status 3",
            );
            // The agent of the next boot.
            drop(agent);
            let _agent = host.agent(Some(root.path()));
            token(host, "create token", VALUE);
            host.harness.until("the next agent has it", || {
                root.read("run/slice/secrets/token")
            });
            assert_eq!(root.read("count").as_deref(), Some("ran\n"), "it runs once");
            assert_no_value(&host.harness);
        });
    });
}

#[test]
fn the_end_of_userdata_is_an_event_also_if_the_agent_was_not_asked_when_it_ended() {
    let root = Root::new();
    let dir = root.path().display().to_string();
    let script = format!("while ! test -e {dir}/go; do sleep 0.1; done");
    with_vm_of(&userdata(&script), |host| {
        let _agent = host.agent(Some(root.path()));
        host.until_message("answers; userdata running");
        // The agent of this test is a process of the host, so a pause does not stop it.
        host.harness.ctl(&format!("vm pause {VM} --wait=20s"));
        fs::write(root.at("go"), "").expect("written");
        let record = || root.read("etc/slicer/userdata-ran");
        let has_ended = || (record()?.trim() == "0").then_some(());
        host.harness.until("the exit status", has_ended);
        host.harness.ctl(&format!("vm resume {VM} --wait=20s"));
        host.until_message("answers; userdata succeeded");
        let of_vm = format!("vm/{VM}");
        let events = || host.harness.messages(&of_vm, "UserdataSucceeded");
        assert_eq!(events(), ["userdata succeeded"]);
        // It ends once.
        host.harness.ctl(&format!("vm pause {VM} --wait=20s"));
        host.harness.ctl(&format!("vm resume {VM} --wait=20s"));
        host.until_message("answers; userdata succeeded");
        assert_eq!(events(), ["userdata succeeded"]);
    });
}

#[test]
fn a_wait_for_userdata_ends_with_its_success() {
    let root = Root::new();
    let dir = root.path().display().to_string();
    let script = format!("echo begin\nwhile ! test -e {dir}/go; do sleep 0.1; done\necho end");
    with_vm_of(&userdata(&script), |host| {
        let _agent = host.agent(Some(root.path()));
        host.until_message("answers; userdata running");
        let agent = host.harness.ctl(&format!("wait vm/{VM} --for agent"));
        assert_eq!(agent, "vm/box-1 agent answers\n");
        let late = host
            .harness
            .refused(&format!("wait vm/{VM} --for userdata --timeout 1s"), 1);
        assert!(
            late.contains("the userdata of vm/box-1 has not succeeded"),
            "{late}"
        );
        assert!(late.contains("userdata running"), "{late}");
        let wait = host
            .ctl(&["wait", &format!("vm/{VM}"), "--for", "userdata"])
            .spawn();
        // A daemon that is killed while it runs.
        host.harness.kill();
        host.harness.start();
        host.until_message("answers; userdata running");
        let mut log = host.ctl(&["logs", VM, "--userdata", "--follow"]);
        let log = log.spawn();
        fs::write(root.at("go"), "").expect("written");
        let waited = wait
            .expect("slicectl")
            .wait_with_output()
            .expect("slicectl");
        assert_eq!(
            text(&waited.stdout),
            "vm/box-1 userdata succeeded\n",
            "{waited:?}"
        );
        host.until_message("answers; userdata succeeded");
        assert_eq!(host.condition().0, "Answering");
        let events = host
            .harness
            .messages(&format!("vm/{VM}"), "UserdataSucceeded");
        assert_eq!(events, ["userdata succeeded"]);
        let followed = log.expect("slicectl").wait_with_output().expect("slicectl");
        assert_eq!(text(&followed.stdout), "begin\nend\n", "{followed:?}");
        assert_eq!(
            host.harness.ctl(&format!("logs {VM} --userdata")),
            "begin\nend\n"
        );
    });
}

#[test]
fn keys_change_while_a_guest_runs_and_the_keys_of_the_image_stay() {
    let root = Root::new();
    fs::create_dir_all(root.at("root/.ssh")).expect("created");
    fs::write(root.at("root/.ssh/authorized_keys"), "own\n").expect("written");
    with_vm_of(&format!("ssh_keys: ['{KEY}']"), |host| {
        let _agent = host.agent(Some(root.path()));
        let keys = || root.read("root/.ssh/authorized_keys").unwrap_or_default();
        host.harness.until("the key is there", || {
            keys().contains(" me\n").then_some(())
        });
        let uid = host.harness.get(&format!("vm {VM}"))["metadata"]["uid"].clone();
        let manifest = fs::read_to_string(host.harness.dir.path().join("manifest.yaml"));
        let manifest = manifest.expect("read").replace(" me'", " you'");
        host.harness.apply(&manifest);
        host.harness.until("the key is changed", || {
            keys().contains(" you\n").then_some(())
        });
        assert!(
            keys().starts_with("own\n") && !keys().contains(" me\n"),
            "{}",
            keys()
        );
        host.harness
            .apply(&manifest.replace(&format!("['{}']", KEY.replace(" me", " you")), "[]"));
        host.harness
            .until("the key is removed", || (keys() == "own\n").then_some(()));
        assert_eq!(
            host.harness.get(&format!("vm {VM}"))["metadata"]["uid"],
            uid
        );
        assert_eq!(host.condition(), ("Answering".to_owned(), String::new()));
    });
}

#[test]
fn an_agent_that_is_not_in_a_guest_changes_nothing() {
    with_vm_of("secrets: [token]", |host| {
        token(host, "create token", VALUE);
        let _agent = host.agent(None);
        host.until_message(
            "answers; its slice-agent cannot provision the guest: update it to that of this version",
        );
    });
    with_vm(|host| {
        let _agent = host.agent(None);
        host.harness.until("it answers", || {
            (host.condition() == ("Answering".to_owned(), String::new())).then_some(())
        });
    });
}

#[test]
fn a_vm_on_demand_has_its_own_settings_and_refuses_invalid_ones() {
    with_vm_of("secrets: [token]", |host| {
        let harness = &host.harness;
        let script = harness.write("setup.sh", "#!/bin/sh\nexit 0\n");
        let cloud = harness.write("cloud.yaml", "#cloud-config\n");
        let private = harness.write("id", "-----BEGIN OPENSSH PRIVATE KEY-----\n");
        let public = harness.write("id.pub", &format!("{KEY}\n"));
        for (words, status, why) in [
            (format!("--userdata-file {cloud}"), 1, "cloud-config"),
            ("--userdata-file /nowhere".to_owned(), 1, "cannot read"),
            (format!("--ssh-key {private}"), 1, "private key"),
            ("--secret ../x".to_owned(), 2, "invalid name"),
            ("--secret a,a".to_owned(), 1, "the secret a twice"),
        ] {
            let found = harness.refused(&format!("vm add box {words}"), status);
            assert!(found.contains(why), "{words}: {found}");
        }
        let words = format!(
            "vm add box --name ci --userdata-file {script} --ssh-key {public} --secret other"
        );
        harness.ctl(&words);
        let vm = harness.get("vm ci");
        let provision = &vm["spec"]["guest_access"]["provision"];
        assert_eq!(provision["secrets"][0], "other");
        assert_eq!(provision["userdata"]["script"], "#!/bin/sh\nexit 0\n");
        assert_eq!(provision["ssh_keys"][0], KEY);
        harness.ctl("vm add box --name none --secret=");
        let vm = harness.get("vm none");
        assert!(vm["spec"]["guest_access"].is_null(), "{vm}");
        let described = harness.ctl("describe vm ci");
        assert!(
            described.contains("with own userdata, SSH keys, secrets"),
            "{described}"
        );
    });
}
