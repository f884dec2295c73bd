//! Notifications for saves by common tools.
//! Out of scope: the plan from what is read.

use std::fs;
use std::process::Command;
use std::time::Instant;

use tempfile::TempDir;

use super::*;
use crate::intake::{FileResult, read_directory};

/// A manifest directory with a watch, and a shell in its parent directory.
struct WatchedDir {
    dir: TempDir,
    watch: Watch,
}

impl WatchedDir {
    async fn new(prepare: &str) -> Self {
        let dir = TempDir::new().unwrap();
        sh(dir.path(), "mkdir conf");
        sh(dir.path(), prepare);
        let watch = Watch::new(&dir.path().join("conf")).await.unwrap();
        Self { dir, watch }
    }

    /// Runs a save, waits less than a second for the notification, and returns the files of the directory.
    async fn save(&mut self, script: &str) -> Vec<(String, String)> {
        sh(self.dir.path(), script);
        let start = Instant::now();
        tokio::time::timeout(Duration::from_millis(900), self.watch.changed())
            .await
            .unwrap_or_else(|_| panic!("no notification after: {script}"))
            .unwrap();
        assert!(start.elapsed() < Duration::from_millis(900));
        self.now()
    }

    fn now(&self) -> Vec<(String, String)> {
        let Ok(read) = read_directory(&self.dir.path().join("conf")) else {
            return vec![("folder".into(), "gone".into())];
        };
        let to_entry = |reading: FileResult| match reading {
            FileResult::Readable { path, source, .. } => (file_name(&path), source.text),
            FileResult::Unreadable { path, error } => (file_name(&path), error),
        };
        read.files.into_iter().map(to_entry).collect()
    }

