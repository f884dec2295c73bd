//! Writes rules: one `iptables-restore`, all or nothing.
//! Out of scope: reading them back; the desired state.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Seek as _, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};

use super::seal::{Begun, begin};
use super::{Backend, Flavour};
use crate::host::rule::{Chain, Rule, Ruleset, TableName};
use crate::host::{Error, Kind, process};

/// How long `iptables-restore` waits for the lock of the older back end, in seconds.
const LOCK_SECONDS: &str = "5";

/// Characters of what the program says that are passed on.
const MOST_SAID: usize = 4 << 10;

/// What `iptables-restore` reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Input {
    text: String,
    scope: Scope,
}

/// What becomes of what the input does not name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scope {
    /// Gone: each table named is replaced.
    WholeTables,
    /// It stays.
    OnlyNamedChains,
}

/// A change to one table that leaves alone what it does not name. Everything happens at once or not at all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Edit {
    /// The table.
    pub table: TableName,
    /// Chains that are to hold exactly these rules; made if they are not there.
    pub chains: Vec<Chain>,
    /// Chains that are to be gone, there or not. Whatever jumps to them must be in `remove` or in a chain named here.
    pub gone: Vec<String>,
    /// Rules to take out of a chain: chain, rule. The first equal one goes; if there is none, nothing happens at all.
    pub remove: Vec<(String, Rule)>,
    /// Rules to put at the top of a chain: chain, rule. In this order, the first at the very top.
    pub on_top: Vec<(String, Rule)>,
}

impl Edit {
    /// An edit of `table` that changes nothing yet.
    pub fn of(table: TableName) -> Self {
        Self {
            table,
            chains: Vec::new(),
            gone: Vec::new(),
            remove: Vec::new(),
            on_top: Vec::new(),
        }
    }
}

impl Input {
    /// Replaces the tables named in `ruleset`, whatever they held: for a namespace of our own. Builtin chains that are not
    /// named become empty with policy ACCEPT. Other tables stay.
    pub fn whole_tables(ruleset: &Ruleset) -> Self {
        let mut text = String::new();
        for table in ruleset.tables() {
            line(&mut text, format_args!("*{}", table.name));
            // The older back end keeps the policy of a builtin chain that is not named.
            for name in super::builtin_chains(table.name) {
                let policy = ruleset.policy(table.name, name);
                line(&mut text, format_args!(":{name} {policy} [0:0]"));
            }
            for chain in table.chains.iter().filter(|chain| chain.policy.is_none()) {
                line(&mut text, format_args!(":{} - [0:0]", chain.name));
            }
            append(&mut text, &table.chains);
            line(&mut text, format_args!("COMMIT"));
        }
        Self {
            text,
            scope: Scope::WholeTables,
        }
    }

    /// Fills tables that hold their builtin chains with the right policies and nothing else.
    fn into_begun(ruleset: &Ruleset) -> Self {
        let mut text = String::new();
        for table in ruleset.tables() {
            line(&mut text, format_args!("*{}", table.name));
            for chain in table.chains.iter().filter(|chain| chain.policy.is_none()) {
                line(&mut text, format_args!(":{} - [0:0]", chain.name));
            }
            append(&mut text, &table.chains);
            line(&mut text, format_args!("COMMIT"));
        }
        Self {
            text,
            scope: Scope::OnlyNamedChains,
        }
    }

    /// Changes what the edits name and nothing else: for the host.
    pub fn edits(edits: &[Edit]) -> Self {
        let mut text = String::new();
        for edit in edits {
            line(&mut text, format_args!("*{}", edit.table));
            // To declare a chain empties it, or makes it.
            let kept = edit.chains.iter().map(|chain| chain.name.as_str());
            for name in kept.chain(edit.gone.iter().map(String::as_str)) {
                line(&mut text, format_args!(":{name} - [0:0]"));
            }
            for (chain, rule) in &edit.remove {
                line(&mut text, format_args!("-D {chain} {rule}"));
            }
            append(&mut text, &edit.chains);
            for (chain, rule) in edit.on_top.iter().rev() {
                line(&mut text, format_args!("-I {chain} 1 {rule}"));
            }
            for name in &edit.gone {
                line(&mut text, format_args!("-X {name}"));
            }
            line(&mut text, format_args!("COMMIT"));
        }
        Self {
            text,
            scope: Scope::OnlyNamedChains,
        }
    }

    /// What `iptables-restore` reads.
    pub fn text(&self) -> &str {
        &self.text
    }
}

fn append(text: &mut String, chains: &[Chain]) {
    for chain in chains {
        for rule in &chain.rules {
            line(text, format_args!("-A {} {rule}", chain.name));
        }
    }
}

