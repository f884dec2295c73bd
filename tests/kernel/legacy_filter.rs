//! Rules of the legacy back end, written by `iptables-legacy` and read back through `iptables-save`.
//! Out of scope: what both back ends have in common (`host_filter`).

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use slicectl::host::iptables::{Backend, Flavour, Translations, legacy_drops_forwarded};
use slicectl::host::rule::{Policy, Rule, Ruleset, TableName};
use test_support::kernel;

struct World {
    backend: Backend,
    tools: tempfile::TempDir,
}

fn with_legacy(test: impl Fn(&World) + Sync) {
    kernel::private_sync(|| {
        let tools = tempfile::tempdir().unwrap();
        for name in ["iptables", "iptables-save", "iptables-restore"] {
            symlink("/usr/sbin/xtables-legacy-multi", tools.path().join(name)).unwrap();
        }
        let backend = Backend::detect_in(tools.path().as_os_str()).unwrap();
        assert_eq!(backend.kind, Flavour::Legacy);
        test(&World { backend, tools });
    });
}

impl World {
    fn iptables(&self, arguments: &[&str]) {
        let program = self.tools.path().join("iptables");
        let output = Command::new(program)
            .args(["-w", "5"])
            .args(arguments)
            .output();
        let output = output.unwrap();
        let message = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {message}");
    }

    /// Runs the real `iptables-restore` without removing what there is.
    fn restore(&self, text: &str) {
        let file = self.tools.path().join("text");
        fs::write(&file, text).unwrap();
        let output = Command::new(&self.backend.restore_program)
            .args(["-w", "5", "--noflush"])
            .arg(&file)
            .output()
            .unwrap();
        let message = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{text}: {message}");
    }

    fn read(&self) -> Ruleset {
        self.backend.read(TableName::ALL).unwrap()
    }

    fn forward(&self) -> Vec<Rule> {
        self.read().rules(TableName::Filter, "FORWARD").to_vec()
    }

    /// Puts a script in the place of `iptables-save`.
    fn replace_save(&self, script: &str) {
        let path = self.tools.path().join("iptables-save");
        fs::remove_file(&path).unwrap();
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }
}

