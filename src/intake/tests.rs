//! What follows from readings (pure), and what is read (a folder).
//! Not here: what wakes.

use std::fs;
use std::process::Command;

use tempfile::TempDir;

use super::*;
use crate::api::manifest::Source;
use crate::api::meta::Meta;

fn group(name: &str, rest: &str) -> String {
    format!("config: {{host_groups: [{{name: {name}, network: {{mode: isolated{rest}}}}}]}}\n")
}

fn file(path: &str, text: impl Into<String>) -> FileReading {
    FileReading::Readable {
        path: path.into(),
        source: Source {
            name: path.into(),
            text: text.into(),
        },
    }
}

/// The groups of a reading, as if they had been stored from it.
fn stored(readings: &[FileReading]) -> Vec<HostGroup> {
    let intake = plan(&[], readings, &BTreeSet::new(), &Allowed::default());
    assert_eq!(intake.problems, Vec::new());
    intake.upserts.into_iter().map(as_stored).collect()
}

fn as_stored((draft, origin): (Draft, Origin)) -> HostGroup {
    HostGroup {
        adopted: false,
        meta: Meta::new(draft.name, jiff::Timestamp::UNIX_EPOCH),
        origin,
        spec: draft.spec,
        orders: Default::default(),
    }
}

/// Reads twice, as the daemon does.
fn twice(stored: &[HostGroup], readings: &[FileReading]) -> Intake {
    let first = plan(stored, readings, &BTreeSet::new(), &Allowed::default());
    assert_eq!(first.deletions, Vec::new(), "one reading deletes nothing");
    plan(stored, readings, &first.missing, &Allowed::default())
}

fn names(groups: &[Name]) -> Vec<&str> {
    groups.iter().map(Name::as_str).collect()
}

fn said(intake: &Intake) -> Vec<String> {
    let all = intake.problems.iter().flat_map(|(_, problems)| problems);
    all.map(ToString::to_string).collect()
}

#[test]
fn what_is_stored_already_is_not_repeated() {
    let readings = [
        file("a.yaml", group("a", "")),
        file("b.yaml", group("b", "")),
    ];
    let stored = stored(&readings);
    assert_eq!(stored.len(), 2);
    assert_eq!(
        plan(&stored, &readings, &BTreeSet::new(), &Allowed::default()),
        Intake::default()
    );
}

#[test]
fn a_group_whose_file_vanished_is_deleted_at_the_second_look() {
    let before = stored(&[
        file("a.yaml", group("a", "")),
        file("b.yaml", group("b", "")),
    ]);
    let now = [file("b.yaml", group("b", ""))];
    assert_eq!(names(&twice(&before, &now).deletions), ["a"]);
    assert_eq!(twice(&before, &now).upserts, Vec::new());
}

#[test]
fn a_file_that_is_empty_for_an_instant_deletes_nothing() {
    let full = [file("a.yaml", group("a", ""))];
    let before = stored(&full);
    let first = plan(
        &before,
        &[file("a.yaml", "")],
        &BTreeSet::new(),
        &Allowed::default(),
    );
    assert_eq!(first.deletions, Vec::new());
    assert_eq!(first.missing.len(), 1);
    assert_eq!(
        plan(&before, &full, &first.missing, &Allowed::default()),
        Intake::default()
    );
    // And an empty file that stays empty is believed.
    assert_eq!(
        names(&twice(&before, &[file("a.yaml", "")]).deletions),
        ["a"]
    );
}

#[test]
fn a_broken_or_unreadable_file_keeps_its_groups_and_says_why() {
    let before = stored(&[file("a.yaml", group("a", ""))]);
    let broken = twice(&before, &[file("a.yaml", "config: [")]);
    let unreadable = twice(
        &before,
        &[FileReading::Unreadable {
            path: "a.yaml".into(),
            error: "Permission denied (os error 13)".into(),
        }],
    );
    for intake in [&broken, &unreadable] {
        assert_eq!(intake.deletions, Vec::new());
        assert_eq!(intake.upserts, Vec::new());
        assert_eq!(intake.problems.len(), 1);
    }
    assert_eq!(
        said(&unreadable),
        ["a.yaml:1:1: cannot be read: Permission denied (os error 13)"]
    );
}

#[test]
fn a_broken_file_does_not_keep_a_sound_one_from_being_taken() {
    let readings = [file("a.yaml", "config: 1"), file("b.yaml", group("b", ""))];
    let intake = twice(&[], &readings);
    assert_eq!(intake.upserts.len(), 1);
    assert_eq!(intake.problems.len(), 1);
}

#[test]
fn a_group_that_moves_between_files_is_never_deleted() {
    let before = stored(&[file("a.yaml", group("a", ""))]);
    let intake = twice(&before, &[file("b.yaml", group("a", ""))]);
    assert_eq!(intake.deletions, Vec::new());
    assert_eq!(intake.missing, BTreeSet::new());
    assert_eq!(intake.upserts.len(), 1);
    assert_eq!(intake.upserts[0].1, Origin::File("b.yaml".into()));
}

