//! A database that is not what was acknowledged is set aside with a reason; one that cannot be read or understood is refused
//! and left as it is.
//! Out of scope: what the daemon does without its state (`tests/kernel/crash.rs`).

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use slicectl::store::{JOURNAL, Opened, RunCopy, RunDirState, Store};

use crate::store::whole::{Step, apply, fill, whole};
use test_support::dice::Dice;

/// Every file of a state directory, and of the run directory, with its content.
type Files = BTreeMap<PathBuf, Vec<u8>>;

/// A store's history: what its files and its content were after each transaction.
struct History {
    home: tempfile::TempDir,
    files: Vec<Files>,
    worlds: Vec<Value>,
}

impl History {
    /// Enough for several segments' worth of pages; the store is reopened now and then.
    async fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        let mut history = Self {
            home,
            files: Vec::new(),
            worlds: Vec::new(),
        };
        for part in 0..3_u32 {
            let (store, opened) = history.open().unwrap();
            assert_eq!(
                opened,
                if part == 0 {
                    Opened::Fresh
                } else {
                    Opened::Existing
                }
            );
            history.note(&store);
            for count in part * 2 + 1..part * 2 + 3 {
                for step in [
                    Step::Group(0, count),
                    Step::Vm(0, count),
                    Step::Lease(0, count),
                ] {
                    store.write(|txn| apply(txn, &step)).await.unwrap();
                    history.note(&store);
                }
            }
            store.close();
        }
        history.files.push(files(history.home.path()));
        history
            .worlds
            .push(history.worlds[history.worlds.len() - 1].clone());
        history
    }

    fn note(&mut self, store: &Store) {
        self.worlds.push(whole(store));
        self.files.push(files(self.home.path()));
    }

    fn state(&self) -> PathBuf {
        self.home.path().join("state")
    }

    fn open(&self) -> Result<(Store, Opened), slicectl::store::Error> {
        let run = self.home.path().join("run");
        fs::create_dir_all(&run).unwrap();
        let copy = RunCopy {
            path: run.join("state.seal"),
            boot_id: "this boot".into(),
        };
        Store::open_with(&self.state(), Some(&copy))
    }

    /// Everything as it was at last.
    fn restore(&self) {
        write(self.home.path(), &self.files[self.files.len() - 1]);
    }

    fn last(&self) -> &Value {
        &self.worlds[self.worlds.len() - 1]
    }
}

/// One accident to the files.
#[derive(Clone, Debug)]
enum Accident {
    FlippedBit(PathBuf, usize),
    Zeroes(PathBuf, usize),
    Garbage(PathBuf, usize),
    CutShort(PathBuf, usize),
    Gone(PathBuf),
    /// As it was some transactions ago.
    Older(PathBuf, usize),
    AllOlder(usize),
}

impl Accident {
    fn any(dice: &mut Dice, history: &History) -> Self {
        let last = &history.files[history.files.len() - 1];
        let names: Vec<&PathBuf> = last.keys().filter(|name| !last[*name].is_empty()).collect();
        // The log is where most of the bytes are.
        let file = match dice.below(3) {
            0 => names[dice.below(names.len())].clone(),
            _ => PathBuf::from("state/db/db"),
        };
        let length = used(&last[&file]);
        match dice.below(8) {
            0 | 1 => Self::FlippedBit(file, dice.below(length * 8)),
            2 => Self::Zeroes(file, dice.below(length)),
            3 => Self::Garbage(file, dice.below(length)),
            4 => Self::CutShort(file, dice.below(length)),
            5 => Self::Gone(file),
            6 => Self::Older(file, dice.below(history.files.len() - 1)),
            _ => Self::AllOlder(dice.below(history.files.len() - 1)),
        }
    }

