//! `slicectl` without a daemon: usage errors, help, completion, `new`. Golden files are in `tests/goldens/cli`; `BLESS=1` rewrites them.
//! Out of scope: what a daemon answers (`tests/e2e/transcripts.rs`).

mod manifests;
mod new;
mod sliced;

use std::process::Command;

use test_support::programs;
use test_support::transcript::Runner;

/// The socket that no daemon listens at.
const NO_SOCKET: &str = "/nowhere/sliced.sock";

/// Commands in an empty directory.
fn offline() -> (Runner, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    (Runner::new(NO_SOCKET, dir.path()), dir)
}

#[test]
fn usage_errors_and_help_of_verbs_for_vms_are_as_recorded() {
    let (runner, _dir) = offline();
    runner.check(&[
        ("vm-add-twice-the-tag", "vm add sandbox --tag a=1 --tag a=2"),
        ("vm-add-no-tag", "vm add sandbox --tag job"),
        ("vm-add-no-entry", "vm add sandbox --allow 10.0.0.1/8"),
        ("vm-add-no-name", "vm add sandbox --name Not_A_Name"),
        ("vm-stop-help", "vm stop --help"),
        ("delete-help", "delete --help"),
    ]);
}

#[test]
fn a_manifest_in_no_utf8_is_an_error_and_no_panic() {
    let (runner, dir) = offline();
    let file = dir.path().join("latin.yaml");
    std::fs::write(&file, b"config: \xff\xfe").unwrap();
    let run = runner.run(&format!("apply -f {}", file.display()));
    assert_eq!(run.code, 1, "{run:?}");
    assert!(run.stderr.contains("UTF-8"), "{run:?}");
}

#[test]
fn wrong_usage_exits_with_2_and_names_the_correct_usage() {
    let (runner, _dir) = offline();
    let cases: &[(&str, &str)] = &[
        ("", "Usage: slicectl"),
        ("get", "TARGET"),
        ("get pods", "unknown kind \"pods\""),
        ("get vm/Bad_Name", "invalid name \"Bad_Name\""),
        ("get vm/a hg/b -w", "one kind"),
        ("get vms -o xml", "invalid value"),
        ("get vms -o jsonpath={.items", "invalid JSONPath template"),
        ("get vms -o jsonpath=TEMPLATE{", "invalid JSONPath template"),
        ("get vms --sort-by colour", "has no column \"COLOUR\""),
        ("get vms --sort-by age -w", "cannot be used"),
        ("get vms -o manifest", "valid for host groups"),
        ("edit vm/x", "edit its host group"),
        ("describe vm", "name of the vm"),
        ("delete", "required"),
        ("delete vm", "name of the vm"),
        ("delete vm/x -f y", "cannot be used"),
        ("wait vm/x", "--for"),
        ("wait vm/x --for ready --timeout soon", "invalid value"),
        ("events pod/x", "unknown kind \"pod\""),
        ("events vm/a vm/b", "one object"),
        ("logs hg/x", "is not a VM"),
        ("explain sandbox-1 example.org", "invalid destination"),
        ("explain sandbox-1 10.0.0.0/8", "not one address"),
        ("apply", "--filename"),
        ("vm exec sandbox-1", "<CMD>"),
        ("vm exec sandbox-1 -e A -- true", "NAME=VALUE"),
        ("exec sandbox-1 -t -- sh", "requires a terminal"),
        ("vm port-forward sandbox-1", "REMOTE"),
        ("vm port-forward sandbox-1 80:0", "invalid port"),
        (
            "port-forward sandbox-1 a:80",
            "expected [[ADDRESS:]LOCAL:]REMOTE",
        ),
        ("vm bg info sandbox-1 ../x", "expected an id"),
        ("apply -f x --dry-run --wait", "cannot be used"),
        ("new Bad --net=isolated", "invalid name \"Bad\""),
        (
            "new a --net=isolated --gateway 10.0.0.1/24",
            "requires --net=bridge",
        ),
        (
            "new a --net=isolated --bridge br0",
            "--bridge requires --net=bridge",
        ),
        (
            "new a --net=isolated --isolate-ports",
            "--isolate-ports requires --net=bridge",
        ),
        (
            "new a --net=bridge --drop 10.0.0.0/8",
            "--drop requires --net=isolated",
        ),
        (
            "new a --net=bridge --on-deny reject",
            "--on-deny requires --net=isolated",
        ),
        (
            "new a --net=bridge --network-name x",
            "--network-name requires --net=cni",
        ),
        (
            "new a --net=cni --range 10.0.0.2-10.0.0.3",
            "--range requires --net=isolated or --net=bridge",
        ),
        (
            "new a --net=cni --gateway 10.0.0.1/24",
            "--gateway requires --net=bridge",
        ),
        (
            "new a --net=cni --network-name .x",
            "--network-name: found \".x\", expected the name of a CNI network",
        ),
        (
            "new a --net=bridge --bridge ve-1",
            "--bridge: found \"ve-1\"",
        ),
        (
            "new a --net=bridge --tap-prefix much-too-long-a-prefix",
            "--tap-prefix: found",
        ),
        (
            "new a --net=bridge --gateway 10.0.0.0/24",
            "--gateway: found \"10.0.0.0/24\", expected the address of a host",
        ),
        (
            "new a --net=bridge --range 10.0.0.2-10.0.0.3",
            "--range: needs gateway",
        ),
        ("new a --net=bridge --addresses 10.0.0.2", "--gateway"),
        (
            "new a --net=bridge --gateway 10.0.0.1/24 --addresses 10.0.0.2 --range 10.0.0.2-10.0.0.3",
            "cannot be used",
        ),
        (
            "new a --net=bridge --gateway 10.0.0.1/24 --addresses 10.0.1.2",
            "--addresses: 10.0.1.2 is outside 10.0.0.0/24",
        ),
        (
            "new a --net=bridge --gateway 10.0.0.1/24 --addresses ],#",
            "--addresses: found \"]\"",
        ),
        (
            "new a --net=bridge --count 2 --gateway 10.0.0.1/24 --addresses 10.0.0.2",
            "--count: 2 VMs do not fit",
        ),
        (
            "new a --net=isolated --count 300",
            "--count: 300 VMs do not fit",
        ),
        ("route", "GROUP"),
        ("route vm/web-1", "is not a host group"),
        ("route web --via somewhere", "invalid value"),
        ("new a --net=isolated --drop 10.0.0.1/8", "host bits"),
        (
            "new a --net=isolated --allow 169.254.169.254:80",
            "always denied",
        ),
        ("new a --net=isolated --range 10.0.0.0/22", "169.254.0.0/16"),
        ("new a --net=isolated --range 169.254.100.1/22", "host bits"),
        (
            "new a --net=isolated --range 169.254.100.0/30",
            "/16 to /29",
        ),
        ("new a --net=isolated --hypervisor qemu", "--kernel-file"),
        (
            "new a --net=cni --cidr 10.0.0.0/24",
            "--cidr requires --net=isolated or --net=bridge",
        ),
        (
            "new a --net=isolated --cidr 169.254.100.0/22 --range 169.254.104.0/22",
            "same option",
        ),
        (
            "new a --net=bridge --cidr 10.0.0.0/24 --gateway 10.0.0.1/24",
            "cannot be used",
        ),
        ("validate", "--filename"),
        ("schema pods", "invalid value"),
        (
            "new a --net=isolated --ram-mb 1 --ram-gb 1",
            "cannot be used",
        ),
        ("completion tcsh", "invalid value"),
        ("frobnicate", "unrecognized subcommand"),
    ];
    for (command, output) in cases {
        let run = runner.run(command);
        assert_eq!(run.code, 2, "slicectl {command}: {run:?}");
        assert!(run.stderr.contains(output), "slicectl {command}: {run:?}");
        assert_eq!(run.stdout, "", "slicectl {command}");
    }
}