#[test]
fn a_group_in_two_files_stays_with_the_one_that_had_it() {
    let before = stored(&[file("b.yaml", group("a", ""))]);
    let readings = [
        file("a.yaml", group("a", ", drop: [10.0.0.0/8]")),
        file("b.yaml", group("a", "")),
    ];
    let intake = twice(&before, &readings);
    assert_eq!((intake.upserts.len(), intake.deletions.len()), (0, 0));
    assert_eq!(intake.problems[0].0, PathBuf::from("a.yaml"));
    assert!(
        said(&intake)[0].contains("already at b.yaml:1:31"),
        "{:?}",
        said(&intake)
    );
}

#[test]
fn a_group_copied_out_of_a_broken_file_stays_with_that_file() {
    let before = stored(&[file("a.yaml", group("a", ""))]);
    let readings = [file("a.yaml", "config: 1"), file("b.yaml", group("a", ""))];
    let intake = twice(&before, &readings);
    assert_eq!((intake.upserts.len(), intake.deletions.len()), (0, 0));
    assert_eq!(intake.problems.len(), 2);
    assert!(
        said(&intake)[1].contains("belongs to the file a.yaml"),
        "{:?}",
        said(&intake)
    );
}

#[test]
fn a_group_made_by_apply_is_neither_taken_nor_deleted_by_a_file() {
    let mut before = stored(&[file("-", group("a", ""))]);
    before[0].origin = Origin::Apply;
    assert_eq!(twice(&before, &[]), Intake::default());
    let intake = twice(&before, &[file("a.yaml", group("a", ""))]);
    assert_eq!((intake.upserts.len(), intake.deletions.len()), (0, 0));
    assert!(
        said(&intake)[0].contains("slicectl apply"),
        "{:?}",
        said(&intake)
    );
}

#[test]
fn overlapping_ranges_refuse_the_file_that_came_last_and_all_that_leans_on_it() {
    let a = ", range: 169.254.100.0/22";
    let b = ", range: 169.254.104.0/22";
    let before = stored(&[
        file("1.yaml", group("one", a)),
        file("2.yaml", group("two", b)),
    ]);
    // Two would move where One is; a third wants the place that Two would leave, and now does not.
    let readings = [
        file("1.yaml", group("one", a)),
        file("2.yaml", group("two", a)),
        file("3.yaml", group("three", b)),
    ];
    let intake = twice(&before, &readings);
    assert_eq!((intake.upserts.len(), intake.deletions.len()), (0, 0));
    let paths: Vec<_> = intake
        .problems
        .iter()
        .map(|(path, _)| path.clone())
        .collect();
    assert_eq!(paths, [PathBuf::from("2.yaml"), PathBuf::from("3.yaml")]);
    // And two files may swap their ranges in one save.
    let readings = [
        file("1.yaml", group("one", b)),
        file("2.yaml", group("two", a)),
    ];
    let intake = twice(&before, &readings);
    assert_eq!((intake.upserts.len(), intake.problems.len()), (2, 0));
}

#[test]
fn warnings_come_with_their_file() {
    let intake = twice(&[], &[file("a.yaml", group("a", ", allow: []"))]);
    assert_eq!(intake.warnings.len(), 1);
    assert_eq!(intake.upserts.len(), 1);
}

#[test]
fn only_manifests_directly_in_the_folder_are_read_in_order_and_nothing_is_waited_for() {
    let dir = TempDir::new().unwrap();
    let at = |name: &str| dir.path().join(name);
    for name in [
        "b.yml",
        "a.yaml",
        ".a.yaml.swp",
        "4913",
        "a.yaml~",
        ".hidden.yaml",
        "#a.yaml",
        "notes.txt",
    ] {
        fs::write(at(name), group("x", "")).unwrap();
    }
    fs::create_dir(at("sub.yaml")).unwrap();
    fs::write(at("sub.yaml").join("c.yaml"), "").unwrap();
    fs::write(at("latin.yaml"), b"\xe9").unwrap();
    std::os::unix::fs::symlink(at("nowhere"), at("link.yaml")).unwrap();
    assert!(
        Command::new("mkfifo")
            .arg(at("pipe.yaml"))
            .status()
            .unwrap()
            .success()
    );
    let read = read_folder(dir.path()).unwrap();
    let readable = |reading: &FileReading| matches!(reading, FileReading::Readable { .. });
    let found: Vec<_> = read
        .iter()
        .map(|r| (r.path().file_name().unwrap().to_str().unwrap(), readable(r)))
        .collect();
    assert_eq!(
        found,
        [
            ("a.yaml", true),
            ("b.yml", true),
            ("latin.yaml", false),
            ("link.yaml", false),
            ("pipe.yaml", false)
        ]
    );
}

#[test]
fn a_folder_that_cannot_be_listed_is_an_error_and_forgets_nothing() {
    let dir = TempDir::new().unwrap();
    let conf = dir.path().join("conf");
    fs::create_dir(&conf).unwrap();
    fs::write(conf.join("a.yaml"), group("a", "")).unwrap();
    let mut folder = Folder::new(&conf, Allowed::default());
    let before: Vec<HostGroup> = folder
        .read(&[])
        .unwrap()
        .upserts
        .into_iter()
        .map(as_stored)
        .collect();
    fs::rename(&conf, dir.path().join("away")).unwrap();
    assert!(folder.read(&before).is_err());
    assert!(folder.read(&before).is_err());
    fs::rename(dir.path().join("away"), &conf).unwrap();
    assert_eq!(folder.read(&before).unwrap(), Intake::default());
}
