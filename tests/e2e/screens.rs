//! What `slicectl` prints at terminals of 60, 80 and 160 columns and into a pipe, with and without colours. The golden files are in
//! `tests/goldens/screens`, colours are shown as ⟨green⟩; `BLESS=1` rewrites them.
//! Out of scope: the content of the output (`transcripts`).

mod editing;
mod guests;
pub mod watching;

use std::fs;

use unicode_width::UnicodeWidthStr;

use test_support::harness::{Harness, group, slots, with_daemon};
use test_support::screen::{self, Screen};
use test_support::transcript::Runner;
use test_support::{programs, vmm};

const WIDTHS: [u16; 3] = [60, 80, 160];

/// Where lines of text may be longer than the terminal, which wraps them.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Lines {
    /// All are rows of tables.
    Rows,
    /// Those behind the line `Conditions:` are.
    RowsOfConditions,
    /// None is.
    Text,
}

/// The name of the golden file, the command, its lines.
const CASES: [(&str, &str, Lines); 18] = [
    ("get-hg", "get hg", Lines::Rows),
    ("get-hg-wide", "get hg -o wide", Lines::Rows),
    ("get-vms", "get vms", Lines::Rows),
    ("get-vms-wide", "get vms -o wide", Lines::Rows),
    ("get-vms-sorted", "get vms --sort-by status", Lines::Rows),
    (
        "get-vms-sorted-by-field",
        "get vms --sort-by .spec.ram_bytes -o name",
        Lines::Text,
    ),
    (
        "get-vms-jsonpath",
        "get vms -o jsonpath={.items[*].metadata.name}",
        Lines::Text,
    ),
    ("get-hg-manifest", "get hg/sandbox -o manifest", Lines::Text),
    ("get-leases", "get leases", Lines::Rows),
    (
        "describe-hg",
        "describe hg sandbox",
        Lines::RowsOfConditions,
    ),
    (
        "describe-vm-broken",
        "describe vm broken-1",
        Lines::RowsOfConditions,
    ),
    (
        "describe-vm-stopped",
        "describe vm sandbox-2",
        Lines::RowsOfConditions,
    ),
    ("events-vm", "events vm/broken-1", Lines::Rows),
    ("events-vm-wide", "events vm/broken-1 -o wide", Lines::Rows),
    ("diff", "diff -f diff.yaml", Lines::Text),
    ("explain", "explain sandbox-1 192.168.1.9:443", Lines::Text),
    ("error-missing", "get vm none-such", Lines::Text),
    ("error-usage", "get vms --sort-by colour", Lines::Text),
];

/// A group with a VM that runs and one that was stopped by command, and a VM whose kernel does not exist.
fn build(harness: &Harness) -> Runner {
    let hypervisor = slicectl::api::vm::Hypervisor::CloudHypervisor;
    let program = vmm::program(hypervisor, harness.dir.path()).expect("a program");
    let lines = format!(
        "hypervisor: cloud-hypervisor\n      cloud_hypervisor_bin: {}\n      kernel_file: {}\n      agent: none",
        program.display(),
        vmm::tiny_guest().display()
    );
    let policy = "allow: ['192.168.1.7:443/tcp']\n        drop: [192.168.1.0/24]";
    let sandbox = slots(2, policy).replace("hypervisor: none", &lines);
    harness.apply(&sandbox);
    let missing = "hypervisor: qemu\n      kernel_file: /nowhere/vmlinuz\n      agent: none";
    let broken = group("broken", 1, "169.254.105.0/24", "").replace("hypervisor: none", missing);
    let path = harness.write("broken.yaml", &broken);
    harness.ctl(&format!("apply -f {path}"));
    harness.until("the missing kernel", || {
        let vm = harness.get("vm broken-1")["status"].to_string();
        vm.contains("/nowhere/vmlinuz").then_some(())
    });
    harness.until("the event", || {
        harness.messages("vm/sandbox-1", "Ready").pop()
    });
    harness.ctl("vm stop sandbox-2 --wait=60s");
    harness.until("the number of stopped VMs", || {
        (harness.get("hg sandbox")["status"]["stopped"] == 1).then_some(())
    });
    // The steps of a VM with a VMM contain its user id, which depends on the path of the state directory.
    let lab = group("lab", 1, "169.254.104.0/24", "");
    harness.write("diff.yaml", &lab);
    Runner::of(harness)
}

/// The output at a terminal, with colours as they are.
fn at_terminal(runner: &Runner, command: &str, columns: u16, no_color: bool) -> String {
    let mut command = runner.command(command);
    command.env_remove("COLUMNS").env_remove("NO_COLOR");
    if no_color {
        command.env("NO_COLOR", "1");
    }
    Screen::new(columns).run(&mut command)
}

