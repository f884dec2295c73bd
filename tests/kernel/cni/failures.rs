//! Plugins that fail, hang, babble or are not there.
//! Out of scope: configurations that are wrong.

use std::error::Error as _;
use std::fs;
use std::time::Duration;

use slicectl::cni::{Command, Error, Outcome};

use crate::cni::stage::{Stage, blue};

const CHAIN: [&str; 3] = ["one", "two", "three"];

#[tokio::test]
async fn a_failure_at_any_position_stops_add_and_del_goes_back_through_the_whole_chain() {
    for (at, failing) in CHAIN.into_iter().enumerate() {
        let stage = Stage::new();
        let network = stage.chain("1.0.0", &CHAIN);
        stage.fail(failing, "ADD", 7);
        let error = stage.runtime.add(&network, &blue()).await.unwrap_err();
        let Error::Plugin(failure) = &error else {
            panic!("{error}");
        };
        assert_eq!(failure.plugin, failing);
        assert_eq!((failure.code, error.code()), (7, Some(7)));
        assert_eq!(failure.command, Command::Add);
        assert_eq!(failure.msg, "configured to fail");
        assert_eq!(failure.details, "by the test");
        assert_eq!(failure.version, "1.0.0");
        let asked: Vec<String> = CHAIN[..=at].iter().map(|p| format!("ADD {p}")).collect();
        assert_eq!(stage.order(), asked);
        assert!(stage.records().is_empty());
        stage.hush();
        stage.runtime.del(&network, &blue()).await.unwrap();
        assert_eq!(stage.order(), ["DEL three", "DEL two", "DEL one"]);
        // The last result that there was, if any: what a plugin made may be found by it alone.
        let reached = CHAIN[..at].last();
        for call in stage.calls() {
            let reported = call.stdin()["prevResult"]["interfaces"][0]["name"].clone();
            assert_eq!(reported.as_str(), reached.copied());
        }
        let left = fs::read_dir(stage.path("cache/unfinished"));
        assert_eq!(left.map_or(0, Iterator::count), 0);
    }
}

#[tokio::test]
async fn a_record_of_an_unfinished_add_passes_for_no_attachment() {
    let stage = Stage::new();
    let network = stage.chain("1.0.0", &CHAIN);
    stage.fail("three", "ADD", 7);
    stage.runtime.add(&network, &blue()).await.unwrap_err();
    assert!(stage.path("cache/unfinished/net-blue-eth0").exists());
    assert!(stage.runtime.cached("net", &blue()).unwrap().is_none());
    assert!(stage.runtime.attachments().unwrap().is_empty());
    let check = stage.runtime.check(&network, &blue()).await;
    assert!(matches!(check, Err(Error::NotAdded { .. })));
    stage.chain("1.0.0", &CHAIN);
    stage.unsay("three", "ADD.exit");
    stage.runtime.add(&network, &blue()).await.unwrap();
    assert!(!stage.path("cache/unfinished/net-blue-eth0").exists());
}

#[tokio::test]
async fn add_or_undo_deletes_at_once_and_reports_the_add() {
    let stage = Stage::new();
    let network = stage.chain("1.0.0", &CHAIN);
    stage.fail("two", "ADD", 100);
    stage.fail("one", "DEL", 101);
    let error = stage.runtime.add_or_undo(&network, &blue()).await;
    assert_eq!(error.unwrap_err().code(), Some(100));
    let order = ["ADD one", "ADD two", "DEL three", "DEL two", "DEL one"];
    // A chain that fails is asked once more.
    assert_eq!(stage.order(), [&order[..], &order[2..]].concat());
}

#[tokio::test]
async fn add_or_undo_leaves_alone_what_was_added_before() {
    let stage = Stage::new();
    let network = stage.chain("1.0.0", &CHAIN);
    stage.runtime.add_or_undo(&network, &blue()).await.unwrap();
    stage.hush();
    let again = stage.runtime.add_or_undo(&network, &blue()).await;
    assert!(matches!(again, Err(Error::AlreadyAdded { .. })));
    assert!(stage.order().is_empty());
    let check = stage.runtime.check(&network, &blue()).await.unwrap();
    assert_eq!(check, Outcome::Done);
}