    fn happen(&self, history: &History, dice: &mut Dice) {
        let path = |file: &Path| history.home.path().join(file);
        let change = |file: &Path, change: &mut dyn FnMut(&mut Vec<u8>)| {
            let mut bytes = fs::read(path(file)).unwrap();
            change(&mut bytes);
            fs::write(path(file), bytes).unwrap();
        };
        match self {
            Self::FlippedBit(file, bit) => {
                change(file, &mut |bytes| bytes[bit / 8] ^= 1 << (bit % 8))
            }
            Self::Zeroes(file, at) => change(file, &mut |bytes| {
                bytes
                    .iter_mut()
                    .skip(at / 512 * 512)
                    .take(512)
                    .for_each(|byte| *byte = 0);
            }),
            Self::Garbage(file, at) => change(file, &mut |bytes| {
                bytes
                    .iter_mut()
                    .skip(*at)
                    .take(64)
                    .for_each(|byte| *byte = dice.below(256) as u8);
            }),
            Self::CutShort(file, at) => change(file, &mut |bytes| bytes.truncate(*at)),
            Self::Gone(file) => fs::remove_file(path(file)).unwrap(),
            Self::Older(file, when) => match history.files[*when].get(file) {
                Some(bytes) => fs::write(path(file), bytes).unwrap(),
                None => fs::remove_file(path(file)).unwrap(),
            },
            // The state disk alone: the run directory is another file system.
            Self::AllOlder(when) => {
                let older = history.files[*when].clone();
                fs::remove_dir_all(history.state()).unwrap();
                let state = older
                    .into_iter()
                    .filter(|(name, _)| name.starts_with("state"));
                add(history.home.path(), &state.collect());
            }
        }
    }
}

/// `SLICE_DAMAGES=2000 SLICE_SEED=...` for more, and for the same again.
#[tokio::test]
async fn whatever_happens_to_the_files_no_older_state_is_taken_for_the_last_one() {
    let number = |name: &str| std::env::var(name).ok()?.parse().ok();
    let damages = number("SLICE_DAMAGES").unwrap_or(100);
    let seed = number("SLICE_SEED").unwrap_or_else(|| u64::from(std::process::id()) << 20);
    println!("{damages} damages, SLICE_SEED={seed}");
    let history = History::new().await;
    let (mut exact, mut aside, mut refused) = (0, 0, 0);
    for n in 0..damages {
        let mut dice = Dice::new(seed + n);
        history.restore();
        let accident = Accident::any(&mut dice, &history);
        accident.happen(&history, &mut dice);
        let output = format!("SLICE_SEED={} SLICE_DAMAGES=1: {accident:?}", seed + n);
        match history.open() {
            Err(error) => {
                refused += 1;
                println!("{output}: {error}");
                continue;
            }
            Ok((store, Opened::SetAside { path, why })) => {
                aside += 1;
                assert!(!why.is_empty() && path.is_dir(), "{output}: {why}");
                assert_eq!(store.read(|world| world.vms().count()), 0, "{output}");
                store.end_recovery().await.unwrap();
                fill(&store).await;
                store.close();
            }
            Ok((store, Opened::Existing)) => {
                exact += 1;
                assert_eq!(&whole(&store), history.last(), "{output}: an older state");
                fill(&store).await;
                store.close();
            }
            Ok((_, Opened::Fresh)) => panic!("{output}: taken for a new one"),
        }
        // Whatever was found, it can be worked with, and is there again.
        let (store, opened) = history.open().unwrap();
        assert_eq!(opened, Opened::Existing, "{output}");
        assert!(store.notes().is_empty(), "{output}: {:?}", store.notes());
        store.close();
    }
    println!("{exact} exact, {aside} set aside, {refused} refused");
    if damages >= 100 {
        assert!(aside > damages / 3, "the accidents are not worth the name");
    }
    assert!(refused <= damages / 20, "{refused} of {damages} refused");
}

