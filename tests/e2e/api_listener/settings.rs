//! Settings that cannot be applied: what listens then, with which certificate and token.
//! Out of scope: files that change while the settings stay (`tls`, `token`).

use std::collections::BTreeSet;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use test_support::harness::{Harness, with_daemon};
use test_support::kernel::run;

use super::tls::{Authority, authority, save};
use super::{configure, is_open, listens, reported};

/// Where it listens, and where it is to listen next.
const BEFORE: u16 = 8081;
const NEXT: u16 = 8082;

/// What listens after the change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Listens {
    /// What did: connections last.
    Unchanged,
    /// What did, with the token of the new settings.
    WithNewToken,
    Nothing,
}

struct Case {
    /// Whether it listens with TLS before.
    tls: bool,
    /// The settings after the change; `DIR` is a directory.
    settings: &'static str,
    /// What the event has; none: only the log reports it.
    message: &'static str,
    listens: Listens,
}

const fn case(tls: bool, settings: &'static str, message: &'static str, listens: Listens) -> Case {
    Case {
        tls,
        settings,
        message,
        listens,
    }
}

use Listens::{Nothing, Unchanged, WithNewToken};

const CASES: [Case; 19] = [
    case(
        false,
        "port: 8082",
        "API still listens on 127.0.0.1:8081 (token, not encrypted): api.port: cannot listen on 127.0.0.1:8082: Address already in use",
        Unchanged,
    ),
    case(
        false,
        "port: 8081, bind_address: 192.0.2.1",
        "api.bind_address: cannot listen on 192.0.2.1:8081",
        Unchanged,
    ),
    // The old socket is in the way of the new one, and so is another one.
    case(
        false,
        "port: 8081, bind_address: 0.0.0.0",
        "api.port: cannot listen on 0.0.0.0:8081",
        Unchanged,
    ),
    case(
        false,
        "socket: DIR/missing/api.sock",
        "api.socket: cannot bind the socket DIR/missing/api.sock",
        Unchanged,
    ),
    case(
        false,
        "socket: DIR/file",
        "api.socket: cannot create the socket DIR/file",
        Unchanged,
    ),
    case(
        false,
        "port: 8082, auth: {token_file: DIR/other}",
        "api.port: cannot listen",
        WithNewToken,
    ),
    case(
        false,
        "port: 8081, auth: {token_file: DIR/short}",
        "API does not listen: api.auth.token_file: ",
        Nothing,
    ),
    case(
        false,
        "port: 8083, auth: {token_file: DIR/short}",
        "API does not listen: api.auth.token_file: ",
        Nothing,
    ),
    // What is to be encrypted is not served without.
    case(
        false,
        "port: 8081, tls: {cert: DIR/none, key: DIR/tls.key}",
        "API does not listen: api.tls.cert: ",
        Nothing,
    ),
    case(
        false,
        "port: 8083, tls: {cert: DIR/none, key: DIR/tls.key}",
        "API does not listen: api.tls.cert: ",
        Nothing,
    ),
    case(false, "port: 8081, auth: {enabled: false}", "", Unchanged),
    case(
        true,
        "port: 8082, tls: {cert: DIR/tls.crt, key: DIR/tls.key}",
        "API still listens on 127.0.0.1:8081 (token, TLS): api.port: ",
        Unchanged,
    ),
    case(
        true,
        "port: 8083, tls: {cert: DIR/none, key: DIR/tls.key}",
        "api.tls.cert: cannot use the certificate DIR/none: the file does not exist",
        Unchanged,
    ),
    case(
        true,
        "port: 8083, tls: {cert: DIR/short, key: DIR/tls.key}",
        "api.tls.cert: cannot use the certificate DIR/short",
        Unchanged,
    ),
    case(
        true,
        "port: 8083, tls: {cert: DIR/tls.crt, key: DIR/two.key}",
        "api.tls.cert: cannot use the certificate DIR/tls.crt: with its key",
        Unchanged,
    ),
    case(
        true,
        "port: 8083, tls: {cert: DIR/tls.crt, key: DIR/open.key}",
        "api.tls.key: cannot use the private key DIR/open.key: others may access it",
        Unchanged,
    ),
    case(
        true,
        "port: 8081, tls: {cert: DIR/none, key: DIR/tls.key}",
        "API keeps its previous certificate: api.tls.cert: ",
        Unchanged,
    ),
    case(
        true,
        "port: 8081, tls: {cert: DIR/tls.crt, key: DIR/two.key}, auth: {token_file: DIR/other}",
        "API keeps its previous certificate: api.tls.cert: ",
        WithNewToken,
    ),
    case(
        true,
        "port: 8083, tls: {cert: DIR/tls.crt, key: DIR/tls.key}, auth: {token_file: DIR/short}",
        "API does not listen: api.auth.token_file: ",
        Nothing,
    ),
];