#[tokio::test]
async fn a_del_that_fails_keeps_the_record_and_is_repeated_from_the_start() {
    let stage = Stage::new();
    let network = stage.chain("1.0.0", &CHAIN);
    stage.runtime.add(&network, &blue()).await.unwrap();
    stage.fail("two", "DEL", 5);
    stage.hush();
    let error = stage.runtime.del(&network, &blue()).await.unwrap_err();
    assert_eq!(error.code(), Some(5));
    assert_eq!(stage.order(), ["DEL three", "DEL two"].repeat(2));
    assert_eq!(stage.records(), ["net-blue-eth0"]);
    stage.unsay("two", "DEL.exit");
    stage.hush();
    stage.runtime.del(&network, &blue()).await.unwrap();
    assert_eq!(stage.order(), ["DEL three", "DEL two", "DEL one"]);
    for call in stage.calls() {
        assert_eq!(call.stdin()["prevResult"]["interfaces"][0]["name"], "three");
    }
    assert!(stage.records().is_empty());
    stage.runtime.del(&network, &blue()).await.unwrap();
}

#[tokio::test]
async fn a_plugin_that_requests_a_retry_is_distinguished_from_one_that_fails_for_good() {
    let stage = Stage::new();
    let network = stage.chain("1.1.0", &["one"]);
    for (command, code, may_pass) in [
        ("ADD", 11, true),
        ("ADD", 50, false),
        ("STATUS", 11, true),
        ("STATUS", 50, true),
        ("STATUS", 51, true),
        ("STATUS", 7, false),
    ] {
        stage.fail("one", command, code);
        let error = match command {
            "ADD" => stage.runtime.add(&network, &blue()).await.unwrap_err(),
            _ => stage.runtime.status(&network).await.unwrap_err(),
        };
        assert_eq!(error.code(), Some(code));
        let reported = matches!(error, Error::TryAgain(_));
        assert_eq!(reported, may_pass, "{command} {code}");
    }
}

#[tokio::test]
async fn garbage_is_shown_with_its_beginning() {
    let stage = Stage::new();
    let network = stage.chain("1.0.0", &["one"]);
    let long = format!("\"{}\"", "x".repeat(1 << 21));
    let answers = ["", "segmentation fault", "[1,2]", "null", long.as_str()];
    let broken = [
        r#"{"cniVersion":"0.2.0","ip4":{}}"#,
        r#"{"ips":[{"address":"10.0.0.1"}]}"#,
        r#"{"ips":[{"address":"10.0.0.1/33"}]}"#,
        r#"{"ips":[{"address":"10.0.0.1/24","interface":-1}]}"#,
        r#"{"interfaces":{}}"#,
    ];
    for answer in answers.into_iter().chain(broken) {
        stage.say("one", "ADD.out", answer);
        let error = stage.runtime.add(&network, &blue()).await.unwrap_err();
        let Error::InvalidOutput { excerpt, .. } = &error else {
            panic!("{error}");
        };
        let shown = excerpt.trim_end_matches('…');
        assert!(answer.starts_with(shown) || answer.is_empty(), "{excerpt}");
        assert!(error.to_string().len() < 500, "{error}");
    }
    fs::write(stage.path("say/one.ADD.out"), b"{\"a\":\"\xff\"}").unwrap();
    let error = stage.runtime.add(&network, &blue()).await.unwrap_err();
    assert!(matches!(error, Error::InvalidOutput { .. }), "{error}");
    stage.say("one", "ADD.out", "panic: runtime error");
    stage.say("one", "ADD.exit", "2");
    let error = stage.runtime.add(&network, &blue()).await.unwrap_err();
    assert!(
        error.to_string().contains("panic: runtime error"),
        "{error}"
    );
    assert!(stage.records().is_empty());
}

