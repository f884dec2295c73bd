//! Text of guests and of manifests at a terminal: it cannot control it.
//! Out of scope: the grammar of what passes (unit tests of `cli::sanitize`).

use std::fs::File;
use std::io::Write;

use test_support::harness::{Harness, with_daemon};
use test_support::screen::Screen;
use test_support::transcript::Runner;

use super::{at_terminal, build};

const TEXT: &str =
    "a\u{1b}]0;title\u{7}b\u{1b}[6nc\u{1b}[31mred\u{1b}[0m\u{202e}d\u{9b}2Je\ttab\r\n";

/// Appends to the output of a guest, as the guest would.
fn print_as_guest(harness: &Harness, vm: &str, text: &[u8]) {
    let vm = harness.get(&format!("vm {vm}"));
    let log = vm["status"]["vmm"]["log"].as_str().expect("a log");
    let mut log = File::options().append(true).open(log).expect("the log");
    log.write_all(text).expect("written");
}

#[test]
fn logs_pass_text_and_colours_to_a_terminal_and_bytes_to_a_pipe() {
    with_daemon(|harness| {
        let runner = build(&harness);
        print_as_guest(&harness, "sandbox-1", TEXT.as_bytes());
        let last = |text: &str| text.lines().last().expect("a line").to_owned();
        let shown = at_terminal(&runner, "logs sandbox-1", 80, false);
        assert_eq!(last(&shown), "abc\u{1b}[31mred\u{1b}[0m\u{fffd}d2Je\ttab");
        let raw = at_terminal(&runner, "logs sandbox-1 --raw", 80, false);
        assert_eq!(last(&raw), TEXT.trim_end());
        let piped = runner.command("logs sandbox-1").output().expect("slicectl");
        assert!(piped.stdout.ends_with(TEXT.as_bytes()), "{piped:?}");
    });
}

/// Every command that prints what a manifest or a file name contains, and its errors.
#[test]
fn text_of_manifests_cannot_control_a_terminal() {
    with_daemon(|harness| {
        let runner = Runner::of(&harness);
        let evil = "\u{202e}\u{9b}6n\u{2028}\u{200b}";
        let written: String = evil.chars().flat_map(char::escape_unicode).collect();
        let written = written
            .replace("\\u{9b}", "\\x9b")
            .replace("\\u{", "\\u")
            .replace('}', "");
        let bad =
            format!("config:\n  host_groups:\n    - {{name: \"x{written}\", \"k{written}\": 1}}\n");
        let bad = harness.write("bad.yaml", &bad);
        let options = format!("hypervisor: qemu\n      kernel_file: \"/nowhere/{written}\"");
        let kernel = test_support::harness::slots(1, "").replace("hypervisor: none", &options);
        let kernel = harness.write("kernel.yaml", &kernel);
        harness.ctl(&format!("apply -f {kernel}"));
        harness.until("the missing kernel", || {
            let vm = harness.get("vm sandbox-1")["status"].to_string();
            vm.contains("is not a file").then_some(())
        });
        let mut found = 0;
        for command in [
            format!("apply -f {bad}"),
            format!("diff -f {bad}"),
            format!("diff -f {kernel}"),
            "describe vm/sandbox-1".to_owned(),
            "describe hg/sandbox".to_owned(),
            "get vm/sandbox-1 -o json".to_owned(),
            "get vm/sandbox-1 -o yaml".to_owned(),
            "get hg/sandbox -o manifest".to_owned(),
            "get vms -o jsonpath={.items[*].spec.kernel_file}".to_owned(),
            "get vms".to_owned(),
            "events".to_owned(),
            "wait vm/sandbox-1 --for ready --timeout 100ms".to_owned(),
        ] {
            let mut process = runner.command(&command);
            process.env("NO_COLOR", "1");
            let shown = Screen::new(200).run(&mut process);
            let is_evil = |c: char| evil.contains(c) && !c.is_ascii();
            assert!(!shown.contains(is_evil), "{command}: {shown:?}");
            found += usize::from(shown.contains("/nowhere/") || shown.contains("bad.yaml"));
        }
        assert!(found >= 8, "the text is in {found} outputs");
    });
}
