//! The commands of each page, in the order of the page, on a host of their own with a running `sliced`; and their output, if the page
//! shows it. `BLESS=1` writes the output of this run into the pages where it differs.
//! Out of scope: the README's quick start (`newcomer`); commands that cannot run here, which are parsed (`tests/pure/docs`).

mod host;
pub mod session;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use test_support::pages::{self, Page};
use test_support::{placeholders, programs};

use super::guests::guest_dir;
use host::Host;
use session::Ran;

/// A test for each page, and the list of them.
macro_rules! pages {
    ($($name:ident $path:literal)*) => {
        const PAGES: &[&str] = &[$($path),*];
        $(
            #[test]
            fn $name() {
                check($path);
            }
        )*
    };
}

pages! {
    access "docs/access.md"
    coming_from_kubectl "docs/coming-from-kubectl.md"
    concepts "docs/concepts.md"
    disks "docs/disks.md"
    firewall "docs/firewall.md"
    guest_access "docs/guest-access.md"
    hypervisors "docs/hypervisors.md"
    install "docs/install.md"
    lifecycle "docs/lifecycle.md"
    network_bridge "docs/network-bridge.md"
    network_cni "docs/network-cni.md"
    network_isolated "docs/network-isolated.md"
    operations "docs/operations.md"
    quickstart "docs/quickstart.md"
    reference_api "docs/reference/api.md"
    rest_api "docs/rest-api.md"
    troubleshooting "docs/troubleshooting.md"
    vms_on_demand "docs/vms-on-demand.md"
}

/// For all commands of a page.
const PATIENCE: Duration = Duration::from_secs(180);

/// The commands of the README are a whole with those of the newcomer's test.
const README: &str = "README.md";

#[test]
fn every_page_with_commands_that_run_is_tested() {
    let found = pages::all().into_iter().filter(has_commands);
    let found: BTreeSet<String> = found.map(|page| page.path.display().to_string()).collect();
    let tested = PAGES.iter().chain([&README]).map(|path| (*path).to_owned());
    assert_eq!(found, tested.collect());
}

fn has_commands(page: &Page) -> bool {
    let blocks = page.blocks().expect("blocks");
    blocks.iter().any(pages::Block::is_run)
}

/// Runs the commands of a page and compares what they print.
#[track_caller]
fn check(path: &str) {
    let page = pages::page(Path::new(path));
    let ran = host::on_host(|host| run(host, &page));
    compare(&page, &ran);
}

/// Starts the daemon, then runs the commands.
#[track_caller]
fn run(host: &Host, page: &Page) -> Vec<Ran> {
    let actions = session::actions(&page.blocks().expect("blocks"));
    let dir = host.work.path().join("session");
    fs::create_dir(&dir).expect("a directory");
    let prelude = "sliced 2>$SESSION/sliced.log &
                   until slicectl version >/dev/null 2>&1; do sleep 0.05; done";
    session::write_script(&dir, prelude, &actions);
    let path = std::env::var("PATH").unwrap_or_default();
    let mut shell = Command::new("unshare");
    shell
        .args(["--pid", "--fork", "--kill-child", "--mount-proc", "bash"])
        .arg(dir.join("script"))
        .current_dir(host.work.path())
        .env("SESSION", &dir)
        .env("PATH", format!("{}:{path}", host.bin.display()))
        .env("COLUMNS", "120")
        .env("SLICE_GUEST_AGENT", guest_dir().join("slice-agent"))
        .env_remove("SLICE_SOCKET");
    session::run(&dir, shell, PATIENCE);
    session::results(&page.path, actions, &dir)
}

/// Compares the output of commands with what the page shows.
#[track_caller]
pub fn compare(page: &Page, ran: &[Ran]) {
    let different: Vec<&Ran> = ran.iter().filter(|ran| !ran.is_as_shown()).collect();
    if std::env::var_os("BLESS").is_some() {
        write(page, &different);
        return;
    }
    let path = page.path.display().to_string();
    let reports: Vec<String> = different.iter().map(|ran| ran.report(&path)).collect();
    assert!(
        reports.is_empty(),
        "(BLESS=1 accepts it)\n{}",
        reports.join("\n")
    );
}

