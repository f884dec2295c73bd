//! The help of both programs and of every verb, as a terminal of 100 columns shows it, in `tests/goldens/help`.
//! Out of scope: what the verbs do.

use std::process::Command;

use super::source::assert_golden;

fn help(program: &str, verbs: &[&str]) -> String {
    let output = Command::new(program)
        .args(verbs)
        .arg("--help")
        .env("COLUMNS", "100")
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
    entries.filter_map(verb).collect()
}

#[test]
fn the_help_of_every_verb_is_in_a_golden_file() {
    let slicectl = env!("CARGO_BIN_EXE_slicectl");
    let top = help(slicectl, &[]);
    let mut all = vec![("slicectl".to_owned(), top.clone())];
    for verb in verbs(&top) {
        let text = help(slicectl, &[&verb]);
        for inner in verbs(&text) {
            if inner != "help" {
                let text = help(slicectl, &[&verb, &inner]);
                all.push((format!("slicectl-{verb}-{inner}"), text));
            }
        }
        all.push((format!("slicectl-{verb}"), text));
    }
    assert!(all.len() > 15, "{} verbs", all.len());
    for (name, text) in all {
        assert_golden(&format!("help/{name}.txt"), &text);
    }
    assert_golden("help/sliced.txt", &help(env!("CARGO_BIN_EXE_sliced"), &[]));
}