/// A rule as it is given to iptables-restore, and as it is read; none: foreign.
const VARIANTS: &[(&str, Option<&str>)] = &[
    ("-j DROP", Some("-j DROP")),
    ("-g SLICE-U", None),
    ("-s 10.0.0.0/8", None),
    ("-j SLICE-U", Some("-j SLICE-U")),
    ("-j LOG", None),
    ("-j NFLOG", None),
    ("-j MARK --set-mark 1", None),
    // Negations.
    ("! -i tap0 -j DROP", Some("! -i tap0 -j DROP")),
    ("! -o tap+ -j DROP", Some("! -o tap+ -j DROP")),
    (
        "! -s 10.0.0.0/8 ! -d 1.2.3.4 -j DROP",
        Some("! -s 10.0.0.0/8 ! -d 1.2.3.4/32 -j DROP"),
    ),
    ("! -s 0.0.0.0/0 -j DROP", Some("! -s 0.0.0.0/0 -j DROP")),
    (
        "-m mac ! --mac-source 02:AB:00:00:00:0f -j DROP",
        Some("-m mac ! --mac-source 02:ab:00:00:00:0f -j DROP"),
    ),
    ("! -p tcp -j DROP", None),
    ("! -f -j DROP", None),
    ("-p tcp -m tcp ! --dport 80 -j DROP", None),
    ("-m conntrack ! --ctstate NEW -j DROP", None),
    (
        "-m conntrack ! --ctstatus CONFIRMED -j DROP",
        Some("-m conntrack ! --ctstatus CONFIRMED -j DROP"),
    ),
    ("-m conntrack --ctstatus CONFIRMED -j DROP", None),
    ("-m addrtype ! --dst-type LOCAL -j DROP", None),
    ("-m devgroup ! --src-group 0x1 -j DROP", None),
    // Options without which another rule would remain.
    ("-p tcp -m tcp -j DROP", None),
    ("-p udp -m udp -j DROP", None),
    ("-p icmp -m icmp --icmp-type any -j DROP", None),
    (
        "-m comment --comment a -m comment --comment b -j DROP",
        None,
    ),
    (
        "-m conntrack --ctstate NEW -m conntrack --ctstate NEW -j DROP",
        None,
    ),
    (
        "-m conntrack --ctstate NEW -m conntrack --ctstate ESTABLISHED -j DROP",
        None,
    ),
    (
        "-m addrtype --dst-type LOCAL --limit-iface-in -j DROP",
        None,
    ),
    ("-p tcp -m tcp --sport 1 --dport 2 -j DROP", None),
    // Spellings.
    (
        "-p 6 --dport 1:65535 -j DROP",
        Some("-p tcp -m tcp --dport 1:65535 -j DROP"),
    ),
    (
        "-p icmp --icmp-type echo-request -j DROP",
        Some("-p icmp -m icmp --icmp-type 8 -j DROP"),
    ),
    (
        "-s 10.1.2.3/255.255.0.0 -j DROP",
        Some("-s 10.1.0.0/16 -j DROP"),
    ),
    ("-s 10.1.2.3/255.0.255.0 -j DROP", None),
    (
        "-m state --state ESTABLISHED,NEW -j DROP",
        Some("-m conntrack --ctstate NEW,ESTABLISHED -j DROP"),
    ),
    (
        "-m conntrack --ctstate UNTRACKED,DNAT,INVALID -j DROP",
        Some("-m conntrack --ctstate INVALID,DNAT,UNTRACKED -j DROP"),
    ),
    (
        "-m addrtype --dst-type MULTICAST,LOCAL -j DROP",
        Some("-m addrtype --dst-type LOCAL,MULTICAST -j DROP"),
    ),
    (
        "-m devgroup --src-group default -j DROP",
        Some("-m devgroup --src-group 0x0 -j DROP"),
    ),
    (
        "-m devgroup --src-group 0x736c0000/0xffff0000 -j DROP",
        Some("-m devgroup --src-group 0x736c0000/0xffff0000 -j DROP"),
    ),
    (
        "-m limit --limit 60/min -j DROP",
        Some("-m limit --limit 1/sec --limit-burst 5 -j DROP"),
    ),
    ("-m limit --limit 7/min -j DROP", None),
    (
        "-m limit --limit 10000/sec --limit-burst 10000 -j DROP",
        Some("-m limit --limit 10000/sec --limit-burst 10000 -j DROP"),
    ),
    (
        "-m connlimit --connlimit-above 3 --connlimit-mask 0 --connlimit-daddr -j DROP",
        Some("-m connlimit --connlimit-above 3 --connlimit-mask 0 --connlimit-daddr -j DROP"),
    ),
    ("-m connlimit --connlimit-upto 3 -j DROP", None),
    (
        "-m hashlimit --hashlimit-above 25/sec --hashlimit-mode srcip --hashlimit-name d --hashlimit-htable-size 1024 --hashlimit-htable-expire 10000 -j DROP",
        Some(
            "-m hashlimit --hashlimit-above 25/sec --hashlimit-burst 5 --hashlimit-mode srcip --hashlimit-name d --hashlimit-htable-size 1024 --hashlimit-htable-expire 10000 --hashlimit-srcmask 32 -j DROP",
        ),
    ),
    (
        "-p tcp -j REJECT --reject-with tcp-reset",
        Some("-p tcp -j REJECT --reject-with tcp-reset"),
    ),
    ("-j REJECT", None),
    ("-m mark --mark 1 -j DROP", None),
    ("-m quota --quota 1000 -j DROP", None),
    ("-m statistic --mode nth --every 3 --packet 0 -j DROP", None),
    // Comments.
    (
        r#"-m comment --comment plain_1 -j DROP"#,
        Some(r#"-m comment --comment "plain_1" -j DROP"#),
    ),
    (
        r#"-m comment --comment "two words" -j DROP"#,
        Some(r#"-m comment --comment "two words" -j DROP"#),
    ),
    (
        r#"-m comment --comment "a \"b\" \\ c \\\" 'd' é" -j DROP"#,
        Some(r#"-m comment --comment "a \"b\" \\ c \\\" 'd' é" -j DROP"#),
    ),
    (r#"-m comment --comment "-j ACCEPT" -j DROP"#, None),
    (r#"-m comment --comment "--state" -j DROP"#, None),
    (
        r#"-m comment --comment "! -s 1.2.3.4" -j DROP"#,
        Some(r#"-m comment --comment "! -s 1.2.3.4" -j DROP"#),
    ),
    (
        r#"-m comment --comment "COMMIT" -j DROP"#,
        Some(r#"-m comment --comment "COMMIT" -j DROP"#),
    ),
    (r#"-m comment --comment "" -j DROP"#, None),
];

#[test]
fn each_variant_is_read_exactly_or_is_foreign() {
    with_legacy(|world| {
        let lines = VARIANTS
            .iter()
            .map(|(line, _)| format!("-A FORWARD {line}\n"));
        let lines = String::from_iter(lines);
        world.restore(&format!("*filter\n:SLICE-U - [0:0]\n{lines}COMMIT\n"));
        let found = world.forward();
        assert_eq!(found.len(), VARIANTS.len());
        for (found, (line, expected)) in found.iter().zip(VARIANTS) {
            match expected {
                Some(expected) => assert_eq!(found.to_string(), *expected, "{line}"),
                None => assert!(
                    matches!(found, Rule::Foreign(_)),
                    "{line} is read as {found}"
                ),
            }
        }
    });
}

#[test]
fn quotes_and_line_ends_in_names_and_comments_do_not_hide_other_rules() {
    with_legacy(|world| {
        let last = ["-A", "FORWARD", "-i", "tap0", "-j", "DROP"];
        for rule in [
            ["-i", "\"x", "-o", "\"y"],
            [
                "-m",
                "comment",
                "--comment",
                "a\n[0:0] -A FORWARD -j ACCEPT\nCOMMIT",
            ],
            ["-m", "comment", "--comment", "a\" -j ACCEPT\n"],
            ["-m", "comment", "--comment", "\\"],
        ] {
            world.iptables(&[&["-A", "FORWARD"], &rule[..], &["-j", "ACCEPT"]].concat());
            world.iptables(&last);
        }
        let found = world.forward();
        assert_eq!(found.len(), 8, "{found:?}");
        for rule in found.iter().skip(1).step_by(2) {
            assert_eq!(rule.to_string(), "-i tap0 -j DROP");
        }
        assert_eq!(found[0].to_string(), "foreign: -i \"x -o \"y -j ACCEPT");
        for foreign in [&found[2], &found[4]] {
            let text = foreign.to_string();
            assert!(text.starts_with("foreign: -m comment --comment "), "{text}");
            assert!(!text.contains('\n'), "{text:?}");
        }
        assert_eq!(found[6].comment(), Some("\\"));
    });
}

#[test]
fn the_text_of_a_foreign_rule_does_not_depend_on_other_rules() {
    with_legacy(|world| {
        world.restore("*filter\n:A - [0:0]\n:B - [0:0]\n-A B -p gre -j A\n-A B -m quota --quota 5 -g A\nCOMMIT\n");
        let of_b = || world.read().rules(TableName::Filter, "B").to_vec();
        let before = of_b();
        assert_eq!(before[0].to_string(), "foreign: -p gre -j A");
        world.restore("*filter\n-I INPUT -i lo -j DROP\n-I A -i lo -j DROP\n-I B 1 -i lo -j DROP\n-N C\nCOMMIT\n");
        assert_eq!(of_b()[1..], before);
    });
}

#[test]
fn an_absent_table_is_empty_and_is_not_created_by_reading() {
    with_legacy(|world| {
        let names = || fs::read_to_string("/proc/thread-self/net/ip_tables_names").unwrap();
        assert_eq!(world.read(), Ruleset::default());
        assert_eq!(legacy_drops_forwarded().unwrap(), Some(false));
        assert_eq!(names(), "");
        // A table without rules.
        world.iptables(&["-t", "nat", "-L"]);
        assert_eq!(world.read(), Ruleset::default());
        assert_eq!(names(), "nat\n");
        world.iptables(&["-N", "EMPTY"]);
        let found = world.read();
        assert_eq!(found.tables().len(), 1);
        assert_eq!(found.chain(TableName::Filter, "EMPTY").unwrap().rules, []);
        assert_eq!(found.policy(TableName::Filter, "FORWARD"), Policy::Accept);
        world.iptables(&["-P", "FORWARD", "DROP"]);
        assert_eq!(
            world.read().policy(TableName::Filter, "FORWARD"),
            Policy::Drop
        );
        assert_eq!(legacy_drops_forwarded().unwrap(), Some(true));
    });
}

#[test]
fn packets_are_counted_and_destinations_translated() {
    with_legacy(|world| {
        world.restore(
            "*filter\n:C - [0:0]\n:D - [0:0]\n[7:70] -A C -m comment --comment x -j DROP\n[8:80] -A C -i a -m comment --comment x -j DROP\n\
             [9:90] -A C -j DROP\n[9:90] -A D -m comment --comment x -j DROP\nCOMMIT\n",
        );
        // `iptables-restore` sets counters with `-c` only.
        assert_eq!(world.backend.matched("C", "x").unwrap(), 0);
        world.iptables(&[
            "-c",
            "7",
            "70",
            "-A",
            "C",
            "-m",
            "comment",
            "--comment",
            "y",
            "-j",
            "DROP",
        ]);
        world.iptables(&[
            "-c",
            "8",
            "80",
            "-A",
            "C",
            "-i",
            "a",
            "-m",
            "comment",
            "--comment",
            "y",
            "-j",
            "DROP",
        ]);
        world.iptables(&[
            "-c",
            "9",
            "90",
            "-A",
            "D",
            "-m",
            "comment",
            "--comment",
            "y",
            "-j",
            "DROP",
        ]);
        assert_eq!(world.backend.matched("C", "y").unwrap(), 15);
        assert_eq!(world.backend.matched("NONE", "y").unwrap(), 0);

        world.restore("*nat\n:T - [0:0]\n-A PREROUTING -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.0.0.1:8080\n-A PREROUTING -j T\n-A T -p udp -j REDIRECT --to-ports 53\nCOMMIT\n");
        let found = world.backend.translations().unwrap();
        let [
            Translations {
                table,
                entry,
                chains,
                ..
            },
        ] = found.as_slice()
        else {
            panic!("{found:?}")
        };
        assert_eq!((table.as_str(), entry.as_str()), ("ip nat", "PREROUTING"));
        let rules: Vec<_> = chains
            .iter()
            .flat_map(|chain| &chain.rules)
            .map(Rule::to_string)
            .collect();
        assert_eq!(
            rules,
            [
                "-p tcp -m tcp --dport 80 -j DNAT --to-destination 10.0.0.1:8080",
                "-j T",
                "-p udp -j REDIRECT",
            ]
        );
    });
}

#[test]
fn five_hundred_rules_are_read_while_another_program_holds_the_lock() {
    with_legacy(|world| {
        let lines = (0..500).map(|n| {
            let (a, b) = (n / 250, n % 250);
            format!("-A FORWARD -s 10.0.{a}.{b}/32 -m comment --comment \"rule {n}\" -j DROP\n")
        });
        let lines: Vec<String> = lines.collect();
        world.restore(&format!("*filter\n{}COMMIT\n", lines.concat()));
        let lock = fs::File::create("/run/xtables.lock").unwrap();
        lock.lock().unwrap();
        let start = Instant::now();
        let found = world.forward();
        let elapsed = start.elapsed();
        assert!(elapsed < Duration::from_secs(2), "{elapsed:?}");
        println!("500 rules in {elapsed:?}");
        for (found, line) in found.iter().zip(&lines) {
            assert_eq!(format!("-A FORWARD {found}\n"), *line);
        }
        assert_eq!(found.len(), 500);
    });
}

#[test]
fn a_failed_read_is_an_error_and_never_an_empty_table() {
    with_legacy(|world| {
        world.iptables(&["-A", "FORWARD", "-j", "DROP"]);
        let complete = "*filter\n:FORWARD ACCEPT [0:0]\n";
        for (script, expected) in [
            ("echo broken >&2; exit 1", "broken"),
            ("exit 0", "no COMMIT"),
            (&format!("printf '{complete}'"), "no COMMIT"),
            (
                &format!("printf '{complete}COMMIT\\n'; kill -9 $$"),
                "signal",
            ),
            (
                &format!("printf '{complete}surprise\\nCOMMIT\\n'"),
                "surprise",
            ),
            (
                &format!("printf '{complete}[0:0] -A NONE -j DROP\\nCOMMIT\\n'"),
                "NONE",
            ),
            (
                "printf '*filter\\n:FORWARD MAYBE [0:0]\\nCOMMIT\\n'",
                "MAYBE",
            ),
        ] {
            world.replace_save(script);
            let error = world.backend.read(TableName::ALL).unwrap_err();
            let message = error.source.to_string();
            assert!(message.contains(expected), "{script}: {message}");
            assert_eq!(error.kind, slicectl::host::Kind::Other);
        }
        fs::remove_file(world.tools.path().join("iptables-save")).unwrap();
        let error = world.backend.read(TableName::ALL).unwrap_err();
        assert_eq!(error.kind, slicectl::host::Kind::Other, "{error:?}");
    });
}

#[test]
fn a_program_that_hangs_is_killed_at_the_deadline() {
    with_legacy(|world| {
        world.iptables(&["-A", "FORWARD", "-j", "DROP"]);
        let file = world.tools.path().join("pid");
        world.replace_save(&format!("echo $$ > {}; sleep 1000; true", file.display()));
        let backend = Backend {
            timeout: Duration::from_secs(2),
            ..world.backend.clone()
        };
        let error = backend.read(TableName::ALL).unwrap_err();
        assert_eq!(
            error.source.kind(),
            std::io::ErrorKind::TimedOut,
            "{error:?}"
        );
        let pid = fs::read_to_string(file).unwrap();
        assert!(!Path::new("/proc").join(pid.trim()).exists());
    });
}
