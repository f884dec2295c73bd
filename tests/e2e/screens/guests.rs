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
pub(super) fn print_as_guest(harness: &Harness, vm: &str, text: &[u8]) {
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
        let evil = "\u{202e}\u{2066}\u{200b}";
        let bad = harness.write(
            &format!("needle{evil}.yaml"),
            "config:\n  host_groups:\n    - {nmae: x}\n",
        );
        let group = format!(
            "config:
  network_name: none-such
  host_groups:
    - name: pod
      hypervisor: none
      cni: {{args: {{KEY: \"needle{evil}\"}}}}
"
        );
        let good = harness.write("good.yaml", &group);
        harness.ctl(&format!("apply -f {good}"));
        harness.until("its VM", || (harness.vms() == ["pod-1"]).then_some(()));
        let field = "{.items[*].spec.network.cni.args.KEY}";
        for command in [
            format!("apply -f {bad}"),
            format!("diff -f {bad}"),
            "describe vm/pod-1".to_owned(),
            "describe hg/pod".to_owned(),
            "get vm/pod-1 -o json".to_owned(),
            "get vm/pod-1 -o yaml".to_owned(),
            "get hg/pod -o manifest".to_owned(),
            format!("get vms -o jsonpath={field}"),
        ] {
            let mut process = runner.command(&command);
            process.env("NO_COLOR", "1");
            let shown = Screen::new(200).run(&mut process);
            assert!(
                !shown.contains(|c| evil.contains(c)),
                "{command}: {shown:?}"
            );
            assert!(shown.contains("needle"), "{command}: {shown:?}");
        }
    });
}
