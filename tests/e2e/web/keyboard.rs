//! A real guest by keyboard alone: its console, a shell, and questions before it is paused or deleted.
//! Out of scope: lists.

use serde_json::json;

use super::browser::Browser;
use super::{create, is_accessible, token, with_page};
use crate::guest_agent::succeeds;
use crate::guests::{guest_dir, kernel};
use test_support::harness::{self, Harness};
use test_support::linux::guests;

#[test]
fn a_guest_is_used_paused_and_deleted_by_keyboard_alone() {
    with_page(|harness, browser| {
        let initrd = guest_dir().join("initrd-agent").display().to_string();
        let slots = harness::slots(0, "");
        harness.apply(&guests(&slots, &kernel(), &initrd, ""));
        let vm = create(browser, &harness, "sandbox", &["name=web"]);
        harness.ctl(&format!("wait vm/{vm} --for agent --timeout 60s"));
        browser.run_with(
            &json!({"token": token(&harness), "vm": vm}),
            "await page.keyboard.type(data.token);
             await tabTo('Sign in');
             await page.keyboard.press('Enter');
             await shows(data.vm);
             await tabTo(data.vm);
             await page.keyboard.press('Enter');
             await page.getByRole('heading', { name: data.vm }).waitFor();
             await tabTo('Console');
             await page.keyboard.press('Enter');
             await prints('BusyBox');
             await shot('console');",
        );
        is_accessible(browser);
        console(browser, &harness, &vm);
        shell(browser);
        is_accessible(browser);
        questions(browser, &harness, &vm);
    });
}

/// What a guest writes is shown, and does nothing else.
fn console(browser: &mut Browser, harness: &Harness, vm: &str) {
    // Tab enters the terminal, and leaves it.
    browser.run_with(
        &vm.into(),
        "await tabTo(`Console of ${data}, read-only`);
         await page.keyboard.press('PageUp');
         await tabTo('Licences');",
    );
    let script = "printf '\\033]8;;http://192.0.2.1/\\033\\\\a-link\\033]8;;\\033\\\\ \\033]52;c;b3duZWQ=\\007\\033]0;owned\\007\\033[c\\033[6n\\033[21t <img src=x onerror=alert(1)> hostile-end\\n' > /dev/console";
    let arguments = ["vm", "exec", vm, "--uid", "0", "--", "sh", "-c", script];
    succeeds(harness, &arguments);
    let inert = browser.run(
        "await prints('<img src=x onerror=alert(1)> hostile-end');
         await page.getByText('a-link').first().hover({ force: true });
         return page.evaluate(() => [document.querySelectorAll('.xterm a, .xterm img').length, document.title.includes('owned')]);",
    );
    assert_eq!(inert, json!([0, false]));
    let sent =
        browser.run("return seen.requests.filter((url) => /^(POST|WS|PUT|DELETE)/.test(url));");
    assert_eq!(sent, json!([]), "answers of the terminal");
}

fn shell(browser: &mut Browser) {
    browser.run(
        "await page.locator('h1').focus();
         await tabTo('Shell');
         await page.keyboard.press('Enter');
         await page.getByRole('button', { name: 'Open a shell' }).waitFor();
         await tabTo('Open a shell');
         await page.keyboard.press('Enter');
         await shows('Connected');
         await page.keyboard.type('echo answer-$((6 * 7)); stty size\\n');
         await prints('answer-42');
         await page.keyboard.type(\"printf '\\\\033[38;2;255;120;0mcolour\\\\033[0m \\\\033]8;;http://192.0.2.1/\\\\033\\\\\\\\no-link\\\\033]8;;\\\\033\\\\\\\\\\\\n'\\n\");
         await page.waitForFunction(() => [...document.querySelectorAll('.xterm-rows span')].some((span) => span.textContent === 'colour' && getComputedStyle(span).color === 'rgb(255, 120, 0)'));
         await shot('shell');
         await page.keyboard.press('Control+]');
         if (await page.evaluate(() => document.activeElement.textContent) !== 'Disconnect') throw new Error('the terminal is not left');
         await page.keyboard.press('Enter');
         await shows('Disconnected');
         await page.keyboard.press('Enter');
         await shows('Connected');
         await page.keyboard.type('exit 7\\n');
         await shows('Ended with status 7');",
    );
}

/// Cancelled questions do nothing.
fn questions(browser: &mut Browser, harness: &Harness, vm: &str) {
    let state = || {
        let vm = harness.get(&format!("vm {vm}"));
        vm["status"]["vmm"]["state"].clone()
    };
    let ask = |browser: &mut Browser, verb: &str| {
        browser.run_with(
            &json!({"verb": verb}),
            "await page.locator('h1').focus();
             await tabTo(data.verb);
             await page.keyboard.press('Enter');
             await page.getByRole('dialog').waitFor();",
        );
    };
    for leave in ["Escape", "Enter"] {
        ask(browser, "Pause");
        // The focus is on Cancel.
        browser.run_with(
            &leave.into(),
            "await page.keyboard.press(data);
             await page.locator('dialog').waitFor({ state: 'detached' });
             const focused = await page.evaluate(() => document.activeElement.textContent);
             if (focused !== 'Pause') throw new Error(focused);",
        );
    }
    ask(browser, "Delete");
    is_accessible(browser);
    browser.run("await shot('question'); await page.keyboard.press('Escape'); await page.locator('dialog').waitFor({ state: 'detached' });");
    assert_eq!(state(), "running");
    assert_eq!(harness.messages(&format!("vm/{vm}"), "Power"), [""; 0]);
    let agree = |browser: &mut Browser, label: String, expected: &str| {
        browser.run_with(
            &json!([label, expected]),
            "await tabTo(data[0]);
             await page.keyboard.press('Enter');
             await shows(data[1]);",
        );
    };
    ask(browser, "Pause");
    agree(browser, format!("Pause {vm}"), "pause requested");
    browser.run("await page.locator('.pill', { hasText: 'Paused' }).first().waitFor();");
    assert_eq!(state(), "paused");
    ask(browser, "Resume");
    agree(browser, format!("Resume {vm}"), "resume requested");
    browser.run("await page.locator('.title .pill', { hasText: 'Running' }).waitFor();");
    assert_eq!(state(), "running");
    ask(browser, "Delete");
    agree(browser, format!("Delete {vm}"), "deletion requested");
    browser.run("await shows(/does not exist any more/);");
    harness.until("it is gone", || harness.vms().is_empty().then_some(()));
}
