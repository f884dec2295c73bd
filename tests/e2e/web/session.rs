//! Sessions: daemons that end, tokens that change, listeners without a page or without a token, and pages of other origins.
//! Out of scope: what the page shows.

use std::fs;
use std::process::Command;

use serde_json::json;

use super::browser::Browser;
use super::{is_clean, sign_in, token, with_page};
use crate::api_listener::{PORT, configure, listens};
use test_support::harness::{group, with_daemon};

#[test]
fn the_page_reconnects_to_a_new_daemon_and_asks_for_a_token_that_is_new() {
    with_page(|mut harness, browser| {
        harness.apply(&group("a", 1, "169.254.100.0/22", ""));
        sign_in(&harness, browser);
        browser.run("await shows('a-1');");
        harness.stop();
        browser.run("await shows(/^Reconnecting$/); await shows('a-1');");
        harness.start();
        harness.ctl("scale hg a --count 2");
        browser.run("await shows(/^Live$/); await shows('a-2');");
        harness.kill();
        harness.start();
        harness.ctl("scale hg a --count 1 --wait");
        browser.run(
            "await shows(/^Live$/); await page.getByText('a-2').waitFor({ state: 'detached' });",
        );
        let file = harness.state().join("api/token");
        fs::remove_file(&file).expect("removed");
        harness.until("a new token", || file.exists().then_some(()));
        browser.run(
            "await shows('invalid token. Enter the current token.');
             if (await page.getByText('a-1').count() > 0) throw new Error('the list is shown');",
        );
        sign_in(&harness, browser);
        browser.run("await shows('a-1'); await page.getByRole('button', { name: 'Sign out' }).click(); await page.getByLabel('Token of the API').waitFor();");
        configure(&harness, "api: {ui: false}\n");
        browser.run_with(
            &token(&harness).into(),
            "const get = (headers) => context.request.get('http://127.0.0.1:8080/', { headers });
             // Connections end when the listener changes.
             while ((await get({}).catch(() => null))?.status() !== 401);
             const response = await get({ authorization: `Bearer ${data}` });
             if (response.status() !== 404) throw new Error(await response.text());
             const { error } = await response.json();
             if (error !== 'path / not found') throw new Error(error);",
        );
    });
}

#[test]
fn a_socket_without_a_token_has_a_page_that_asks_for_none_and_other_origins_are_refused() {
    with_daemon(|harness| {
        let socket = harness.run.join("api.sock");
        configure(
            &harness,
            &format!("api: {{socket: {}}}\n", socket.display()),
        );
        harness.until("the socket", || socket.exists().then_some(()));
        harness.apply(&group("a", 1, "169.254.100.0/22", ""));
        // As a proxy that keeps the header Host.
        let mut proxy = Command::new("socat")
            .arg("TCP-LISTEN:8080,bind=127.0.0.1,fork,reuseaddr")
            .arg(format!("UNIX-CONNECT:{}", socket.display()))
            .spawn()
            .expect("socat");
        listens(&harness, PORT);
        let mut browser = Browser::start();
        browser.run(
            "await page.goto('http://127.0.0.1:8080/');
             await shows('a-1');
             if (await page.getByRole('button', { name: 'Sign out' }).isVisible()) throw new Error('a session');",
        );
        is_clean(&mut browser);
        // A page of another origin, here of another name of this host, which has no policy.
        let statuses = browser.run(
            "await page.goto('http://localhost:8080/v1/version');
             const statuses = [];
             for (const host of ['127.0.0.1', 'localhost']) {
                 const answered = page.waitForResponse((response) => response.request().method() === 'POST');
                 await page.evaluate((host) => fetch(`http://${host}:8080/v1/gc?dry_run=true`, { method: 'POST', mode: 'no-cors' }).then(() => {}), host);
                 statuses.push((await answered).status());
             }
             return statuses;",
        );
        assert_eq!(statuses, json!([403, 200]));
        let _ = proxy.kill();
        let _ = proxy.wait();
    });
}
