//! A Linux guest (`examples/guest`) in a house: put into groups, asked through `slicectl console`.
//! Out of scope: tests; the tiny guest (`tiny`).

use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serde_json::Value;

use super::house::House;

/// Between two looks at what it has said. Each is a process, and the guest needs the processor more than we.
const STEP: Duration = Duration::from_millis(100);

/// A group of slots, as `house` writes them, with a Linux guest in each; `lines` are more of the group's own.
pub fn guests(slots: &str, kernel: &str, initrd: &str, lines: &str) -> String {
    let lines = lines.replace('\n', "\n      ");
    let qemu = format!(
        "hypervisor: qemu\n      kernel_file: {kernel}\n      initrd_file: {initrd}\n      {lines}"
    );
    slots.replace("hypervisor: none", &qemu)
}

/// What `slicectl logs` shows of it.
pub fn said(house: &House, vm: &str) -> String {
    let log = house.try_ctl(&format!("logs {vm}")).stdout;
    String::from_utf8_lossy(&log).into_owned()
}

/// Until something is found in what it has said.
#[track_caller]
pub fn hear<T>(house: &House, vm: &str, what: &str, find: impl Fn(&str) -> Option<T>) -> T {
    house.until(what, || {
        let found = find(&said(house, vm));
        if found.is_none() {
            std::thread::sleep(STEP);
        }
        found
    })
}

/// Until it has said so, `times` times.
#[track_caller]
pub fn says(house: &House, vm: &str, words: &str, times: usize) {
    hear(house, vm, &format!("{words:?}, {times} times"), |said| {
        (said.matches(words).count() >= times).then_some(())
    });
}

/// Until it has booted, `times` times.
#[track_caller]
pub fn boots(house: &House, vm: &str, times: usize) {
    says(house, vm, &format!("GUEST {vm} ready"), times);
}

/// Types a line into the shell on its console.
pub fn tell(house: &House, vm: &str, line: &str) {
    let mut console = Command::new(env!("CARGO_BIN_EXE_slicectl"))
        .args(["console", vm, "-n", "0"])
        .env("SLICE_SOCKET", house.run.join("sliced.sock"))
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
pub fn question(house: &House, vm: &str, command: &str) -> Question {
    static ASKED: AtomicU32 = AtomicU32::new(1);
    let number = ASKED.fetch_add(1, Ordering::Relaxed);
    // The shell shows what is typed: this is not what it says.
    tell(
        house,
        vm,
        &format!("echo \"answer $(({number})): $({command})\""),
    );
    Question(format!("answer {number}: "))
}

/// Its answer.
#[track_caller]
pub fn answer(house: &House, vm: &str, Question(start): &Question) -> String {
    hear(house, vm, start, |said| {
        let (_, rest) = said.split_once(start.as_str())?;
        let (line, _) = rest.split_once(['\r', '\n'])?;
        Some(line.to_owned())
    })
}

/// Asks, and waits for the answer.
#[track_caller]
pub fn ask(house: &House, vm: &str, command: &str) -> String {
    answer(house, vm, &question(house, vm, command))
}

/// As `slicectl get` shows its VMM.
pub fn vmm(house: &House, vm: &str) -> Value {
    house.get(&format!("vm {vm}"))["status"]["vmm"].clone()
}

/// Its VMM's pid, as soon as one runs.
#[track_caller]
pub fn pid(house: &House, vm: &str) -> u32 {
    house.until("a process", || {
        let pid = vmm(house, vm)["pid"].as_u64()?;
        pid.try_into().ok()
    })
}