#[tokio::test]
async fn each_copy_of_the_seal_may_be_lost_and_the_loss_is_reported() {
    let history = History::new().await;
    let state = |name: &str| history.state().join(name);
    let run = history.home.path().join("run/state.seal");
    let spoil = |path: &Path, slots: &[usize]| {
        let mut bytes = fs::read(path).unwrap();
        slots.iter().for_each(|slot| bytes[slot * 4096 + 40] ^= 1);
        fs::write(path, bytes).unwrap();
    };
    type Loss<'a> = (&'a str, Box<dyn Fn() + 'a>, Option<&'a str>);
    let losses: Vec<Loss> = vec![
        ("nothing", Box::new(|| ()), Some("")),
        (
            "slot 0",
            Box::new(|| spoil(&state("seal"), &[0])),
            Some("seal was damaged"),
        ),
        (
            "slot 1",
            Box::new(|| spoil(&state("seal"), &[1])),
            Some("seal was damaged"),
        ),
        (
            "both slots",
            Box::new(|| spoil(&state("seal"), &[0, 1])),
            Some("seal was damaged"),
        ),
        (
            "the seal",
            Box::new(|| fs::remove_file(state("seal")).unwrap()),
            Some("seal was missing"),
        ),
        (
            "the format",
            Box::new(|| fs::remove_file(state("format")).unwrap()),
            Some("format was missing"),
        ),
        (
            "its words",
            Box::new(|| fs::write(state("format"), "2").unwrap()),
            Some("format was missing"),
        ),
        (
            "the run copy",
            Box::new(|| fs::remove_file(&run).unwrap()),
            Some(""),
        ),
        (
            "a run slot",
            Box::new(|| spoil(&run, &[0])),
            Some("state.seal was damaged"),
        ),
        (
            "the run slots",
            Box::new(|| spoil(&run, &[0, 1])),
            Some("state.seal was damaged"),
        ),
        (
            "an older seal",
            Box::new(|| {
                fs::write(state("seal"), &history.files[5][Path::new("state/seal")]).unwrap()
            }),
            Some("seal was older"),
        ),
        (
            "all seals",
            Box::new(|| {
                spoil(&state("seal"), &[0, 1]);
                spoil(&run, &[0, 1]);
            }),
            None,
        ),
        (
            "all files",
            Box::new(|| {
                fs::remove_file(state("seal")).unwrap();
                fs::remove_file(state("format")).unwrap();
                fs::remove_file(&run).unwrap();
            }),
            None,
        ),
    ];
    for (name, lose, note) in losses {
        history.restore();
        lose();
        let (store, opened) = history.open().unwrap();
        let notes = store.notes().join("\n");
        match note {
            None => assert!(
                matches!(opened, Opened::SetAside { .. }),
                "{name}: {opened:?}"
            ),
            Some(note) => {
                assert_eq!(opened, Opened::Existing, "{name}");
                assert_eq!(&whole(&store), history.last(), "{name}");
                assert!(
                    notes.contains(note) && notes.is_empty() == note.is_empty(),
                    "{name}: {notes}"
                );
            }
        }
        store.end_recovery().await.unwrap();
        store.close();
        let (store, opened) = history.open().unwrap();
        assert_eq!(opened, Opened::Existing, "{name}: it is repaired");
        assert!(store.notes().is_empty(), "{name}: {:?}", store.notes());
        store.close();
    }
}

/// What is left of the run directory's `state.seal` and of its journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Left {
    Whole,
    Gone,
    Damaged,
    OfAnotherBoot,
    /// The journal's last line is not whole.
    Torn,
}