/// clap's own errors show the usage; ours name the help of the command.
#[test]
fn a_usage_error_names_the_help_of_its_command() {
    let (runner, _dir) = offline();
    for (command, help) in [
        ("get pods", "slicectl get"),
        ("list pods", "slicectl get"),
        ("--socket /x get pods", "slicectl get"),
        ("vm add a --tag x=1 --tag x=2", "slicectl vm add"),
        ("new a --net=isolated --gateway 10.0.0.1/24", "slicectl new"),
        ("wait hg/x --for paused", "slicectl wait"),
        ("describe vm", "slicectl describe"),
    ] {
        let run = runner.run(command);
        let lines: Vec<&str> = run.stderr.lines().collect();
        let hint = format!("See '{help} --help'.");
        assert_eq!((lines.len(), lines[1]), (2, hint.as_str()), "{run:?}");
        assert!(lines[0].starts_with("error: "), "{run:?}");
    }
}

/// Each spelling of kubectl, docker or an earlier version does the same as the documented one: fails at the same socket.
#[test]
fn other_spellings_are_accepted() {
    let (runner, dir) = offline();
    std::fs::write(dir.path().join("x.yaml"), "config:\n").unwrap();
    let commands = [
        "wait vm/x --for=condition=Ready",
        "wait vm/x --for=condition=ready=true",
        "wait vm/x --for=delete",
        "wait vm/x --for Ready -q",
        "logs x --tail 5",
        "logs x --tail=5 -f",
        "apply --file x.yaml",
        "apply --filename x.yaml",
        "apply -f x.yaml --dry-run=server",
        "apply -f x.yaml --wait=5s",
        "apply -f x.yaml --wait=true",
        "apply -f x.yaml --wait --timeout 5s -q",
        "delete --file x.yaml",
        "get all",
        "get vm,hg",
        "get vms -A",
        "get vms --all-namespaces",
        "-A get vms",
        "get events",
        "get events vm/x -o json",
        "list vms",
        "ps",
        "ps -o wide",
        "ps x",
        "trace x 1.1.1.1",
        "rm vm x",
        "rm vm/x --wait=5s",
        "vm stop x --wait=5s -q",
    ];
    // Each waits for a daemon that may be starting.
    std::thread::scope(|scope| {
        for command in commands {
            let runner = &runner;
            scope.spawn(move || {
                let run = runner.run(command);
                assert_eq!(run.code, 1, "slicectl {command}: {run:?}");
                assert!(
                    run.stderr.starts_with("error: cannot connect to sliced"),
                    "slicectl {command}: {run:?}"
                );
            });
        }
    });
}

