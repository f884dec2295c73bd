//! Removes a chain of the `nat` table that another program created with `iptables`, and the jumps to it.
//! Out of scope: which program owns the chain.

use std::io;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::host::{Error, process};

/// The timeout for the lock of the legacy back end, in seconds.
const LOCK_TIMEOUT_SECONDS: &str = "5";

/// The program that created the chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// `iptables`
    Ipv4,
    /// `ip6tables`
    Ipv6,
}

impl Family {
    const fn program(self) -> &'static str {
        match self {
            Self::Ipv4 => "iptables",
            Self::Ipv6 => "ip6tables",
        }
    }
}

/// Removes `chain` with its rules and the rules of `parent` that jump to it, in one transaction; in the calling thread's network
/// namespace. False: there was no such chain or rule. Blocks for at most three processes, each for at most `deadline`.
///
/// Uses the programs in `PATH`, because the program that created the chain used the same back end. If they do not exist, there is
/// no such chain.
pub fn remove_nat_chain(
    family: Family,
    parent: &str,
    chain: &str,
    deadline: Duration,
) -> Result<bool, Error> {
    let list = |chain: &str| run(family, "", &["-t", "nat", "-S", chain], None, deadline);
    let rules = list(parent)?.unwrap_or_default();
    let jumps: Vec<&str> = rules.lines().filter(|rule| jumps_to(rule, chain)).collect();
    if jumps.is_empty() && list(chain)?.is_none() {
        return Ok(false);
    }
    // With `--noflush`, declaring a chain creates or flushes it; so this works whether or not the chain exists.
    let mut text = format!("*nat\n:{chain} - [0:0]\n");
    for jump in jumps {
        text.push_str(&jump.replacen("-A ", "-D ", 1));
        text.push('\n');
    }
    text.push_str(&format!("-X {chain}\nCOMMIT\n"));
    let output = run(family, "-restore", &["--noflush"], Some(&text), deadline)?;
    output.map(|_| true).ok_or_else(|| {
        let reason = "iptables-restore failed: the rules were changed meanwhile, or other rules jump to the chain";
        Error::other("remove chain", chain, reason)
    })
}

/// Whether a rule of `parent` jumps to `chain`. Blocks for one process.
pub fn has_nat_chain(
    family: Family,
    parent: &str,
    chain: &str,
    deadline: Duration,
) -> Result<bool, Error> {
    let rules = run(family, "", &["-t", "nat", "-S", parent], None, deadline)?;
    let rules = rules.unwrap_or_default();
    Ok(rules.lines().any(|rule| jumps_to(rule, chain)))
}

fn jumps_to(rule: &str, chain: &str) -> bool {
    let mut tokens = rule.split_whitespace();
    rule.starts_with("-A ") && tokens.any(|word| word == "-j") && tokens.next() == Some(chain)
}

/// Its output; `None`: it failed, or the program does not exist.
fn run(
    family: Family,
    suffix: &str,
    args: &[&str],
    input: Option<&str>,
    deadline: Duration,
) -> Result<Option<String>, Error> {
    let program = format!("{}{suffix}", family.program());
    let fail = |error| Error::io("run", program.clone(), error);
    let mut command = Command::new(&program);
    command
        .args(["-w", LOCK_TIMEOUT_SECONDS])
        .args(args)
        .env("LC_ALL", "C")
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    match input {
        Some(text) => command.stdin(super::restore::memory_file(text).map_err(fail)?),
        None => command.stdin(Stdio::null()),
    };
    match process::run(&mut command, deadline) {
        Ok(ended) if ended.status.success() => {
            Ok(Some(String::from_utf8_lossy(&ended.stdout).into_owned()))
        }
        Ok(_) => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(fail(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::jumps_to;

    #[test]
    fn a_jump_is_distinguished_from_a_rule_that_mentions_the_chain() {
        let jump = r#"-A POSTROUTING -s 10.77.0.2/32 -m comment --comment "name: \"net\" id: \"a\"" -j CNI-1"#;
        assert!(jumps_to(jump, "CNI-1"));
        for other in [
            "-P POSTROUTING ACCEPT",
            "-A POSTROUTING -j CNI-11",
            "-A POSTROUTING -m comment --comment CNI-1 -j ACCEPT",
            "-A POSTROUTING -j",
            "-D POSTROUTING -j CNI-1",
        ] {
            assert!(!jumps_to(other, "CNI-1"), "{other}");
        }
    }
}
