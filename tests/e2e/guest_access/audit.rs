//! Events about access to guests: who, what, which VM; nothing that a user has entered.
//! Out of scope: changes of the power state, which have events of their own.

use std::process::Stdio;

use super::{Host, VM, text, with_agent, with_vm};

/// A value that a user enters.
const SECRET: &str = "hunter2";

fn accesses(host: &Host) -> Vec<String> {
    host.harness.messages(&format!("vm/{VM}"), "GuestAccess")
}

#[test]
fn each_access_is_an_event_with_the_user_and_without_what_was_entered() {
    with_agent(|host| {
        let dir = host.harness.dir.path();
        let (file, copy) = (dir.join("file"), dir.join(SECRET));
        std::fs::write(&file, SECRET).expect("written");
        let copy = format!("{VM}:{}", copy.display());
        let file = file.display().to_string();
        let in_background = host
            .ctl(&["vm", "bg", "start", VM, "--", "echo", SECRET])
            .output()
            .expect("slicectl");
        let id = text(&in_background.stdout).trim().to_owned();
        let table: [(&[&str], &str); 7] = [
            (
                &[
                    "vm",
                    "exec",
                    VM,
                    "--uid",
                    "0",
                    "-e",
                    "A=hunter2",
                    "--",
                    "echo",
                    SECRET,
                ],
                "exec",
            ),
            (&["vm", "bg", "logs", VM, &id], "exec"),
            (&["vm", "bg", "remove", VM, &id], "exec"),
            (&["vm", "cp", &file, &copy], "cp"),
            (&["vm", "cp", &copy, "-"], "cp"),
            (&["fs", "ls", VM, "/tmp"], "fs"),
            (&["vm", "shell", VM, "--uid", "0"], "shell"),
        ];
        for (words, access) in table {
            let before = count(host, access);
            let output = host.ctl(words).output().expect("slicectl");
            assert!(output.status.success(), "{words:?}: {output:?}");
            assert!(
                count(host, access) > before,
                "{words:?}: {:?}",
                accesses(host)
            );
        }
        // What only shows figures is none.
        let before = accesses(host);
        let output = host.ctl(&["vm", "top", VM, "--once"]).output();
        assert!(output.expect("slicectl").status.success());
        host.ctl(&["vm", "bg", "list", VM])
            .output()
            .expect("slicectl");
        assert_eq!(accesses(host), before);
        for message in accesses(host) {
            assert!(message.ends_with(" by root (uid 0)"), "{message}");
        }
        let events = host
            .ctl(&["events", "-o", "json"])
            .output()
            .expect("slicectl");
        let log = host.harness.log();
        for output in [text(&events.stdout), log] {
            assert!(!output.contains(SECRET), "{output}");
        }
    });
}

/// How often an access was recorded: equal events are counted.
fn count(host: &Host, access: &str) -> u64 {
    let events = host.harness.events(&format!("vm/{VM}")).into_iter();
    let of_access = events.filter(|event| {
        let message = event["message"].as_str().unwrap_or_default();
        event["reason"] == "GuestAccess" && message.starts_with(&format!("{access} by "))
    });
    of_access.filter_map(|event| event["count"].as_u64()).sum()
}

#[test]
fn an_access_that_is_refused_is_none() {
    with_vm(|host| {
        host.harness.ctl(&format!("vm pause {VM}"));
        let output = host.exec(&["true"]);
        assert!(!output.status.success());
        assert_eq!(accesses(host), [""; 0]);
        let forward = host
            .ctl(&["vm", "port-forward", VM, "0:80"])
            .stdout(Stdio::null())
            .output();
        assert!(!forward.expect("slicectl").status.success());
        assert_eq!(accesses(host), [""; 0]);
    });
}