fn line(text: &mut String, line: std::fmt::Arguments) {
    writeln!(text, "{line}").expect("a String takes all");
}

/// Where the older back end's lock is.
#[derive(Clone, Copy, Debug)]
pub enum Lock<'a> {
    /// `/run/xtables.lock`, which everybody on the host takes: for the host's own tables.
    Shared,
    /// A file of the caller's: for a namespace of our own, whose tables nobody else writes, so that hundreds of them do
    /// not wait for each other. Made if it is not there.
    Private(&'a Path),
}

/// Makes the tables named in `ruleset` hold just that, in a namespace of our own: like [`Input::whole_tables`], and 14 ms
/// faster the first time. If the first time fails half way, the tables stand with their policies and without rules.
///
/// # Why
/// `iptables-nft-restore` sets a policy by changing a chain, and what was changed is freed after an RCU grace period, which
/// the kernel waits for when the tool's socket closes (`nft_rcv_nl_event`). A chain that is born with its policy costs
/// nothing of that. So where nothing stands, the builtin chains are made over netlink, and shut before there is a rule.
pub fn restore_whole(backend: &Backend, ruleset: &Ruleset, lock: Lock) -> Result<(), Error> {
    let begun = match backend.flavour {
        Flavour::Nft => begin(ruleset)?,
        Flavour::Legacy => Begun::Before,
    };
    let input = match begun {
        Begun::Now => Input::into_begun(ruleset),
        Begun::Before => Input::whole_tables(ruleset),
    };
    restore(backend, &input, lock)
}

/// Commits `input` in the calling thread's network namespace. Blocks for one child process, for [`Backend::deadline`] at most.
///
/// Errors carry what the tool said and the line it said it about; [`Kind::Busy`]: the lock was not to be had in 5 s.
pub fn restore(backend: &Backend, input: &Input, lock: Lock) -> Result<(), Error> {
    let error = |e| Error::io("run", backend.restore_program.display().to_string(), e);
    let mut command = Command::new(&backend.restore_program);
    command.args(["-w", LOCK_SECONDS]).env("LC_ALL", "C");
    match input.scope {
        Scope::WholeTables => {}
        Scope::OnlyNamedChains => drop(command.arg("--noflush")),
    }
    match (backend.flavour, lock) {
        (Flavour::Legacy, Lock::Private(path)) => drop(command.env("XTABLES_LOCKFILE", path)),
        (Flavour::Legacy, Lock::Shared) | (Flavour::Nft, _) => {}
    }
    let ended = memory_file(&input.text)
        .and_then(|file| {
            command
                .stdin(file)
                .stdout(Stdio::null())
                .stderr(Stdio::piped());
            process::run(&mut command, backend.deadline)
        })
        .map_err(error)?;
    match ended.status.success() {
        true => Ok(()),
        false => Err(failed(
            backend,
            input,
            ended.status,
            &String::from_utf8_lossy(&ended.stderr),
        )),
    }
}

/// A file without a name: the child reads it at its own pace, and nobody has to feed a pipe.
pub(super) fn memory_file(text: &str) -> io::Result<File> {
    let fd = rustix::fs::memfd_create("rules", rustix::fs::MemfdFlags::CLOEXEC)?;
    let mut file = File::from(fd);
    file.write_all(text.as_bytes())?;
    file.rewind()?;
    Ok(file)
}

fn failed(backend: &Backend, input: &Input, status: std::process::ExitStatus, said: &str) -> Error {
    /// `RESOURCE_PROBLEM` of xtables.h: the lock, or memory.
    const RESOURCE_PROBLEM: i32 = 4;
    // What a program says without end is no message.
    let said: String = said.chars().take(MOST_SAID).collect();
    let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
    let about = offending_line(&said, &input.text)
        .map(|line| format!(" (the line: {line})"))
        .unwrap_or_default();
    let mut error = Error::other(
        "commit packet filter rules with",
        backend.restore_program.display().to_string(),
        format!("{status}: {said}{about}"),
    );
    if status.code() == Some(RESOURCE_PROBLEM) && said.contains("lock") {
        error.kind = Kind::Busy;
    }
    error
}

/// Both back ends say `line 7` or `line: 7`.
fn offending_line<'a>(said: &str, text: &'a str) -> Option<&'a str> {
    let number = said.split("line").skip(1).find_map(|rest| {
        let rest = rest.trim_start_matches([':', ' ']);
        let digits = rest.split(|c: char| !c.is_ascii_digit()).next()?;
        digits.parse::<usize>().ok()
    })?;
    text.lines().nth(number.checked_sub(1)?)
}
