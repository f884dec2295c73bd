//! Input that is missing, and changes that make no event: what the config folder may suffer, and what follows.
//! Out of scope: what is wrong with a text (`manifests`); editors' ways of saving (`reload`).

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use test_support::harness::{self, Harness};
use test_support::kernel::run;

/// Of the daemons of these tests.
const GRACE: Duration = Duration::from_millis(500);

/// Longer than a removal takes to be carried out.
const A_WHILE: Duration = Duration::from_millis(1700);

/// Both groups of a file, each a slot.
fn both() -> String {
    let all = one("a") + &one("b");
    format!("config:\n  host_groups:\n{all}")
}

fn one(name: &str) -> String {
    format!(
        "    - name: {name}\n      count: 1\n      vcpu: 1\n      ram_mb: 128\n      hypervisor: none\n      network: {{mode: isolated}}\n"
    )
}

fn only(name: &str) -> String {
    format!("config:\n  host_groups:\n{}", one(name))
}

/// A daemon with a short grace, and groups a and b in one file.
fn with_both(more: &str, test: impl FnOnce(&mut Harness) + Send) {
    harness::empty(|mut harness| {
        let args = format!("--removal-grace {}ms {more}", GRACE.as_millis());
        harness.args = args.split_whitespace().map(str::to_owned).collect();
        harness.save("groups.yaml", &both());
        harness.start();
        both_ready(&harness);
        test(&mut harness);
    });
}

fn both_ready(harness: &Harness) {
    harness.until("both groups", || {
        let ready = |name: &str| harness.get(&format!("hg {name}"))["status"]["ready"] == true;
        (ready("a") && ready("b")).then_some(())
    });
}

/// The uids of the VMs that are there.
fn uids(harness: &Harness) -> Vec<String> {
    let list = harness.get("vms");
    let items = list["items"].as_array().expect("items").iter();
    let uid = |vm: &serde_json::Value| vm["metadata"]["uid"].as_str().map(str::to_owned);
    items.filter_map(uid).collect()
}

