//! Chains of rules, tables, rule sets.
//! Out of scope: the desired state.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Rule, keywords};

/// The tables of iptables, in the order that a forwarded packet traverses them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TableName {
    /// Before connection tracking.
    Raw,
    /// Modifies packets.
    Mangle,
    /// Translates addresses; evaluated for the first packet of a flow only.
    Nat,
    /// Accepts or drops packets.
    Filter,
}

keywords!(TableName {
    Raw = "raw",
    Mangle = "mangle",
    Nat = "nat",
    Filter = "filter",
});

/// The policy of a builtin chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Policy {
    /// Accepts packets that no rule has decided.
    Accept,
    /// Drops packets that no rule has decided.
    Drop,
}

keywords!(Policy {
    Accept = "ACCEPT",
    Drop = "DROP",
});

/// A chain of rules, evaluated in order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chain {
    /// Its name, at most 28 bytes.
    pub name: String,
    /// A builtin chain's policy; `None`: a user-defined chain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<Policy>,
    /// The rules, in order.
    #[serde(default)]
    pub rules: Vec<Rule>,
}

impl Chain {
    /// `INPUT`, `FORWARD`, ...
    pub fn builtin(name: impl Into<String>, policy: Policy, rules: Vec<Rule>) -> Self {
        Self {
            name: name.into(),
            policy: Some(policy),
            rules,
        }
    }

    /// A user-defined chain.
    pub fn user(name: impl Into<String>, rules: Vec<Rule>) -> Self {
        Self {
            name: name.into(),
            policy: None,
            rules,
        }
    }

    /// An empty builtin chain with policy ACCEPT is equivalent to no chain.
    fn is_default(&self) -> bool {
        self.policy == Some(Policy::Accept) && self.rules.is_empty()
    }
}

/// `:NAME POLICY`, then the rules as `-A NAME ...`, one per line.
impl fmt::Display for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.policy {
            Some(policy) => writeln!(f, ":{} {policy}", self.name)?,
            None => writeln!(f, ":{} -", self.name)?,
        }
        self.rules
            .iter()
            .try_for_each(|rule| writeln!(f, "-A {} {rule}", self.name))
    }
}

/// One table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Table {
    /// Its name.
    pub name: TableName,
    /// Its chains.
    pub chains: Vec<Chain>,
}

/// Tables in a normal form, so that desired and observed tables can be compared with `==`: tables in the order of
/// [`TableName`], chains by name, without empty builtin chains whose policy is ACCEPT (the two back ends disagree on
/// whether those exist) and without empty tables.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<Table>", into = "Vec<Table>")]
pub struct Ruleset(Vec<Table>);

impl Ruleset {
    /// Converts tables to the normal form. Tables with the same name are merged.
    pub fn new(tables: impl IntoIterator<Item = Table>) -> Self {
        let mut merged: Vec<Table> = Vec::new();
        for table in tables {
            match merged.iter_mut().find(|known| known.name == table.name) {
                Some(known) => known.chains.extend(table.chains),
                None => merged.push(table),
            }
        }
        for table in &mut merged {
            table.chains.retain(|chain| !chain.is_default());
            table.chains.sort_by(|a, b| a.name.cmp(&b.name));
        }
        merged.retain(|table| !table.chains.is_empty());
        merged.sort_by_key(|table| table.name);
        Self(merged)
    }

    /// The tables that are not empty.
    pub fn tables(&self) -> &[Table] {
        &self.0
    }

    /// The chains of a table; empty if the table is empty.
    pub fn chains(&self, table: TableName) -> &[Chain] {
        self.0
            .iter()
            .find(|found| found.name == table)
            .map_or(&[], |found| &found.chains)
    }

    /// A chain. `None`: it does not exist, or it is an empty builtin chain with policy ACCEPT.
    pub fn chain(&self, table: TableName, name: &str) -> Option<&Chain> {
        self.chains(table).iter().find(|chain| chain.name == name)
    }

    /// The rules of a chain; empty if it does not exist.
    pub fn rules(&self, table: TableName, chain: &str) -> &[Rule] {
        self.chain(table, chain).map_or(&[], |chain| &chain.rules)
    }

    /// A builtin chain's policy.
    pub fn policy(&self, table: TableName, chain: &str) -> Policy {
        self.chain(table, chain)
            .and_then(|chain| chain.policy)
            .unwrap_or(Policy::Accept)
    }
}

impl From<Vec<Table>> for Ruleset {
    fn from(tables: Vec<Table>) -> Self {
        Self::new(tables)
    }
}

impl From<Ruleset> for Vec<Table> {
    fn from(ruleset: Ruleset) -> Self {
        ruleset.0
    }
}

impl fmt::Display for Ruleset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|table| {
            writeln!(f, "*{}", table.name)?;
            table.chains.iter().try_for_each(|chain| chain.fmt(f))
        })
    }
}
