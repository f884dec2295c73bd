//! What a person is told when a chain fails, and that nothing is left of it.
//! Out of scope: every way in which a plugin can fail (`tests/kernel/cni`).

use serde_json::json;
use slicectl::reconcile::Error;

use crate::cni_stages::fixture::{Fixture, ping};
use test_support::kernel;

/// Fails ADD as it is told in the file `say` beside it.
const FAILING: &str = r#"#!/bin/sh
say=$(dirname "$0")/say
case "$CNI_COMMAND" in
VERSION) echo '{"cniVersion":"1.0.0","supportedVersions":["0.4.0","1.0.0"]}' ;;
ADD) cat "$say"; exit 1 ;;
esac
"#;

async fn failure(fixture: &Fixture) -> String {
    match fixture.up().await.unwrap_err() {
        error @ Error::Act { .. } => error.to_string(),
        other => panic!("{other}"),
    }
}

#[test]
fn a_chain_that_fails_at_its_end_reports_why_and_is_taken_back_at_once() {
    kernel::private(async {
        let fixture = Fixture::bridge();
        fixture.up().await.unwrap();
        fixture.down().await.unwrap();
        let before = fixture.left();

        fixture.plugin("failing", FAILING);
        let say = r#"{"cniVersion":"1.0.0","code":11,"msg":"no room","details":"in the inn"}"#;
        std::fs::write(fixture.path("bin/say"), say).unwrap();
        let mut plugins = fixture.bridge_plugins();
        plugins
            .as_array_mut()
            .unwrap()
            .push(json!({"type": "failing"}));
        fixture.configure("1.0.0", &plugins);
        let output = failure(&fixture).await;
        for word in ["`net`", "`failing`", "code 11", "no room", "in the inn"] {
            assert!(output.contains(word), "{output}");
        }
        // Of the plugins nothing is left while it is waited for the next try.
        let left = fixture.left();
        let plugins = |left: &&String| !left.starts_with("/run/") && !before.contains(*left);
        assert_eq!(left.iter().filter(plugins).count(), 0, "{left:?}");
        assert!(
            !left.iter().any(|left| left.ends_with("cni.json")),
            "{left:?}"
        );

        fixture.configure("1.0.0", &fixture.bridge_plugins());
        let (connection, _) = fixture.up().await.unwrap();
        ping(&connection);
        fixture.down().await.unwrap();
        assert_eq!(fixture.left(), before);
    });
}

#[test]
fn what_is_missing_is_named_with_the_places_that_were_searched() {
    kernel::private(async {
        let fixture = Fixture::new();
        let output = failure(&fixture).await;
        let conf = fixture.path("conf").display().to_string();
        assert!(
            output.contains("`net`") && output.contains(&conf),
            "{output}"
        );
        assert!(!fixture.netns().exists(), "a namespace for nothing");

        fixture.configure("1.0.0", &json!([{"type": "nowhere"}]));
        let output = failure(&fixture).await;
        let bin = fixture.path("bin").display().to_string();
        for word in ["`nowhere`", &bin, "/usr/lib/cni"] {
            assert!(output.contains(word), "{output}");
        }
        fixture.down().await.unwrap();
        assert!(
            !fixture
                .left()
                .iter()
                .any(|left| left.starts_with("/run/slice"))
        );
    });
}

#[test]
fn a_network_without_ipv4_is_refused_and_taken_back() {
    kernel::private(async {
        let fixture = Fixture::new();
        let mut plugins = fixture.bridge_plugins();
        plugins[0]["ipMasq"] = false.into();
        plugins[0]["ipam"]["subnet"] = "fd00:77::/64".into();
        plugins[0]["ipam"]["routes"] = json!([]);
        plugins.as_array_mut().unwrap().truncate(1);
        fixture.configure("1.0.0", &plugins);
        let output = failure(&fixture).await;
        assert!(output.contains("no IPv4 address"), "{output}");
        let reserved = |left: &&String| left.contains("/data/") && left.contains("fd00");
        let left = fixture.left();
        assert_eq!(left.iter().filter(reserved).count(), 0, "{left:?}");
        fixture.down().await.unwrap();
        assert!(fixture.left().contains("0 veths"));
    });
}
