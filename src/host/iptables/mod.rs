//! The host's packet filter: restore rules in one transaction, read them back, block IPv6.
//! Out of scope: the desired state.
//!
//! # Why
//! A VM's first packet is delayed until its rules are read back, so reading must be cheap: rules are written by one
//! `iptables-restore` process and, with nf_tables, read from the kernel without a process, in tens of microseconds; the legacy back end is
//! read with `iptables-save` ([`Backend::runs_a_program`]). They are decoded to the [`Rule`](super::rule::Rule) type that was written, and
//! compared with `==`.
//!
//! Everything here is synchronous and works in the network namespace of the calling thread.

mod chains;
mod decode;
mod draft;
mod expr;
pub mod foreign;
mod limits;
mod machine;
pub(in crate::host) mod netlink;
mod nft;
mod probe;
mod restore;
mod save;
mod seal;
mod translations;
mod uapi;
mod walk;

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::Error;
use super::process;
use super::rule::{Generation, Ruleset, TableName};

pub use chains::{Family, has_nat_chain, remove_nat_chain};
pub use netlink::Netfilter;
pub use restore::{Edit, Input, Lock, restore, restore_tables};
pub use seal::{block_ipv6, is_ipv6_blocked, is_ipv6_blocked_with};
pub use translations::Translations;

/// The kernel back end that `iptables` writes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavour {
    /// nf_tables.
    Nft,
    /// ip_tables.
    Legacy,
}

/// The `iptables-restore` of this host. Detect it once and keep it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    /// The kernel back end.
    pub kind: Flavour,
    /// The absolute path of the program; a name for the back end that is not in use.
    pub restore_program: PathBuf,
    /// Its version output: `iptables-restore v1.8.9 (nf_tables)`.
    pub version: String,
    /// The timeout of a commit, and of reading tables of the legacy back end. After it the program is killed; the kernel keeps the previous
    /// rules, because a commit is one transaction.
    pub timeout: Duration,
}

/// The default timeout of a commit.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// The timeout of `--version`.
const VERSION_TIMEOUT: Duration = Duration::from_secs(5);

impl Backend {
    /// Finds it in `PATH`.
    pub fn detect() -> Result<Self, Error> {
        Self::detect_in(&std::env::var_os("PATH").unwrap_or_default())
    }

    /// Finds it in `path`, a list of directories like `PATH`. [`Absent`](super::Kind::Absent): not found.
    pub fn detect_in(path: &OsStr) -> Result<Self, Error> {
        const PROGRAM: &str = "iptables-restore";
        let restore_program = std::env::split_paths(path)
            .map(|directory| directory.join(PROGRAM))
            .find(|program| program.is_file())
            .ok_or_else(|| Error::io("find", PROGRAM, std::io::ErrorKind::NotFound.into()))?;
        let mut command = Command::new(&restore_program);
        command
            .arg("--version")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let output = process::run(&mut command, VERSION_TIMEOUT)
            .map_err(|e| Error::io("run", restore_program.display().to_string(), e))?;
        let version = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        // Before 1.8 there was only the legacy back end, and the version does not mention it.
        let kind = match version.contains("nf_tables") {
            true => Flavour::Nft,
            false => Flavour::Legacy,
        };
        Ok(Self {
            kind,
            restore_program,
            version,
            timeout: DEADLINE,
        })
    }

    /// Reads complete tables from the kernel, including foreign rules.
    pub fn read(&self, tables: &[TableName]) -> Result<Ruleset, Error> {
        self.read_with_generation(tables)
            .map(|(ruleset, _)| ruleset)
    }

    /// Reads the chains with these names that exist; of a builtin chain the first rules, at least 256. With nf_tables the cost is
    /// independent of other chains and rules; `ip_tables` returns complete tables only.
    pub fn read_named(&self, chains: &[(TableName, String)]) -> Result<Ruleset, Error> {
        match self.kind {
            Flavour::Nft => nft::read_named(chains),
            Flavour::Legacy => {
                let tables: BTreeSet<TableName> = chains.iter().map(|(table, _)| *table).collect();
                self.read_legacy(&Vec::from_iter(tables))
            }
        }
    }

    /// The number of packets that the rules with this comment in a user-defined chain of `filter` have matched.
    pub fn matched(&self, chain: &str, comment: &str) -> Result<u64, Error> {
        let counters = match self.kind {
            Flavour::Nft => nft::counted(chain)?,
            Flavour::Legacy => save::counted(&self.save_program(), chain, self.timeout)?,
        };
        let matching = counters
            .iter()
            .filter(|(rule, _)| rule.comment() == Some(comment));
        Ok(matching.map(|(_, packets)| packets).sum())
    }

    /// [`read`](Self::read), and the generation that was read. `None`: the back end has no generations.
    pub fn read_with_generation(
        &self,
        tables: &[TableName],
    ) -> Result<(Ruleset, Option<Generation>), Error> {
        match self.kind {
            Flavour::Nft => nft::read(&mut Netfilter::open()?, tables),
            Flavour::Legacy => self.read_legacy(tables).map(|ruleset| (ruleset, None)),
        }
    }

    /// The same, over a socket that was opened in the calling thread's namespace.
    pub fn read_with(
        &self,
        netfilter: &mut Netfilter,
        tables: &[TableName],
    ) -> Result<(Ruleset, Option<Generation>), Error> {
        match self.kind {
            Flavour::Nft => nft::read(netfilter, tables),
            Flavour::Legacy => self.read_legacy(tables).map(|ruleset| (ruleset, None)),
        }
    }
    /// The back end of `iptables-legacy`, beside the one in use.
    pub fn legacy() -> Self {
        Self {
            kind: Flavour::Legacy,
            restore_program: PathBuf::from("iptables-legacy-restore"),
            version: String::new(),
            timeout: DEADLINE,
        }
    }

    /// Whether reading rules runs a program: use a thread that may block ([`Netns::run`](super::netns::Netns::run)).
    pub fn runs_a_program(&self) -> bool {
        self.kind == Flavour::Legacy
    }

    fn read_legacy(&self, tables: &[TableName]) -> Result<Ruleset, Error> {
        save::read(&self.save_program(), tables, self.timeout)
    }

    /// `iptables-save` beside `iptables-restore`.
    fn save_program(&self) -> PathBuf {
        let name = self.restore_program.file_name().unwrap_or_default();
        let name = name.to_string_lossy().replace("-restore", "-save");
        self.restore_program.with_file_name(name)
    }
}

/// Whether `FORWARD` of iptables-legacy has policy DROP, independent of the back end in use. In the calling thread's namespace.
/// `None`: there is such a chain, but no program to read it.
pub fn legacy_drops_forwarded() -> Result<Option<bool>, Error> {
    let backend = Backend::legacy();
    save::drops_forwarded(&backend.save_program(), backend.timeout)
}

/// A table's builtin chains.
pub fn builtin_chains(table: TableName) -> &'static [&'static str] {
    match table {
        TableName::Raw => &["PREROUTING", "OUTPUT"],
        TableName::Mangle => &["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"],
        TableName::Nat => &["PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"],
        TableName::Filter => &["INPUT", "FORWARD", "OUTPUT"],
    }
}
