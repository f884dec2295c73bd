//! What every command of `slicectl` has in common: names are resolved before anything changes, typing errors are corrected, `--quiet`,
//! and `doctor` without a daemon.
//! Out of scope: the output of each command (`transcripts`), completion.

use std::process::Command;

use serde_json::Value;
use test_support::harness::{Harness, empty, group, with_daemon};
use test_support::kernel::run;
use test_support::transcript::Runner;

/// `web` with two VMs, and a VM `ci` on demand.
fn build(harness: &Harness) {
    harness.apply(&group("web", 2, "169.254.104.0/24", ""));
    harness.ctl("vm add web --name ci --wait -q");
    harness.ctl("wait hg/web --for ready");
}

/// Everything about the objects that a command could change.
fn state(harness: &Harness) -> String {
    let facts = |object: &Value| {
        let metadata = &object["metadata"];
        let (name, power) = (&metadata["name"], &object["status"]["vmm"]["state"]);
        format!(
            "{name} {} {} {} {power}\n",
            metadata["uid"], metadata["generation"], metadata["deleting"]
        )
    };
    let list = |kind: &str| {
        harness.get(kind)["items"]
            .as_array()
            .cloned()
            .unwrap_or_default()
    };
    [list("hg"), list("vms")]
        .concat()
        .iter()
        .map(facts)
        .collect()
}

#[test]
fn nothing_is_changed_if_one_name_is_invalid_or_absent() {
    with_daemon(|harness| {
        build(&harness);
        let before = state(&harness);
        assert!(before.contains("ci"), "{before}");
        for (command, status, error) in [
            ("delete vm web-1 --wait 5s", 1, "vm/5s not found"),
            ("delete vm web-1 nosuch-1", 1, "vm/nosuch-1 not found"),
            ("delete vm/web-1 hg/nosuch", 1, "hostgroup/nosuch not found"),
            (
                "delete hg web nosuch --force",
                1,
                "hostgroup/nosuch not found",
            ),
            ("delete vm web-1 Bad_Name", 2, "invalid name \"Bad_Name\""),
            ("delete vm/web-1 pod/x", 2, "unknown kind \"pod\""),
            ("vm stop web-1 nosuch-1", 1, "vm/nosuch-1 not found"),
            ("vm stop web-1 --wait 5s", 1, "vm/5s not found"),
            ("vm start web-1 nosuch-1", 1, "vm/nosuch-1 not found"),
            ("vm pause web-1 nosuch-1", 1, "vm/nosuch-1 not found"),
            ("vm resume web-1 nosuch-1", 1, "vm/nosuch-1 not found"),
            ("vm restart web-1 nosuch-1", 1, "vm/nosuch-1 not found"),
            ("vm stop web-1 Bad_Name", 2, "invalid name \"Bad_Name\""),
            ("vm delete ci nosuch", 1, "vm/nosuch not found"),
            ("vm delete ci --wait 5s", 1, "vm/5s not found"),
        ] {
            let stderr = harness.refused(command, status);
            assert!(stderr.contains(error), "{command}: {stderr}");
            let is_time = command.contains("--wait 5s");
            let hint = stderr.contains("use --timeout 5s");
            assert_eq!(hint, is_time, "{command}: {stderr}");
            assert_eq!(state(&harness), before, "{command}");
        }
        // One that is absent is no error if that is asked for.
        harness.ctl("delete vm ci nosuch --ignore-not-found --wait -q");
        assert_eq!(harness.vms(), ["web-1", "web-2"]);
    });
}

#[test]
fn every_command_corrects_the_name_of_an_object() {
    with_daemon(|harness| {
        build(&harness);
        for command in [
            "get vm wbe-1",
            "get vm/wbe-1 -o json",
            "describe vm wbe-1",
            "delete vm wbe-1",
            "logs wbe-1",
            "console wbe-1",
            "explain wbe-1 1.1.1.1",
            "vm metrics wbe-1",
            "vm top wbe-1",
            "vm exec wbe-1 -- true",
            "vm shell wbe-1",
            "vm port-forward wbe-1 8080",
            "vm bg list wbe-1",
            "vm stop wbe-1",
            "vm pause web-11",
            "vm delete wbe-1",
        ] {
            let stderr = harness.refused(command, 1);
            assert!(
                stderr.contains("did you mean vm/web-1?"),
                "{command}: {stderr}"
            );
        }
        for command in [
            "get hg wbe",
            "describe hg wbe",
            "delete hg wbe",
            "route wbe",
            "vm add wbe",
        ] {
            let stderr = harness.refused(command, 1);
            assert!(
                stderr.contains("did you mean hostgroup/web?"),
                "{command}: {stderr}"
            );
        }
        let stderr = harness.refused("get lease wbe-2", 1);
        assert!(stderr.contains("did you mean lease/web-2?"), "{stderr}");
        let stderr = harness.refused("get vm completely-different", 1);
        assert!(!stderr.contains("did you mean"), "{stderr}");
    });
}

#[test]
fn quiet_commands_print_nothing() {
    with_daemon(|harness| {
        let file = harness.write("web.yaml", &group("web", 1, "169.254.104.0/24", ""));
        for command in [
            &format!("apply -f {file} -q --wait"),
            "vm add web --name ci -q",
            "wait vm/ci --for ready -q",
            "vm delete ci --quiet --wait=20s",
            "delete hg web -q",
        ] {
            assert_eq!(harness.ctl(command), "", "{command}");
        }
    });
}

