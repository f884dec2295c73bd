//! The transactions of a plan.
//! Out of scope: sending them.

use crate::fleet::keys::Key;
use crate::fleet::kv::{Compare, EtcdKey, MAX_OPS, Op, Revision, Txn};
use crate::fleet::object::encode;
use crate::fleet::schedule::step::{self, Step, Write, batches};

/// The most bytes of keys and values of a transaction: etcd accepts requests of 1.5 MiB by default.
const MAX_BYTES: usize = 1 << 20;

/// A transaction of steps.
pub(super) struct Transaction<'p> {
    pub(super) txn: Txn,
    /// The size of its keys and values, in bytes.
    pub(super) bytes: usize,
    pub(super) steps: Vec<&'p Step>,
}

/// The transactions of these steps. Each also compares the election key, which the leader has written last at `revision`.
///
/// # Errors
/// An object cannot be expressed in JSON.
pub(super) fn transactions(
    steps: &[Step],
    revision: u64,
) -> Result<Vec<Transaction<'_>>, serde_json::Error> {
    let election = step::Compare {
        key: Key::Election,
        revision,
    };
    let mut transactions = Vec::new();
    for batch in batches(steps, MAX_OPS) {
        let ops: Result<Vec<Op>, _> = batch.steps.iter().map(|step| op(&step.write)).collect();
        split(&batch.steps, ops?, &election, &mut transactions);
    }
    Ok(transactions)
}

/// Divides a batch until its parts are not too large; a step that is too large by itself is refused by etcd.
fn split<'p>(
    steps: &[&'p Step],
    mut ops: Vec<Op>,
    election: &step::Compare,
    transactions: &mut Vec<Transaction<'p>>,
) {
    let bytes = ops.iter().map(size).sum();
    if bytes > MAX_BYTES && steps.len() > 1 {
        let half = steps.len() / 2;
        let rest = ops.split_off(half);
        split(&steps[..half], ops, election, transactions);
        split(&steps[half..], rest, election, transactions);
        return;
    }
    let mut compares: Vec<&step::Compare> = vec![election];
    for compare in steps.iter().flat_map(|step| &step.compares) {
        if !compares.iter().any(|other| other.key == compare.key) {
            compares.push(compare);
        }
    }
    let txn = Txn {
        compares: compares.into_iter().map(compared).collect(),
        then: ops,
        otherwise: vec![Op::Get(Key::Election.into())],
    };
    transactions.push(Transaction {
        txn,
        bytes,
        steps: steps.to_vec(),
    });
}

/// The revision of a key that is absent is 0.
fn compared(compare: &step::Compare) -> Compare {
    Compare::unchanged(&compare.key, Revision(compare.revision))
}

fn op(write: &Write) -> Result<Op, serde_json::Error> {
    let put = |key: Key, value| Op::Put {
        key: key.into(),
        value,
        lease: None,
    };
    let delete = |key: Key| Op::Delete(key.into());
    Ok(match write {
        Write::PutVm(vm) => put(Key::Vm(vm.meta.uid), encode(vm)?),
        Write::DeleteVm(uid) => delete(Key::Vm(*uid)),
        Write::DeleteGroup(name) => delete(Key::Group(name.clone())),
        Write::PutSubnet(group, node, subnet) => {
            put(Key::Range(group.clone(), node.clone()), encode(subnet)?)
        }
        Write::DeleteSubnet(group, node) => delete(Key::Range(group.clone(), node.clone())),
    })
}

fn size(op: &Op) -> usize {
    let of = |key: &EtcdKey| key.as_bytes().len();
    match op {
        Op::Put { key, value, .. } => of(key) + value.len(),
        Op::Delete(key) | Op::Get(key) => of(key),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::meta::{Meta, Name, Timestamp, Uid};
    use crate::fleet::object::Vm;
    use crate::fleet::schedule::step::Action;

    fn steps(count: u128, pending: usize) -> Vec<Step> {
        let name = Name::new("g").unwrap();
        let group = step::Compare {
            key: Key::Group(name.clone()),
            revision: 5,
        };
        let step = |number| {
            let uid = Uid(uuid::Uuid::from_u128(number));
            let vm = Vm {
                meta: Meta {
                    uid,
                    ..Meta::new(name.clone(), Timestamp::UNIX_EPOCH)
                },
                group: name.clone(),
                group_uid: uid,
                index: 1,
                group_generation: 1,
                binding: None,
                epoch: 0,
                previous: Vec::new(),
                refusals: Vec::new(),
                pending: Some("x".repeat(pending)),
            };
            Step {
                action: Action::Create,
                name: name.clone(),
                write: Write::PutVm(Box::new(vm)),
                compares: vec![
                    group.clone(),
                    step::Compare {
                        key: Key::Vm(uid),
                        revision: 0,
                    },
                ],
            }
        };
        (0..count).map(step).collect()
    }

    #[test]
    fn each_transaction_compares_the_election_and_every_key_once_within_the_limits_of_etcd() {
        for (count, pending, least) in [(1, 0, 1), (500, 0, 4), (300, 20_000, 6)] {
            let steps = steps(count, pending);
            let transactions = transactions(&steps, 9).unwrap();
            let election = Compare::unchanged(Key::Election, Revision(9));
            for Transaction { txn, bytes, .. } in &transactions {
                assert_eq!(txn.compares[0], election);
                assert!(txn.compares.len() <= MAX_OPS && txn.then.len() <= MAX_OPS);
                assert!(*bytes <= MAX_BYTES, "{bytes}");
                // The election, the group, and each VM.
                assert_eq!(txn.compares.len(), txn.then.len() + 2);
            }
            let ops: Vec<&Op> = transactions.iter().flat_map(|it| &it.txn.then).collect();
            let expected: Vec<Op> = steps.iter().map(|it| op(&it.write).unwrap()).collect();
            assert_eq!(ops, expected.iter().collect::<Vec<_>>());
            assert!(transactions.len() >= least, "{}", transactions.len());
        }
    }

    #[test]
    fn a_value_that_is_too_large_by_itself_is_a_transaction_of_its_own() {
        let steps = steps(2, MAX_BYTES);
        assert_eq!(transactions(&steps, 9).unwrap().len(), 2);
    }
}