#[tokio::test]
async fn an_older_state_with_its_own_seal_is_noticed_by_what_the_run_directory_has_left() {
    let home = tempfile::tempdir().unwrap();
    let (state, run) = (home.path().join("state"), home.path().join("run"));
    fs::create_dir_all(&run).unwrap();
    let open = |boot: &str| {
        let copy = RunCopy {
            path: run.join("state.seal"),
            boot_id: boot.into(),
        };
        Store::open_for_daemon(&state, &run, &copy).unwrap()
    };
    // A journal is kept from the second start on.
    open("this boot").0.close();
    let (store, _, _) = open("this boot");
    let mut copies = Vec::new();
    for count in 1..6 {
        let step = Step::Group(0, count);
        store.write(|txn| apply(txn, &step)).await.unwrap();
        copies.push((files(home.path()), whole(&store)));
    }
    store.close();
    let (last, newest) = copies.last().unwrap().clone();
    let mut variants = 0;
    for (changes, (older, known)) in copies.iter().rev().enumerate() {
        for seal in [Left::Whole, Left::Gone, Left::Damaged, Left::OfAnotherBoot] {
            for journal in [
                Left::Whole,
                Left::Torn,
                Left::Damaged,
                Left::OfAnotherBoot,
                Left::Gone,
            ] {
                let what = format!("{changes} changes older, seal {seal:?}, journal {journal:?}");
                write(home.path(), &last);
                let is_state = |path: &&PathBuf| path.starts_with("state");
                let mut mixed = last.clone();
                mixed.retain(|path, _| !is_state(&path));
                mixed.extend(
                    older
                        .iter()
                        .filter(|(path, _)| is_state(path))
                        .map(|(p, b)| (p.clone(), b.clone())),
                );
                let spoil = |mixed: &mut Files, name: &str, left: Left| {
                    let path = PathBuf::from("run").join(name);
                    let bytes = mixed.get_mut(&path).unwrap();
                    match left {
                        Left::Whole | Left::OfAnotherBoot => {}
                        Left::Gone => drop(mixed.remove(&path)),
                        Left::Damaged if name == JOURNAL => bytes[70] ^= 1,
                        Left::Damaged => {
                            [0, 1].iter().for_each(|slot| bytes[slot * 4096 + 40] ^= 1)
                        }
                        Left::Torn => drop(bytes.pop()),
                    }
                };
                spoil(&mut mixed, "state.seal", seal);
                spoil(&mut mixed, JOURNAL, journal);
                write(home.path(), &mixed);
                // What is of another boot is all of it.
                let other = [seal, journal].contains(&Left::OfAnotherBoot);
                let (store, opened, recalled) =
                    open(if other { "another boot" } else { "this boot" });
                let by_seal = changes > 0 && seal == Left::Whole && !other;
                let by_journal = match journal {
                    Left::Whole => changes > 0,
                    Left::Torn => changes > 1,
                    _ => false,
                };
                let noticed = by_seal || (by_journal && !other);
                let aside = matches!(opened, Opened::SetAside { .. });
                assert_eq!(aside, noticed, "{what}: {opened:?}");
                match recalled {
                    RunDirState::World(world) if journal == Left::Whole => {
                        let counts: Vec<u32> =
                            world.groups().map(|group| group.spec.count).collect();
                        assert_eq!(counts, [5], "{what}");
                    }
                    RunDirState::Nothing if !aside => assert_eq!(&whole(&store), known, "{what}"),
                    _ => {}
                }
                if changes == 0 {
                    assert_eq!(&whole(&store), &newest, "{what}");
                }
                store.close();
                variants += 1;
            }
        }
    }
    assert_eq!(variants, 100);
}