#[test]
fn several_kinds_are_listed_at_once() {
    with_daemon(|harness| {
        build(&harness);
        let names = |what: &str| harness.ctl(&format!("get {what} -o name"));
        assert_eq!(names("vm,hg"), "vm/web-1\nvm/web-2\nvm/ci\nhostgroup/web\n");
        let all = names("all");
        assert!(all.starts_with("hostgroup/web\nvm/web-1\n"), "{all}");
        assert!(all.ends_with("lease/web-2\n"), "{all}");
        assert_eq!(names("vm,lease web-1"), "vm/web-1\nlease/web-1\n");
        assert_eq!(harness.ctl("ps -o name"), names("vms"));
        assert_eq!(harness.ctl("ps web-1 -o name"), "vm/web-1\n");
        let list = harness.get("all");
        assert_eq!(list["items"].as_array().map(Vec::len), Some(7), "{list}");
        let events = harness.ctl("get events vm/web-1");
        assert_eq!(events, harness.ctl("events vm/web-1"));
        let refused = harness.refused("get vm,hg -w", 2);
        assert!(refused.contains("one kind"), "{refused}");
        let refused = harness.refused("get all -l x=y", 2);
        assert!(refused.contains("has no tags"), "{refused}");
    });
}

/// The lines of the table and of the fixes, and the summary.
fn doctor(harness: &Harness, command: &mut Command) -> (Vec<String>, String) {
    let output = command
        .env("SLICE_SOCKET", harness.run.join("sliced.sock"))
        .env("SLICE_CONFIG_DIR", harness.conf())
        .env("SLICE_STATE_DIR", harness.state())
        .output()
        .expect("slicectl");
    let stdout = String::from_utf8(output.stdout).expect("UTF-8");
    let lines: Vec<String> = stdout.lines().map(str::to_owned).collect();
    let summary = lines.last().cloned().unwrap_or_default();
    assert!(summary.contains(" checks: "), "{stdout}{:?}", output.stderr);
    (lines, summary)
}

/// The lines of checks with this result.
fn with_result<'l>(lines: &'l [String], result: &str) -> Vec<&'l String> {
    let table = lines.iter().take_while(|line| !line.is_empty());
    let matches = |line: &&String| line.split_whitespace().next() == Some(result);
    table.filter(matches).collect()
}

#[test]
fn doctor_checks_the_host_without_a_daemon() {
    empty(|mut harness| {
        harness.save("a.yaml", "config: {host_groups: []}\n");
        harness.save(".hidden.yaml", "config: {host_groups: []}\n");
        let slicectl = env!("CARGO_BIN_EXE_slicectl");
        let (lines, summary) = doctor(&harness, Command::new(slicectl).arg("doctor"));
        let warnings = with_result(&lines, "warn");
        assert!(warnings[0].contains("not running"), "{lines:#?}");
        let text = lines.join("\n");
        assert!(text.contains("conf: 1 manifest(s)"), "{text}");
        assert!(text.contains("a network namespace was created"), "{text}");
        assert!(with_result(&lines, "ok").len() > 15, "{text}");
        // Problems come first.
        let order: Vec<&str> = lines[1..]
            .iter()
            .take_while(|line| !line.is_empty())
            .filter_map(|line| line.split_whitespace().next())
            .collect();
        let rank = |result: &&str| ["fail", "warn", "ok", "-"].iter().position(|r| r == result);
        assert!(order.is_sorted_by_key(rank), "{order:?}");
        let counted = format!("{} checks: ", order.len());
        assert!(summary.starts_with(&counted), "{summary}");

        // By another user: nothing fails for the lack of rights, and what is skipped is named.
        run(&format!("install -m 755 {slicectl} /run/slicectl"));
        let mut other = Command::new("setpriv");
        other.args([
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
            "/run/slicectl",
            "doctor",
        ]);
        let (lines, summary) = doctor(&harness, &mut other);
        let text = lines.join("\n");
        assert!(!text.contains("cannot check"), "{text}");
        assert_eq!(with_result(&lines, "fail"), Vec::<&String>::new(), "{text}");
        let skipped = with_result(&lines, "-");
        let needs_root = skipped.iter().filter(|line| line.contains("requires root"));
        assert!(needs_root.count() >= 3, "{text}");
        assert!(skipped.iter().any(|line| line.contains("qemu")), "{text}");
        assert!(summary.contains("skipped"), "{summary}");

        // The same checks as those of the daemon, beside that of the daemon itself.
        let offline = Runner::of(&harness).run("doctor -o json");
        harness.start();
        let online = Runner::of(&harness).run("doctor -o json");
        let names = |text: &str| {
            let checks: Vec<Value> = serde_json::from_str(text).expect("JSON");
            let name = |check: &Value| check["name"].as_str().expect("a name").to_owned();
            let mut names: Vec<String> = checks.iter().map(name).collect();
            names.retain(|name| name != "sliced");
            names.sort_unstable();
            names
        };
        assert_eq!(names(&offline.stdout), names(&online.stdout));
    });
}
