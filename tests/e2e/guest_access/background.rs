//! `vm bg` and `vm top`.
//! Out of scope: the buffer of the agent.

use serde_json::Value;

use super::{VM, text, with_agent};

#[test]
fn a_command_in_the_background_is_listed_read_signalled_awaited_and_removed() {
    with_agent(|host| {
        let bg = |words: &str| {
            let words: Vec<&str> = ["vm", "bg"].into_iter().chain(words.split(' ')).collect();
            let output = host.ctl(&words).output().expect("slicectl");
            (
                output.status.code(),
                text(&output.stdout),
                text(&output.stderr),
            )
        };
        let start = |script: &str| {
            let words = [
                "vm", "bg", "start", VM, "--uid", "0", "--", "sh", "-c", script,
            ];
            let output = host.ctl(&words).output().expect("slicectl");
            assert!(output.status.success(), "{output:?}");
            text(&output.stdout).trim().to_owned()
        };
        assert_eq!(
            bg("list box-1 -o json"),
            (Some(0), "[]\n".to_owned(), String::new())
        );
        let id = start("echo out; echo err >&2; exit 5");
        assert!(id.starts_with("ex_"), "{id}");
        assert_eq!(bg(&format!("wait box-1 {id} --timeout 20s")).0, Some(5));
        let logs = bg(&format!("logs box-1 {id} --follow"));
        assert_eq!(logs, (Some(0), "out\n".to_owned(), "err\n".to_owned()));
        let list = bg("list box-1").1;
        assert!(list.contains(&id) && list.contains("exited (5)"), "{list}");
        let info: Value =
            serde_json::from_str(&bg(&format!("info box-1 {id} -o json")).1).expect("JSON");
        assert_eq!(info["exit_code"], 5);
        let sleeping = start("sleep 600");
        let (status, _, stderr) = bg(&format!("wait box-1 {sleeping} --timeout 1s"));
        assert_eq!(status, Some(1));
        assert!(stderr.contains("still runs after 1s"), "{stderr}");
        assert_eq!(
            bg(&format!("remove box-1 {sleeping}")).0,
            Some(1),
            "it runs"
        );
        let (_, stdout, _) = bg(&format!("kill box-1 {sleeping} --signal KILL"));
        assert_eq!(stdout, format!("{sleeping} SIGKILL sent\n"));
        let (status, _, stderr) = bg(&format!("wait box-1 {sleeping}"));
        assert_eq!(
            (status, stderr.contains("SIGKILL")),
            (Some(137), true),
            "{stderr}"
        );
        assert_eq!(
            bg(&format!("kill box-1 {sleeping}")).1,
            format!("{sleeping} has ended already\n")
        );
        for id in [&id, &sleeping] {
            assert_eq!(
                bg(&format!("remove box-1 {id}")).1,
                format!("{id} removed\n")
            );
        }
        assert_eq!(bg(&format!("info box-1 {id}")).0, Some(1), "it was removed");
        assert_eq!(bg("info box-1 ../health").0, Some(2), "no id");
    });
}

#[test]
fn top_shows_the_host_and_the_guest_beside_each_other() {
    with_agent(|host| {
        let output = host
            .ctl(&["vm", "top", "-o", "json"])
            .output()
            .expect("slicectl");
        let rows: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let row = &rows[0];
        assert_eq!(row["vm"], VM);
        assert!(
            row["host"]["memory_bytes"]
                .as_u64()
                .is_some_and(|bytes| bytes > 0),
            "{row}"
        );
        assert!(row["cpu_percent"].is_number(), "{row}");
        assert!(
            row["guest"]["totalMemory"]
                .as_u64()
                .is_some_and(|bytes| bytes > 0),
            "{row}"
        );
        let table = text(
            &host
                .ctl(&["vm", "top", VM])
                .output()
                .expect("slicectl")
                .stdout,
        );
        assert!(
            table.contains("GUEST MEMORY") && table.contains("box-1"),
            "{table}"
        );
        let output = host
            .ctl(&["vm", "top", "box-2"])
            .output()
            .expect("slicectl");
        assert_eq!(output.status.code(), Some(1), "{output:?}");
    });
}