/// The lines that are wider than the terminal although they are rows of tables.
fn too_wide(text: &str, columns: u16, lines: Lines) -> Vec<String> {
    let plain = screen::plain(text);
    let rows: Vec<&str> = match lines {
        Lines::Text => Vec::new(),
        Lines::Rows => plain.lines().collect(),
        Lines::RowsOfConditions => {
            let all = plain.lines().skip_while(|line| *line != "Conditions:");
            all.filter(|line| line.starts_with("  ")).collect()
        }
    };
    let is_bad = |line: &&str| line.width() > usize::from(columns) || line.trim().is_empty();
    rows.into_iter().filter(is_bad).map(str::to_owned).collect()
}

#[test]
fn output_fits_terminals_of_all_widths_with_and_without_colours() {
    with_daemon(|harness| {
        let runner = build(&harness);
        let mut faults = Vec::new();
        for (name, command, lines) in CASES {
            let piped = runner.run(command);
            let piped = format!("{}{}", piped.stdout, piped.stderr);
            let mut found = format!(
                "$ slicectl {command}\n=== pipe\n{}",
                runner.normalize(&piped)
            );
            for columns in WIDTHS {
                let colored = at_terminal(&runner, command, columns, false);
                let uncolored = at_terminal(&runner, command, columns, true);
                let wide = too_wide(&colored, columns, lines);
                if !wide.is_empty() {
                    faults.push(format!("{name} at {columns} columns: {wide:?}"));
                }
                if uncolored.contains('\u{1b}') {
                    faults.push(format!("{name}: colours with NO_COLOR:\n{uncolored}"));
                }
                let texts =
                    [screen::plain(&colored), uncolored].map(|text| runner.normalize(&text));
                if texts[0] != texts[1] {
                    faults.push(format!(
                        "{name}: NO_COLOR changes more than colours: {texts:#?}"
                    ));
                }
                let colored = runner.normalize(&screen::mark(&colored));
                found.push_str(&format!(
                    "=== {columns} columns\n{}",
                    screen::show(&colored)
                ));
            }
            faults.extend(difference(name, &found));
        }
        assert!(faults.is_empty(), "{}", faults.join("\n"));
    });
}

fn difference(name: &str, found: &str) -> Option<String> {
    let path = programs::root().join(format!("tests/goldens/screens/{name}.txt"));
    if std::env::var_os("BLESS").is_some() {
        fs::write(&path, found).expect("a golden file");
        return None;
    }
    let golden = fs::read_to_string(&path).unwrap_or_default();
    (golden != found).then(|| {
        format!("{name} differs (BLESS=1 accepts it)\n--- golden\n{golden}\n--- found\n{found}")
    })
}

/// What it finds depends on the machine, so there is no golden file.
#[test]
fn doctor_prints_no_line_wider_than_the_terminal_up_to_its_suggestions() {
    with_daemon(|harness| {
        let runner = Runner::of(&harness);
        for columns in WIDTHS {
            let found = at_terminal(&runner, "doctor", columns, false);
            let table = found.split("\n\n").next().unwrap_or_default();
            assert!(table.lines().count() > 5, "{found}");
            assert_eq!(too_wide(table, columns, Lines::Rows), [""; 0], "{found}");
        }
    });
}

/// The cells of each row but ages, because time passes between two commands.
fn rows(text: &str) -> Vec<Vec<&str>> {
    let age = |cell: &str| humantime::parse_duration(cell).is_ok();
    let cells = |line| {
        str::split_whitespace(line)
            .filter(|cell| !age(cell))
            .collect()
    };
    text.lines().map(cells).collect()
}

#[test]
fn a_table_without_headers_has_the_same_rows() {
    with_daemon(|harness| {
        harness.apply(&slots(2, ""));
        for command in ["get vms", "get hg -o wide", "get leases"] {
            let with = harness.ctl(command);
            let without = harness.ctl(&format!("{command} --no-headers"));
            assert_eq!(rows(&with)[1..], rows(&without), "{with}{without}");
        }
    });
}

/// In a pipe nothing is cut off: the tables themselves have the width.
#[test]
fn a_wide_table_of_vms_fits_160_columns() {
    with_daemon(|harness| {
        let runner = build(&harness);
        let wide = runner.run("get vms -o wide").stdout;
        let widest = wide.lines().map(UnicodeWidthStr::width).max();
        assert!(
            widest.is_some_and(|width| width <= 160),
            "{widest:?}:\n{wide}"
        );
        let narrow = runner.run("get hg").stdout;
        let widest = narrow.lines().map(UnicodeWidthStr::width).max();
        assert!(
            widest.is_some_and(|width| width <= 80),
            "{widest:?}:\n{narrow}"
        );
    });
}
