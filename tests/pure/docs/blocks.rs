//! The blocks of each page: YAML is a manifest or settings, JSON is JSON or a CNI network, commands are those of `slicectl`, `sliced`
//! or of known programs.

use std::fs;
use std::path::Path;

use clap::Parser;
use clap::error::ErrorKind;
use slicectl::api::manifest::{self, Source, settings};
use slicectl::api::validate;
use slicectl::cli::{args, sliced};
use slicectl::cni::Network;
use test_support::pages::{self, Block, Page};
use test_support::shell::simple_commands;

use super::super::source::root;
use super::{GENERATED, assert_none, assert_one, page};

/// Programs of the host that pages use.
const PROGRAMS: [&str; 58] = [
    "apt-get",
    "awk",
    "basename",
    "bridge",
    "busybox",
    "cat",
    "cd",
    "chmod",
    "cp",
    "cryptsetup",
    "curl",
    "dd",
    "echo",
    "etcdctl",
    "export",
    "find",
    "getent",
    "git",
    "grep",
    "groupadd",
    "install",
    "ip",
    "ipcalc",
    "iptables",
    "iptables-save",
    "journalctl",
    "jq",
    "kill",
    "losetup",
    "ls",
    "lvcreate",
    "man",
    "mkdir",
    "mkfs.ext4",
    "modprobe",
    "mv",
    "nft",
    "nsenter",
    "openssl",
    "ping",
    "printf",
    "ps",
    "rm",
    "rmdir",
    "rsync",
    "scp",
    "sed",
    "setpriv",
    "sleep",
    "ss",
    "ssh",
    "sysctl",
    "systemctl",
    "tail",
    "tcpdump",
    "test",
    "truncate",
    "wait",
];

/// Further programs, which only pages for those who change the project use.
const TOOLS: [&str; 3] = ["cargo", "usermod", "true"];

fn problems(page: &Page) -> Vec<String> {
    let blocks = match page.blocks() {
        Ok(blocks) => blocks,
        Err(problem) => return vec![problem],
    };
    let of = |block: &Block| {
        let place = format!("{}:{}", page.path.display(), block.line);
        let problems = match is_synopsis(page, block) || !block.is_parsed() {
            true => Vec::new(),
            false => problems_of(block),
        };
        problems
            .into_iter()
            .map(move |problem| format!("{place}: {problem}"))
            .collect::<Vec<_>>()
    };
    blocks.iter().flat_map(of).collect()
}

/// Generated pages show synopses and examples of the help, whose tests are those of the help.
fn is_synopsis(page: &Page, block: &Block) -> bool {
    GENERATED.iter().any(|path| page.path == Path::new(path)) && block.language.is_empty()
}

fn problems_of(block: &Block) -> Vec<String> {
    match block.language.as_str() {
        "yaml" => yaml(&block.text()),
        "json" => json(&block.text()),
        "console" => console(block),
        "text" => Vec::new(),
        other => vec![format!("unknown language \"{other}\"")],
    }
}

/// A manifest has `config:`; everything else is a settings file.
fn yaml(text: &str) -> Vec<String> {
    let source = Source {
        name: "block".to_owned(),
        text: text.to_owned(),
    };
    let result = if text.lines().any(|line| line.starts_with("config:")) {
        manifest::parse(&source).and_then(|drafts| validate::check_apply(&[], &drafts).map(drop))
    } else {
        settings::parse(&source).map(drop)
    };
    let problems = result.err().unwrap_or_default();
    problems.iter().map(ToString::to_string).collect()
}

fn json(text: &str) -> Vec<String> {
    let value: serde_json::Value = match serde_json::from_str(text) {
        Ok(value) => value,
        Err(error) => return vec![error.to_string()],
    };
    let network = value
        .get("plugins")
        .map(|_| Network::parse(Path::new("block.conflist"), text));
    let problem = network.and_then(Result::err).map(|error| error.to_string());
    problem.into_iter().collect()
}

fn console(block: &Block) -> Vec<String> {
    let steps = match block.steps() {
        Ok(steps) => steps,
        Err(problem) => return vec![problem],
    };
    let mut found = Vec::new();
    if steps.is_empty() {
        found.push("no command".to_owned());
    }
    for step in steps {
        match simple_commands(&step.command) {
            Err(problem) => found.push(format!("`{}`: {problem}", step.command)),
            Ok(commands) => {
                let problems = commands.iter().filter_map(|words| command(words).err());
                found.extend(problems.map(|problem| format!("`{}`: {problem}", step.command)));
            }
        }
    }
    found
}

fn command(words: &[String]) -> Result<(), String> {
    match words[0].as_str() {
        "slicectl" => parsed::<args::Args>(words),
        "sliced" => parsed::<sliced::Args>(words),
        "make" => target(words),
        program if PROGRAMS.contains(&program) || TOOLS.contains(&program) => Ok(()),
        path if path.contains('/') && root().join(path).is_file() => Ok(()),
        other => Err(format!("unknown program \"{other}\"")),
    }
}

