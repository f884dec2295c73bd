//! A new user on a bare Debian 12: exactly the commands of the README's quick start, from the clone to running guests, and back to
//! nothing. `SLICE_NEWCOMER=full` (`make newcomer`) compiles; otherwise `cargo build` provides the programs of these tests.
//! Out of scope: other pages (`docs`).
//!
//! # Why
//! `newcomer/prepare.sh` downloads before, because there is no network inside: the namespaces of `newcomer/enter.sh` have nothing in
//! common with this machine.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use test_support::pages::{self, Block, Page};
use test_support::{programs, turns};

use super::docs::compare;
use super::docs::session::{self, Action};

/// The heading above the commands.
const SECTION: &str = "## Quick start";

/// For all commands; the second with a compilation.
const PATIENCE: [Duration; 2] = [Duration::from_secs(300), Duration::from_secs(3600)];

/// What is on the machine, without what `apt-get` and `git clone` put there: links, addresses, routes, rules, namespaces, processes,
/// files.
const SNAPSHOT: &str = r#"
snapshot() {
    ip -o link; ip -o addr; ip route show table all; ip rule; ip netns
    iptables-save | grep -v -e '^#' -e '^\*' -e '^COMMIT' | sed 's/ \[[0-9:]*\]$//' | grep -v '^:[A-Z]* ACCEPT$'
    cat /proc/[0-9]*/comm | grep -e sliced -e qemu
    findmnt -rno TARGET | grep -v '^/proc/'
    find / -xdev -path /tmp -prune -o -path /root -prune -o -path /srv/session -prune -o -path /var/cache -prune -o \
        -path /var/lib/apt -prune -o -path /var/log -prune -o -print | sort
    find /run ! -type d -print -o -name '*slice*' -print | sort
    return 0
}"#;

#[test]
fn the_quick_start_works_on_a_bare_debian_and_leaves_nothing() {
    if std::env::var_os("SLICE_TESTS_INSIDE").is_some() {
        eprintln!("newcomer: not run, because debootstrap needs root outside of a user namespace");
        return;
    }
    let _turn = turns::beside_others();
    let page = pages::page(Path::new("README.md"));
    let blocks = quick_start(&page);
    let mut actions = session::actions(&blocks);
    surround(&mut actions);

    let dir = tempfile::tempdir().expect("a directory");
    let (session, source) = (dir.path().join("session"), dir.path().join("source"));
    fs::create_dir(&session).expect("a directory");
    let base = prepare(&actions);
    copy_repository(&source);
    session::write_script(&session, SNAPSHOT, &actions);

    let is_full = std::env::var("SLICE_NEWCOMER").is_ok_and(|value| value == "full");
    let built = programs::built("sliced");
    let binaries = if is_full {
        Path::new("")
    } else {
        built.parent().expect("a directory")
    };
    let mut machine = Command::new(script("enter.sh"));
    machine.arg(base).args([&session, &source]).arg(binaries);
    session::run(&session, machine, PATIENCE[usize::from(is_full)]);
    compare(&page, &session::results(&page.path, actions, &session));
}

/// The blocks of the section.
fn quick_start(page: &Page) -> Vec<Block> {
    let line_of = |found: &dyn Fn(&str) -> bool| page.text.lines().position(found);
    let start = line_of(&|line| line == SECTION).expect("the section");
    let rest = page.text.lines().skip(start + 1);
    let length = rest.take_while(|line| !line.starts_with("## ")).count();
    let blocks = page.blocks().expect("blocks").into_iter();
    let found: Vec<Block> = blocks
        .filter(|block| (start..start + length).contains(&block.line))
        .collect();
    assert!(
        found.iter().filter(|block| block.is_run()).count() >= 3,
        "{found:#?}"
    );
    found
}

/// Takes a snapshot before the first file of ours is there, checks that guests run in the middle, and compares at the end.
fn surround(actions: &mut Vec<Action>) {
    let at = |actions: &[Action], start: &str| {
        let is_it = |action: &Action| matches!(action, Action::Step { step, .. } if step.command.starts_with(start));
        actions
            .iter()
            .position(is_it)
            .unwrap_or_else(|| panic!("no command {start}"))
    };
    let setup = |command: &str| Action::Setup(command.to_owned());
    let delete = at(actions, "slicectl delete");
    let boots = "for vm in sandbox-1 sandbox-2; do
                     until slicectl logs $vm | grep -q \"GUEST $vm ready\"; do sleep 0.2; done
                 done";
    actions.insert(delete, setup(boots));
    let clone = at(actions, "git clone");
    actions.insert(clone, setup("snapshot >/tmp/before"));
    actions.push(setup("snapshot >/tmp/after; diff /tmp/before /tmp/after"));
}

fn script(name: &str) -> PathBuf {
    programs::root().join("tests/e2e/newcomer").join(name)
}

/// A bare Debian, and the packages that the commands install.
fn prepare(actions: &[Action]) -> PathBuf {
    let install = actions.iter().find_map(|action| match action {
        Action::Step { step, .. } => step.command.strip_prefix("apt-get install "),
        Action::File { .. } | Action::Setup(_) => None,
    });
    let words = install.expect("packages").split_whitespace();
    let dir = programs::root().join("target/newcomer");
    let output = Command::new(script("prepare.sh"))
        .arg(&dir)
        .args(words.filter(|word| !word.starts_with('-')))
        .output()
        .expect("prepare.sh");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    dir.join("base")
}

/// A repository with the files of this one, committed or not.
fn copy_repository(to: &Path) {
    let commands = r#"
        comm -z -23 <(git ls-files -z --cached --others --exclude-standard | sort -zu) <(git ls-files -z --deleted | sort -z) |
            tar --null --files-from - -c | { mkdir "$TO" && tar -x -C "$TO"; }
        cd "$TO"
        git init -q
        git add -A
        git -c user.name=test -c user.email=test@localhost commit -qm files"#;
    let output = Command::new("bash")
        .args(["-euo", "pipefail", "-c", commands])
        .current_dir(programs::root())
        .env("TO", to)
        .output()
        .expect("sh");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
