//! ADD, DEL and STATUS that fail, and results that do not contain what was requested: what is retried, what waits, what is undone.
//! Out of scope: requests that the real plugins can meet (`requests`).

use serde_json::{Value, json};
use slicectl::reconcile::net::cni::{CheckMode, GuestIdentity};

use crate::cni_stages::fixture::{Fixture, ping};
use crate::cni_stages::requests::{options, want};
use test_support::kernel;

/// Fails a command if a file `fail.COMMAND` contains an error code, and otherwise runs `bridge`.
const FAILING: &str = r#"#!/bin/sh
root=$(dirname "$0")/..
[ "$CNI_COMMAND" = VERSION ] && echo '{"cniVersion":"1.1.0","supportedVersions":["1.0.0","1.1.0"]}' && exit 0
echo "$CNI_COMMAND" >>"$root/asked"
if [ -f "$root/fail.$CNI_COMMAND" ]; then
    echo "{\"cniVersion\":\"1.1.0\",\"code\":$(cat "$root/fail.$CNI_COMMAND"),\"msg\":\"the message of $CNI_COMMAND\"}"
    exit 1
fi
case $CNI_COMMAND in STATUS|GC) exit 0 ;; esac
sed 's/"cniVersion":"1.1.0"/"cniVersion":"1.0.0"/' | /usr/lib/cni/bridge | sed 's/"cniVersion": "1.0.0"/"cniVersion": "1.1.0"/'
"#;

fn failing(fixture: &Fixture) {
    fixture.plugin("failing", FAILING);
    let mut plugins = fixture.bridge_plugins();
    plugins[0]["type"] = json!("failing");
    plugins[0]["ipMasq"] = json!(false);
    fixture.configure("1.1.0", &json!([plugins[0]]));
}

fn requests(fixture: &Fixture) -> String {
    let requests = std::fs::read_to_string(fixture.path("asked")).unwrap_or_default();
    let _ = std::fs::remove_file(fixture.path("asked"));
    requests.replace('\n', " ").trim().to_owned()
}

#[test]
fn a_network_that_cannot_serve_is_not_added_to_and_its_message_is_reported() {
    for code in [11, 50, 51, 100] {
        kernel::private(async move {
            let fixture = Fixture::new();
            failing(&fixture);
            std::fs::write(fixture.path("fail.STATUS"), code.to_string()).unwrap();
            let error = fixture.up().await.unwrap_err();
            assert!(!error.is_permanent(), "the failure may be temporary");
            let error = error.to_string();
            let expected =
                format!("`failing` failed STATUS with code {code}: the message of STATUS");
            assert!(error.contains(&expected), "{error}");
            assert_eq!(requests(&fixture), "STATUS");
            std::fs::remove_file(fixture.path("fail.STATUS")).unwrap();
            let (connection, _) = fixture.up().await.unwrap();
            ping(&connection);
            assert_eq!(requests(&fixture), "STATUS ADD");
            fixture.down().await.unwrap();
        });
    }
}

#[test]
fn only_limits_are_reported_for_a_vm_that_is_attached() {
    for (command, code, limited) in [
        ("STATUS", 51, true),
        ("STATUS", 50, false),
        ("STATUS", 11, false),
        ("CHECK", 11, false),
    ] {
        kernel::private(async move {
            let fixture = Fixture::new();
            failing(&fixture);
            let (connection, _) = fixture.up().await.unwrap();
            std::fs::write(fixture.path(format!("fail.{command}")), code.to_string()).unwrap();
            // Like a daemon that has just started, which has no cached STATUS.
            let mut fixture = fixture;
            let mut runtime = slicectl::cni::Runtime::new();
            runtime.conf_dir = fixture.runtime.conf_dir.clone();
            runtime.bin_dirs = fixture.runtime.bin_dirs.clone();
            runtime.cache_dir = fixture.runtime.cache_dir.clone();
            fixture.runtime = runtime;
            let (again, taken) = fixture.up().await.unwrap();
            assert_eq!(
                (again, taken),
                (connection.clone(), vec![]),
                "{command} {code}"
            );
            // The report of the last STATUS is the one of a look that does not call it.
            for checking in [CheckMode::Once, CheckMode::Never] {
                let seen = fixture.look_and(checking).await;
                let message = seen.limited.unwrap_or_default();
                assert_eq!(
                    message.contains("the message of STATUS"),
                    limited,
                    "{command} {code}: {message}"
                );
            }
            ping(&connection);
            fixture.down().await.unwrap();
        });
    }
}

#[test]
fn an_add_that_only_another_configuration_can_mend_waits_for_one() {
    for (code, waits) in [(2, true), (7, true), (11, false), (100, false)] {
        kernel::private(async move {
            let fixture = Fixture::new();
            failing(&fixture);
            std::fs::write(fixture.path("fail.ADD"), code.to_string()).unwrap();
            let error = fixture.up().await.unwrap_err();
            assert_eq!(error.is_permanent(), waits, "{code}");
            assert!(error.to_string().contains("the message of ADD"), "{error}");
            assert_eq!(requests(&fixture), "STATUS ADD DEL", "{code}");
        });
    }
}

