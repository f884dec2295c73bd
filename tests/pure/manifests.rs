//! What people write: every refusal word for word, the samples of `manifests/`, and no panic on anything.
//! Out of scope: the folder's watcher (`src/intake`).

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use slicectl::api::life::{MachineType, Restart};
use slicectl::api::manifest::{Draft, Problem, Source, parse};
use slicectl::api::network::NetworkSpec;
use slicectl::api::validate;
use slicectl::api::vm::{Hypervisor, VmSpec};

fn yaml_files(dir: &str) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(dir))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|ext| ext == "yaml"))
        .collect();
    files.sort();
    assert!(!files.is_empty(), "{dir} has no manifests");
    files
}

fn read(path: &Path) -> Source {
    Source {
        name: path.file_name().unwrap().to_str().unwrap().to_owned(),
        text: fs::read_to_string(path).unwrap(),
    }
}

/// As `slicectl apply --dry-run` sees a file on an empty host.
fn check(source: &Source) -> Result<Vec<Draft>, Vec<Problem>> {
    let drafts = parse(source)?;
    validate::check_apply(&[], &drafts)?;
    Ok(drafts)
}

#[test]
fn every_refusal_names_the_place_and_the_reason_exactly() {
    let bless = std::env::var_os("BLESS").is_some();
    let mut wrong = Vec::new();
    for path in yaml_files("tests/goldens/manifests") {
        let source = read(&path);
        let problems = check(&source).expect_err(&source.name);
        let mut output = String::new();
        for problem in &problems {
            output += &format!("{problem}\n");
            assert_eq!(problem.to_string().lines().count(), 1, "{problem}");
            assert!(problem.excerpt(&source.text).is_some(), "{problem}");
        }
        let golden = path.with_extension("err");
        if bless {
            fs::write(&golden, &output).unwrap();
        }
        let expected = fs::read_to_string(&golden).unwrap_or_default();
        if output != expected {
            wrong.push(format!("--- {}\n{expected}+++\n{output}", golden.display()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn what_is_valid_is_parsed_exactly() {
    let bless = std::env::var_os("BLESS").is_some();
    for path in yaml_files("tests/goldens/manifests/good") {
        let drafts = check(&read(&path)).unwrap_or_else(|p| panic!("{p:?}"));
        let networks: BTreeMap<_, _> = drafts
            .iter()
            .map(|draft| (&draft.name, &draft.spec.template.network))
            .collect();
        let read = serde_json::to_string_pretty(&networks).unwrap() + "\n";
        let golden = path.with_extension("json");
        if bless {
            fs::write(&golden, &read).unwrap();
        }
        let expected = fs::read_to_string(&golden).unwrap_or_default();
        assert_eq!(read, expected, "{}", golden.display());
        assert!(drafts.iter().all(|draft| draft.warnings.is_empty()));
    }
}

#[test]
fn the_samples_are_sound_and_warn_of_nothing() {
    for path in yaml_files("manifests") {
        let drafts = check(&read(&path)).unwrap_or_else(|p| panic!("{p:?}"));
        assert!(!drafts.is_empty(), "{}", path.display());
        for draft in drafts {
            assert_eq!(draft.warnings, Vec::<String>::new());
        }
    }
}

fn one(text: &str) -> Draft {
    let source = Source {
        name: "t.yaml".into(),
        text: text.into(),
    };
    let mut drafts = check(&source).unwrap_or_else(|p| panic!("{p:?}"));
    assert_eq!(drafts.len(), 1);
    drafts.remove(0)
}

#[test]
fn the_documented_minimal_form_has_the_documented_defaults() {
    let draft = one(
        "config:\n  host_groups:\n    - name: sandbox\n      network: {mode: isolated, drop: [192.168.1.0/24]}\n",
    );
    assert_eq!(draft.name.as_str(), "sandbox");
    assert_eq!(draft.at.to_string(), "t.yaml:3:13");
    let vm = &draft.spec.template;
    assert_eq!((draft.spec.count, vm.vcpu, vm.ram_bytes), (1, 2, 4 << 30));
    assert_eq!(vm.hypervisor, Hypervisor::None);
    assert_eq!(vm.network.policy().unwrap().drop.len(), 1);
}

#[test]
fn a_group_overrides_config_and_qemu_is_the_default_with_a_kernel() {
    let text = "config:\n  kernel_file: /a\n  initrd_file: /i\n  host_groups:\n";
    let group = |rest: &str| {
        one(&format!(
            "{text}    - {{name: g, network: {{mode: isolated}}{rest}}}\n"
        ))
    };
    let vm = group("").spec.template;
    assert_eq!(vm.hypervisor, Hypervisor::Qemu);
    assert_eq!(vm.kernel_file.as_deref(), Some(Path::new("/a")));
    let vm = group(", kernel_file: /b, hypervisor: none").spec.template;
    assert_eq!(vm.hypervisor, Hypervisor::None);
    assert_eq!(vm.kernel_file.as_deref(), Some(Path::new("/b")));
    assert_eq!(vm.initrd_file.as_deref(), Some(Path::new("/i")));
}

#[test]
fn a_group_takes_the_program_of_its_own_hypervisor_and_its_words_for_the_kernel() {
    let text = "config:\n  kernel_file: /a\n  cmdline: quiet\n  firecracker_bin: /opt/fc\n  jailer_bin: /opt/jailer\n  cloud_hypervisor_bin: /opt/ch\n  host_groups:\n";
    let life = |rest: &str| {
        let group = format!("{text}    - {{name: g, network: {{mode: isolated}}{rest}}}\n");
        let life = one(&group).spec.template.lifecycle;
        let jailer = life.jailer.is_some();
        assert_eq!(jailer, rest.contains("firecracker"), "nobody else has one");
        (life.program, life.cmdline)
    };
    let output = |program: Option<&str>, cmdline: Option<&str>| {
        (program.map(Into::into), cmdline.map(str::to_owned))
    };
    assert_eq!(life(""), output(None, Some("quiet")));
    assert_eq!(
        life(", hypervisor: firecracker"),
        output(Some("/opt/fc"), Some("quiet"))
    );
    assert_eq!(
        life(
            ", hypervisor: cloud-hypervisor, cloud_hypervisor_bin: /b/ch, cmdline: ' root=/dev/vda2  ro '"
        ),
        output(Some("/b/ch"), Some("root=/dev/vda2  ro"))
    );
    let text = "config: {machine: q35, kernel_file: /a, host_groups: [{name: g, network: {mode: isolated}, hypervisor: HH}]}";
    for (hypervisor, board) in [
        ("qemu", MachineType::Q35),
        ("firecracker", MachineType::Microvm),
    ] {
        let life = one(&text.replace("HH", hypervisor)).spec.template.lifecycle;
        assert_eq!(life.machine, board, "{hypervisor}");
    }
    assert_eq!(
        life(", cmdline: ''"),
        output(None, None),
        "none of its own, and not config's"
    );
    assert_eq!(life(", hypervisor: none"), output(None, None));
}

#[test]
fn a_groups_word_on_its_end_goes_before_that_of_config_and_a_change_of_it_is_live() {
    let text = "config: {kernel_file: /a, restart: on-failure, graceful_shutdown: 1m 30s, host_groups: [{name: g, network: {mode: isolated}REST}]}";
    let spec = |rest: &str| one(&text.replace("REST", rest)).spec.template;
    let of_config = spec("");
    let own = spec(", restart: never, graceful_shutdown: 0s");
    let output = |spec: &VmSpec| {
        (
            spec.lifecycle.restart,
            spec.lifecycle.graceful_shutdown.to_string(),
        )
    };
    assert_eq!(output(&of_config), (Restart::OnFailure, "1m 30s".into()));
    assert_eq!(output(&own), (Restart::Never, "0s".into()));
    assert!(own.can_change_live_to(&of_config) && of_config.can_change_live_to(&own));
    assert!(!own.can_change_live_to(&spec(", cmdline: quiet")));
    let none = spec(", hypervisor: none");
    assert_eq!(output(&none), (Restart::Always, "3s".into()));
}

#[test]
fn metadata_is_allowed_only_on_request_and_a_tap_owner_may_be_a_pair() {
    let network = one(
        "config: {host_groups: [{name: g, network: {mode: isolated, allow_metadata: true, allow: [169.254.169.254:80/tcp], tap_owner: '1000:36', range: 169.254.64.0/18, on_deny: reject}}]}",
    )
    .spec
    .template
    .network;
    let NetworkSpec::Isolated(network) = network else {
        panic!("another mode");
    };
    assert_eq!(network.tap_owner.to_string(), "1000:36");
    assert!(network.policy.allow_metadata);
    assert_eq!(network.range.unwrap().to_string(), "169.254.64.0/18");
}

#[test]
fn what_can_never_match_is_a_warning_with_its_place() {
    let draft = one(
        "config:\n  host_groups:\n    - name: g\n      network:\n        mode: isolated\n        allow: [10.0.0.0/8]\n        drop: [10.1.0.0/16]\n",
    );
    assert_eq!(draft.warnings.len(), 1);
    assert!(
        draft.warnings[0].starts_with("t.yaml:"),
        "{}",
        draft.warnings[0]
    );
    let draft = one("config: {host_groups: [{name: g, network: {mode: isolated, allow: []}}]}");
    assert!(
        draft.warnings[0].contains("empty list"),
        "{}",
        draft.warnings[0]
    );
}

#[test]
fn a_text_that_contains_nothing_is_an_error_no_groups_are_none_and_several_documents_add_up() {
    let source = |text: &str| Source {
        name: "e".into(),
        text: text.into(),
    };
    for text in ["", "\n", "# nothing\n", "---\n", "---\n---\n", "null\n"] {
        let problems = parse(&source(text)).expect_err(text);
        let reported = problems[0].to_string();
        assert!(
            reported.starts_with("e:1:1: config: is missing"),
            "{text:?}: {reported}"
        );
    }
    for text in [
        "config: {host_groups: []}",
        "config: {host_groups: []}\n---\n",
    ] {
        assert_eq!(parse(&source(text)), Ok(Vec::new()), "{text:?}");
    }
    let text = "config: {host_groups: [{name: a, network: {mode: isolated}}]}\n---\nconfig: {host_groups: [{name: b, network: {mode: isolated}}]}\n";
    let source = Source {
        name: "e".into(),
        text: text.into(),
    };
    assert_eq!(parse(&source).unwrap().len(), 2);
}

#[test]
fn a_list_that_no_packet_could_pass_in_good_time_is_refused() {
    let list = |entries: usize| {
        let entries: String = (0..entries)
            .map(|n| format!("10.0.{}.{}, ", n / 256, n % 256))
            .collect();
        let text = format!(
            "config: {{host_groups: [{{name: g, network: {{mode: isolated, drop: [{entries}]}}}}]}}"
        );
        check(&Source {
            name: "t.yaml".into(),
            text,
        })
    };
    assert!(list(1024).is_ok());
    assert_eq!(
        list(1025).unwrap_err()[0].to_string(),
        "t.yaml:1:60: config.host_groups[0].network.drop: found 1025 entries, expected at most 1024"
    );
}

/// Sound manifests with most of the words in them, to be broken.
const WHOLE: [&str; 3] = [
    include_str!("../../manifests/isolated.yaml"),
    include_str!("../goldens/manifests/good/bridge.yaml"),
    include_str!("../goldens/manifests/good/cni.yaml"),
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn a_mutated_manifest_never_makes_it_panic(
        whole in prop::sample::select(&WHOLE[..]),
        edits in proptest::collection::vec((any::<prop::sample::Index>(), 0_usize..6, "[-\\[\\]{}:,&*!?|>'\"%@`~#0-9a-z/. \n\t]{0,6}"), 1..6),
    ) {
        let mut text: Vec<char> = whole.chars().collect();
        for (at, gone, new) in edits {
            let at = at.index(text.len());
            let end = (at + gone).min(text.len());
            text.splice(at..end, new.chars());
        }
        evaluate(text.into_iter().collect())?;
    }

    #[test]
    fn lines_cut_out_and_doubled_never_make_it_panic(picks in proptest::collection::vec(any::<prop::sample::Index>(), 0..40)) {
        let lines: Vec<&str> = WHOLE.iter().flat_map(|whole| whole.lines()).filter(|line| !line.trim_start().starts_with('#')).collect();
        let text: String = picks.iter().map(|pick| format!("{}\n", pick.get(&lines))).collect();
        evaluate(text)?;
    }

    #[test]
    fn arbitrary_bytes_never_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        evaluate(String::from_utf8_lossy(&bytes).into_owned())?;
    }
}

/// What must hold of any text: groups or problems, and every problem a line that names a place in the text.
fn evaluate(text: String) -> Result<(), TestCaseError> {
    let lines = text.lines().count().max(1);
    let source = Source {
        name: "m.yaml".into(),
        text,
    };
    if let Err(problems) = check(&source) {
        prop_assert!(!problems.is_empty());
        for problem in problems {
            let output = problem.to_string();
            prop_assert!(output.starts_with("m.yaml:"), "{}", output);
            prop_assert_eq!(
                output.chars().filter(|c| *c == '\n').count(),
                0,
                "{}",
                output
            );
            // A YAML line may also end in a lone carriage return, NEL, LS or PS.
            let more = source
                .text
                .matches(['\r', '\u{85}', '\u{2028}', '\u{2029}'])
                .count();
            prop_assert!(
                (1..=lines + more + 1).contains(&problem.at.line),
                "{}",
                output
            );
        }
    }
    Ok(())
}

#[test]
fn known_tags_and_exclamation_marks_elsewhere_are_no_tags() {
    for text in [
        "config: {host_groups: [{name: !!str a, network: !!map {mode: isolated}}]}\n",
        "config: {host_groups: !!seq [{name: a, count: !!int 2, network: {mode: isolated}}]}\n",
        "config: {cmdline: 'a !x b', host_groups: [{name: a, network: {mode: isolated}}]} # !!python/x\n",
        "config:\n  cmdline: a !x b\n  host_groups: [{name: a, network: {mode: isolated}}]\n",
    ] {
        let source = Source {
            name: "t.yaml".into(),
            text: text.into(),
        };
        let read = parse(&source);
        assert!(read.is_ok(), "{text}: {read:?}");
    }
}

#[test]
fn name_servers_that_the_lists_close_are_warned_of_with_the_entry() {
    for (server, lists, expected) in [
        (
            "192.168.1.1",
            "drop: [192.168.0.0/16]",
            Some("drop[0] \"192.168.0.0/16\" denies 53/udp"),
        ),
        (
            "192.168.1.1",
            "drop: [10.0.0.0/8, \"192.168.1.1:53/tcp\"]",
            Some("drop[1] \"192.168.1.1:53/tcp\" denies 53/tcp"),
        ),
        (
            "1.1.1.1",
            "allow: [10.0.0.0/8]",
            Some("allow has no entry for 1.1.1.1:53/udp"),
        ),
        (
            "1.1.1.1",
            "allow: [\"1.1.1.1:53/udp\"]",
            Some("allow has no entry for 1.1.1.1:53/tcp"),
        ),
        ("1.1.1.1", "allow: [\"1.1.1.1:53\"]", None),
        (
            "192.168.1.1",
            "allow: [\"192.168.1.1:53\"], drop: [192.168.0.0/16]",
            None,
        ),
        ("1.1.1.1", "drop: [\"1.1.1.1:443\"]", None),
        ("169.254.169.254", "allow_metadata: true", None),
        (
            "169.254.169.254",
            "allow_metadata: true, drop: [169.254.0.0/16]",
            Some("drop[0]"),
        ),
        ("1.1.1.1", "on_deny: reject", None),
    ] {
        let group = format!(
            "config:\n  host_groups:\n    - name: g\n      dns_servers: [{server}]\n      network: {{mode: isolated, {lists}}}\n"
        );
        let warnings = one(&group).warnings;
        match expected {
            None => assert_eq!(warnings, [""; 0], "{server} {lists}"),
            Some(text) => assert!(
                warnings
                    .iter()
                    .any(|w| w.starts_with("t.yaml:4:21: ") && w.contains(text)),
                "{server} {lists}: {warnings:?}"
            ),
        }
    }
}
