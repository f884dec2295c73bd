//! The documentation as data: pages, their code blocks, and the commands of console blocks with the output that they show.
//! Out of scope: what is checked of them, and running them.
//!
//! # Format
//! A console block has commands after a prompt (`# ` or `$ `), each continued after a backslash, and below a command the output that
//! it prints. A line `...` in it matches any lines. Output that is not shown is not compared.
//!
//! Notes are HTML comments, alone on a line, before the block that they apply to:
//!
//! | note | meaning |
//! |---|---|
//! | `<!-- not run: REASON -->` | the commands are parsed only |
//! | `<!-- not parsed: REASON -->` | the block is not ours, such as another program's YAML |
//! | `<!-- file: PATH -->` | the block is the content of this file when the following commands run |
//! | `<!-- setup: COMMAND -->` | runs before the block |
//! | `<!-- exit: STATUS -->` | the exit status of the last command of the block, 0 if omitted |

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::programs::root;

/// Pages outside of `docs`.
const TOP: [&str; 4] = [
    "README.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "CHANGELOG.md",
];

/// A page.
#[derive(Clone, Debug)]
pub struct Page {
    /// From the root of the repository.
    pub path: PathBuf,
    /// Markdown.
    pub text: String,
}

/// What a note says about the block after it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    NotRun(String),
    NotParsed(String),
    File(String),
    Setup(String),
    Exit(i32),
}

/// A fenced block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    /// The number of the line of the opening fence; the first line of a page is 1.
    pub line: usize,
    /// The word after the fence.
    pub language: String,
    /// Without the indentation of the fence.
    pub lines: Vec<String>,
    pub notes: Vec<Note>,
}

/// A command of a console block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Without prompt; several lines if it is continued.
    pub command: String,
    /// The lines of the page with its output, as indices; empty if none is shown.
    pub shown: Range<usize>,
    pub output: Vec<String>,
}

/// All pages, in the order of their paths.
pub fn all() -> Vec<Page> {
    let mut paths: Vec<PathBuf> = TOP.map(PathBuf::from).to_vec();
    collect(Path::new("docs"), &mut paths);
    paths.sort();
    paths.iter().map(|path| page(path)).collect()
}

/// One page.
pub fn page(path: &Path) -> Page {
    let text = fs::read_to_string(root().join(path))
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let path = path.to_owned();
    Page { path, text }
}

fn collect(below: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(root().join(below)).expect("a directory") {
        let path = below.join(entry.expect("an entry").file_name());
        if root().join(&path).is_dir() {
            collect(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "md") {
            found.push(path);
        }
    }
}

impl Page {
    /// The blocks of the page, or what is wrong with their notes.
    pub fn blocks(&self) -> Result<Vec<Block>, String> {
        let mut found = Vec::new();
        let mut notes = Vec::new();
        let mut lines = self.text.lines().enumerate();
        while let Some((index, line)) = lines.next() {
            let place = format!("{}:{}", self.path.display(), index + 1);
            if let Some(note) = note(line) {
                notes.push(note.map_err(|why| format!("{place}: {why}"))?);
            }
            let Some(language) = line.trim_start().strip_prefix("```") else {
                if !notes.is_empty() && note(line).is_none() && !line.trim().is_empty() {
                    return Err(format!("{place}: a note without a block"));
                }
                continue;
            };
            let indent = line.len() - line.trim_start().len();
            let mut content = Vec::new();
            loop {
                let (_, line) = lines.next().ok_or(format!("{place}: no closing fence"))?;
                if line.trim() == "```" {
                    break;
                }
                content.push(line.get(indent..).unwrap_or_default().to_owned());
            }
            found.push(Block {
                line: index + 1,
                language: language.trim().to_owned(),
                lines: content,
                notes: std::mem::take(&mut notes),
            });
        }
        match notes.first() {
            None => Ok(found),
            Some(note) => Err(format!("{}: {note:?} has no block", self.path.display())),
        }
    }
}

/// The note of a line; an error if its name is unknown. A comment that begins with a capital is prose.
fn note(line: &str) -> Option<Result<Note, String>> {
    let comment = line.trim().strip_prefix("<!--")?.strip_suffix("-->")?;
    let comment = comment.trim();
    if comment.starts_with(|c: char| c.is_uppercase()) {
        return None;
    }
    let (name, value) = comment.split_once(':').unwrap_or((comment, ""));
    let value = value.trim().to_owned();
    if value.is_empty() && ["not run", "not parsed"].contains(&name) {
        return Some(Err(format!("\"{name}\" without a reason")));
    }
    Some(match name {
        "not run" => Ok(Note::NotRun(value)),
        "not parsed" => Ok(Note::NotParsed(value)),
        "file" => Ok(Note::File(value)),
        "setup" => Ok(Note::Setup(value)),
        "exit" => value
            .parse()
            .map(Note::Exit)
            .map_err(|error| format!("exit: {error}")),
        other => Err(format!("unknown note \"{other}\"")),
    })
}

impl Block {
    /// The content as one text.
    pub fn text(&self) -> String {
        self.lines.iter().map(|line| format!("{line}\n")).collect()
    }

    /// The path of `file:`.
    pub fn file(&self) -> Option<&str> {
        self.notes.iter().find_map(|note| match note {
            Note::File(path) => Some(path.as_str()),
            _ => None,
        })
    }

    /// Whether its commands are run.
    pub fn is_run(&self) -> bool {
        self.language == "console"
            && !self
                .notes
                .iter()
                .any(|note| matches!(note, Note::NotRun(_)))
    }

    /// Whether it is parsed.
    pub fn is_parsed(&self) -> bool {
        !self
            .notes
            .iter()
            .any(|note| matches!(note, Note::NotParsed(_)))
    }

    /// The commands of a console block; an error for output before the first one.
    pub fn steps(&self) -> Result<Vec<Step>, String> {
        let mut steps: Vec<Step> = Vec::new();
        let mut continues = false;
        for (index, line) in self.lines.iter().enumerate() {
            // The fence is the line before the first one.
            let at = self.line + index;
            let command = line.strip_prefix("# ").or_else(|| line.strip_prefix("$ "));
            match (steps.last_mut(), command) {
                (Some(step), _) if continues => {
                    step.command.push('\n');
                    step.command.push_str(line);
                    step.shown = at + 1..at + 1;
                }
                (_, Some(command)) => steps.push(Step {
                    command: command.to_owned(),
                    shown: at + 1..at + 1,
                    output: Vec::new(),
                }),
                (Some(step), None) => {
                    step.output.push(line.clone());
                    step.shown.end = at + 1;
                    continue;
                }
                (None, None) => return Err(format!("line {}: output without a command", at + 1)),
            }
            continues = steps
                .last()
                .is_some_and(|step| step.command.ends_with('\\'));
        }
        Ok(steps)
    }
}

/// Whether lines of output are those that a page shows, in which `...` matches any lines.
pub fn matches(shown: &[&str], found: &[&str]) -> bool {
    match shown.split_first() {
        None => found.is_empty(),
        Some((&"...", rest)) => (0..=found.len()).any(|skipped| matches(rest, &found[skipped..])),
        Some((first, rest)) => found
            .split_first()
            .is_some_and(|(line, others)| line == first && matches(rest, others)),
    }
}
