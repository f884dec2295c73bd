//! What `api:` of the settings file accepts.
//! Out of scope: the listener.

use super::super::super::Source;
use super::super::{Settings, parse};
use super::*;

fn parsed(text: &str) -> Result<Settings, String> {
    let source = Source {
        name: "sliced.yaml".to_owned(),
        text: text.to_owned(),
    };
    parse(&source).map_err(|problems| problems[0].to_string())
}

fn listener(api: &str) -> ApiListener {
    let settings = parsed(&format!("api: {api}\n")).unwrap();
    settings.api.expect("api").listener().unwrap()
}

#[test]
fn a_listener_is_on_tcp_with_a_token_or_on_a_socket_without() {
    let tcp = |address: &str, auth, tls| ApiListener {
        bind: Bind::Tcp(address.parse().unwrap()),
        auth: Some(auth),
        tls,
        ui: true,
    };
    let unix = |auth| ApiListener {
        bind: Bind::Unix("/run/api.sock".into()),
        auth,
        tls: None,
        ui: true,
    };
    let file = || Some(PathBuf::from("/etc/token"));
    for (text, expected) in [
        ("{}", tcp("127.0.0.1:8080", None, None)),
        (
            "{bind_address: \"::\", port: 443, auth: {token_file: /etc/token}, tls: {cert: /c, key: /k}}",
            tcp("[::]:443", file(), Some(("/c".into(), "/k".into()))),
        ),
        ("{auth: {enabled: true}}", tcp("127.0.0.1:8080", None, None)),
        ("{bind_address: /run/api.sock}", unix(None)),
        ("{socket: /run/api.sock}", unix(None)),
        (
            "{socket: /run/api.sock, auth: {enabled: false}}",
            unix(None),
        ),
        (
            "{socket: /run/api.sock, auth: {enabled: true, token_file: /etc/token}}",
            unix(Some(file())),
        ),
    ] {
        assert_eq!(listener(text), expected, "{text}");
    }
    assert_eq!(parsed("# no api\n").unwrap().api, None);
}

#[test]
fn contradictions_are_reported_with_their_position() {
    for (api, place) in [
        (
            "{auth: {enabled: false}}",
            "1:23: api.auth.enabled: found false, expected true: a TCP listener requires a token",
        ),
        (
            "{bind_address: 10.0.0.1, auth: {enabled: false}}",
            "api.auth.enabled: found false",
        ),
        (
            "{socket: /s, bind_address: 127.0.0.1}",
            "api.socket: has no effect with bind_address",
        ),
        (
            "{socket: /s, auth: {token_file: /t}}",
            "api.auth.token_file: has no effect without",
        ),
        (
            "{socket: /s, port: 1}",
            "api.port: has no effect with a socket",
        ),
        (
            "{socket: /s, tls: {cert: /c, key: /k}}",
            "api.tls: has no effect with a socket",
        ),
        ("{tls: {cert: /c}}", "api.tls: found no key"),
        ("{tls: {key: /c}}", "api.tls: found no cert"),
        ("{tls: {}}", "api.tls: found neither cert nor key"),
        ("{tls: {cert: c, key: /k}}", "api.tls.cert: found \"c\""),
        (
            "{bind_address: localhost}",
            "api.bind_address: found \"localhost\", expected an IPv4 or IPv6 address",
        ),
        (
            "{bind_address: /a/../b}",
            "api.bind_address: found \"/a/../b\", expected the absolute path",
        ),
        ("{bind_address: 7}", "api.bind_address: found 7"),
        ("{socket: s}", "api.socket: found \"s\""),
        ("{ui: no}", "api.ui: found \"no\""),
        ("{socket: /s/}", "api.socket: found \"/s/\""),
        ("{port: 0}", "api.port: found 0"),
        ("{port: 65536}", "api.port: found 65536"),
        ("{auth: true}", "api.auth: found true, expected a mapping"),
        ("{auth: {enabled: yes}}", "api.auth.enabled: found \"yes\""),
        ("{auth: {token: x}}", "unknown key \"token\""),
        ("true", "api: found true"),
    ] {
        let message = parsed(&format!("api: {api}\n")).unwrap_err();
        assert!(message.contains(place), "{api}: {message}");
    }
}

#[test]
fn values_of_the_command_line_replace_those_of_the_file_and_never_turn_off_the_token_of_tcp() {
    let of = |text: &str| match text {
        "" => ApiSettings::default(),
        text => parsed(&format!("api: {text}\n")).unwrap().api.unwrap(),
    };
    let tls = "{port: 443, tls: {cert: /c, key: /k}}";
    for (first, second, expected) in [
        (
            "{port: 81}",
            "{port: 80, bind_address: 10.0.0.1}",
            "10.0.0.1:81",
        ),
        ("{bind_address: 10.0.0.2}", "{port: 80}", "10.0.0.2:80"),
        ("{socket: /s}", tls, "/s"),
        ("{bind_address: /s}", "{socket: /t}", "/s"),
        (
            "{bind_address: 10.0.0.2}",
            "{socket: /s, auth: {enabled: false}}",
            "10.0.0.2:8080",
        ),
        ("", "{socket: /s}", "/s"),
    ] {
        let listener = of(first).or(of(second)).listener().unwrap();
        assert_eq!(listener.bind.to_string(), expected, "{first} {second}");
        let is_tcp = matches!(listener.bind, Bind::Tcp(_));
        assert_eq!(listener.auth.is_some(), is_tcp, "{first} {second}");
    }
}
