//! Plans from listings (pure), and reads of a directory.
//! Out of scope: notifications.

use std::fs;
use std::process::Command;

use tempfile::TempDir;

use super::*;
use crate::api::manifest::Source;
use crate::api::meta::Meta;

mod missing;

fn group(name: &str, rest: &str) -> String {
    format!("config: {{host_groups: [{{name: {name}, network: {{mode: isolated{rest}}}}}]}}\n")
}

fn file(path: &str, text: impl Into<String>) -> FileResult {
    FileResult::Readable {
        path: path.into(),
        source: Source {
            name: path.into(),
            text: text.into(),
        },
        is_written: false,
    }
}

/// The directory of all listings, unless a test specifies another.
fn here() -> DirectoryId {
    DirectoryId {
        device: 1,
        inode: 2,
        created_ns: Some(3),
    }
}

fn listing(readings: &[FileResult]) -> Listing {
    Listing {
        id: here(),
        files: readings.to_vec(),
        others: Vec::new(),
        is_silent: false,
        stamp: Stamp::default(),
    }
}

/// A plan at a time `after` the first one.
fn at(
    stored: &[HostGroup],
    listing: &Listing,
    memory: &mut History,
    after: Duration,
) -> IntakePlan {
    static START: std::sync::LazyLock<Instant> = std::sync::LazyLock::new(Instant::now);
    let input = Input {
        stored,
        listing,
        allowed: &AllowedDirectories::default(),
        now: *START + after,
        grace: REMOVAL_GRACE,
    };
    let intake = plan(&input, memory);
    let broken: Vec<&PathBuf> = intake.problems.iter().map(|(path, _)| path).collect();
    assert!(broken.iter().all(|path| !intake.sound.contains(*path)));
    IntakePlan {
        sound: BTreeSet::new(),
        ..intake
    }
}

fn first(stored: &[HostGroup], files: &[FileResult]) -> IntakePlan {
    at(
        stored,
        &listing(files),
        &mut History::default(),
        Duration::ZERO,
    )
}

/// The groups of these files, as if they had been stored.
fn stored(files: &[FileResult]) -> Vec<HostGroup> {
    let intake = first(&[], files);
    assert_eq!(intake.problems, Vec::new());
    intake.upserts.into_iter().map(as_stored).collect()
}

fn as_stored((draft, origin): (Draft, Origin)) -> HostGroup {
    HostGroup {
        adopted: false,
        seen_in: Some(here()),
        meta: Meta::new(draft.name, jiff::Timestamp::UNIX_EPOCH),
        origin,
        spec: draft.spec,
        orders: Default::default(),
    }
}

/// Plans at the start, within and after the grace period; returns the last plan.
fn twice(stored: &[HostGroup], files: &[FileResult]) -> IntakePlan {
    plan_listing_after_grace(stored, &listing(files))
}

fn plan_listing_after_grace(stored: &[HostGroup], listing: &Listing) -> IntakePlan {
    let mut history = History::default();
    let first = at(stored, listing, &mut history, Duration::ZERO);
    assert_eq!(first.deletions, Vec::new(), "one read deletes nothing");
    let early = at(stored, listing, &mut history, REMOVAL_GRACE / 2);
    assert_eq!(
        early.deletions,
        Vec::new(),
        "nothing is deleted within the grace period"
    );
    at(stored, listing, &mut history, REMOVAL_GRACE)
}

/// The result of a read without changes.
fn nothing() -> IntakePlan {
    IntakePlan {
        directory: Some(here()),
        ..IntakePlan::default()
    }
}

fn names(groups: &[Name]) -> Vec<&str> {
    groups.iter().map(Name::as_str).collect()
}

fn problem_messages(intake: &IntakePlan) -> Vec<String> {
    let all = intake.problems.iter().flat_map(|(_, problems)| problems);
    all.map(ToString::to_string).collect()
}