#[tokio::test]
async fn a_database_that_has_as_living_what_a_tombstone_has_as_deleted_is_an_older_one() {
    // Which of `state.seal`, journal and tombstones the run directory still has. The state disk's tombstones are as old as the rest.
    for left in 0..8_u8 {
        let has = |part: u8| left & (1 << part) != 0;
        let home = tempfile::tempdir().unwrap();
        let (state, run) = (home.path().join("state"), home.path().join("run"));
        fs::create_dir_all(&run).unwrap();
        let open = || {
            let copy = RunCopy {
                path: run.join("state.seal"),
                boot_id: "this-boot".into(),
            };
            Store::open_for_daemon(&state, &run, &copy).unwrap()
        };
        open().0.close();
        let (store, _, _) = open();
        for step in [Step::Group(0, 1), Step::Vm(0, 1)] {
            store.write(|txn| apply(txn, &step)).await.unwrap();
        }
        let uid = store.read(|world| world.vms().next().unwrap().meta.uid);
        let older = files(&state);
        let delete = |txn: &mut slicectl::store::Txn<'_>| {
            let mut vm = txn.world().vm(uid).unwrap().clone();
            vm.meta.deleting = true;
            txn.put_vm(vm)
        };
        store.write(delete).await.unwrap();
        assert!(store.has_tombstone(uid));
        store.close();
        write(&state, &older);
        for (part, name) in (0..).zip(["state.seal", JOURNAL, "tombstones"]) {
            if !has(part) {
                fs::remove_file(run.join(name)).unwrap();
            }
        }
        let what = format!("seal {}, journal {}, tombstones {}", has(0), has(1), has(2));
        let (store, opened, _) = open();
        let aside = matches!(opened, Opened::SetAside { .. });
        assert_eq!(aside, left != 0, "{what}: {opened:?}");
        assert_eq!(store.has_tombstone(uid), has(2), "{what}");
        let lives = store.read(|world| world.vm(uid).is_some());
        assert_eq!(lives, left == 0, "{what}");
        store.close();
    }
}

#[tokio::test]
async fn a_state_that_is_gone_is_not_taken_for_a_new_one() {
    let history = History::new().await;
    let remove = |name: &str| fs::remove_dir_all(history.home.path().join(name)).unwrap();
    for (gone, in_this_boot) in [("state/db", true), ("state/db", false), ("state", true)] {
        history.restore();
        remove(gone);
        if !in_this_boot {
            remove("run");
        }
        let (store, opened) = history.open().unwrap();
        let Opened::SetAside { why, .. } = opened else {
            panic!("{gone}: {opened:?}");
        };
        assert!(
            why.contains("missing") && why.contains("was acknowledged"),
            "{gone}: {why}"
        );
        store.close();
    }
}

#[tokio::test]
async fn what_was_set_aside_is_reported_until_it_is_taken_over() {
    let history = History::new().await;
    fs::remove_dir_all(history.state().join("db")).unwrap();
    let (store, first) = history.open().unwrap();
    assert!(matches!(first, Opened::SetAside { .. }), "{first:?}");
    store
        .write(|txn| apply(txn, &Step::Group(0, 1)))
        .await
        .unwrap();
    store.close();
    let (store, again) = history.open().unwrap();
    assert_eq!(again, first, "a crash came between");
    store.end_recovery().await.unwrap();
    store.close();
    let (store, opened) = history.open().unwrap();
    assert_eq!(opened, Opened::Existing);
    assert_eq!(store.read(|world| world.groups().count()), 1);
}

/// Writes into the database behind its back; then its seal does not matter any more.
fn forge(state: &Path, key: &str, value: &str) {
    let db = sled::Config::new()
        .path(state.join("db"))
        .segment_size(2 << 20)
        .open()
        .unwrap();
    db.insert(key, value).unwrap();
    db.flush().unwrap();
}

