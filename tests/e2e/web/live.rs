//! Lists, conditions and events as they change, text of users, and where the token is.
//! Out of scope: guests.

use serde_json::json;

use super::browser::Browser;
use super::{create, is_accessible, sign_in, token, with_page};
use test_support::harness::group;

/// A tag that would run a script if it were markup.
const HOSTILE: &str =
    "x <img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>";

/// What the tests rely on: a fault and a violation that are made are found.
fn faults_are_found(browser: &mut Browser) {
    let faults = browser.run(
        "await page.evaluate(() => { document.querySelector('h1').style.color = '#eee'; });
         const found = await faults();
         await page.evaluate(() => { document.querySelector('h1').style.color = ''; });
         return found;",
    );
    let text = faults[0].as_str().unwrap_or_default();
    assert!(text.contains("color-contrast"), "{faults}");
    let violations = browser.run(
        "await page.evaluate(() => {
             const style = document.createElementNS('http://www.w3.org/1999/xhtml', 'style');
             style.textContent = 'h1 { color: red }';
             document.head.append(style);
             style.remove();
             try { document.body.insertAdjacentHTML('beforeend', '<b>markup</b>'); } catch {}
         });
         while (seen.violations.length < 2) await page.waitForTimeout(10);
         seen.messages.length = 0;
         return seen.violations.splice(0);",
    );
    let found = violations.to_string();
    assert!(
        found.contains("style-src") && found.contains("trusted-types"),
        "{found}"
    );
}

#[test]
fn lists_conditions_and_events_are_live_and_the_token_is_in_memory_only() {
    with_page(|harness, browser| {
        let manifest = group("a", 2, "169.254.100.0/22", "");
        harness.apply(&manifest);
        is_accessible(browser);
        faults_are_found(browser);
        browser.run(
            "await shot('sign-in');
             await page.getByLabel('Token of the API').fill('0123456789abcdef0123456789abcdef');
             await page.keyboard.press('Enter');
             await shows('This token is not valid.');",
        );
        is_accessible(browser);
        sign_in(&harness, browser);
        browser.run("await shows('a-2'); await shot('vms');");
        is_accessible(browser);
        // What follows is shown without a request of the page.
        let requests = browser.run("return seen.requests.length;");
        harness.ctl("scale hg a --count 3");
        let hostile = create(browser, &harness, "a", &["k=v", HOSTILE]);
        browser.run_with(
            &json!({"vm": hostile, "tag": HOSTILE}),
            "await shows('a-3');
             await page.getByRole('row', { name: data.vm }).getByText('Ready').waitFor();
             await shows(data.tag);
             await page.getByLabel(/^Filter/).fill('k=v');
             await shows('1 of 4');
             await page.getByLabel(/^Filter/).fill('');
             await page.getByRole('link', { name: 'Groups' }).click();
             await page.getByRole('row', { name: 'a' }).getByText('4 of 4 ready').waitFor();",
        );
        is_accessible(browser);
        browser.run(
            "await shot('groups');
             await page.getByRole('navigation', { name: 'Views' }).getByRole('link', { name: 'Events' }).click();
             await page.getByRole('row', { name: /Added/ }).first().waitFor();
             await shot('events');",
        );
        is_accessible(browser);
        browser.run_with(
            &hostile.clone().into(),
            "await page.getByRole('link', { name: `vm/${data}` }).first().click();
             await page.getByRole('heading', { name: data }).waitFor();
             await page.getByRole('rowheader', { name: 'Firewall' }).waitFor();
             await shot('vm');",
        );
        is_accessible(browser);
        harness.ctl(&format!("delete vm/{hostile} --wait"));
        browser.run("await shows(/does not exist any more/);");
        browser.run(
            "await page.goto('http://127.0.0.1:8080/#/groups/a');
             await page.getByRole('rowheader', { name: 'Ready' }).waitFor();
             await shows(/created by/);
             await page.getByRole('link', { name: 'a-1' }).waitFor();",
        );
        is_accessible(browser);
        assert_eq!(browser.run("return seen.requests.length;"), requests);
        let title = browser.run("return page.title();");
        assert_eq!(title, "a · slice");
        let data = json!(token(&harness));
        let found = browser.run_with(
            &data,
            "const inside = await page.evaluate(async (token) => {
                 const stores = [JSON.stringify(localStorage), JSON.stringify(sessionStorage), document.cookie, location.href,
                     document.documentElement.outerHTML, JSON.stringify(await indexedDB.databases()), JSON.stringify(await caches.keys()),
                     ...[...document.querySelectorAll('input')].map((input) => input.value), JSON.stringify(history.state)];
                 return [stores.some((text) => text.includes(token)), localStorage.length + sessionStorage.length];
             }, data);
             const urls = seen.requests.some((url) => url.includes(data));
             const cookies = (await context.cookies()).length;
             return [...inside, urls, cookies];",
        );
        assert_eq!(found, json!([false, 0, false, 0]));
        browser.run(
            "await page.reload();
             await page.getByLabel('Token of the API').waitFor();",
        );
    });
}
