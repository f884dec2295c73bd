//! The web page of the API in a real browser: what it shows and does, by keyboard, and that nothing in it acts or leaves the listener.
//! Out of scope: the listener (`api_listener`); what requests answer (`contract`).

mod browser;
mod files;
mod keyboard;
mod live;
mod many;
mod session;

use std::fs;

use serde_json::json;

use self::browser::Browser;
use super::api_listener::{PORT, configure, listens};
use test_support::harness::{Harness, with_daemon};

fn token(harness: &Harness) -> String {
    let text = fs::read_to_string(harness.state().join("api/token")).expect("a token");
    text.trim().to_owned()
}

/// Runs a test with a daemon that has a page, and a browser that shows it.
fn with_page(test: impl FnOnce(Harness, &mut Browser) + Send) {
    with_daemon(|harness| {
        configure(&harness, "api: {}\n");
        listens(&harness, PORT);
        let mut browser = Browser::start();
        browser.run("await page.goto('http://127.0.0.1:8080/');");
        test(harness, &mut browser);
        is_clean(&mut browser);
    });
}

fn sign_in(harness: &Harness, browser: &mut Browser) {
    browser.run_with(
        &token(harness).into(),
        "await page.getByLabel('Token of the API').fill(data);
         await page.keyboard.press('Enter');
         await page.getByRole('heading', { name: 'VMs' }).waitFor();
         await shows(/^Live$/);",
    );
}

/// No violation of the policy, no error of the page, and no request to anyone else, during the whole test.
fn is_clean(browser: &mut Browser) {
    let seen = browser.run("return seen;");
    assert_eq!(seen["violations"], json!([]));
    let texts = |key: &str| -> Vec<String> {
        let all = seen[key].as_array().expect("texts").iter();
        all.map(|text| text.as_str().expect("a text").to_owned())
            .collect()
    };
    let requests = texts("requests");
    assert!(requests.len() > 5, "{requests:?}");
    for request in requests {
        let url = request.split_once(' ').expect("a method").1;
        let is_own = ["http://127.0.0.1:8080/", "ws://127.0.0.1:8080/"]
            .iter()
            .any(|start| url.starts_with(start));
        assert!(is_own, "{request}");
    }
    for message in texts("messages") {
        // The browser reports statuses and lost connections, which tests provoke.
        let is_expected = message.contains("Failed to load resource")
            || message.contains("WebSocket connection to")
            || message.contains("net::ERR_");
        assert!(is_expected, "{message}");
    }
}

/// axe finds no serious fault, in light and in dark.
#[track_caller]
fn is_accessible(browser: &mut Browser) {
    assert_eq!(browser.run("return faults();"), json!([]));
}

/// Creates a VM on demand by the API.
fn create(browser: &mut Browser, harness: &Harness, group: &str, tags: &[&str]) -> String {
    let data = json!({"token": token(harness), "group": group, "tags": tags});
    let created = browser.run_with(
        &data,
        "const response = await context.request.post(`http://127.0.0.1:8080/hostgroup/${data.group}/nodes`,
             { headers: { authorization: `Bearer ${data.token}` }, data: { tags: data.tags } });
         return response.json();",
    );
    let name = created["hostname"].as_str();
    name.unwrap_or_else(|| panic!("{created}")).to_owned()
}
