//! Changes of groups: one transaction for all groups of a request, repeated if they have changed meanwhile.
//! Out of scope: which changes.

use super::super::keys::{self, Key};
use super::super::kv::{Client, Compare, EtcdKey, MAX_OPS, Op, Revision, Txn};
use super::super::object::{self, Group};
use super::attempts::Attempts;
use super::{Error, Snapshot};
use crate::api::meta::Name;

/// The most groups that a request may change: each is compared, and all together.
pub(super) const MAX_GROUPS: usize = MAX_OPS - 1;

/// The change of a group.
pub(super) struct Change {
    /// Its name.
    pub name: Name,
    /// What is written; `None`: it is not changed.
    pub write: Option<Group>,
}

/// Computes changes from the groups, and writes them in one transaction, all or none. The transaction fails if any group has been created
/// or changed since: a group that is checked against the others must not conflict with one of another request.
///
/// # Errors
/// Those of `compute`; [`Error::Busy`] if other requests win each time.
pub(super) async fn change<T>(
    client: &Client,
    compute: impl Fn(&Snapshot) -> Result<(Vec<Change>, T), Error>,
) -> Result<T, Error> {
    let mut attempts = Attempts::begin();
    loop {
        let current = Snapshot::groups(client).await?;
        let (changes, answer) = compute(&current)?;
        let txn = transaction(&current, changes)?;
        if txn.then.is_empty() {
            return Ok(answer);
        }
        let response = client.txn(&txn).await;
        let response = response.map_err(|error| Error::of_change(error, "groups"))?;
        if response.succeeded {
            return Ok(answer);
        }
        attempts.next().await?;
    }
}

fn transaction(current: &Snapshot, changes: Vec<Change>) -> Result<Txn, Error> {
    let writes: Vec<(Name, Group)> = changes
        .into_iter()
        .filter_map(|change| Some((change.name, change.write?)))
        .collect();
    if writes.len() > MAX_GROUPS {
        let found = writes.len();
        return Err(Error::Invalid(vec![format!(
            "found {found} groups to change, expected at most {MAX_GROUPS} in one request"
        )]));
    }
    let mut txn = Txn {
        compares: vec![Compare::none_newer(keys::GROUPS, current.revision)],
        ..Txn::default()
    };
    for (name, group) in writes {
        let key = EtcdKey::from(Key::Group(name.clone()));
        // A group that was removed is not newer than before.
        txn.compares.push(match current.groups.get(&name) {
            Some(stored) => Compare::unchanged(&key, Revision(stored.revision)),
            None => Compare::absent(&key),
        });
        txn.then.push(Op::Put {
            key,
            value: object::encode(&group)?,
            lease: None,
        });
    }
    Ok(txn)
}
