//! A Linux guest (`examples/guest`) on a test host: put into groups, asked through `slicectl console`.
//! Out of scope: tests; the tiny guest (`tiny`).

use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serde_json::Value;

use super::harness::Harness;
use super::programs;

/// Between two looks at what it has said. Each is a process, and the guest needs the processor more than we.
const STEP: Duration = Duration::from_millis(100);

/// A group of slots, as `harness` writes them, with a Linux guest in each; `lines` are more of the group's own.
pub fn guests(slots: &str, kernel: &str, initrd: &str, lines: &str) -> String {
    let lines = lines.replace('\n', "\n      ");
    let qemu = format!(
        "hypervisor: qemu\n      kernel_file: {kernel}\n      initrd_file: {initrd}\n      {lines}"
    );
    slots.replace("hypervisor: none", &qemu)
}

/// What `slicectl logs` shows of it.
pub fn output(harness: &Harness, vm: &str) -> String {
    let log = harness.try_ctl(&format!("logs {vm}")).stdout;
    String::from_utf8_lossy(&log).into_owned()
}

/// Until something is found in what it has said.
#[track_caller]
pub fn find_in_output<T>(
    harness: &Harness,
    vm: &str,
    what: &str,
    find: impl Fn(&str) -> Option<T>,
) -> T {
    harness.until(what, || {
        let found = find(&output(harness, vm));
        if found.is_none() {
            std::thread::sleep(STEP);
        }
        found
    })
}

/// Until it has said so, `times` times.
#[track_caller]
pub fn wait_for_output(harness: &Harness, vm: &str, words: &str, times: usize) {
    find_in_output(
        harness,
        vm,
        &format!("{words:?}, {times} times"),
        |reported| (reported.matches(words).count() >= times).then_some(()),
    );
}

/// Until it has booted, `times` times.
#[track_caller]
pub fn boots(harness: &Harness, vm: &str, times: usize) {
    wait_for_output(harness, vm, &format!("GUEST {vm} ready"), times);
}

/// Types a line into the shell on its console.
pub fn type_line(harness: &Harness, vm: &str, line: &str) {
    let mut console = Command::new(programs::built("slicectl"))
        .args(["console", vm, "-n", "0"])
        .env("SLICE_SOCKET", harness.run.join("sliced.sock"))
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .expect("slicectl");
    let mut keys = console.stdin.take().expect("its input");
    writeln!(keys, "{line}").expect("typed");
    drop(keys);
    assert!(console.wait().expect("its status").success(), "{line}");
}

/// A command that was typed, and how its answer begins.
#[must_use]
pub struct Question(String);

/// Types a command whose first line of output is the answer.
pub fn question(harness: &Harness, vm: &str, command: &str) -> Question {
    static ASKED: AtomicU32 = AtomicU32::new(1);
    let number = ASKED.fetch_add(1, Ordering::Relaxed);
    // The shell shows what is typed: this is not what it says.
    type_line(
        harness,
        vm,
        &format!("echo \"answer $(({number})): $({command})\""),
    );
    Question(format!("answer {number}: "))
}

/// Its answer.
#[track_caller]
pub fn answer(harness: &Harness, vm: &str, Question(start): &Question) -> String {
    find_in_output(harness, vm, start, |reported| {
        let (_, rest) = reported.split_once(start.as_str())?;
        let (line, _) = rest.split_once(['\r', '\n'])?;
        Some(line.to_owned())
    })
}

/// Asks, and waits for the answer.
#[track_caller]
pub fn output_of(harness: &Harness, vm: &str, command: &str) -> String {
    answer(harness, vm, &question(harness, vm, command))
}

/// As `slicectl get` shows its VMM.
pub fn vmm(harness: &Harness, vm: &str) -> Value {
    harness.get(&format!("vm {vm}"))["status"]["vmm"].clone()
}

/// Its VMM's pid, as soon as one runs.
#[track_caller]
pub fn pid(harness: &Harness, vm: &str) -> u32 {
    harness.until("a process", || {
        let pid = vmm(harness, vm)["pid"].as_u64()?;
        pid.try_into().ok()
    })
}