#[tokio::test]
async fn another_format_is_refused_with_every_byte_left_as_it_is() {
    let history = History::new().await;
    let cases: [(&str, &dyn Fn()); 3] = [
        ("3", &|| {
            fs::write(history.state().join("format"), "slicectl state format 3\n").unwrap()
        }),
        ("99", &|| {
            fs::write(history.state().join("format"), "slicectl state format 99\n").unwrap()
        }),
        // Of a program that never knew of the file, nor of the seal.
        ("0", &|| {
            forge(&history.state(), "format", "0");
            fs::remove_file(history.state().join("format")).unwrap();
            fs::remove_file(history.state().join("seal")).unwrap();
            fs::remove_dir_all(history.home.path().join("run")).unwrap();
        }),
    ];
    for (format, become_it) in cases {
        history.restore();
        become_it();
        let before = files(&history.state());
        let Err(refused) = history.open() else {
            panic!("format {format} was read");
        };
        let text = refused.to_string();
        for part in [
            format!("format is {format},"),
            "supports only format 2".into(),
            "--state-dir".into(),
        ] {
            assert!(text.contains(&part), "{text}");
        }
        assert!(
            files(&history.state()) == before,
            "format {format}: something was changed"
        );
    }
    // Inside alone: sled itself has been at it, but nothing is lost, moved or read.
    history.restore();
    forge(&history.state(), "format", "99");
    let Err(refused) = history.open() else {
        panic!("another format was read");
    };
    assert!(refused.to_string().contains("format is 99,"), "{refused}");
    assert!(!history.state().join("db.corrupt-1").exists());
    let db = sled::Config::new()
        .path(history.state().join("db"))
        .segment_size(2 << 20);
    assert!(db.open().unwrap().contains_key("group/group-0").unwrap());
}

/// As the version before wrote it: no seal, no format file, segments of another size.
async fn of_format_1(history: &History, more: &[(&str, &str)]) {
    let state = history.state();
    let pairs: Vec<_> = {
        let db = sled::Config::new()
            .path(state.join("db"))
            .segment_size(2 << 20);
        db.open().unwrap().iter().map(Result::unwrap).collect()
    };
    fs::remove_dir_all(history.home.path()).unwrap();
    fs::create_dir_all(&state).unwrap();
    let db = sled::open(state.join("db")).unwrap();
    for (key, value) in pairs.iter().filter(|(key, _)| &key[..] != b"seal") {
        db.insert(key, value).unwrap();
    }
    db.insert("format", "1").unwrap();
    for (key, value) in more {
        db.insert(*key, *value).unwrap();
    }
    db.flush().unwrap();
}

#[tokio::test]
async fn a_database_of_format_1_is_converted_once_and_believed_never_again() {
    let history = History::new().await;
    of_format_1(&history, &[]).await;
    let old = files(history.home.path());
    for (times, opened) in [(1, true), (2, false)] {
        let (store, found) = history.open().unwrap();
        assert_eq!(found, Opened::Existing, "time {times}");
        assert_eq!(&whole(&store), history.last(), "time {times}");
        let converted = store
            .notes()
            .iter()
            .any(|note| note.contains("format 1 and is now of format 2"));
        assert_eq!(converted, opened, "time {times}: {:?}", store.notes());
        store.close();
    }
    let (store, _) = history.open().unwrap();
    store
        .write(|txn| apply(txn, &Step::Group(1, 1)))
        .await
        .unwrap();
    store.close();
    // Somebody puts the old one back beside the seal.
    fs::remove_dir_all(history.state().join("db")).unwrap();
    let db = old
        .into_iter()
        .filter(|(name, _)| name.starts_with("state/db"));
    add(history.home.path(), &db.collect());
    let (_, found) = history.open().unwrap();
    assert!(
        matches!(&found, Opened::SetAside { why, .. } if why.contains("older")),
        "{found:?}"
    );
}

#[tokio::test]
async fn a_conversion_that_was_cut_off_is_finished() {
    let history = History::new().await;
    of_format_1(&history, &[]).await;
    let old = files(history.home.path());
    history.open().unwrap().0.close();
    let new = files(history.home.path());
    // The seal, then the format file, then the first batch.
    for there in [&["state/seal"][..], &["state/seal", "state/format"]] {
        write(history.home.path(), &old);
        let first = new
            .iter()
            .filter(|(name, _)| there.iter().any(|of| Path::new(of) == *name));
        let mut first: Files = first
            .map(|(name, bytes)| (name.clone(), bytes.clone()))
            .collect();
        // Before the first batch both slots say what the second one says now.
        let seal = first.get_mut(Path::new("state/seal")).unwrap();
        seal.copy_within(..4096, 4096);
        add(history.home.path(), &first);
        let (store, opened) = history.open().unwrap();
        assert_eq!(opened, Opened::Existing, "{there:?}");
        assert_eq!(&whole(&store), history.last());
        store.close();
    }
}

