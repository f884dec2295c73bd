//! Runs `slicectl` and compares transcripts with those on disk.
//! Out of scope: the world it talks to.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use assert_cmd::Command;

use super::fixture::Fixture;
use super::world;

/// A run of `slicectl` to be.
pub struct Run {
    dir: PathBuf,
    command: Command,
    words: String,
}

/// What came of it, with what differs from run to run replaced.
#[derive(Debug)]
pub struct Transcript {
    pub words: String,
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

/// Towards the fixture's socket.
pub fn slicectl(fixture: &Fixture) -> Run {
    Run::new(fixture.dir.path(), fixture.socket())
}

impl Run {
    pub fn new(dir: &Path, socket: impl AsRef<Path>) -> Self {
        let mut command = Command::cargo_bin("slicectl").unwrap();
        command
            .env("SLICE_SOCKET", socket.as_ref())
            .env("COLUMNS", "100")
            .timeout(Duration::from_secs(20));
        Self {
            dir: dir.to_owned(),
            command,
            words: String::new(),
        }
    }

    pub fn args(mut self, words: &str) -> Self {
        self.command.args(words.split_whitespace());
        let words: Vec<&str> = words.split_whitespace().collect();
        self.words = words.join(" ");
        self
    }

    pub fn stdin(mut self, text: &str) -> Self {
        self.command.write_stdin(text);
        self
    }

    pub fn run(mut self) -> Transcript {
        let output = self.command.output().unwrap();
        let text = |bytes: Vec<u8>| {
            String::from_utf8(bytes)
                .unwrap()
                .replace(&world::created().to_string(), "<CREATED>")
                .replace(self.dir.to_str().unwrap(), "<DIR>")
                .replace(
                    concat!("slicectl  ", env!("CARGO_PKG_VERSION")),
                    "slicectl  <VERSION>",
                )
                .replace(
                    concat!("\"client\": \"", env!("CARGO_PKG_VERSION")),
                    "\"client\": \"<VERSION>",
                )
        };
        Transcript {
            words: text(self.words.into_bytes()),
            code: output.status.code().expect("ended by itself"),
            stdout: text(output.stdout),
            stderr: text(output.stderr),
        }
    }
}

/// Runs each command and compares it with the golden of its name; tells all that differ.
pub fn check(fixture: &Fixture, cases: &[(&str, &str)]) {
    let differing: Vec<String> = cases
        .iter()
        .filter_map(|(name, command)| difference(name, &slicectl(fixture).args(command).run()))
        .collect();
    assert!(differing.is_empty(), "{}", differing.join("\n"));
}

/// Compares one transcript with the golden of this name.
pub fn compare(name: &str, transcript: &Transcript) {
    if let Some(difference) = difference(name, transcript) {
        panic!("{difference}");
    }
}

fn difference(name: &str, transcript: &Transcript) -> Option<String> {
    let Transcript {
        words,
        code,
        stdout,
        stderr,
    } = transcript;
    // `\r` is made visible, so that no editor and no checkout changes it.
    let found =
        format!("$ slicectl {words}\nexit {code}\n--- stdout\n{stdout}--- stderr\n{stderr}")
            .replace('\r', "<CR>");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/goldens/cli/{name}.txt"));
    if std::env::var_os("BLESS").is_some() {
        fs::write(&path, &found).unwrap();
        return None;
    }
    let golden = fs::read_to_string(&path).unwrap_or_default();
    (golden != found).then(|| {
        format!("{name} differs (BLESS=1 accepts it)\n--- golden\n{golden}\n--- found\n{found}")
    })
}
