//! Transactions that choose addresses. They are committed only if everything that they chose is already claimed on the host.
//! Out of scope: the choice ([`super::range`]), the files of the claims ([`super::claims`]).

use super::claim;
use super::claims::Claims;
use super::range::{self, Choice, HostUse, Observation};
use super::range_error::RangeError;
use crate::api::host_group::HostGroup;
use crate::api::meta::Name;
use crate::host;
use crate::store::{self, Store, Txn, World};

/// More than the number of ranges that can be refused.
const MOST_ATTEMPTS: usize = 256;

/// The reason why a transaction was rolled back.
pub(super) enum Rollback<E> {
    /// It needs a choice, and the host was not observed for it yet.
    ObserveFirst,
    /// These claims must be made first.
    Claim(Vec<claim::Claim>),
    /// It failed.
    Failed(E),
}

impl<E: From<store::Error>> From<store::Error> for Rollback<E> {
    fn from(error: store::Error) -> Self {
        Self::Failed(error.into())
    }
}

/// Runs a transaction of a group until it is committed, with claims for everything that it chose, or fails. After each rollback the host
/// is observed, or a claim is made or found to belong to another daemon, before the next attempt.
pub(super) async fn choosing<T, E: From<super::Error> + From<store::Error>>(
    store: &Store,
    claims: &Claims,
    host_use: &HostUse<'_>,
    group: &Name,
    mut change: impl FnMut(&mut Txn<'_>, &Observation) -> Result<T, Rollback<E>>,
) -> Result<T, E> {
    let observe = async || match store.read(|world| living(world, group).cloned()) {
        Some(group) => range::observe(claims, host_use, &group).await,
        None => Ok(Observation::default()),
    };
    let mut observation = Observation::default();
    let mut refused = None;
    let mut awaited = Vec::new();
    for _ in 0..MOST_ATTEMPTS {
        let lacking = match store.write(|txn| change(txn, &observation)).await {
            Ok(done) => return Ok(done),
            Err(Rollback::Failed(error)) => return Err(error),
            Err(Rollback::ObserveFirst) => {
                observation = observe().await?;
                continue;
            }
            Err(Rollback::Claim(lacking)) => lacking,
        };
        match claims.hold(lacking.clone()).await {
            Ok(guard) => awaited.push(guard),
            // Another daemon claimed it first, or cannot return: once its claims are known, another choice may be possible.
            Err(super::Error::Range(RangeError::Claimed { .. }))
                if refused.as_ref() != Some(&lacking) =>
            {
                observation = observe().await?;
                refused = Some(lacking);
            }
            Err(error) => return Err(error.into()),
        }
    }
    let why = "the free addresses change faster than they can be claimed";
    let error = host::Error::other("choose the addresses of hostgroup", group.as_str(), why);
    Err(super::Error::from(error).into())
}

/// The first part of such a transaction: makes the choice.
pub(super) fn choose<E: From<super::Error> + From<store::Error>>(
    txn: &mut Txn<'_>,
    observation: &Observation,
    group: &HostGroup,
    count: usize,
) -> Result<(), Rollback<E>> {
    let name = &group.meta.name;
    let choice = range::choose(txn.world(), observation, group, count);
    match choice.map_err(|error| Rollback::Failed(super::Error::from(error).into()))? {
        Choice::Keep => {}
        Choice::Take(pool) if txn.world().pool(name) == Some(&pool) => {}
        Choice::Take(pool) => txn.put_pool(name, pool)?,
        Choice::Forget => txn.remove_pool(name)?,
        Choice::ObserveFirst => return Err(Rollback::ObserveFirst),
    }
    Ok(())
}

/// The last part: nothing is stored that is not claimed on the host.
pub(super) fn claimed<E>(world: &World, claims: &Claims, group: &Name) -> Result<(), Rollback<E>> {
    let lacking = claims.lacking(claim::of_group(world, group));
    match lacking.is_empty() {
        true => Ok(()),
        false => Err(Rollback::Claim(lacking)),
    }
}

pub(super) fn living<'w>(world: &'w World, name: &Name) -> Option<&'w HostGroup> {
    world.group(name).filter(|group| !group.meta.deleting)
}
