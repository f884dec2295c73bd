//! A database that cannot be read is set aside with a reason, never overwritten, and a fresh one is opened.
//! Not here: what the daemon does without its state (`tests/crash.rs`).

use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use proptest::test_runner::TestCaseError;
use serde_json::Value;
use slicectl::store::{Opened, Store};

use crate::whole::{Step, apply, fill, whole};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Bytes flipped anywhere, a file cut short anywhere: the world is one that was committed at some time, or it is set aside.
    #[test]
    fn damage_is_never_taken_for_state(file in 0.0..1.0, place in 0.0..1.0, flips in 1_usize..64, cut in any::<bool>()) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(damage(file, place, flips, cut))?;
    }
}

async fn damage(file: f64, place: f64, flips: usize, cut: bool) -> Result<(), TestCaseError> {
    let dir = tempfile::tempdir().unwrap();
    let history = history(dir.path()).await;
    let files = files(&dir.path().join("db"));
    let victim = &files[pick(file, files.len())];
    let mut bytes = fs::read(victim).unwrap();
    let at = pick(place, bytes.len().max(1));
    match cut {
        true => bytes.truncate(at),
        false => bytes
            .iter_mut()
            .skip(at)
            .take(flips)
            .for_each(|byte| *byte ^= 0xff),
    }
    fs::write(victim, &bytes).unwrap();
    let (store, opened) = Store::open(dir.path()).unwrap();
    match opened {
        Opened::SetAside { path, why } => {
            prop_assert!(!why.is_empty() && path.is_dir(), "{why}");
            prop_assert_eq!(store.read(|world| world.vms().count()), 0);
        }
        Opened::Fresh | Opened::Existing => {
            let found = whole(&store);
            prop_assert!(
                history.contains(&found),
                "{}: a world that never was: {found:#}",
                victim.display()
            );
        }
    }
    // Whatever was found, it can be worked with.
    fill(&store).await;
    store.close();
    Ok(())
}

#[tokio::test]
async fn a_database_of_another_format_is_set_aside_whole() {
    let dir = tempfile::tempdir().unwrap();
    history(dir.path()).await;
    {
        let db = sled::open(dir.path().join("db")).unwrap();
        db.insert("format", "99").unwrap();
        db.flush().unwrap();
    }
    let Opened::SetAside { path, why } = Store::open(dir.path()).unwrap().1 else {
        panic!("another format was read");
    };
    assert!(why.contains("99"), "{why}");
    let db = sled::open(path).unwrap();
    assert!(
        db.contains_key("group/group-0").unwrap(),
        "nothing of it is lost"
    );
}

#[tokio::test]
async fn a_value_that_makes_no_sense_is_set_aside_by_name() {
    let dir = tempfile::tempdir().unwrap();
    history(dir.path()).await;
    {
        let db = sled::open(dir.path().join("db")).unwrap();
        db.insert("lease/web-1", "{\"block\": 7}").unwrap();
        db.flush().unwrap();
    }
    for n in 1..=2 {
        let (store, opened) = Store::open(dir.path()).unwrap();
        store.close();
        match opened {
            Opened::SetAside { why, .. } => {
                assert!(n == 1 && why.starts_with("lease/web-1: "), "{why}")
            }
            Opened::Existing => assert_eq!(n, 2, "the fresh one stays"),
            Opened::Fresh => panic!("nothing was set aside"),
        }
    }
}

#[test]
fn a_state_directory_that_is_a_file_is_refused_with_its_path() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("state");
    fs::write(&file, "").unwrap();
    let Err(refused) = Store::open(&file) else {
        panic!("a file was opened as a folder");
    };
    assert!(
        refused.to_string().contains(&file.display().to_string()),
        "{refused}"
    );
}

/// Every world that was ever committed, the empty one first.
async fn history(dir: &Path) -> Vec<Value> {
    let (store, _) = Store::open(dir).unwrap();
    let mut history = vec![whole(&store)];
    for count in 1..6 {
        for step in [
            Step::Group(0, count),
            Step::Vm(0, count),
            Step::Lease(0, count),
        ] {
            store.write(|txn| apply(txn, &step)).await.unwrap();
            history.push(whole(&store));
        }
    }
    store.close();
    history
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => found.extend(files(&path)),
            false => found.push(path),
        }
    }
    found.sort();
    found
}

fn pick(share: f64, of: usize) -> usize {
    ((share * of as f64) as usize).min(of - 1)
}