/// Puts the output of these commands into the page. Where the page shows a part of the output, this is done by hand.
fn write(page: &Page, different: &[&Ran]) {
    let mut lines: Vec<String> = page.text.lines().map(str::to_owned).collect();
    for ran in different.iter().rev() {
        let shown = ran.shown();
        assert!(
            !lines[shown.clone()].iter().any(|line| line == "..."),
            "{}",
            ran.report(&page.path.display().to_string())
        );
        lines.splice(shown, ran.output.lines().map(str::to_owned));
    }
    let text = lines.join("\n") + "\n";
    fs::write(programs::root().join(&page.path), text).expect("a page");
}

/// The lines without what differs between two runs, and without the widths of columns.
fn normalized(text: &str) -> Vec<String> {
    let text = placeholders::normalize(text);
    let squeezed = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    text.lines().map(squeezed).collect()
}

#[test]
fn ages_pids_and_widths_are_not_compared_and_other_words_are() {
    let shown = "NAME   PID    AGE   STATUS\na      1234   2s    Ready\n";
    let found = "NAME   PID   AGE   STATUS\na      7     4m    Ready\n";
    assert_eq!(normalized(shown), normalized(found));
    assert_ne!(
        normalized(shown),
        normalized(&found.replace("Ready", "Failed"))
    );
    let lines = |text: &'static str| text.lines().collect::<Vec<_>>();
    assert!(pages::matches(&lines("a\n...\nd"), &lines("a\nb\nc\nd")));
    assert!(!pages::matches(&lines("a\n...\nd"), &lines("a\nb\nc")));
    assert!(!pages::matches(&lines("a"), &lines("a\nb")));
}

#[test]
fn a_command_that_fails_and_output_that_differs_are_found() {
    let ran = |text: &str| {
        let (path, text) = ("docs/page.md".into(), format!("```console\n{text}\n```\n"));
        let page = Page { path, text };
        let actions = session::actions(&page.blocks().expect("blocks"));
        let dir = tempfile::tempdir().expect("a directory");
        session::write_script(dir.path(), "", &actions);
        let mut shell = Command::new("bash");
        shell
            .arg(dir.path().join("script"))
            .env("SESSION", dir.path());
        session::run(dir.path(), shell, PATIENCE);
        session::results(&page.path, actions, dir.path())
    };
    let output = ran("# cd /; echo one\none\n# pwd && echo two\n/\n...\n# echo a\nb\n# echo c");
    let as_shown: Vec<bool> = output.iter().map(Ran::is_as_shown).collect();
    assert_eq!(as_shown, [true, true, false, true]);
    assert!(
        output[2]
            .report("docs/page.md")
            .contains("docs/page.md:7: echo a\n--- shown\nb\n--- found\na")
    );
    let failed = std::panic::catch_unwind(|| ran("# echo one\n# false\n# echo two"));
    let message = *failed
        .err()
        .expect("it fails")
        .downcast::<String>()
        .expect("a text");
    assert!(
        message.contains("`false`: exit status \"1\", expected 0"),
        "{message}"
    );
    let status = "<!-- exit: 3 -->\n```console\n# true\n# (exit 3)\n```\n";
    let page = Page {
        path: "docs/page.md".into(),
        text: status.to_owned(),
    };
    let expected = session::actions(&page.blocks().expect("blocks"));
    let statuses: Vec<i32> = expected
        .iter()
        .map(|action| match action {
            session::Action::Step { status, .. } => *status,
            session::Action::File { .. } | session::Action::Setup(_) => panic!("a step"),
        })
        .collect();
    assert_eq!(statuses, [0, 3]);
}
