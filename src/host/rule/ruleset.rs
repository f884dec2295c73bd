//! Rules in their order, chains, tables.
//! Out of scope: the desired state.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Rule, words};

/// The tables of iptables, in the order that a forwarded packet meets them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TableName {
    /// Before a packet is given to a flow.
    Raw,
    /// Changes packets.
    Mangle,
    /// Changes addresses; asked for the first packet of a flow only.
    Nat,
    /// Decides.
    Filter,
}

words!(TableName {
    Raw = "raw",
    Mangle = "mangle",
    Nat = "nat",
    Filter = "filter",
});

/// What becomes of a packet at the end of a builtin chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Policy {
    /// It passes.
    Accept,
    /// It is gone.
    Drop,
}

words!(Policy {
    Accept = "ACCEPT",
    Drop = "DROP",
});

/// Rules, asked one after the other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chain {
    /// Its name, at most 28 bytes.
    pub name: String,
    /// A builtin chain's policy; none: a chain that is only jumped to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<Policy>,
    /// In order.
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

    /// A chain that is jumped to.
    pub fn user(name: impl Into<String>, rules: Vec<Rule>) -> Self {
        Self {
            name: name.into(),
            policy: None,
            rules,
        }
    }

    /// An empty builtin chain that lets everything pass says the same as none at all.
    fn is_nothing(&self) -> bool {
        self.policy == Some(Policy::Accept) && self.rules.is_empty()
    }
}

/// `:NAME POLICY`, then the rules as `-A NAME ...`, one a line.
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
    /// Which.
    pub name: TableName,
    /// Its chains.
    pub chains: Vec<Chain>,
}

/// Tables in a normal form, so that what is meant and what is found compare with `==`: tables in the order of
/// [`TableName`], chains by name, without empty builtin chains whose policy is ACCEPT (the two back ends disagree on
/// whether those exist) and without empty tables.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<Table>", into = "Vec<Table>")]
pub struct Ruleset(Vec<Table>);

impl Ruleset {
    /// Brings tables to the normal form. A table given twice is taken together.
    pub fn new(tables: impl IntoIterator<Item = Table>) -> Self {
        let mut merged: Vec<Table> = Vec::new();
        for table in tables {
            match merged.iter_mut().find(|known| known.name == table.name) {
                Some(known) => known.chains.extend(table.chains),
                None => merged.push(table),
            }
        }
        for table in &mut merged {
            table.chains.retain(|chain| !chain.is_nothing());
            table.chains.sort_by(|a, b| a.name.cmp(&b.name));
        }
        merged.retain(|table| !table.chains.is_empty());
        merged.sort_by_key(|table| table.name);
        Self(merged)
    }

    /// The tables that hold something.
    pub fn tables(&self) -> &[Table] {
        &self.0
    }

    /// One table's chains; none if it holds nothing.
    pub fn chains(&self, table: TableName) -> &[Chain] {
        self.0
            .iter()
            .find(|found| found.name == table)
            .map_or(&[], |found| &found.chains)
    }

    /// One chain. None: no such chain, or a builtin one that is empty with policy ACCEPT.
    pub fn chain(&self, table: TableName, name: &str) -> Option<&Chain> {
        self.chains(table).iter().find(|chain| chain.name == name)
    }

    /// One chain's rules; none of a chain that is not there.
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