#[test]
fn a_client_dry_run_needs_no_daemon() {
    let (runner, dir) = offline();
    let valid = runner.run("new web --net=isolated").stdout;
    std::fs::write(dir.path().join("web.yaml"), valid).unwrap();
    std::fs::write(dir.path().join("bad.yaml"), "config:\n  host_gruops: []\n").unwrap();
    let run = runner.run("apply -f web.yaml --dry-run=client");
    let line = "hostgroup/web valid (client dry run)\n";
    assert_eq!((run.code, run.stdout.as_str()), (0, line), "{run:?}");
    for (files, error) in [
        ("-f bad.yaml", "bad.yaml:2"),
        ("-f web.yaml -f bad.yaml", "bad.yaml:2"),
        ("-f web.yaml -f web.yaml", "web.yaml:"),
        ("-f none.yaml", "none.yaml"),
    ] {
        let run = runner.run(&format!("apply {files} --dry-run=client"));
        assert_eq!((run.code, run.stdout.as_str()), (1, ""), "{files}: {run:?}");
        assert!(run.stderr.contains(error), "{files}: {run:?}");
        assert!(!run.stderr.contains("sliced.sock"), "{files}: {run:?}");
    }
}

#[test]
fn an_invalid_log_filter_is_refused_as_an_option_and_as_a_variable() {
    for filter in ["bogus===", "inof", "sled=loud", "=debug"] {
        let mut option = Command::new(programs::built("sliced"));
        option.args(["--log", filter]);
        let mut variable = Command::new(programs::built("sliced"));
        variable.env("SLICE_LOG", filter);
        for command in [&mut option, &mut variable] {
            // If the filter were accepted, this would be the error.
            command.args(["--once", "--state-dir", "/proc/no-such-directory"]);
            let output = command.output().expect("sliced");
            assert_eq!(output.status.code(), Some(2), "{filter}: {output:?}");
            let error = String::from_utf8_lossy(&output.stderr);
            assert!(error.contains("--log <FILTER>"), "{filter}: {error}");
            assert!(error.contains("expected a level"), "{filter}: {error}");
        }
    }
}

#[test]
fn without_a_daemon_the_socket_is_named_and_the_status_is_1() {
    let (runner, _dir) = offline();
    for command in [
        "get vms",
        "wait vm/x --for ready",
        "events -w",
        "delete vm/x",
        "gc",
    ] {
        let run = runner.run(command);
        assert_eq!(run.code, 1, "slicectl {command}: {run:?}");
        assert_eq!(
            run.stderr,
            "error: cannot connect to sliced at /nowhere/sliced.sock: no such file. Is it running?\n",
            "slicectl {command}"
        );
    }
    let version = runner.run("version");
    assert_eq!(version.code, 1);
    assert!(version.stdout.starts_with("slicectl  "), "{version:?}");
}

#[test]
fn every_verb_has_help_and_those_with_arguments_show_examples() {
    let (runner, _dir) = offline();
    let verbs = [
        "apply",
        "diff",
        "get",
        "describe",
        "delete",
        "wait",
        "events",
        "logs",
        "gc",
        "explain",
        "new",
        "validate",
        "schema",
        "route",
        "completion",
    ];
    for verb in verbs {
        let run = runner.run(&format!("{verb} --help"));
        assert_eq!(run.code, 0, "{run:?}");
        assert!(run.stdout.contains(&format!("slicectl {verb}")), "{run:?}");
        assert!(run.stdout.contains("Examples:"), "{run:?}");
    }
    let top = runner.run("--help");
    assert!(
        top.stdout.contains("SLICE_SOCKET") && top.stdout.contains("Quick start:"),
        "{top:?}"
    );
}

#[test]
fn completion_scripts_call_slicectl() {
    let (runner, _dir) = offline();
    for shell in ["bash", "zsh", "fish"] {
        let run = runner.run(&format!("completion {shell}"));
        assert_eq!(run.code, 0);
        // The script asks slicectl for the candidates.
        assert!(run.stdout.contains("SLICECTL_COMPLETE"), "{shell}");
    }
}
