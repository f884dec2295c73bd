//! One shell that runs all commands of a page, as a user would, and what each of them has printed.
//! Out of scope: the host; what is done about differences.

use std::fmt::Write;
use std::fs;
use std::ops::Range;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use test_support::pages::{self, Block, Note, Step};

use super::normalized;

/// A command that has run.
pub struct Ran {
    step: Step,
    pub output: String,
}

/// What the shell does, in order.
pub enum Action {
    /// A file that a page shows.
    File { path: String, text: String },
    /// A command that a page does not show.
    Setup(String),
    /// A command of a page, and the exit status that it must have.
    Step { step: Step, status: i32 },
}

impl Ran {
    /// Whether the output is the one that the page shows, or the page shows none.
    pub fn is_as_shown(&self) -> bool {
        let (shown, found) = (
            normalized(&self.step.output.join("\n")),
            normalized(&self.output),
        );
        let shown: Vec<&str> = shown.iter().map(String::as_str).collect();
        let found: Vec<&str> = found.iter().map(String::as_str).collect();
        shown.is_empty() || pages::matches(&shown, &found)
    }

    /// The lines of the page with its output, as indices.
    pub fn shown(&self) -> Range<usize> {
        self.step.shown.clone()
    }

    pub fn report(&self, path: &str) -> String {
        let Step {
            command,
            shown,
            output,
        } = &self.step;
        let (line, shown) = (shown.start, output.join("\n"));
        format!(
            "{path}:{line}: {command}\n--- shown\n{shown}\n--- found\n{}",
            self.output
        )
    }
}

/// The actions that the blocks of a page describe.
pub fn actions(blocks: &[Block]) -> Vec<Action> {
    let mut found = Vec::new();
    for block in blocks {
        for note in &block.notes {
            if let Note::Setup(command) = note {
                found.push(Action::Setup(command.clone()));
            }
        }
        if let Some(path) = block.file() {
            found.push(Action::File {
                path: path.to_owned(),
                text: block.text(),
            });
        }
        if block.is_run() {
            found.extend(steps(block));
        }
    }
    found
}

fn steps(block: &Block) -> Vec<Action> {
    let exit = block.notes.iter().find_map(|note| match note {
        Note::Exit(status) => Some(*status),
        Note::NotRun(_) | Note::NotParsed(_) | Note::File(_) | Note::Setup(_) => None,
    });
    let steps = block.steps().expect("steps");
    let last = steps.len() - 1;
    let action = |(index, step)| Action::Step {
        step,
        status: exit.filter(|_| index == last).unwrap_or(0),
    };
    steps.into_iter().enumerate().map(action).collect()
}

/// Writes `script` into a directory, which the shell finds as `$SESSION`. The shell stops at the first action with another status than
/// expected; the output of action `i` is in the file `i`.
pub fn write_script(dir: &Path, prelude: &str, actions: &[Action]) {
    let mut script = format!("{prelude}\n");
    for (index, action) in actions.iter().enumerate() {
        let (command, status) = match action {
            Action::File { path, text } => {
                fs::write(dir.join(format!("{index}.file")), text).expect("a file");
                (format!("cp $SESSION/{index}.file '{path}'"), &0)
            }
            Action::Setup(command) => (command.clone(), &0),
            Action::Step { step, status } => (step.command.clone(), status),
        };
        write!(
            script,
            "{{\n{command}\n}} >$SESSION/{index} 2>&1\n\
             status=$?; echo \"$SECONDS s: action {index}\"; echo $status >$SESSION/{index}.status; [ $status = {status} ] || exit 1\n"
        )
        .expect("a string");
    }
    fs::write(dir.join("script"), script).expect("a script");
}

/// Runs the shell, by a program that starts it as the first process of a PID namespace and ends it with itself, for at most `patience`.
pub fn run(dir: &Path, mut program: Command, patience: Duration) {
    let log = fs::File::create(dir.join("log")).expect("a log");
    let mut child = program
        .stdin(std::process::Stdio::null())
        .stdout(log.try_clone().expect("a log"))
        .stderr(log)
        .spawn()
        .expect("a program");
    let begin = Instant::now();
    while child.try_wait().expect("its status").is_none() && begin.elapsed() < patience {
        std::thread::sleep(Duration::from_millis(50));
    }
    eprint!(
        "{}",
        fs::read_to_string(dir.join("log")).unwrap_or_default()
    );
    // It has ended, or it hangs.
    let _ = child.kill();
    let _ = child.wait();
}

/// What has run. Fails if an action has not, or had another exit status than expected.
#[track_caller]
pub fn results(page: &Path, actions: Vec<Action>, dir: &Path) -> Vec<Ran> {
    let read = |name: String| fs::read_to_string(dir.join(name)).unwrap_or_default();
    let mut ran = Vec::new();
    for (index, action) in actions.into_iter().enumerate() {
        let (command, expected) = match &action {
            Action::File { path, .. } => (path, 0),
            Action::Setup(command) => (command, 0),
            Action::Step { step, status } => (&step.command, *status),
        };
        let output = read(index.to_string());
        let status = read(format!("{index}.status"));
        assert!(
            status.trim() == expected.to_string(),
            "{}: `{command}`: exit status \"{}\", expected {expected}\n{output}\n--- log\n{}\n--- sliced\n{}",
            page.display(),
            status.trim(),
            read("log".to_owned()),
            read("sliced.log".to_owned())
        );
        if let Action::Step { step, .. } = action {
            // A serial console ends its lines with it.
            let output = output.replace('\r', "");
            ran.push(Ran { step, output });
        }
    }
    ran
}
