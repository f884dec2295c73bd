//! Chromium in the namespaces of the test, driven by `driver.mjs`.
//! Out of scope: tests.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde_json::{Value, json};

/// Where `tests/setup.sh` has installed packages of npm.
pub fn installed(name: &str) -> PathBuf {
    let dir = std::env::var_os("SLICE_WEB_DIR").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("target/web"),
        PathBuf::from,
    );
    let modules = dir.join(name);
    assert!(
        modules.join("node_modules").exists(),
        "{} has no node_modules: run tests/setup.sh, or name another place in SLICE_WEB_DIR",
        modules.display()
    );
    modules
}

/// A browser with one page.
pub struct Browser {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
    _profile: tempfile::TempDir,
}

impl Browser {
    /// With a new profile.
    pub fn start() -> Self {
        let profile = tempfile::tempdir().expect("a directory");
        let driver = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/e2e/web/driver.mjs");
        let mut child = Command::new("node")
            .arg(driver)
            .arg(installed("tests"))
            .arg(profile.path())
            .env("HOME", profile.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("node");
        let input = child.stdin.take();
        let output = BufReader::new(child.stdout.take().expect("a pipe"));
        let mut browser = Self {
            child,
            input,
            output,
            _profile: profile,
        };
        browser.answer("the start");
        browser
    }

    /// Runs code of the driver, in which `data` is this value.
    #[track_caller]
    pub fn run_with(&mut self, data: &Value, code: &str) -> Value {
        let line = json!({"code": code, "data": data});
        let input = self.input.as_mut().expect("a pipe");
        writeln!(input, "{line}").expect("a driver that reads");
        self.answer(code)
    }

    /// The same without a value.
    #[track_caller]
    pub fn run(&mut self, code: &str) -> Value {
        self.run_with(&Value::Null, code)
    }

    #[track_caller]
    fn answer(&mut self, code: &str) -> Value {
        let mut line = String::new();
        self.output.read_line(&mut line).expect("an answer");
        let answer: Value = serde_json::from_str(&line).expect("a driver that answers");
        if let Some(error) = answer["error"].as_str() {
            panic!("{code}\n{error}");
        }
        answer["value"].clone()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // At the end of its input the driver closes the browser.
        drop(self.input.take());
        let _ = self.child.wait();
    }
}
