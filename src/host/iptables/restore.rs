//! Writes rules with one `iptables-restore`, atomically.
//! Out of scope: reading them back; the desired state.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Seek as _, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};

use super::seal::{Created, begin};
use super::{Backend, Flavour};
use crate::host::rule::{Chain, Rule, Ruleset, TableName};
use crate::host::{Error, Kind, process};

/// How long `iptables-restore` waits for the lock of the legacy back end, in seconds.
const LOCK_TIMEOUT_SECONDS: &str = "5";

/// The maximum length of the program's output in an error, in characters.
const MAX_OUTPUT: usize = 4 << 10;

/// What `iptables-restore` reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Input {
    text: String,
    scope: Scope,
}

/// The effect on objects that the input does not contain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scope {
    /// Removed: each table in the input is replaced.
    WholeTables,
    /// Not changed.
    OnlyNamedChains,
}

/// An atomic change to one table; chains and rules that it does not contain are not changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Edit {
    /// The table.
    pub table: TableName,
    /// Chains to replace with exactly these rules; created if they do not exist.
    pub chains: Vec<Chain>,
    /// Chains to delete, whether or not they exist. Rules that jump to them must be in `remove` or in a chain of this edit.
    pub delete: Vec<String>,
    /// Rules to remove from a chain: chain, rule. Removes the first equal one; if there is none, the whole edit fails.
    pub remove: Vec<(String, Rule)>,
    /// Rules to insert at the top of a chain: chain, rule. In this order, the first one at the top.
    pub insert_top: Vec<(String, Rule)>,
}

impl Edit {
    /// An empty edit of `table`.
    pub fn of(table: TableName) -> Self {
        Self {
            table,
            chains: Vec::new(),
            delete: Vec::new(),
            remove: Vec::new(),
            insert_top: Vec::new(),
        }
    }
}

impl Input {
    /// Replaces the tables in `ruleset` completely, for a namespace of the daemon. Builtin chains that are not in it
    /// become empty with policy ACCEPT. Other tables are not changed.
    pub fn whole_tables(ruleset: &Ruleset) -> Self {
        let mut text = String::new();
        for table in ruleset.tables() {
            line(&mut text, format_args!("*{}", table.name));
            // The legacy back end keeps the policy of a builtin chain that is not declared.
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

    /// Fills tables that contain only their builtin chains, with the desired policies.
    fn into_created_tables(ruleset: &Ruleset) -> Self {
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

    /// Changes only what the edits contain, for the host.
    pub fn edits(edits: &[Edit]) -> Self {
        let mut text = String::new();
        for edit in edits {
            line(&mut text, format_args!("*{}", edit.table));
            // Declaring a chain flushes or creates it.
            let kept = edit.chains.iter().map(|chain| chain.name.as_str());
            for name in kept.chain(edit.delete.iter().map(String::as_str)) {
                line(&mut text, format_args!(":{name} - [0:0]"));
            }
            for (chain, rule) in &edit.remove {
                line(&mut text, format_args!("-D {chain} {rule}"));
            }
            append(&mut text, &edit.chains);
            for (chain, rule) in edit.insert_top.iter().rev() {
                line(&mut text, format_args!("-I {chain} 1 {rule}"));
            }
            for name in &edit.delete {
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
    writeln!(text, "{line}").expect("writing to a String does not fail");
}

/// The lock file of the legacy back end.
#[derive(Clone, Copy, Debug)]
pub enum Lock<'a> {
    /// `/run/xtables.lock`, which all programs on the host use: for the host's tables.
    Shared,
    /// A file of the caller: for a namespace of the daemon, in which no other program writes tables, so that hundreds of them do
    /// not wait for each other. Created if it does not exist.
    Private(&'a Path),
}

/// Replaces the tables in `ruleset` in a namespace of the daemon: like [`Input::whole_tables`], but 14 ms
/// faster the first time. If the first time fails after the first step, the tables exist with their policies and without rules.
///
/// # Why
/// `iptables-nft-restore` sets a policy by updating a chain, and the old state is freed after an RCU grace period, which
/// the kernel waits for when the tool's socket closes (`nft_rcv_nl_event`). A chain that is created with its policy needs
/// no update. So if there is no table yet, the builtin chains are created over netlink with their policies before the rules.
pub fn restore_tables(backend: &Backend, ruleset: &Ruleset, lock: Lock) -> Result<(), Error> {
    let created = match backend.kind {
        Flavour::Nft => begin(ruleset)?,
        Flavour::Legacy => Created::Existed,
    };
    let input = match created {
        Created::Now => Input::into_created_tables(ruleset),
        Created::Existed => Input::whole_tables(ruleset),
    };
    restore(backend, &input, lock)
}

/// Commits `input` in the calling thread's network namespace. Blocks for one child process, at most for [`Backend::timeout`].
///
/// Errors contain the output of the tool and the input line that it refers to; [`Kind::Busy`]: the lock was not available within 5 s.
pub fn restore(backend: &Backend, input: &Input, lock: Lock) -> Result<(), Error> {
    let error = |e| Error::io("run", backend.restore_program.display().to_string(), e);
    let mut command = Command::new(&backend.restore_program);
    command
        .args(["-w", LOCK_TIMEOUT_SECONDS])
        .env("LC_ALL", "C");
    match input.scope {
        Scope::WholeTables => {}
        Scope::OnlyNamedChains => drop(command.arg("--noflush")),
    }
    match (backend.kind, lock) {
        (Flavour::Legacy, Lock::Private(path)) => drop(command.env("XTABLES_LOCKFILE", path)),
        (Flavour::Legacy, Lock::Shared) | (Flavour::Nft, _) => {}
    }
    let ended = memory_file(&input.text)
        .and_then(|file| {
            command
                .stdin(file)
                .stdout(Stdio::null())
                .stderr(Stdio::piped());
            process::run(&mut command, backend.timeout)
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

/// An anonymous file as standard input, so that no thread has to write to a pipe.
pub(super) fn memory_file(text: &str) -> io::Result<File> {
    let fd = rustix::fs::memfd_create("rules", rustix::fs::MemfdFlags::CLOEXEC)?;
    let mut file = File::from(fd);
    file.write_all(text.as_bytes())?;
    file.rewind()?;
    Ok(file)
}

fn failed(
    backend: &Backend,
    input: &Input,
    status: std::process::ExitStatus,
    stderr_text: &str,
) -> Error {
    /// `RESOURCE_PROBLEM` of xtables.h: the lock is held, or memory allocation failed.
    const RESOURCE_PROBLEM: i32 = 4;
    // Limit the length of the message.
    let stderr_text: String = stderr_text.chars().take(MAX_OUTPUT).collect();
    let output = stderr_text.split_whitespace().collect::<Vec<_>>().join(" ");
    let context = offending_line(&output, &input.text)
        .map(|line| format!(" (line: {line})"))
        .unwrap_or_default();
    let mut error = Error::other(
        "commit packet filter rules with",
        backend.restore_program.display().to_string(),
        format!("{status}: {output}{context}"),
    );
    if status.code() == Some(RESOURCE_PROBLEM) && output.contains("lock") {
        error.kind = Kind::Busy;
    }
    error
}

/// Both back ends report `line 7` or `line: 7`.
fn offending_line<'a>(output: &str, text: &'a str) -> Option<&'a str> {
    let number = output.split("line").skip(1).find_map(|rest| {
        let rest = rest.trim_start_matches([':', ' ']);
        let digits = rest.split(|c: char| !c.is_ascii_digit()).next()?;
        digits.parse::<usize>().ok()
    })?;
    text.lines().nth(number.checked_sub(1)?)
}