#[test]
fn what_is_stored_already_is_not_repeated() {
    let files = [
        file("a.yaml", group("a", "")),
        file("b.yaml", group("b", "")),
    ];
    let stored = stored(&files);
    assert_eq!(stored.len(), 2);
    assert_eq!(first(&stored, &files), nothing());
}

#[test]
fn a_group_whose_file_is_missing_is_deleted_after_the_grace_period() {
    let before = stored(&[
        file("a.yaml", group("a", "")),
        file("b.yaml", group("b", "")),
    ]);
    let now = [file("b.yaml", group("b", ""))];
    assert_eq!(names(&twice(&before, &now).deletions), ["a"]);
    assert_eq!(twice(&before, &now).upserts, Vec::new());
}

#[test]
fn groups_of_an_invalid_or_unreadable_file_are_kept_and_the_reason_is_reported() {
    let before = stored(&[file("a.yaml", group("a", ""))]);
    let broken = twice(&before, &[file("a.yaml", "config: [")]);
    let unreadable = twice(
        &before,
        &[FileResult::Unreadable {
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
        problem_messages(&unreadable),
        ["a.yaml:1:1: cannot read the file: Permission denied (os error 13)"]
    );
}

#[test]
fn an_invalid_file_does_not_affect_a_valid_one() {
    let files = [file("a.yaml", "config: 1"), file("b.yaml", group("b", ""))];
    let intake = twice(&[], &files);
    assert_eq!(intake.upserts.len(), 1);
    assert_eq!(intake.problems.len(), 1);
}

#[test]
fn a_group_that_moves_between_files_is_never_deleted() {
    let before = stored(&[file("a.yaml", group("a", ""))]);
    let intake = twice(&before, &[file("b.yaml", group("a", ""))]);
    assert_eq!(intake.deletions, Vec::new());
    assert_eq!(intake.again, None);
    assert_eq!(intake.upserts.len(), 1);
    assert_eq!(intake.upserts[0].1, Origin::File("b.yaml".into()));
}

#[test]
fn a_group_in_two_files_keeps_its_origin() {
    let before = stored(&[file("b.yaml", group("a", ""))]);
    let files = [
        file("a.yaml", group("a", ", drop: [10.0.0.0/8]")),
        file("b.yaml", group("a", "")),
    ];
    let intake = twice(&before, &files);
    assert_eq!((intake.upserts.len(), intake.deletions.len()), (0, 0));
    assert_eq!(intake.problems[0].0, PathBuf::from("a.yaml"));
    assert!(
        problem_messages(&intake)[0].contains("already defined at b.yaml:1:31"),
        "{:?}",
        problem_messages(&intake)
    );
}

#[test]
fn a_group_copied_from_an_invalid_file_keeps_its_origin() {
    let before = stored(&[file("a.yaml", group("a", ""))]);
    let files = [file("a.yaml", "config: 1"), file("b.yaml", group("a", ""))];
    let intake = twice(&before, &files);
    assert_eq!((intake.upserts.len(), intake.deletions.len()), (0, 0));
    assert_eq!(intake.problems.len(), 2);
    assert!(
        problem_messages(&intake)[1].contains("is defined in the file a.yaml"),
        "{:?}",
        problem_messages(&intake)
    );
}

#[test]
fn a_group_created_by_apply_is_neither_changed_nor_deleted_by_a_file() {
    let mut before = stored(&[file("-", group("a", ""))]);
    before[0].origin = Origin::Apply;
    assert_eq!(twice(&before, &[]), nothing());
    let intake = twice(&before, &[file("a.yaml", group("a", ""))]);
    assert_eq!((intake.upserts.len(), intake.deletions.len()), (0, 0));
    assert!(
        problem_messages(&intake)[0].contains("slicectl apply"),
        "{:?}",
        problem_messages(&intake)
    );
}

#[test]
fn overlapping_ranges_refuse_the_last_file_and_all_files_that_depend_on_it() {
    let a = ", range: 169.254.100.0/22";
    let b = ", range: 169.254.104.0/22";
    let before = stored(&[
        file("1.yaml", group("one", a)),
        file("2.yaml", group("two", b)),
    ]);
    // `two` requests the range of `one` and is refused, so it keeps its range, which `three` requests.
    let files = [
        file("1.yaml", group("one", a)),
        file("2.yaml", group("two", a)),
        file("3.yaml", group("three", b)),
    ];
    let intake = twice(&before, &files);
    assert_eq!((intake.upserts.len(), intake.deletions.len()), (0, 0));
    let paths: Vec<_> = intake
        .problems
        .iter()
        .map(|(path, _)| path.clone())
        .collect();
    assert_eq!(paths, [PathBuf::from("2.yaml"), PathBuf::from("3.yaml")]);
    // Two files may swap their ranges in one read.
    let readings = [
        file("1.yaml", group("one", b)),
        file("2.yaml", group("two", a)),
    ];
    let intake = twice(&before, &readings);
    assert_eq!((intake.upserts.len(), intake.problems.len()), (2, 0));
}

#[test]
fn warnings_are_reported_by_file() {
    let intake = twice(&[], &[file("a.yaml", group("a", ", allow: []"))]);
    assert_eq!(intake.warnings.len(), 1);
    assert_eq!(intake.upserts.len(), 1);
}

#[test]
fn only_manifests_directly_in_the_directory_are_read_in_order_without_blocking() {
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
    fs::write(at("GROUPS.YAML"), "").unwrap();
    fs::write(at("b.json"), "").unwrap();
    let listing = read_directory(dir.path()).unwrap();
    assert_eq!(listing.others, [at("GROUPS.YAML"), at("b.json")]);
    let read = listing.files;
    let readable = |reading: &FileResult| matches!(reading, FileResult::Readable { .. });
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
            ("pipe.yaml", false),
            ("sub.yaml", false)
        ]
    );
}

