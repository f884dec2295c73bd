//! The web page of the API in a real browser: what it shows and does, by keyboard, and that nothing in it acts or leaves the listener.
//! Out of scope: the listener (`api_listener`); what requests answer (`contract`).

mod browser;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::json;

use self::browser::{Browser, installed};
use super::api_listener::{PORT, configure, listens};
use super::guests::{guest_dir, kernel};
use test_support::harness::{self, Harness, group, with_daemon};
use test_support::linux::guests;

/// A tag that would run a script if it were markup.
const HOSTILE: &str =
    "x <img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>";

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
        harness.ctl("scale a 3");
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
    let words = ["vm", "exec", vm, "--uid", "0", "--", "sh", "-c", script];
    super::guest_agent::succeeds(harness, &words);
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
    let is_asked_again = "if (await page.evaluate(() => document.querySelector('dialog')) !== null) throw new Error('a dialog');";
    for leave in ["Escape", "Enter"] {
        ask(browser, "Pause");
        // The focus is on Cancel.
        browser.run_with(
            &leave.into(),
            &format!("await page.keyboard.press(data); {is_asked_again}"),
        );
    }
    ask(browser, "Delete");
    is_accessible(browser);
    browser.run("await shot('question'); await page.keyboard.press('Escape');");
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

#[test]
fn the_page_reconnects_to_a_new_daemon_and_asks_for_a_token_that_is_new() {
    with_page(|mut harness, browser| {
        harness.apply(&group("a", 1, "169.254.100.0/22", ""));
        sign_in(&harness, browser);
        browser.run("await shows('a-1');");
        harness.stop();
        browser.run("await shows(/^Reconnecting$/); await shows('a-1');");
        harness.start();
        harness.ctl("scale a 2");
        browser.run("await shows(/^Live$/); await shows('a-2');");
        harness.kill();
        harness.start();
        harness.ctl("scale a 1 --wait");
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
             for (;;) if ((await get({})).status() === 401) break;
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

#[test]
fn a_thousand_vms_do_not_freeze_the_page() {
    with_page(|harness, browser| {
        harness.apply(&group("a", 1, "169.254.100.0/22", ""));
        // The lines of a watch with a thousand copies of one VM, and a change of each of them.
        let figures = browser.run_with(
            &json!({"vm": harness.get("vm a-1"), "group": harness.get("hostgroup a"), "token": token(&harness)}),
            "const line = (type, object) => JSON.stringify({ type, resource_version: '0000000000000001-1', object }) + '\\n';
             const copy = (number, ready) => ({ ...data.vm, metadata: { ...data.vm.metadata, name: `a-${number}` }, status: { ...data.vm.status, ready } });
             let lines = line('ADDED', data.group);
             for (let number = 1; number <= 1000; number += 1) lines += line('ADDED', copy(number, true));
             lines += JSON.stringify({ type: 'SYNCED', resource_version: '0000000000000001-1' }) + '\\n';
             let changes = '';
             for (let number = 1; number <= 1000; number += 1) changes += line('MODIFIED', copy(number, false));
             let asked = 0;
             await page.route('**/v1/watch?*', async (route) => {
                 asked += 1;
                 const body = [lines, changes][asked - 1];
                 if (body) await route.fulfill({ contentType: 'application/x-ndjson', body });
             });
             await page.evaluate(() => {
                 window.longest = 0;
                 window.total = 0;
                 new PerformanceObserver((list) => {
                     for (const { duration } of list.getEntries()) {
                         window.longest = Math.max(window.longest, duration);
                         window.total += duration;
                     }
                 }).observe({ type: 'longtask', buffered: false });
             });
             const measure = async () => page.evaluate(async () => {
                 // Until the observer has been told.
                 await new Promise((resolve) => setTimeout(resolve, 200));
                 const figures = [window.longest, window.total];
                 window.longest = window.total = 0;
                 return figures;
             });
             await page.getByLabel('Token of the API').fill(data.token);
             await page.keyboard.press('Enter');
             await page.getByText('a-1000').waitFor();
             const listed = await measure();
             await page.waitForFunction(() => document.querySelectorAll('tbody .pill.busy').length === 1000);
             const changed = await measure();
             await page.getByLabel(/^Filter/).fill('a-99');
             await shows('11 of 1000');
             const filtered = await measure();
             await page.unrouteAll({ behavior: 'ignoreErrors' });
             return { listed, changed, filtered };",
        );
        println!("longest and total long tasks in ms: {figures}");
        for step in ["listed", "changed", "filtered"] {
            let longest = figures[step][0].as_f64().expect("a duration");
            assert!(longest < 1000.0 * harness::crowd(), "{step}: {figures}");
        }
    });
}

#[test]
fn the_files_of_the_page_are_those_of_its_sources() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/wire/ui");
    let dir = tempfile::tempdir().expect("a directory");
    let (sources, out) = (dir.path().join("page"), dir.path().join("dist"));
    let copied = Command::new("cp")
        .arg("-r")
        .arg(root.join("page"))
        .arg(&sources)
        .status();
    assert!(copied.expect("cp").success());
    // Those of the lock file, even if others are beside the sources.
    let modules = installed("page");
    for file in ["package.json", "package-lock.json"] {
        let read = |dir: &Path| fs::read_to_string(dir.join(file)).expect("a file of npm");
        assert_eq!(read(&modules), read(&sources), "run tests/setup.sh");
    }
    let _ = fs::remove_dir_all(sources.join("node_modules"));
    std::os::unix::fs::symlink(modules.join("node_modules"), sources.join("node_modules"))
        .expect("a link");
    let built = Command::new("node")
        .arg(sources.join("build.mjs"))
        .arg(&out)
        .output()
        .expect("node");
    assert!(built.status.success(), "{built:?}");
    let names = |dir: &Path| -> BTreeSet<String> {
        let entries = fs::read_dir(dir).expect("a directory");
        let names = entries.map(|entry| entry.expect("an entry").file_name());
        names
            .map(|name| name.to_string_lossy().into_owned())
            .collect()
    };
    let dist = root.join("dist");
    assert_eq!(names(&out), names(&dist));
    for name in names(&out) {
        let read = |dir: &Path| fs::read(dir.join(&name)).expect("a file");
        assert!(
            read(&out) == read(&dist),
            "src/wire/ui/dist/{name} is not what its sources build: run `make page`"
        );
    }
}