#[test]
fn an_add_whose_undoing_failed_is_tried_again_whatever_the_add_waits_for() {
    for (add, del) in [(2, 100), (7, 100), (7, 11), (100, 100)] {
        kernel::private(async move {
            let fixture = Fixture::new();
            failing(&fixture);
            std::fs::write(fixture.path("fail.ADD"), add.to_string()).unwrap();
            std::fs::write(fixture.path("fail.DEL"), del.to_string()).unwrap();
            let error = fixture.up().await.unwrap_err();
            assert!(!error.is_permanent(), "{add} {del}");
            std::fs::remove_file(fixture.path("fail.DEL")).unwrap();
            requests(&fixture);
            let error = fixture.up().await.unwrap_err();
            assert_eq!(error.is_permanent(), add != 100, "{add} {del}");
            assert!(requests(&fixture).starts_with("DEL"), "{add} {del}");
        });
    }
}

/// Refuses a requested address with the code in the file `fail`.
const REFUSING: &str = r#"#!/bin/sh
case "$CNI_COMMAND:$CNI_ARGS" in
ADD:*IP=*) echo "{\"cniVersion\":\"1.0.0\",\"code\":$(cat "$(dirname "$0")/../fail"),\"msg\":\"not in a range\"}"; exit 1 ;;
*) exec /usr/lib/cni/bridge ;;
esac
"#;

#[test]
fn a_kept_address_that_is_refused_with_any_code_is_replaced_by_another() {
    for code in [2, 7, 11, 100] {
        kernel::private(async move {
            let mut fixture = Fixture::new();
            fixture.plugin("refusing", REFUSING);
            let mut plugins = fixture.bridge_plugins();
            plugins[0]["type"] = json!("refusing");
            fixture.configure("1.0.0", &json!([plugins[0]]));
            std::fs::write(fixture.path("fail"), code.to_string()).unwrap();
            want(&mut fixture).identity = Some(GuestIdentity {
                ip: [10, 77, 0, 50].into(),
                mac: "02:00:00:00:00:50".to_owned().try_into().unwrap(),
            });
            let up = fixture.up().await;
            // Code 11 is no refusal: the same ADD is tried again later.
            if code == 11 {
                assert!(up.unwrap_err().to_string().contains("not in a range"));
                return;
            }
            let (connection, _) = up.unwrap_or_else(|e| panic!("{code}: {e}"));
            assert_ne!(connection.ip.octets(), [10, 77, 0, 50], "{code}");
            ping(&connection);
            fixture.down().await.unwrap();
        });
    }
}

/// A result that does not contain the MAC.
const SILENT: &str = r#"#!/bin/sh
case "$CNI_COMMAND" in
ADD) /usr/lib/cni/ptp | sed -z 's/,[[:space:]]*"mac": "[^"]*"//g' ;;
*) exec /usr/lib/cni/ptp ;;
esac
"#;

#[test]
fn a_requested_mac_is_compared_with_the_interface_where_the_result_has_none() {
    kernel::private(async {
        let mut fixture = Fixture::new();
        fixture.plugin("silent", SILENT);
        let plugins = json!([{"type": "silent", "ipam": fixture.ipam("10.77.0.0/24")}]);
        fixture.configure("1.0.0", &plugins);
        want(&mut fixture).requested = options(&json!({"mac": "02:00:00:00:00:77"}));
        let error = fixture.up().await.unwrap_err();
        assert!(error.is_permanent(), "{error}");
        let error = error.to_string();
        assert!(
            error.contains("cni.mac requests 02:00:00:00:00:77"),
            "{error}"
        );
    });
}

#[test]
fn an_attachment_that_a_crash_left_before_its_result_was_checked_is_made_again() {
    kernel::private(async {
        let fixture = Fixture::new();
        failing(&fixture);
        let (connection, _) = fixture.up().await.unwrap();
        requests(&fixture);
        let path = fixture.desired.vm_dir().join("cni.json");
        let mut intent: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        intent["adding"] = json!(true);
        intent.as_object_mut().unwrap().remove("routes");
        std::fs::write(&path, intent.to_string()).unwrap();
        let (again, _) = fixture.up().await.unwrap();
        let calls = requests(&fixture);
        assert!(calls.ends_with("DEL ADD"), "{calls}");
        ping(&again);
        assert_eq!(again.routes, connection.routes);
        fixture.down().await.unwrap();
    });
}

#[test]
fn the_cause_of_a_failed_add_is_reported_as_long_as_it_cannot_be_undone() {
    kernel::private(async move {
        let fixture = Fixture::new();
        failing(&fixture);
        for command in ["ADD", "DEL"] {
            std::fs::write(fixture.path(format!("fail.{command}")), "100").unwrap();
        }
        let error = fixture.up().await.unwrap_err().to_string();
        assert!(error.contains("the message of ADD"), "{error}");
        for _ in 0..2 {
            let error = fixture.up().await.unwrap_err().to_string();
            for expected in [
                "the message of DEL",
                "the attachment is removed because",
                "the message of ADD",
            ] {
                assert!(error.contains(expected), "{error}");
            }
        }
        for command in ["ADD", "DEL"] {
            std::fs::remove_file(fixture.path(format!("fail.{command}"))).unwrap();
        }
        let (connection, _) = fixture.up().await.unwrap();
        ping(&connection);
        std::fs::write(fixture.path("fail.DEL"), "100").unwrap();
        let error = fixture.down().await.unwrap_err().to_string();
        assert!(
            !error.contains("the attachment is removed because"),
            "{error}"
        );
        std::fs::remove_file(fixture.path("fail.DEL")).unwrap();
        fixture.down().await.unwrap();
    });
}