    async fn assert_not_notified(&mut self, script: &str) {
        sh(self.dir.path(), script);
        let result = tokio::time::timeout(Duration::from_millis(400), self.watch.changed()).await;
        assert!(result.is_err(), "notification after: {script}");
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
async fn every_way_of_saving_is_notified_within_a_second() {
    let mut watched = WatchedDir::new("echo 1 > conf/a.yaml").await;
    assert_eq!(
        watched.save("echo 2 > conf/a.yaml").await,
        one("a.yaml", "2\n")
    );
    assert_eq!(
        watched.save("sed -i s/2/3/ conf/a.yaml").await,
        one("a.yaml", "3\n")
    );
    assert_eq!(
        watched.save("echo 4 > new; mv new conf/a.yaml").await,
        one("a.yaml", "4\n")
    );
    assert_eq!(
        watched.save("echo 5 > new; cp new conf/a.yaml").await,
        one("a.yaml", "5\n")
    );
    assert_eq!(
        watched
            .save("ln conf/a.yaml conf/b.yml; rm conf/a.yaml")
            .await,
        one("b.yml", "5\n")
    );
    assert_eq!(watched.save("mv conf/b.yml .").await, []);
}

#[tokio::test]
async fn saves_by_vim_in_place_and_by_renaming_are_notified() {
    let mut watched = WatchedDir::new("echo 1 > conf/a.yaml").await;
    for (copy, text) in [("no", "2"), ("yes", "3")] {
        let script = format!(
            "vim -u NONE -N -es -c 'set backupcopy={copy} writebackup swapfile' -c '%s/./{text}/' -c wq conf/a.yaml </dev/null"
        );
        assert_eq!(
            watched.save(&script).await,
            one("a.yaml", &format!("{text}\n"))
        );
    }
}

#[tokio::test]
async fn a_git_checkout_of_another_branch_is_notified_and_read_completely() {
    let mut watched = WatchedDir::new(
        "cd conf; git init -q -b one; git config user.email a@b; git config user.name n
         echo 1 > a.yaml; git add .; git commit -qm 1; git checkout -qb two; git mv a.yaml b.yaml; git commit -qm 2; git checkout -q one",
    ).await;
    assert_eq!(
        watched.save("cd conf; git checkout -q two").await,
        one("b.yaml", "1\n")
    );
}

#[tokio::test]
async fn a_replaced_link_to_the_directory_its_data_or_a_file_is_notified() {
    // The layout of a ConfigMap volume by the kubelet.
    let mut watched = WatchedDir::new(
        "cd conf; mkdir ..v1 ..v2; echo 1 > ..v1/a.yaml; echo 2 > ..v2/a.yaml; ln -s ..v1 ..data; ln -s ..data/a.yaml a.yaml",
    ).await;
    assert_eq!(
        watched
            .save("cd conf; ln -s ..v2 ..tmp; mv -T ..tmp ..data")
            .await,
        one("a.yaml", "2\n")
    );
    assert_eq!(
        watched.save("echo 3 > conf/..v2/a.yaml").await,
        one("a.yaml", "3\n")
    );

    let mut desk = WatchedDir::new(
        "rmdir conf; mkdir v1 v2; echo 1 > v1/a.yaml; echo 2 > v2/a.yaml; ln -s v1 conf",
    )
    .await;
    assert_eq!(
        desk.save("ln -s v2 tmp; mv -T tmp conf").await,
        one("a.yaml", "2\n")
    );
    assert_eq!(desk.save("echo 3 > v2/a.yaml").await, one("a.yaml", "3\n"));
    desk.assert_not_notified("echo 3 > v1/a.yaml").await;

    let mut desk =
        WatchedDir::new("mkdir repo; echo 1 > repo/x; ln -s ../repo/x conf/a.yaml").await;
    assert_eq!(
        desk.save("sed -i s/1/2/ repo/x").await,
        one("a.yaml", "2\n")
    );
    desk.assert_not_notified("echo 1 > repo/y").await;
}

#[tokio::test]
async fn a_directory_that_is_deleted_and_created_again_is_still_watched() {
    let mut watched = WatchedDir::new("echo 1 > conf/a.yaml").await;
    assert_eq!(watched.save("rm -r conf").await, one("folder", "gone"));
    assert_eq!(
        watched.save("mkdir conf; echo 2 > conf/a.yaml").await,
        one("a.yaml", "2\n")
    );
    assert_eq!(
        watched.save("echo 3 > conf/a.yaml").await,
        one("a.yaml", "3\n")
    );
    assert_eq!(
        watched
            .save("mv conf old; mkdir conf; echo 4 > conf/a.yaml")
            .await,
        one("a.yaml", "4\n")
    );
    assert_eq!(
        watched.save("echo 5 > conf/a.yaml").await,
        one("a.yaml", "5\n")
    );
    // Its parents need not exist either.
    let mut watch = Watch::new(&watched.dir.path().join("x/y/conf"))
        .await
        .unwrap();
    for step in [
        "mkdir x",
        "mkdir x/y",
        "mkdir x/y/conf",
        "echo 1 > x/y/conf/a.yaml",
    ] {
        sh(watched.dir.path(), step);
        let result = tokio::time::timeout(Duration::from_millis(900), watch.changed()).await;
        result
            .unwrap_or_else(|_| panic!("no notification after: {step}"))
            .unwrap();
    }
}

#[tokio::test]
async fn other_files_temporary_files_of_editors_and_our_own_reads_are_not_notified() {
    let mut watched = WatchedDir::new("echo 1 > conf/a.yaml").await;
    watched.assert_not_notified("cat conf/a.yaml; ls conf; echo 1 > conf/.a.yaml.swp; echo 1 > conf/4913; rm conf/4913; echo 1 > neighbour.yaml; mkdir conf/sub")
        .await;
    assert_eq!(watched.now().len(), 1);
    watched.assert_not_notified("true").await;
}

#[tokio::test]
async fn a_cancelled_wait_loses_no_notification() {
    let mut watched = WatchedDir::new("echo 1 > conf/a.yaml").await;
    sh(watched.dir.path(), "echo 2 > conf/a.yaml");
    let result = tokio::time::timeout(Duration::from_millis(30), watched.watch.changed()).await;
    assert!(result.is_err(), "it waits for the end of the save first");
    tokio::time::timeout(Duration::from_millis(900), watched.watch.changed())
        .await
        .expect("a notification")
        .unwrap();
}

#[tokio::test]
async fn continuous_saves_are_notified_before_they_end() {
    let mut watched = WatchedDir::new("echo 1 > conf/a.yaml").await;
    let path = watched.dir.path().join("conf/a.yaml");
    let busy = tokio::spawn(async move {
        for round in 0.. {
            fs::write(&path, format!("{round}\n")).unwrap();
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    tokio::time::timeout(Duration::from_millis(900), watched.watch.changed())
        .await
        .expect("a notification")
        .unwrap();
    busy.abort();
}
