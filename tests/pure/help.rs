//! The help of both programs and of every verb: as a terminal of 100 columns shows it, in `tests/goldens/help`; its lines on terminals of
//! other widths.
//! Out of scope: what the verbs do.

use std::process::Command;

use super::source::assert_golden;

fn help(program: &str, verbs: &[&str], columns: usize) -> String {
    let output = Command::new(program)
        .args(verbs)
        .arg("--help")
        .env("COLUMNS", columns.to_string())
        .env_remove("SLICE_SOCKET")
        .output()
        .expect("the program");
    assert!(output.status.success(), "{verbs:?}: {output:?}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// The verbs of a help text: the first words of the lines below `Commands:`.
fn verbs(help: &str) -> Vec<String> {
    let lines = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let lines = lines.take_while(|line| line.starts_with("  "));
    let verb = |line: &str| line.split_whitespace().next().map(str::to_owned);
    let entries = lines.filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    // `help --help` is no text of ours.
    entries.filter_map(verb).filter(|v| v != "help").collect()
}

/// The program and the verbs of every command, with the name of its golden file.
fn commands() -> Vec<(String, &'static str, Vec<String>)> {
    let slicectl = env!("CARGO_BIN_EXE_slicectl");
    let mut all = vec![
        (
            "sliced".to_owned(),
            env!("CARGO_BIN_EXE_sliced"),
            Vec::new(),
        ),
        ("slicectl".to_owned(), slicectl, Vec::new()),
    ];
    for verb in verbs(&help(slicectl, &[], 100)) {
        for inner in verbs(&help(slicectl, &[&verb], 100)) {
            for third in verbs(&help(slicectl, &[&verb, &inner], 100)) {
                let name = format!("slicectl-{verb}-{inner}-{third}");
                all.push((name, slicectl, vec![verb.clone(), inner.clone(), third]));
            }
            let name = format!("slicectl-{verb}-{inner}");
            all.push((name, slicectl, vec![verb.clone(), inner]));
        }
        all.push((format!("slicectl-{verb}"), slicectl, vec![verb]));
    }
    assert!(all.len() > 15, "{} verbs", all.len());
    all
}

fn help_of(program: &str, verbs: &[String], columns: usize) -> String {
    let verbs: Vec<&str> = verbs.iter().map(String::as_str).collect();
    help(program, &verbs, columns)
}

#[test]
fn the_help_of_every_verb_is_in_a_golden_file() {
    for (name, program, verbs) in commands() {
        let text = help_of(program, &verbs, 100);
        assert_golden(&format!("help/{name}.txt"), &text);
    }
}

/// Prose fills its lines: a line ends where the next word does not fit. A text with line breaks of its own does not.
#[test]
fn the_help_fits_the_terminal_and_is_wrapped_once() {
    let mut found = Vec::new();
    for (name, program, verbs) in commands() {
        for columns in [80, 100, 120] {
            let text = help_of(program, &verbs, columns);
            let lines: Vec<&str> = text.lines().collect();
            for line in lines.iter().filter(|line| line.chars().count() > columns) {
                found.push(format!("{name} at {columns}: too long: {line}"));
            }
            for pair in lines.windows(2) {
                let is_prose =
                    |line: &str| !line.is_empty() && !line.starts_with(' ') && !line.ends_with(':');
                let first = pair[1].split(' ').next().unwrap_or_default();
                let fits = pair[0].chars().count() + 1 + first.chars().count() <= columns;
                if is_prose(pair[0]) && is_prose(pair[1]) && fits {
                    found.push(format!("{name} at {columns}: ends early: {}", pair[0]));
                }
            }
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn examples_are_not_wrapped_at_80_columns() {
    let examples = |text: &str| -> Vec<String> {
        let lines = text
            .lines()
            .skip_while(|line| !line.ends_with("xamples:") && !line.ends_with("Quick start:"));
        lines.map(str::to_owned).collect()
    };
    for (name, program, verbs) in commands() {
        let narrow = examples(&help_of(program, &verbs, 80));
        let wide = examples(&help_of(program, &verbs, 500));
        assert_eq!(narrow, wide, "{name}");
    }
}

#[test]
fn help_shows_the_same_text_as_the_option() {
    let slicectl = env!("CARGO_BIN_EXE_slicectl");
    for verbs in [&[][..], &["get"], &["vm"], &["vm", "add"]] {
        let output = Command::new(slicectl)
            .arg("help")
            .args(verbs)
            .env("COLUMNS", "100")
            .output()
            .expect("the program");
        assert!(output.status.success(), "{verbs:?}: {output:?}");
        let text = String::from_utf8(output.stdout).expect("UTF-8");
        assert_eq!(text, help(slicectl, verbs, 100), "{verbs:?}");
    }
    let unknown = Command::new(slicectl).args(["help", "gte"]).output();
    let unknown = unknown.expect("the program");
    assert_eq!(unknown.status.code(), Some(2), "{unknown:?}");
}