#[tokio::test]
async fn a_value_that_makes_no_sense_is_refused_by_name_and_nothing_is_changed() {
    for (key, value) in [
        ("lease/web-1", r#"{"block": 7}"#),
        ("group/web", "not JSON"),
        ("vm/7", "{}"),
        ("tombstone/7", "{}"),
        ("page/no-uid/net", "{}"),
    ] {
        let history = History::new().await;
        of_format_1(&history, &[(key, value)]).await;
        let before = files(history.home.path());
        for _ in 0..2 {
            let Err(refused) = history.open() else {
                panic!("{key} was read");
            };
            assert!(
                refused.to_string().contains(&format!("{key}: ")),
                "{refused}"
            );
            assert!(
                files(&history.state()) == files_in(&before, "state"),
                "{key}: changed"
            );
        }
    }
}

#[tokio::test]
async fn what_a_newer_version_stored_in_an_object_is_still_there_when_it_is_written() {
    let history = History::new().await;
    let group = history.last()["groups"][0].clone();
    let mut newer = group.clone();
    newer["new"] = json!({"deep": [1, 2]});
    newer["spec"]["max_connections"] = json!(77);
    newer["spec"]["template"]["network"]["strict"] = json!(false);
    of_format_1(&history, &[("group/group-0", &newer.to_string())]).await;
    let (store, opened) = history.open().unwrap();
    assert_eq!(opened, Opened::Existing);
    let notes = store.notes().join("\n");
    for field in [
        "new",
        "spec.max_connections",
        "spec.template.network.strict",
    ] {
        assert!(
            notes.contains(&format!("group/group-0: {field} ")),
            "{notes}"
        );
    }
    store
        .write(|txn| apply(txn, &Step::Group(0, 3)))
        .await
        .unwrap();
    store.close();
    // Later, by a daemon that has read it from its own database.
    let (store, _) = history.open().unwrap();
    store
        .write(|txn| apply(txn, &Step::Group(0, 2)))
        .await
        .unwrap();
    store.close();
    drop(store);
    let stored = sled::open(history.state().join("db"))
        .unwrap()
        .get("group/group-0")
        .unwrap()
        .unwrap();
    let stored: Value = serde_json::from_slice(&stored).unwrap();
    assert_eq!(stored["spec"]["count"], 2);
    assert_eq!(stored["new"], newer["new"]);
    assert_eq!(stored["spec"]["max_connections"], 77);
    assert_eq!(stored["spec"]["template"]["network"]["strict"], false);
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

/// Every file below, by its name from there.
fn files(dir: &Path) -> Files {
    let mut found = Files::new();
    let mut left = vec![dir.to_owned()];
    while let Some(next) = left.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => left.push(path),
                false => {
                    let name = path.strip_prefix(dir).unwrap().to_owned();
                    found.insert(name, fs::read(&path).unwrap());
                }
            }
        }
    }
    found
}

fn files_in(files: &Files, dir: &str) -> Files {
    let inside = files.iter().filter_map(|(name, bytes)| {
        let name = name.strip_prefix(dir).ok()?;
        Some((name.to_owned(), bytes.clone()))
    });
    inside.collect()
}

fn write(dir: &Path, files: &Files) {
    fs::remove_dir_all(dir).unwrap();
    add(dir, files);
}

fn add(dir: &Path, files: &Files) {
    for (name, bytes) in files {
        let path = dir.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
}

/// Up to the last byte that is not zero: an accident to what was never written is none.
fn used(bytes: &[u8]) -> usize {
    bytes
        .iter()
        .rposition(|byte| *byte != 0)
        .map_or(1, |last| last + 1)
}
