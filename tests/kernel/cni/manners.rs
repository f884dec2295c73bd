//! How plugins are run: their priority, the logging of their standard error, and how often STATUS is called.
//! Out of scope: requests and results.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use slicectl::cni::Error;
use tracing_subscriber::fmt::MakeWriter;

use crate::cni::stage::{Stage, blue};

/// A plugin that writes its nice value, and that of a child process, to a file.
const NICE: &str = r#"#!/bin/sh
stage=$(dirname "$(dirname "$0")")
cat >/dev/null
sleep 0.1
echo "$(nice) $(sh -c nice)" >>"$stage/received/nice"
cat "$stage/say/one.$CNI_COMMAND.out" 2>/dev/null
exit 0
"#;

#[test]
fn plugins_run_at_no_higher_priority_than_everybody_else() {
    // Nice value of the daemon, nice value of the plugin. Plugins inherit a positive value.
    for (ours, its) in [(-10, 0), (-1, 0), (0, 0), (7, 7)] {
        // A nice value belongs to a thread, and this thread ends with the case.
        let run = move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            rustix::process::setpriority_process(None, ours).expect("a priority");
            runtime.block_on(async {
                let stage = Stage::new();
                let network = stage.chain("1.0.0", &["one"]);
                stage.script("one", NICE);
                stage.runtime.add(&network, &blue()).await.unwrap();
                stage.runtime.check(&network, &blue()).await.unwrap();
                stage.runtime.del(&network, &blue()).await.unwrap();
                let nice = std::fs::read_to_string(stage.path("received/nice")).unwrap();
                assert_eq!(
                    nice,
                    format!("{its} {its}\n").repeat(3),
                    "nice value {ours} of the daemon"
                );
            });
        };
        std::thread::spawn(run).join().unwrap();
    }
}

/// Captures the log.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut log = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        log.write(bytes)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Log {
    type Writer = Self;
    fn make_writer(&self) -> Self {
        self.clone()
    }
}

#[tokio::test]
async fn what_a_plugin_writes_to_standard_error_is_in_the_debug_log_however_it_ends() {
    let log = Log::default();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::DEBUG)
        .with_writer(log.clone())
        .finish();
    let _default = tracing::subscriber::set_default(subscriber);
    let stage = Stage::new();
    let network = stage.chain("1.1.0", &["one"]);
    for command in ["ADD", "CHECK", "STATUS", "DEL"] {
        stage.say(
            "one",
            &format!("{command}.err"),
            &format!("stderr of {command}"),
        );
    }
    stage.runtime.add(&network, &blue()).await.unwrap();
    stage.runtime.check(&network, &blue()).await.unwrap();
    stage.runtime.status(&network).await.unwrap();
    stage.fail("one", "DEL", 100);
    stage.runtime.del(&network, &blue()).await.unwrap_err();
    let log = log.0.lock().unwrap().clone();
    let log = String::from_utf8_lossy(&log).into_owned();
    for command in ["ADD", "CHECK", "STATUS", "DEL"] {
        assert!(log.contains(&format!("stderr of {command}")), "{log}");
    }
}

#[tokio::test]
async fn a_network_that_serves_is_not_asked_again_for_each_vm_and_one_that_does_not_is() {
    // Versions before 1.1.0 have no STATUS.
    for (version, asked) in [("0.3.0", 0), ("0.4.0", 0), ("1.0.0", 0), ("1.1.0", 1)] {
        let stage = Stage::new();
        let network = stage.chain(version, &["one", "two"]);
        for _ in 0..3 {
            stage.runtime.check_serving(&network).await.unwrap();
        }
        assert_eq!(stage.order().len(), 2 * asked, "{version}");
    }
    for code in [11, 50, 51, 100] {
        let stage = Stage::new();
        let network = stage.chain("1.1.0", &["one"]);
        stage.fail("one", "STATUS", code);
        for _ in 0..2 {
            let error = stage.runtime.check_serving(&network).await.unwrap_err();
            assert_eq!(error.code(), Some(code));
            assert!(error.to_string().contains("configured to fail"), "{error}");
            assert_eq!(matches!(error, Error::TryAgain(_)), code != 100);
        }
        assert_eq!(stage.order(), ["STATUS one"; 2], "{code}");
        stage.unsay("one", "STATUS.out");
        stage.unsay("one", "STATUS.exit");
        stage.runtime.check_serving(&network).await.unwrap();
    }
}

#[tokio::test]
async fn only_what_a_configuration_causes_waits_for_another() {
    for (code, waits) in [
        (1, false),
        (2, true),
        (3, false),
        (4, false),
        (5, false),
        (6, false),
        (7, true),
        (11, false),
        (100, false),
        (999, false),
    ] {
        let stage = Stage::new();
        let network = stage.chain("1.0.0", &["one"]);
        stage.fail("one", "ADD", code);
        let error = stage.runtime.add(&network, &blue()).await.unwrap_err();
        assert_eq!(error.is_permanent(), waits, "ADD {code}");
        // DEL uses the configuration of the ADD, which does not change with the file.
        stage.fail("one", "DEL", code);
        if let Err(error) = stage.runtime.del(&network, &blue()).await {
            assert!(!error.is_permanent(), "DEL {code}");
        }
    }
}
