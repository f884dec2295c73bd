//! What a shell offers when a command line is completed: kinds, names of the daemon's objects, options, files. Through the entry that the
//! scripts call, and through bash with the script loaded.
//! Out of scope: zsh and fish, which call the same entry.

use std::path::Path;
use std::process::{Command, Output};

use test_support::harness::{Harness, group, with_daemon};
use test_support::programs;

/// `web` with two VMs and `lab` with one.
fn build(harness: &Harness) {
    for (name, count, range) in [
        ("web", 2, "169.254.104.0/24"),
        ("lab", 1, "169.254.105.0/24"),
    ] {
        harness.apply(&group(name, count, range, ""));
        harness.ctl(&format!("wait hg/{name} --for ready"));
    }
}

fn lines(output: &Output) -> Vec<String> {
    assert!(output.status.success(), "{output:?}");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{output:?}");
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().map(str::to_owned).collect()
}

/// The candidates for the last word of a command line; a blank at its end begins a new word.
fn candidates(dir: &Path, socket: &Path, line: &str) -> Vec<String> {
    let words: Vec<&str> = line.split(' ').collect();
    let output = Command::new(programs::built("slicectl"))
        .env("SLICECTL_COMPLETE", "bash")
        .env("_CLAP_IFS", "\n")
        .env("_CLAP_COMPLETE_INDEX", (words.len() - 1).to_string())
        .env("SLICE_SOCKET", socket)
        .arg("--")
        .args(words)
        .current_dir(dir)
        .output();
    lines(&output.expect("slicectl"))
}

/// The same through a bash that has loaded the script.
fn bash_candidates(dir: &Path, socket: &Path, line: &str) -> Vec<String> {
    const SCRIPT: &str = r#"
        source <(slicectl completion bash) || exit
        function=$(complete -p slicectl | sed -E 's/.*-F ([^ ]+).*/\1/')
        IFS=' ' read -ra COMP_WORDS <<<"$1"
        case $1 in *' ') COMP_WORDS+=('');; esac
        COMP_CWORD=$((${#COMP_WORDS[@]} - 1)) COMP_LINE=$1 COMP_POINT=${#1} COMP_TYPE=9
        "$function" slicectl "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
        [ ${#COMPREPLY[@]} = 0 ] || printf '%s\n' "${COMPREPLY[@]}"
    "#;
    let programs = programs::built("slicectl");
    let programs = programs.parent().expect("a directory").display();
    let path = std::env::var("PATH").unwrap_or_default();
    let output = Command::new("bash")
        .args(["--norc", "-c", SCRIPT, "bash", line])
        .env("PATH", format!("{programs}:{path}"))
        .env("SLICE_SOCKET", socket)
        .current_dir(dir)
        .output();
    lines(&output.expect("bash"))
}

#[test]
fn kinds_and_names_are_completed() {
    with_daemon(|harness| {
        build(&harness);
        let socket = harness.run.join("sliced.sock");
        let dir = harness.dir.path();
        for name in ["token", "tls.key"] {
            let file = harness.write("value", "x");
            harness.ctl(&format!("secret create {name} --from-file {file}"));
        }
        let cases: &[(&str, &[&str])] = &[
            ("slicectl secret update t", &["tls.key", "token"]),
            ("slicectl secret delete token t", &["tls.key"]),
            ("slicectl vm add lab --secret to", &["token"]),
            ("slicectl get h", &["hostgroups"]),
            ("slicectl get hg", &["hg"]),
            ("slicectl get v", &["vms"]),
            ("slicectl list v", &["vms"]),
            ("slicectl get vms ", &["lab-1", "web-1", "web-2"]),
            ("slicectl get vm w", &["web-1", "web-2"]),
            ("slicectl get vm web-1 ", &["lab-1", "web-2"]),
            ("slicectl get vm/", &["vm/lab-1", "vm/web-1", "vm/web-2"]),
            ("slicectl get vms/web", &["vms/web-1", "vms/web-2"]),
            ("slicectl get vm/web-1 vm/web", &["vm/web-2"]),
            ("slicectl get vm/web-1 h", &["hostgroup/"]),
            ("slicectl get hg ", &["lab", "web"]),
            ("slicectl get -o wide hg l", &["lab"]),
            ("slicectl get hg -l x=y w", &["web"]),
            ("slicectl get lease l", &["lab-1"]),
            ("slicectl get vm,hg web", &["web", "web-1", "web-2"]),
            ("slicectl get pods x", &[]),
            ("slicectl describe v", &["vm"]),
            (
                "slicectl describe hostgroup/",
                &["hostgroup/lab", "hostgroup/web"],
            ),
            ("slicectl delete vm l", &["lab-1"]),
            ("slicectl rm vm l", &["lab-1"]),
            ("slicectl wait hg/w", &["hg/web"]),
            (
                "slicectl wait hg/web --for ",
                &["agent", "deleted", "paused", "ready", "stopped", "userdata"],
            ),
            ("slicectl events ho", &["host", "hostgroup"]),
            ("slicectl events vm l", &["lab-1"]),
            ("slicectl logs w", &["web-1", "web-2"]),
            ("slicectl logs vm/w", &["vm/web-1", "vm/web-2"]),
            ("slicectl logs hg/w", &[]),
            ("slicectl console l", &["lab-1"]),
            ("slicectl explain l", &["lab-1"]),
            ("slicectl route w", &["web"]),
            ("slicectl vm st", &["start", "stop"]),
            ("slicectl vm stop web-1 w", &["web-2"]),
            ("slicectl vm add l", &["lab"]),
            ("slicectl vm metrics l", &["lab-1"]),
            ("slicectl desc", &["describe"]),
            ("slicectl get vms --sel", &["--selector"]),
            ("slicectl get vms -o n", &["name"]),
            (
                "slicectl get ",
                &["all", "events", "hostgroups", "leases", "nodes", "vms"],
            ),
            (
                "slicectl vm stop web-1 --",
                &[
                    "--ca",
                    "--help",
                    "--quiet",
                    "--socket",
                    "--timeout",
                    "--token-file",
                    "--url",
                    "--wait",
                ],
            ),
        ];
        for (line, expected) in cases {
            for found in [
                candidates(dir, &socket, line),
                bash_candidates(dir, &socket, line),
            ] {
                let mut found = found;
                found.sort_unstable();
                assert_eq!(&found, expected, "{line}");
            }
        }
        // The daemon is that of the command line.
        let nowhere = dir.join("nowhere.sock");
        let line = format!("slicectl --socket {} get vms l", socket.display());
        assert_eq!(candidates(dir, &nowhere, &line), ["lab-1"]);
        assert!(candidates(dir, &nowhere, "slicectl get vms l").is_empty());
    });
}

#[test]
fn files_are_completed_without_a_daemon() {
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::write(dir.path().join("sandbox.yaml"), "").expect("written");
    let socket = dir.path().join("nowhere.sock");
    for verb in ["apply", "diff", "delete"] {
        let line = format!("slicectl {verb} -f san");
        let found = bash_candidates(dir.path(), &socket, &line);
        assert_eq!(found, ["sandbox.yaml"], "{line}");
    }
}
