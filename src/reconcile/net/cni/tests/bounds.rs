//! Results that no guest can use, and the parts of a hostile result that are printed in warnings.
//! Out of scope: results of the real plugins (the parent module).

use super::super::guest::invalid_reason;
use super::*;

#[test]
fn a_result_without_an_ipv4_address_of_the_guest_is_invalid() {
    let elsewhere = format!(
        r#"{{"interfaces": [{{"name": "veth9"}}, {{"name": "eth0", "sandbox": "{NETNS}"}}],
             "ips": [{{"address": "10.22.0.1/16", "interface": 0}}, {{"address": "fd00::5/64", "interface": 1}}]}}"#
    );
    for text in ["{}", r#"{"ips": [{"address": "fd00::5/64"}]}"#, &elsewhere] {
        let result = result(Version::V1_0_0, text);
        let why = invalid_reason(&result, &attachment()).expect("a reason");
        assert!(why.contains("no IPv4 address"), "{why}");
        assert_eq!(connection(&result, &attachment(), &eth(), None), None);
    }
    assert_eq!(
        invalid_reason(&bridge(Version::V1_0_0), &attachment()),
        None
    );
}

#[test]
fn a_result_that_is_too_long_or_assigns_no_host_address_is_invalid() {
    let many = |item: &str, count: usize| vec![item; count].join(",");
    let eth = format!(r#""interfaces": [{{"name": "eth0", "sandbox": "{NETNS}"}}]"#);
    let ip = r#""ips": [{"address": "10.22.0.5/16"}]"#;
    let dns = |key: &str| {
        format!(
            r#"{{{eth}, {ip}, "dns": {{"{key}": [{}]}}}}"#,
            many("\"1.1.1.1\"", 65)
        )
    };
    let at = |address: &str| format!(r#"{{{eth}, "ips": [{{"address": "{address}"}}]}}"#);
    let cases = [
        (
            format!(
                r#"{{{ip}, "interfaces": [{}]}}"#,
                many(r#"{"name": "a"}"#, 65)
            ),
            "65 interfaces",
        ),
        (
            format!(
                r#"{{{eth}, "ips": [{}]}}"#,
                many(r#"{"address": "fd00::5/64"}"#, 65)
            ),
            "65 addresses",
        ),
        (
            format!(
                r#"{{{eth}, {ip}, "routes": [{}]}}"#,
                many(r#"{"dst": "::/0"}"#, 257)
            ),
            "257 routes",
        ),
        (dns("nameservers"), "65 name servers"),
        (dns("search"), "65 DNS search domains"),
        (dns("options"), "65 DNS options"),
        (
            at("0.0.0.0/0"),
            "0.0.0.0/0, which is not the address of a host",
        ),
        (
            at("127.0.0.1/8"),
            "127.0.0.1/8, which is not the address of a host",
        ),
        (
            at("224.0.0.5/4"),
            "224.0.0.5/4, which is not the address of a host",
        ),
    ];
    for (text, expected) in cases {
        let result = result(Version::V1_0_0, &text);
        let reason = invalid_reason(&result, &attachment()).unwrap_or_default();
        assert!(reason.contains(expected), "{expected}: {reason}");
    }
}

#[test]
fn a_plugins_text_in_a_warning_is_short_and_has_no_control_characters() {
    let text = format!(
        r#"{{"interfaces": [{{"name": "eth0", "sandbox": "{NETNS}"}}], "ips": [{{"address": "10.22.0.5/16"}}],
             "dns": {{"domain": "\u001b[2J", "search": ["{}"], "nameservers": ["a\nb"]}}}}"#,
        "a".repeat(10_000)
    );
    let warnings = connected(&result(Version::V1_0_0, &text)).warnings;
    assert_eq!(warnings.len(), 3, "{warnings:?}");
    for warning in warnings {
        assert!(warning.len() < 200, "{}", warning.len());
        assert!(!warning.contains(char::is_control), "{warning:?}");
    }
}

#[test]
fn of_routes_to_one_destination_the_guest_gets_the_one_with_the_lowest_metric() {
    let made = ["10.9.0.0/16 via 10.22.0.7", "10.9.0.0/16 via 10.22.0.8"].map(route);
    let routes = guest_routes(&["10.22.0.5/16".parse().unwrap()], &made).routes;
    assert_eq!(routes, [route("10.9.0.0/16 via 10.22.0.7")]);
}
