//! Where the repository and what cargo has built are.
//! Out of scope: programs of the system.
//!
//! # Why
//! cargo tells these paths to the test binaries only (`CARGO_BIN_EXE_*`, `CARGO_TARGET_TMPDIR`), not to a library that they use.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The root of the repository.
pub fn root() -> &'static Path {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).expect("this is tests/support")
}

/// The directory of this profile, such as `target/debug`: test binaries are in its `deps`.
fn profile() -> PathBuf {
    let test = std::env::current_exe().expect("the path of this test binary");
    let profile = test.ancestors().nth(2);
    profile.expect("a test binary is in deps/").to_owned()
}

/// A program of this package, as cargo has built it for these tests.
pub fn built(name: &str) -> PathBuf {
    let path = profile().join(name);
    assert!(path.exists(), "{path:?} is not built");
    path
}

/// `target/tmp`, which cargo creates for tests.
pub fn scratch() -> PathBuf {
    let profile = profile();
    profile.parent().expect("it is in target/").join("tmp")
}

/// This test binary, to run that test alone in a process of its own: `this_test(the_function)`.
pub fn this_test<F: Fn()>(test: F) -> Command {
    this_test_by(&[], test)
}

/// The same, as the last words of another program.
pub fn this_test_by<F: Fn()>(starter: &[&str], _: F) -> Command {
    let path = std::any::type_name::<F>();
    let (_, name) = path.split_once("::").expect("a function of a crate");
    let binary = std::env::current_exe().expect("the path of this test binary");
    let words = starter.iter().map(OsString::from);
    let mut words = words.chain([binary.into_os_string()]);
    let mut command = Command::new(words.next().expect("a program"));
    command.args(words).args(["--exact", name, "--nocapture"]);
    command
}

/// Runs it, which must run one test and pass.
pub fn assert_passes(mut test: Command) -> String {
    let output = test.output().expect("this test binary");
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success() && stdout.contains("1 passed"),
        "{test:?}: {}\n{stdout}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    stdout
}
