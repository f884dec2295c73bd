//! One step of the host's own rules.
//! Not here: which steps.

use super::Ground;
use super::observe::FORWARDING;
use super::plan::{Action, Commit, Desired};
use crate::host::iptables::{self, Edit, Input, Lock};
use crate::host::rule::TableName;
use crate::host::{Error, sysctl};

const TABLES: [TableName; 4] = [
    TableName::Raw,
    TableName::Mangle,
    TableName::Nat,
    TableName::Filter,
];

pub(super) async fn act(ground: &Ground, _: &Desired, action: &Action) -> Result<(), Error> {
    match action {
        Action::EnableForwarding => ground.home.run(|| sysctl::write(FORWARDING, "1")).await,
        Action::Commit(commit) => {
            let input = Input::edits(&edits(commit));
            let backend = ground.backend.clone();
            let restore = move || iptables::restore(&backend, &input, Lock::Shared);
            ground.home.run(restore).await
        }
    }
}

/// One edit a table; a table of which nothing is said is left out.
fn edits(commit: &Commit) -> Vec<Edit> {
    let edit = |table: TableName| {
        let chains = commit.write.iter().filter(|(t, _)| *t == table);
        let gone = commit.remove.iter().filter(|(t, _)| *t == table);
        let unjump = commit.unjump.iter().filter(|(t, _, _)| *t == table);
        let jumps = commit.jump.iter().filter(|jump| jump.table == table);
        Edit {
            chains: chains.map(|(_, chain)| chain.clone()).collect(),
            gone: gone.map(|(_, name)| name.clone()).collect(),
            remove: unjump
                .map(|(_, c, rule)| (c.clone(), rule.clone()))
                .collect(),
            on_top: jumps
                .flat_map(|jump| {
                    jump.rules
                        .iter()
                        .map(|rule| (jump.chain.clone(), rule.clone()))
                })
                .collect(),
            ..Edit::of(table)
        }
    };
    TABLES
        .into_iter()
        .map(edit)
        .filter(|edit| *edit != Edit::of(edit.table))
        .collect()
}
