//! Removes a chain of the `nat` table that some other program made with `iptables`, and the jumps to it.
//! Out of scope: which program owns the chain.

use std::io;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::host::{Error, process};

/// How long the lock of the older back end is waited for, in seconds.
const LOCK_SECONDS: &str = "5";

/// Which of the two programs made it.
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
/// namespace. False: there was nothing. Blocks for three short programs at most, each for `deadline`.
///
/// The programs are those in `PATH`: whoever made the chain by that name used the same back end. Where there is no such program,
/// nobody has made anything with it.
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
    // With `--noflush`, to declare a chain is to make it or to empty it; so this works whatever of it is there.
    let mut text = format!("*nat\n:{chain} - [0:0]\n");
    for jump in jumps {
        text.push_str(&jump.replacen("-A ", "-D ", 1));
        text.push('\n');
    }
    text.push_str(&format!("-X {chain}\nCOMMIT\n"));
    let done = run(family, "-restore", &["--noflush"], Some(&text), deadline)?;
    done.map(|_| true).ok_or_else(|| {
        let why = "it refused; its rules have changed meanwhile, or others jump to the chain";
        Error::other("remove the chain", chain, why)
    })
}

/// Whether a rule of `parent` jumps to `chain`. Blocks for a short program.
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
    let mut words = rule.split_whitespace();
    rule.starts_with("-A ") && words.any(|word| word == "-j") && words.next() == Some(chain)
}

/// What it printed; none: it failed, or there is no such program.
fn run(
    family: Family,
    suffix: &str,
    words: &[&str],
    input: Option<&str>,
    deadline: Duration,
) -> Result<Option<String>, Error> {
    let program = format!("{}{suffix}", family.program());
    let fail = |error| Error::io("run", program.clone(), error);
    let mut command = Command::new(&program);
    command
        .args(["-w", LOCK_SECONDS])
        .args(words)
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
    fn a_jump_is_told_from_a_rule_that_mentions_the_chain() {
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
