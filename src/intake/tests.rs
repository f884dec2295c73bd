//! What follows from readings (pure), what is read (a folder), and what wakes (the real tools).

use std::fs;
use std::process::Command;
use std::time::Instant;

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
    let intake = plan(&[], readings, &BTreeSet::new());
    assert_eq!(intake.problems, Vec::new());
    intake.upserts.into_iter().map(as_stored).collect()
}

fn as_stored((draft, origin): (Draft, Origin)) -> HostGroup {
    HostGroup {
        meta: Meta::new(draft.name, jiff::Timestamp::UNIX_EPOCH),
        origin,
        spec: draft.spec,
    }
}

/// Reads twice, as the daemon does.
fn twice(stored: &[HostGroup], readings: &[FileReading]) -> Intake {
    let first = plan(stored, readings, &BTreeSet::new());
    assert_eq!(first.deletions, Vec::new(), "one reading deletes nothing");
    plan(stored, readings, &first.missing)
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
        plan(&stored, &readings, &BTreeSet::new()),
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
    let first = plan(&before, &[file("a.yaml", "")], &BTreeSet::new());
    assert_eq!(first.deletions, Vec::new());
    assert_eq!(first.missing.len(), 1);
    assert_eq!(plan(&before, &full, &first.missing), Intake::default());
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
    let mut folder = Folder::new(&conf);
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

/// A config folder, `sh` in its parent, and a watch on it.
struct Desk {
    dir: TempDir,
    watch: Watch,
}

impl Desk {
    fn new(prepare: &str) -> Self {
        let dir = TempDir::new().unwrap();
        sh(dir.path(), "mkdir conf");
        sh(dir.path(), prepare);
        let watch = Watch::new(&dir.path().join("conf")).unwrap();
        Self { dir, watch }
    }

    /// Runs a save and returns what the folder says once woken, well within a second.
    async fn save(&mut self, script: &str) -> Vec<(String, String)> {
        sh(self.dir.path(), script);
        let start = Instant::now();
        tokio::time::timeout(Duration::from_millis(900), self.watch.changed())
            .await
            .unwrap_or_else(|_| panic!("not woken by: {script}"))
            .unwrap();
        assert!(start.elapsed() < Duration::from_millis(900));
        self.now()
    }

    fn now(&self) -> Vec<(String, String)> {
        let Ok(read) = read_folder(&self.dir.path().join("conf")) else {
            return vec![("folder".into(), "gone".into())];
        };
        let say = |reading: FileReading| match reading {
            FileReading::Readable { path, source } => (file_name(&path), source.text),
            FileReading::Unreadable { path, error } => (file_name(&path), error),
        };
        read.into_iter().map(say).collect()
    }

    async fn stays_asleep(&mut self, script: &str) {
        sh(self.dir.path(), script);
        let woken = tokio::time::timeout(Duration::from_millis(400), self.watch.changed()).await;
        assert!(woken.is_err(), "woken by: {script}");
    }
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap().to_str().unwrap().to_owned()
}

fn sh(dir: &Path, script: &str) {
    let output = Command::new("bash")
        .args(["-euc", script])
        .current_dir(dir)
        .env("HOME", dir)
        .output()
        .unwrap();
    assert!(output.status.success(), "{script}: {output:?}");
}

fn one(name: &str, text: &str) -> Vec<(String, String)> {
    vec![(name.into(), text.into())]
}

#[tokio::test]
async fn every_way_of_saving_wakes_within_a_second() {
    let mut desk = Desk::new("echo 1 > conf/a.yaml");
    assert_eq!(
        desk.save("echo 2 > conf/a.yaml").await,
        one("a.yaml", "2\n")
    );
    assert_eq!(
        desk.save("sed -i s/2/3/ conf/a.yaml").await,
        one("a.yaml", "3\n")
    );
    assert_eq!(
        desk.save("echo 4 > new; mv new conf/a.yaml").await,
        one("a.yaml", "4\n")
    );
    assert_eq!(
        desk.save("echo 5 > new; cp new conf/a.yaml").await,
        one("a.yaml", "5\n")
    );
    assert_eq!(
        desk.save("ln conf/a.yaml conf/b.yml; rm conf/a.yaml").await,
        one("b.yml", "5\n")
    );
    assert_eq!(desk.save("mv conf/b.yml .").await, []);
}

#[tokio::test]
async fn vim_saving_in_place_and_by_renaming_wakes() {
    let mut desk = Desk::new("echo 1 > conf/a.yaml");
    for (copy, text) in [("no", "2"), ("yes", "3")] {
        let script = format!(
            "vim -u NONE -N -es -c 'set backupcopy={copy} writebackup swapfile' -c '%s/./{text}/' -c wq conf/a.yaml </dev/null"
        );
        assert_eq!(
            desk.save(&script).await,
            one("a.yaml", &format!("{text}\n"))
        );
    }
}

#[tokio::test]
async fn git_checkout_of_another_branch_wakes_and_is_read_whole() {
    let mut desk = Desk::new(
        "cd conf; git init -q -b one; git config user.email a@b; git config user.name n
         echo 1 > a.yaml; git add .; git commit -qm 1; git checkout -qb two; git mv a.yaml b.yaml; git commit -qm 2; git checkout -q one",
    );
    assert_eq!(
        desk.save("cd conf; git checkout -q two").await,
        one("b.yaml", "1\n")
    );
}

#[tokio::test]
async fn a_swapped_link_wakes_be_it_the_folder_its_data_or_a_file() {
    // As the kubelet lays out a ConfigMap.
    let mut desk = Desk::new(
        "cd conf; mkdir ..v1 ..v2; echo 1 > ..v1/a.yaml; echo 2 > ..v2/a.yaml; ln -s ..v1 ..data; ln -s ..data/a.yaml a.yaml",
    );
    assert_eq!(
        desk.save("cd conf; ln -s ..v2 ..tmp; mv -T ..tmp ..data")
            .await,
        one("a.yaml", "2\n")
    );
    assert_eq!(
        desk.save("echo 3 > conf/..v2/a.yaml").await,
        one("a.yaml", "3\n")
    );

    let mut desk =
        Desk::new("rmdir conf; mkdir v1 v2; echo 1 > v1/a.yaml; echo 2 > v2/a.yaml; ln -s v1 conf");
    assert_eq!(
        desk.save("ln -s v2 tmp; mv -T tmp conf").await,
        one("a.yaml", "2\n")
    );
    assert_eq!(desk.save("echo 3 > v2/a.yaml").await, one("a.yaml", "3\n"));
    desk.stays_asleep("echo 3 > v1/a.yaml").await;

    let mut desk = Desk::new("mkdir repo; echo 1 > repo/x; ln -s ../repo/x conf/a.yaml");
    assert_eq!(
        desk.save("sed -i s/1/2/ repo/x").await,
        one("a.yaml", "2\n")
    );
    desk.stays_asleep("echo 1 > repo/y").await;
}

#[tokio::test]
async fn a_folder_that_is_deleted_and_comes_back_is_watched_on() {
    let mut desk = Desk::new("echo 1 > conf/a.yaml");
    assert_eq!(desk.save("rm -r conf").await, one("folder", "gone"));
    assert_eq!(
        desk.save("mkdir conf; echo 2 > conf/a.yaml").await,
        one("a.yaml", "2\n")
    );
    assert_eq!(
        desk.save("echo 3 > conf/a.yaml").await,
        one("a.yaml", "3\n")
    );
    assert_eq!(
        desk.save("mv conf old; mkdir conf; echo 4 > conf/a.yaml")
            .await,
        one("a.yaml", "4\n")
    );
    assert_eq!(
        desk.save("echo 5 > conf/a.yaml").await,
        one("a.yaml", "5\n")
    );
    // Not even its parents need be there.
    let mut watch = Watch::new(&desk.dir.path().join("x/y/conf")).unwrap();
    for step in [
        "mkdir x",
        "mkdir x/y",
        "mkdir x/y/conf",
        "echo 1 > x/y/conf/a.yaml",
    ] {
        sh(desk.dir.path(), step);
        let woken = tokio::time::timeout(Duration::from_millis(900), watch.changed()).await;
        woken
            .unwrap_or_else(|_| panic!("not woken by: {step}"))
            .unwrap();
    }
}

#[tokio::test]
async fn neighbours_editors_and_our_own_reading_do_not_wake() {
    let mut desk = Desk::new("echo 1 > conf/a.yaml");
    desk.stays_asleep("cat conf/a.yaml; ls conf; echo 1 > conf/.a.yaml.swp; echo 1 > conf/4913; rm conf/4913; echo 1 > neighbour.yaml; mkdir conf/sub")
        .await;
    assert_eq!(desk.now().len(), 1);
    desk.stays_asleep("true").await;
}

#[tokio::test]
async fn a_wait_that_is_given_up_half_way_loses_no_wake_up() {
    let mut desk = Desk::new("echo 1 > conf/a.yaml");
    sh(desk.dir.path(), "echo 2 > conf/a.yaml");
    let woken = tokio::time::timeout(Duration::from_millis(30), desk.watch.changed()).await;
    assert!(woken.is_err(), "it waits for quiet first");
    tokio::time::timeout(Duration::from_millis(900), desk.watch.changed())
        .await
        .expect("still woken")
        .unwrap();
}

#[tokio::test]
async fn someone_who_never_stops_saving_is_not_waited_for() {
    let mut desk = Desk::new("echo 1 > conf/a.yaml");
    let path = desk.dir.path().join("conf/a.yaml");
    let busy = tokio::spawn(async move {
        for round in 0.. {
            fs::write(&path, format!("{round}\n")).unwrap();
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    tokio::time::timeout(Duration::from_millis(900), desk.watch.changed())
        .await
        .expect("patience ends")
        .unwrap();
    busy.abort();
}
