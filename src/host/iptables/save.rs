//! Reads the tables of the legacy back end: the crate `iptables` runs `iptables-save`, and its output is parsed.
//! Out of scope: the options of a rule ([`Rule::of_saved`]).
//!
//! # Why `iptables-save` and not `iptables -S`
//! Both print a rule with the same code (`print_rule4`), but `iptables -S` takes the lock of the legacy back end
//! (`xtables_lock_or_exit`): while another program holds it, no rule could be read, and namespaces of the daemon would wait for
//! each other. `iptables-save` takes no lock and returns one snapshot (`IPT_SO_GET_ENTRIES`). The crate's lists ignore the exit status,
//! so that a failed read would look like an empty table; its `execute` returns the status.
//!
//! # Limitation
//! `iptables-save` fails for a table with a match or target whose library is not installed: the table cannot be read until the library is
//! installed or the rule is removed, and nothing is changed until then.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::process::Output;
use std::time::{Duration, Instant};

use iptables::IPTables;
use parking_lot::Mutex;

use super::decode;
use crate::host::rule::{Chain, Policy, Rule, Ruleset, Table, TableName};
use crate::host::{Error, Kind, process};

/// The tables that the namespace has used. A query of any other table creates it and loads its module (`xt_request_find_table_lock`).
const NAMES: &str = "/proc/thread-self/net/ip_tables_names";

/// Reads tables with `program`, one process for each that exists in the calling thread's network namespace, all within `deadline`.
pub fn read(program: &Path, names: &[TableName], deadline: Duration) -> Result<Ruleset, Error> {
    let used = std::fs::read_to_string(NAMES).map_err(|e| unreadable(NAMES.to_owned(), e))?;
    let existing = names.iter().filter(|name| is_listed(&used, **name));
    let until = Instant::now() + deadline;
    let left = || until.saturating_duration_since(Instant::now());
    let tables = existing
        .map(|name| saved(program, *name, left()).map(Saved::table))
        .collect::<Result<Vec<_>, _>>()?;
    Ok(Ruleset::new(tables))
}

/// The number of packets that each rule of a chain of `filter` has matched.
pub fn counted(program: &Path, chain: &str, deadline: Duration) -> Result<Vec<(Rule, u64)>, Error> {
    let saved = saved(program, TableName::Filter, deadline)?;
    let chain = saved.chains.into_iter().find(|found| found.name == chain);
    Ok(chain.map_or_else(Vec::new, |chain| chain.rules))
}

/// Whether the policy of `FORWARD` is DROP. `None`: the program does not exist.
pub fn drops_forwarded(program: &Path, deadline: Duration) -> Result<Option<bool>, Error> {
    let used = match std::fs::read_to_string(NAMES) {
        Ok(used) => used,
        // A kernel without ip_tables has no such file.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Some(false)),
        Err(error) => return Err(unreadable(NAMES.to_owned(), error)),
    };
    if !is_listed(&used, TableName::Filter) {
        return Ok(Some(false));
    }
    let saved = match saved(program, TableName::Filter, deadline) {
        Err(error) if error.source.kind() == io::ErrorKind::NotFound => return Ok(None),
        saved => saved?,
    };
    let forward = saved.chains.iter().find(|chain| chain.name == "FORWARD");
    Ok(Some(
        forward.is_some_and(|chain| chain.policy == Some(Policy::Drop)),
    ))
}

/// A program or a file that does not exist does not mean that there are no rules.
fn unreadable(object: String, source: io::Error) -> Error {
    let error = Error::io("read", object, source);
    let kind = match error.kind {
        Kind::Absent => Kind::Other,
        kind => kind,
    };
    Error { kind, ..error }
}

fn is_listed(used: &str, name: TableName) -> bool {
    used.lines().any(|line| line == name.to_string())
}

/// Runs the program for one table and parses its output.
fn saved(program: &Path, name: TableName, deadline: Duration) -> Result<Saved, Error> {
    let object = || format!("the table {name} with {}", program.display());
    let command = IPTables {
        cmd: permanent(program)?,
        has_check: false,
        // It has no option for the lock, because it does not take it.
        has_wait: false,
        is_numeric: true,
    };
    let run = move || {
        let output = command.execute(&name.to_string(), "-c");
        output.map_err(|error| match error.downcast::<io::Error>() {
            Ok(error) => *error,
            // Other errors are not `Send`.
            Err(error) => io::Error::other(error.to_string()),
        })
    };
    let output = process::bounded(deadline, run)
        .and_then(|output| output)
        .map_err(|error| unreadable(object(), error))?;
    let Output {
        status,
        stdout,
        stderr,
    } = output;
    if !status.success() {
        let reason = String::from_utf8_lossy(&stderr);
        let reason = format!("{status}: {}", reason.trim());
        return Err(Error::other("read", object(), reason));
    }
    let invalid = |line| Error::other("read", object(), format!("invalid output: {line}"));
    parse(name, &String::from_utf8_lossy(&stdout)).map_err(invalid)
}

/// The crate takes the program as a `&'static str`; there is one for each back end.
fn permanent(program: &Path) -> Result<&'static str, Error> {
    static PROGRAMS: Mutex<BTreeSet<&'static str>> = Mutex::new(BTreeSet::new());
    let text = program.to_str().ok_or_else(|| {
        Error::other(
            "run",
            program.display().to_string(),
            "the path is not UTF-8",
        )
    })?;
    let mut programs = PROGRAMS.lock();
    if let Some(known) = programs.get(text) {
        return Ok(known);
    }
    let added: &'static str = Box::leak(text.into());
    programs.insert(added);
    Ok(added)
}