#[test]
fn a_directory_that_cannot_be_listed_is_an_error_and_deletes_nothing() {
    let dir = TempDir::new().unwrap();
    let conf = dir.path().join("conf");
    fs::create_dir(&conf).unwrap();
    fs::write(conf.join("a.yaml"), group("a", "")).unwrap();
    let mut folder = ManifestDir::new(&conf, AllowedDirectories::default(), REMOVAL_GRACE);
    let read = folder.read(&[], Instant::now()).unwrap();
    let seen_in = read.directory.clone();
    let before: Vec<HostGroup> = read.upserts.into_iter().map(as_stored).collect();
    let before: Vec<HostGroup> = before
        .into_iter()
        .map(|group| HostGroup {
            seen_in: seen_in.clone(),
            ..group
        })
        .collect();
    fs::rename(&conf, dir.path().join("away")).unwrap();
    assert!(folder.read(&before, Instant::now()).is_err());
    assert!(folder.read(&before, Instant::now()).is_err());
    fs::rename(dir.path().join("away"), &conf).unwrap();
    assert!(
        !folder.is_unchanged(),
        "the state is unknown after a failure"
    );
    let again = folder.read(&before, Instant::now()).unwrap();
    assert_eq!((again.upserts.len(), again.relocated.len()), (0, 0));
    assert!(folder.is_unchanged());
    fs::write(conf.join("b.json"), "").unwrap();
    assert!(!folder.is_unchanged());
}

#[test]
fn a_file_that_is_open_for_writing_is_detected() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("a.yaml");
    fs::write(&path, group("a", "")).unwrap();
    let written = || match &read_directory(dir.path()).unwrap().files[..] {
        [FileResult::Readable { is_written, .. }] => *is_written,
        other => panic!("{other:?}"),
    };
    assert!(!written());
    let reader = fs::File::open(&path).unwrap();
    assert!(!written());
    let writer = fs::File::options().append(true).open(&path).unwrap();
    assert!(written());
    drop((reader, writer));
    assert!(!written());
}
