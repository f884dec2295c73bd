//! `validate`, `schema` and the `-f` of other verbs, without a daemon.
//! Out of scope: what a manifest may contain (`manifests`, `keys`).

use std::fs;
use std::process::{Command, Stdio};

use slicectl::api::manifest::keys::{self, Mapping};
use test_support::transcript::Runner;

use super::offline;

const VALID: &str = "\
config:
  host_groups:
    - name: a
      network: {mode: isolated, range: 169.254.100.0/22}
";

const BROKEN: &str = "\
config:
  host_groups:
    - name: a
      vcpus: 2
      network:
        mode: isolated
        dorp: [10.0.0.0/8]
";

#[test]
fn input_without_a_manifest_is_an_error_that_names_it() {
    let (runner, dir) = offline();
    fs::create_dir(dir.path().join("dir")).unwrap();
    for text in [
        "",
        "\n \n\t\n",
        "# nothing\n",
        "---\n",
        "---\n# nothing\n---\n...\n",
        "null\n",
        "~",
        "\u{feff}",
    ] {
        fs::write(dir.path().join("dir/empty.yaml"), text).unwrap();
        for verb in ["apply", "apply --dry-run", "diff", "validate", "delete"] {
            for (source, name) in [
                ("-", "stdin"),
                ("dir/empty.yaml", "dir/empty.yaml"),
                ("dir", "dir/empty.yaml"),
            ] {
                let run = runner.run_with_input(&format!("{verb} -f {source}"), text);
                assert_eq!(run.code, 1, "{text:?}: {run:?}");
                assert!(
                    run.stderr.contains(&format!("{name} is empty")),
                    "{text:?}: {run:?}"
                );
                assert_eq!(run.stdout, "", "{run:?}");
            }
        }
    }
    fs::remove_file(dir.path().join("dir/empty.yaml")).unwrap();
    let run = runner.run("validate -f dir");
    assert_eq!(run.code, 1);
    assert!(run.stderr.contains("found in dir"), "{run:?}");
}

#[test]
fn a_valid_manifest_beside_an_empty_one_is_not_applied() {
    let (runner, dir) = offline();
    fs::write(dir.path().join("a.yaml"), VALID).unwrap();
    fs::write(dir.path().join("b.yaml"), "").unwrap();
    let run = runner.run("validate -f a.yaml -f b.yaml");
    assert_eq!((run.code, run.stdout.as_str()), (1, ""), "{run:?}");
    assert!(run.stderr.contains("b.yaml is empty"), "{run:?}");
}

#[test]
fn validate_checks_manifests_without_a_daemon() {
    let (runner, dir) = offline();
    let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
    write("valid.yaml", VALID);
    write("broken.yaml", BROKEN);
    write("again.yaml", &VALID.replace("name: a", "name: b"));
    write("warned.yaml", &VALID.replace("range:", "allow: [], range:"));
    write("none.yaml", "config: {host_groups: []}\n");
    let many: String = (0..30)
        .map(|n| format!("    - {{name: g{n}, vcpu: 0}}\n"))
        .collect();
    write("many.yaml", &format!("config:\n  host_groups:\n{many}"));
    runner.check(&[
        ("validate", "validate -f valid.yaml"),
        ("validate-broken", "validate -f broken.yaml -f valid.yaml"),
        ("validate-overlap", "validate -f valid.yaml -f again.yaml"),
        ("validate-warned", "validate -f warned.yaml"),
        ("validate-none", "validate -f none.yaml"),
        ("validate-many", "validate -f many.yaml"),
        ("validate-absent", "validate -f absent.yaml"),
    ]);
}

/// Runs a command with a terminal as its output, with `script(1)`.
fn on_a_terminal(runner: &Runner, arguments: &str) -> String {
    let program = runner.command("").get_program().to_owned();
    let command = format!("{} {arguments}", program.to_string_lossy());
    let output = Command::new("script")
        .args(["--quiet", "--return", "--command", &command, "/dev/null"])
        .current_dir(runner.command("").get_current_dir().unwrap())
        .stdin(Stdio::null())
        .output()
        .expect("script");
    assert!(!output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

#[test]
fn a_terminal_shows_the_line_of_a_problem_and_a_pipe_does_not() {
    let (runner, dir) = offline();
    fs::write(dir.path().join("broken.yaml"), BROKEN).unwrap();
    let odd = VALID.replace("name: a", "name: a # \u{1b}[31m\u{7}");
    fs::write(dir.path().join("odd.yaml"), odd).unwrap();
    let terminal = on_a_terminal(&runner, "validate -f broken.yaml").replace("\r\n", "\n");
    let expected = " 7 |         dorp: [10.0.0.0/8]\n   |         ^\n";
    assert!(terminal.contains(expected), "{terminal}");
    let odd = on_a_terminal(&runner, "validate -f odd.yaml");
    assert!(odd.contains("| ") && odd.contains('^'), "{odd:?}");
    assert!(!odd.contains(['\u{1b}', '\u{7}']), "{odd:?}");
    let pipe = runner.run("validate -f broken.yaml");
    assert!(!pipe.stderr.contains('^'), "{pipe:?}");
    assert!(
        pipe.stderr
            .lines()
            .all(|line| line.starts_with("error: broken.yaml:")),
        "{pipe:?}"
    );
}

#[test]
fn schema_prints_the_schema_of_the_table() {
    let (runner, _dir) = offline();
    for (command, root) in [
        ("schema", Mapping::Document),
        ("schema manifest", Mapping::Document),
        ("schema settings", Mapping::Settings),
    ] {
        let run = runner.run(command);
        let printed: serde_json::Value = serde_json::from_str(&run.stdout).expect("JSON");
        assert_eq!((run.code, printed), (0, keys::schema(root)), "{command}");
    }
}

#[test]
fn what_new_prints_is_valid() {
    let (runner, _dir) = offline();
    for flags in ["--net=isolated", "--net=bridge", "--net=cni --count 2"] {
        let new = runner.run(&format!("new web {flags}"));
        let run = runner.run_with_input("validate -f -", &new.stdout);
        assert_eq!(
            (run.code, run.stdout.as_str()),
            (0, "hostgroup/web valid\n"),
            "{run:?}"
        );
    }
}