/// A table with the packet counter of each rule.
struct Saved {
    name: TableName,
    chains: Vec<SavedChain>,
}

struct SavedChain {
    name: String,
    policy: Option<Policy>,
    rules: Vec<(Rule, u64)>,
}

impl Saved {
    fn table(self) -> Table {
        let chains = self.chains.into_iter().map(|chain| Chain {
            name: chain.name,
            policy: chain.policy,
            rules: chain.rules.into_iter().map(|(rule, _)| rule).collect(),
        });
        Table {
            name: self.name,
            chains: chains.collect(),
        }
    }
}

/// `*TABLE`, then `:CHAIN POLICY [PACKETS:BYTES]` for every chain, then `[PACKETS:BYTES] -A CHAIN RULE`, then `COMMIT`; the lines around
/// them begin with `#`. The error is the line that is not understood.
fn parse(name: TableName, output: &str) -> Result<Saved, String> {
    let mut chains: Vec<SavedChain> = Vec::new();
    let mut names = BTreeSet::new();
    let mut committed = false;
    for line in lines(output) {
        let tokens: Vec<&str> = line.tokens.iter().map(String::as_str).collect();
        let fail = || line.text.to_owned();
        match tokens.as_slice() {
            [] => {}
            [first, ..] if first.starts_with('#') => {}
            [table] if table.strip_prefix('*') == Some(&name.to_string()) => {}
            ["COMMIT"] => committed = true,
            [chain, policy, _] if chain.starts_with(':') => {
                let policy = match *policy {
                    "-" => None,
                    token => Some(Policy::of_word(token).ok_or_else(fail)?),
                };
                let name = chain[1..].to_owned();
                if policy.is_none() {
                    names.insert(name.clone());
                }
                chains.push(SavedChain {
                    name,
                    policy,
                    rules: Vec::new(),
                });
            }
            [counters, "-A", chain, ..] => {
                let packets = packets(counters).ok_or_else(fail)?;
                let mut known = chains.iter_mut();
                let slot = known.find(|known| known.name == *chain).ok_or_else(fail)?;
                slot.rules.push((rule(&line, &names), packets));
            }
            _ => return Err(fail()),
        }
    }
    match committed {
        true => Ok(Saved { name, chains }),
        false => Err("no COMMIT".to_owned()),
    }
}

/// The rule after `[PACKETS:BYTES] -A CHAIN`.
fn rule(line: &Line, chains: &BTreeSet<String>) -> Rule {
    let tokens = line.tokens[3..].to_vec();
    let known = match Rule::of_saved(tokens, |chain| chains.contains(chain)) {
        Some(Rule::Known { when, then }) => decode::complete(*when, Some(then)).ok(),
        _ => None,
    };
    known.unwrap_or_else(|| {
        let text = line.text.splitn(4, ' ').nth(3).unwrap_or_default();
        Rule::Foreign(text.replace(char::is_control, " "))
    })
}

/// `[PACKETS:BYTES]`.
fn packets(counters: &str) -> Option<u64> {
    let inner = counters.strip_prefix('[')?.strip_suffix(']')?;
    inner.split_once(':')?.0.parse().ok()
}

/// A line of the output.
struct Line<'a> {
    text: &'a str,
    tokens: Vec<String>,
}

/// Options with a name that the program prints without quotes, even if it contains some.
const UNQUOTED: [&str; 5] = ["-A", "-i", "-o", "-j", "-g"];

/// Splits the output at line ends and each line at spaces, both outside quotes: a comment may contain a line end. In quotes, a
/// backslash escapes the next character (`xtables_save_string`).
fn lines(output: &str) -> impl Iterator<Item = Line<'_>> {
    let mut rest = output;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let mut tokens: Vec<String> = Vec::new();
        let mut token = String::new();
        let mut chars = rest.char_indices().peekable();
        let mut end = rest.len();
        while let Some((at, c)) = chars.next() {
            match c {
                '\n' => {
                    end = at;
                    break;
                }
                ' ' => tokens.extend(take(&mut token)),
                '"' if token.is_empty() && !follows_name_option(&tokens) => {
                    tokens.push(quoted(&mut chars));
                }
                c => token.push(c),
            }
        }
        tokens.extend(take(&mut token));
        let text = &rest[..end];
        rest = rest.get(end + 1..).unwrap_or_default();
        Some(Line { text, tokens })
    })
}

fn take(token: &mut String) -> Option<String> {
    Some(std::mem::take(token)).filter(|token| !token.is_empty())
}

fn follows_name_option(tokens: &[String]) -> bool {
    tokens
        .last()
        .is_some_and(|last| UNQUOTED.contains(&last.as_str()))
}

/// The rest of a quoted token. Ends with the output if the quote is not closed.
fn quoted(chars: &mut impl Iterator<Item = (usize, char)>) -> String {
    let mut token = String::new();
    while let Some((_, c)) = chars.next() {
        match c {
            '"' => break,
            '\\' => token.extend(chars.next().map(|(_, c)| c)),
            c => token.push(c),
        }
    }
    token
}