fn parsed<A: Parser>(words: &[String]) -> Result<(), String> {
    // A variable of the page: the id of a command in a guest.
    let words = words.iter().map(|word| match word.as_str() {
        "$id" => "ex_4f2a",
        word => word,
    });
    match A::try_parse_from(words) {
        Ok(_) => Ok(()),
        Err(error) => match error.kind() {
            ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Ok(()),
            _ => Err(error.to_string()),
        },
    }
}

/// The targets of the Makefile.
fn target(words: &[String]) -> Result<(), String> {
    let makefile = fs::read_to_string(root().join("Makefile")).expect("the Makefile");
    let targets = words[1..]
        .iter()
        .filter(|word| !word.contains('=') && !word.starts_with('-'));
    let mut missing = targets.filter(|target| {
        !makefile
            .lines()
            .any(|line| line.starts_with(&format!("{target}:")))
    });
    match missing.next() {
        None => Ok(()),
        Some(target) => Err(format!("the Makefile has no target {target}")),
    }
}

#[test]
fn every_block_of_every_page_is_valid() {
    let pages = pages::all();
    assert!(pages.len() > 20, "{} pages", pages.len());
    let found: Vec<String> = pages.iter().flat_map(problems).collect();
    assert_none(&found);
    let blocks = |page: &Page| page.blocks().expect("blocks").len();
    assert!(pages.iter().map(blocks).sum::<usize>() > 50);
}

/// The problems of a page that consists of one block.
fn problems_in(language: &str, text: &str) -> Vec<String> {
    problems(&page(
        "docs/page.md",
        &format!("# Page\n\n```{language}\n{text}\n```\n"),
    ))
}

#[test]
fn an_invalid_manifest_is_found_with_its_place() {
    let text = "config:\n  host_groups:\n    - name: web\n      nmae: x";
    assert_one(&problems_in("yaml", text), "docs/page.md:3: block:4:7");
}

#[test]
fn a_manifest_that_parses_but_that_apply_refuses_is_found() {
    let group = "\n    - name: web\n      network: {mode: isolated, range: 169.254.100.0/22}";
    let other = group.replace("web", "db");
    assert!(!problems_in("yaml", &format!("config:\n  host_groups:{group}{other}")).is_empty());
}

#[test]
fn invalid_settings_are_found() {
    assert_one(&problems_in("yaml", "imagse: [/srv]"), "unknown key");
    assert_none(&problems_in("yaml", "images: [/srv]"));
}

#[test]
fn invalid_json_and_an_invalid_network_are_found() {
    assert_one(&problems_in("json", "{"), "EOF");
    let empty = r#"{"cniVersion": "1.0.0", "name": "a", "plugins": []}"#;
    assert_one(&problems_in("json", empty), "plugin");
}

#[test]
fn unknown_verbs_flags_programs_and_targets_are_found() {
    for (command, expected) in [
        ("slicectl frobnicate", "frobnicate"),
        ("slicectl get vms --colour", "--colour"),
        ("sliced --config /etc", "--config"),
        ("cat x | slicectl apply", "--filename"),
        ("vm=$(slicectl vm ad web) && true", "ad"),
        ("frobnicate", "unknown program"),
        ("make cake", "no target cake"),
        ("examples/guest/bild.sh x", "unknown program"),
        ("slicectl 'get", "no closing"),
    ] {
        assert_one(&problems_in("console", &format!("# {command}")), expected);
    }
}

#[test]
fn valid_commands_in_pipes_substitutions_and_with_comments_are_accepted() {
    for command in [
        "slicectl new web --net=bridge | slicectl apply -f -    # prints and applies",
        "vm=$(slicectl vm add web -o name) && slicectl wait $vm --for ready",
        "test -z \"$(slicectl diff -f groups/)\" || echo 'apply would change something' >&2",
        "slicectl vm add web \\\n    --tag a=b --drop ''",
        "sliced --help; make install DESTDIR=/tmp/x",
    ] {
        assert_none(&problems_in("console", &format!("# {command}")));
    }
}

#[test]
fn a_block_without_a_command_language_or_fence_and_a_misplaced_note_are_found() {
    assert_one(&problems_in("console", "output"), "without a command");
    assert_one(
        &problems(&page("docs/page.md", "```console\n```\n")),
        "no command",
    );
    assert_one(&problems_in("", "text"), "unknown language");
    let unclosed = page("docs/page.md", "```text\n");
    assert_one(&problems(&unclosed), "no closing fence");
    for (note, expected) in [
        ("<!-- not run: reason -->\ntext\n", "without a block"),
        ("<!-- not run: reason -->\n", "has no block"),
        ("<!-- runs: not -->\n", "unknown note"),
        ("<!-- not run -->\n", "without a reason"),
    ] {
        assert_one(&problems(&page("docs/page.md", note)), expected);
    }
}