/// The options of slicectl for what listened before, with this token.
fn options(dir: &Path, tls: bool, token: &Path) -> Vec<String> {
    let (scheme, ca) = match tls {
        true => (
            "https",
            vec!["--ca".to_owned(), dir.join("ca.pem").display().to_string()],
        ),
        false => ("http", Vec::new()),
    };
    let url = format!("{scheme}://localhost:{BEFORE}");
    let token = token.display().to_string();
    let options = ["--url".to_owned(), url, "--token-file".to_owned(), token];
    options.into_iter().chain(ca).collect()
}

/// A stream of events on a connection to what listened before.
fn follow(options: &[String]) -> Child {
    let mut command = Command::new(test_support::programs::built("slicectl"));
    command.args(options).args(["events", "--watch"]);
    let child = command.stdin(Stdio::null()).stdout(Stdio::null());
    child.stderr(Stdio::null()).spawn().expect("slicectl")
}

/// The connections to what listened before, by the ports of the clients. A stream that ends is opened again from another port.
fn streams() -> BTreeSet<String> {
    let text = run(&format!("ss -Htn state established dport = :{BEFORE}"));
    let ports = text
        .lines()
        .filter_map(|line| line.split_whitespace().nth(2));
    ports.map(str::to_owned).collect()
}

#[test]
fn settings_that_cannot_be_applied_change_nothing_unless_they_protect() {
    with_daemon(|harness| {
        let dir = harness.dir.path().to_owned();
        let (one, two): (Authority, Authority) = (authority("one"), authority("two"));
        for (name, text) in [
            ("tls.crt", &one.cert),
            ("tls.key", &one.key),
            ("ca.pem", &one.ca),
            ("two.key", &two.key),
            ("open.key", &one.key),
            (
                "other",
                &"other-token-of-more-than-16-characters".to_owned(),
            ),
            ("short", &"short".to_owned()),
            ("file", &String::new()),
        ] {
            save(&harness, name, text);
        }
        run(&format!("chmod 644 {}", dir.join("open.key").display()));
        let _taken = TcpListener::bind(("127.0.0.1", NEXT)).expect("a listener");
        let _beside = TcpListener::bind(("127.0.0.2", BEFORE)).expect("a listener");
        for case in &CASES {
            check(&harness, &dir, case);
        }
    });
}

