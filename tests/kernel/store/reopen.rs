//! Committed is durable, failed is undone, one opener at a time.
//! Out of scope: damage.

use proptest::prelude::*;
use proptest::test_runner::TestCaseError;
use slicectl::store::{Error, Opened, Store};

use crate::store::whole::{Step, apply, fill, step, whole};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn a_reopened_store_is_what_was_committed(
        transactions in prop::collection::vec((prop::collection::vec(step(), 1..5), any::<bool>()), 1..20),
        polite in any::<bool>(),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(reopen(transactions, polite))?;
    }
}

/// Transactions, some of which change their mind at the end; then the store is closed, or only let go of.
async fn reopen(transactions: Vec<(Vec<Step>, bool)>, polite: bool) -> Result<(), TestCaseError> {
    let dir = tempfile::tempdir().unwrap();
    let (store, opened) = Store::open(dir.path()).unwrap();
    prop_assert_eq!(opened, Opened::Fresh);
    for (steps, fails) in transactions {
        let before = whole(&store);
        let result = store
            .write(|txn| {
                steps.iter().try_for_each(|step| apply(txn, step))?;
                match fails {
                    true => Err(Error::Write("a change of mind".into())),
                    false => Ok(()),
                }
            })
            .await;
        prop_assert_eq!(result.is_err(), fails);
        if fails {
            prop_assert_eq!(whole(&store), before, "a failed transaction left something");
        }
    }
    let before = whole(&store);
    if polite {
        store.close();
    }
    drop(store);
    let (again, opened) = Store::open(dir.path()).unwrap();
    prop_assert_eq!(opened, Opened::Existing);
    prop_assert_eq!(whole(&again), before);
    again.close();
    Ok(())
}

#[tokio::test]
async fn a_second_opener_is_refused_and_given_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    let (first, _) = Store::open(dir.path()).unwrap();
    fill(&first).await;
    let before = whole(&first);
    let Err(refused) = Store::open(dir.path()) else {
        panic!("two daemons share a database");
    };
    let text = refused.to_string();
    assert!(
        text.contains("another sliced is using it")
            && text.contains(&dir.path().display().to_string()),
        "{text}"
    );
    assert_eq!(whole(&first), before);
    first.close();
    assert_eq!(whole(&Store::open(dir.path()).unwrap().0), before);
}

#[tokio::test]
async fn a_closed_store_refuses_changes_and_reports_it() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(dir.path()).unwrap();
    fill(&store).await;
    store.close();
    let refused = store
        .write(|txn| apply(txn, &Step::Group(1, 1)))
        .await
        .unwrap_err();
    assert!(refused.to_string().contains("closed"), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn commits_of_many_tasks_are_all_there_again() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(dir.path()).unwrap();
    let tasks: Vec<_> = (0..3_u8)
        .flat_map(|group| (1..60_u32).map(move |index| (group, index)))
        .map(|(group, index)| {
            let store = store.clone();
            tokio::spawn(async move {
                store
                    .write(|txn| apply(txn, &Step::Vm(group, index)))
                    .await
                    .unwrap()
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let before = whole(&store);
    assert_eq!(store.read(|world| world.vms().count()), 3 * 59);
    store.close();
    let (again, _) = Store::open(dir.path()).unwrap();
    assert_eq!(whole(&again), before);
}
