//! Runs of `slicectl`, compared with transcripts in `tests/goldens/cli`. What differs between two runs (ages, times, uids, names derived
//! from uids, pids, temporary paths) is replaced by placeholders, and tables are aligned again afterwards.
//! Out of scope: the daemon that answers; which commands are run.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::harness::Harness;
use super::placeholders;
use super::programs;

/// Runs `slicectl` for one daemon.
pub struct Runner {
    socket: PathBuf,
    dir: PathBuf,
    /// Texts of this test alone, and their placeholders in transcripts.
    replacements: Vec<(String, String)>,
}

/// One run of `slicectl`.
#[derive(Debug)]
pub struct Transcript {
    pub command: String,
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Runner {
    /// For the daemon that listens, or does not listen, at `socket`; the commands run in `dir`.
    pub fn new(socket: impl Into<PathBuf>, dir: &Path) -> Self {
        let socket = socket.into();
        let mut runner = Self {
            socket: socket.clone(),
            dir: dir.to_owned(),
            replacements: Vec::new(),
        };
        runner.replace(socket.display(), "<SOCKET>");
        runner.replace(dir.display(), "<DIR>");
        runner.replace(programs::scratch().display(), "<TMP>");
        runner
    }

    /// For the daemon of a test.
    pub fn of(harness: &Harness) -> Self {
        Self::new(harness.run.join("sliced.sock"), harness.dir.path())
    }

    /// Shows one text as another.
    pub fn replace(&mut self, text: impl ToString, shown: &str) {
        self.replacements.push((text.to_string(), shown.to_owned()));
    }

    /// Runs a command, whose arguments are separated by blanks.
    pub fn run(&self, arguments: &str) -> Transcript {
        self.run_with_input(arguments, "")
    }

    /// Runs a command with a text as its standard input.
    pub fn run_with_input(&self, arguments: &str, input: &str) -> Transcript {
        let mut child = self
            .command(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("slicectl");
        // A command that rejects its input stops to read it (EPIPE).
        let _ = child
            .stdin
            .take()
            .expect("a pipe")
            .write_all(input.as_bytes());
        let output = child.wait_with_output().expect("its output");
        let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
        Transcript {
            command: arguments.split_whitespace().collect::<Vec<_>>().join(" "),
            code: output.status.code().expect("it is not killed"),
            stdout: text(output.stdout),
            stderr: text(output.stderr),
        }
    }

    /// The command, not started yet.
    pub fn command(&self, arguments: &str) -> Command {
        let mut command = Command::new(programs::built("slicectl"));
        command
            .args(arguments.split_whitespace())
            .env("SLICE_SOCKET", &self.socket)
            .env("COLUMNS", "100")
            // What is installed on this machine must not change the output.
            .env("SLICE_IMAGES", self.dir.join("images"))
            .current_dir(&self.dir)
            .stdin(Stdio::null());
        command
    }

    /// Runs each command and compares it with the golden file of its name; reports all that differ.
    #[track_caller]
    pub fn check(&self, cases: &[(&str, &str)]) {
        let differences = cases.iter();
        let differences = differences.filter_map(|(name, command)| {
            let transcript = self.run(command);
            self.difference(name, &transcript)
        });
        let differences: Vec<String> = differences.collect();
        assert!(differences.is_empty(), "{}", differences.join("\n"));
    }

    /// Compares one transcript with the golden file of this name.
    #[track_caller]
    pub fn compare(&self, name: &str, transcript: &Transcript) {
        if let Some(difference) = self.difference(name, transcript) {
            panic!("{difference}");
        }
    }

    fn difference(&self, name: &str, transcript: &Transcript) -> Option<String> {
        let found = format!(
            "$ slicectl {}\nexit {}\n--- stdout\n{}--- stderr\n{}",
            self.normalize(&transcript.command),
            transcript.code,
            self.normalize(&transcript.stdout),
            self.normalize(&transcript.stderr)
        );
        let path = programs::root().join(format!("tests/goldens/cli/{name}.txt"));
        if std::env::var_os("BLESS").is_some() {
            fs::write(&path, &found).expect("a golden file");
            return None;
        }
        let golden = fs::read_to_string(&path).unwrap_or_default();
        (golden != found).then(|| {
            format!("{name} differs (BLESS=1 accepts it)\n--- golden\n{golden}\n--- found\n{found}")
        })
    }

    /// The text with placeholders.
    pub fn normalize(&self, text: &str) -> String {
        let replaced = self
            .replacements
            .iter()
            .fold(text.to_owned(), |text, (from, to)| text.replace(from, to));
        placeholders::normalize(&replaced)
    }
}