fn check(harness: &Harness, dir: &Path, case: &Case) {
    let place = dir.display().to_string();
    let settings = case.settings.replace("DIR", &place);
    eprintln!("TLS {}: {settings}", case.tls);
    let base = match case.tls {
        true => format!("port: {BEFORE}, tls: {{cert: {place}/tls.crt, key: {place}/tls.key}}"),
        false => format!("port: {BEFORE}"),
    };
    configure(harness, &format!("api: {{{base}}}\n"));
    let (own, other) = (harness.state().join("api/token"), dir.join("other"));
    let works = |token: &Path| {
        let arguments = options(dir, case.tls, token).join(" ");
        let output = harness.try_ctl(&format!("{arguments} version -o json"));
        output.status.success() && String::from_utf8_lossy(&output.stdout).contains("\"pid\"")
    };
    harness.until("the settings before", || works(&own).then_some(()));
    let mut stream = follow(&options(dir, case.tls, &own));
    let opened = harness.until("a stream", || {
        let streams = streams();
        (streams.len() == 1).then_some(streams)
    });
    let log = harness.log().len();
    configure(harness, &format!("api: {{{settings}}}\n"));
    let message = match case.message {
        "" => "the settings file is invalid".to_owned(),
        message => message.replace("DIR", &place),
    };
    // Events with the same message are one.
    harness.until(&message, || {
        harness.log()[log..].contains(&message).then_some(())
    });
    if !case.message.is_empty() {
        reported(harness, "ApiListenerFailed", &message);
        harness.until("doctor", || {
            let doctor = harness.try_ctl("doctor -o json").stdout;
            String::from_utf8_lossy(&doctor)
                .contains(&message)
                .then_some(())
        });
    }
    if case.listens != Nothing {
        assert!(works(&own) == (case.listens == Unchanged), "{settings}");
        assert!(
            works(&other) == (case.listens == WithNewToken),
            "{settings}"
        );
    }
    sleep(Duration::from_millis(100));
    assert_eq!(is_open(BEFORE), case.listens != Nothing, "{settings}");
    assert!(!is_open(8083), "{settings}");
    let lasts = opened.is_subset(&streams());
    assert_eq!(lasts, case.listens == Unchanged, "{settings}");
    let _ = stream.kill();
    let _ = stream.wait();
}

#[test]
fn the_next_socket_listens_before_the_previous_one_is_closed_and_a_problem_ends() {
    with_daemon(|harness| {
        configure(&harness, &format!("api: {{port: {BEFORE}}}\n"));
        listens(&harness, BEFORE);
        let taken = TcpListener::bind(("127.0.0.1", NEXT)).expect("a listener");
        configure(&harness, &format!("api: {{port: {NEXT}}}\n"));
        reported(&harness, "ApiListenerFailed", "API still listens on");
        drop(taken);
        harness.until("it moves", || (!is_open(BEFORE)).then_some(()));
        listens(&harness, NEXT);
        let doctor = harness.try_ctl("doctor -o json").stdout;
        assert!(!String::from_utf8_lossy(&doctor).contains("API listener"));
        // One of the two is open at any moment.
        for port in [BEFORE, NEXT, BEFORE, NEXT] {
            configure(&harness, &format!("api: {{port: {port}}}\n"));
            harness.until("it moves", || {
                let ports = [BEFORE, NEXT];
                let open = ports.map(|port| TcpStream::connect(("127.0.0.1", port)).is_ok());
                // The second is asked after the first: once more, if it has moved between.
                assert!(open.contains(&true) || ports.iter().any(|port| is_open(*port)));
                let other = ports[usize::from(port == BEFORE)];
                (is_open(port) && !is_open(other)).then_some(())
            });
        }
        // Back to what listens: nothing is opened, and the problem is over.
        let _taken = TcpListener::bind(("127.0.0.1", BEFORE)).expect("a listener");
        configure(&harness, &format!("api: {{port: {BEFORE}}}\n"));
        reported(
            &harness,
            "ApiListenerFailed",
            "api.port: cannot listen on 127.0.0.1:8081",
        );
        let log = harness.log().len();
        configure(&harness, &format!("api: {{port: {NEXT}}}\n"));
        let message = format!("API listens on 127.0.0.1:{NEXT} (token, not encrypted)");
        harness.until("it is reported", || {
            harness.log()[log..].contains(&message).then_some(())
        });
        // A wider address at the same port.
        configure(
            &harness,
            &format!("api: {{port: {NEXT}, bind_address: 0.0.0.0}}\n"),
        );
        reported(
            &harness,
            "ApiListenerChanged",
            "API listens on 0.0.0.0:8082",
        );
        assert!(is_open(NEXT));
    });
}