#[tokio::test]
async fn what_a_plugin_wrote_to_standard_error_is_the_detail_of_its_failure() {
    let stage = Stage::new();
    let network = stage.chain("1.0.0", &["one"]);
    stage.say("one", "ADD.out", r#"{"code":100,"msg":"no"}"#);
    stage.say("one", "ADD.exit", "1");
    stage.say(
        "one",
        "ADD.err",
        &format!("{}the last words\n", "noise ".repeat(10_000)),
    );
    let error = stage.runtime.add(&network, &blue()).await.unwrap_err();
    let Error::Plugin(failure) = &error else {
        panic!("{error}");
    };
    assert!(failure.details.ends_with("the last words"));
    assert!(failure.details.len() <= 4096);
    stage.say("one", "ADD.out", "");
    let error = stage.runtime.add(&network, &blue()).await.unwrap_err();
    assert!(error.to_string().contains("exit status: 1"), "{error}");
    let text = error.to_string();
    assert!(text.contains("the last words"), "{text}");
    assert!(text.len() < 600 && !text.contains('\n'), "{text}");
}

#[tokio::test]
async fn a_plugin_that_hangs_is_killed_with_its_children() {
    let mut stage = Stage::new();
    let network = stage.chain("1.0.0", &["one"]);
    stage.say("one", "ADD.hang", "");
    stage.runtime.deadline = Duration::from_millis(700);
    let error = stage.runtime.add(&network, &blue()).await.unwrap_err();
    let Error::Deadline { plugin, after, .. } = &error else {
        panic!("{error}");
    };
    assert_eq!((plugin.as_str(), *after), ("one", stage.runtime.deadline));
    assert_gone(&stage).await;
}

#[tokio::test]
async fn a_plugin_whose_caller_gives_up_is_killed_with_its_children() {
    let stage = Stage::new();
    let network = stage.chain("1.0.0", &["one"]);
    stage.say("one", "ADD.hang", "");
    let attachment = blue();
    let add = stage.runtime.add(&network, &attachment);
    let started = async {
        while !fs::read_to_string(stage.path("received/pids"))
            .is_ok_and(|pids| pids.ends_with('\n'))
        {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::select! {
        result = add => panic!("{result:?}"),
        () = started => {}
    }
    assert_gone(&stage).await;
}

/// The plugin and the `sleep` that it started.
async fn assert_gone(stage: &Stage) {
    let pids = fs::read_to_string(stage.path("received/pids")).expect("it hung");
    for pid in pids.split_whitespace() {
        let state = || fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // An orphan is reaped by init, in its own time: a zombie is dead enough.
        let dead = || state().is_empty() || state().contains(") Z ");
        let mut looks = 0;
        while !dead() && looks < 200 {
            looks += 1;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert!(dead(), "{pid} lives: {}", state());
    }
}

#[tokio::test]
async fn a_plugin_that_does_not_listen_is_noticed() {
    let stage = Stage::new();
    stage.plugin("one");
    stage.say("one", "ADD.deaf", "");
    let filler = "x".repeat(300_000);
    stage.conf_text(
        "10.conflist",
        format!(
            r#"{{"cniVersion":"1.0.0","name":"net","plugins":[{{"type":"one","filler":"{filler}"}}]}}"#
        ),
    );
    let network = stage.runtime.find("net").unwrap();
    let result = stage.runtime.add(&network, &blue()).await.unwrap();
    assert_eq!(result.interfaces[0].name, "one");
}

#[tokio::test]
async fn a_missing_plugin_is_named_with_the_folders_that_were_searched() {
    let mut stage = Stage::new();
    let network = stage.chain("1.0.0", &CHAIN);
    stage.runtime.bin_dirs.push("/nowhere/bin".into());
    fs::remove_file(stage.path("bin/two")).unwrap();
    fs::create_dir(stage.path("bin/two")).unwrap();
    let error = stage.runtime.add(&network, &blue()).await.unwrap_err();
    let Error::PluginNotFound { plugin, searched } = &error else {
        panic!("{error}");
    };
    assert_eq!(plugin, "two");
    assert_eq!(searched, &stage.runtime.bin_dirs);
    let text = error.to_string();
    assert!(
        text.contains("`two`") && text.contains("/nowhere/bin"),
        "{text}"
    );
    assert_eq!(stage.order(), ["ADD one"]);
}

#[tokio::test]
async fn a_plugin_that_cannot_be_started_is_an_error_with_its_cause_beside_it() {
    let stage = Stage::new();
    let network = stage.chain("1.0.0", &["one"]);
    fs::write(stage.path("bin/one"), "no program").unwrap();
    let error = stage.runtime.add(&network, &blue()).await.unwrap_err();
    assert!(
        matches!(
            error,
            Error::Io {
                operation: "start",
                ..
            }
        ),
        "{error}"
    );
    let source = error.source().expect("a source").to_string();
    assert!(!error.to_string().contains(&source), "{error}");
}

#[tokio::test]
async fn gc_goes_on_after_an_error_and_returns_them_all() {
    let stage = Stage::new();
    let network = stage.chain("1.1.0", &CHAIN);
    stage.fail("one", "GC", 100);
    stage.fail("three", "GC", 101);
    let errors = stage
        .runtime
        .gc(&network, || Ok(Vec::new()))
        .await
        .unwrap_err();
    let codes: Vec<_> = errors.iter().map(Error::code).collect();
    assert_eq!(codes, [Some(100), Some(101)]);
    assert_eq!(stage.order(), ["GC one", "GC two", "GC three"]);
}

#[tokio::test]
async fn check_stops_at_the_first_complaint() {
    let stage = Stage::new();
    let network = stage.chain("1.0.0", &CHAIN);
    stage.runtime.add(&network, &blue()).await.unwrap();
    stage.fail("two", "CHECK", 102);
    stage.hush();
    let error = stage.runtime.check(&network, &blue()).await.unwrap_err();
    assert_eq!(error.code(), Some(102));
    assert_eq!(stage.order(), ["CHECK one", "CHECK two"]);
    stage.unsay("two", "CHECK.exit");
    let again = stage.runtime.check(&network, &blue()).await.unwrap();
    assert_eq!(again, Outcome::Done);
}

#[tokio::test]
async fn whatever_a_plugin_does_an_operation_ends_in_time() {
    // What it does instead of the recording plugin; whether its answer counts.
    let answer = r#"printf '{"cniVersion":"1.0.0","interfaces":[{"name":"one"}]}'"#;
    let table = [
        (format!("{answer}; sleep 60 & echo $! >>pids"), true),
        (format!("{answer}; setsid sleep 5 & exit 0"), true),
        (
            "trap '' TERM INT HUP; echo $$ >>pids; sleep 60".to_owned(),
            false,
        ),
        ("echo $$ >>pids; kill -STOP $$; sleep 60".to_owned(), false),
        (
            "echo $$ >>pids; while :; do echo endless; done".to_owned(),
            false,
        ),
        (
            "echo $$ >>pids; while :; do echo endless >&2; done".to_owned(),
            false,
        ),
        ("exec >&- 2>&-; echo $$ >>pids; sleep 60".to_owned(), false),
    ];
    for (what, answers) in table {
        let mut stage = Stage::new();
        let network = stage.chain("1.0.0", &["one"]);
        stage.runtime.deadline = Duration::from_millis(1500);
        let received = stage.path("received");
        fs::create_dir_all(&received).unwrap();
        fs::write(received.join("pids"), "").unwrap();
        let script = format!("#!/bin/sh\ncd {}\n{what}\n", received.display());
        fs::write(stage.path("bin/one"), script).unwrap();
        let begin = std::time::Instant::now();
        let added = stage.runtime.add(&network, &blue()).await;
        let took = begin.elapsed();
        assert!(took < Duration::from_secs(4), "{what}: {took:?}");
        match added {
            Ok(result) if answers => {
                assert_eq!(result.interfaces[0].name, "one");
                // What a plugin that succeeded leaves running is its own affair: here it is ours.
                let left = fs::read_to_string(received.join("pids")).unwrap();
                for pid in left.split_whitespace().filter_map(|pid| pid.parse().ok()) {
                    let pid = rustix::process::Pid::from_raw(pid).unwrap();
                    let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
                }
            }
            Err(Error::Deadline { .. }) if !answers => assert_gone(&stage).await,
            added => panic!("{what}: {added:?}"),
        }
    }
}

#[tokio::test]
async fn how_a_del_fails_decides_whether_it_is_retried_and_whether_it_counts() {
    // The code or answer of `two`, and whether the chain is asked at once again, and has let go of the container.
    let table = [
        ("code 999", true, false),
        ("code 7", true, false),
        ("code 3", false, true),
        ("code 11", false, false),
        ("no answer", true, false),
        ("nonsense", true, false),
        ("no program", false, false),
    ];
    for (how, again, released) in table {
        let stage = Stage::new();
        let network = stage.chain("1.0.0", &CHAIN);
        stage.runtime.add(&network, &blue()).await.unwrap();
        stage.hush();
        match how.strip_prefix("code ") {
            Some(code) => stage.fail("two", "DEL", code.parse().unwrap()),
            None if how == "no program" => fs::remove_file(stage.path("bin/two")).unwrap(),
            None => {
                stage.say("two", "DEL.exit", "2");
                stage.say(
                    "two",
                    "DEL.out",
                    if how == "nonsense" { "panic: " } else { "" },
                );
            }
        }
        let done = stage.runtime.del(&network, &blue()).await;
        assert_eq!(done.is_ok(), released, "{how}: {done:?}");
        let asked = stage.order();
        let times = asked.iter().filter(|asked| *asked == "DEL three").count();
        assert_eq!(times, if again { 2 } else { 1 }, "{how}: {asked:?}");
        assert_eq!(stage.records().is_empty(), released, "{how}");
    }
}

#[tokio::test]
async fn a_plugin_that_fails_once_because_of_what_it_removed_itself_succeeds_at_once() {
    let stage = Stage::new();
    let network = stage.chain("1.0.0", &["one"]);
    stage.runtime.add(&network, &blue()).await.unwrap();
    // As bridge 1.1.1 does it: the interface goes, then a chain is missing; without an interface nothing is.
    let script = "#!/bin/sh\ncd $(dirname $0)\n[ -e gone ] && exit 0\ntouch gone\necho '{\"code\":999,\"msg\":\"no chain\"}'\nexit 1\n";
    fs::write(stage.path("bin/one"), script).unwrap();
    stage.runtime.del(&network, &blue()).await.unwrap();
    assert!(stage.records().is_empty());
}

#[tokio::test]
async fn what_is_abandoned_is_kept_for_the_plugins_that_failed_and_blocks_no_add() {
    for failing in [vec![], vec!["two"], vec!["one", "three"], CHAIN.to_vec()] {
        let stage = Stage::new();
        let network = stage.chain("1.0.0", &CHAIN);
        stage.runtime.add(&network, &blue()).await.unwrap();
        stage.hush();
        for plugin in &failing {
            stage.fail(plugin, "DEL", 999);
        }
        let errors = stage
            .runtime
            .abandon(&network, &blue(), None)
            .await
            .unwrap();
        assert_eq!(errors.len(), failing.len());
        assert_eq!(stage.order(), ["DEL three", "DEL two", "DEL one"]);
        assert!(stage.records().is_empty());
        let abandoned = stage.runtime.abandoned().unwrap();
        assert_eq!(abandoned.len(), usize::from(!failing.is_empty()));
        stage.runtime.add(&network, &blue()).await.unwrap();
        stage.runtime.remove_records("net", &blue()).unwrap();
        assert!(stage.runtime.abandoned().unwrap().is_empty());
        let Some(record) = abandoned.first() else {
            continue;
        };
        // The sweep asks nobody else: what the others gave back may be another container's by now.
        let owing = record.config().unwrap();
        let names: Vec<&str> = owing.plugins.iter().map(|it| it.name.as_str()).collect();
        assert_eq!(names, failing);
        assert_eq!(owing.digest(), record.config().unwrap().digest());
        let result = record.result(owing.cni_version).unwrap();
        assert_eq!(
            result.interfaces[0].name, "three",
            "it goes by the same result"
        );
    }
}

#[tokio::test]
async fn complaints_are_those_of_all_plugins_but_the_excused() {
    let none = std::collections::BTreeSet::new;
    let complaints = async |stage: &Stage, network: &slicectl::cni::Network, excused| {
        let found = stage
            .runtime
            .check_failures(network, &blue(), &excused)
            .await;
        let found = found.unwrap();
        found.map(|all| all.into_iter().map(|it| it.plugin).collect::<Vec<_>>())
    };
    let stage = Stage::new();
    let mut network = stage.chain("1.0.0", &CHAIN);
    stage.runtime.add(&network, &blue()).await.unwrap();
    assert_eq!(complaints(&stage, &network, none()).await, Some(vec![]));
    stage.fail("one", "CHECK", 100);
    stage.fail("three", "CHECK", 7);
    let both = Some(vec!["one".to_owned(), "three".to_owned()]);
    assert_eq!(complaints(&stage, &network, none()).await, both);
    stage.hush();
    let excused = ["one".to_owned()].into();
    let three = Some(vec!["three".to_owned()]);
    assert_eq!(complaints(&stage, &network, excused).await, three);
    assert_eq!(stage.order(), ["CHECK two", "CHECK three"]);
    // Code 11 is no result of a check.
    stage.fail("three", "CHECK", 11);
    stage.fail("one", "CHECK", 11);
    assert_eq!(complaints(&stage, &network, none()).await, Some(vec![]));
    // The file disables CHECK now.
    network.disable_check = true;
    assert_eq!(complaints(&stage, &network, none()).await, None);
}