/// What somebody does to the folder, as a shell command in it; what is held open for as long as the look lasts.
type Damage = (&'static str, fn(&Harness) -> Option<File>);

fn shell(harness: &Harness, command: &str) -> Option<File> {
    run(&format!(
        "conf={}; file=$conf/groups.yaml; {command}",
        harness.conf().display()
    ));
    None
}

fn rewrite(harness: &Harness, text: &str) -> File {
    let path = harness.conf().join("groups.yaml");
    let mut file = File::create(path).expect("a file");
    file.write_all(text.as_bytes()).expect("written");
    file
}

/// None of them is a request to delete anything.
const MISSING: [Damage; 38] = [
    ("empty", |h| shell(h, ": > $file")),
    ("truncated to nothing by another name", |h| {
        shell(h, "ln $file $conf/../x; : > $conf/../x")
    }),
    ("replaced by an empty file", |h| {
        shell(h, ": > $conf/../new; mv $conf/../new $file")
    }),
    ("blank", |h| shell(h, r"printf '\n \t\n\n' > $file")),
    ("a comment", |h| shell(h, "echo '# nothing' > $file")),
    ("a document's beginning", |h| shell(h, "echo '---' > $file")),
    ("two documents' beginnings", |h| {
        shell(h, r"printf -- '---\n---\n' > $file")
    }),
    ("a document's end", |h| shell(h, "echo '...' > $file")),
    ("a byte order mark", |h| {
        shell(h, r"printf '\357\273\277' > $file")
    }),
    ("null", |h| shell(h, "echo null > $file")),
    ("config alone", |h| shell(h, "echo config: > $file")),
    ("host_groups alone", |h| {
        shell(h, r"printf 'config:\n  host_groups:\n' > $file")
    }),
    ("NUL bytes", |h| shell(h, "head -c 512 /dev/zero > $file")),
    ("a NUL tail", |h| shell(h, "truncate -s +512 $file")),
    ("no UTF-8", |h| shell(h, r"printf '\377' > $file")),
    ("cut within a line", |h| shell(h, "truncate -s -12 $file")),
    ("cut within a name", |h| {
        shell(
            h,
            "truncate -s $(($(grep -bo 'name: b' $file | cut -d: -f1) + 3)) $file",
        )
    }),
    ("cut within a group", |h| {
        shell(
            h,
            "truncate -s $(($(grep -bo 'name: b' $file | cut -d: -f1) + 20)) $file",
        )
    }),
    ("empty and open", |h| Some(rewrite(h, ""))),
    ("half written and open", |h| Some(rewrite(h, &only("a")))),
    ("an empty list of groups, and open", |h| {
        Some(rewrite(h, "config:\n  host_groups: []\n"))
    }),
    ("a directory", |h| shell(h, "rm $file; mkdir $file")),
    ("a dangling link", |h| {
        shell(h, "rm $file; ln -s nowhere $file")
    }),
    ("a link to itself", |h| {
        shell(h, "rm $file; ln -s groups.yaml $file")
    }),
    ("a pipe", |h| shell(h, "rm $file; mkfifo $file")),
    ("a device", |h| {
        shell(h, "touch $file; mount --bind /dev/null $file")
    }),
    ("an empty file mounted over it", |h| {
        shell(h, ": > $conf/../new; mount --bind $conf/../new $file")
    }),
    ("renamed", |h| shell(h, "mv $file $conf/other.yml")),
    ("renamed and broken", |h| {
        shell(h, "echo odd >> $file; mv $file $conf/other.yml")
    }),
    ("renamed in upper case", |h| {
        shell(h, "mv $file $conf/GROUPS.YAML")
    }),
    ("renamed to JSON", |h| {
        shell(h, "mv $file $conf/groups.json")
    }),
    ("folder renamed", |h| shell(h, "mv $conf $conf.away")),
    ("folder replaced by an empty one", |h| {
        shell(h, "mv $conf $conf.away; mkdir $conf")
    }),
    ("folder made again", |h| {
        shell(h, "rm -r $conf; mkdir $conf")
    }),
    ("folder is a file", |h| {
        shell(h, "mv $conf $conf.away; : > $conf")
    }),
    ("folder is a dangling link", |h| {
        shell(h, "mv $conf $conf.away; ln -s nowhere $conf")
    }),
    ("an empty tmpfs over the folder", |h| {
        shell(h, "mount -t tmpfs none $conf")
    }),
    ("an empty folder bound over it", |h| {
        shell(h, "mkdir $conf.new; mount --bind $conf.new $conf")
    }),
];

/// Undoes mounts and puts the file back, as its owner had it.
fn restore(harness: &Harness) {
    shell(
        harness,
        "while umount $file 2>/dev/null; do :; done; while umount $conf 2>/dev/null; do :; done
         if [ -e $conf.away ]; then rm -rf $conf; mv $conf.away $conf; fi
         rm -rf $conf.new $conf/../x $conf/groups.* $conf/GROUPS.* $conf/other.*",
    );
    harness.save("groups.yaml", &both());
}

/// Whether a condition or an event of the group, the file or the folder reports it.
fn is_reported(harness: &Harness) -> bool {
    let reasons = ["ManifestInvalid", "KeptWithoutFile", "FolderUnreadable"];
    let output = |reason: &&str| !harness.messages("", reason).is_empty();
    let condition = harness.ctl("get hg a -o json") + &harness.ctl("get hg b -o json");
    reasons.iter().any(output) && condition.contains("\"Manifest\"")
}

/// What moved within the folder is no fault; what is being written is not known to be one.
fn is_no_fault(name: &str) -> bool {
    name == "renamed"
}

fn keeps_everything(part: usize, parts: usize) {
    // What is done to a file by a name outside of the folder makes no event in it.
    with_both("--resync 1s", |harness| {
        let before = uids(harness);
        let own = MISSING.iter().skip(part).step_by(parts);
        for (name, damage) in own {
            for restarted in [false, true] {
                if restarted {
                    harness.stop();
                }
                let held = damage(harness);
                if restarted {
                    harness.start();
                }
                std::thread::sleep(A_WHILE);
                assert_eq!(uids(harness), before, "{name}, restarted: {restarted}");
                assert!(
                    is_no_fault(name) || is_reported(harness),
                    "{name}, restarted: {restarted}: not reported\n{}",
                    harness.ctl("events")
                );
                drop(held);
                restore(harness);
                harness.until("taken in again", || {
                    let groups = ["a", "b"].into_iter();
                    let mut groups = groups.map(|name| harness.get(&format!("hg {name}")));
                    let taken = |group: serde_json::Value| {
                        let text = group.to_string();
                        text.contains("conf/groups.yaml") && !text.contains("\"Manifest\"")
                    };
                    groups.all(taken).then_some(())
                });
                assert_eq!(uids(harness), before, "{name}, restored");
            }
        }
    });
}

#[test]
fn input_that_is_missing_deletes_nothing_first_part() {
    keeps_everything(0, 2);
}

#[test]
fn input_that_is_missing_deletes_nothing_second_part() {
    keeps_everything(1, 2);
}

/// Another config directory than the one in which the groups were defined. `$conf` is what the daemon is started with, a link to
/// `$conf.real`.
const OTHER_DIRECTORIES: [(&str, &str); 8] = [
    ("moved away", "mv $conf.real $conf.away"),
    (
        "moved away, and an empty one",
        "mv $conf.real $conf.away; mkdir $conf.real",
    ),
    (
        "the link to an empty one",
        "mkdir $conf.other; ln -sfn $conf.other $conf",
    ),
    (
        "the link to one with another group",
        "mkdir $conf.other; sed 's/name: a/name: c/; /name: b/,$d' $conf/groups.yaml > $conf.other/more.yaml; ln -sfn $conf.other $conf",
    ),
    (
        "the link to one with a file of the same name",
        "mkdir $conf.other; sed 's/name: a/name: c/; /name: b/,$d' $conf/groups.yaml > $conf.other/groups.yaml; ln -sfn $conf.other $conf",
    ),
    (
        "the link to a file",
        "ln -sfn $conf/groups.yaml $conf.link; mv -T $conf.link $conf",
    ),
    ("the link to nothing", "ln -sfn $conf.nowhere $conf"),
    (
        "a copy without the file",
        "cp -a $conf.real $conf.other; rm $conf.other/groups.yaml; ln -sfn $conf.other $conf",
    ),
];

#[test]
fn a_start_with_another_config_directory_deletes_nothing() {
    harness::empty(|mut harness| {
        harness.args = vec!["--removal-grace".into(), "500ms".into()];
        harness.save("groups.yaml", &both());
        shell(&harness, "mv $conf $conf.real; ln -s $conf.real $conf");
        harness.start();
        both_ready(&harness);
        let before = uids(&harness);
        let kept = |harness: &Harness, what: &str| {
            std::thread::sleep(A_WHILE);
            let now = uids(harness);
            assert!(before.iter().all(|uid| now.contains(uid)), "{what}");
        };
        for (name, command) in OTHER_DIRECTORIES {
            for restarted in [true, false] {
                if restarted {
                    harness.stop();
                }
                shell(&harness, command);
                if restarted {
                    harness.start();
                }
                kept(&harness, &format!("{name}, restarted: {restarted}"));
                shell(
                    &harness,
                    "[ ! -e $conf.away ] || { rm -rf $conf.real; mv $conf.away $conf.real; }
                     ln -sfn $conf.real $conf; rm -rf $conf.other",
                );
                harness.until("no fault", || {
                    let text = harness.ctl("get hg a -o json") + &harness.ctl("get hg b -o json");
                    (!text.contains("\"Manifest\"")).then_some(())
                });
                kept(&harness, &format!("{name}, restored"));
                harness.try_ctl("delete hg/c --wait");
            }
        }
        // The argument instead of the directory.
        harness.stop();
        shell(&harness, "mkdir $conf.other");
        let other = format!("{}.other", harness.conf().display());
        harness.args.extend(["--config-dir".into(), other]);
        harness.start();
        kept(&harness, "--config-dir");
    });
}

#[test]
fn a_folder_that_is_not_mounted_yet_deletes_nothing_and_neither_does_another_that_is() {
    harness::empty(|mut harness| {
        harness.args = vec!["--removal-grace".into(), "500ms".into()];
        shell(&harness, "mount -t tmpfs cfg $conf");
        harness.save_across("groups.yaml", &both());
        harness.start();
        both_ready(&harness);
        let before = uids(&harness);
        // Each state of the mount, entered while the daemon runs and while it does not.
        for restarted in [true, false] {
            for command in ["umount -l $conf", "mount -t tmpfs cfg $conf"] {
                if restarted {
                    harness.stop();
                }
                shell(&harness, command);
                if restarted {
                    harness.start();
                }
                std::thread::sleep(A_WHILE);
                assert_eq!(uids(&harness), before, "{command}, {restarted}");
            }
            harness.save_across("groups.yaml", &both());
            harness.until("no fault", || {
                let text = harness.ctl("get hg a -o json");
                (!text.contains("\"Manifest\"")).then_some(())
            });
        }
        assert_eq!(uids(&harness), before);
    });
}

#[test]
fn what_is_removed_on_purpose_goes_and_lasts_for_the_grace() {
    let ways: [(&str, &str, &[&str]); 5] = [
        (
            "the list is empty",
            "printf 'config:\\n  host_groups: []\\n' > $file",
            &[],
        ),
        (
            "the list is empty, without a line's end",
            "printf 'config: {host_groups: []}' > $file",
            &[],
        ),
        ("the file is removed", "rm $file", &[]),
        ("the file is put aside", "mv $file $file.off", &[]),
        (
            "a group is taken out",
            "sed -i '/name: b/,$d' $file",
            &["a"],
        ),
    ];
    for restarted in [false, true] {
        with_both("", |harness| {
            for (name, command, left) in ways {
                if restarted {
                    harness.stop();
                }
                shell(harness, command);
                if restarted {
                    harness.start();
                }
                let begin = std::time::Instant::now();
                harness.until(name, || {
                    let groups = ["a", "b"].into_iter();
                    let there = |name: &&str| !harness.get(&format!("hg {name}")).is_null();
                    groups.filter(there).eq(left.iter().copied()).then_some(())
                });
                let took = begin.elapsed();
                assert!(restarted || took >= GRACE / 2, "{name}: {took:?}");
                harness.save("groups.yaml", &both());
                both_ready(harness);
            }
        });
    }
}

#[test]
fn a_group_whose_file_is_nowhere_is_deleted_by_hand() {
    with_both("", |harness| {
        harness.refused("delete hg/a", 1);
        shell(harness, "mv $conf $conf.away; mkdir $conf");
        harness.until("the condition", || {
            let output = harness.ctl("describe hg a").contains("slicectl delete");
            output.then_some(())
        });
        harness.ctl("delete hg/a --wait");
        assert_eq!(harness.vms(), ["b-1"]);
    });
}

#[test]
fn apply_of_a_manifest_without_groups_is_refused_with_its_place() {
    harness::with_daemon(|harness| {
        for (text, place) in [
            ("", "manifest.yaml is empty"),
            ("# nothing\n", "manifest.yaml is empty"),
            ("---\n", "manifest.yaml is empty"),
            ("config: {host_groups: []}\n", ":1:"),
            ("config:\n  host_groups: []\n", ":2:"),
            (
                "config:\n  host_groups:\n",
                ":2:15: config.host_groups: found nothing",
            ),
            (
                "config:\n  host_groups: !!python/object:os.system []\n",
                ":2:16: found the tag",
            ),
        ] {
            let path = harness.write("manifest.yaml", text);
            for verb in ["apply", "diff", "delete"] {
                let output = harness.refused(&format!("{verb} -f {path}"), 1);
                assert!(output.contains(place), "{verb} {text:?}: {output}");
            }
        }
    });
}

/// A change without an inotify event, and the VMs that it leads to.
type Silent = (&'static str, fn(&Harness), &'static [&'static str]);

fn is_followed(arguments: &str, prepare: fn(&Harness), changes: &[Silent]) {
    harness::empty(|mut harness| {
        let args = format!("--removal-grace 500ms {arguments}");
        harness.args = args.split_whitespace().map(str::to_owned).collect();
        prepare(&harness);
        harness.start();
        harness.until("the first VM", || (harness.vms() == ["a-1"]).then_some(()));
        for (name, change, vms) in changes {
            change(&harness);
            harness.within(Duration::from_secs(5), name, || {
                (harness.vms() == *vms).then_some(())
            });
        }
    });
}

#[test]
fn a_write_through_a_mapping_is_read_at_the_resync() {
    fn map(harness: &Harness) {
        let path = harness.conf().join("groups.yaml");
        let text = fs::read_to_string(&path).expect("a text");
        let at = text.find("count: 1").expect("a count") + "count: ".len();
        let python = format!(
            "import mmap,time; f=open('{}','r+b'); m=mmap.mmap(f.fileno(),0); m[{at}:{at}+1]=b'3'; time.sleep(8)",
            path.display()
        );
        let child = std::process::Command::new("python3")
            .args(["-c", &python])
            .spawn();
        // It ends by itself.
        drop(child.expect("python3"));
    }
    let prepare = |harness: &Harness| harness.save("groups.yaml", &only("a"));
    is_followed(
        "--resync 1s",
        prepare,
        &[("a mapping", map, &["a-1", "a-2", "a-3"])],
    );
}

#[test]
fn a_change_below_an_overlay_is_seen_without_a_resync() {
    fn prepare(harness: &Harness) {
        shell(
            harness,
            "mkdir /run/l; mount -t tmpfs l /run/l; cd /run/l; mkdir low up work
             mount -t overlay o -o lowerdir=low,upperdir=up,workdir=work $conf",
        );
        fs::write("/run/l/low/groups.yaml", only("a")).expect("written");
    }
    let changes: [Silent; 2] = [
        (
            "a file",
            |_| fs::write("/run/l/low/h.yaml", only("b")).expect("written"),
            &["a-1", "b-1"],
        ),
        (
            "its removal",
            |_| fs::remove_file("/run/l/low/h.yaml").expect("removed"),
            &["a-1"],
        ),
    ];
    is_followed("--resync 1h", prepare, &changes);
}

#[test]
fn what_is_mounted_or_put_in_the_folders_place_is_followed_without_a_resync() {
    fn prepare(harness: &Harness) {
        shell(
            harness,
            "mount -t tmpfs cfg $conf; mkdir /run/new /run/twice",
        );
        harness.save_across("groups.yaml", &only("a"));
    }
    let changes: [Silent; 6] = [
        (
            "another tmpfs",
            |harness| {
                shell(harness, "umount $conf; mount -t tmpfs cfg $conf");
                std::thread::sleep(Duration::from_millis(700));
                harness.save_across("groups.yaml", &both());
            },
            &["a-1", "b-1"],
        ),
        (
            "a file in it",
            |harness| harness.save_across("c.yaml", &only("c")),
            &["a-1", "b-1", "c-1"],
        ),
        (
            "a folder bound over it",
            |harness| {
                shell(
                    harness,
                    "cp $conf/*.yaml /run/new; mount --bind /run/new $conf",
                );
                harness.save_across("d.yaml", &only("d"));
            },
            &["a-1", "b-1", "c-1", "d-1"],
        ),
        (
            "a file removed from it",
            |harness| {
                std::thread::sleep(Duration::from_millis(700));
                shell(harness, "rm $conf/c.yaml");
            },
            &["a-1", "b-1", "d-1"],
        ),
        (
            "an edit in it",
            |harness| {
                let text = only("d").replace("count: 1", "count: 2");
                harness.save_across("d.yaml", &text);
            },
            &["a-1", "b-1", "d-1", "d-2"],
        ),
        (
            "bound over once more, and away",
            |harness| {
                shell(
                    harness,
                    "mount --bind /run/twice $conf; sleep 0.5; umount $conf; umount $conf; cp /run/new/d.yaml $conf/d.yaml; cp /run/new/d.yaml $conf/e.yaml; sed -i 's/name: d/name: e/' $conf/e.yaml",
                );
            },
            &["a-1", "b-1", "c-1", "d-1", "d-2", "e-1", "e-2"],
        ),
    ];
    is_followed("--resync 1h", prepare, &changes);
}

#[test]
fn a_name_that_is_almost_a_manifests_is_warned_of() {
    with_both("", |harness| {
        for name in ["X.YAML", "x.Yml", "x.json"] {
            harness.save(name, &only("c"));
            let object = format!("manifest/{name}");
            harness.until(name, || harness.messages(&object, "NotAManifest").pop());
        }
        assert!(harness.get("hg c").is_null());
    });
}

#[test]
fn a_slow_writer_is_waited_for() {
    with_both("", |harness| {
        let before = uids(harness);
        let (old, new) = (both(), both() + &one("c"));
        let path = harness.conf().join("groups.yaml");
        let file = OpenOptions::new()
            .write(true)
            .truncate(true)
            .open(path)
            .expect("opened");
        // Line by line, over more than the grace.
        let mut at = 0;
        for line in new.split_inclusive('\n') {
            file.write_all_at(line.as_bytes(), at).expect("written");
            at += line.len() as u64;
            std::thread::sleep(Duration::from_millis(150));
            assert_eq!(uids(harness)[..2], before, "after {line:?} of {old:?}");
        }
        drop(file);
        harness.until("the third", || {
            (harness.vms() == ["a-1", "b-1", "c-1"]).then_some(())
        });
        assert_eq!(uids(harness)[..2], before);
    });
}

#[test]
fn once_waits_for_a_removal_to_last() {
    with_both("", |harness| {
        harness.stop();
        shell(harness, "sed -i '/name: b/,$d' $file");
        harness.args.push("--once".into());
        assert!(harness.sliced().status().expect("sliced").success());
        harness.args.pop();
        harness.start();
        assert_eq!(harness.vms(), ["a-1"]);
    });
}
