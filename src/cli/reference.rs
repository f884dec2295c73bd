//! The reference of both programs in Markdown (`docs/reference`), from the definitions of the arguments.
//! Out of scope: man pages (`man`).

use clap::{Arg, Command, CommandFactory};

use super::args::Args;
use super::footer::Footer;
use super::sliced;

const GENERATED: &str = "<!-- Generated from the definitions of the arguments in src/cli. To update it: BLESS=1 cargo test --test pure reference -->\n";

/// `docs/reference/slicectl.md`.
pub fn slicectl() -> String {
    let mut root = Args::command().disable_help_subcommand(true);
    root.build();
    let mut text = format!("{GENERATED}\n# slicectl\n");
    describe(&root, true, &mut text);
    text.push_str("\n| command | purpose |\n|---|---|\n");
    for command in all(&root) {
        let name = command.get_bin_name().unwrap_or_default();
        let anchor = name.replace(' ', "-");
        text.push_str(&format!("| [`{name}`](#{anchor}) | {} |\n", about(command)));
    }
    for command in all(&root) {
        let name = command.get_bin_name().unwrap_or_default();
        text.push_str(&format!("\n## {name}\n"));
        describe(command, false, &mut text);
    }
    text
}

/// `docs/reference/sliced.md`.
pub fn sliced() -> String {
    let mut command = sliced::Args::command();
    command.build();
    let mut text = format!("{GENERATED}\n# sliced\n");
    describe(&command, true, &mut text);
    text
}

/// All commands below a command, depth first.
fn all(command: &Command) -> Vec<&Command> {
    let shown = command
        .get_subcommands()
        .filter(|inner| !inner.is_hide_set());
    shown
        .flat_map(|inner| [vec![inner], all(inner)].concat())
        .collect()
}

fn about(command: &Command) -> String {
    command
        .get_about()
        .map(ToString::to_string)
        .unwrap_or_default()
}

/// The purpose, the usage, a table of the arguments, and the footer. Global options are shown for the root only.
fn describe(command: &Command, is_root: bool, text: &mut String) {
    let usage = command.clone().render_usage().to_string();
    let usage = usage.trim_start_matches("Usage:").trim();
    text.push_str(&format!("\n{}.\n\n```\n{usage}\n```\n", about(command)));
    let arguments = command.get_arguments().filter(|arg| {
        let is_shown = !arg.is_hide_set() && !["help", "version"].contains(&arg.get_id().as_str());
        is_shown && (is_root || !arg.is_global_set())
    });
    let rows: String = arguments.map(row).collect();
    if !rows.is_empty() {
        text.push_str(&format!("\n| argument | meaning |\n|---|---|\n{rows}"));
    }
    let footer = Footer::of(command);
    for paragraph in footer.prose {
        text.push_str(&format!("\n{paragraph}\n"));
    }
    for (heading, lines) in footer.blocks {
        let lines: String = lines
            .iter()
            .map(|line| format!("{}\n", line.strip_prefix("  ").unwrap_or(line)))
            .collect();
        text.push_str(&format!("\n{heading}:\n\n```\n{lines}```\n"));
    }
}

fn row(arg: &Arg) -> String {
    let short = arg.get_short().map(|short| format!("-{short}, "));
    let name = format!("{}{arg}", short.unwrap_or_default());
    let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
    let takes_value = arg.get_num_args().is_some_and(|range| range.takes_values());
    let values: Vec<String> = arg
        .get_possible_values()
        .iter()
        .filter(|value| takes_value && !value.is_hide_set() && !arg.is_hide_possible_values_set())
        .map(|value| match value.get_help() {
            Some(help) => format!("`{}` ({help})", value.get_name()),
            None => format!("`{}`", value.get_name()),
        })
        .collect();
    let values = (!values.is_empty()).then(|| format!("values: {}", values.join(", ")));
    let defaults: Vec<String> = arg
        .get_default_values()
        .iter()
        .filter(|_| takes_value)
        .map(|value| format!("`{}`", value.to_string_lossy()))
        .collect();
    let default = (!defaults.is_empty()).then(|| format!("default: {}", defaults.join(", ")));
    let environment = arg.get_env();
    let environment = environment.map(|name| format!("variable: `{}`", name.to_string_lossy()));
    let parts = [Some(help), values, default, environment];
    let meaning = parts.into_iter().flatten().collect::<Vec<_>>().join("; ");
    let cell = |text: &str| text.replace('|', "\\|");
    let meaning = cell(&meaning).replace('*', "\\*");
    format!("| `{}` | {meaning} |\n", cell(&name))
}
