//! schemathesis against the OpenAPI document of a daemon: requests that fit the document and such that do not, in sequences. It finds no
//! 5xx, no status, header, content type or body that the document does not declare, and no access without a token.
//! Out of scope: what the requests do. Its settings are in `schemathesis/schemathesis.toml`, with the reasons.

use std::path::Path;
use std::process::{Command, Stdio};

use test_support::harness::{slots, with_daemon};

use crate::api_listener::{PORT, bearer, configure, listens};

/// The seed of the run in CI, and how many requests it sends for each operation at most.
const SEED: &str = "16";
const EXAMPLES: &str = "4";

fn setting(name: &str, default: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| default.to_owned())
}

#[test]
fn schemathesis_finds_no_answer_that_the_document_does_not_declare() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let program = root.join("target/schemathesis/bin/schemathesis");
    assert!(
        program.exists(),
        "tests/setup.sh installs {}",
        program.display()
    );
    let (seed, examples) = (
        setting("SLICE_SEED", SEED),
        setting("SLICE_SCHEMATHESIS_EXAMPLES", EXAMPLES),
    );
    eprintln!("SLICE_SEED={seed} SLICE_SCHEMATHESIS_EXAMPLES={examples}");
    with_daemon(|harness| {
        // Of a file, so that no request deletes it.
        harness.save("sandbox.yaml", &slots(2, "allow: [10.0.0.0/8]"));
        configure(&harness, "api: {}\n");
        listens(&harness, PORT);
        harness.until("the VMs", || {
            let group = harness.get("hostgroup sandbox");
            (group["status"]["ready"] == true).then_some(())
        });
        let output = Command::new(&program)
            .arg("--config-file")
            .arg(root.join("tests/e2e/contract/schemathesis/schemathesis.toml"))
            .args(["run", "--no-color", "--continue-on-failure"])
            .args([
                "--seed",
                &seed,
                "--max-examples",
                &examples,
                "--request-timeout=30",
            ])
            .args(["--suppress-health-check=all", "--generation-database=none"])
            .args(["--header", &format!("Authorization: {}", bearer(&harness))])
            .arg(format!("http://127.0.0.1:{PORT}/openapi.json"))
            .current_dir(harness.dir.path())
            .stdin(Stdio::null())
            .output()
            .expect("schemathesis");
        let text = String::from_utf8_lossy(&output.stdout);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{text}\n{error}");
        let (status, version) = (output.status, harness.ctl("version"));
        assert!(!version.is_empty(), "{status}: the daemon still answers");
    });
}
