//! `sliced --check-config`.
//! Out of scope: the running daemon.

use std::fs;
use std::path::Path;
use std::process::Command;

/// Exit status, standard output and standard error, with the directory shown as `<DIR>`.
fn check(dir: &Path) -> (i32, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_sliced"))
        .arg("--check-config")
        .arg("--config-dir")
        .arg(dir.join("groups.d"))
        .arg("--settings")
        .arg(dir.join("sliced.yaml"))
        .env_remove("SLICE_IMAGES")
        .env_remove("SLICE_PROGRAMS")
        .output()
        .expect("sliced");
    let text = |bytes: Vec<u8>| {
        let text = String::from_utf8(bytes).expect("UTF-8");
        text.replace(&dir.display().to_string(), "<DIR>")
    };
    let code = output.status.code().expect("a status");
    (code, text(output.stdout), text(output.stderr))
}

/// The settings file, the manifests, the exit status and a part of the output.
type Case<'a> = (&'a str, &'a [(&'a str, String)], i32, &'a str);

#[test]
fn the_settings_file_and_all_manifests_are_checked() {
    let group = |name: &str, rest: &str| {
        format!("config: {{host_groups: [{{name: {name}, network: {{mode: isolated}}{rest}}}]}}\n")
    };
    let kernel = ", kernel_file: /srv/images/vmlinuz";
    let cases: &[Case] = &[
        ("", &[], 0, "manifests: 0, groups: 0"),
        (
            "",
            &[("a.yaml", group("a", ""))],
            0,
            "manifests: 1, groups: 1",
        ),
        (
            "",
            &[("a.yaml", "config: {host_groups: []}\n".to_owned())],
            0,
            "groups: 0",
        ),
        (
            "image: []\n",
            &[],
            1,
            "error: <DIR>/sliced.yaml:1:1: unknown key \"image\"",
        ),
        (
            "",
            &[("a.yaml", group("a", ", vcpus: 1"))],
            1,
            "error: <DIR>/groups.d/a.yaml:1:",
        ),
        (
            "",
            &[("a.yaml", String::new())],
            1,
            "error: <DIR>/groups.d/a.yaml:1:1: config: is missing",
        ),
        (
            "",
            &[("a.yaml", group("a", "")), ("b.yaml", group("a", ""))],
            1,
            "is already defined at <DIR>/groups.d/a.yaml",
        ),
        (
            "",
            &[("a.yaml", group("a", kernel))],
            1,
            "config.host_groups[0].kernel_file: found /srv",
        ),
        (
            "images: [/srv/images]\n",
            &[("a.yaml", group("a", kernel))],
            0,
            "groups: 1",
        ),
        (
            "",
            &[("a.YAML", String::new())],
            0,
            "warning: <DIR>/groups.d/a.YAML: not a manifest",
        ),
    ];
    for (settings, files, code, expected) in cases {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("groups.d")).unwrap();
        fs::write(dir.path().join("sliced.yaml"), settings).unwrap();
        for (name, text) in *files {
            fs::write(dir.path().join("groups.d").join(name), text).unwrap();
        }
        let (status, stdout, stderr) = check(dir.path());
        assert_eq!(status, *code, "{expected}: {stdout}{stderr}");
        assert!(
            format!("{stdout}{stderr}").contains(expected),
            "{expected}: {stdout}{stderr}"
        );
        assert_eq!(stdout.is_empty(), *code == 1, "{stdout}");
    }
}

#[test]
fn a_missing_settings_file_is_valid_and_a_missing_directory_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let (status, _, stderr) = check(dir.path());
    assert_eq!(status, 1);
    assert!(
        stderr.contains("cannot list the manifest directory <DIR>/groups.d"),
        "{stderr}"
    );
    fs::create_dir(dir.path().join("groups.d")).unwrap();
    let (status, stdout, stderr) = check(dir.path());
    assert_eq!((status, stderr.as_str()), (0, ""), "{stdout}");
}
