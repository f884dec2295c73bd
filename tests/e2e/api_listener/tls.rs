//! TLS: certificates, their rotation, and clients that do not trust them.
//! Out of scope: reading the files (`src/api_server/tls.rs`).

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use test_support::harness::{Harness, group, with_daemon};

use super::{PORT, bearer, configure, connect, exchange, is_open, listens, reported, text};

/// A private authority, and the certificate of a server.
pub struct Authority {
    pub ca: String,
    pub cert: String,
    pub key: String,
}

pub fn authority(name: &str) -> Authority {
    let ca_key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::new(Vec::new()).expect("parameters");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, name);
    let ca = params.self_signed(&ca_key).expect("a certificate");
    let issuer = Issuer::new(params, ca_key);
    let key = KeyPair::generate().expect("a key");
    let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
    let leaf = CertificateParams::new(names).expect("parameters");
    let cert = leaf.signed_by(&key, &issuer).expect("a certificate");
    Authority {
        ca: ca.pem(),
        cert: cert.pem(),
        key: key.serialize_pem(),
    }
}

pub fn save(harness: &Harness, name: &str, content: &str) -> PathBuf {
    let (new, path) = (
        harness.dir.path().join("new"),
        harness.dir.path().join(name),
    );
    fs::write(&new, content).expect("written");
    fs::set_permissions(&new, PermissionsExt::from_mode(0o600)).expect("changed");
    fs::rename(&new, &path).expect("renamed");
    path
}

/// Configures TLS; the options of slicectl for it.
pub fn with_tls(harness: &Harness, authority: &Authority) -> String {
    let cert = save(harness, "tls.crt", &authority.cert);
    let key = save(harness, "tls.key", &authority.key);
    let ca = save(harness, "ca.pem", &authority.ca);
    let settings = format!(
        "api: {{tls: {{cert: {}, key: {}}}}}\n",
        cert.display(),
        key.display()
    );
    configure(harness, &settings);
    listens(harness, PORT);
    let token = harness.state().join("api/token");
    format!(
        "--url https://localhost:{PORT} --token-file {} --ca {}",
        token.display(),
        ca.display()
    )
}

#[test]
fn slicectl_works_over_tls_and_trusts_the_given_authority_alone() {
    with_daemon(|harness| {
        let options = with_tls(&harness, &authority("one"));
        let path = harness.write("a.yaml", &group("a", 1, "169.254.100.0/22", ""));
        harness.ctl(&format!("{options} apply -f {path} --wait"));
        let vms = harness.ctl(&format!("{options} get vms"));
        assert!(vms.contains("a-1"), "{vms}");
        // By address as well as by name.
        harness.ctl(&format!(
            "{} get vms",
            options.replace("localhost", "127.0.0.1")
        ));
        let events = harness.ctl(&format!("{options} events"));
        assert!(events.contains("API token (127.0.0.1)"), "{events}");
        harness.ctl(&format!("{options} delete hostgroup/a --wait"));
        let other = save(&harness, "other.pem", &authority("two").ca);
        let ca = harness.dir.path().join("ca.pem");
        let options = options.replace(&ca.display().to_string(), &other.display().to_string());
        let error = harness.refused(&format!("{options} get vms"), 1);
        assert!(error.contains("certificate"), "{error}");
        // Without TLS there is no answer, and no token is needed to learn that.
        let (status, answer) = exchange(connect(PORT), &text("GET /healthz", ""));
        assert_eq!(status, 0, "{answer}");
    });
}

#[test]
fn a_certificate_is_replaced_without_a_restart_and_a_broken_one_is_not_used() {
    with_daemon(|harness| {
        let options = with_tls(&harness, &authority("one"));
        harness.ctl(&format!("{options} get vms"));
        save(&harness, "tls.crt", "broken\n");
        reported(
            &harness,
            "ApiListenerFailed",
            "API keeps its previous certificate",
        );
        harness.ctl(&format!("{options} get vms"));
        let next = authority("two");
        save(&harness, "tls.key", &next.key);
        save(&harness, "tls.crt", &next.cert);
        reported(
            &harness,
            "ApiListenerChanged",
            "API has another certificate",
        );
        save(&harness, "ca.pem", &next.ca);
        harness.ctl(&format!("{options} get vms"));
        // A key that others can read is not used.
        let key = harness.dir.path().join("tls.key");
        fs::set_permissions(&key, PermissionsExt::from_mode(0o644)).expect("changed");
        reported(
            &harness,
            "ApiListenerFailed",
            "others may access it (mode 0644)",
        );
        harness.ctl(&format!("{options} get vms"));
        fs::set_permissions(&key, PermissionsExt::from_mode(0o600)).expect("changed");
    });
}

#[test]
fn what_is_to_be_encrypted_is_never_served_without() {
    with_daemon(|harness| {
        configure(&harness, "api: {}\n");
        listens(&harness, PORT);
        assert!(bearer(&harness).len() > 40);
        let missing = harness.dir.path().join("missing").display().to_string();
        let settings = format!("api: {{tls: {{cert: {missing}, key: {missing}}}}}\n");
        configure(&harness, &settings);
        reported(&harness, "ApiListenerFailed", "the file does not exist");
        assert!(!is_open(PORT));
    });
}

#[test]
fn a_handshake_that_does_not_end_is_ended() {
    with_daemon(|harness| {
        let options = with_tls(&harness, &authority("one"));
        let begin = Instant::now();
        let mut silent = connect(PORT);
        let mut slow = connect(PORT);
        std::io::Write::write_all(&mut slow, b"\x16\x03\x01").expect("sent");
        harness.ctl(&format!("{options} get vms"));
        for stream in [&mut silent, &mut slow] {
            let mut rest = Vec::new();
            let _ = std::io::Read::read_to_end(stream, &mut rest);
        }
        assert!(
            begin.elapsed() < Duration::from_secs(40),
            "{:?}",
            begin.elapsed()
        );
    });
}
